"""preftune demo."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from preftune.demo.measure import Comparison


def demo(*, out: str = "demo", seed: int = 0) -> None:
    """Tune a small model offline in about a minute, in a world whose reward is known, and say what changed.

    Parameters
    ----------
    out
        Folder for everything that the demo makes; made again if it is there.
    seed
        Decides the world's texts, the judge's words and the model's start.
    """
    from pathlib import Path

    from rich.console import Console

    place, began = Path(out).expanduser(), time.monotonic()
    found = _stages(place, seed, Console(highlight=False, stderr=True))
    console = Console(highlight=False)
    _print(console, found)
    again = f"preftune train {place / 'dpo.toml'} objective.beta=0.1 out={place / 'mine'}"
    console.print(
        f"\n{time.monotonic() - began:.0f} seconds in all. Do it again with your own changes:\n  {again}\n\n"
        f"page  {place / 'dpo' / 'report.html'}",
        markup=False,
        soft_wrap=True,
    )


def _stages(place: Path, seed: int, told: Console) -> Comparison:
    """Every stage, each announced by a title and a sentence."""
    from preftune.cli.progress import progress

    def stage(number: int, title: str, text: str) -> None:
        told.print(f"\n[bold]{number}  {title}[/bold]\n{text}", soft_wrap=True)

    world_text = "A model that knows nothing, and restaurant reviews for it to learn from. The true reward of a review "
    stage(1, "A world", f"{world_text}is its kind words minus its harsh words.")
    with progress() as show:
        show("loading torch and transformers")
        import torch

        from preftune.demo import readable
        from preftune.demo import stages as world

        torch.set_num_threads(1)  # for a model so small, waiting for other threads takes longer than the work
        world.make(place, seed)
    told.print(f"kind   {', '.join(readable.KIND)}\nharsh  {', '.join(readable.HARSH)}", style="dim", soft_wrap=True)
    stage(2, "Imitation", f"preftune train {place / 'sft.toml'}   The model learns to write such reviews.")
    with progress() as show:
        world.tune(place / "sft.toml", show)
    stage(3, "Preferences", "It writes; a judge prefers one of two reviews, mostly the one of more reward.")
    with progress() as show:
        world.ask(place, seed, show)
    stage(4, "Tuning", f"preftune train {place / 'dpo.toml'}   DPO on those pairs. It never sees the reward.")
    with progress() as show:
        world.tune(place / "dpo.toml", show)
    stage(5, "What changed", "The reference is the model of stage 2. In [] are 95 % intervals.")
    with progress() as show:
        return world.measure(place, seed, show)


def _print(console: Console, found: Comparison) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    widths = [
        max(len(text) for text in column) + 3 for column in zip(*((x.name, x.before) for x in found.lines), strict=True)
    ]

    def put(name: str, before: str, after: str, style: str) -> None:
        console.print(Text.assemble((name.ljust(widths[0]), style), before.ljust(widths[1]), after), soft_wrap=True)

    console.print()
    put("", "before", "after", "bold")
    for line in found.lines:
        put(line.name, line.before, line.after, "bold cyan")
        console.print(Padding(Text(line.meaning, style="dim"), (0, 0, 0, 3)))
    for sample in found.samples:
        console.print(Text.assemble("\n", (sample.prompt, "bold")))
        sides = Table.grid(padding=(0, 3, 0, 0))  # what is wrapped goes on below its beginning
        sides.add_row("   before", Text(sample.before))
        sides.add_row("   after", Text(sample.after))
        console.print(sides)
