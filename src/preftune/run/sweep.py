"""Runs that differ in given keys, one after the other: they share one reference store, and one page compares them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace as changed
from pathlib import Path

from msgspec.structs import replace

from preftune import events, files, signals
from preftune.config.resolve import resolve
from preftune.config.run import Run, scoring_tables
from preftune.config.tree import plain, python_values, tree_of, with_values
from preftune.config.vary import Variant
from preftune.config.vary import vary as combined
from preftune.distributed import Distributed, process_group
from preftune.errors import IO, NON_FINITE, PeerRankError, Problem, UserError, is_out_of_memory
from preftune.events import Note, emit
from preftune.record.reader import Record
from preftune.record.terminal import default_progress
from preftune.record.writer import SWEEP_PAGE, assert_sweep_writable
from preftune.report import page
from preftune.rollout.functions import columns_of, functions_of
from preftune.rows.split import read_rows
from preftune.run.dataset import cached_loader
from preftune.run.match_rows import match_rows
from preftune.run.preview import preview_tasks
from preftune.run.train import train


def sweep(
    run: Run, vary: Mapping[str, Sequence[object]], out: str | Path = "sweep", *, resume: bool = False
) -> list[Path]:
    """Train once for each combination of values, such as {"objective.beta": [0.05, 0.1], "seed": [0, 1]}.

    Everything else is the run's, rows given in Python included. Returns the folders of the records, which are below
    `out`, as is the page that compares them. resume: go on with the sweep that is there. Raises UserError: before the
    first run where one is refused, and after the last where some have failed, `RunsFailed`, whose `records` are the
    folders of the others.
    """
    in_python, meant, alternatives = python_values(run), {}, []
    for name, options in vary.items():
        if key := next(
            (key for key in in_python if f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.")), ""
        ):
            raise UserError(f"{key} is a Python value here, and cannot be varied.", location=name)
        if name == "out":
            raise UserError("a sweep names the folders of its runs itself.", location=name)
        listed = [options] if isinstance(options, str | Mapping) or not isinstance(options, Iterable) else [*options]
        if not listed:
            raise UserError("there is no value to take.", location=name)
        words = {f"{name}={_shown(value)}": plain(value, name) for value in listed}
        meant |= words
        alternatives.append([*words])
    tree = tree_of(with_values(run, {name: getattr(Run(), name) for name in in_python if "." not in name}))
    base = {key: value for key, value in tree.items() if value is not None}
    variants = [each._replace(run=with_values(each.run, in_python)) for each in combined(base, alternatives, meant)]
    return train_all(variants, Path(out), resume=resume)


def _shown(value: object) -> str:
    """A value in the name of a folder."""
    return value if isinstance(value, str) else repr(value)


def train_all(variants: Sequence[Variant], out: Path, *, resume: bool = False) -> list[Path]:
    """Do every run below `out` and write `out`/compare.html; returns the folders of the records.

    Rows are read and tokenized once. resume: go on with what is there, finished runs included. A run that fails ends no
    other: the page names it, and RunsFailed is raised at the end. Raises UserError.
    """
    load, folders = cached_loader(), [out / variant.folder for variant in variants]
    with process_group() as dist, signals.listening(), default_progress() if dist.first else events.silence():
        if dist.first:
            assert_sweep_writable(out, folders, resume=resume)
        with signals.interruptible():
            for variant in variants:  # a run that is refused is refused before the first
                run = resolve(variant.run)
                if not isinstance(run.model.path, str):
                    message = "each run would begin from the model that the one before has tuned."
                    raise UserError(message, location="model.path", hint="Name it, so that each run loads it anew.")
                if run.rollout is None:
                    match_rows(run, load(run))
                else:
                    functions = functions_of(scoring_tables(run))
                    preview_tasks(run, run.rollout, read_rows(run.data, columns_of(functions)), functions)
        failed: dict[Path, UserError] = {}
        for number, (variant, folder) in enumerate(zip(variants, folders, strict=True), 1):
            if stop := signals.agreed(dist):
                raise signals.Stopped(stop)
            without = f" (it has no {', '.join(variant.lacks)})" if variant.lacks else ""
            emit(Note(f"run {number} of {len(variants)}: {folder.name}{without}"))
            try:
                train(replace(variant.run, out=str(folder)), resume=resume, load=load)
            except Exception as error:
                failed[folder] = _failure(error, dist)
                emit(Note(f"{folder.name} failed: {failed[folder]}"))
        records = [folder for folder in folders if folder not in failed]
        if dist.first and records:
            why = {folder.name: str(error) for folder, error in failed.items()}
            files.write(out / SWEEP_PAGE, page([Record.open(path) for path in records], why))
        if failed:
            raise RunsFailed(failed, records)
    return records


class RunsFailed(UserError):
    """Some runs of a sweep have failed, each of which it names with why; its code is the first one's.

    records: folders of the others, which came to their end.
    """

    def __init__(self, failed: Mapping[Path, UserError], records: Sequence[Path]) -> None:
        self.records = list(records)
        message = f"{len(failed)} of {len(failed) + len(records)} runs failed; --resume takes them up again."
        problems = [changed(problem, location=f"{folder.name}: {problem.location}".removesuffix(": "))
                    for folder, error in failed.items() for problem in error.problems]  # fmt: skip
        super().__init__([Problem(message), *problems], code=next(iter(failed.values())).code)


def _failure(error: Exception, dist: Distributed) -> UserError:
    """Why one run failed, without what it had in memory. Raises the error where it ends the whole sweep: a stop, a bug,
    and of several ranks what not all of them have met."""
    if is_out_of_memory(error):
        error = UserError("memory ran out.", hint="Lower batch.tokens or data.max_tokens.", code=IO)
    elsewhere = isinstance(error, signals.Stopped | PeerRankError)
    if not isinstance(error, UserError) or elsewhere or (dist.world_size > 1 and error.code != NON_FINITE):
        raise error
    return UserError(error.problems, code=error.code)
