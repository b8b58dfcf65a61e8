"""Refuse tables of a run that draws which contradict each other, or do nothing."""

from __future__ import annotations

from preftune.config.run import Run, reward_tables
from preftune.errors import UserError, without_effect
from preftune.objective import PPO, Formula, parts, uses_reference
from preftune.objective.rollouts import RolloutFormula
from preftune.rollout.config import Rollout
from preftune.tokens.aggregate import Plain

JUDGED = ("pairs", "rankings", "ratings")  # kinds of examples that scores of drawn responses give


def refuse_tables_of_draws(run: Run) -> None:
    """Raise UserError where [rollout], [reward] or [value] is missing and another table needs it, or has no effect."""
    formulas = [part for _, part in parts(run.objective)]
    online = isinstance(run.objective, RolloutFormula)
    if run.rollout is None:
        if online:
            message = f"{formulas[0].name} learns from responses that the policy draws, and the run draws none."
            raise UserError(message, location="objective", hint="Give it a [rollout] table, or use dpo.")
        for name in ("reward", "value"):
            if getattr(run, name) is not None:
                raise without_effect("nothing is drawn without a [rollout] table", name)
        return
    _refuse_objective(formulas, online=online)
    _refuse_rollout(run.rollout, formulas, online=online)
    if run.rollout.server is not None and run.adapter is None:
        raise UserError("a server gets new weights as an adapter, and this run trains the whole model.",
                        location="rollout.server", hint="Train an adapter, such as adapter.rank=16.")  # fmt: skip
    if any(share > 1 for share in run.data.shares or ()):
        raise UserError("equal prompts are one task: none counts twice.", location="data.shares", hint="Use 1 or less.")
    _refuse_reward(run, run.rollout)
    if run.rollout.redraws:
        _refuse_redraws(run)
    if run.value is not None and not isinstance(run.objective, PPO):
        raise without_effect("only ppo has a value model", "value")
    if not isinstance(run.aggregate, Plain):
        raise without_effect("drawn tokens count as they are", "aggregate")


def _refuse_objective(formulas: list[Formula], *, online: bool) -> None:
    of_ratings = [part.name for part in formulas if part.kind == "ratings"]
    of_orders = [part.name for part in formulas if part.kind != "ratings"]
    if of_ratings and of_orders:
        text = f"{of_orders[0]} reads the order of the drawn responses and {of_ratings[0]} which of them are good"
        raise UserError(f"{text}; a phase has one kind of label.", location="objective", hint="Use one of the two.")
    for part in formulas:
        if part.kind not in JUDGED and not online:
            raise UserError(f"{part.name} does not learn from scores of drawn responses.", location="rollout",
                            hint="Remove [rollout], or use rloo, ppo, grpo or dpo.")  # fmt: skip
        if lacking := part.reads & {"mismatched", "quantile"}:
            raise UserError(f"{part.name} reads {min(lacking)} numbers, which draws do not have.", location="objective",
                            hint="Use it on rows, without [rollout].")  # fmt: skip


def _refuse_rollout(rollout: Rollout, formulas: list[Formula], *, online: bool) -> None:
    for part in formulas:
        least = part.least_responses if isinstance(part, RolloutFormula) else 2
        if rollout.responses < least:
            raise UserError(f"{part.name} compares the responses to a prompt, and needs {least} or more.",
                            location="rollout.responses")  # fmt: skip
    names = " and ".join(part.name for part in formulas)
    if rollout.labels is not None and (online or not any("votes" in part.reads for part in formulas)):
        raise without_effect(f"{names} reads no labels", "rollout.labels")
    if rollout.labels is not None and not any(part.kind == "pairs" for part in formulas):
        raise without_effect(f"{names} is an objective of {formulas[0].kind}", "rollout.labels")


def _refuse_redraws(run: Run) -> None:
    """Raise UserError where responses of one score teach something, so that no prompt needs another in its place."""
    for _, part in parts(run.objective):
        if not isinstance(part, RolloutFormula) or part.least_responses < 2:  # nothing is compared within a group
            raise without_effect(f"{part.name} learns from responses of one score too", "rollout.redraws")
    if uses_reference(run.objective):
        why = "beside a reference something is learned from responses of one score too"
        raise without_effect(why, "rollout.redraws", "Remove it, or set objective.beta = 0.")


def _refuse_reward(run: Run, rollout: Rollout) -> None:
    if not reward_tables(run):
        raise UserError("nothing scores what is drawn.", location="reward",
                        hint="Give it a [reward] table with model, function or verify.")  # fmt: skip
    judges = [reward for reward in reward_tables(run) if reward.judge]
    if judges and len(reward_tables(run)) > 1:
        raise UserError("a judge stands alone, since it gives no score.", location="reward", hint="Remove the others.")
    if not judges and not any(reward.weight for reward in reward_tables(run)):
        raise UserError("no reward has a weight, so nothing is learned from any.", location="reward.weight",
                        hint="Give one of them a weight.")  # fmt: skip
    if bool(judges) != (rollout.labels == "judge"):
        raise UserError('a judge and rollout.labels = "judge" need each other.', location="reward",
                        hint="Give both or neither.")  # fmt: skip
