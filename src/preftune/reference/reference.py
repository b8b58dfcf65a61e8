"""The anchor: log-probabilities under a model that never learns. Three kinds behind one method."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from preftune import files
from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.errors import CORRUPT, UserError
from preftune.model.policy import Policy
from preftune.pack.batch import Batch
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Pack
from preftune.pack.trie import common_prefix
from preftune.reference.store import Key, Store, key_of
from preftune.tokens.groups import TokenGroup

CANARIES = 8
FLUSH_SECONDS = 20.0
MEND = "Lower data.max_tokens."
TOGETHER = 4096  # entries that ranks tell each other in one call


class Reference(Protocol):
    """Gives the reference's log-probability of every token of every response of a pack, or None without one."""

    def token_logp(self, batch: Batch) -> Tensor | None: ...  # (members,) fp32, in the order of the batch


class NoReference:
    """For objectives that use none."""

    def token_logp(self, batch: Batch) -> None:
        return None


@dataclass(frozen=True)
class FrozenReference:
    """A second model in memory, asked in every step."""

    policy: Policy

    def token_logp(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self.policy.token_logp(batch)


@dataclass(frozen=True)
class MovingReference(FrozenReference):
    """A second model that follows the policy: every `every` updates it takes `share` of the policy's weights."""

    share: float
    every: int

    def follow(self, policy: Policy, step: int) -> None:
        """Move, if update `step` (from 1) is one to move after (TR-DPO, arXiv 2404.09656, eqs. 1 and 2)."""
        if step % self.every == 0:
            with torch.no_grad():
                for own, theirs in zip(self.policy.module.parameters(), policy.module.parameters(), strict=True):
                    own.lerp_(theirs, self.share)


@dataclass(frozen=True)
class StoredReference:
    """Numbers from the store; every response asked for must have been put there by `score`."""

    store: Store

    def token_logp(self, batch: Batch) -> Tensor:
        found = [self.store[key_of(g.prompt, r)] for g in batch.groups for r in g.responses]
        return torch.from_numpy(np.concatenate(found)).to(batch.ids.device)


def numerics(policy: Policy) -> str:
    """What besides weights and tokens moves the last digits: entries of another class are not shared."""
    compute = str(policy.compute).removeprefix("torch.")
    version = ".".join(torch.__version__.split(".")[:2])
    return f"{compute}-{policy.device.type}-{policy.layout}-torch{version}-1"


@dataclass(frozen=True, slots=True)
class Scoring:
    """What a reference pass did; tokens_naive: what one forward pass a response of its packs would have computed."""

    scored: int
    reused: int
    tokens_computed: int
    tokens_naive: int
    damaged: int
    seconds: float


def score(
    policy: Policy,
    store: Store,
    groups: Sequence[TokenGroup],
    *,
    tokens: int,
    seed: int,
    show: Callable[[int, int], None],
    stop: Callable[[], None],
    dist: Distributed = SINGLE_PROCESS,
) -> Scoring:
    """Put every response of the groups into the store, each distinct one once; resumes where it was stopped.

    tokens: budget of a pack. show(done, all) is called after each pack; stop() may raise after what is done is kept.
    A few entries that were there already are recomputed; UserError where they differ: then the store is not trusted.
    Each rank computes and writes its share of the packs; in the end all hold every entry, without a disk in common.
    """
    began = time.monotonic()
    wanted: dict[Key, TokenGroup] = {}
    for group in groups:
        for response in group.responses:
            wanted.setdefault(key_of(group.prompt, response), _single(group, response))
    keys = sorted(wanted)
    there = [store.get(key) is not None for key in keys]
    _canaries(policy, store, {key: wanted[key] for key in itertools.compress(keys, there)}, seed + dist.rank)
    # of each entry: whether some rank lacks it, and the first rank that has it, counted from behind; 0 where none has
    behind = dist.world_size - dist.rank
    lacked, having = dist.all_reduce_max(torch.tensor([[not t for t in there], [t * behind for t in there]])).tolist()
    givers = {key: dist.world_size - place for key, place in zip(keys, having, strict=True) if place}
    missing = {key: wanted[key] for key in keys if key not in givers}
    packs = _packs(wanted, tokens)  # the same packs however much is there, so that last digits repeat
    packs = [pack for pack in packs if any(key in missing for key in pack)]
    givers |= {key: at % dist.world_size for at, pack in enumerate(packs) for key in pack if key in missing}
    computed = 0
    if missing:
        files.usable(store.folder)
    try:
        for tokens_of_pack in _computed(policy, store, packs[dist.rank :: dist.world_size], wanted, missing, show):
            computed += tokens_of_pack
            stop()
    finally:
        store.flush()
    _exchange(store, {key: givers[key] for key in itertools.compress(keys, lacked)}, wanted, dist)
    naive, computed = sum(wanted[key].tokens for pack in packs for key in pack), int(dist.sum(torch.tensor(computed)))
    return Scoring(len(missing), len(wanted) - len(missing), computed, naive, store.damaged, time.monotonic() - began)


def _computed(
    policy: Policy,
    store: Store,
    packs: Sequence[Sequence[Key]],
    wanted: Mapping[Key, TokenGroup],
    missing: Mapping[Key, TokenGroup],
    show: Callable[[int, int], None],
) -> Iterator[int]:
    """The tokens computed for each pack, after its missing entries are in the store."""
    memory = OomRetry(hint=MEND)
    flushed, done, total = time.monotonic(), 0, sum(key in missing for pack in packs for key in pack)
    for pack in packs:
        values, tokens = _logp(policy, groups := [wanted[key] for key in pack], memory)
        stops = np.cumsum([len(g.responses[0]) for g in groups])[:-1]
        for key, part in zip(pack, np.split(values, stops), strict=True):
            if key not in missing:
                continue
            if not np.isfinite(part).all():
                place = missing[key].place
                raise UserError(
                    "the reference gives a response no finite probability.", location=str(place), code=CORRUPT
                )
            store.put(key, part)
            done += 1
        if time.monotonic() - flushed > FLUSH_SECONDS:
            store.flush()
            flushed = time.monotonic()
        show(done, total)
        yield tokens


def _logp(policy: Policy, groups: Sequence[TokenGroup], memory: OomRetry) -> tuple[np.ndarray, int]:
    """(members,) of groups of one response, fp32, and tokens computed."""

    def work(packs: Sequence[Pack]) -> tuple[np.ndarray, int]:
        batches = [policy.batch([groups[i] for i in pack]) for pack in packs]
        with torch.no_grad():
            found = [policy.token_logp(batch).float().cpu().numpy() for batch in batches]
        return np.concatenate(found), sum(batch.tokens for batch in batches)

    return memory.run(groups, [tuple(range(len(groups)))], work)


def _exchange(store: Store, givers: Mapping[Key, int], wanted: Mapping[Key, TokenGroup], dist: Distributed) -> None:
    """Give every rank the entries that it lacks, each from the rank named, as sums with zeros."""
    keys = list(givers) if dist.world_size > 1 else []
    for some in (keys[at : at + TOGETHER] for at in range(0, len(keys), TOGETHER)):
        parts = torch.zeros(sum(tokens := [len(wanted[key].responses[0]) for key in some])).split(tokens)
        for key, part in zip(some, parts, strict=True):
            if givers[key] == dist.rank and (held := store.get(key)) is not None:
                part.copy_(torch.from_numpy(held))
        for key, part in zip(some, dist.sum(torch.cat(parts)).split(tokens), strict=True):
            if store.get(key) is None:
                store.hold(key, part.numpy())


def _single(group: TokenGroup, response: np.ndarray) -> TokenGroup:
    return TokenGroup(prompt=group.prompt, responses=(response,), kind="demo", place=group.place, id=group.id)


def _packs(groups: dict[Key, TokenGroup], tokens: int) -> list[list[Key]]:
    """All keys in lexicographic order of their sequences, cut where the distinct tokens exceed the budget."""
    sequences = {key: np.concatenate([g.prompt, g.responses[0]]).astype(">u4") for key, g in groups.items()}
    packs: list[list[Key]] = []
    held, last = 0, np.empty(0, ">u4")
    for key in sorted(sequences, key=lambda key: sequences[key].tobytes()):
        new = len(sequences[key]) - common_prefix(last, sequences[key])
        if not packs or held + new > tokens:
            packs.append([])
            held, new = 0, len(sequences[key])
        packs[-1].append(key)
        held, last = held + new, sequences[key]
    return packs


def _canaries(policy: Policy, store: Store, present: Mapping[Key, TokenGroup], seed: int) -> None:
    """Recompute a few entries: a store that answers otherwise than the model must not be used."""
    chosen = random.Random(seed).sample(sorted(present), min(CANARIES, len(present)))
    for key in chosen:
        (now, _), held = _logp(policy, [present[key]], OomRetry(hint=MEND)), store[key]
        off = float(np.abs(now - held).max()) if now.shape == held.shape else float("inf")
        if not off <= policy.noise:
            raise UserError(
                f"entry {key.hex()[:16]} differs from the model by {off:.3g} nats a token.",
                code=CORRUPT,
                location=str(store.folder),
                hint="Delete this folder; it will be scored again.",
            )
