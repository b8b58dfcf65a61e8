"""A model as this library uses it: token ids of a pack in, what its head reads off the last hidden states out.

Held by tests/model/test_layouts.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from preftune.errors import UserError
from preftune.model import attention
from preftune.model.as_made import as_made
from preftune.model.fuse import add_in_place, fuse
from preftune.model.heads import Head, LanguageHead, ScalarHead
from preftune.model.layout import Layout, prune_last_layer
from preftune.model.probe import decoder, probe
from preftune.model.reuse import copies_kept, keep_outputs
from preftune.model.weights import Weights, WholeModel
from preftune.pack.batch import Batch, collate
from preftune.tokens.groups import TokenGroup

NOISE = 1e-3  # nats at the worst token, in fp32
PLAIN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Policy:
    """weights: what is trained; head: what is read; layout: how a pack goes through the model; compute: type of its
    matrix products; noise: nats a token by which right ways to the log-probabilities may differ, by rounding alone
    (`verify_layout` measures it); limits: lengths beyond which the model treats a sequence otherwise (`probe`)."""

    weights: Weights
    head: Head
    layout: Literal["trie", "padded"]
    compute: torch.dtype = torch.float32
    noise: float = NOISE
    limits: tuple[int, ...] = ()

    @property
    def module(self) -> PreTrainedModel:
        return self.weights.module

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def vocab(self) -> int:
        """Tokens that the model knows."""
        return int(self.module.get_input_embeddings().num_embeddings)  # pyright: ignore[reportArgumentType]

    def batch(self, groups: Sequence[TokenGroup]) -> Batch:
        """The pack of these groups as the model and its head take it."""
        return collate(groups, self.device, self.multiple, self.head.reads, self.limits)

    def read(self, batch: Batch) -> Tensor:
        """What the head answers, (members,)."""
        return self.weights.through(self._read, batch)

    def _read(self, batch: Batch) -> Tensor:
        head = self.head.of_pass(self.module) if self.weights.in_step else self.head
        with self.autocast():
            return head(self.hidden(batch)[batch.source], batch)

    def token_logp(self, batch: Batch) -> Tensor:
        """What a language head answers: the log-probability of every token of every response, (members,), in nats."""
        return self.read(batch)

    def token_logp_and_squares(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`token_logp`, and log sum_v p_v^2 of each token's distribution, (members,) each; the latter has no
        gradient."""
        return self.weights.through(self._read_with_squares, batch)

    def _read_with_squares(self, batch: Batch) -> tuple[Tensor, Tensor]:
        head = self.head.of_pass(self.module) if self.weights.in_step else self.head
        assert isinstance(head, LanguageHead)
        with self.autocast():
            return head.with_squares(self.hidden(batch)[batch.source], batch)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden state of every row of the trie, (rows, width); those of rows that no head reads may be zero."""
        if batch.parts:
            return torch.cat([self.hidden(part) for part in batch.parts])
        self.weights.activate()
        if self.layout == "padded":
            return self._padded(batch)
        layout = Layout.of(batch)
        layout.calls.clear()
        inputs = {"input_ids": batch.ids[None], "position_ids": batch.position[None]}
        return decoder(self.module)(**inputs, use_cache=False, trie=layout).last_hidden_state[0]

    def _padded(self, batch: Batch) -> Tensor:
        """`hidden` from one padded row a distinct sequence. It needs no mask: no token sees the padding behind it."""
        paths = {int(path[-1]): torch.from_numpy(path).to(self.device) for path in batch.trie.paths}
        rows = torch.nn.utils.rnn.pad_sequence(list(paths.values()), batch_first=True)
        states = decoder(self.module)(input_ids=batch.ids[rows], use_cache=False).last_hidden_state
        sequence = torch.zeros_like(batch.ids)
        for index, path in enumerate(paths.values()):
            sequence[path] = index
        return states[sequence, batch.position]

    @property
    def logp_dtype(self) -> torch.dtype:
        """The type of its log-probabilities: fp32, or fp64 where the model is in that."""
        return torch.promote_types(self.module.dtype, torch.float32)

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
        """The rows of a pack are filled up to a multiple of it: in half precision a CPU compiles a program for every
        shape that it meets, which takes longer than the fill (4 ms a product; bench/speed.py --dtype bfloat16), and a
        GPU's products are made of tiles of 64 and more rows, in whose kernels rows must lie 16 bytes apart."""
        return {"cpu": 128, "cuda": 64}.get(self.device.type, 1) if self.half else 1

    @contextlib.contextmanager
    def cast_once(self) -> Iterator[None]:
        """Within it weights are cast to the type of products once, and not once a pack: of 7B, 42 GB of memory traffic.
        Passes must ask for gradients, and nothing may change the weights. Backward passes run without autocast."""
        if self.compute == torch.float32 or self.weights.in_step:  # such weights are whole in a pass alone
            yield
            return
        kind = self.device.type
        with copies_kept(), torch.autocast(kind, self.compute), torch.autocast(kind, enabled=False):
            yield  # torch keeps its copies until the outermost autocast ends

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.compute == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.compute)


def wrap(module: PreTrainedModel, wanted: str, compute: torch.dtype = torch.float32) -> tuple[Policy, str]:
    """A policy whose whole model is trained, with its language head, or the `score` of a model that has no logits, and
    the sentence of `choose_layout`."""
    with as_made(module):
        behavior = probe(module)
    layout, reason = choose_layout(module, wanted)
    scores = module.get_output_embeddings() is None
    head = ScalarHead.of(module) if scores else LanguageHead.of(module, behavior)
    return Policy(WholeModel(module), head, layout, compute, limits=behavior.limits), reason


def choose_layout(module: PreTrainedModel, wanted: str) -> tuple[Literal["trie", "padded"], str]:
    """Prepare a model for the layout that suits it; returns the layout, and a phrase that says why.

    Layers that mix positions by other means than softmax attention over the past would take the flat order of a trie
    for time. What passes this gate is still compared with separate forward passes before training (`verify_layout`).
    Raises UserError where `wanted` is "trie" and the model cannot.
    """
    fuse(module)
    reason = "as asked" if wanted == "padded" else not_plain(module)
    if not reason:
        module.set_attn_implementation(attention.register())
        prune_last_layer(module)
        return "trie", "one row a distinct token"
    module.set_attn_implementation("sdpa" if module._supports_sdpa else "eager")
    if wanted == "trie":
        raise UserError(
            f"{module.config.model_type} cannot share prefixes: {reason}.",
            location="model.layout",
            hint='Use layout="auto".',
        )
    return "padded", f"one padded row a response: {reason}"


def trainable(policy: Policy, *, checkpointing: bool) -> Policy:
    """The policy as a training loop wants it: gradients added in place, and activations recomputed where asked."""
    if checkpointing:
        recompute_activations(policy.module)
    if not isinstance(policy.head, LanguageHead):
        return policy
    add_in_place(policy.module)
    return replace(policy, head=replace(policy.head, in_place=True))


def recompute_activations(module: PreTrainedModel) -> None:
    """Keep each layer's input for the backward pass, and what attention in blocks gives, and recompute the rest.

    The layers stay in evaluation mode, where transformers would recompute in training mode only, with dropout and
    whatever else draws at random there. Raises UserError where the model has no layers that can be recomputed.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"activations of {module.config.model_type} cannot be recomputed.",
                        location="model.checkpointing", hint="Remove it; lower batch.tokens instead.")  # fmt: skip
    for layer in layers:
        layer.forward = MethodType(_recomputed, layer)


def _recomputed(self: nn.Module, *args: object, **kwargs: object) -> object:
    """Forward of a layer that is computed again in the backward pass."""
    forward = partial(type(self).forward, self, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=keep_outputs)


def not_plain(module: PreTrainedModel) -> str:
    """Why its layers are not all softmax attention over the past that can be replaced; empty where they are."""
    config = module.config.get_text_config()
    other = sorted(set(getattr(config, "layer_types", None) or ()) - PLAIN_LAYERS)
    if other:
        return f"it has layers of type {', '.join(other)}"
    if not getattr(module, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    return ""
