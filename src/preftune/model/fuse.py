"""Swap parts of a model for those of `parts` that give the same numbers in fp32, on inputs small and large; all others
stay. Nothing outside the model changes, and `as_made` has its own parts back for a while."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.model import fused as parts
from preftune.model.fused import LINEAR, eps_of, lookup, mlp, norm, norm_from_zero, rotate

SIZES = (1e-3, 0.1, 1.0, 30.0, 1000.0)  # of the random rows that a part is held against: eps shows, and so do clamps
ROUNDINGS = 50  # by how many steps of its type a number may differ there, next to the largest of its row
TURN = "apply_rotary_pos_emb"  # a family's function that turns queries and keys: a name in its file, no part of a model


def fuse(module: PreTrainedModel) -> list[str]:
    """Swap the parts of a model that ours can stand for; returns the names of what took their place."""
    found = {forward.__name__ for part in module.modules() if (forward := _fuse(part))}
    return sorted(found | {rotate.__name__} if _fuse_rotation(module) else found)


@contextmanager
def original_modules(module: nn.Module) -> Iterator[None]:
    """The model with the parts that its family gave it."""
    ours = {part: own for part in module.modules() if (own := _ours(part)) is not None}
    for part in ours:
        del part.forward
    try:
        yield
    finally:
        for part, own in ours.items():
            part.forward = own


def add_in_place(module: PreTrainedModel) -> None:
    """Let the embedding's gradient be added to the head's where both are one matrix (see parts.Lookup)."""
    first, last = module.get_input_embeddings(), module.get_output_embeddings()
    if type(first) is nn.Embedding and last is not None and last.weight is first.weight and first.max_norm is None:
        _put(first, lookup)


def _fuse(part: nn.Module) -> Callable[[nn.Module, Tensor], Tensor] | None:
    """What now is the part's forward, or None where it keeps its own."""
    size, ways = 0, ()
    weight = getattr(part, "weight", None)
    if "forward" in vars(part):  # ours already, or somebody else's
        return None
    if type(part).__name__.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and weight.dim() == 1:
        size, ways = len(weight), (norm, norm_from_zero) if eps_of(part) is not None else ()
    elif {name for name, _ in part.named_children()} == {*LINEAR, "act_fn"}:
        linear = [one for name in LINEAR if type(one := part.get_submodule(name)) is nn.Linear and one.bias is None]
        x = _random(len(SIZES), 16)
        if len(linear) == len(LINEAR) and _same(nn.functional.silu(x), part.get_submodule("act_fn")(x)):
            size, ways = linear[0].in_features, (mlp,)
    if not ways or len(inspect.signature(part.forward).parameters) != 1:
        return None
    like = next(part.parameters())
    wide = copy.deepcopy(part).to(torch.promote_types(like.dtype, torch.float32))  # a coarse type could not tell
    x = _random(len(SIZES), size).to(next(wide.parameters()))
    with torch.no_grad():
        forward = next((way for way in ways if _same(way(wide, x), wide(x)) and _alike(way, part, x.to(like))), None)
    if forward is not None:
        _put(part, forward)
    return forward


def _alike(way: Callable[[nn.Module, Tensor], Tensor], part: nn.Module, x: Tensor) -> bool:
    """Whether both give the same type."""
    return way(part, x).dtype == part(x).dtype


def _fuse_rotation(module: PreTrainedModel) -> bool:
    """Let the attention of this model turn its queries and keys by ours, where its family's function does the same."""
    made: dict[Callable[..., object], FunctionType] = {}
    for part in module.modules():
        forward = type(part).forward
        if "forward" in vars(part) or not isinstance(forward, FunctionType) or TURN not in forward.__code__.co_names:
            continue
        if forward not in made:
            names = forward.__globals__
            if not _turns_alike(names.get(TURN)):
                return False
            made[forward] = FunctionType(
                forward.__code__, {**names, TURN: rotate}, forward.__name__, forward.__defaults__, forward.__closure__
            )
            made[forward].__kwdefaults__, made[forward].__module__ = forward.__kwdefaults__, __name__
        _put(part, made[forward])
    return bool(made)


def _turns_alike(theirs: Callable[..., tuple[Tensor, Tensor]] | None) -> bool:
    if theirs is None or list(inspect.signature(theirs).parameters) != list(inspect.signature(rotate).parameters):
        return False
    q, k = _random(1, 2, len(SIZES), 16), _random(1, 1, len(SIZES), 16)
    for width in (16, 8):
        angles = _random(1, len(SIZES), width // 2).repeat(1, 1, 2)
        try:
            expected = theirs(q, k, angles.cos(), angles.sin())
        except RuntimeError:  # the family never turns a part of a head, or takes angles of another form
            if width == 16:
                return False
            continue
        if not all(_same(*both) for both in zip(rotate(q, k, angles.cos(), angles.sin()), expected, strict=True)):
            return False
    return True


def _put(part: nn.Module, forward: Callable[..., object]) -> None:
    part.forward = MethodType(forward, part)  # a bound method is copied with the module that it belongs to


def _ours(part: nn.Module) -> MethodType | None:
    """What stands here for the part's own forward."""
    forward = vars(part).get("forward")
    mine = isinstance(forward, MethodType) and forward.__func__.__module__ in (__name__, parts.__name__)
    return forward if mine else None


def _random(*shape: int) -> Tensor:
    """Rows, last but one axis, of each of SIZES."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.tensor(SIZES)[:, None]


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results in fp32 or wider agree to a few roundings, row by row."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    off, size = (ours - theirs).abs().amax(-1), theirs.abs().amax(-1)
    return bool((off <= ROUNDINGS * 1e-7 * size).all())
