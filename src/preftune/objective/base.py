"""The facts that every objective states about itself, and soft labels for objectives of pairs.

Held by tests/objective/test_reads.py: a formula touches what its `reads` names and nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from msgspec import Struct

from preftune.objective.responses import (
    NO_SCORE,
    Comparisons,
    Demos,
    Pairs,
    Rankings,
    Ratings,
    Responses,
    Rollouts,
    required,
)
from preftune.table import Keyed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

RowKind = Literal["pairs", "ratings", "rankings", "demos", "comparisons"]  # what rows give
Kind = RowKind | Literal["rollouts"]  # rollouts are drawn
TwoSided = Pairs | Comparisons
READS = {
    "reference": "log-probabilities under the reference",
    "votes": "the probability that chosen is truly better (pairs, comparisons)",
    "score": "an explicit score of each response",
    "quantile": "scores that are quantiles, from 0 to 1",
    "label": "which responses are good, or how they rank (ratings, rankings)",
    "sharpness": "how concentrated the policy is on each response",
    "mismatched": "responses under the prompts of other rows (ratings)",
    "ema": "a running mean over the steps before (EmaFormula)",
    "value": "what a value model says of each token (rollouts)",
}


class ObjectiveTable(Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", metaclass=Keyed):
    """[objective] A formula and its constants.

    paper: arXiv id and equation; formula: one line, in the paper's letters (u is a log-ratio, h the margin of two, s an
    explicit score, n tokens); optimum: where endless data lead; when: whom it serves; fails: its trap; states: which of
    the formulas that share its name it is, with places such as {0.beta} for its constants.
    """

    paper: ClassVar[str]
    formula: ClassVar[str]
    optimum: ClassVar[str]
    when: ClassVar[str]
    fails: ClassVar[str]
    states: ClassVar[str] = ""

    @property
    def variant(self) -> str:
        """`states` with its constants, in one line; empty where only one formula has the name."""
        return self.states.format(self)

    def with_data_defaults(self, good: float, bad: float) -> Self:
        """The objective with the constants that follow from the training rows; good, bad: weight of either class."""
        return self


class Formula(ObjectiveTable, frozen=True):
    """An objective of one kind of example. Calling it on a table of that kind is the paper's equation.

    kind: the table that it is called with.
    reads: all that it uses beyond logp, tokens and weights, of the names in READS. One that reads a score and a label
        takes scores where all rows have them and labels otherwise.
    needs_full_step: whether an example's value depends on the other examples of the step.
    length_normalized: whether it reads log-probs only per token, so that a mean in place of the sum changes nothing.
    imitates: whether the likelihood of chosen is itself a part of the value; is_sft: whether it is the only part.
    anchor_keys: its keys that hold the policy near its start, or bound how far the margin is to go.
    written: its name in prose.
    """

    kind: ClassVar[Kind]
    reads: ClassVar[frozenset[str]]
    needs_full_step: ClassVar[bool] = False
    length_normalized: ClassVar[bool] = False
    imitates: ClassVar[bool] = False
    is_sft: ClassVar[bool] = False
    anchor_keys: ClassVar[tuple[str, ...]] = ("beta",)
    written: ClassVar[str]

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Most objectives are written as their class is named."""
        super().__init_subclass__(**keywords)
        if "written" not in vars(cls):
            cls.written = cls.__name__

    @abstractmethod
    def __call__(self, examples: Any, /) -> Tensor:
        """(examples,) one value an example, not reduced."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """Its name in a configuration."""
        return str(self.__struct_config__.tag)

    @property
    def uses(self) -> frozenset[str]:
        """What it reads with these constants; all of `reads`, unless one of them switches a term off."""
        return self.reads

    @property
    def of_scores(self) -> bool:
        """Whether its model says a score of each response, and not log-probabilities."""
        return self.kind == "comparisons"

    @property
    def falls_back_on_labels(self) -> bool:
        """Whether it reads scores only where all rows have them, and labels otherwise."""
        return {"score", "label"} <= self.reads


class PairFormula(Formula, frozen=True):
    """An objective of pairs. A call takes chosen as truly the better response; `loss_of` applies the votes."""

    kind = "pairs"
    reads = frozenset({"reference", "votes"})

    def vote(self, preferred: Tensor) -> Tensor:
        """(pairs,) the probability that chosen is better, after what the objective assumes about wrong labels."""
        return preferred


class EmaFormula(PairFormula, frozen=True):
    """An objective of pairs that compares a number of the step with its running mean, `Pairs.ema`.

    momentum: how much of the mean each step keeps.
    """

    momentum: ClassVar[float]

    @abstractmethod
    def ema_input(self, pairs: Pairs) -> Tensor:
        """The step's number, a scalar without gradient."""
        raise NotImplementedError


class RatingFormula(Formula, frozen=True):
    """An objective of single responses."""

    kind = "ratings"
    reads = frozenset({"reference", "label"})


class RankingFormula(Formula, frozen=True):
    """An objective of K responses a prompt."""

    kind = "rankings"
    reads = frozenset({"reference", "label"})


def loss_of(part: Formula, examples: Pairs | Ratings | Rankings | Demos | Comparisons | Rollouts) -> Tensor:
    """(examples,) the value of each example, not reduced; for pairs, the expected value under their votes.

    An objective that needs the full step gives no pair a value of its own, so there the formula itself reads the votes.
    """
    if isinstance(examples, TwoSided) and "votes" in part.reads and not part.needs_full_step:
        preferred = part.vote(examples.preferred) if isinstance(part, PairFormula) else examples.preferred
        return expected(part, examples, preferred)
    return part(examples)


def expected(loss: Callable[[Any], Tensor], pairs: TwoSided, preferred: Tensor) -> Tensor:
    """(pairs,) p l(pair) + (1 - p) l(swapped), p being `preferred`; one evaluation where all labels are certain."""
    straight = loss(pairs)
    if bool((preferred == 1).all()):
        return straight
    return preferred * straight + (1 - preferred) * loss(swapped(pairs))


def swapped(pairs: TwoSided) -> TwoSided:
    """The pairs with their two responses exchanged."""
    if isinstance(pairs, Comparisons):
        better_by = None if pairs.better_by is None else -pairs.better_by
        return Comparisons(pairs.rejected, pairs.chosen, pairs.weight, pairs.preferred, better_by)
    return Pairs(pairs.rejected, pairs.chosen, pairs.weight, pairs.preferred)


def scores_of(responses: Responses) -> Tensor:
    """(responses,) the explicit scores, without gradient. Raises ValueError where there are none."""
    return required(responses.score, NO_SCORE)
