"""The files of a run folder -> typed values. A damaged file is a UserError that names the file and line.

Numbers that JSON cannot hold stand in the files as "NaN", "Infinity" and "-Infinity" and are floats again here.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from preftune.errors import CORRUPT, UserError
from preftune.events import Happened
from preftune.files import read_lines, reported
from preftune.folders import MODEL, RUN_FILE
from preftune.record.schema import EVALUATION, PHASE, STEP

METRICS = STEP.keys() | EVALUATION.keys() | PHASE.keys()  # of any other key, a later version's, only numbers are kept
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Numbers = dict[str, float | None]
T = TypeVar("T")


def model_of(name: str) -> str:
    """What a command means that names a model: of a run's folder the model that the run has tuned."""
    return str(Path(name) / MODEL) if (Path(name).expanduser() / RUN_FILE).is_file() else name


def written_by_run(model: Path) -> dict[str, object] | None:
    """What the run that wrote a model was told; None where no run of this library did. Raises UserError."""
    folder = model.expanduser()
    record = folder.parent / RUN_FILE
    return parse_toml(record)[1] if folder.name == MODEL and record.is_file() else None


def system_of_run(model: str) -> str | None:
    """The system text that the run which wrote a model gave to its conversations. Raises UserError."""
    data = (written_by_run(Path(model)) or {}).get("data")
    text = data.get("system") if isinstance(data, dict) else None
    return text if isinstance(text, str) else None


def parse_toml(path: Path) -> tuple[str, dict[str, object]]:
    """The text of a TOML file, and what it says."""
    try:
        with reported(path, "read"):
            text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except ValueError as error:  # also what undecodable bytes raise
        raise UserError(f"not TOML: {error}.", location=str(path), code=CORRUPT) from error


def parse_json(path: Path, kind: type[T]) -> T | None:
    """A JSON file as a value of `kind`, or None where there is no such file."""
    if not path.exists():
        return None
    try:
        with reported(path, "read"):
            value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"not JSON: {error}.", location=str(path), code=CORRUPT) from error
    return _convert(value, kind, str(path))


def parse_rows(path: Path, kind: type[T]) -> tuple[T, ...]:
    """Each line of a JSON-lines file as a value of `kind`."""
    return tuple(_convert(line, kind, location) for line, location in _lines(path))


def parse_metrics(path: Path) -> tuple[Numbers, ...]:
    """Lines in order of step. Where a step stands twice, as after a crash and a resume, the later line counts."""
    by_step: dict[float, Numbers] = {}
    for line, location in _lines(path):
        numeric = {key: value for key, value in line.items() if key in METRICS or isinstance(value, float | int | None)}
        numbers = _convert(numeric, Numbers, location)
        step = numbers.get("step")
        if step is None or not math.isfinite(step):
            raise UserError("this line has no step.", location=location, code=CORRUPT)
        by_step[step] = numbers
    return tuple(by_step[step] for step in sorted(by_step))


class _EventLine(Struct):
    step: int
    event: str
    text: str = ""


def parse_events(path: Path) -> tuple[Happened, ...]:
    """Each line of events.jsonl; what it holds besides step, kind and text are its details."""
    events = []
    for line, location in _lines(path):
        event = _convert(line, _EventLine, location)
        details = {key: value for key, value in line.items() if key not in _EventLine.__struct_fields__}
        events.append(Happened(event.step, event.event, event.text, details))
    return tuple(events)


def _convert(value: object, kind: type[T], location: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{error}.", location=location, code=CORRUPT) from error


def _lines(path: Path) -> list[tuple[dict[str, object], str]]:
    """Each line with its location; numbers spelled as words are floats again (an id that reads "NaN" stays one)."""
    with reported(path, "read"):
        lines = read_lines(path)
    located = []
    for number, line in enumerate(lines, 1):
        location = f"{path}:{number}"
        if not isinstance(line, dict):
            raise UserError("not a JSON object.", location=location, code=CORRUPT)
        located.append(({key: value if key == "id" else _number(value) for key, value in line.items()}, location))
    return located


def _number(value: object) -> object:
    return NON_FINITE.get(value, value) if isinstance(value, str) else value
