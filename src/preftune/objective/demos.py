"""Imitation of demonstrations: what SFT minimises, and the usual companion of a preference objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from preftune.objective.base import Formula
from preftune.objective.scores import Demos

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
    fails = 'norm = "sum" gives a row as much weight as it has tokens.'

    norm: Annotated[
        Literal["sequence", "sum"], Meta(description="sequence: mean over a response's tokens; sum: their sum.")
    ] = "sequence"

    def __call__(self, demos: Demos) -> Tensor:
        """(responses,) one value a response, in nats a token or nats."""
        return -(demos.responses.mean_logp if self.norm == "sequence" else demos.responses.logp)
