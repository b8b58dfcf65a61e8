"""Any callable that says what it reads, as an objective. Held by tests/objective/test_own.py."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, get_args

from preftune.errors import UserError, nearest, third_party_message
from preftune.objective.base import READS, Formula, RowKind
from preftune.objective.source import source_of

if TYPE_CHECKING:
    from torch import Tensor

KINDS: tuple[RowKind, ...] = get_args(RowKind)
ONLY: dict[str, tuple[RowKind, ...]] = {  # what not every kind of example has
    "votes": ("pairs", "comparisons"),
    "label": ("ratings", "rankings"),
    "mismatched": ("ratings",),
}
OURS = {"ema", "value"}  # what a function cannot ask for


class OwnObjective(Formula, frozen=True, kw_only=True, tag="own"):
    """An objective from outside of this package.

    function: it is called with the examples; source: SHA-256 of its source text and of what it holds; remark: on what
    it holds that this does not cover. A record keeps `recorded()`.
    """

    function: Callable[[Any], Tensor]
    written: str  # type: ignore[override]
    source: str
    remark: str = ""
    kind: RowKind  # type: ignore[override]
    reads: frozenset[str]  # type: ignore[override]
    needs_full_step: bool = False  # type: ignore[override]
    length_normalized: bool = False  # type: ignore[override]
    anchor_keys = ()

    @property
    def name(self) -> str:
        return self.written

    @property
    def variant(self) -> str:
        text = f"{self.name}: an objective from outside of preftune, source {self.source[:12]}"
        return f"{text}; {self.remark}" if self.remark else text

    def recorded(self) -> dict[str, str]:
        """What a record says in place of the keys of a built-in objective."""
        return {"name": self.name, "source": self.source}

    def __call__(self, examples: Any) -> Tensor:
        """(examples,) one value an example. Raises UserError where the function fails, or returns something else."""
        from torch import Tensor

        try:
            values = self.function(examples)
        except Exception as error:
            says = f"reads {', '.join(sorted(self.reads))}" if self.reads else "reads nothing beyond log-probabilities"
            text = f"{self.name} raised {type(error).__name__}: {third_party_message(error)}"
            raise UserError(text, location="objective", hint=f"It says that it {says}.") from error
        if not isinstance(values, Tensor):
            raise UserError(f"{self.name} returned {type(values).__name__} in place of a tensor.", location="objective",
                            hint="Return one value an example, made of their log-probabilities.")  # fmt: skip
        if values.shape != examples.weight.shape:
            message = f"{self.name} returned the shape {tuple(values.shape)} for {len(examples.weight)} examples."
            raise UserError(message, location="objective", hint="Return one value for each, without a mean or sum.")
        return values


def own_objective(function: Callable[[Any], Tensor]) -> OwnObjective:
    """Make an objective of a function or callable object that has the attribute `reads`, names out of READS.

    It is called with Pairs, or with the table that its attribute `kind` names, and returns one value an example.
    `needs_full_step = True` says that a value depends on the other examples of the step. Pairs that have votes count
    with their expected value; only where the full step is needed, the function has to use the votes itself.
    Raises UserError where these attributes are missing or unknown.
    """
    name = getattr(function, "__name__", type(function).__name__)

    def refuse(message: str, hint: str) -> UserError:
        return UserError(f"{name} {message}", location="objective", hint=hint)

    if isinstance(function, type) or not callable(function):
        raise refuse("is no function or callable object.", f"Did you mean {name}()?" if callable(function) else "")
    known = [read for read in READS if read not in OURS]
    reads = getattr(function, "reads", None)
    if not isinstance(reads, Collection) or isinstance(reads, str):
        hint = f'Give it an attribute such as reads = {{"reference"}}; the names are {", ".join(known)}.'
        raise refuse("does not say what it reads.", hint)
    kind = getattr(function, "kind", "pairs")
    if kind not in KINDS:
        raise refuse(f'has the kind "{kind}", which is unknown.', nearest(str(kind), KINDS) or f"One of {KINDS}.")
    for read in map(str, reads):
        if read not in known:
            raise refuse(f'reads "{read}", which is unknown.', nearest(read, known) or f"Known: {', '.join(known)}.")
        if kind not in ONLY.get(read, KINDS):
            raise refuse(f'reads "{read}", which {kind} do not have.', f"Only {' and '.join(ONLY[read])} have it.")
    source = source_of(function, name, "objective")
    return OwnObjective(
        function=function,
        written=name,
        source=source.digest,
        remark=source.remark(name),
        kind=kind,
        reads=frozenset(reads) | ({"score"} if "quantile" in reads else frozenset()),
        needs_full_step=bool(getattr(function, "needs_full_step", False)) or "mismatched" in reads,
        length_normalized=bool(getattr(function, "length_normalized", False)),
    )
