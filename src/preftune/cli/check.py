"""preftune check. What needs torch or a page's library is imported where it is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from preftune.cli import view
from preftune.cli.verbs import run_of
from preftune.config.run import scoring_tables
from preftune.errors import UserError, printable
from preftune.rollout.functions import columns_of, functions_of
from preftune.rows.asked import NOTHING
from preftune.rows.split import Rows, read_rows
from preftune.trust import refuse_unnamed

if TYPE_CHECKING:
    from preftune.config.run import Run
    from preftune.rollout.functions import Function
    from preftune.run.fits import Gpus

MOST_GPUS, MOST_MEMORY = 1024, 4096.0  # more of either is a slip


def check(*words: str, gpus: float | None = None, gpu_memory: float | None = None) -> None:
    """Read all data as training would, say what fits on which GPUs, and train nothing.

    `preftune check run.toml [key=value ...]`

    Without model.path, it reads and counts rows; with it, it also tokenizes them, shows three with the tokens that
    are scored, and works out steps, lengths and memory. Of a run that draws it shows three prompts, the phases and
    the steps, and it asks whether the rewards can be used.

    `preftune check model.path=my-model --gpus 8 --gpu-memory 80`

    With GPUs, also ones that are not here, it says which ways to train fit on how many of them, from the model's
    config.json alone; it needs no rows for that, and takes their lengths into account where it has them.

    Parameters
    ----------
    words
        A configuration file, and keys that differ from it.
    gpus
        How many GPUs there are; those of this machine if not given, or 1 where only their memory is.
    gpu_memory
        GiB of each GPU; that of this machine's if not given.
    """
    run = run_of(words, model=False)
    asked = gpus is not None or gpu_memory is not None
    if asked:
        _refuse_absurd(gpus, gpu_memory)
        refuse_unnamed(run.model.path, "model.path")
    console, longest = Console(highlight=False, soft_wrap=True), 0
    if run.data.train or not asked:
        longest = _check_rows(run, console)
    if not run.model.path:
        return
    assert isinstance(run.model.path, str)  # words hold no loaded model
    from preftune.cli.view_fits import fits
    from preftune.run.fits import what_fits

    if cards := _gpus(None if gpus is None else int(gpus), gpu_memory):
        with console.status("reading the config"):
            from preftune.model.load import load_config

            config = load_config(run.model.path, run.model.revision, "model.path")
            table = what_fits(run, config, cards, longest)
        console.print(fits(table))


def _check_rows(run: Run, console: Console) -> int:
    """Show what the rows are; returns the tokens of the longest, 0 without a model."""
    functions = functions_of(scoring_tables(run)) if run.rollout is not None else ()
    rows = read_rows(run.data, columns_of(functions) if run.rollout is not None else NOTHING)
    for part, reading in rows.readings.items():
        console.print(view.read(part, reading))
    if not run.model.path:
        console.print(view.kinds(rows.train))
        for row in rows.train[:3]:
            console.print(view.row(row))
        console.print("[dim]Without model.path, rows are not tokenized.[/dim]")
        return 0
    return _check_tasks(run, rows, functions, console) if run.rollout is not None else _check_groups(run, rows, console)


def _check_tasks(run: Run, rows: Rows, functions: Sequence[Function | None], console: Console) -> int:
    assert run.rollout is not None
    with console.status("loading the tokenizer"):
        from preftune.run.preview import preview_tasks

        tasks = preview_tasks(run, run.rollout, rows, functions)
    console.print(view.drawing(tasks))
    prompt = max((len(task.ids) for task in [*tasks.tasks.train, *tasks.tasks.held_out]), default=0)
    return prompt + run.rollout.responses * run.rollout.max_tokens


def _check_groups(run: Run, rows: Rows, console: Console) -> int:
    with console.status("loading the tokenizer"):
        from preftune.run.preview import preview

        planned = preview(run, rows)
    for part, tokenized in planned.dataset.tokenized.items():
        console.print(view.tokenized(part, tokenized))
    for group in planned.dataset.train[:3]:
        console.print(view.group(group, planned.dataset.tokenizer))
    for sentence, _ in planned.notes.values():
        console.print(printable(sentence), markup=False)
    console.print(view.lengths(planned.dataset.account))
    console.print(view.work(planned))
    return max(group.tokens for group in [*planned.dataset.train, *planned.dataset.held_out])


def _refuse_absurd(gpus: float | None, gpu_memory: float | None) -> None:
    """Raise UserError where a flag makes no sense."""
    if gpus is not None and gpus not in range(1, MOST_GPUS + 1):  # a float: else 1.5 would come here as 2
        raise UserError(f"{gpus:g} GPUs make no sense.", location="--gpus", hint=f"Give 1 to {MOST_GPUS}.")
    if gpu_memory is not None and not (math.isfinite(gpu_memory) and 1 <= gpu_memory <= MOST_MEMORY):
        hint = f"It is in GiB: give 1 to {MOST_MEMORY:g}, such as 24 or 80."
        raise UserError(f"{gpu_memory:g} GiB make no GPU.", location="--gpu-memory", hint=hint)


def _gpus(count: int | None, gibibytes: float | None) -> Gpus | None:
    """The GPUs that were asked about, or those of this machine; None where there are none. Raises UserError."""
    import torch

    from preftune.run.fits import Gpus

    here = torch.cuda.device_count()
    if gibibytes is None and not here:
        if count is None:
            return None
        hint = "Add --gpu-memory 24, or whatever theirs is in GiB."
        raise UserError("this machine has no GPU whose memory could be taken.", location="--gpus", hint=hint)
    memory = torch.cuda.get_device_properties(0).total_memory if gibibytes is None else gibibytes * 2**30
    return Gpus(count or (here if gibibytes is None else 1), memory)
