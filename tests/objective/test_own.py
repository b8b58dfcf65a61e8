"""An objective from outside of the package: what it has to say, how it is recorded, and that it does what it should."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from making import group
from objective.cases import random_pairs, slopes, values
from torch import Tensor

from preftune import objective as o
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.forward.examples import row_kinds
from preftune.forward.loss import Loss
from preftune.objective.responses import Pairs, Ratings, Responses
from preftune.rows.account import Account
from preftune.run.dataset import Dataset
from preftune.run.match_rows import match_rows
from preftune.tokens.groups import TokenGroup


def mine(pairs: Pairs) -> Tensor:
    return torch.nn.functional.softplus(-0.1 * pairs.margin)


mine.reads = {"reference", "votes"}


def averaged(pairs: Pairs) -> Tensor:
    return pairs.weight.mean()


averaged.reads = []


class Tempered:
    """DPO with a number that an object holds."""

    reads = ("votes", "reference")

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def __call__(self, pairs: Pairs) -> Tensor:
        return torch.nn.functional.softplus(-self.beta * pairs.margin)


@dataclass(frozen=True, slots=True)
class Slotted:
    beta: float
    reads: ClassVar = frozenset({"reference"})

    def __call__(self, pairs: Pairs) -> Tensor:
        return self.beta * pairs.margin


def closed_over(beta: float) -> Callable[[Pairs], Tensor]:
    def inner(pairs: Pairs) -> Tensor:
        return beta * pairs.margin

    inner.reads = ["reference"]
    return inner


def saying(**attributes: object) -> Callable[[object], Tensor]:
    function = lambda examples: examples.weight  # noqa: E731
    vars(function).update(attributes)
    return function


def dataset_of(row: TokenGroup) -> Dataset:
    return Dataset([row], [], Account(), None, None, 64, {}, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [mine, Tempered(0.1)])
def test_a_callable_is_the_objective_that_it_computes(function: Callable[[Pairs], Tensor]) -> None:
    """Votes are applied to it as to DPO, and the loss and its derivative are DPO's."""
    objective, pairs = o.own_objective(function), random_pairs(4, preferred=0.8)
    for a, b in zip(slopes(objective, pairs), slopes(o.DPO(), pairs), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    assert o.parts(objective) == [(1.0, objective)]
    assert torch.allclose(values(o.Sum((objective, o.NLL())), pairs), values(o.Sum((o.DPO(), o.NLL())), pairs))
    rows = [group([1], [2], [3], preferred=0.8), group([1], [2], [3], kind="ranking")]
    x = torch.tensor([-1.0, -2.0, -1.5, -1.0], dtype=torch.float64)
    responses = Responses(x, torch.ones_like(x), x - torch.arange(4))
    outputs = [Loss(each, "all")(rows, responses) for each in (objective, o.DPO())]
    assert outputs[0].value == pytest.approx(outputs[1].value, rel=1e-12)
    assert torch.allclose(outputs[0].d_logp, outputs[1].d_logp, rtol=1e-12)


def test_it_is_recorded_by_its_name_and_its_source() -> None:
    objective = o.own_objective(mine)
    assert objective.recorded() == {"name": "mine", "source": objective.source}
    assert len(objective.source) == 64
    assert objective.variant == f"mine: an objective from outside of preftune, source {objective.source[:12]}"
    assert o.own_objective(Tempered(0.1)).name == "Tempered"
    made = [
        Tempered(0.1),
        Tempered(0.2),
        Slotted(0.1),
        Slotted(0.2),
        o.IPO(tau=0.3),
        o.IPO(tau=0.4),
        closed_over(0.1),
        closed_over(0.2),
        saying(reads=()),
        saying(reads=(), x=1),
    ]
    for beta in (0.1, 0.2):
        made.append(functools.partial(lambda beta, pairs: beta * pairs.margin, beta))
        vars(made[-1])["reads"] = ["reference"]
    digests = [o.own_objective(function).source for function in made]
    assert len(set(digests)) == len(made), "the numbers that it holds count"
    assert o.own_objective(Tempered(0.1)).source == digests[0]


def test_code_without_a_text_is_recorded_too() -> None:
    def compiled(number: str) -> Callable[[Pairs], Tensor]:
        code = compile(f"def made(pairs): return {number} * pairs.margin", "<nowhere>", "exec").co_consts[0]
        function = type(mine)(code, {})
        function.reads = ["reference"]
        return function

    sources = [o.own_objective(compiled(number)).source for number in ("2", "3", "2")]
    assert sources[0] == sources[2] != sources[1]
    held = functools.partial(max)
    vars(held)["reads"] = ()
    with pytest.raises(UserError, match=r"objective: partial has no source to record\. Wrap it"):
        o.own_objective(held)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (3, "objective: int is no function or callable object."),
        (Tempered, "objective: Tempered is no function or callable object. Did you mean Tempered()?"),
        (saying(reads=3), "does not say what it reads"),
        (
            saying(),
            r'objective: <lambda> does not say what it reads. Give it an attribute such as reads = {"reference"}',
        ),
        (saying(reads="votes"), "does not say what it reads"),
        (saying(reads=["refrence"]), 'reads "refrence", which is unknown. Did you mean "reference"?'),
        (saying(reads=["ema"]), 'reads "ema", which is unknown. Known: reference, votes, score'),
        (saying(reads=["label"]), 'reads "label", which pairs do not have. Only ratings and rankings have it.'),
        (
            saying(reads=["votes"], kind="demos"),
            'reads "votes", which demos do not have. Only pairs and comparisons have it.',
        ),
        (saying(reads=[], kind="pair"), 'has the kind "pair", which is unknown. Did you mean "pairs"?'),
    ],
)
def test_what_it_has_to_say(function: object, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        o.own_objective(function)  # type: ignore[arg-type]
    assert sentence in str(error.value)


def test_it_returns_one_value_an_example() -> None:
    with pytest.raises(UserError, match=r"objective: averaged returned the shape \(\) for 3 examples\. Return one"):
        values(o.own_objective(averaged), random_pairs(3))


def test_rows_are_matched_with_it() -> None:
    """A kind of example takes the rows that built-in objectives of this kind take, and refuses the others."""
    quantiles = o.own_objective(saying(reads={"quantile"}, kind="ratings"))
    assert quantiles.reads == {"quantile", "score"}
    assert row_kinds(quantiles) == row_kinds(o.QRPO())
    assert row_kinds(o.own_objective(mine)) == row_kinds(o.DPO())
    assert o.own_objective(saying(reads={"mismatched"}, kind="ratings")).needs_full_step
    assert o.own_objective(saying(reads=(), needs_full_step=True)).needs_full_step
    rated = group([1], [2], kind="rating", scores=(0.5,))
    for objective, row, sentence in (
        (o.own_objective(mine), rated, "this row is a rating, and the objective mine needs a pair or ranking"),
        (quantiles, group([1], [2], kind="rating", scores=(2.0,)), "reads quantiles"),
    ):
        run = Run(objective=objective)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=sentence):
            match_rows(run, dataset_of(row))
    matched = match_rows(Run(objective=quantiles), dataset_of(rated))  # type: ignore[arg-type]
    assert matched.run.objective is quantiles
    assert "outside of preftune" in matched.notes["objective"][0]


def test_it_may_be_of_another_kind() -> None:
    def push(ratings: Ratings) -> Tensor:
        return torch.where(ratings.good, -ratings.responses.logp, ratings.responses.logp)

    push.reads, push.kind = {"label"}, "ratings"
    assert values(o.own_objective(push), random_pairs(3)).shape == (3,)
