"""The verbs that have no module of their own, and what all share. What needs torch or a page's library is imported
where it is used. The words of a command are at most one configuration file, and keys that differ from it, such as
`optim.lr=1e-6`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from preftune import files
from preftune.config import explain
from preftune.config.inputs import refuse_inside, refuse_missing
from preftune.config.load import load, parse
from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.config.vary import combinations
from preftune.errors import UserError, nearest
from preftune.events import Note, emit
from preftune.record.output import PAGE, assert_replaceable
from preftune.record.parse import RUN_FILE
from preftune.record.writer import SWEEP_PAGE, assert_sweep_writable, assert_writable
from preftune.trust import refuse_unnamed

OUT = "out="
Flag = Annotated[bool, Parameter(negative="")]


def file_of(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The configuration file, if the command names one or a run that has one, and the words that change it. Raises
    UserError."""
    named = [word for word in words if "=" not in word]
    if len(named) > 1:
        hint = "Name one file, and then keys, such as optim.lr=1e-6."
        raise UserError(f'"{named[1]}" is neither a flag nor key=value.', hint=hint)
    file = named[0] if named else None
    if file is not None and (Path(file) / RUN_FILE).is_file():
        file = str(Path(file) / RUN_FILE)
    return file, [word for word in words if "=" in word]


def run_of(words: Sequence[str], *, model: bool = True) -> Run:
    """The run that the words describe. model: whether it has to name a model. Raises UserError."""
    run = resolve(load(*file_of(words)))
    if model:
        refuse_unnamed(run.model.path, "model.path")
    return run


@contextmanager
def at_work(note: str = "loading torch and transformers") -> Iterator[None]:
    """Show on stderr what goes on in this block, which begins with imports that take a while."""
    from preftune.record.terminal import terminal

    with terminal():
        emit(Note(note))
        yield


def train(*words: str, resume: Flag = False, force: Flag = False, allow_change: str = "") -> None:
    """Tune a model.

    `preftune train run.toml [key=value ...]`

    On several GPUs, or processes of any kind: `torchrun --standalone --nproc-per-node N -m preftune train run.toml`

    Parameters
    ----------
    words
        A configuration file or a run's folder, and keys that differ from it.
    resume
        Go on with the run in the folder `out`, to the same bits; where there is none, start one. Without any other
        word than `out` the run's own configuration is taken.
    force
        Replace the run that is in the folder `out`, of which nothing is read: not before rows and models have been
        read, checked and scored, so that a command with a mistake in it deletes nothing.
    allow_change
        Keys, separated by commas, in which a resumed run may differ.
    """
    folder = Path(next((word.partition("=")[2] for word in words if word.startswith("out=")), "run")).expanduser()
    says_more = any("=" not in word or word.startswith("model.path=") for word in words)
    if resume and not says_more and (folder / RUN_FILE).is_file():
        words = (str(folder), *words)  # the run knows what it was told
    run = run_of(words)
    refuse_missing(run)
    if "RANK" not in os.environ:  # a folder that cannot be used is refused before torch is imported
        assert_writable(Path(run.out).expanduser(), resume=resume, force=force)
        if force:
            refuse_inside(run, Path(run.out))
    with at_work():
        from preftune.run.train import train

        out = train(run, resume=resume, force=force, allow_change=[key for key in allow_change.split(",") if key])
    from preftune.cli.view import show_run
    from preftune.distributed import current

    if current().first:
        show_run(out)


def sweep(*words: str, out: Path | None = None, resume: Flag = False) -> None:
    """Train once for each combination of keys.

    `preftune sweep run.toml objective=dpo,ipo objective.beta=0.05,0.1`

    Where an objective lacks a key, its runs leave that key out. All runs share one reference store, and one page
    compares them. A run that fails does not end the others: the page names it, and the exit code is its code.

    Parameters
    ----------
    words
        A configuration file, and keys with one value or several, separated by commas.
    out
        Folder for the runs and for compare.html, also written out=FOLDER; by default sweep.
    resume
        Go on with the sweep that is in the folder.
    """
    file, keys = file_of([word for word in words if not word.startswith(OUT)])
    out = _one_folder(out, [word.removeprefix(OUT) for word in words if word.startswith(OUT)])
    runs = combinations(parse(Path(file)) if file else {}, keys)
    refuse_missing(*(variant.run for variant in runs))
    if "RANK" not in os.environ:
        assert_sweep_writable(out, [out / variant.folder for variant in runs], resume=resume)
    with at_work(f"{len(runs)} runs; loading torch and transformers"):
        from preftune.run.sweep import RunsFailed, train_all

        failure: RunsFailed | None = None
        try:
            folders = train_all(runs, out, resume=resume)
        except RunsFailed as error:
            folders, failure = error.records, error
    from preftune.cli.view import show_sweep
    from preftune.distributed import current

    if current().first and folders:
        show_sweep(folders)
        print(out / SWEEP_PAGE)
    if failure is not None:
        raise failure


def _one_folder(out: Path | None, named: Sequence[str]) -> Path:
    """The folder of a sweep, named by the flag or by a key. Raises UserError where there are several."""
    folders = {Path(name).expanduser() for names in named for name in names.split(",")} | ({out} if out else set())
    if len(folders) > 1:
        raise UserError(f"{' and '.join(sorted(map(str, folders)))} are named.", location="out",
                        hint="Name the one folder that is to hold all runs.")  # fmt: skip
    return next(iter(folders), Path("sweep"))


def export(
    adapter: str,
    into: Path,
    *,
    step: int | None = None,
    merge: bool = True,
    weights: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Write an adapter and its base as one model without peft, or a checkpoint of a run as a model.

    `preftune export RUN merged`

    `preftune export RUN early --step 300`

    Parameters
    ----------
    adapter
        The record of a run with [adapter], its `model` folder, or any other folder or hub name of an adapter.
    into
        Folder to write.
    step
        Of a run with checkpoints: write the model, or the adapter, as it was after so many steps.
    merge
        What it does, and all that it does: a run has written its adapter already.
    weights
        Type of the merged weights; the sum is made in float32, and the difference is told.
    """
    if step is not None:
        with at_work():
            from preftune.run.export import checkpoint_as_model

            checkpoint_as_model(Path(adapter), step, into)
        print(into)
        return
    if not merge:
        raise UserError("the adapter is written already, in the layout of peft.", location=adapter,
                        hint="Without --no-merge it is made one model with its base.")  # fmt: skip
    with at_work():
        from preftune.run.export import merge as merged

        off = merged(adapter, into, weights)
    print(f"{into}: off base and adapter by {off.mean:.1e} {off.unit} on average, {off.worst:.1e} at worst")
    if off.quantized:
        print(f"  and off the model that was tuned, whose base is in {off.quantized}, by {off.off_quantized:.1e}")


def report(*records: Path, out: Path | None = None) -> None:
    """Write the page of a record, or one page that compares several.

    `preftune report RUN [RUN ...]`

    Parameters
    ----------
    records
        Run folders.
    out
        File to write; by default report.html in the run folder, or compare.html in this folder for several. It replaces
        an earlier page, and no other file.
    """
    from preftune.record.reader import Record
    from preftune.report import page

    if not records:
        raise UserError("the command names no run folder.", hint="Write for instance: preftune report run")
    path = out or (records[0] / "report.html" if len(records) == 1 else Path("compare.html"))
    assert_replaceable(path, PAGE)
    files.write(path, page([Record.open(record) for record in records]))
    print(path)


def keys(*words: str, form: Annotated[Literal["text", "markdown", "schema"], Parameter(name="--as")] = "text") -> None:
    """Print every key of a run with its type, default, bound and meaning.

    `preftune keys [objective ...]`

    Parameters
    ----------
    words
        Print only keys that begin with one of these.
    form
        text; markdown, as in the docs; or schema, a JSON schema for editors.
    """
    if form == "schema":
        print(json.dumps(explain.schema(), indent=2))
        return
    every_key = explain.keys()
    chosen = [key for key in every_key if not words or key.name.startswith(tuple(words)) or key.choice in words]
    if not chosen:
        names = [*{key.name for key in every_key}, *{key.choice for key in every_key}]
        raise UserError(f'no key begins with "{words[0]}".', hint=nearest(words[0], names))
    if form == "markdown":
        print(explain.markdown(chosen))
        return
    from rich.console import Console
    from rich.markup import escape

    console, last = Console(highlight=False, soft_wrap=True), None
    for key in chosen:
        table = (key.table, key.choice)
        if table != last:
            console.print(f"\n[bold]\\[{table[0] or 'run'}][/bold]" + (f" {table[1]}" if table[1] else ""))
            last = table
        facts = ", ".join(filter(None, [key.bounded_type, f"default {key.default}" if key.default else ""]))
        console.print(f"  [cyan]{key.name}[/cyan]  [dim]{escape(facts)}[/dim]\n      {escape(key.meaning)}")
