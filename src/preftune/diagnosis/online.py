"""Failures of a run that draws what it learns from: they are measured on the draws themselves."""

from __future__ import annotations

import itertools
import math

from preftune.diagnosis.finding import Finding, number, share
from preftune.record.reader import Record
from preftune.record.schema import numbered
from preftune.record.statistics import mean

FEW = 4  # phases below which a course cannot be told
SHORT = 0.1  # of the way from start to ceiling that is missing
LONGER = 1.5  # tokens of a response at the end over those at the start
ENDED = 0.9
ALIKE = 0.9  # share of the prompts whose responses all have one score
OFF = 0.05  # nats a token between sampler and policy
COLLAPSED = 0.5  # share of the responses to a prompt that are its own
UNEXPLAINED = 0.05  # of the variance of the returns
SLOPE = 0.2  # of a reward model, from 1


def _ends(record: Record, key: str) -> tuple[float, float] | None:
    """Mean of a number over the first and over the last tenth of the phases; None where the run has too few."""
    tenth = max(1, len(record.phases) // 10)
    first, last = (mean(phase.get(key) for phase in part) for part in (record.phases[:tenth], record.phases[-tenth:]))
    return None if len(record.phases) < FEW or first is None or last is None else (first, last)


def _only(record: Record, key: str) -> tuple[float, float] | None:
    """Mean over all phases of a short run."""
    value = mean(phase.get(key) for phase in record.phases)
    return None if value is None else (value, value)


def reward_without_gain(record: Record) -> Finding | None:
    """A reward that the run learned from rose, and one that it only measured fell."""
    score = _ends(record, "score")
    fell = []
    for name, table in zip(numbered([_name_of(table) for table in record.rewards]), record.rewards, strict=True):
        ends = _ends(record, f"reward {name}") if table.get("weight") == 0 else None
        if ends is not None and ends[1] < ends[0] - _noise(record, f"reward {name}"):
            fell.append((name, ends))
    if score is None or not fell or score[1] <= score[0]:
        return None
    name, (before, after) = fell[0]
    return Finding(
        code="online.hacked",
        severity="serious",
        title="The reward rises and what it stands for falls",
        evidence=f"The score rose from {number(score[0])} to {number(score[1])}, while {name}, which "
        f"is only measured, fell from {number(before)} to {number(after)}.",
        meaning="The policy has found responses that the reward likes and the other measure does not: the reward is no "
        "longer a stand-in for what is wanted.",
        remedy="Take an earlier checkpoint, raise objective.beta, or train the reward model on draws of this policy.",
    )


def _name_of(reward: dict[str, object]) -> str:
    """How a record names what a table of [reward] gives (`Reward.name`)."""
    verify = reward.get("verify")
    return str(reward.get("function") or (f"verify {verify}" if verify else reward.get("model")))


def _noise(record: Record, name: str) -> float:
    """Two standard errors of a difference of tenths, from how a number jumps between neighboring phases."""
    values = [value for phase in record.phases if (value := phase.get(name)) is not None and math.isfinite(value)]
    jumps = [(after - before) ** 2 / 2 for before, after in itertools.pairwise(values)]
    tenth = max(1, len(record.phases) // 10)
    return 2 * math.sqrt((mean(jumps) or 0.0) * 2 / tenth)


def says_nothing(record: Record) -> Finding | None:
    """The responses to a prompt have one score."""
    ends, distinct = _ends(record, "alike") or _only(record, "alike"), _ends(record, "distinct")
    late = mean(phase.get("alike") for phase in record.phases[-max(2, len(record.phases) // 4) :])
    if ends is None or late is None or late < ALIKE or (distinct is not None and distinct[1] < ALIKE * distinct[0]):
        return None  # draws that have become the same have one score for that reason
    from_start = ends[0] >= ALIKE
    return Finding(
        code="online.flat",
        severity="serious" if from_start else "warn",
        title="The reward tells no responses apart",
        evidence=f"In the last phases all responses to a prompt had one score at {share(ends[1])} of the prompts, at "
        f"{share(ends[0])} in the first.",
        meaning="What is learned from a prompt is the difference of its scores, so these draws are made for nothing"
        f"{', and the KL alone moves the policy' if record.setting('objective.beta') else ''}."
        f"{'' if from_start else ' Where every task is solved, that is the end.'}",
        remedy="Look at some texts and scores in phases/ of the run. Take a reward with more than two values, tasks "
        "that are solved now and then, or more responses a prompt (rollout.responses); where beta is 0, "
        "rollout.redraws takes other prompts.",
    )


def below_ceiling(record: Record) -> Finding | None:
    """The held-out score is below what its distance from the reference could buy."""
    score, kl, ceiling = (record.end.get(key) for key in ("score", "kl", "ceiling"))
    start, error = record.start.get("score"), record.end.get("score_error")
    if score is None or kl is None or ceiling is None or start is None or error is None or ceiling <= start:
        return None
    missing = (ceiling - score) / (ceiling - start)
    if missing < SHORT or ceiling - score < 3 * error:
        return None
    return Finding(
        code="online.ceiling",
        severity="serious" if missing > 0.5 else "warn",
        title="The distance from the reference buys less reward than it could",
        evidence=f"At KL {number(kl, 2)} the held-out score is {number(score)}; the reference's own draws show that "
        f"{number(ceiling)} can be had there, from {number(start)} at the start.",
        meaning="A part of the movement does not serve the reward: noise of large steps, the reward model's likes on "
        "prompts it was not trained for, or too few draws.",
        remedy="Lower optim.lr, draw more responses a prompt, or stop earlier.",
    )


def grows_longer(record: Record) -> Finding | None:
    """Drawn responses have become much longer."""
    ends = _ends(record, "tokens")
    if ends is None or ends[1] < LONGER * ends[0]:
        return None
    return Finding(
        code="online.length",
        title="Responses grow longer",
        evidence=f"The mean response had {number(ends[0], 0)} tokens in the first phases and {number(ends[1], 0)} in "
        "the last.",
        meaning="Where the task does not ask for it, the reward pays for length itself.",
        remedy="Look at scores by length, take length out of the reward, or set reward.missing_end.",
    )


def does_not_end(record: Record) -> Finding | None:
    """Many drawn responses were cut at rollout.max_tokens."""
    ends = _ends(record, "ended") or _only(record, "ended")
    if ends is None or ends[1] >= ENDED:
        return None
    was = f", {share(ends[0])} at the start" if len(record.phases) >= FEW else ""
    meaning = "A cut response is scored as it stands, so the policy is not told to come to an end."
    penalty = "set reward.missing_end to the score that an unfinished response loses"
    if any(reward.get("missing_end") for reward in record.rewards):
        meaning, penalty = "Many are cut although that costs them reward.missing_end.", "raise reward.missing_end"
    return Finding(
        code="online.ended",
        severity="warn" if ends[1] >= 0.5 else "serious",
        title="Many responses are cut before they end",
        evidence=f"{share(ends[1])} of the responses of the last phases have their end token{was}.",
        meaning=meaning,
        remedy=f"Raise rollout.max_tokens, or {penalty}.",
    )


def sampler_off(record: Record) -> Finding | None:
    """The sampler gives its tokens other probabilities than the policy does."""
    ends = _only(record, "sampler_off")
    if ends is None or ends[1] < OFF:
        return None
    return Finding(
        code="online.sampler",
        title="The sampler is not quite the policy",
        evidence=f"A drawn token's log-probability differs by {number(ends[1], 2)} nats on average between the two.",
        meaning="The run corrects for it with a ratio that is cut at 2, which mends noise of this size and no more.",
        remedy="Draw in the precision that the policy trains in, and check that the server has the newest weights.",
    )


def collapsed(record: Record) -> Finding | None:
    """The responses to a prompt have become copies of each other."""
    ends = _ends(record, "distinct")
    if ends is None or ends[1] >= COLLAPSED or ends[1] > 0.7 * ends[0]:
        return None
    return Finding(
        code="online.collapse",
        title="The draws of a prompt become the same",
        evidence=f"{share(ends[0])} of the responses to a prompt differed in the first phases, {share(ends[1])} in the "
        "last.",
        meaning="Equal responses have equal scores and teach nothing, and the policy has little left to choose from.",
        remedy="Raise objective.beta, lower optim.lr, or stop earlier.",
    )


def value_blind(record: Record) -> Finding | None:
    """The value model explains nothing of what came after."""
    ends = _ends(record, "value_explained")
    if ends is None or ends[1] > UNEXPLAINED:
        return None
    return Finding(
        code="online.value",
        title="The value model explains nothing",
        evidence=f"It explains {share(max(0.0, ends[1]))} of the variance of the returns in the last phases.",
        meaning="Advantages are then as noisy as without it, and with lam below 1 they are biased.",
        remedy="Raise value.lr, let it learn alone first (value.warm_up), set objective.lam = 1, or use rloo.",
    )


def slope_off(record: Record) -> Finding | None:
    """The reward model's scale is a part of beta."""
    slope = next((event.details.get("slope") for event in record.events if event.kind == "reward_slope"), None)
    beta = record.setting("objective.beta")
    if not isinstance(slope, float) or not isinstance(beta, float) or abs(slope - 1) < SLOPE or slope <= 0:
        return None
    return Finding(
        code="online.slope",
        severity="info",
        title="The reward model's scale changes beta",
        evidence=f"Its held-out slope is {number(slope, 2)}: a difference of 1 in score is one of {number(slope, 2)} "
        "nats in the log-odds of the preferences, beyond the error of its held-out rows.",
        meaning=f"The run stops where objective.beta = {number(beta * slope)} would stop it under a calibrated reward "
        f"model, and not {number(beta)}.",
        remedy="Nothing is wrong; multiply beta by one over the slope to have the one that you meant.",
    )
