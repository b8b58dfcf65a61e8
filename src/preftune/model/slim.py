"""Swap parts of a model for those of `parts` that give the same numbers on random input; all others stay."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.model.parts import LINEAR, eps_of, lookup, mlp, norm, norm_from_zero, rotate

ROWS = 5  # of the random input that a part is held against
ROUNDINGS = 50  # by how many steps of its type a number may differ there


def slim(module: PreTrainedModel) -> list[str]:
    """Swap the parts of a model that ours can stand for; returns the names of what took their place."""
    found = {forward.__name__ for part in module.modules() if (forward := _slim(part))}
    return sorted(found | {rotate.__name__} if _slim_rotation(module) else found)


def add_in_place(module: PreTrainedModel) -> None:
    """Let the embedding's gradient be added to the head's where both are one matrix (see parts.Lookup)."""
    first, last = module.get_input_embeddings(), module.get_output_embeddings()
    if type(first) is nn.Embedding and last is not None and last.weight is first.weight and first.max_norm is None:
        first.forward = MethodType(lookup, first)


def _slim(part: nn.Module) -> Callable[[nn.Module, Tensor], Tensor] | None:
    """What now is the part's forward, or None where it keeps its own."""
    size, ways = 0, ()
    weight = getattr(part, "weight", None)
    if type(part).__name__.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and weight.dim() == 1:
        size, ways = len(weight), (norm, norm_from_zero) if eps_of(part) is not None else ()
    elif {name for name, _ in part.named_children()} == {*LINEAR, "act_fn"}:
        linear = [one for name in LINEAR if type(one := part.get_submodule(name)) is nn.Linear and one.bias is None]
        x = _random(ROWS, ROWS)  # in fp32: a coarse type could not tell one activation from another
        if len(linear) == len(LINEAR) and _same(nn.functional.silu(x), part.get_submodule("act_fn")(x)):
            size, ways = linear[0].in_features, (mlp,)
    if not ways or len(inspect.signature(part.forward).parameters) != 1:
        return None
    like = next(part.parameters())
    x = _random(ROWS, size).to(like.device, like.dtype)
    with torch.no_grad():
        forward = next((way for way in ways if _same(way(part, x), part(x))), None)
    if forward is not None:
        part.forward = MethodType(forward, part)  # a bound method is copied with the module that it belongs to
    return forward


def _slim_rotation(module: PreTrainedModel) -> bool:
    """Swap the function by which the family's file turns queries and keys: it is a name there, not part of a model."""
    place = sys.modules[type(module).__module__]
    theirs = getattr(place, "apply_rotary_pos_emb", None)
    if theirs is None or list(inspect.signature(theirs).parameters) != list(inspect.signature(rotate).parameters):
        return False
    q, k = _random(1, 2, ROWS, 16), _random(1, 1, ROWS, 16)
    for width in (16, 8):
        angles = _random(1, ROWS, width // 2).repeat(1, 1, 2)
        try:
            expected = theirs(q, k, angles.cos(), angles.sin())
        except RuntimeError:  # the family never turns a part of a head, or takes angles of another form
            if width == 16:
                return False
            continue
        if not all(_same(*both) for both in zip(rotate(q, k, angles.cos(), angles.sin()), expected, strict=True)):
            return False
    setattr(place, "apply_rotary_pos_emb", rotate)  # noqa: B010  a name in a module that no checker knows
    return True


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results agree to a few roundings of their type."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    off, size = float((ours - theirs).abs().max()), max(1.0, float(theirs.abs().max()))
    return off <= ROUNDINGS * max(torch.finfo(ours.dtype).eps, 1e-7) * size
