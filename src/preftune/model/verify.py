"""Before training: does the model, as it goes through a pack, say what it says by itself?

The measure is the model's own: how far its log-probabilities move when each part's output is off by one rounding. Right
ways differ by about half of that, whatever the family and the type, on average and at the worst token; a mixture of
experts, where a rounding can send a token elsewhere, by much at its worst.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from preftune.errors import UserError, third_party_message
from preftune.model import attention
from preftune.model.fuse import original_modules
from preftune.model.policy import NOISE, Policy, wrap
from preftune.pack.batch import Batch, collate
from preftune.tokens.groups import TokenGroup

TOKENS, GROUPS = 256, 8  # scored tokens that are enough, and rows that are too many
LONGEST = 2048  # tokens of a row that is looked at for its length
ALLOWED = 2  # times what rounding moves; 84 families of transformers, right as they are, reach 1.8 over some 50 tokens
FEW = 16  # tokens of which the mean may be as much off again
SEEDS = 2, 8  # of the roundings that are tried: for many tokens, and for few
USUAL = 1e-4  # nats a token, on average: what fp32 gives is a hundredth of it
HALF = 0.25  # nats at the worst token that half precision may give, where rounding moves none so far
COARSE = 1.0  # nats a token, on average: what no rounding excuses


def sample(groups: Sequence[TokenGroup], policy: Policy) -> Batch:
    """Rows to look at: the shortest, until they score enough, and one that a window of attention does not span."""
    chosen: list[TokenGroup] = []
    by_length = sorted(groups, key=lambda group: group.tokens)
    for group in by_length[:GROUPS]:
        if sum(len(r) for g in chosen for r in g.responses) < TOKENS:
            chosen.append(group)
    window = getattr(policy.module.config.get_text_config(), "sliding_window", None)
    if isinstance(window, int):
        deep = (group for group in by_length if window < len(group.prompt) + max(map(len, group.responses)))
        first = next(deep, None)
        if first is not None and first not in chosen and first.tokens <= LONGEST:
            chosen.append(first)
    return collate(chosen, policy.device, policy.multiple)


class Difference(NamedTuple):
    """How far two log-probabilities of the same tokens are apart, in nats: on average, and the worst."""

    mean: float
    most: float

    def within(self, bound: Difference) -> bool:
        return self.mean <= bound.mean and self.most <= bound.most  # not so where a number is NaN


class Baseline(NamedTuple):
    """What a model says by itself with products in `compute`: (members,) in nats, and how far its own rounding may move
    that."""

    compute: torch.dtype
    plain: Tensor
    bound: Difference


def verify_layout(policy: Policy, batch: Batch, *, fall_back: bool = True) -> tuple[Policy, float]:
    """The policy if it agrees with plain forward passes on this pack, else the padded one if that does, with its noise;
    and by how many nats the one that was given disagrees at its worst token.

    On a CPU, weights in fp32 are held to that type too, which shows faults that half precision hides; on CUDA other
    kernels would run. Raises UserError where neither layout agrees, or the padded one may not be taken.
    """
    kinds = [policy.compute]
    if policy.compute != torch.float32 and policy.module.dtype == torch.float32 and policy.device.type == "cpu":
        kinds = [torch.float32, policy.compute]
    measures = [_baseline(replace(policy, compute=kind), batch) for kind in kinds]
    agrees, off = _agreement(policy, batch, measures)
    again = off
    if not agrees and policy.layout == "trie" and fall_back:
        policy = wrap(policy.module, "padded", policy.compute)[0]
        agrees, again = _agreement(policy, batch, measures)
    if agrees:
        return replace(policy, noise=measures[-1].bound.most), off.most
    if policy.layout == "trie":
        hint = 'Use layout="auto".'
    elif policy.half:
        hint = 'Set model.weights = "float32" and model.compute = "float32" to see whether it is rounding.'
    else:
        hint = "This family is not supported."
    family = policy.module.config.model_type
    raise UserError(
        f"log-probabilities of {family} are up to {again.most:.2g} nats a token off its own forward pass.",
        location="model.path",
        hint=hint,
    )


def _agreement(policy: Policy, batch: Batch, measures: Sequence[Baseline]) -> tuple[bool, Difference]:
    """Whether all agree, and by how much the last does, or the first that does not is off."""
    off = Difference(0, 0)
    for measure in measures:
        off = disagreement(replace(policy, compute=measure.compute), batch, measure.plain)
        if not off.within(measure.bound):
            return False, off
    return True, off


def disagreement(policy: Policy, batch: Batch, plain: Tensor) -> Difference:
    """The difference to what `plain_logp` gave; inf where the trie did not reach every layer or the model fails on it.

    Raises UserError where it fails on padded rows.
    """
    nowhere = Difference(float("inf"), float("inf"))
    try:
        with torch.no_grad():
            ours = policy.token_logp(batch)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        if policy.layout == "trie":
            return nowhere
        family = policy.module.config.model_type
        raise UserError(
            f"{family} fails on padded rows: {third_party_message(error)}", location="model.path"
        ) from error
    layers = policy.module.config.get_text_config().num_hidden_layers
    reached = policy.layout == "padded" or len(batch.layout.calls) == layers
    return _apart(ours, plain) if reached else nowhere


def _apart(one: Tensor, other: Tensor) -> Difference:
    apart = (one.double() - other.double()).abs()
    return Difference(float(apart.mean()), float(apart.max()))


def _baseline(policy: Policy, batch: Batch) -> Baseline:
    """Raises UserError where the model says something else each time."""
    plain = plain_logp(policy, batch)
    moved = rounding_sensitivity(policy, batch, plain, SEEDS[len(plain) < TOKENS])
    again = _apart(plain_logp(policy, batch), plain)
    if again.mean > moved.mean / ALLOWED:
        raise draws_at_random(again.mean)
    allowed = ALLOWED * (1 + (FEW / len(plain)) ** 0.5)
    mean = min(COARSE, max(USUAL, allowed * moved.mean))
    most = max(HALF, allowed * moved.most) if policy.half else NOISE
    return Baseline(policy.compute, plain, Difference(mean, most))


def draws_at_random(off: float) -> UserError:
    """Where a model says something else each time."""
    return UserError(
        f"the model gave log-probabilities {off:.2g} nats a token off from those of a moment before.",
        location="model.path",
        hint="Something in it draws at random, such as dropout.",
    )


def plain_logp(policy: Policy, batch: Batch) -> Tensor:
    """(members,): as `Policy.token_logp`, by the model's own logits, attention and parts, one response at a time."""
    module, name = policy.module, policy.module.config._attn_implementation
    if name == attention.NAME:
        module.set_attn_implementation("eager")
    try:
        with torch.no_grad(), policy.autocast(), original_modules(module):
            return torch.cat([_logp(policy, g.prompt, response) for g in batch.groups for response in g.responses])
    finally:
        if name == attention.NAME:
            module.set_attn_implementation(name)


def _logp(policy: Policy, prompt: np.ndarray, response: np.ndarray) -> Tensor:
    """(tokens of the response,)."""
    ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64)).to(policy.device)
    last = len(response) + 1
    fewer = "logits_to_keep" in inspect.signature(policy.module.forward).parameters
    logits = policy.module(input_ids=ids[None], use_cache=False, **({"logits_to_keep": last} if fewer else {})).logits
    logits = logits[0, -last:-1].to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits, -1).gather(1, ids[1 - last :, None])[:, 0]


def rounding_sensitivity(policy: Policy, batch: Batch, plain: Tensor, seeds: int = 2) -> Difference:
    """How far log-probabilities move where outputs of parts that have weights are rounded otherwise."""
    moved = []
    for seed in range(seeds):
        with _rounded_otherwise(policy, seed):
            moved.append(_apart(plain_logp(policy, batch), plain))
    return Difference(sum(one.mean for one in moved) / seeds, max(one.most for one in moved))


@contextmanager
def _rounded_otherwise(policy: Policy, seed: int) -> Iterator[None]:
    generator = torch.Generator(policy.device).manual_seed(seed)

    def moved(_part: object, _inputs: object, output: object) -> object:
        if isinstance(output, tuple):
            return tuple(moved(None, None, one) for one in output)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        wide = torch.promote_types(output.dtype, torch.float32)
        by = torch.rand(output.shape, generator=generator, dtype=wide, device=output.device)
        return by.sub_(0.5).mul_(policy.rounding).add_(1).mul_(output).to(output.dtype)

    parts = [part for part in policy.module.modules() if any(True for _ in part.parameters(recurse=False))]
    hooks = [part.register_forward_hook(moved) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
