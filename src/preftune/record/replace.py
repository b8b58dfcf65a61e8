"""A run that takes the place of another: the one before lies aside until the record of the new one has begun.

Held by tests/record/test_claim.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preftune import files
from preftune.record.parse import MODEL, RUN_FILE

METRICS, EVALUATIONS, EVENTS, PHASES = "metrics.jsonl", "evaluations.jsonl", "events.jsonl", "phases.jsonl"
CHECKPOINTS, IDENTITY, ASIDE = "checkpoints", "identity.json", ".preftune-replaced"
RUN_FILES = (
    METRICS, EVALUATIONS, EVENTS, PHASES, "phases", RUN_FILE, "environment.json", "data.json",
    "evaluation_rows.jsonl", "evaluation_words.jsonl", "extras.json", "samples.json", "report.html",
    "start.safetensors", "start_draws.safetensors", "track.json", CHECKPOINTS, MODEL, "value", "served",
    "tensorboard", "wandb",
)  # fmt: skip  # what a run that replaces another takes away, besides the identity


@contextmanager
def replacing(path: Path) -> Iterator[None]:
    """In this block the record of a new run begins in a folder; the files of the run that was there, and no others, lie
    aside meanwhile, and are deleted after it.

    Where the block fails the old run is put back, and where the process is killed in it, by the next run that claims
    the folder.
    """
    aside = path / ASIDE
    if not (path / IDENTITY).exists():
        yield
        return
    with files.reported(path, "move"):
        files.make(aside)
    if (path / RUN_FILE).exists():  # it stays as well, for a command that names this folder as its configuration
        files.write(aside / RUN_FILE, (path / RUN_FILE).read_bytes())
    for name in (IDENTITY, *RUN_FILES):
        if name != RUN_FILE and (path / name).exists():
            files.move(path / name, aside / name)
    try:
        yield
    except BaseException:
        put_back(path)
        raise
    files.move(aside, files.temporary_name(aside, "trash"))  # from here on the old run is gone, whatever happens
    files.sweep_leftovers(path)


def put_back(path: Path) -> None:
    """Undo a replacement that did not come to its end: the old run is there again, and nothing of the new one is in its
    way. Its identity comes last, so that a process that is killed here leaves a folder with one aside."""
    aside = path / ASIDE
    for name in (*RUN_FILES, IDENTITY):
        if (aside / name).exists():
            if (path / name).is_dir():
                files.delete(path / name)
            files.move(aside / name, path / name)
    files.delete(aside)


def bytes_aside(path: Path) -> int:
    """How much of the disk the end of a replacement gives free."""
    return sum(file.lstat().st_size for file in (path / ASIDE).rglob("*"))
