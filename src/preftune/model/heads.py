"""Heads: which rows of a batch are read, and what their hidden states answer.

Held by tests/model/test_heads.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from preftune.model.logp import head_logp, head_logp_and_squares, product
from preftune.model.probe import Behavior
from preftune.pack.batch import Batch, Reads


class Head(Protocol):
    """reads: the rows that a batch must hold for it, "tokens" or "ends" (pack.batch.collate); answers, unit: what it
    gives, in words, and in what unit `verify_layout` measures how far that is off."""

    answers: ClassVar[str]
    unit: ClassVar[str]

    @property
    def reads(self) -> Reads: ...

    def __call__(self, hidden: Tensor, batch: Batch) -> Tensor: ...  # (scored, width) -> (members,)

    def of_pass(self, module: PreTrainedModel) -> Head: ...  # with the parameters that the module has just now


@dataclass(frozen=True, slots=True)
class LanguageHead:
    """Log-probabilities of tokens; logits are softcap(scale * (weight @ h + bias)).

    weight: (vocab, width); bias: (vocab,) or None; softcap: c in c * tanh(logits / c), or None; in_place: the backward
    pass adds the gradient by weight, often the largest of all, to its `.grad` and makes no second one: for loops that
    call `backward`, not for `torch.autograd.grad`.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    in_place: bool = False
    answers: ClassVar[str] = "log-probabilities"
    unit: ClassVar[str] = "nats a token"

    @property
    def reads(self) -> Reads:
        return "tokens"

    @classmethod
    def of(cls, module: PreTrainedModel, behavior: Behavior) -> LanguageHead:
        """The output layer of a model with what its family multiplies and caps logits by."""
        layer = module.get_output_embeddings()
        assert layer is not None  # a causal language model has one
        return cls(layer.weight, getattr(layer, "bias", None), behavior.scale, behavior.softcap)

    def __call__(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(scored, width) -> (members,), in nats, fp32 (fp64 for fp64 models)."""
        return head_logp(hidden, self, batch.target)[batch.member]

    def of_pass(self, module: PreTrainedModel) -> LanguageHead:
        layer = module.get_output_embeddings()
        assert layer is not None
        return replace(self, weight=layer.weight, bias=getattr(layer, "bias", None))

    def with_squares(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The log-probabilities, and log sum_v p_v^2 of each token's distribution without gradient, (members,) each."""
        logp, squares = head_logp_and_squares(hidden, self, batch.target)
        return logp[batch.member], squares[batch.member]

    def logits(self, hidden: Tensor, words: slice = slice(None)) -> Tensor:
        """(rows, width) -> (rows, words of the vocabulary), a new tensor in fp32 or wider."""
        logits = product(hidden, self.weight[words].to(hidden.dtype).T)
        if self.bias is not None:
            logits += self.bias[words]
        if self.scale != 1:
            logits *= self.scale
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def cap_slope(self, logits: Tensor) -> Tensor | None:
        """The derivative of c tanh(x / c), which is 1 - tanh(x / c)^2, at logits that are capped already."""
        return None if self.softcap is None else 1 - (logits / self.softcap) ** 2


@dataclass(frozen=True, slots=True)
class ScalarHead:
    """One number, weight @ h + bias: of a response ("ends"), or of the row that predicts each token ("tokens").

    weight: (1, width); bias: (1,) or None; of_module: whether they are the module's. The product is in fp32 or wider
    whatever the model's type, because a score is compared with others and bfloat16 has three digits.
    """

    weight: Tensor
    bias: Tensor | None = None
    reads: Reads = "ends"
    of_module: bool = True
    answers: ClassVar[str] = "scores"
    unit: ClassVar[str] = "of a random score"

    @classmethod
    def of(cls, module: PreTrainedModel) -> ScalarHead:
        """The score of a sequence classification model with one label (model/scalar.py)."""
        layer = module.get_submodule("score")  # perhaps a copy that is trained beside an adapter
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        return cls(weight, bias if isinstance(bias, Tensor) else None)

    def __call__(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(scored, width) -> (members,), fp32 (fp64 for fp64 models); where ends are read a response is a member."""
        return self.values(hidden)[batch.member]

    def of_pass(self, module: PreTrainedModel) -> ScalarHead:
        if not self.of_module:
            return self
        layer = ScalarHead.of(module)
        return replace(self, weight=layer.weight, bias=layer.bias)

    def values(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (...)."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        values = (hidden.to(wide) * self.weight.to(wide)).sum(-1)
        return values if self.bias is None else values + self.bias.to(wide)

    def random(self) -> ScalarHead:
        """A head of signs over the root of the width, always the same: unlike a fresh score it sees every fault of a
        hidden state, and its answers are as large as the numbers of one."""
        width = self.weight.shape[1]
        signs = torch.randint(0, 2, (1, width), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        weight = (signs / width**0.5).to(self.weight.device, self.weight.dtype)
        return replace(self, weight=weight, bias=None, of_module=False)
