"""What [rollout], [reward] and [value] need of each other and of the objective."""

from __future__ import annotations

from preftune.config.run import Run
from preftune.errors import UserError
from preftune.objective import PPO, Formula, parts
from preftune.objective.rollouts import RolloutFormula
from preftune.rollout.config import Reward, Rollout
from preftune.tokens.aggregate import Plain

JUDGED = ("pairs", "rankings", "ratings")  # kinds of examples that scores of drawn responses give


def refuse_contradictions(run: Run) -> None:
    """Raise UserError where a table is missing that another needs, or has no effect."""
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
    _refuse_rollout(run.rollout, formulas[0], online=online)
    _refuse_reward(run, run.rollout)
    if run.value is not None and not isinstance(run.objective, PPO):
        raise without_effect("only ppo has a value model", "value")
    if not isinstance(run.aggregate, Plain):
        raise without_effect("drawn tokens count as they are", "aggregate")


def _refuse_objective(formulas: list[Formula], *, online: bool) -> None:
    for part in formulas:
        if part.kind not in JUDGED and not online:
            raise UserError(f"{part.name} does not learn from scores of drawn responses.", location="rollout",
                            hint="Remove [rollout], or use rloo, ppo, grpo or dpo.")  # fmt: skip
        if lacking := part.reads & {"mismatched", "quantile"}:
            raise UserError(f"{part.name} reads {min(lacking)} numbers, which draws do not have.", location="objective",
                            hint="Use it on rows, without [rollout].")  # fmt: skip


def _refuse_rollout(rollout: Rollout, part: Formula, *, online: bool) -> None:
    least = part.least_responses if isinstance(part, RolloutFormula) else 2
    if rollout.responses < least:
        raise UserError(f"{part.name} compares the responses to a prompt, and needs {least} or more.",
                        location="rollout.responses")  # fmt: skip
    if rollout.labels is not None and (online or "votes" not in part.reads):
        raise without_effect(f"{part.name} reads no labels", "rollout.labels")
    if rollout.labels is not None and part.kind != "pairs":
        raise without_effect(f"{part.name} is an objective of {part.kind}", "rollout.labels")


def _refuse_reward(run: Run, rollout: Rollout) -> None:
    if run.reward is None:
        raise UserError("nothing scores what is drawn.", location="reward",
                        hint="Give it a [reward] table with model, function or verify.")  # fmt: skip
    judges = [reward for reward in reward_tables(run) if reward.judge]
    if judges and len(reward_tables(run)) > 1:
        raise UserError("a judge stands alone, since it gives no score.", location="reward", hint="Remove the others.")
    if bool(judges) != (rollout.labels == "judge"):
        raise UserError('a judge and rollout.labels = "judge" need each other.', location="reward",
                        hint="Give both or neither.")  # fmt: skip


def reward_tables(run: Run) -> tuple[Reward, ...]:
    """The tables of [reward]; none where it is a callable."""
    return (run.reward,) if isinstance(run.reward, Reward) else run.reward if isinstance(run.reward, tuple) else ()


def without_effect(why: str, key: str) -> UserError:
    """The error about a key that does nothing."""
    return UserError(f"{why}, so the key has no effect.", location=key, hint="Remove it.")
