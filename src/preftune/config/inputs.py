"""The files and folders that a run reads. Held by tests/config/test_inputs.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from preftune import files
from preftune.config.explain import keys
from preftune.config.run import Run
from preftune.config.tree import tree_of
from preftune.errors import UserError
from preftune.model.adapter_files import CONFIG, adapter_at
from preftune.record.trackers import assert_ready
from preftune.rows.sources import files_of
from preftune.rows.split import refuse_missing_rows


def inputs(run: Run) -> Iterator[tuple[str, Path]]:
    """Each file or folder on this machine that a run reads, beside the key that names it: rows, models, the base of an
    adapter, what a loaded model was loaded from, the code of a reward."""
    model, tree = run.model.path, tree_of(run)
    names = [("model.path", model if isinstance(model, str) else str(model.name_or_path))]
    names += [(key.name, text) for key in keys() if key.location for text in _texts(tree, key.name.split("."))]
    for key, text in names:
        for name in filter(None, (*_named(text), text.rpartition(":")[0])):  # a function is file.py:name
            if (path := Path(name).expanduser()).exists():
                yield key, path
                if (path / CONFIG).is_file() and (adapter := adapter_at(str(path), None, key)) and adapter.base:
                    yield key, Path(adapter.base)


def refuse_inside(run: Run, out: Path) -> None:
    """Raise UserError where the run reads something that lies in the folder whose run it is to replace, or that links
    to there."""
    for key, path in inputs(run):
        links = [entry for entry in path.iterdir() if entry.is_file()] if path.is_dir() else []
        for file in (path, *links):
            if files.lies_in(file, out):
                raise UserError(f"{path} lies in {out}, which --force replaces.", location=key,
                                hint="Choose another `out`, or copy it elsewhere first.")  # fmt: skip


def refuse_missing(*runs: Run) -> None:
    """Raise UserError where rows are not there that a run reads, or a tracker that it writes to: both are known before
    torch is loaded."""
    for run in runs:
        refuse_missing_rows(run.data)
        assert_ready(run.track)


def _named(text: str) -> list[str]:
    """The files that a text names, as a pattern too."""
    try:
        return files_of(text)
    except UserError:  # that no file fits is told when they are read
        return []


def _texts(value: object, names: list[str]) -> Iterator[str]:
    """What stands at a dotted key of a tree: in each table or entry of a list, where there are several."""
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry, names)
    elif isinstance(value, dict):
        yield from _texts(value.get(names[0]), names[1:]) if names else ()
    elif isinstance(value, str) and not names:
        yield value
