"""The run folder as it is written: lines that are only appended, and whole files for the rest.

Held by tests/record/test_claim.py, tests/record/test_writer.py and tests/laws/test_trajectory.py.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from preftune import files
from preftune.errors import CORRUPT, UserError
from preftune.events import Evaluated, Event, Happened, StepDone

METRICS, EVALUATIONS, EVENTS = LINES = ("metrics.jsonl", "evaluations.jsonl", "events.jsonl")
RUN_FILES = (
    "run.toml", "environment.json", "identity.json", "data.json", "evaluation_rows.jsonl",
    "evaluation_words.jsonl", "extras.json", "report.html",
    "start.safetensors", "track.json", "checkpoints", "model", "tensorboard", "wandb", *LINES,
)  # fmt: skip  # what `claim` deletes when a run is replaced
COMPARED = ("preftune", "torch", "transformers", "machine", "device", "threads", "world_size")


class RecordWriter:
    """The sink that writes a run folder. Lines are appended; only `rewind` takes some back.

    One process writes a folder. Nothing is opened before the first line, so that ranks whose events are silenced
    write nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, files.Lines] = {}

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._append(METRICS, {"step": event.step, **event.metrics})
        elif isinstance(event, Evaluated):
            self._append(EVALUATIONS, {"step": event.step, **event.metrics})
        elif isinstance(event, Happened):
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            head = {"step": event.step, "event": event.kind, "time": now, "text": event.text}
            self._append(EVENTS, head | dict(event.details))

    def _append(self, name: str, line: Mapping[str, object]) -> None:
        if name not in self._lines:
            self._lines[name] = files.Lines(self.path / name)
        self._lines[name].append(line)

    def json(self, name: str, value: object) -> None:
        """Write a whole JSON file."""
        files.write_json(self.path / name, files.plain(value))

    def rows(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Write a whole file of JSON lines."""
        lines = (json.dumps(files.plain(row), allow_nan=False) + "\n" for row in rows)
        files.write(self.path / name, "".join(lines))

    def sync(self) -> None:
        """Return when every line is on the disk: before a checkpoint, which must never be ahead of the lines."""
        for lines in self._lines.values():
            lines.sync()

    def close(self) -> None:
        for lines in self._lines.values():
            lines.close()
        self._lines.clear()

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`: a resumed run writes the same numbers again."""
        self.close()
        for name in (METRICS, EVALUATIONS):
            self.rows(name, [line for line in files.read_lines(self.path / name) if line["step"] <= step])


def claim(path: Path, *, resume: bool, force: bool) -> bool:
    """Make sure that a run may write here; True where there is a run to resume. Call it under the folder's lock.

    `force` removes the files of the run that is there, and no others. A folder holds a run where it has an
    identity.json: run.toml is also what people call their own file. Raises UserError where the folder holds
    another run, or files that are not a run's.
    """
    hint = "Go on with --resume, replace it with --force, or choose another `out`."
    holds_run = assert_writable(path, resume or force, hint)
    files.sweep_leftovers(path)
    files.sweep_leftovers(path / "checkpoints")
    if not holds_run:
        return False
    if resume:
        _assert_readable(path / "identity.json")
        return (path / "run.toml").exists()
    for name in RUN_FILES:
        files.delete(path / name)
    return False


def assert_writable(path: Path, may_hold_run: bool, hint: str) -> bool:
    """Whether the folder holds a run; nothing is changed.

    may_hold_run: a run that is there may be resumed or replaced; hint: what to do where it may not.
    Raises UserError where no run may write into this folder.
    """
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    names = [name for name in names if name != ".lock" and not name.startswith((".tmp-", ".trash-"))]
    holds_run = "identity.json" in names
    others = [name for name in names if name not in LINES]  # a run may have been killed before it had an identity
    if others and not holds_run:
        raise UserError(f"the folder holds other files ({others[0]}).", location=f"out: {path}",
                        hint="Choose another folder.")  # fmt: skip
    if holds_run and not may_hold_run:
        raise UserError("this folder holds a run already.", location=f"out: {path}", hint=hint)
    return holds_run


def _assert_readable(path: Path) -> None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "The run cannot go on. Start it again with --force, or choose another `out`."
        raise UserError(f"this file is damaged: {error}.", location=str(path), hint=hint, code=CORRUPT) from error


def environment(
    digests: Mapping[str, str], *, device: str, threads: int, world_size: int, seed: int
) -> dict[str, object]:
    """Versions, kind of machine and digests: all that a figure of this run depends on besides run.toml."""
    return {
        **{package: version(package) for package in ("preftune", "torch", "transformers", "numpy")},
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": device,
        "threads": threads,
        "world_size": world_size,
        "seed": seed,
        **digests,
    }


def environment_changes(path: Path, now: Mapping[str, object]) -> list[str]:
    """What has changed besides the run since the record at `path` was written, and may change the last digits."""
    try:
        before = json.loads((path / "environment.json").read_text())
    except (OSError, ValueError):
        return []
    before.setdefault("world_size", before.get("ranks", 1))  # an older record says ranks, or nothing
    return [f"{name} {before.get(name)} -> {now[name]}" for name in COMPARED if before.get(name) != now[name]]
