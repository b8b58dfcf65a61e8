"""preftune trade-off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from preftune.events import Note, emit

if TYPE_CHECKING:
    from preftune.tradeoff.results import Results

PAGE, FIGURES = "trade-off.html", "results.json"
WIDTH = 96  # below which a figure would part from its interval


def trade_off(*, out: Path = Path("trade-off")) -> None:
    """Measure DPO, RLHF and what lies between under the ceiling that theory gives, in a world that can be listed.

    Offline, in under two minutes: every objective of pairs, reward models, RLOO, PPO, GRPO, online DPO and best of n,
    then exploration, distribution shift, weak references, wrong labels and settings. Nothing is estimated but the
    spread between independent runs.

    Parameters
    ----------
    out
        Folder for the page and for its figures; those that are there are made again.
    """
    from preftune.record.terminal import terminal

    with terminal():
        emit(Note("loading torch"))
        import msgspec
        import torch

        from preftune import files
        from preftune.report.study import study_page
        from preftune.tradeoff.page import study
        from preftune.tradeoff.panels import compare

        torch.set_num_threads(1)  # with tables so small, waiting for other threads takes longer than the work
        results = compare()
        files.make(out)
        files.write_json(out / FIGURES, msgspec.to_builtins(results))
        files.write(out / PAGE, study_page(study(results)))
    _print(results)
    print(f"\n{results.seconds:.0f} seconds of one core\n\npage  {out / PAGE}")


def _print(results: Results) -> None:
    from rich.console import Console
    from rich.table import Table

    from preftune.tradeoff.page import OUTCOME_COLUMNS

    best = next(p for p in results.ceiling if p.beta == results.beta)
    title = f"beta {results.beta:g}: the best policy has KL {best.kl:.2f} and reward {best.reward:.2f}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    columns = [column for column in OUTCOME_COLUMNS if column != "beta"]
    for column in columns:
        left = column in ("method", "learned from")
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    for o in results.frontier:
        if o.beta in (results.beta, None):
            table.add_row(o.method, o.source, o.kl.text(), o.reward.text(), o.gap.text(3))
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)
