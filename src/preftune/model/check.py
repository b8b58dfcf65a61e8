"""Before training: does the model, as it goes through a pack, say what it says by itself?

The measure is the model's own: how far its log-probabilities move when each part's output is off by one rounding. Two
right ways differ by about half of that, whatever the family and the type; the largest difference of a token says
little, since in a mixture of experts a rounding can send a token elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from preftune.errors import UserError
from preftune.model import attention
from preftune.model.policy import NOISE, Policy, wrap
from preftune.model.slim import as_made
from preftune.pack.batch import Batch

SEEDS = 2  # of the roundings that are tried
ALLOWED = 4  # times what they move; 24 families in bf16 with small and large gains, right as they are, reach 1.3


def checked(policy: Policy, batch: Batch) -> tuple[Policy, float]:
    """The policy if it agrees with plain forward passes on this pack, else the padded one if that does, with its noise;
    and by how many nats a token, on average, the one that was given disagrees.

    Raises UserError where neither does: then this family of models computes its logits in a way not known here.
    """
    plain = plain_logp(policy, batch)
    noise = max(NOISE, ALLOWED * moved_by_rounding(policy, batch, plain))
    off = disagreement(policy, batch, plain)
    if off <= noise:
        return replace(policy, noise=noise), off
    again = off
    if policy.layout == "trie":
        padded = wrap(policy.module, "padded", policy.compute)[0]
        again = disagreement(padded, batch, plain)
        if again <= noise:
            return replace(padded, noise=noise), off
    coarse = policy.rounding > torch.finfo(torch.float32).eps
    mend = 'Set model.weights = "float32" and model.compute = "float32" to see whether it is rounding.'
    family = policy.module.config.model_type
    raise UserError(
        f"log-probabilities of {family} are {again:.2g} nats a token off its own forward pass.",
        where="model.path",
        mend=mend if coarse else "This family is not supported.",
    )


def disagreement(policy: Policy, batch: Batch, plain: Tensor) -> float:
    """Mean difference a token, in nats, to what `plain_logp` gave; inf where the trie did not reach every layer."""
    with torch.no_grad():
        ours = policy.token_logp(batch)
    layers = policy.module.config.get_text_config().num_hidden_layers
    if policy.layout == "trie" and len(batch.layout.calls) != layers:
        return float("inf")
    return float((ours.double() - plain.double()).abs().mean())


def plain_logp(policy: Policy, batch: Batch) -> Tensor:
    """(members,): as `Policy.token_logp`, by the model's own logits, attention and parts, one response at a time."""
    module, name = policy.module, policy.module.config._attn_implementation
    if name == attention.NAME:
        module.set_attn_implementation("eager")
    try:
        found = []
        for group in batch.groups:
            for response in group.responses:
                ids = torch.cat([torch.as_tensor(part, dtype=torch.long) for part in (group.prompt, response)])
                ids = ids.to(policy.device)
                with torch.no_grad(), policy.autocast(), as_made(module):
                    logits = module(input_ids=ids[None], use_cache=False).logits[0, -len(response) - 1 : -1]
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                found.append(torch.log_softmax(logits, -1).gather(1, ids[-len(response) :, None])[:, 0])
        return torch.cat(found)
    finally:
        if name == attention.NAME:
            module.set_attn_implementation(name)


def moved_by_rounding(policy: Policy, batch: Batch, plain: Tensor) -> float:
    """Mean of how far a token's log-probability moves, in nats, when outputs of parts that have weights are rounded
    otherwise."""
    moved = []
    for seed in range(SEEDS):
        with _rounded_otherwise(policy, seed):
            moved.append((plain_logp(policy, batch).double() - plain.double()).abs().mean())
    return float(torch.stack(moved).mean())


@contextmanager
def _rounded_otherwise(policy: Policy, seed: int) -> Iterator[None]:
    generator = torch.Generator(policy.device).manual_seed(seed)

    def moved(_part: object, _inputs: object, output: object) -> object:
        if isinstance(output, tuple):
            return (moved(None, None, output[0]), *output[1:])
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        wide = torch.promote_types(output.dtype, torch.float32)
        by = torch.rand(output.shape, generator=generator, dtype=wide, device=output.device) - 0.5
        return (output * (1 + policy.rounding * by)).to(output.dtype)

    parts = [part for part in policy.module.modules() if any(True for _ in part.parameters(recurse=False))]
    hooks = [part.register_forward_hook(moved) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
