"""A causal language model as this library uses it: token ids of a pack in, log-probabilities of responses out."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from preftune.errors import UserError
from preftune.model import attention
from preftune.model.fuse import add_in_place, fuse
from preftune.model.logp import Head, Statistics, head_logp, head_logp_and_statistics
from preftune.model.prune import prune_last_layer
from preftune.pack.batch import Batch

NOISE = 1e-3  # nats at the worst token, in fp32
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # what configs call the cap of logits
PLAIN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Policy:
    """module: the model; layout: how a pack goes through it; compute: type of its matrix products; in_place: the
    backward pass adds the gradient of the head's matrix, often the largest of all, to its `.grad` and makes no second
    one: for loops that call `backward`, not for `torch.autograd.grad`; noise: nats a token by which right ways to the
    log-probabilities may differ, by rounding alone (`check.checked` measures it)."""

    module: PreTrainedModel
    layout: Literal["trie", "padded"]
    compute: torch.dtype = torch.float32
    in_place: bool = False
    noise: float = NOISE

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def vocab(self) -> int:
        """Tokens that the model knows."""
        return int(self.module.get_input_embeddings().get_parameter("weight").shape[0])

    def token_logp(self, batch: Batch) -> Tensor:
        """Log-probability of every token of every response, (members,), in nats, fp32 (fp64 for fp64 models)."""
        with self.autocast():
            hidden = self.hidden(batch)[batch.source]
            return head_logp(hidden, self.head, batch.target)[batch.member]

    def token_logp_and_statistics(self, batch: Batch) -> tuple[Tensor, Statistics]:
        """The same, and statistics of each token's distribution, (members,) each, which carry no gradient."""
        with self.autocast():
            hidden = self.hidden(batch)[batch.source]
            logp, found = head_logp_and_statistics(hidden, self.head, batch.target)
        return logp[batch.member], Statistics(*(part[batch.member] for part in found))

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden state of every row of the trie that predicts a scored token, (tokens, width)."""
        if self.layout == "padded":
            return self._padded(batch)
        layout = batch.layout
        layout.calls.clear()
        inputs = {"input_ids": batch.ids[None], "position_ids": layout.position[None]}
        return self.module.base_model(**inputs, use_cache=False, trie=layout).last_hidden_state[0]

    def _padded(self, batch: Batch) -> Tensor:
        """The same from one padded row a distinct sequence; no token sees the padding behind it: no mask is needed."""
        paths = {int(path[-1]): torch.from_numpy(path).to(self.device) for path in batch.layout.trie.paths}
        rows = torch.nn.utils.rnn.pad_sequence(list(paths.values()), batch_first=True)
        states = self.module.base_model(input_ids=batch.ids[rows], use_cache=False).last_hidden_state
        place = torch.zeros_like(batch.ids)
        for index, path in enumerate(paths.values()):
            place[path] = index
        return states[place, batch.layout.position]

    @property
    def head(self) -> Head:
        """The output layer with what its family multiplies and caps logits by."""
        layer = self.module.get_output_embeddings()
        assert layer is not None  # a causal language model has one
        config = self.module.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        cap = next((value for name in CAPS if (value := getattr(config, name, None))), None)
        return Head(layer.weight, getattr(layer, "bias", None), scale, cap, self.in_place)

    @property
    def rounding(self) -> float:
        """Relative distance of neighboring numbers of the coarsest type that is used on the way."""
        return max(torch.finfo(dtype).eps for dtype in (self.compute, self.module.dtype))

    @property
    def half(self) -> bool:
        """Whether its numbers are rounded to half precision on the way."""
        return self.rounding > torch.finfo(torch.float32).eps

    @property
    def multiple(self) -> int:
        """To what the rows of a pack are filled up: in half precision a CPU makes a program for every shape that it
        meets, which takes longer than the fill (4 ms a product; bench/speed.py --dtype bfloat16)."""
        return 128 if self.device.type == "cpu" and self.half else 1

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.compute == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.compute)


def wrap(module: PreTrainedModel, wanted: str, compute: torch.dtype = torch.float32) -> tuple[Policy, str]:
    """The policy with the layout that is right for the model, and one sentence saying which and why.

    The gate: layers that mix positions by other means than softmax attention over the past would see the flat order
    of a trie as time. What passes the gate is still held against separate forward passes before training
    (`check.checked`). Raises UserError where `wanted` is "trie" and the model cannot.
    """
    fuse(module)
    why = "as asked" if wanted == "padded" else _not_plain(module)
    if not why:
        module.set_attn_implementation(attention.register())
        prune_last_layer(module)
        return Policy(module, "trie", compute), "one row a distinct token"
    module.set_attn_implementation("sdpa" if module._supports_sdpa else "eager")
    if wanted == "trie":
        raise UserError(
            f"{module.config.model_type} cannot share prefixes: {why}.",
            location="model.layout",
            hint='Use layout="auto".',
        )
    return Policy(module, "padded", compute), f"one padded row a response: {why}"


def trainable(policy: Policy, *, checkpointing: bool) -> Policy:
    """The policy as a training loop wants it: gradients added in place, and activations computed again where asked."""
    add_in_place(policy.module)
    if checkpointing:
        recompute_activations(policy.module)
    return replace(policy, in_place=True)


def recompute_activations(module: PreTrainedModel) -> None:
    """Keep each layer's input for the backward pass, and what attention in blocks gives, and compute the rest again."""
    newer = getattr(module, "activation_checkpointing_enable", None)  # the name since transformers 5.2x
    (newer or module.gradient_checkpointing_enable)({"use_reentrant": False, "context_fn": attention.keep_outputs})
    for layer in module.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True  # it recomputes in training mode only; what it is made of may draw at random there


def _not_plain(module: PreTrainedModel) -> str:
    config = module.config.get_text_config()
    other = sorted(set(getattr(config, "layer_types", None) or ()) - PLAIN_LAYERS)
    if other:
        return f"it has layers of type {', '.join(other)}"
    if not getattr(module, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    return ""
