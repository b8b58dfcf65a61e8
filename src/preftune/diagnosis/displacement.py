"""Displacement: the margin grows while the chosen response itself becomes less probable.

Only the difference of two log-ratios enters the loss, so both may fall. The mass then goes to responses that nobody
preferred. To first order the chosen log-probability falls where the gradients of the two responses overlap by more than
the ratio of their incentives: <g_w, g_l> / |g_w|^2 > -d_w / d_l (after Razin et al. 2024, arXiv 2410.08847).
"""

from __future__ import annotations

import math

from preftune.diagnosis import asked
from preftune.diagnosis.finding import NOISE, SURE, Finding, number, share
from preftune.record.reader import Record
from preftune.record.statistics import mean, standard_error

# A fall of less than one nat (2.7 times) for a whole response is what any training at all does to it.
FALLEN = -1.0
# Per token: the perplexity of the chosen responses is a quarter worse, which is visible in what the model writes.
FALLEN_A_TOKEN = -math.log(1.25)

ADD = "Add the likelihood of the chosen response to the objective (DPO with an NLL term, DPO-Positive, Cal-DPO)"
WEIGH = "Give the likelihood of the chosen response more weight in the objective"


def chosen_falls(record: Record) -> Finding | None:
    """Change of the chosen log-probability while the margin rose: held out, or in training where nothing is."""
    held_out = record.end.get("chosen_logp_change") is not None
    change = record.end["chosen_logp_change"] if held_out else record.recent("chosen_logp_change")
    rejected = record.end.get("rejected_logp_change") if held_out else record.recent("rejected_logp_change")
    if change is None or rejected is None or asked.only_imitates(record):
        return None
    if held_out and (record.gain("margin") or 0.0) < 0:
        return None  # where kinds are mixed, the two changes are of more rows than the margin
    by_row = [row.chosen_logp_change for row in record.rows if row.chosen_logp_change is not None]
    error = standard_error(by_row) if held_out and len(by_row) > 1 else 0.0
    if change > min(FALLEN, -NOISE * error) or change <= rejected:
        return None
    tokens = record.end.get("chosen_tokens") if held_out else record.recent("chosen_tokens")
    by_token = change / tokens if tokens else 0.0
    fell = mean(float(value < 0) for value in by_row) if held_out else None
    evidence = f"On {'held-out' if held_out else 'training'} rows the log-probability of chosen changed by " \
        f"{number(change, 1, sign=True)} nats and that of rejected by {number(rejected, 1, sign=True)}."  # fmt: skip
    if fell is not None:
        evidence += f" Chosen became less probable on {share(fell)} of {number(len(by_row))} rows."
    if by_token:
        evidence += f" Per token its perplexity is {share(math.expm1(-by_token), 0)} higher than at the start."
    seen = (record.end.get("rows") or 0) if held_out else len(record.steps)
    return Finding(
        code="displacement.chosen",
        severity="serious" if by_token <= FALLEN_A_TOKEN and seen >= SURE else "warn",
        title="The chosen responses became less probable",
        evidence=evidence + _incentives(record),
        meaning="The margin grew because rejected fell faster than chosen, not because chosen rose. The probability "
        "that both lost went to responses that are in no pair, and nothing in the data says that those are good.",
        remedy=f"{WEIGH if asked.imitates(record) else ADD}, bound the margin (IPO), {asked.hold(record, 'raise')}or "
        "stop earlier. Pairs whose two responses are nearly the same drive the effect most: drop those.",
    )


def _incentives(record: Record) -> str:
    """What the objective itself asked for, so that its push is not confused with the model's overlap."""
    chosen, rejected = record.recent("chosen_incentive"), record.recent("rejected_incentive")
    if chosen is None or rejected is None:
        return ""
    if chosen > 0:
        return " The objective itself pushes chosen down at the end of the run."
    if rejected <= 0:
        return ""
    return (
        f" The objective still pushes chosen up ({number(-chosen / rejected, 2)} times as hard as it pushes rejected "
        "down), so the fall comes from what the two responses share."
    )
