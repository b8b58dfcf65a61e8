"""preftune demo."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from preftune.events import Note, emit

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from preftune.demo.measure import Comparison


def demo(*, out: str = "demo", seed: int = 0) -> None:
    """Tune a small model offline in about a minute, in a world whose reward is known, and show what changed.

    Parameters
    ----------
    out
        Folder for everything that the demo makes; a demo that is there is made again.
    seed
        Decides the texts of the world, the judge's answers and the weights that the model begins with.
    """
    from pathlib import Path

    from rich.console import Console

    folder, began = Path(out).expanduser(), time.monotonic()
    comparison = _stages(folder, seed, Console(highlight=False, stderr=True))
    console = Console(highlight=False)
    _print(console, comparison)
    again = f"preftune train {folder / 'dpo.toml'} objective.beta=0.1 out={folder / 'mine'}"
    console.print(
        f"\n{time.monotonic() - began:.0f} seconds in all. Run it again with your own changes:\n  {again}\n\n"
        f"page  {folder / 'dpo' / 'report.html'}",
        markup=False,
        soft_wrap=True,
    )


def _stages(folder: Path, seed: int, console: Console) -> Comparison:
    """Run every stage after a title and a sentence that announce it."""
    from preftune.record.terminal import terminal

    def announce(number: int, title: str, text: str) -> None:
        console.print(f"\n[bold]{number}  {title}[/bold]\n{text}", soft_wrap=True)

    world_text = "A model that knows nothing, and restaurant reviews for it to learn from. The true reward of a review "
    announce(1, "A world", f"{world_text}is its kind words minus its harsh words.")
    with terminal():
        emit(Note("loading torch and transformers"))
        import torch

        from preftune.demo import readable, stages

        torch.set_num_threads(1)  # with a model so small, waiting for other threads takes longer than the work
        stages.make(folder, seed)
    words = f"kind   {', '.join(readable.KIND)}\nharsh  {', '.join(readable.HARSH)}"
    console.print(words, style="dim", soft_wrap=True)
    announce(2, "SFT", f"preftune train {folder / 'sft.toml'}   The model learns to write such reviews.")
    with terminal():
        stages.tune(folder / "sft.toml")
    announce(3, "Preferences", "It writes; a judge prefers one of two reviews, mostly the one with more reward.")
    with terminal():
        stages.ask(folder, seed)
    announce(4, "Tuning", f"preftune train {folder / 'dpo.toml'}   DPO on those pairs. It never sees the reward.")
    with terminal():
        stages.tune(folder / "dpo.toml")
    announce(5, "What changed", "The reference is the model of stage 2. Brackets hold 95 % intervals.")
    with terminal():
        return stages.measure(folder, seed)


def _print(console: Console, comparison: Comparison) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    widths = [3 + max(map(len, texts)) for texts in zip(*((x.name, x.before) for x in comparison.lines), strict=True)]

    def print_line(name: str, before: str, after: str, style: str) -> None:
        console.print(Text.assemble((name.ljust(widths[0]), style), before.ljust(widths[1]), after), soft_wrap=True)

    console.print()
    print_line("", "before", "after", "bold")
    for line in comparison.lines:
        print_line(line.name, line.before, line.after, "bold cyan")
        console.print(Padding(Text(line.meaning, style="dim"), (0, 0, 0, 3)))
    for sample in comparison.samples:
        console.print(Text.assemble("\n", (sample.prompt, "bold")))
        sides = Table.grid(padding=(0, 3, 0, 0))  # wrapped text continues below its beginning
        sides.add_row("   before", Text(sample.before))
        sides.add_row("   after", Text(sample.after))
        console.print(sides)
