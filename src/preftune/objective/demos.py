"""Imitation of demonstrations: what SFT minimizes, and the usual companion of a preference objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from preftune.objective.base import Formula
from preftune.objective.maths import weighted_mean
from preftune.objective.responses import Demos

if TYPE_CHECKING:
    from torch import Tensor


class NLL(Formula, frozen=True, tag="nll"):
    """Negative log-likelihood of the response; alone it is SFT."""

    kind = "demos"
    reads = frozenset()
    written = "SFT"
    imitates = True
    is_sft = True
    anchor_keys = ()
    paper = "2203.02155, sec. 3.5"
    formula = r"-\log\pi / n"
    optimum = "the distribution that the demonstrations came from"
    when = "Supervised fine-tuning, or a part of a sum that keeps chosen responses probable."
    fails = 'norm = "token" or "sum" gives a row as much weight as it has tokens; "token" needs a second forward pass.'

    norm: Annotated[
        Literal["sequence", "token", "sum"],
        Meta(description="sequence: mean over a response's tokens; token: over all tokens of the step; sum: no mean."),
    ] = "sequence"

    @property
    def variant(self) -> str:
        reduction = {
            "sequence": "the mean of each response's mean over its tokens, so rows count alike whatever their length",
            "token": "the mean over all tokens of the step, so a response counts by its length",
            "sum": "a sum over the tokens of a response, so a response counts by its length",
        }
        return f"nll: {reduction[self.norm]}"

    @property
    def needs_full_step(self) -> bool:  # type: ignore[override]
        return self.norm == "token"  # its mean divides by the tokens of the whole step

    @property
    def length_normalized(self) -> bool:  # type: ignore[override]
        return self.norm == "sequence"

    def __call__(self, demos: Demos) -> Tensor:
        """(responses,) one value a response, in nats a token or nats."""
        responses = demos.responses
        if self.norm == "token":
            return -responses.logp / weighted_mean(responses.counted, demos.weight)
        return -(responses.mean_logp if self.norm == "sequence" else responses.logp)
