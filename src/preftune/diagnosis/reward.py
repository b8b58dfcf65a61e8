"""What the learned reward goes by: single words, some parts of the data only, or more certainty than labels have."""

from __future__ import annotations

import math
from collections import defaultdict

from preftune.diagnosis.finding import Finding, number, share
from preftune.diagnosis.objective_facts import is_sft, learner, parts, says_scores
from preftune.record.reader import HeldOutRow, Record, Word, prompts_of
from preftune.record.statistics import LEAST, Estimate, calibration, chi_square_tail, estimate

DECIDES = 0.5  # correlation of a word's count with the margin: it decides a quarter of the margins' variance alone
SURE_WORD, OF_LABELS = 5.0, 2.0  # its |z| for margins, among hundreds of words, and for labels, of that word alone
TWINS = 0.5  # share of pairs that differ in one word
PART = 20  # rows from which a part of the data speaks for itself
DIFFER = 0.01
TOO_SURE = 0.7
EASY = 0.98


def told_by_a_word(record: Record) -> Finding | None:
    """The token whose count goes with the held-out margins most, at equal length, of those that labels go by too."""
    word, texts = next((word for word in record.words if _decides(word)), None), record.data.texts
    if word is None or is_sft(record):
        return None
    if texts is not None and texts.twins >= TWINS:
        return None  # where each pair differs in one word only, some word has to decide
    text = word.text.strip() or f"token {word.token}"
    return Finding(
        code="reward.word",
        title="One word decides the reward",
        evidence=f"At equal length the margin of {number(word.pairs)} held-out pairs changes by "
        f"{number(word.margin_per_token, 2, sign=True)} nats with each time that chosen has “{text}” more often than "
        f"rejected (correlation {number(word.correlation, 2)}), and the labels go by it too "
        f"({number(abs(word.label_z), 1)} standard errors).",
        meaning=f"What was learned is mostly this word. {learner(record)} will write it, or avoid it, whether or not "
        "the response is better for it.",
        remedy="Read pairs that differ in it. Where it is an artifact of how the pairs were made, remove it from both "
        "sides or drop those pairs; where it is what people like, add pairs that differ in other ways.",
        p=word.p,
    )


def _decides(word: Word) -> bool:
    """Whether a token decides margins, more than length does at an equal count of it, and the labels go by it too."""
    clear = abs(word.correlation) >= DECIDES and abs(word.z) >= max(SURE_WORD, abs(word.length_z))
    return clear and word.z * word.label_z > 0 and abs(word.label_z) >= OF_LABELS


def parts_differ(record: Record) -> Finding | None:
    """Cochran's Q of the accuracies of the rows' source files, or else of their prompts."""
    rows = [row for row in record.judged_rows if row.margin is not None and row.place and row.prompt]
    for name, key in (("file", lambda row: row.place.rpartition(":")[0]), ("prompt", lambda row: row.prompt)):
        groups: dict[str, list[HeldOutRow]] = defaultdict(list)
        for row in rows:
            groups[key(row)].append(row)
        large = {part: of_part for part, of_part in groups.items() if len(of_part) >= PART}
        if len(large) > 1:
            return _parts_differ(name, large)
    return None


def _parts_differ(name: str, groups: dict[str, list[HeldOutRow]]) -> Finding | None:
    accuracies: dict[str, Estimate] = {}
    for part, rows in groups.items():
        keys = prompts_of(rows) if name == "file" else [str(index) for index in range(len(rows))]
        accuracy = estimate([row.accuracy or 0.0 for row in rows], keys, share=True)
        if accuracy is not None and accuracy.certain:
            accuracies[part] = accuracy
    if len(accuracies) < 2:
        return None
    weights = [1 / part.error**2 for part in accuracies.values()]
    middle = math.fsum(w * part.value for w, part in zip(weights, accuracies.values(), strict=True)) / math.fsum(
        weights
    )
    q = math.fsum(w * (part.value - middle) ** 2 for w, part in zip(weights, accuracies.values(), strict=True))
    p = chi_square_tail(q, len(accuracies) - 1)
    if p > DIFFER:
        return None
    best, worst = (choose(accuracies, key=lambda part: accuracies[part].value) for choose in (max, min))
    spelled = {part: part if name == "file" else f"that of row {groups[part][0].id}" for part in (best, worst)}
    return Finding(
        code="reward.parts",
        title="Parts of the held-out rows disagree",
        evidence=f"Accuracies of {len(accuracies)} {name}s differ by more than noise: the best {name} is "
        f"{spelled[best]} ({share(accuracies[best].value)}), the worst {spelled[worst]} "
        f"({share(accuracies[worst].value)}).",
        meaning="Either what was learned holds in some parts only, or the labels of these parts follow different "
        "tastes.",
        remedy="Read pairs of the worst part. Where its labels follow another taste, tune on one of the two; where it "
        "is only harder, add rows of its kind.",
        p=p,
    )


def too_sure(record: Record) -> Finding | None:
    """The factor k by which the reward would have to be multiplied to be as sure as it may be."""
    margin = record.end.get("margin")
    chosen, rejected = record.end.get("chosen_reward"), record.end.get("rejected_reward")
    per_token = any(part.kind is not None and part.kind.length_normalized for part in parts(record))
    scores = says_scores(record)
    if not margin or per_token or is_sft(record) or (not scores and (chosen is None or rejected is None)):
        return None
    beta = 1.0 if scores else ((chosen or 0.0) - (rejected or 0.0)) / margin
    rows = [row for row in record.rows if row.accuracy is not None and row.surplus is not None]
    margins = [row.margin for row in rows if row.margin is not None and math.isfinite(row.margin)]
    if len(margins) != len(rows) or not any(margins):
        return None
    factor = calibration([beta * value for value in margins], prompts_of(rows))
    if not LEAST < factor.value < TOO_SURE:
        return None
    return Finding(
        code="reward.too_sure",
        title="The reward is surer than it may be",
        evidence=f"The labels of {number(len(rows))} held-out pairs are most probable where the learned reward is "
        f"multiplied by {number(factor.value, 2)} ± {number(factor.half_width(), 2)}; 1 would be right.",
        meaning="The model bets more on its preferences than it wins: the labels contradict each other, tastes are "
        "mixed, or it has begun to memorize.",
        remedy="Look for flipped labels and for raters of different tastes. Train for fewer steps, "
        + (
            "or multiply the scores by that number before a policy is tuned on them."
            if scores
            else 'or use an objective that expects wrong labels (objective = "robust", or dpo with objective.flip).'
        ),
        p=factor.p_below(1.0),
    )


def too_easy(record: Record) -> Finding | None:
    """Nearly every held-out pair is ranked right."""
    accuracy = record.accuracy()
    if accuracy is None or not accuracy.certain or accuracy.value < EASY or is_sft(record):
        return None
    return Finding(
        code="reward.too_easy",
        title="The pairs are too easy",
        evidence=f"{share(accuracy.value)} of {number(accuracy.rows)} held-out pairs are ranked right.",
        meaning="People agree with each other on 60 to 80 % of pairs. Where nearly all are right, something other than "
        "quality tells the two sides apart, such as who wrote them, a marker or a length, and the loss has no more to "
        "teach.",
        remedy="Read ten pairs and look for what gives chosen away. Draw both responses from the same model, the one "
        "that is tuned, and let them be judged.",
        severity="info",
    )
