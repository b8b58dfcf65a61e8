"""The file of a phase: every rank gets what the first one reads, bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from several import on_ranks

from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.rollout.numbers import Numbers, read_numbers, write_numbers


def test_every_rank_has_what_the_first_one_reads(tmp_path: Path) -> None:
    path = tmp_path / "phases" / "000001.safetensors"
    logp = np.array([-1.5, -0.0, -1e-30], np.float32)
    scores = np.array([[1 / 3, np.nan], [-2.0, 0.0]])
    written = Numbers(np.array([2, 1]), np.array([True, False]), np.array([5, 2, 7], np.int32), logp,
                      np.arange(64, dtype=np.uint8), scores[:, 0], scores, reference=logp)  # fmt: skip
    write_numbers(path, written)

    def work(dist: Distributed) -> list[bool]:
        shared = read_numbers(path if dist.first else tmp_path / "absent", dist)
        assert shared is not None
        arrays = shared.arrays()
        assert arrays.keys() == written.arrays().keys()
        assert read_numbers(tmp_path / "absent", dist) is None
        return [arrays[name].dtype == array.dtype and arrays[name].tobytes() == array.tobytes()
                for name, array in written.arrays().items()]  # fmt: skip

    for said in (work(SINGLE_PROCESS), *on_ranks(2, tmp_path / "ranks", work)):
        assert said == [True] * 8
