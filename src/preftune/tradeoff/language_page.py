"""The readable world as a panel of the page, and as rows of the terminal."""

from __future__ import annotations

from preftune.report.charts import Chart, Series
from preftune.report.study import Panel
from preftune.tradeoff.results import Ceiling, Language, Outcome

COLUMNS = ("method", "learned from", "KL, nats", "true reward", "below the best of its KL", "models", "seconds")
COLORS = {"judged pairs": "run-1", "reward model": "run-3", "true reward": "run-7"}


def language_panel(world: Language) -> Panel:
    """Every method on a language model, under the ceiling that draws of the reference give."""
    furthest = 1.15 * max(trained.outcome.kl.value for trained in world.trained)
    points = [p for p in world.ceiling if p.kl <= furthest]
    series = [Series("The best policy of each KL", "train", [p.kl for p in points], [p.reward for p in points],
                     dash=True)]  # fmt: skip
    for source, color in COLORS.items():
        ends = [trained.outcome for trained in world.trained if trained.outcome.source == source]
        series.append(Series(f"From {source}", color, [o.kl.value for o in ends], [o.reward.value for o in ends],
                             "points", text=[o.method for o in ends]))  # fmt: skip
    series.append(Series("Best of 2 to 16", "muted", [o.kl.value for o in world.best_of],
                         [o.reward.value for o in world.best_of], "dots"))  # fmt: skip
    chart = Chart("language", "Reward over KL, a language model", "true reward",
        "Each dot is one run at the same beta. Those that draw stay near the line and differ in where they stop. "
        "Of those on the pairs alone, only DPO does.",
        "KL from the reference, nats", series)  # fmt: skip
    return Panel("The methods on a language model", language_text(world), [chart], COLUMNS, language_rows(world))


def language_text(world: Language) -> str:
    """What the panel says above its chart."""
    best, scaled = at(world, world.beta), world.beta / world.slope
    return (
        "A small transformer writes restaurant reviews; their reward is kind words minus harsh words, so what is true "
        "is known here too, and the rest is estimated from draws to prompts that nothing was trained on after SFT. "
        f"Every row is an ordinary run at beta {world.beta:g} on one seed, from {world.pairs:,} judged pairs or "
        f"{world.drawn:,} draws in {world.phases} phases; ± is half of a 95 % interval over draws, not over runs. At "
        f"this beta the best policy has KL {best.kl:.2f} and reward {best.reward:.2f}. The reward model orders "
        f"{world.accuracy:.1%} of new pairs as their judge did, and gives a point of reward {world.slope:.2f}, so to "
        f"what learns from it beta is {scaled:.2f}: a reward model's scale is part of beta."
    )


def at(world: Language, beta: float) -> Ceiling:
    """The best policy at one of the betas of the ceiling."""
    return next(point for point in world.ceiling if point.beta == beta)


def language_rows(world: Language) -> list[list[str]]:
    """One row a method, as COLUMNS says."""
    rows = [
        [*_outcome(t.outcome), ", ".join(t.models), f"{t.seconds:.0f}"]
        for t in world.trained
    ]  # fmt: skip
    return [*rows, *([*_outcome(o), "reference", ""] for o in world.best_of)]


def _outcome(outcome: Outcome) -> list[str]:
    return [outcome.method, outcome.source, outcome.kl.text(), outcome.reward.text(), outcome.gap.text()]
