"""The run folder as it is written: lines that are only appended, and whole files for the rest.

Held by tests/record/test_claim.py, tests/record/test_writer.py and tests/laws/test_trajectory.py.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from preftune import files, folders
from preftune.errors import CORRUPT, UserError
from preftune.events import Evaluated, Event, Happened, PhaseDrawn, StepDone
from preftune.record.replace import (
    ASIDE,
    CHECKPOINTS,
    EVALUATIONS,
    EVENTS,
    IDENTITY,
    METRICS,
    PHASES,
    put_back,
)

CHECKPOINT_FILES = re.compile(
    r"((value_)?(weights|optimizer)|reference)(-\d{5}-of-\d{5})?\.safetensors|state\.json"
)  # of one process, or one a rank
SWEEP_PAGE = "compare.html"
NEW_START = "Start it again with --force, or choose another `out`."
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
        return self.path / CHECKPOINTS

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._append(METRICS, {"step": event.step, **event.metrics})
        elif isinstance(event, Evaluated):
            self._append(EVALUATIONS, {"step": event.step, **event.metrics})
        elif isinstance(event, PhaseDrawn):
            self._append(PHASES, {**event.metrics, "step": event.step, "phase": event.phase})
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
        files.write_lines(self.path / name, rows)

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
        for name, last in ((METRICS, step), (EVALUATIONS, step), (PHASES, step - 1)):  # a phase begins after `step`
            if (self.path / name).exists() or name != PHASES:
                self.rows(name, [line for line in self.lines(name) if line["step"] <= last])

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a file so far. Raises UserError where one of them is not a line of a record."""
        lines = files.read_lines(self.path / name)
        for number, line in enumerate(lines, 1):
            if not isinstance(line, dict) or type(line.get("step")) is not int:
                raise UserError("this line has no step.", location=f"{self.path / name}:{number}", code=CORRUPT,
                                hint=f"Delete it, and go on with --resume. {NEW_START}")  # fmt: skip
        return lines

    def has_evaluated(self, step: int) -> bool:
        """Whether the held-out rows were measured after so many updates."""
        return any(line["step"] == step for line in self.lines(EVALUATIONS))

    def finished_at(self) -> int | None:
        """Updates after which a model was exported last; None where there was none."""
        return next((line["step"] for line in reversed(self.lines(EVENTS)) if line.get("event") == "finished"), None)


def claim(path: Path, *, resume: bool, force: bool) -> bool:
    """Make sure that a run may write here; True where there is a run to resume. Call it under the folder's lock.

    Nothing of a run that is there is deleted: `replace.replacing` does that for `force`, when all that may refuse the
    new run has been asked; the run that a killed process was replacing is put back. Raises UserError where the folder
    holds another run, files that are not a run's, or files of another among those that `force` would delete.
    """
    holds_run = assert_writable(path, resume=resume, force=force)
    put_back(path)
    files.sweep_leftovers(path)
    files.sweep_leftovers(path / CHECKPOINTS)
    if not holds_run:
        return False
    if resume:
        _assert_readable(path / IDENTITY)
        return (path / "run.toml").exists()
    if names := foreign_files(path):
        raise UserError("this file is not the run's, and --force would delete it.", location=str(path / names[0]),
                        hint="Move it out of this folder, or choose another `out`.")  # fmt: skip
    return False


def assert_writable(path: Path, *, resume: bool = False, force: bool = False, hint: str = "") -> bool:
    """Whether the folder holds a run; nothing is changed. It does where it has an identity.json, or one aside.

    hint: what to do where a run is there. Raises UserError where no run may write into this folder.
    """
    if path.exists() and not path.is_dir():
        raise UserError("this is a file, and a folder is needed.", location=f"out: {path}")
    with files.reported(path, "read"):
        names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    names = [name for name in names if name != ".lock" and not files.is_leftover(name)]
    location = f"out: {path}"
    if names and not {IDENTITY, ASIDE} & {*names}:
        raise UserError(f"the folder holds other files ({names[0]}).", location=location, hint="Choose another folder.")
    if names and not (resume or force):
        hint = hint or "Go on with --resume, replace it with --force, or choose another `out`."
        raise UserError("this folder holds a run already.", location=location, hint=hint)
    return bool(names)


def assert_sweep_writable(out: Path, folders: Sequence[Path], *, resume: bool) -> None:
    """Raise UserError where a sweep into `out`, with runs in these folders, would mix with another or write over it."""
    hint = "Go on with --resume, or choose another --out."
    runs = {path.parent for path in out.glob(f"*/{IDENTITY}")}
    if others := sorted(runs - {*folders} if not resume else ()):
        raise UserError(f"another sweep is here already ({others[0].name}).", location=f"--out {out}", hint=hint)
    if (out / SWEEP_PAGE).exists() and not (runs and resume):
        raise UserError(f"there is a {SWEEP_PAGE} here already.", location=f"--out {out}", hint=hint)
    for folder in folders:
        assert_writable(folder, resume=resume, hint=hint)


def foreign_files(path: Path) -> list[str]:
    """Files below model/ and checkpoints/ of a run's folder that are not the run's, or that another has changed."""
    folders_of_run = ("model", "value", CHECKPOINTS)
    names = [name for name in folders_of_run if (path / name).is_symlink() or (path / name).is_file()]
    names += [f"{model}/{name}" for model in folders_of_run[:2] for name in folders.not_ours(path / model)]
    for entry in sorted((path / CHECKPOINTS).iterdir()) if (path / CHECKPOINTS).is_dir() else ():
        if not (entry.is_dir() and entry.name.startswith("step-")):
            names += [] if files.is_leftover(entry.name) else [f"checkpoints/{entry.name}"]
        else:
            inside = {str(file.relative_to(entry)) for file in entry.rglob("*") if not file.is_dir()}
            others = {name for name in inside if not CHECKPOINT_FILES.fullmatch(name)} - {
                folders.MANIFEST,
                folders.NEXT,
            }
            names += [f"checkpoints/{entry.name}/{name}" for name in sorted(others)]
    return names


def _assert_readable(path: Path) -> None:
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(identity, dict) or type(identity.get("batch.tokens")) is not int:
            raise ValueError("it does not describe a run")
    except (OSError, ValueError, RecursionError) as error:
        hint = f"The run cannot go on. {NEW_START}"
        raise UserError(f"this file is damaged: {error}.", location=str(path), hint=hint, code=CORRUPT) from error


def environment(
    digests: Mapping[str, str], *, device: str, threads: int, world_size: int, seed: int
) -> dict[str, object]:
    """Versions, kind of machine and digests: all that a figure of this run depends on besides run.toml."""
    return {
        **{package: version_of(package) for package in ("preftune", "torch", "transformers", "numpy")},
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": device,
        "threads": threads,
        "world_size": world_size,
        "seed": seed,
        **digests,
    }


def version_of(package: str) -> str:
    """Of an installed package; "source" where its files are used without an installation."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"


def environment_changes(path: Path, now: Mapping[str, object]) -> list[str]:
    """What has changed besides the run since the record at `path` was written, and may change the last digits."""
    try:
        before = dict(json.loads((path / "environment.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return []
    before.setdefault("world_size", before.get("ranks", 1))  # an older record says ranks, or nothing
    return [f"{name} {before.get(name)} -> {now[name]}" for name in COMPARED if before.get(name) != now[name]]
