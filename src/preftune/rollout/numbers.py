"""What a phase has drawn, as arrays: written to the record before its first update, read back by a resumed run.

Held by tests/laws/test_online.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, load_file, save

from preftune import files
from preftune.distributed import Distributed
from preftune.errors import CORRUPT, UserError, third_party_message
from preftune.rollout.draw import Drawn

FOLDER, SEAL = "phases", "seal"


@dataclass(frozen=True)
class Numbers:
    """Responses task by task, equally many a task; members are the tokens of all responses, one after the other.

    lengths, ended: (responses,) tokens, and whether the end token was drawn. ids, sampled: (members,) each token and
    its log-probability when it was drawn. The rest may not be there yet. score: (responses,) the whole score; scores:
    (responses, rewards) each reward's own. reference, value, policy: (members,) log-probabilities under the reference,
    values, and log-probabilities under the policy that drew, where the sampler's own were off. preferred: (responses,
    K) what a judge says: the probability that it is better than each response to its prompt. weights: digests of those
    that drew a phase, and of all else that decides its numbers. tasks: (tasks,) which of the run's tasks they are,
    where some took the places of others.
    """

    lengths: np.ndarray
    ended: np.ndarray
    ids: np.ndarray
    sampled: np.ndarray
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    score: np.ndarray | None = None
    scores: np.ndarray | None = None
    reference: np.ndarray | None = None
    value: np.ndarray | None = None
    policy: np.ndarray | None = None
    preferred: np.ndarray | None = None
    tasks: np.ndarray | None = None

    def by_response(self, members: np.ndarray) -> list[np.ndarray]:
        """(members,) -> one array a response."""
        return np.split(members, np.cumsum(self.lengths)[:-1])

    def by_task(self, members: np.ndarray, count: int) -> list[tuple[np.ndarray, ...]]:
        """(members,) -> for each task one array for each of its `count` responses."""
        responses = self.by_response(members)
        return [tuple(responses[first : first + count]) for first in range(0, len(responses), count)]

    def log_ratio(self, reference: np.ndarray) -> np.ndarray:
        """(responses,) fp64, in nats. reference: (members,) log-probabilities under it."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.add.reduceat(self.sampled - reference.astype(np.float64), starts)

    def of_one_score(self, count: int) -> np.ndarray:
        """(tasks,) whether all `count` responses to a task have the same score."""
        assert self.score is not None
        return np.ptp(self.score.reshape(-1, count), axis=1) == 0

    def with_tasks(self, places: Sequence[int], other: Numbers, chosen: Sequence[int], count: int) -> Numbers:
        """The scored draws with those to the chosen tasks of another draw at these places. count: responses a task."""
        assert self.reference is self.value is self.policy is self.preferred is None  # these are read afterwards
        of_place = dict(zip(places, chosen, strict=True))

        def mixed(name: str, *, of_members: bool) -> np.ndarray:
            own, others = (
                np.split(array, np.cumsum(x.lengths)[count - 1 : -1 : count] if of_members else len(array) // count)
                for x in (self, other)
                for array in [getattr(x, name)]
            )
            return np.concatenate([others[of_place[i]] if i in of_place else own[i] for i in range(len(own))])

        members = {name: mixed(name, of_members=True) for name in ("ids", "sampled")}
        responses = {name: mixed(name, of_members=False) for name in ("lengths", "ended", "score", "scores")}
        return replace(self, **members, **responses)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array that is there, by name."""
        return {name: array for name, array in asdict(self).items() if array is not None}


def path_of(record: Path, number: int) -> Path:
    """The file of a phase."""
    return record / FOLDER / f"{number:06d}.safetensors"


def write_numbers(path: Path, numbers: Numbers) -> None:
    """Write the file of a phase: whole or not at all."""
    files.make(path.parent)
    arrays = {name: np.ascontiguousarray(array) for name, array in numbers.arrays().items()}
    files.write(path, save(arrays | {SEAL: _seal(arrays)}))


def _seal(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """(32,) bytes: a digest of all arrays, by which a file that changed on the disk is known."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _read(path: Path) -> Numbers | None:
    """The numbers of a phase; None where there is no such file. Raises UserError where it is damaged."""
    if not path.exists():
        return None
    try:
        arrays = load_file(path)
        if not np.array_equal(arrays.pop(SEAL), _seal(arrays)):
            raise ValueError("its content is not what was written")
        numbers = Numbers(**arrays)
        if len(numbers.ids) != numbers.lengths.sum() or len(numbers.sampled) != len(numbers.ids):
            raise ValueError("its arrays do not fit together")
    except Exception as error:  # safetensors has a class of its own
        hint = "Delete it; a phase that has made no update yet is drawn again."
        message = f"this phase cannot be read: {third_party_message(error)}."
        raise UserError(message, location=str(path), hint=hint, code=CORRUPT) from error
    return numbers


def read_numbers(path: Path, dist: Distributed) -> Numbers | None:
    """What rank 0 reads, on every rank."""
    numbers = _read(path) if dist.first else None
    if dist.world_size == 1 or not dist.broadcast_int(numbers is not None):
        return numbers
    content = bytearray(b"" if numbers is None else save(numbers.arrays()))
    values = torch.zeros(dist.broadcast_int(len(content)), dtype=torch.uint8)
    if content:
        values = torch.frombuffer(content, dtype=torch.uint8)
    dist.broadcast([values])
    return Numbers(**load(values.numpy().tobytes()))


def exchanged(drawn: Sequence[Drawn], tasks: int, responses: int, dist: Distributed, ranks: int) -> Numbers:
    """What the first ranks have drawn, on each of all. Of these, rank r has drawn tasks r, r + ranks, ...

    Ranks sum one table, with zeros where others have drawn; token ids are exact in fp64.
    """
    longest = dist.max(max((len(ids) for one_task in drawn for ids in one_task.ids), default=0))
    table = torch.zeros(tasks * responses, longest, 2, dtype=torch.float64)
    ends = torch.zeros(tasks * responses, 2, dtype=torch.int64)
    for turn, of_task in enumerate(drawn):
        first = (dist.rank + turn * ranks) * responses
        for index, (ids, logp, ended) in enumerate(zip(of_task.ids, of_task.logp, of_task.ended, strict=True), first):
            table[index, : len(ids), 0] = torch.from_numpy(ids).double()
            table[index, : len(ids), 1] = torch.from_numpy(logp).double()
            ends[index] = torch.tensor([len(ids), int(ended)])
    lengths, ended_flags = dist.sum(ends).T.numpy()
    ids, logp = dist.sum(table)[torch.arange(longest) < torch.from_numpy(lengths)[:, None]].T.numpy()
    return Numbers(
        lengths=lengths.copy(),
        ended=ended_flags.astype(bool),
        ids=ids.astype(np.int32),
        sampled=logp.astype(np.float32),
    )
