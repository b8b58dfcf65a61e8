"""Each formula touches the fields that its `reads` names and no others, and the loss applies votes to the rest."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from objective.cases import examples_of, random_pairs
from torch import Tensor

from preftune import objective as o
from preftune.objective.base import EmaFormula, swapped
from preftune.objective.responses import Comparisons, Demos, Pairs, Rankings, Ratings, Responses

FREE = {"logp", "tokens", "weight_sum", "weight", "group"}  # every objective may read these
NAMES = {"preferred": "votes", "better_by": "score", "good": "label", "rank": "label"}
every = pytest.mark.parametrize("table", get_args(o.Single), ids=lambda table: table.__struct_config__.tag)


def traced(value: object, touched: set[str]) -> object:
    """A table of examples that writes down which of its fields are read."""
    kind = type(value)
    if kind not in (Responses, Pairs, Ratings, Rankings, Demos, Comparisons):
        return value
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]

    class Traced(kind):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> object:
            if name in names - FREE - {"chosen", "rejected", "responses"}:
                touched.add(NAMES.get(name, name))
            return super().__getattribute__(name)

    return Traced(*(traced(getattr(value, name), touched) for name in kind.__slots__))


def touched_by(objective: o.Formula, ema: float | None = 0.1) -> set[str]:
    """What a call of the formula reads of pairs that have everything."""
    pairs = replace(random_pairs(3, preferred=0.8), ema=ema)
    mismatched = replace(pairs.chosen, score=None)
    examples = pairs if objective.kind == "pairs" else getattr(examples_of(pairs, mismatched), objective.kind)
    touched: set[str] = set()
    objective(traced(examples, touched))
    return touched


@every
def test_a_formula_touches_what_it_says_it_reads(table: type[o.Formula]) -> None:
    by_the_loss = set() if table.needs_full_step is True else {"votes"}
    assert table.reads <= set(o.READS)
    objective = o.Reward(margin=1.0) if table is o.Reward else table()
    assert objective.uses == table.reads
    assert touched_by(objective) == table.reads - {"quantile"} - by_the_loss
    assert ("ema" in table.reads) == issubclass(table, EmaFormula)
    if table is o.BetaDPO:
        assert touched_by(table(), ema=None) == table.reads, "it falls back on the step's own margin"


def test_a_constant_may_switch_off_what_is_read() -> None:
    assert o.Reward().uses == {"votes"}
    assert touched_by(o.Reward()) == set()
    assert o.of_scores(o.Reward())
    assert not o.of_scores(o.DPO())


@every
def test_facts_are_of_keys_that_there_are(table: type[o.Formula]) -> None:
    assert set(table.anchor_keys) <= set(table.__struct_fields__)
    assert ("beta" in table.__struct_fields__) == ("beta" in table.anchor_keys)
    assert table.imitates >= table.is_sft
    assert table.written
    assert o.BY_NAME[table().name] is table


def test_what_is_left_to_the_loss_is_the_expected_value() -> None:
    """One call of the formula where labels are certain, two where they are not; the order exchanged, the votes kept."""
    calls: list[Pairs] = []

    def margin(pairs: Pairs) -> Tensor:
        calls.append(pairs)
        return pairs.margin

    pairs = random_pairs(3)
    o.expected(margin, pairs, pairs.preferred)
    assert len(calls) == 1
    even = o.expected(margin, pairs, pairs.preferred * 0.5)
    assert len(calls) == 3
    assert torch.equal(even, torch.zeros_like(even))
    other = swapped(pairs)
    assert (other.chosen, other.rejected) == (pairs.rejected, pairs.chosen)
    assert (other.weight, other.preferred) == (pairs.weight, pairs.preferred)


def test_what_needs_the_full_step() -> None:
    """KTO by its drift, which the worked pair holds fixed; SFT where it is a mean over the tokens of the step."""
    assert {table for table in get_args(o.Single) if table().needs_full_step} == {
        o.AOT, o.BetaDPO, o.DrDPO, o.KTO, o.BCO, o.DRO,
    }  # fmt: skip
    assert [o.NLL(norm).needs_full_step for norm in ("sequence", "token", "sum")] == [False, True, False]


def test_what_reads_no_votes() -> None:
    without = {table for table in get_args(o.Single) if table.kind == "pairs" and "votes" not in table.reads}
    assert without == {o.AOT, o.ODPO, o.RPO, o.REBEL}
    assert o.NCA().falls_back_on_labels
    assert not any(table().falls_back_on_labels for table in (o.QRPO, o.KTO, o.PlackettLuce, o.REBEL))
