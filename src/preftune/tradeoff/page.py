"""The comparison as panels of a page: which sentence, which chart and which table each result becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from preftune.report.charts import Chart, Series
from preftune.report.study import Panel, Study
from preftune.tradeoff.results import JUDGED, MODELED, TRUE, Ceiling, Language, Outcome, Results

CURVES = {  # method and what it learned from -> color role of its line over the betas
    ("DPO", JUDGED): "run-1", ("IPO", JUDGED): "run-5", ("KTO", JUDGED): "run-6", ("SimPO", JUDGED): "run-4",
    ("RLOO, linear model", MODELED): "run-3", ("PPO", TRUE): "run-7", ("online DPO, ranks", TRUE): "run-2",
    ("GRPO as published", TRUE): "run-8",
}  # fmt: skip
COLORS = {JUDGED: "run-1", MODELED: "run-3", TRUE: "run-7"}
COURSE_COLORS = ("run-7", "run-3", "run-1", "run-6", "run-2", "run-8")
FURTHEST = 6.5  # nats of KL up to which the ceiling is drawn
OUTCOME_COLUMNS = ("method", "learned from", "beta", "KL, nats", "true reward", "below the best of its KL")
LANGUAGE_COLUMNS = (
    "method",
    "learned from",
    "KL, nats",
    "true reward",
    "below the best of its KL",
    "models",
    "seconds",
)


def study(results: Results) -> Study:
    """The page's content."""
    panels = [_frontier(results), _objectives(results), _courses(results), _explored(results), _shifted(results),
              _weak(results), _noise(results), _settings(results)]  # fmt: skip
    foot = (
        f"Made by preftune in {results.seconds:.0f} seconds of one core: {results.runs} independent runs of a world of "
        "4 prompts and 121 responses, in which every KL, every reward and the best policy are sums over all responses."
    )
    if results.language is not None:
        panels.insert(1, _language(results.language))
        foot += f" The language model took {results.language.seconds:.0f} seconds more."
    return Study("trade-off", "DPO and RLHF under the ceiling that theory gives", _lead(results), panels, foot)


def _lead(results: Results) -> str:
    by_name = {(o.method, o.beta): o for o in results.frontier}

    def gap(name: str) -> str:
        return by_name[name, results.beta].gap.text(3)

    return (
        f"From the same {results.pairs:,} judged pairs a prompt, DPO ends {gap('DPO')} below the best reward that its "
        f"KL allows, RLOO on a reward model of four numbers {gap('RLOO, linear model')}, and the exact optimum of a "
        f"reward model of one number a response {gap('optimum of a table model')}: the class of the reward model "
        f"decides. On the true reward PPO ends {gap('PPO')} below it, RLOO {gap('RLOO')} and online DPO with soft "
        f"labels {gap('online DPO, soft labels')}. ± is half of a 95 % interval over independent runs."
    )


def _rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    return [
        [o.method, o.source, "" if o.beta is None else f"{o.beta:g}", o.kl.text(), o.reward.text(), o.gap.text(3)]
        for o in outcomes
    ]


def _ceiling(ceiling: Sequence[Ceiling], up_to: float) -> Series:
    points = [p for p in ceiling if p.kl <= up_to]
    return Series("The best policy of each KL", "train", [p.kl for p in points], [p.reward for p in points], dash=True)


def _ends(name: str, color: str, outcomes: Sequence[Outcome], text: list[str] | None = None) -> Series:
    """Reward over KL of some outcomes, as dots that are joined, or as points with a text each."""
    style = "dots" if text is None else "points"
    return Series(name, color, [o.kl.value for o in outcomes], [o.reward.value for o in outcomes], style, text=text)


def _frontier(results: Results) -> Panel:
    best_of = [o for o in results.frontier if o.method.startswith("best of") and o.source == TRUE]
    series = [_ceiling(results.ceiling, FURTHEST), *_curves(results, lambda o: (o.kl.value, o.reward.value)),
              _ends("Best of 2 to 64", "muted", best_of)]  # fmt: skip
    look = (
        "One line a method, one dot a beta. On the dashed line nothing is lost; how far right a dot stands is beta's."
    )
    chart = Chart("frontier", "Reward over KL", "true reward", look, "KL from the reference, nats", series)
    distance = Chart("gap", "What is lost at each beta", "reward below the best of that KL",
        "Lower is better. PPO on the true reward loses next to nothing; RLOO, GRPO and online DPO with soft labels are "
        "as near, and are left out here.", "beta",
        _curves(results, lambda o: (o.beta or 0.0, o.gap.value)), floor=True)  # fmt: skip
    text = (
        "Reward against KL from the reference, under the reward that the best policy of each KL has. Methods on the "
        "true reward come near the optimum of their beta, all but two: online DPO on ranks alone, and GRPO as it is "
        "published (scores over the group's deviation, and the KL as a loss). KTO has the exact drift, its best case."
    )
    return Panel("Every method under the ceiling", text, [chart, distance], OUTCOME_COLUMNS, _rows(results.frontier))


def _curves(results: Results, place: Callable[[Outcome], tuple[float, float]]) -> list[Series]:
    """One line a method of CURVES, a dot a beta."""
    series = []
    for (name, source), color in CURVES.items():
        own = [o for o in results.frontier if (o.method, o.source) == (name, source)]
        dots = sorted(place(outcome) for outcome in own)
        label = f"{name}, {source}" if source == TRUE else name
        series.append(Series(label, color, [x for x, _ in dots], [y for _, y in dots], "dots"))
    return series


def _language(world: Language) -> Panel:
    """Every method on a language model, under the ceiling that draws of the reference give."""
    series = [_ceiling(world.ceiling, 1.15 * max(trained.outcome.kl.value for trained in world.trained))]
    for source, color in COLORS.items():
        ends = [trained.outcome for trained in world.trained if trained.outcome.source == source]
        series.append(_ends(f"From {source}", color, ends, [o.method for o in ends]))
    series.append(_ends("Best of 2 to 16", "muted", world.best_of))
    chart = Chart("language", "Reward over KL, a language model", "true reward",
        "Each dot is one run at the same beta. Those that draw stay near the line and differ in where they stop. "
        "Of those on the pairs alone, only DPO does.",
        "KL from the reference, nats", series)  # fmt: skip
    best, scaled = at(world, world.beta), world.beta / world.slope
    text = (
        "A small transformer writes restaurant reviews; their reward is kind words minus harsh words, so what is true "
        "is known here too, and the rest is estimated from draws to prompts that nothing was trained on after SFT. "
        f"Every row is an ordinary run at beta {world.beta:g} on one seed, from {world.pairs:,} judged pairs or "
        f"{world.drawn:,} draws in {world.phases} phases; ± is half of a 95 % interval over draws, not over runs. At "
        f"this beta the best policy has KL {best.kl:.2f} and reward {best.reward:.2f}. The reward model orders "
        f"{world.accuracy:.1%} of new pairs as their judge did, and gives a point of reward {world.slope:.2f}, so to "
        f"what learns from it beta is {scaled:.2f}: a reward model's scale is part of beta."
    )
    return Panel("The methods on a language model", text, [chart], LANGUAGE_COLUMNS, language_rows(world))


def at(world: Language, beta: float) -> Ceiling:
    """The best policy at one of the betas of the ceiling."""
    return next(point for point in world.ceiling if point.beta == beta)


def language_rows(world: Language) -> list[list[str]]:
    """One row a method, as LANGUAGE_COLUMNS says."""
    needs = [(t.outcome, ", ".join(t.models), f"{t.seconds:.0f}") for t in world.trained]
    needs += [(outcome, "reference", "") for outcome in world.best_of]
    return [[o.method, o.source, o.kl.text(), o.reward.text(), o.gap.text(), *need] for o, *need in needs]


def _objectives(results: Results) -> Panel:
    points = _ends("Objectives", "run-1", results.objectives, [o.method for o in results.objectives])
    chart = Chart("objectives", "All objectives on the same pairs", "true reward",
        "Each dot is one objective. The closer to the dashed line, the less of its KL is noise of the pairs.",
        "KL from the reference, nats", [_ceiling(results.ceiling, FURTHEST), points])  # fmt: skip
    text = (
        f"Each objective that pairs serve, at beta {results.beta:g} where its beta is one of nats, with its usual "
        "constants otherwise. odpo, rpo, rebel and dro get the true scores as well. A small gap at a small KL says "
        "little: the ceiling is low there too."
    )
    return Panel("All objectives on the same pairs", text, [chart], OUTCOME_COLUMNS, _rows(results.objectives))


def _courses(results: Results) -> Panel:
    series = [
        Series(c.method, color, [float(p) for p in c.phases], list(c.distance), "dots")
        for c, color in zip(results.courses, COURSE_COLORS, strict=True)
    ]
    chart = Chart("courses", "Distance to the optimum", "KL(pi, pi*), nats",
        "It should fall to 0. Ranks turn back: with certain labels the optimum is at infinity. GRPO as published stays "
        "away, for its KL loss forgets that a token leads to later KL.", "phases", series, floor=True)  # fmt: skip
    rows = [[c.method, *(f"{d:.3f}" for d in c.distance)] for c in results.courses]
    phases = [f"after {p}" for p in results.courses[0].phases]
    text = (
        f"Online at beta {results.beta:g}, on the true reward. Reward minus beta KL is beta times this distance short."
    )
    return Panel("Where each online method stops", text, [chart], ["method", *phases], rows)


def _explored(results: Results) -> Panel:
    text = (
        f"The best answers begin in a way that the reference has in {results.rare_before:.2%} of its answers and the "
        f"best policy in {results.rare_best:.0%}. Who only sees judged pairs hardly finds them, and a reward model "
        "cannot score what it never saw; who draws does find them, slowly."
    )
    rows = []
    for r in results.rare:
        pairs = "" if r.pairs is None else f"{r.pairs:,}"
        rows.append([r.method, pairs, f"{r.share.value:.1%} ± {r.share.half:.1%}", r.gap.text(3)])
    columns = ("method", "pairs a prompt", "answers that begin so", "below the best of its KL")
    return Panel("Exploration", text, (), columns, rows)


def _shifted(results: Results) -> Panel:
    text = (
        "A reward model knows the responses that it was fitted to. On those of the policy that it made it orders fewer "
        "pairs rightly; the table, of one number a response, also promises far more reward than there is. A second "
        "round of pairs from that policy mends more of it than as many from the reference in the mean of the runs, "
        "whose intervals overlap. " + " ".join(
            f"{r.method}: {r.gap.text(2)} below the best of its KL." for r in results.rounds if "table" in r.method
        )
    )  # fmt: skip
    rows = [[s.model, s.right_before.text(3), s.right_after.text(3), s.error_before.text(3), s.error_after.text(3),
             s.claimed.text(), s.true.text()] for s in results.shift]  # fmt: skip
    columns = ("reward model", "right on the reference's pairs", "on the tuned policy's", "calibration error before",
               "after", "gain it claims", "true gain")  # fmt: skip
    return Panel("Distribution shift", text, (), columns, rows)


def _weak(results: Results) -> Panel:
    turns = [turned for turned, _ in results.weak]
    by_method = {ends[0].method: ends for ends in zip(*(outcomes for _, outcomes in results.weak), strict=True)}
    colors = ("muted", "run-1", "run-4", "run-3", "run-7", "train")
    series = [Series(name, color, turns, [o.reward.value for o in ends], "dots")
              for (name, ends), color in zip(by_method.items(), colors, strict=True)]  # fmt: skip
    chart = Chart("weak", "A weak reference", "true reward",
        "All fall with the reference, since all are held to it. RLOO on a model of a weak reference's pairs falls "
        "further behind RLOO on the true reward.", "how far the reference is turned away from the reward",
        series)  # fmt: skip
    text = (
        "The reference is tilted against the reward, and pairs are its own. True reward and KL at beta "
        f"{results.beta:g}; HyPO, which follows a reference less where it ranks wrongly, does not gain from it here."
    )
    rows = [[name, *(f"{o.reward.text()} at KL {o.kl.text()}" for o in ends)] for name, ends in by_method.items()]
    columns = ["method", *(f"turned by {turned:g}" for turned in turns)]
    return Panel("A weak reference", text, [chart], columns, rows)


def _noise(results: Results) -> Panel:
    names = list(results.noise[0][1])
    shares = [share for share, _ in results.noise]
    series = [
        Series(name, color, shares, [of[name].value for _, of in results.noise], "dots")
        for name, color in zip(names, ("run-1", "run-5", "run-3"), strict=True)
    ]
    chart = Chart("noise", "Wrong labels", "slope of the implied reward on the true one",
        "1 is right. DPO shrinks with the noise, cDPO more so; the robust form does not, and spreads widely.",
        "share of labels turned round", series, floor=True)  # fmt: skip
    rows = [[name, *(of[name].text() for _, of in results.noise)] for name in names]
    text = "cDPO and robust DPO are told the true share of wrong labels."
    return Panel("Wrong labels", text, [chart], ["objective", *(f"{share:.0%} wrong" for share in shares)], rows)


def _settings(results: Results) -> Panel:
    spreads = "; ".join(
        f"{s.method} {s.best:.3f} to {s.worst:.3f}, median {s.median:.3f}, over {s.settings} settings"
        for s in results.sensitivity
    )
    text = (
        "Models held at once, keys of the objective, pairs judged and responses drawn, counted. How much the settings "
        f"matter: the gap over rates of 1/4 to 4 times the usual, epochs or steps, and the values' rate: {spreads}."
    )
    rows = [[c.method, ", ".join(c.models), len(c.models), c.keys, c.pairs, c.draws, c.updates] for c in results.costs]
    columns = ("method", "models", "held", "keys", "pairs judged", "responses drawn", "updates")
    return Panel("What each needs", text, (), columns, rows)
