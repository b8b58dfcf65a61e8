"""Check that the rows suit the objective, and resolve defaults that depend on the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from preftune.config.run import Run
from preftune.errors import UserError, without_effect
from preftune.forward.examples import class_weights, is_useful, row_kinds
from preftune.objective import BY_NAME, Formula, of_scores, parts
from preftune.run.dataset import Dataset
from preftune.tokens.aggregate import apply_aggregate
from preftune.tokens.groups import TokenGroup, repeated
from preftune.tokens.pad import with_pad

Notes = dict[str, tuple[str, dict[str, object]]]  # event kind -> sentence, details
UNUSABLE = {"rating.bad": "bad responses, which nothing here learns from", "votes.even": "rows with even votes"}


class MatchedRows(NamedTuple):
    """run: with the objective's open constants filled in; dataset: with token weights, and training rows as often as an
    epoch takes them; notes: what to report."""

    run: Run
    dataset: Dataset
    notes: Notes


def match_rows(run: Run, dataset: Dataset, *, full_batch: bool = False) -> MatchedRows:
    """Match the rows with the objective. full_batch: keep rows that the objective cannot use.

    Raises UserError where a row does not suit the objective, or a key would have no effect on these rows.
    """
    notes: Notes = {}
    groups = [*dataset.train, *dataset.held_out]
    objectives = [part for _, part in parts(run.objective)]
    _refuse_keys_without_effect(run, objectives, groups)
    _refuse_rows_that_do_not_suit(objectives, groups, notes)
    if not full_batch:
        dataset = _without_unusable(objectives, dataset, notes)
        groups = [*dataset.train, *dataset.held_out]
    run = replace(run, objective=run.objective.with_data_defaults(*class_weights(repeated(dataset.train))))
    if run.objective.variant:
        notes["objective"] = (run.objective.variant, {})
    if weighted := sum(group.column("weight") is not None for group in groups):
        unread = ", which a score of the whole response does not read" if of_scores(run.objective) else ""
        notes["token_weights"] = (f"{weighted} of {len(groups)} rows give token weights{unread}", {"rows": weighted})
    voted = sum(any(vote != 1 for vote in group.votes) for group in dataset.train)
    if voted and not any("votes" in part.reads for part in objectives):
        notes["votes"] = (f"{voted} rows carry votes, which this objective does not read", {"rows": voted})
    groups = apply_aggregate(_with_scores_for_all_or_none(objectives, groups, notes), run.aggregate)
    if of_scores(run.objective):
        groups = [replace(group, columns={}) for group in groups]
        end, vocab = dataset.config.get_text_config().eos_token_id, dataset.config.get_text_config().vocab_size
        ends = end if isinstance(end, list) else [] if end is None else [end]
        tokenizer, text = with_pad(dataset.tokenizer, groups, vocab, ends)
        notes["pad"] = (text, {"token": tokenizer.pad_token, "id": tokenizer.pad_token_id})
        dataset = replace(dataset, tokenizer=tokenizer)
    train, held_out = repeated(groups[: len(dataset.train)]), groups[len(dataset.train) :]
    if run.evaluate.best_by == "accuracy" and not _has_accuracy(held_out):
        raise UserError("no held-out row says what is better, so there is no accuracy.", location="evaluate.best_by",
                        hint='Use "loss", or hold out pairs, rankings or good and bad responses.')  # fmt: skip
    if (counts := dataset.account.train) and len(train) > len(dataset.train):
        account = replace(dataset.account, train=replace(counts, times=len(train) / len(dataset.train)))
        dataset = replace(dataset, account=account)
    return MatchedRows(run, replace(dataset, train=train, held_out=held_out), notes)


def _has_accuracy(groups: Sequence[TokenGroup]) -> bool:
    """Whether an evaluation of these rows has an accuracy: of pairs, or of ratings of both classes."""
    ranked = any(len({*group.ranks}) > 1 and not group.is_even for group in groups)
    return ranked or len({group.good for group in groups if group.kind == "rating"}) > 1


def _refuse_keys_without_effect(run: Run, objectives: Sequence[Formula], groups: Sequence[TokenGroup]) -> None:
    if run.aggregate.compares and all(len(group.responses) == 1 for group in groups):
        raise without_effect("these rows have one response each", "aggregate", "It needs pairs or rankings; remove it.")
    paired = any(part.kind in ("pairs", "comparisons") for part in objectives)
    if run.data.rankings != "all" and not (paired and any(group.kind == "ranking" for group in groups)):
        why = "there is no ranking" if paired else "this objective takes no pairs from rankings"
        raise without_effect(why, "data.rankings")


def _refuse_rows_that_do_not_suit(objectives: Sequence[Formula], groups: Sequence[TokenGroup], notes: Notes) -> None:
    """Raise UserError unless every part of the objective can use some rows and every row suits some part; note the
    parts that use only some rows."""
    rows_of = [(part, [group for group in groups if group.kind in row_kinds(part)]) for part in objectives]
    kinds = list(dict.fromkeys(kind for part in objectives for kind in row_kinds(part)))
    if row := next((group for group in groups if group.kind not in kinds), None):
        suited = [name for name, table in BY_NAME.items() if row.kind in row_kinds(table())]
        raise UserError(
            f"this row is a {row.kind}, and the objective {' + '.join(part.name for part in objectives)} needs a "
            f"{' or '.join(kinds)}.",
            location=str(row.place),
            hint=f"Objectives for it: {', '.join(suited)}."
            if suited
            else "Add [rollout], so that responses are drawn to it.",
        )
    for part, rows in rows_of:
        if not rows:
            raise UserError(f"no row serves {part.name}, which needs a {' or '.join(row_kinds(part))}.",
                            location="objective.parts", hint="Remove it, or add such rows.")  # fmt: skip
        _refuse_missing_facts(part, rows)
    if some := [f"{part.name} {len(rows)}" for part, rows in rows_of if len(rows) < len(groups)]:
        notes["parts"] = (f"of {len(groups)} rows, parts of the objective see only some: {', '.join(some)}", {})


def _refuse_missing_facts(part: Formula, rows: Sequence[TokenGroup]) -> None:
    """Raise UserError where a row of the right kind lacks what an objective reads."""

    def first(lacks: Callable[[TokenGroup], bool]) -> str:
        return next((str(row.place) for row in rows if lacks(row)), "")

    if "label" in part.reads and (place := first(lambda row: row.good is None)):
        raise UserError(f"this row has a score and no label, and the objective {part.name} asks whether it is good.",
                        location=place, hint='Give it a "label", or use qrpo or dro.')  # fmt: skip
    if "score" in part.uses and not part.falls_back_on_labels and (place := first(lambda row: row.scores is None)):
        raise UserError(f"the objective {part.name} needs a score of each response.", location=place)
    if "quantile" in part.reads and (place := first(lambda row: not all(0 <= s <= 1 for s in row.scores or ()))):
        raise UserError(f"{part.name} reads quantiles, and a score here is outside of 0 to 1.", location=place,
                        hint="Give each score's rank among the reference's own responses, or use dro.")  # fmt: skip


def _with_scores_for_all_or_none(
    objectives: Sequence[Formula], groups: list[TokenGroup], notes: Notes
) -> list[TokenGroup]:
    """The rows; without scores where an objective falls back on labels and only some rows have scores, because whether
    it falls back must not depend on the pack."""
    for part in objectives:
        rows = [group for group in groups if group.kind in row_kinds(part)]
        missing = sum(group.scores is None for group in rows)
        if part.falls_back_on_labels and 0 < missing < len(rows):
            groups = [replace(group, scores=None) for group in groups]
            text = f"{missing} of {len(rows)} rows have no scores, so those of the others are not read and ranks decide"
            notes["scores"] = (text, {"rows": missing})
    return groups


def _without_unusable(objectives: Sequence[Formula], dataset: Dataset, notes: Notes) -> Dataset:
    """The rows without those that no part of the objective can use, which would only thin out the steps.

    Raises UserError where none is left.
    """
    split, counts, dropped = {}, {}, []
    for name, account_part, verb in (("train", "train", "train"), ("held_out", "evaluate", "measure")):
        rows = getattr(dataset, name)
        useful = [any(g.kind in row_kinds(part) and is_useful(g, part) for part in objectives) for g in rows]
        split[name] = [row for row, keep in zip(rows, useful, strict=True) if keep]
        unusable = [row for row, keep in zip(rows, useful, strict=True) if not keep]
        dropped += unusable
        if unusable and not split[name]:
            raise UserError(f"no row is left to {verb} on: there are {_counted(unusable)}.", location="objective",
                            hint="Use another objective, or add other rows.")  # fmt: skip
        if unusable and (before := getattr(dataset.account, account_part)):
            skipped = {**before.skipped, **Counter(map(_why_unusable, unusable))}
            counts[account_part] = replace(before, kept=len(split[name]), skipped=skipped)
    if dropped:
        notes["idle"] = (f"left out, because the objective cannot use them: {_counted(dropped)}",
                         {"rows": len(dropped)})  # fmt: skip
    return replace(dataset, **split, account=replace(dataset.account, **counts))


def _why_unusable(group: TokenGroup) -> str:
    return "rating.bad" if group.good is False else "votes.even"


def _counted(groups: Sequence[TokenGroup]) -> str:
    return " and ".join(f"{n} {UNUSABLE[why]}" for why, n in sorted(Counter(map(_why_unusable, groups)).items()))
