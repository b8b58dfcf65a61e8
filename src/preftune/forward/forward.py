"""One update: the packs of a step through both models, on all ranks, and its gradient.

An objective that couples the examples of a step is as exact as any other: every pack is scored without gradient, the
objective is asked once, about the whole step, and then each pack goes through the model again. Packs may stand on
several ranks: what these tell each other is a few numbers a response, and at the end the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from preftune.forward.loss import LossOutput, Models, Scored, ask, score, summed, token_weights
from preftune.model.policy import Policy
from preftune.model.verify import draws_at_random
from preftune.objective.responses import Responses
from preftune.pack.batch import Batch
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Pack, Step
from preftune.reference.reference import NoReference
from preftune.tokens.groups import TokenGroup


@dataclass(frozen=True, slots=True)
class Whole:
    """All responses of a step, on every rank. scores: in the order of its rows, fp64, on the host; tokens: through the
    model, of all ranks; shared: tokens that sharing saved them."""

    scores: Responses
    tokens: int
    shared: int


def gathered(engine: Models, groups: Sequence[TokenGroup], step: Step, done: Sequence[tuple[Pack, Scored]]) -> Whole:
    """Put together what each rank has done of a step. Zeros stand for the others' part, so the sum is exact."""
    place = places(groups, step)
    names = ["logp", "tokens"]
    names += [] if isinstance(engine.reference, NoReference) else ["reference"]
    names += ["sharpness"] if "sharpness" in engine.judge.needs else []
    names += ["weight_sum"] if any(groups[i].token_weights is not None for i in step.order) else []
    count = sum(len(groups[i].responses) for i in step.order)
    table = torch.zeros(count + 1, len(names), dtype=torch.float64)
    for pack, scored in done:
        scores = (
            scored.scores
            if scored.scores.weight_sum is not None
            else replace(scored.scores, weight_sum=scored.scores.tokens)
        )
        table[[at for i in pack for at in place[i]]] = torch.stack([getattr(scores, n) for n in names], 1)
        table[count, :2] += torch.tensor([scored.tokens, scored.shared])
    engine.dist.sum(table)
    columns = table[:count].T.contiguous()
    return Whole(Responses(**dict(zip(names, columns, strict=True))), int(table[count, 0]), int(table[count, 1]))


def places(groups: Sequence[TokenGroup], step: Step) -> dict[int, range]:
    """Where the responses of each group of a step stand among all of the step."""
    found: dict[int, range] = {}
    start = 0
    for i in step.order:
        found[i] = range(start, start + len(groups[i].responses))
        start = found[i].stop
    return found


def score_all(
    engine: Models,
    groups: Sequence[TokenGroup],
    step: Step,
    memory: OomRetry,
    batch: Callable[[Pack], Batch] | None = None,
) -> Whole:
    """Every row of a step under both models, without gradient; each rank its packs. batch: what makes or keeps them."""
    made = batch or partial(engine.batch, groups)

    def work(packs: Sequence[Pack]) -> list[tuple[Pack, Scored]]:
        with torch.no_grad():
            return [(pack, score(engine, made(pack))) for pack in packs]

    return gathered(engine, groups, step, memory.run(groups, step.packs_of_rank(engine.dist.rank), work))


def score_mismatched(engine: Models, groups: Sequence[TokenGroup], memory: OomRetry) -> Whole | None:
    """The mismatched responses of these rows, if judging takes such; there may be none, as where prompts are equal."""
    if "mismatched" not in engine.judge.needs:
        return None
    extra = engine.judge.extra(groups)
    return score_all(engine, extra, engine.packing.step(extra, engine.dist.world_size), memory)


@dataclass(frozen=True, slots=True)
class Pass:
    """What was computed for a step: the objective's word on it, tokens through the model in all passes of all ranks,
    and tokens that one pass saved by sharing."""

    judgement: LossOutput
    tokens: int
    shared: int


def passes(engine: Models, groups: Sequence[TokenGroup], step: Step, memory: OomRetry) -> Pass:
    """Put the whole step's gradient into the policy's parameters, on every rank the same. groups: those of the plan."""
    rows = [groups[i] for i in step.order]
    run = _coupled if engine.judge.coupled else _uncoupled
    done = run(engine, groups, step, rows, memory)
    engine.dist.sum_gradients(engine.policy.module.parameters())
    return done


def dry_run(engine: Models, groups: Sequence[TokenGroup], pack: Pack, memory: OomRetry) -> None:
    """One pack through both models and back, with a gradient that means nothing: what a pass takes, on this rank alone.

    It is not judged, because its rows alone might take mismatched responses that no reference has scored.
    """

    def work(packs: Sequence[Pack]) -> None:
        for part in packs:
            logp = score(engine, engine.batch(groups, part)).logp
            logp.backward(torch.zeros_like(logp))

    memory.run(groups, [pack], work)


def _uncoupled(
    engine: Models, groups: Sequence[TokenGroup], step: Step, rows: Sequence[TokenGroup], memory: OomRetry
) -> Pass:
    """Each pack is judged by itself and goes back at once."""

    def work(packs: Sequence[Pack]) -> list[tuple[Pack, Scored]]:
        engine.policy.module.zero_grad()
        done = []
        for pack in packs:
            batch = engine.batch(groups, pack)
            scored = score(engine, batch)
            coefficients = ask(engine.judge, batch.groups, scored.scores).coefficients / len(rows)
            scored.logp.backward(coefficients.to(scored.logp))
            done.append((pack, replace(scored, logp=scored.logp.detach())))
        return done

    whole = gathered(engine, groups, step, memory.run(groups, step.packs_of_rank(engine.dist.rank), work))
    return Pass(ask(engine.judge, rows, whole.scores), whole.tokens, whole.shared)


def _coupled(
    engine: Models, groups: Sequence[TokenGroup], step: Step, rows: Sequence[TokenGroup], memory: OomRetry
) -> Pass:
    """All packs are scored, the objective is asked about the whole step, and each pack goes through the model again."""
    batch = cache(partial(engine.batch, groups))
    whole = score_all(engine, groups, step, memory, batch)
    mismatched = score_mismatched(engine, rows, memory)
    judgement = ask(engine.judge, rows, whole.scores, mismatched and mismatched.scores)
    place = places(groups, step)

    def work(packs: Sequence[Pack]) -> None:
        engine.policy.module.zero_grad()
        for pack in packs:
            weights = token_weights(batch(pack).groups, engine.policy.device)
            logp = summed(batch(pack), engine.policy.token_logp(batch(pack)), weights)
            mine = [at for i in pack for at in place[i]]
            _unchanged(engine.policy, whole.scores, logp.detach(), mine)
            logp.backward(judgement.coefficients[mine].to(logp) / len(rows))

    memory.run(groups, step.packs_of_rank(engine.dist.rank), work)
    extra = mismatched.tokens if mismatched else 0
    return Pass(judgement, 2 * whole.tokens + extra, whole.shared)


def _unchanged(policy: Policy, first: Responses, again: Tensor, mine: Sequence[int]) -> None:
    """Raise UserError where a second pass gives other numbers than those that the objective was asked about."""
    off = float(((again.double().cpu() - first.logp[mine]).abs() / first.tokens[mine]).max())
    if off > policy.noise:  # what is not finite is refused with the update
        raise draws_at_random(off)
