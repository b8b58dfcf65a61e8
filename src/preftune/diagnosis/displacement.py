"""Displacement: the margin grows while the chosen response itself becomes less probable.

Only the difference of two log-ratios enters the loss, so both may fall, and the probability goes to responses that
nobody preferred. To first order chosen falls where the gradients of the two responses overlap by more than the ratio of
their incentives: <g_w, g_l> / |g_w|^2 > -d_w / d_l (after Razin et al. 2024, arXiv 2410.08847).
"""

from __future__ import annotations

import math

from preftune.diagnosis.finding import SURE, Finding, number, share
from preftune.diagnosis.objective_facts import ADD, imitates, is_sft, last_resort
from preftune.record.reader import Record
from preftune.record.statistics import mean

# Any training moves a whole response by less than one nat (2.7 times).
FALLEN = -1.0
# Per token: the perplexity of the chosen responses is a quarter worse, which is visible in what the model writes.
FALLEN_A_TOKEN = -math.log(1.25)

TWINS = 0.1  # share of pairs that differ in one word, from which it is said

WEIGH = "Give the likelihood of the chosen response more weight in the objective"


def chosen_falls(record: Record) -> Finding | None:
    """Change of the chosen log-probability while the margin rose: held out, or in training where nothing is."""
    held_out = record.end.get("chosen_logp_change") is not None
    chosen, rejected, tokens = (
        record.end.get(key) if held_out else record.recent(key)
        for key in ("chosen_logp_change", "rejected_logp_change", "chosen_tokens")
    )
    if chosen is None or rejected is None or is_sft(record):
        return None
    if held_out and (record.gain("margin") or 0.0) < 0:
        return None  # where kinds of row are mixed, the two changes are of more rows than the margin
    by_row = [row.chosen_logp_change for row in record.rows if row.chosen_logp_change is not None]
    measured = record.average(lambda row: row.chosen_logp_change) if held_out else None
    if chosen > FALLEN or chosen <= rejected:
        return None
    tested = measured is not None and measured.certain
    by_token = chosen / tokens if tokens else 0.0
    fell = mean(float(change < 0) for change in by_row) if held_out else None
    evidence = f"On {'held-out' if held_out else 'training'} rows the log-probability of chosen changed by " \
        f"{number(chosen, 1, sign=True)} nats and that of rejected by {number(rejected, 1, sign=True)}."  # fmt: skip
    if fell is not None:
        evidence += f" Chosen became less probable on {share(fell)} of {number(len(by_row))} rows."
    if by_token:
        evidence += f" Per token its perplexity is {share(math.expm1(-by_token), 0)} higher than at the start."
    evidence += _where(record)
    if record.data.texts is not None and record.data.texts.twins >= TWINS:
        evidence += f" In {share(record.data.texts.twins)} of the training pairs the responses differ in one word."
    count = (record.end.get("rows") or 0) if held_out else len(record.steps)
    return Finding(
        code="displacement.chosen",
        severity="serious" if by_token <= FALLEN_A_TOKEN and count >= SURE and (tested or not by_row) else "warn",
        title="The chosen responses became less probable",
        evidence=evidence + _incentives(record),
        meaning="The margin grew because rejected fell faster than chosen, not because chosen rose. The probability "
        "that both lost went to responses that are in no pair, and nothing in the data says that those are good.",
        remedy=f'{WEIGH if imitates(record) else ADD}, bound the margin (objective = "ipo"), lower optim.lr or stop '
        f"earlier{last_resort(record)}. After SFT on the chosen responses a small fall is usual. Pairs whose two "
        "responses mean the same to the model drive the effect most.",
        p=measured.p_below(0.0) if tested and measured is not None else None,
    )


def _where(record: Record) -> str:
    """In which tokens of a pair the chosen response fell: before the two part, where they part, or after that."""
    rows = [row for row in record.rows if row.chosen_fork_change is not None and row.chosen_logp_change is not None]
    shared = mean(row.shared_logp_change for row in rows)
    fork = mean(row.chosen_fork_change for row in rows)
    total = mean(row.chosen_logp_change for row in rows)
    if shared is None or fork is None or total is None:
        return ""
    values = (number(value, 1, sign=True) for value in (shared, fork, total - shared - fork))
    text = " Of this, {} came before the two responses part, {} at the token where they part, and {} after it."
    return text.format(*values) + _outside(record)


def _outside(record: Record) -> str:
    """What the tokens of neither response got where the two part."""
    now = mean(row.outside_fork for row in record.rows)
    change = mean(row.outside_fork_change for row in record.rows)
    if now is None or change is None:
        return ""
    return f" All tokens but these two had {share(now - change)} of the probability there, and have {share(now)} now."


def _incentives(record: Record) -> str:
    """In which direction the objective itself pushes chosen, as opposed to the overlap of the two responses."""
    chosen, rejected = record.recent("chosen_incentive"), record.recent("rejected_incentive")
    if chosen is None or rejected is None or chosen <= 0 >= rejected:
        return ""
    if chosen > 0:
        return " The objective itself pushes chosen down at the end of the run."
    return (
        f" The objective still pushes chosen up ({number(-chosen / rejected, 2)} times as hard as it pushes rejected "
        "down), so the fall comes from what the two responses share."
    )
