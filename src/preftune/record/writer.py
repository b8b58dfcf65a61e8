"""The run folder as it is written: append-only lines, and whole files for the rest."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from preftune import files
from preftune.config.load import dump
from preftune.config.run import Run
from preftune.errors import CORRUPT, UserError

LINES = ("metrics", "evaluations", "events")
BEFORE = tuple(f"{name}.jsonl" for name in LINES)  # what is there before a run is known by its identity
OURS = (
    "run.toml",
    "environment.json",
    "identity.json",
    "data.json",
    "evaluation_rows.jsonl",
    "extras.json",
    "report.html",
    "start.safetensors",
    "checkpoints",
    "model",
    *BEFORE,
)


class Record:
    """The folder of one run, held by one process. Numbers are appended; nothing is rewritten but by `rewind`.

    writing: whether this process is the one; on the other ranks of a run everything here does nothing.
    """

    def __init__(self, path: Path, writing: bool = True) -> None:
        self.path, self.writing = path, writing
        self._lines = {name: files.Lines(path / f"{name}.jsonl") for name in LINES if writing}

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def metrics(self, values: dict[str, Any]) -> None:
        """One update's numbers (meters.STEP)."""
        self._append("metrics", values)

    def evaluation(self, values: dict[str, Any]) -> None:
        """One evaluation's numbers (meters.EVALUATION)."""
        self._append("evaluations", values)

    def event(self, step: int, kind: str, text: str, **details: Any) -> None:
        """Something that happened, in a sentence."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._append("events", {"step": step, "event": kind, "time": now, "text": text, **details})

    def _append(self, name: str, values: dict[str, Any]) -> None:
        if self.writing:
            self._lines[name].append(values)

    def json(self, name: str, value: Any) -> None:
        if self.writing:
            files.write_json(self.path / name, files.plain(value))

    def rows(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """A whole file of JSON lines."""
        if self.writing:
            text = "".join(json.dumps(files.plain(row), allow_nan=False) + "\n" for row in rows)
            files.write(self.path / name, text)

    def sync(self) -> None:
        """Return when every line is on the disk: before a checkpoint, which must never be ahead of the lines."""
        for lines in self._lines.values():
            lines.sync()

    def close(self) -> None:
        for lines in self._lines.values():
            lines.close()

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`: a resumed run writes it again, the same."""
        for name in ("metrics", "evaluations"):
            kept = [line for line in files.read_lines(self.path / f"{name}.jsonl") if line["step"] <= step]
            self._lines[name].close()
            self.rows(f"{name}.jsonl", kept)
            self._lines[name] = files.Lines(self.path / f"{name}.jsonl")


def claim(path: Path, *, resume: bool, force: bool) -> bool:
    """Make sure that a run may write here; True where there is a run to resume. Call it under the folder's lock.

    Raises UserError where the folder holds another run or files that are not a run's; `force` removes a run's files,
    and no others. That a run began here is told by identity.json: run.toml is also what people call their own file.
    """
    begun = free(path, resume or force, "Go on with --resume, replace it with --force, or choose another `out`.")
    files.sweep_leftovers(path)
    files.sweep_leftovers(path / "checkpoints")
    if not begun:
        return False
    if resume:
        _whole(path / "identity.json")
        return (path / "run.toml").exists()
    for name in OURS:
        files.delete(path / name)
    return False


def free(path: Path, again: bool, hint: str) -> bool:
    """Whether a run began in this folder, if there is one; nothing is changed.

    again: a run may go on or be replaced there. Raises UserError where none may begin; mend: what to do where one is.
    """
    inside = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    inside = [name for name in inside if name != ".lock" and not name.startswith((".tmp-", ".trash-"))]
    begun = "identity.json" in inside
    foreign = [name for name in inside if name not in BEFORE]
    if foreign and not begun:
        raise UserError(f"the folder holds other files ({foreign[0]}).", location=f"out: {path}",
                        hint="Choose another folder.")  # fmt: skip
    if begun and not again:
        raise UserError("a run is here already.", location=f"out: {path}", hint=hint)
    return begun


def _whole(path: Path) -> None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "The run cannot go on; start anew with --force, or in another `out`."
        raise UserError(f"is damaged: {error}.", location=str(path), hint=hint, code=CORRUPT) from error


def environment(run: Run, digests: dict[str, Any], device: str, threads: int, ranks: int) -> dict[str, Any]:
    """Versions, machine class and digests: all that a figure of this run depends on besides run.toml."""
    return {
        "preftune": version("preftune"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "numpy": version("numpy"),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": device,
        "threads": threads,
        "ranks": ranks,
        "seed": run.seed,
        **digests,
    }


def other_environment(path: Path, now: dict[str, Any]) -> list[str]:
    """What besides the run has changed since the record at `path` was written and may change last digits."""
    try:
        before = {"ranks": 1} | json.loads((path / "environment.json").read_text())
    except (OSError, ValueError):
        return []
    kept = ("preftune", "torch", "transformers", "machine", "device", "threads", "ranks")
    return [f"{name} {before.get(name)} -> {now[name]}" for name in kept if before.get(name) != now[name]]


def start(path: Path, run: Run) -> None:
    """Write the resolved configuration."""
    files.write(path / "run.toml", dump(run))
