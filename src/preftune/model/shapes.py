"""What of a model's shapes decides its memory, counted on the module that its config alone describes.

The module stands on torch's meta device: no weights are read, and none take memory. Held by tests/model/test_memory.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from preftune.model.fuse import takes_gated_mlp

ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k")
ATTENTION = "att"  # in the names of attention's parts: self_attn, attention, self_attention
GATED, UNGATED = 4, 5  # MLP widths that operations of torch keep: gate, what the activation gives, up, their product


@dataclass(frozen=True, slots=True)
class Shapes:
    """Counts of numbers.

    parameters: all weights, those that are shared once; linear: those in matrices of linear layers, without the head;
    sides: rows and columns of all these matrices, which is what rank 1 of an adapter has; linears: how many they are;
    matrix: the largest of them;
    embedding: weights of the input's and the output's matrix, once where both are one; largest: of the largest tensor;
    layer: of the largest layer. layers, width, vocab: as in the config; capped: logits are.

    Of a token, in all layers: queries, of all heads; stream, numbers of the residual stream that are saved for the
    backward pass; saved, all others that are; made_again, what these are fewer by, as a fused MLP makes it again.
    """

    parameters: int
    linear: int
    sides: int
    linears: int
    matrix: int
    embedding: int
    largest: int
    layer: int
    layers: int
    width: int
    vocab: int
    queries: int
    stream: int
    saved: int
    made_again: int
    capped: bool = False


def meta_module(config: PreTrainedConfig) -> PreTrainedModel:
    """The language model that a config describes, without numbers in it."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def shapes_of(module: PreTrainedModel) -> Shapes:
    """The shapes of a language model as its family made it, so before an adapter changes its parts."""
    embedding = module.get_input_embeddings().get_parameter("weight")
    output = module.get_output_embeddings()
    matrix = embedding if output is None else output.get_parameter("weight")
    head = 0 if matrix is embedding else matrix.numel()
    text = module.config.get_text_config()
    width = int(getattr(text, "hidden_size", embedding.shape[1]))
    active = next((n for name in ACTIVE if isinstance(n := getattr(text, name, None), int)), 1)
    layers = _layers(module)
    matrices = [(part, sides) for layer in layers for _, part, sides in _matrices(layer)]
    linear = [sides for _, sides in matrices]
    own = {id(p) for part, _ in matrices for name, p in part.named_parameters(recurse=False) if name == "weight"}
    per_layer = [_of_layer(layer, width, active) for layer in layers]
    return Shapes(
        parameters=_count(p for p in module.parameters() if id(p) not in own) + sum(out * into for out, into in linear),
        linear=sum(out * into for out, into in linear),
        sides=sum(out + into for out, into in linear),
        linears=len(linear),
        matrix=max((out * into for out, into in linear), default=0),
        embedding=embedding.numel() + head,
        largest=max(parameter.numel() for parameter in module.parameters()),
        layer=max(_count(layer.parameters()) for layer in layers),
        layers=len(layers),
        width=width,
        vocab=int(embedding.shape[0]),
        queries=sum(layer.queries for layer in per_layer),
        stream=sum(layer.stream for layer in per_layer),
        saved=sum(layer.saved for layer in per_layer),
        made_again=sum(layer.made_again for layer in per_layer),
        capped=getattr(text, "final_logit_softcapping", None) is not None,
    )


class _Layer(NamedTuple):
    """What `Shapes` says of all layers, of one."""

    queries: int
    stream: int
    saved: int
    made_again: int


def _of_layer(layer: nn.Module, width: int, active: int) -> _Layer:
    """Norms keep their input; attention its input, q, k, v and its result, and where q and k have norms of their own
    also what these take in; an MLP its input and what `GATED` says, or its two products alone where it is the fused one
    (model/fused.py); each of the `active` experts that a token goes to the same, and what it gives."""
    queries, keys = _attention(layer, width)
    norms = [w.numel() for part in layer.modules() if (w := _norm_weight(part)) is not None]
    saved = 2 * width + 2 * queries + 2 * keys + (queries + keys if any(size < width for size in norms) else 0)
    fused = [part for part in layer.modules() if takes_gated_mlp(part)]
    made_again = 0
    for part in fused:
        between = part.get_submodule("gate_proj").get_parameter("weight").shape[0]
        saved, made_again = saved + 2 * between, made_again + (GATED - 2) * between
    inside = {child for part in fused for child in part.modules()}
    others = [out * into for name, part, (out, into) in _matrices(layer)
              if ATTENTION not in name and part not in inside and min(out, into) > 1]  # fmt: skip
    if others:
        between = min(others) // width  # of the matrix that leads back; the one that leads in may hold gate and up
        saved += (GATED if sum(others) > 2 * min(others) else UNGATED) * between
    if experts := [p for p in layer.parameters() if p.dim() == 3]:
        between = min(p.numel() // len(p) for p in experts) // width
        saved += active * (2 * width + GATED * between)
    return _Layer(queries, width * sum(size == width for size in norms), saved, made_again)


def _matrices(layer: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[int, int]]]:
    """Name, part and (out, in) of every linear layer, whatever form its numbers have."""
    for name, part in layer.named_modules():
        if isinstance(part, nn.Linear):
            yield name, part, (part.out_features, part.in_features)
        elif isinstance(part, Conv1D):
            into, out = part.weight.shape
            yield name, part, (out, into)


def _attention(layer: nn.Module, width: int) -> tuple[int, int]:
    """Numbers of a token's queries, of all heads, and of its keys: what the matrix behind attention takes in, and half
    of what is left of what the other matrices give."""
    sides = [sides for name, _, sides in _matrices(layer) if ATTENTION in name]
    queries = next((into for out, into in reversed(sides) if out == width), 0)
    return queries, max(0, sum(out for out, _ in sides) - width - queries) // 2


def _norm_weight(part: nn.Module) -> torch.Tensor | None:
    weight = getattr(part, "weight", None)
    return weight if "Norm" in type(part).__name__ and isinstance(weight, nn.Parameter) and weight.dim() == 1 else None


def _layers(module: nn.Module) -> Sequence[nn.Module]:
    """The decoder's layers: of all lists of modules the one with most weights."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return [*max(lists, key=lambda part: _count(part.parameters()), default=[module])]


def _count(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
