"""What every objective says of itself, and how votes enter those that compare two responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from msgspec import Struct

from preftune.objective.responses import Pairs, Rankings, Ratings, Responses

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Kind = Literal["pairs", "ratings", "rankings", "demos"]


class ObjectiveTable(Struct, frozen=True, forbid_unknown_fields=True, tag_field="name"):
    """[objective] A formula and its constants.

    paper: arXiv id and equation; formula: one line, in the paper's letters (u is a log-ratio, h the margin of two, s an
    explicit score, n tokens); optimum: where endless data lead; when: whom it serves; fails: its trap.
    """

    paper: ClassVar[str]
    formula: ClassVar[str]
    optimum: ClassVar[str]
    when: ClassVar[str]
    fails: ClassVar[str]

    @property
    def variant(self) -> str:
        """Which of the formulas that go by this name this is, in one line; empty where there is only one."""
        return ""

    def with_data_defaults(self, good: float, bad: float) -> Self:
        """The same with constants filled in that follow from all training rows: good, bad: weight of either class."""
        return self


class Formula(ObjectiveTable, frozen=True):
    """An objective of one kind of example.

    kind: what it is called with; reference: whether it needs one, and otherwise has no use for one;
    whole_step: whether an example's value depends on the other examples of the step; votes: whether it reads
    `Pairs.preferred`; momentum: what a running mean of the number `followed` keeps of itself from step to step, 0 where
    the objective follows none; scores: whether it reads explicit scores where all rows give them; needs: what it asks
    for beyond logp, tokens and reference, of "score" (an explicit score of each response), "quantile" (that score being
    one, from 0 to 1), "sharpness" (`Scores.sharpness`) and "mismatched" (`Ratings.mismatched`).
    """

    kind: ClassVar[Kind]
    reference: ClassVar[bool] = True
    whole_step: ClassVar[bool] = False
    votes: ClassVar[bool] = False
    momentum: ClassVar[float] = 0.0
    scores: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def coupled(self) -> bool:
        """Whether it has to be asked about a whole step at once."""
        return self.whole_step

    @property
    def length_normalized(self) -> bool:
        """Whether it reads log-probs per token alone, so that a mean in place of the sum changes nothing."""
        return False


class RatingFormula(Formula, frozen=True):
    """An objective of single responses. labels: whether it asks which of them are good."""

    kind = "ratings"
    labels: ClassVar[bool] = True

    def __call__(self, ratings: Ratings) -> Tensor:
        """(responses,) one value a response."""
        raise TypeError(f"{type(self).__name__} has no formula of ratings")


class RankingFormula(Formula, frozen=True):
    """An objective of K responses a prompt."""

    kind = "rankings"

    def __call__(self, rankings: Rankings) -> Tensor:
        """(groups,) one value a prompt."""
        raise TypeError(f"{type(self).__name__} has no formula of rankings")


class PairFormula(Formula, frozen=True):
    """An objective of pairs: `value` is the equation, and calling it lets the judges' votes in."""

    kind = "pairs"
    votes = True

    def value(self, pairs: Pairs) -> Tensor:
        """(pairs,) the paper's loss of each pair, the chosen response taken as truly the better one."""
        raise TypeError(f"{type(self).__name__} has no formula of pairs")

    def ema_input(self, pairs: Pairs) -> Tensor:
        """A scalar of the step, without gradient, whose running mean the next steps find in `Pairs.usual`."""
        raise TypeError(f"{type(self).__name__} follows no number")

    def __call__(self, pairs: Pairs) -> Tensor:
        """(pairs,) one value a pair, in nats unless the formula is a square; not reduced."""
        return by_votes(self.value, pairs, pairs.preferred)


def by_votes(value: Callable[[Pairs], Tensor], pairs: Pairs, preferred: Tensor) -> Tensor:
    """p * l(pair) + (1 - p) * l(swapped): the expected value where chosen is the better one with p = `preferred`."""
    straight = value(pairs)
    if bool((preferred == 1).all()):
        return straight
    return preferred * straight + (1 - preferred) * value(swapped(pairs))


def swapped(pairs: Pairs) -> Pairs:
    """The same pairs, the two responses having changed places."""
    return Pairs(pairs.rejected, pairs.chosen, pairs.weight, pairs.preferred)


def given(scores: Responses) -> Tensor:
    """(responses,) the explicit scores. Raises ValueError where there are none."""
    if scores.score is None:
        raise ValueError("this objective needs an explicit score of each response and the rows give none")
    return scores.score.detach()


def only_one(first: object, second: object, names: str) -> None:
    """Raise ValueError where two names of one quantity are both given."""
    if first is not None and second is not None:
        raise ValueError(f"{names} are two names of one quantity; give one of them")
