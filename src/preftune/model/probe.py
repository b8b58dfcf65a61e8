"""What a family does beside its layers, asked of the model itself: configs spell it in too many ways.

Two short forward passes, in which the last hidden states and the output layer's answer are replaced by known numbers,
show what hidden states and logits are multiplied by and where logits are capped. Positional parts are asked at which
lengths they change their answer about an early position. Held by tests/model/test_probe.py.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from preftune.errors import UserError, third_party_message
from preftune.model.budget import positions
from preftune.tokens.groups import TokenGroup

HUGE, SMALL = 1e30, 2.0**-30  # logits that any cap stops, and logits that no cap bends, as a multiple of it
LONGEST = 2**20  # length up to which positions are asked
CLASSES = 8  # classes of length that a model may have
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)  # of a model that cannot do a pass
ASKED = 8  # tokens on which a model's loss is looked at
EXACT, ROUGH = 1e-5, 0.01  # shares of a number that no rounding makes, of a loss in fp32 and of any logit


class Behavior(NamedTuple):
    """scale, softcap: logits are softcap(scale * (weight @ hidden + bias)); limits: lengths beyond which positions of a
    whole sequence are encoded otherwise, ascending."""

    scale: float = 1.0
    softcap: float | None = None
    limits: tuple[int, ...] = ()


def decoder(module: PreTrainedModel) -> nn.Module:
    """The part of a causal language model that gives the last hidden states."""
    if module.base_model is not module:
        return module.base_model
    return next(part for part in module.modules() if isinstance(part, PreTrainedModel) and part is not module)


def probe(module: PreTrainedModel) -> Behavior:
    """Ask a causal language model, or one with a score in place of logits; its attention must be one of transformers'.

    What a family does otherwise is not found here, and shows in the check against its own logits. Raises UserError
    where it encodes positions in another way at every length.
    """
    calls: list[tuple[nn.Module, dict[str, object]]] = []
    with ExitStack() as stack:
        for part in module.modules():
            if _encodes_positions(part):
                hook = part.register_forward_pre_hook(
                    lambda part, args, kwargs: calls.append((part, _named(part, args, kwargs))), with_kwargs=True
                )
                stack.callback(hook.remove)
        _refuse_if_not_causal(module)
    limits = tuple(sorted({n for part, inputs in calls for n in _limits(part, inputs, positions(module.config))}))
    if module.get_output_embeddings() is None:
        return Behavior(limits=limits)
    try:
        (unit, large), times = _logits_of(module, 1.0, HUGE)
    except FAILURES:  # it does more with hidden states than this can follow: the check will tell what that is worth
        (unit, large), times = (1.0, HUGE), 1.0
    if not 0 < abs(large) < HUGE**0.5:
        return Behavior(unit * times or 1.0, None, limits)
    (bent, _), _ = _logits_of(module, large * SMALL, HUGE)
    return Behavior(times * bent / (large * SMALL) or 1.0, large, limits)


def _refuse_if_not_causal(module: PreTrainedModel) -> None:
    """Raise UserError where the model cannot do a short row, or predicts a token from those that follow it."""
    ids = torch.ones(2, 2, dtype=torch.long, device=module.device)
    ids[1, 1] = 2
    try:
        with torch.no_grad():
            first, other = _by_token(module, ids)[:, 0].float()
    except FAILURES as error:
        text = f"{module.config.model_type} fails on a row of two tokens: {third_party_message(error)}"
        raise UserError(text, location="model.path") from error
    if float((first - other).abs().max()) > ROUGH * float(first.abs().max()):
        text = f"{module.config.model_type} predicts a token from those that follow it, by its config.json."
        raise UserError(text, location="model.path", hint="Only causal language models can be tuned.")


def _by_token(module: PreTrainedModel, ids: Tensor) -> Tensor:
    """(sequences, tokens, ...): logits, or the last hidden states where there are none."""
    if module.get_output_embeddings() is None:
        return decoder(module)(input_ids=ids, use_cache=False).last_hidden_state
    return module(input_ids=ids, use_cache=False).logits


def _logits_of(module: PreTrainedModel, *answers: float) -> tuple[list[float], float]:
    """The logits that the model makes of these answers of its output layer, and what it multiplies hidden states by
    before that layer."""
    layer, received = module.get_output_embeddings(), []
    assert isinstance(layer, nn.Module)
    words, width = layer.get_parameter("weight").shape

    def known_hidden(_part: nn.Module, _inputs: object, output: object) -> object:
        hidden = getattr(output, "last_hidden_state", None)
        if isinstance(hidden, Tensor) and hidden.shape[-1] == width:
            output["last_hidden_state"] = torch.ones_like(hidden, dtype=torch.float64)  # type: ignore[index]
        return output

    def known_answers(hidden: Tensor) -> Tensor:
        received.append(hidden)
        column = torch.tensor(answers, dtype=torch.float64, device=hidden.device)[:, None]
        return column.expand(hidden.shape[-2], words).expand(*hidden.shape[:-1], words).clone()

    own_forward = vars(layer).get("forward")
    hooks = [
        part.register_forward_hook(known_hidden)
        for part in module.modules()
        if isinstance(part, PreTrainedModel) and part is not module
    ]
    layer.forward = known_answers
    try:
        with torch.no_grad():
            ids = torch.ones(1, len(answers), dtype=torch.long, device=module.device)
            logits = module(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
        del layer.forward
        if own_forward is not None:
            layer.forward = own_forward
    if not received:
        return [1.0, HUGE], 1.0
    return logits[0].double().median(-1).values.tolist(), float(received[0].double().median())


def _encodes_positions(part: nn.Module) -> bool:
    """Whether a part makes angles or the like of positions alone: it is given them, and learns nothing."""
    return "position_ids" in inspect.signature(part.forward).parameters and not any(True for _ in part.parameters())


def _named(part: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> dict[str, object]:
    return dict(inspect.signature(part.forward).bind(*args, **kwargs).arguments)


def _limits(part: nn.Module, inputs: dict[str, object], longest: int) -> list[int]:
    """Lengths beyond which the part's answer about position 1 changes, found by bisection."""
    ids = inputs.get("position_ids")
    if not isinstance(ids, Tensor):
        return []

    def answer(length: int) -> list[Tensor]:
        asked = torch.tensor([1, length - 1], device=ids.device).expand(*ids.shape[:-1], 2)
        with torch.no_grad():
            out = copy.deepcopy(part)(**{**inputs, "position_ids": asked})
        return [x.select(-2, 0).clone() for x in tree_leaves(out) if isinstance(x, Tensor) and x.dim() > 1]

    def same(a: int, b: int) -> bool:
        return all(map(torch.equal, answer(a), answer(b)))

    limits, low, top = [], 2, min(longest, LONGEST)
    while not same(low, top):
        if len(limits) == CLASSES:
            text = f"{part._get_name()} encodes positions in another way at every length of a row."
            raise UserError(text, location="model.path", hint="Such models are not supported.")
        first, last = low, top  # alike low, and not
        while last - first > 1:
            middle = (first + last) // 2
            first, last = (middle, last) if same(low, middle) else (first, middle)
        limits.append(first)
        low = last
    return limits


def not_followed(module: PreTrainedModel) -> list[str]:
    """Sentences about what this model does in its own training and not here: it adds to the loss, or acts otherwise in
    training mode. It is asked on some tokens, with attention of transformers, and may have no answer."""
    sentences, words = [], module.get_input_embeddings().get_parameter("weight").shape[0]
    ids = torch.arange(ASKED, device=module.device)[None] % words
    with torch.no_grad(), torch.random.fork_rng(devices=[module.device] if module.device.type == "cuda" else []):
        try:
            before = _by_token(module, ids)
            if module.get_output_embeddings() is not None:
                loss = module(input_ids=ids, labels=ids, use_cache=False).loss
                ours = nn.functional.cross_entropy(before[0, :-1].float(), ids[0, 1:])
                if abs(more := float(loss - ours)) > EXACT * float(ours):
                    text = f"this family adds {more:.2g} to its loss, such as a router's, which is not followed here"
                    sentences.append(text)
        except FAILURES:  # it wants something else for its loss
            return []
        module.train()
        try:
            again = _by_token(module, ids)
        finally:
            module.eval()
    if float((again - before).abs().max()) > ROUGH * float(before.abs().max()):
        keys = {k: v for k, v in module.config.get_text_config().to_dict().items()
                if any(word in k for word in ("drop", "noise", "jitter")) and isinstance(v, float) and v}  # fmt: skip
        named = ", ".join(f"{key} = {value:g}" for key, value in sorted(keys.items()))
        sentences.append(f"this model acts otherwise in training mode ({named or 'dropout'}), which is off here")
    return sentences


def try_longest(module: PreTrainedModel, groups: Sequence[TokenGroup]) -> None:
    """Let a model without weights, on torch's meta device, do the longest row: configs spell its limit in many ways.

    Raises UserError where it does a short row and fails on that one.
    """
    longest = max(groups, key=lambda group: group.longest)
    for length in (2, longest.longest):
        try:
            module(input_ids=torch.ones(1, length, dtype=torch.long, device="meta"), use_cache=False)
        except FAILURES as error:
            if length == 2:  # it fails for the lack of weights
                return
            raise fails_on(module, longest, error) from error


def fails_on(module: PreTrainedModel, longest: TokenGroup, error: Exception) -> UserError:
    """The error of a model whose forward pass fails on rows of which this is the longest."""
    text = f"{module.config.model_type} fails on rows of up to {longest.longest} tokens: {third_party_message(error)}"
    hint = "Lower data.max_tokens if the model has fewer positions."
    return UserError(text, location=str(longest.place), hint=hint)
