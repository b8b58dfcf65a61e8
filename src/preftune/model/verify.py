"""Before training: do the log-probabilities of a pack equal those that the model gives by itself?

The yardstick is the model's own: how far its log-probabilities move when each part's output is off by one rounding.
Right ways differ by about half of that, whatever the family and the type, on average and at the worst token; a mixture
of experts, where a rounding can send a token elsewhere, by much at its worst. Held by tests/model/test_verify.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from preftune.errors import UserError, third_party_message
from preftune.model.heads import ScalarHead
from preftune.model.layout import Layout
from preftune.model.plain import plain_logp
from preftune.model.policy import NOISE, Policy, choose_layout
from preftune.model.probe import FAILURES, fails_on
from preftune.pack.batch import Batch
from preftune.tokens.groups import TokenGroup

TOKENS, GROUPS = 256, 8  # scored tokens that are enough, and rows that are too many
LONGEST = 2048  # tokens of a row that is taken for its length
ROW_BEYOND = 8192  # tokens of one that is taken because it is beyond a limit of the model
ALLOWED = 2  # times what rounding moves; 84 families of transformers, all right, reach 1.8 over some 50 tokens
FEW = 16  # tokens for which the mean may be off by twice as much
SEEDS = 2, 8  # of the roundings that are tried: for many tokens, and for few
LEAST = 1e-4  # nats a token that are allowed on average; what fp32 gives is a hundredth of it
HALF = 0.25  # nats at the worst token that half precision may give, where rounding moves none so far
COARSE = 1.0  # nats a token, on average: what no rounding excuses


def sample(groups: Sequence[TokenGroup], policy: Policy) -> Batch:
    """One pack to try: the shortest rows, until they score enough, and the longest; and where the model treats longer
    rows otherwise, the shortest that a window of attention does not span, and that are beyond each limit of length."""
    chosen: list[TokenGroup] = []
    by_length = sorted(groups, key=lambda group: group.longest)
    for group in sorted(groups, key=lambda group: group.tokens)[:GROUPS]:
        if sum(len(r) for g in chosen for r in g.responses) < TOKENS:
            chosen.append(group)
    window = getattr(policy.module.config.get_text_config(), "sliding_window", None)
    longer = [next((g for g in by_length if g.longest > n), None) for n in (window, *policy.limits)
              if isinstance(n, int)]  # fmt: skip
    for group in (*longer, *[g for g in by_length if g.tokens <= LONGEST][-1:]):
        if group is not None and group not in chosen and group.tokens <= ROW_BEYOND:
            chosen.append(group)
    return policy.batch(chosen)


class Difference(NamedTuple):
    """How far two log-probabilities of the same tokens are apart, in nats: on average, and at the worst token.

    reason: why they could not be compared, where both are inf.
    """

    mean: float
    worst: float
    reason: str = ""

    @classmethod
    def between(cls, logp: Tensor, other: Tensor) -> Difference:
        distance = (logp.double() - other.double()).abs()
        return cls(float(distance.mean()), float(distance.max()))

    def within(self, bound: Difference) -> bool:
        return self.mean <= bound.mean and self.worst <= bound.worst  # false where a number is NaN


@dataclass(frozen=True, eq=False)
class Baseline:
    """What a model gives by itself with the products of `policy`: plain, (members,) in nats; and how far its own
    rounding may move that. The latter takes many passes: it is asked only where an answer depends on it."""

    policy: Policy
    batch: Batch
    plain: Tensor

    @cached_property
    def sensitivity(self) -> Difference:
        return rounding_sensitivity(self.policy, self.batch, self.plain, SEEDS[len(self.plain) < TOKENS])

    @property
    def allowed(self) -> float:
        """Times what rounding moves."""
        return ALLOWED * (1 + (FEW / len(self.plain)) ** 0.5)

    @property
    def noise(self) -> float:
        """Nats by which the worst token may be off."""
        return max(HALF, self.allowed * self.sensitivity.worst) if self.policy.half else NOISE

    def allows(self, difference: Difference) -> bool:
        """Whether rounding explains a difference. One that is allowed in every type needs no other passes."""
        if difference.within(Difference(LEAST, NOISE)):
            return True
        mean = min(COARSE, max(LEAST, self.allowed * self.sensitivity.mean))
        return difference.within(Difference(mean, self.noise))


def verify_layout(policy: Policy, batch: Batch, *, fall_back: bool = True) -> tuple[Policy, Difference]:
    """The policy if it agrees with plain forward passes on this pack, else the padded one if that does, with its noise;
    and by how much the given policy disagrees. It is to be the policy as the training loop uses it.

    A score is tried with a random head (`ScalarHead.random`): a fresh one says 0 of every hidden state, right or wrong.
    On a CPU, weights in fp32 are held to that type too, which shows faults that half precision hides; on CUDA other
    kernels would run. Raises UserError where neither layout agrees, or the padded one may not be taken.
    """
    head, types = policy.head, [policy.compute]
    if isinstance(head, ScalarHead):
        policy = replace(policy, head=head.random())
    if policy.compute != torch.float32 and policy.module.dtype == torch.float32 and policy.device.type == "cpu":
        types = [torch.float32, policy.compute]
    baselines = [_baseline(replace(policy, compute=compute), batch) for compute in types]
    agrees, difference = _agreement(policy, batch, baselines)
    last = difference
    if not agrees and policy.layout == "trie" and fall_back:
        policy = replace(policy, layout=choose_layout(policy.module, "padded")[0], noise=NOISE)
        agrees, last = _agreement(policy, batch, baselines)
    if agrees:
        return replace(policy, head=head, noise=baselines[-1].noise), difference
    if policy.layout == "trie":
        hint = 'Use layout="auto".'
    elif policy.half:
        hint = 'Set model.weights = "float32" and model.compute = "float32" to see whether it is rounding.'
    else:
        hint = "This family is not supported."
    family = policy.module.config.model_type
    raise UserError(
        f"{head.answers} of {family} are up to {last.worst:.2g} {head.unit} off its own forward pass.",
        location="model.path",
        hint=hint,
    )


def _agreement(policy: Policy, batch: Batch, baselines: Sequence[Baseline]) -> tuple[bool, Difference]:
    """Whether the policy agrees with all, and its difference from the last, or from the first that it contradicts."""
    difference = Difference(0, 0)
    for baseline in baselines:
        difference = disagreement(replace(policy, compute=baseline.policy.compute), batch, baseline.plain)
        if not baseline.allows(difference):
            return False, difference
    return True, difference


def disagreement(policy: Policy, batch: Batch, plain: Tensor) -> Difference:
    """The difference from `plain_logp`, the larger of two passes, of which one keeps what the backward pass needs; inf
    where the trie did not reach every layer or the model fails on it.

    Raises UserError where it fails on padded rows.
    """
    learns = any(parameter.requires_grad for parameter in policy.module.parameters())
    passes: list[Difference] = []
    try:
        for keeps_graph in (False, True) if learns else (False, False):
            with torch.set_grad_enabled(keeps_graph):
                passes.append(Difference.between(policy.token_logp(batch).detach(), plain))
    except torch.OutOfMemoryError:
        if not passes or policy.weights.in_step:
            raise  # else the training loop finds out how much fits
    except FAILURES as error:
        if policy.layout == "trie":
            return Difference(float("inf"), float("inf"), f"its forward pass fails ({third_party_message(error)[:-1]})")
        family = policy.module.config.model_type
        raise UserError(
            f"{family} fails on padded rows: {third_party_message(error)}", location="model.path"
        ) from error
    layers = policy.module.config.get_text_config().num_hidden_layers
    if policy.layout == "trie" and any(len(Layout.of(part).calls) != layers for part in batch.passes):
        return Difference(float("inf"), float("inf"), "not all of its layers take the attention that they are given")
    return max(passes, key=lambda difference: (not difference.mean <= COARSE, difference.worst))


def _baseline(policy: Policy, batch: Batch) -> Baseline:
    """Raises UserError where a plain pass fails, or two of them differ by more than rounding."""
    try:
        plain = plain_logp(policy, batch)
    except FAILURES as error:
        raise fails_on(policy.module, max(batch.groups, key=lambda group: group.longest), error) from error
    baseline = Baseline(policy, batch, plain)
    again = Difference.between(plain_logp(policy, batch), plain)
    if again.mean != 0 and again.mean > baseline.sensitivity.mean / ALLOWED:
        raise draws_at_random(again.mean)
    return baseline


def draws_at_random(nats: float) -> UserError:
    """The error of a model that gives other numbers each time."""
    return UserError(
        f"the model gave log-probabilities {nats:.2g} nats a token off from those of a moment before.",
        location="model.path",
        hint="Something in it draws at random, such as dropout.",
    )


def rounding_sensitivity(policy: Policy, batch: Batch, plain: Tensor, seeds: int) -> Difference:
    """How far log-probabilities move where outputs of parts that have weights are rounded otherwise."""
    moves = []
    for seed in range(seeds):
        with _rounded_otherwise(policy, seed):
            moves.append(Difference.between(plain_logp(policy, batch), plain))
    return Difference(sum(move.mean for move in moves) / seeds, max(move.worst for move in moves))


@contextmanager
def _rounded_otherwise(policy: Policy, seed: int) -> Iterator[None]:
    """Each output of a part times 1 + u, u uniform within half a rounding; the global generator is left alone."""
    generator, rounding = torch.Generator(policy.device).manual_seed(seed), policy.rounding

    def perturbed(_part: object, _inputs: object, output: object) -> object:
        if isinstance(output, tuple):
            return tuple(perturbed(None, None, item) for item in output)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        wide = torch.promote_types(output.dtype, torch.float32)
        factor = torch.rand(output.shape, generator=generator, dtype=wide, device=output.device)
        return factor.sub_(0.5).mul_(rounding).add_(1).mul_(output).to(output.dtype)

    parts = [part for part in policy.module.modules() if any(True for _ in part.parameters(recurse=False))]
    hooks = [part.register_forward_hook(perturbed) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
