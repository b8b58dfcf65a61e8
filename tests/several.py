"""Several ranks in a test: forked after import, so that each costs a second and not a start of torch."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from torch.multiprocessing import start_processes

from preftune.distributed import Distributed, process_group
from preftune.errors import UserError
from preftune.files import read_lines

PATIENCE = 60.0  # seconds, after which ranks are taken to wait for each other for ever
Work = Callable[[Distributed], object]


def on_ranks(count: int, folder: Path, work: Work, meanwhile: Callable[[list], None] | None = None) -> list:
    """Do the work on so many gloo ranks and return what each said, as JSON: an error by its class, code and text.

    meanwhile: what to do with the processes while they run. None is what a killed rank said.
    """
    folder.mkdir(parents=True)
    context = start_processes(_rank, (folder, count, work), count, join=False, start_method="fork")
    deadline = time.monotonic() + PATIENCE
    if meanwhile is not None:
        meanwhile(context.processes)
    for process in context.processes:
        process.join(max(0.0, deadline - time.monotonic()))
    late = [process for process in context.processes if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, "ranks wait for each other"
    files = [folder / f"{index}.json" for index in range(count)]
    told = [json.loads(file.read_text()) if file.exists() else None for file in files]
    assert not any(isinstance(one, dict) and "bug" in one for one in told), told
    return told


def ends(told: list, code: int, text: str) -> None:
    """Whether every rank ended with this code, and one of them with this text."""
    assert [one["code"] for one in told] == [code] * len(told), told
    speaking = [one["text"] for one in told if one["error"] != "PeerRankError"]
    assert len(speaking) == 1, told
    assert text in speaking[0]


def after_steps(out: Path, steps: int, act: Callable[[list], None]) -> Callable[[list], None]:
    def wait(processes: list) -> None:
        deadline = time.monotonic() + 60
        while len(read_lines(out / "metrics.jsonl")) < steps:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        act(processes)

    return wait


def _rank(index: int, folder: Path, count: int, work: Work) -> None:
    try:
        with process_group(f"file://{folder}/meet?rank={index}&world_size={count}") as dist:
            said: object = work(dist)
    except UserError as error:
        said = {"error": type(error).__name__, "code": error.code, "text": str(error)}
    except BaseException:
        said = {"bug": traceback.format_exc()}
    (folder / f"{index}.json").write_text(json.dumps(said))
