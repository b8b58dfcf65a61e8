"""What every objective says of itself, and how votes enter those that compare two responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from msgspec import Struct

from preftune.objective.scores import Pairs, Rankings, Ratings, Scores

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


class Formula(ObjectiveTable, frozen=True):
    """An objective of one kind of example.

    kind: what it is called with; reference: whether it needs one, and otherwise has no use for one;
    coupled: whether an example's value depends on the other examples of the step; votes: whether it reads
    `Pairs.preferred`; needs: what it asks for beyond logp, tokens and reference, of "score" (an explicit score of each
    response), "sharpness" (`Scores.sharpness`) and "mismatched" (`Ratings.mismatched`).
    """

    kind: ClassVar[Kind]
    reference: ClassVar[bool] = True
    coupled: ClassVar[bool] = False
    votes: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()


class RatingFormula(Formula, frozen=True):
    """An objective of single responses."""

    kind = "ratings"

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


def given(scores: Scores) -> Tensor:
    """(responses,) the explicit scores. Raises ValueError where there are none."""
    if scores.score is None:
        raise ValueError("this objective needs an explicit score of each response and the rows give none")
    return scores.score.detach()


def only_one(first: object, second: object, names: str) -> None:
    """Raise ValueError where two names of one quantity are both given."""
    if first is not None and second is not None:
        raise ValueError(f"{names} are two names of one quantity; give one of them")
