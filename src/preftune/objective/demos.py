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
    reference = False
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
        what = {
            "sequence": "the mean of each response's mean over its tokens, so rows count alike whatever their length",
            "token": "the mean over all tokens of the step, so a response counts by its length",
            "sum": "a sum over the tokens of a response, so a response counts by its length",
        }
        return f"nll: {what[self.norm]}"

    @property
    def coupled(self) -> bool:
        return self.norm == "token"  # by the tokens of the step, which is what a mean over them divides by

    @property
    def length_normalized(self) -> bool:
        return self.norm == "sequence"

    def __call__(self, demos: Demos) -> Tensor:
        """(responses,) one value a response, in nats a token or nats."""
        scores = demos.responses
        if self.norm == "token":
            return -scores.logp / weighted_mean(scores.counted, demos.weight)
        return -(scores.mean_logp if self.norm == "sequence" else scores.logp)
