"""Rows and objective made for each other: what does not fit is refused, and what is open is filled in and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple, get_args

import msgspec
from msgspec.structs import replace

from preftune.config.run import Run
from preftune.errors import UserError
from preftune.forward.examples import class_weights, is_useful, row_kinds
from preftune.objective import Single, parts
from preftune.objective.base import RatingFormula
from preftune.run.prepare_rows import Prepared
from preftune.tokens.aggregate import apply_aggregate
from preftune.tokens.groups import TokenGroup

Notes = dict[str, tuple[str, dict[str, object]]]  # event kind -> sentence, details


class Fitted(NamedTuple):
    """run: with the objective's open constants filled in; prepared: with what tokens count; notes: what to say."""

    run: Run
    prepared: Prepared
    notes: Notes


def fit(run: Run, prepared: Prepared, *, whole: bool = False) -> Fitted:
    """whole: keep rows of which the objective makes nothing. Raises UserError where a row is of no use for the
    objective, or a key would have no effect on these rows."""
    groups = [*prepared.train, *prepared.evaluate]
    notes: Notes = {}
    _effective(run, groups)
    _shares(run, groups, notes)
    prepared = prepared if whole else _without_idle(run, prepared, notes)
    groups = [*prepared.train, *prepared.evaluate]
    run = replace(run, objective=run.objective.with_data_defaults(*class_weights(prepared.train)))
    if run.objective.variant:
        notes["objective"] = (run.objective.variant, {})
    said = sum(group.column("weight") is not None for group in groups)
    if said:
        notes["token_weights"] = (f"{said} of {len(groups)} rows give token weights", {"rows": said})
    voted = sum(group.preferred != 1 for group in prepared.train)
    if voted and not any(part.votes for _, part in parts(run.objective)):
        notes["votes"] = (f"{voted} rows carry votes, which this objective does not read", {"rows": voted})
    for _, part in parts(run.objective):
        mine = [group for group in groups if group.kind in row_kinds(part)]
        bare = sum(group.scores is None for group in mine)
        if part.scores and 0 < bare < len(mine):  # packs must not decide what is read
            groups = [replace(group, scores=None) for group in groups]
            text = f"{bare} of {len(mine)} rows have no scores, so those of the others are not read and ranks decide"
            notes["scores"] = (text, {"rows": bare})
    groups = apply_aggregate(groups, run.aggregate)
    count = len(prepared.train)
    return Fitted(run, replace(prepared, train=groups[:count], evaluate=groups[count:]), notes)


def _effective(run: Run, groups: Sequence[TokenGroup]) -> None:
    """Raise UserError where a key would change nothing on these rows."""
    if run.aggregate.compares and all(len(group.responses) == 1 for group in groups):
        raise UserError("these rows have one response each, so the key has no effect.", location="aggregate",
                        hint="It needs pairs or rankings; remove it.")  # fmt: skip
    paired = any(part.kind == "pairs" for _, part in parts(run.objective))
    if run.data.rankings != "all" and not (paired and any(group.kind == "ranking" for group in groups)):
        why = "there is no ranking" if paired else "this objective takes no pairs from rankings"
        raise UserError(f"{why}, so the key has no effect.", location="data.rankings", hint="Remove it.")


def _shares(run: Run, groups: Sequence[TokenGroup], notes: Notes) -> None:
    """Every row serves some part of the objective and every part has rows, or UserError; notes parts that see few."""
    every = [part for _, part in parts(run.objective)]
    wrong = next((g for g in groups if not any(g.kind in row_kinds(part) for part in every)), None)
    if wrong is not None:
        needed = " or ".join(dict.fromkeys(kind for part in every for kind in row_kinds(part)))
        raise UserError(
            f"this row is a {wrong.kind}, and the objective {' + '.join(map(name_of, every))} needs a {needed}.",
            location=str(wrong.place),
            hint=f"Objectives for it: {', '.join(for_kind(wrong.kind))}.",
        )
    seen = []
    for part in every:
        mine = [group for group in groups if group.kind in row_kinds(part)]
        if not mine:
            raise UserError(f"no row serves {name_of(part)}, which needs a {' or '.join(row_kinds(part))}.",
                            location="objective.parts", hint="Remove it, or add such rows.")  # fmt: skip
        _refuse(part, mine)
        if len(mine) < len(groups):
            seen.append(f"{name_of(part)} {len(mine)}")
    if seen:
        notes["parts"] = (f"of {len(groups)} rows, parts of the objective see only some: {', '.join(seen)}", {})


def _without_idle(run: Run, prepared: Prepared, notes: Notes) -> Prepared:
    """The rows without those of which the objective makes nothing, which would only thin out the steps; says how many.

    Raises UserError where none is left.
    """
    every = [part for _, part in parts(run.objective)]

    def split(groups: list[TokenGroup]) -> tuple[list[TokenGroup], list[TokenGroup]]:
        useful = [any(g.kind in row_kinds(part) and is_useful(g, part) for part in every) for g in groups]
        return [*compress(groups, useful)], [*compress(groups, (not one for one in useful))]

    found, counts, idle = {}, {}, []
    for part in ("train", "evaluate"):
        found[part], out = split(getattr(prepared, part))
        idle += out
        if out and (before := getattr(prepared.account, part)):
            reasons = Counter(_idle(g) for g in out)
            counts[part] = replace(before, kept=len(found[part]), skipped={**before.skipped, **reasons})
        if out and not found[part]:
            what = "train on" if part == "train" else "measure on"
            raise UserError(f"no row is left to {what}: there are {_counted(out)}.", location="objective",
                            hint="Use another objective, or add other rows.")  # fmt: skip
    if idle:
        notes["idle"] = (f"left out, because this objective makes nothing of them: {_counted(idle)}",
                         {"rows": len(idle)})  # fmt: skip
    return replace(prepared, **found, account=replace(prepared.account, **counts))


IDLE = {"rating.bad": "bad responses, which nothing here learns from", "votes.even": "rows with even votes"}


def _idle(group: TokenGroup) -> str:
    """Why an objective makes nothing of this row, a key of IDLE."""
    return "rating.bad" if group.good is False else "votes.even"


def _counted(groups: Sequence[TokenGroup]) -> str:
    return " and ".join(f"{count} {IDLE[why]}" for why, count in sorted(Counter(map(_idle, groups)).items()))


def _refuse(part: Single, groups: Sequence[TokenGroup]) -> None:
    """Raise UserError where a row of the right kind lacks what an objective reads."""
    name = name_of(part)
    if isinstance(part, RatingFormula) and part.labels and (mute := next((g for g in groups if g.good is None), None)):
        raise UserError(f"this row has a score and no label, and the objective {name} asks whether it is good.",
                        location=str(mute.place), hint='Give it a "label", or use qrpo or dro.')  # fmt: skip
    if "score" not in part.needs:
        return
    bare = next((g for g in groups if g.scores is None), None)
    if bare is not None:
        raise UserError(f"the objective {name} needs a score of each response.", location=str(bare.place))
    if "quantile" in part.needs:
        odd = next((g for g in groups if not all(0 <= score <= 1 for score in g.scores or ())), None)
        if odd is not None:
            hint = "Give each score's rank among the reference's own responses, or use dro."
            raise UserError(f"{name} reads quantiles, and a score here is outside of 0 to 1.", location=str(odd.place),
                            hint=hint)  # fmt: skip


def name_of(part: Single) -> str:
    """The name that a file has for it."""
    return str(msgspec.to_builtins(part)["name"])


def for_kind(kind: str) -> list[str]:
    """Names of the objectives that a row of this kind serves."""
    return [name_of(one()) for one in get_args(Single) if kind in row_kinds(one())]
