"""The table of `preftune check` that says what fits on which GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from preftune.model.fits import LONGEST_ROW, Fit
from preftune.run.fits import WhatFits

HEAD = ("GPUs", "what is trained", "shard", "GiB a GPU", "tokens a pack", "longest row")
GIB = 2**30


def fits(table: WhatFits) -> Text:
    """A line for each way on each number of GPUs, and what to do where the run's own does not fit."""
    own = table.fits[0].way
    lines = [HEAD, *(_line(fit, own=fit.way is own) for fit in table.fits)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    text = Text("\nwhat fits\n", style="bold")
    text.append(f"{table.parameters:,} weights on GPUs of {table.gpus.memory / GIB:g} GiB", style="not bold")
    text.append(f", packs of at least {table.longest:,} tokens\n", style="not bold")
    last = ""
    for line in lines:
        count, name, *others = line
        cells = [("" if count == last else count).rjust(widths[0]), name.ljust(widths[1])]
        cells += [other.rjust(width) for other, width in zip(others, widths[2:], strict=True)]
        text.append("  ".join(cells).rstrip() + "\n", style="bold" if line is HEAD else "not bold")
        last = count
    return text.append(_verdict(table), style="not bold")


def _line(fit: Fit, *, own: bool) -> Sequence[str]:
    setup, most = fit.setup, fit.longest_row >= LONGEST_ROW
    tokens = f"{fit.tokens:,}{' r' if setup.checkpointing else '  '}" if fit.tokens else "does not fit  "
    row = f"{fit.longest_row:,}{'+' if most else ' '}" if fit.longest_row else "- "
    return (
        str(setup.gpus), f"{'>' if own else ' '} {fit.way.name}", setup.shard, f"{fit.bytes / GIB:.1f}", tokens, row
    )  # fmt: skip


def _verdict(table: WhatFits) -> str:
    """What the marks mean, and what to do."""
    own = [fit for fit in table.fits if fit.way is table.fits[0].way]
    lines = ["> marks this run, r recomputed activations (model.checkpointing = true), as for the longest row.",
             "These are estimates from shapes alone; no weights were read."]  # fmt: skip
    count, memory = table.gpus.count, f"{table.gpus.memory / GIB:g} GiB"
    where = f"{count} GPU{'s' if count > 1 else ''} of {memory}"
    if own[-1].tokens:
        return "\n".join([*lines, f"This run fits on {where}, {own[-1].bytes / GIB:.1f} GiB of each."])
    lines.append(f"This run does not fit on {where}: it needs {own[-1].bytes / GIB:.1f} GiB of each.")
    if table.remedy is None:
        return "\n".join([*lines, "Nor does any other way: take more or larger GPUs, or a smaller model."])
    words = [*table.remedy.way.words]
    if table.remedy.setup.checkpointing and "model.checkpointing=true" not in words:
        words.append("model.checkpointing=true")
    needs = f"{table.remedy.bytes / GIB:.1f} GiB of each, packs of {table.remedy.tokens:,} tokens"
    return "\n".join([*lines, f"Change first: {' '.join(words)} ({needs})."])
