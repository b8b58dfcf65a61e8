"""preftune trade-off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preftune.cli.verbs import at_work
from preftune.record import output
from preftune.record.output import assert_replaceable

if TYPE_CHECKING:
    from preftune.tradeoff.results import Results

PAGE, FIGURES = "trade-off.html", "results.json"
WIDTH = 96  # below which a figure would part from its interval


def trade_off(*, out: Path = Path("trade-off"), offline: bool = False) -> None:
    """Measure DPO, RLHF and what lies between under the ceiling that theory gives, in two worlds of known reward.

    One can be listed, so nothing is estimated but the spread between independent runs: every objective of pairs, reward
    models, RLOO, PPO, GRPO, online DPO and best of n, then exploration, distribution shift, weak references, wrong
    labels and settings, in under two minutes. The other is a language model that writes reviews, in about four more.

    Parameters
    ----------
    out
        Folder for the page and for its figures; those that are there are made again, and no other file is replaced.
    offline
        Leave the language model out.
    """
    assert_replaceable(out / PAGE, output.STUDY)
    assert_replaceable(out / FIGURES, output.FIGURES)
    with at_work("loading torch"):
        import msgspec
        import torch

        from preftune import files
        from preftune.report.study import study_page
        from preftune.tradeoff import language, panels
        from preftune.tradeoff.page import study

        torch.set_num_threads(1)  # with tables so small, waiting for other threads takes longer than the work
        results = panels.compare()
        if not offline:
            results = msgspec.structs.replace(results, language=language.compare_language())
        files.write_json(out / FIGURES, msgspec.to_builtins(results))
        files.write(out / PAGE, study_page(study(results)))
    _print(results)
    seconds = results.seconds + (results.language.seconds if results.language else 0.0)
    print(f"\n{seconds:.0f} seconds of one core\n\npage  {out / PAGE}")


def _print(results: Results) -> None:
    from preftune.tradeoff.page import LANGUAGE_COLUMNS, OUTCOME_COLUMNS, at, language_rows

    best = next(p for p in results.ceiling if p.beta == results.beta)
    columns = [column for column in OUTCOME_COLUMNS if column != "beta"]
    rows = [
        [o.method, o.source, o.kl.text(), o.reward.text(), o.gap.text(3)]
        for o in results.frontier
        if o.beta in (results.beta, None)
    ]
    _print_table(f"beta {results.beta:g}: the best policy has KL {best.kl:.2f} and reward {best.reward:.2f}",
                 columns, rows)  # fmt: skip
    if (world := results.language) is not None:
        best = at(world, world.beta)
        title = f"a language model, beta {world.beta:g}: the best policy has KL {best.kl:.2f}, reward {best.reward:.2f}"
        left_out = LANGUAGE_COLUMNS.index("models")  # which the page has room for
        _print_table(title, LANGUAGE_COLUMNS[:left_out], [row[:left_out] for row in language_rows(world)])


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        left = column in ("method", "learned from")
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print()
    console.print(table)
