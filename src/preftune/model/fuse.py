"""Swap parts of a model for those of `fused` that give the same numbers in fp32, on inputs small and large.

All other parts stay, nothing outside the model changes, and `as_made` gives it its own parts back for a while.
Held by tests/model/test_fused.py.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from types import CellType, FunctionType, MethodType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.model.fused import LINEAR, eps_of, mlp, norm, norm_from_zero, rotate, tied_embedding
from preftune.model.fused_adapter import adapted, adapted_mlp, is_plain, is_plain_mlp, randomize

Forward = Callable[[nn.Module, Tensor], Tensor]
SIZES = (1e-3, 0.1, 1.0, 30.0, 1000.0)  # of the random rows on which parts are compared: eps shows, and so do clamps
ROUNDINGS = 50  # steps of the type by which a number may differ there, next to the largest of its row
PACKAGE = __name__.partition(".")[0]
ROTARY = "apply_rotary_pos_emb"  # a family's function that rotates q and k: a name in its file, not a part of a model


def fuse(module: PreTrainedModel) -> None:
    """Swap the parts of a model that ours can stand for."""
    for part in module.modules():
        _fuse(part)
    _fuse_rotation(module)


def add_in_place(module: PreTrainedModel) -> None:
    """Let the embedding's gradient be added to the head's where both are one matrix (see fused.TiedEmbedding)."""
    first, last = module.get_input_embeddings(), module.get_output_embeddings()
    if type(first) is nn.Embedding and last is not None and last.weight is first.weight and first.max_norm is None:
        _put(first, tied_embedding)


def _fuse(part: nn.Module) -> None:
    """Give the part the first of our forwards that does what its own does, if there is one."""
    if "forward" in vars(part):  # ours already, or somebody else's
        return
    size, candidates = _candidates(part)
    if not candidates or not _takes_rows_alone(part):
        return
    like = next(part.parameters())
    wide = copy.deepcopy(part).to(torch.promote_types(like.dtype, torch.float32))  # a coarse type could not tell
    randomize(wide)
    x = _random(len(SIZES), size).to(next(wide.parameters()))
    with torch.no_grad():
        for forward in candidates:
            narrow = x.to(like)
            if _same(forward(wide, x), wide(x)) and forward(part, narrow).dtype == part(narrow).dtype:
                _put(part, forward)
                return


def _takes_rows_alone(part: nn.Module) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(part.forward).parameters.values()]
    return kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) == 1


def _candidates(part: nn.Module) -> tuple[int, tuple[Forward, ...]]:
    """The width of a part's input, and which of our forwards it may have."""
    weight = getattr(part, "weight", None)
    if type(part).__name__.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and weight.dim() == 1:
        return len(weight), (norm, norm_from_zero) if eps_of(part) is not None else ()
    if _is_gated(part):
        linear = [part.get_submodule(name) for name in LINEAR]
        x = _random(len(SIZES), 16)
        if _same(nn.functional.silu(x), part.get_submodule("act_fn")(x)):
            if all(type(layer) is nn.Linear and layer.bias is None for layer in linear):
                return linear[0].in_features, (mlp,)  # type: ignore[return-value]
            if is_plain_mlp(part):
                return linear[0].in_features, (adapted_mlp,)  # type: ignore[return-value]
    if is_plain(part):
        return part.in_features, (adapted,)  # type: ignore[return-value]
    return 0, ()


def takes_gated_mlp(part: nn.Module) -> bool:
    """Whether the part is an MLP that the fused one can stand for, as far as its shapes and its activation say."""
    return mlp in _candidates(part)[1]


def _is_gated(part: nn.Module) -> bool:
    return {name for name, _ in part.named_children()} == {*LINEAR, "act_fn"}


def _fuse_rotation(module: PreTrainedModel) -> None:
    """Let the attention of this model rotate q and k by ours, where its family's function does the same.

    The function is a global name of the family's file, which other models share. So each attention gets a copy of its
    own forward, with that one name bound to ours.
    """
    copies: dict[object, FunctionType | None] = {}
    for part in module.modules():
        forward = type(part).forward
        if "forward" in vars(part) or not _rotates(forward):
            continue
        if forward not in copies:
            copies[forward] = _rotating(forward)
        if (ours := copies[forward]) is not None:
            _put(part, ours)


def _rotates(forward: object) -> bool:
    """Whether a forward, or what decorators stand around, calls the family's rotation."""
    inner = inspect.unwrap(forward) if callable(forward) else None
    return isinstance(inner, FunctionType) and ROTARY in inner.__code__.co_names


def _rotating(forward: object) -> FunctionType | None:
    """A copy of a forward, and of each decorator around it, that rotates by ours; None where that is not the same."""
    if not isinstance(forward, FunctionType):
        return None
    names, cells = forward.__globals__, forward.__closure__
    wrapped, inner = getattr(forward, "__wrapped__", None), None
    if wrapped is None:
        if not _rotates_as_ours(names.get(ROTARY)):
            return None
        names = {**names, ROTARY: rotate}
    else:
        inner = _rotating(wrapped)
        if inner is None or not any(cell.cell_contents is wrapped for cell in cells or ()):
            return None
        cells = tuple(CellType(inner) if cell.cell_contents is wrapped else cell for cell in cells or ())
    ours = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, cells)
    ours.__kwdefaults__, ours.__module__ = forward.__kwdefaults__, __name__
    if wrapped is not None:
        ours.__wrapped__ = inner  # type: ignore[attr-defined]
    return ours


def fused_parts(module: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Kind of part -> how many of a model are ours, and how many there are that could be."""
    counts: dict[str, tuple[int, int]] = {}
    for part in module.modules():
        kind = "rotation" if _rotates(type(part).forward) else "gated MLP" if _is_gated(part) else "norm"
        kind = "adapted layer" if "lora_A" in dict(part.named_children()) else kind
        if kind != "norm" or type(part).__name__.endswith("RMSNorm"):
            taken, met = counts.get(kind, (0, 0))
            counts[kind] = (taken + (our_forward(part) is not None), met + 1)
    return counts


def _rotates_as_ours(original: Callable[..., tuple[Tensor, Tensor]] | None) -> bool:
    if original is None or list(inspect.signature(original).parameters) != list(inspect.signature(rotate).parameters):
        return False
    q, k = _random(1, 2, len(SIZES), 16), _random(1, 1, len(SIZES), 16)
    for width in (16, 8):
        angles = _random(1, len(SIZES), width // 2).repeat(1, 1, 2)
        try:
            expected = original(q, k, angles.cos(), angles.sin())
        except RuntimeError:  # the family never rotates a part of a head, or takes angles of another form
            if width == 16:
                return False
            continue
        if not all(_same(*both) for both in zip(rotate(q, k, angles.cos(), angles.sin()), expected, strict=True)):
            return False
    return True


def _put(part: nn.Module, forward: Callable[..., object]) -> None:
    part.forward = MethodType(forward, part)  # a bound method is copied with the module that it belongs to


def our_forward(part: nn.Module) -> MethodType | None:
    """What stands here for the part's own forward, if this library put it there."""
    forward = vars(part).get("forward")
    ours = isinstance(forward, MethodType) and forward.__func__.__module__.partition(".")[0] == PACKAGE
    return forward if ours else None


def _random(*shape: int) -> Tensor:
    """Rows, last but one axis, of each of SIZES."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.tensor(SIZES)[:, None]


def _same(ours: Tensor, original: Tensor) -> bool:
    """Whether two results in fp32 or wider agree to a few roundings, row by row."""
    if ours.shape != original.shape or ours.dtype != original.dtype:
        return False
    off, size = (ours - original).abs().amax(-1), original.abs().amax(-1)
    return bool((off <= ROUNDINGS * 1e-7 * size).all())
