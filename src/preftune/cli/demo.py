"""preftune demo."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from preftune.cli.verbs import at_work

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from preftune.demo.comparison import Comparison


def demo(*, out: str = "demo", seed: int = 0) -> None:
    """Tune a small model offline by DPO and by RLHF, in a world whose reward is known, and show what changed.

    It takes under two minutes of a quiet machine.

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
    online = f"preftune train {folder / 'rloo.toml'} objective=ppo out={folder / 'mine'}"
    took = f"{time.monotonic() - began:.0f} seconds in all"
    console.print(
        f"\n{took}. Run it again with your own changes:\n  {again}\n  {online}\n\n"
        f"pages  {folder / 'dpo' / 'report.html'}\n       {folder / 'rloo' / 'report.html'}",
        markup=False,
        soft_wrap=True,
    )


def _stages(folder: Path, seed: int, console: Console) -> Comparison:
    """Run every stage after a title and a sentence that announce it."""
    from preftune.record.terminal import terminal

    def announce(number: int, title: str, text: str) -> None:
        console.print(f"\n[bold]{number}  {title}[/bold]\n{text}", soft_wrap=True)

    def tune(number: int, title: str, name: str, text: str) -> None:
        announce(number, title, f"preftune train {folder / name}   {text}")
        with terminal():
            stages.tune(folder / name)

    world_text = "A model that knows nothing, and restaurant reviews for it to learn from. The true reward of a review "
    announce(1, "A world", f"{world_text}is its kind words minus its harsh words.")
    with at_work():
        import torch

        from preftune.demo import readable, stages

        torch.set_num_threads(1)  # with a model so small, waiting for other threads takes longer than the work
        stages.make(folder, seed)
    words = f"kind   {', '.join(readable.KIND)}\nharsh  {', '.join(readable.HARSH)}"
    console.print(words, style="dim", soft_wrap=True)
    tune(2, "SFT", "sft.toml", "The model learns to write such reviews.")
    announce(3, "Preferences", "It writes; a judge prefers one of two reviews, mostly the one with more reward.")
    with terminal():
        stages.ask(folder, seed)
    tune(4, "DPO", "dpo.toml", "DPO on those pairs. It never sees the reward.")
    tune(5, "Reward model", "reward.toml", "The same pairs, learned as a reward.")
    tune(6, "RLOO", "rloo.toml", "The model writes, the reward model scores.")
    announce(7, "What changed", "The reference is the model of stage 2. Brackets hold 95 % intervals.")
    with terminal():
        return stages.measure(folder, seed)


def _print(console: Console, comparison: Comparison) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = [("", *comparison.models), *((line.name, *line.values) for line in comparison.lines)]
    widths = [3 + max(map(len, texts)) for texts in zip(*table, strict=True)]

    def print_line(texts: tuple[str, ...], style: str) -> None:
        name, *values = (text.ljust(width) for text, width in zip(texts, widths, strict=True))
        console.print(Text.assemble((name, style), "".join(values).rstrip()), soft_wrap=True)

    console.print()
    print_line(table[0], "bold")
    for line, texts in zip(comparison.lines, table[1:], strict=True):
        print_line(texts, "bold cyan")
        console.print(Padding(Text(line.meaning, style="dim"), (0, 0, 0, 3)))
    for sample in comparison.samples:
        console.print(Text.assemble("\n", (sample.prompt, "bold")))
        sides = Table.grid(padding=(0, 3, 0, 0))  # wrapped text continues below its beginning
        for model, text in zip(comparison.models, sample.texts, strict=True):
            sides.add_row(f"   {model}", Text(text))
        console.print(sides)
