"""Fill the column `reference`: log-probabilities under a model that never learns, each distinct response scored once.

A store keeps what was scored, on disk or in memory. Held by tests/reference/test_store.py and tests/laws/test_ranks.py.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch

from preftune import events, files, signals
from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.errors import CORRUPT, UserError
from preftune.model.columns import read_packs
from preftune.model.policy import Policy
from preftune.model.quantized import quantization
from preftune.pack.oom import OomRetry
from preftune.pack.trie import common_prefix, lexicographic_order
from preftune.reference.store import PRIVATE, Key, Store, key_of
from preftune.tokens.groups import TokenGroup

CANARIES = 8  # stored entries that are computed again, to see whether the store can be trusted
FLUSH_SECONDS = 20.0
HINT = "Lower data.max_tokens."
EXCHANGED = 4096  # entries that ranks send each other in one call


def numerics(policy: Policy) -> str:
    """Numeric settings that change rounding; stored entries are reused only under the same ones."""
    compute = str(policy.compute).removeprefix("torch.")
    version = ".".join(torch.__version__.split(".")[:2])
    classes = "-".join(["", *map(str, policy.limits)])  # rows on both sides of a limit once shared their passes
    base = quantization(policy.module)
    return "-".join(filter(None, (compute, policy.device.type, policy.layout, f"torch{version}", base, f"1{classes}")))


@dataclass(frozen=True, slots=True)
class ReferencePass:
    """What a reference pass did. scored, reused: turns of responses; tokens_naive: what one forward pass a turn of its
    packs would have computed; damaged: entries of the store that could not be read."""

    scored: int
    reused: int
    tokens_computed: int
    tokens_naive: int
    damaged: int
    seconds: float


def filled(groups: Sequence[TokenGroup], store: Store) -> list[TokenGroup]:
    """The groups with the column `reference`, a view of what the store holds. Each response must be in it."""
    return [
        group.with_column(
            "reference", tuple(np.concatenate([store[key_of(*turn)] for turn in turns]) for turns in group.turns)
        )
        for group in groups
    ]


def score_missing(
    policy: Policy, store: Store, groups: Sequence[TokenGroup], *, tokens: int, dist: Distributed = SINGLE_PROCESS
) -> ReferencePass:
    """Put every response of the groups into the store, each distinct turn once; resumes where it was stopped.

    tokens: budget of a pack. A few entries that were there already are computed again; UserError where they differ,
    because then the store is not trusted. Each rank computes and writes its packs; in the end all hold every entry,
    without a disk in common. A stop signal takes effect after what is computed is kept.
    """
    began = time.monotonic()
    wanted: dict[Key, TokenGroup] = {}
    for group in groups:
        for prompt, ids in itertools.chain(*group.turns):
            if (key := key_of(prompt, ids)) not in wanted:
                wanted[key] = TokenGroup(prompt=prompt, responses=(ids,), kind="demo", place=group.place, id=group.id)
    keys = sorted(wanted)
    present = [store.has(key, len(wanted[key].responses[0])) for key in keys]
    canaries = min(CANARIES, sum(present))
    _idle(policy, wanted, dist.max(canaries) - canaries)
    _check_canaries(policy, store, wanted, list(itertools.compress(keys, present)), canaries)
    lacked, senders = _who_has(keys, present, dist)
    missing = {key for key in keys if key not in senders}
    packs = _packs(wanted, tokens)  # the same packs however much is stored, so that last digits repeat
    packs = [pack for pack in packs if not missing.isdisjoint(pack)]
    senders |= {key: number % dist.world_size for number, pack in enumerate(packs) for key in pack if key in missing}
    idle, computed = -(-len(packs) // dist.world_size) - len(packs[dist.rank :: dist.world_size]), 0
    if missing and store.folder is not None:
        files.usable(store.folder, PRIVATE)
    try:
        for tokens_of_pack in _computed(policy, store, packs[dist.rank :: dist.world_size], wanted, missing):
            computed += tokens_of_pack
            signals.check()
        _idle(policy, wanted, idle)
    finally:
        store.flush()
    _exchange(store, {key: senders[key] for key in lacked}, wanted, dist)
    naive, computed = sum(wanted[key].tokens for pack in packs for key in pack), int(dist.sum(torch.tensor(computed)))
    seconds = time.monotonic() - began
    return ReferencePass(len(missing), len(wanted) - len(missing), computed, naive, store.damaged, seconds)


def _who_has(keys: Sequence[Key], present: Sequence[bool], dist: Distributed) -> tuple[list[Key], dict[Key, int]]:
    """The entries that some rank lacks, and the first rank that has each entry that some rank has.

    Each rank that has an entry gives world_size - rank, so that the largest number names the first of them.
    """
    number = dist.world_size - dist.rank
    table = torch.tensor([[not there for there in present], [there * number for there in present]])
    lacked, highest = dist.all_reduce_max(table).tolist()
    senders = {key: dist.world_size - number for key, number in zip(keys, highest, strict=True) if number}
    return list(itertools.compress(keys, lacked)), senders


def _computed(
    policy: Policy, store: Store, packs: Sequence[Sequence[Key]], wanted: Mapping[Key, TokenGroup], missing: Set[Key]
) -> Iterator[int]:
    """The tokens computed for each pack, after its missing entries are in the store."""
    oom = _retry(policy)
    flushed, scored, total = time.monotonic(), 0, sum(key in missing for pack in packs for key in pack)
    for pack in packs:
        scored_pack, tokens = read_packs(policy, [wanted[key] for key in pack], [tuple(range(len(pack)))], oom)
        for key, token_logp in zip(pack, scored_pack.values(), strict=True):
            if key not in missing:
                continue
            if not np.isfinite(token_logp).all():
                message = "the reference gives a response no finite probability."
                raise UserError(message, location=str(wanted[key].place), code=CORRUPT)
            store.put(key, token_logp)
            scored += 1
        if time.monotonic() - flushed > FLUSH_SECONDS:
            store.flush()
            flushed = time.monotonic()
        events.emit(events.Progress("scoring the reference", scored, total))
        yield tokens


def _exchange(store: Store, senders: Mapping[Key, int], wanted: Mapping[Key, TokenGroup], dist: Distributed) -> None:
    """Send missing entries to the ranks that lack them: a sum over all ranks, with zeros from those who do not send."""
    keys = list(senders) if dist.world_size > 1 else []
    for some in (keys[first : first + EXCHANGED] for first in range(0, len(keys), EXCHANGED)):
        counts = [len(wanted[key].responses[0]) for key in some]
        parts = torch.zeros(sum(counts)).split(counts)
        for key, part in zip(some, parts, strict=True):
            if senders[key] == dist.rank:
                part.copy_(torch.from_numpy(store[key]))
        for key, part in zip(some, dist.sum(torch.cat(parts)).split(counts), strict=True):
            if key not in store:
                store.hold(key, part.numpy())


def _packs(groups: Mapping[Key, TokenGroup], tokens: int) -> list[list[Key]]:
    """All keys in lexicographic order of their sequences, cut where the distinct tokens exceed the budget."""
    keys, sequences = list(groups), [np.concatenate([g.prompt, g.responses[0]]) for g in groups.values()]
    packs: list[list[Key]] = []
    size, last = 0, np.empty(0, np.int32)
    for index in lexicographic_order(sequences):
        new = len(sequences[index]) - common_prefix(last, sequences[index])
        if not packs or size + new > tokens:
            packs.append([])
            size, new = 0, len(sequences[index])
        packs[-1].append(keys[index])
        size, last = size + new, sequences[index]
    return packs


def _idle(policy: Policy, wanted: Mapping[Key, TokenGroup], passes: int) -> None:
    """Passes that count for nothing, so that this rank makes as many as the others where they wait for each other."""
    for _ in range(passes if policy.weights.in_step else 0):
        read_packs(policy, [min(wanted.values(), key=lambda group: group.tokens)], [(0,)], _retry(policy))


def _retry(policy: Policy) -> OomRetry:
    return OomRetry(alone=not policy.weights.in_step, hint=HINT)


def _check_canaries(
    policy: Policy, store: Store, wanted: Mapping[Key, TokenGroup], present: Sequence[Key], count: int
) -> None:
    """Compute a few entries again, which nobody can foresee. Raises UserError where the store says something else."""
    for key in secrets.SystemRandom().sample(present, count):
        computed, stored = read_packs(policy, [wanted[key]], [(0,)], _retry(policy))[0][0], store[key]
        off = float(np.abs(computed - stored).max()) if computed.shape == stored.shape else float("inf")
        if not off <= policy.noise:
            raise UserError(
                f"entry {key.hex()[:16]} differs from the model by {off:.3g} nats a token.",
                code=CORRUPT,
                location=str(store.folder),
                hint="Delete this folder; it will be scored again.",
            )
