"""Each check finds what it is for, and finds nothing just below its threshold. The sentences belong to the checks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import drawn
import pytest
from msgspec.structs import replace

from preftune.diagnosis import CHECKS, EXPLAINS, Finding, diagnose
from preftune.diagnosis.finding import ORDER, number, share
from preftune.diagnosis.reward import calibration
from preftune.events import Happened
from preftune.objective import BY_NAME, presets
from preftune.record.parse import Numbers
from preftune.record.reader import HeldOutRow, Record, Word
from preftune.rows.account import Account, Counts, Texts

START: Numbers = {
    "step": 0, "rows": 400, "loss": math.log(2), "margin": 0.0, "accuracy": 0.5, "chosen_reward": 0.0,
    "rejected_reward": 0.0, "chosen_logp": -60.0, "rejected_logp": -60.0, "chosen_mean_logp": -1.5,
    "rejected_mean_logp": -1.5, "chosen_logp_change": 0.0, "rejected_logp_change": 0.0, "chosen_tokens": 40.0,
    "rejected_tokens": 40.0, "accuracy_chosen_longer": 0.5, "accuracy_chosen_shorter": 0.5,
    "reward_length_correlation": None,
}  # fmt: skip
END: Numbers = {
    **START, "step": 100, "loss": 0.5, "margin": 6.0, "accuracy": 0.72, "chosen_reward": 0.2, "rejected_reward": -0.4,
    "chosen_logp_change": 2.0, "rejected_logp_change": -4.0, "accuracy_chosen_longer": 0.74,
    "accuracy_chosen_shorter": 0.7, "reward_length_correlation": 0.1,
}  # fmt: skip


def make_rows(count: int = 400, *, accuracy: float = 0.72, chosen: float = 2.0, rejected: float = -4.0,
              by_length: float = 0.0) -> tuple[HeldOutRow, ...]:  # fmt: skip
    """Pairs of one prompt each. chosen, rejected: changes of log-probability; by_length: nats of margin a token."""
    made = []
    for i in range(count):
        right = (i * 37 % 100 + 0.5) / 100 < accuracy
        margin = (6.0 if right else -4.0) + by_length * (i % 3 - 1)
        made.append(HeldOutRow(
            id=str(i), place=f"held_out.jsonl:{i + 1}", prompt=f"p{i}", margin=margin, accuracy=float(right),
            chosen_logp=-60.0 + chosen, rejected_logp=-60.5 + rejected, chosen_logp_change=chosen,
            rejected_logp_change=rejected, chosen_tokens=40.0 + i % 3 - 1, rejected_tokens=40.0,
        ))  # fmt: skip
    return tuple(made)


ROWS = make_rows()
ROW = ROWS[0]
STEPS: tuple[Numbers, ...] = tuple(
    {"step": i, "loss": 0.69 - 0.002 * i, "margin": 0.06 * i, "accuracy": 0.5 + 0.001 * i, "grad_norm": 1.0,
     "chosen_incentive": -0.05, "rejected_incentive": 0.05}
    for i in range(1, 101)
)  # fmt: skip
HEALTHY = Record(
    path=Path("run"), run={"objective": {"name": "dpo", "beta": 0.1}, "reference": {"kind": "stored"}},
    steps=STEPS, evaluations=(START, END), rows=ROWS,
    data=Account(train=Counts(read=1000, kept=990, cut=10, skipped={"too_long": 10}), chosen_longer=0.55),
)  # fmt: skip


def end(**changed: float | None) -> Record:
    """The last evaluation with other numbers, and rows to match."""
    line = {**END, **changed}
    rows = make_rows(int(line["rows"] or 0), accuracy=line["accuracy"] or 0.0, chosen=line["chosen_logp_change"] or 0.0,
                     rejected=line["rejected_logp_change"] or 0.0)  # fmt: skip
    return replace(HEALTHY, evaluations=(START, line), rows=rows)


def longer(nats: float, count: int = 400) -> Record:
    return replace(end(rows=count), rows=make_rows(count, by_length=nats))


def word(**changed: float) -> Record:
    usual = {"pairs": 90, "margin_per_token": 2.0, "correlation": 0.6, "z": 12.0, "length_z": 3.0, "label_z": 8.0}
    return replace(HEALTHY, words=(Word(token=7, text=" but", p=1e-9, **{**usual, **changed}),))


def texts(**changed: object) -> Record:
    return replace(HEALTHY, data=replace(HEALTHY.data, texts=Texts(**changed)))


def of_two_files(gap: float, file: str = "other.jsonl") -> Record:
    """Half of the rows stand in another file, with an accuracy that is lower by so much."""
    first, other = make_rows(200, accuracy=0.7), make_rows(200, accuracy=0.7 - gap)
    return replace(HEALTHY, rows=(*first, *(replace(row, place=f"{file}:1", prompt=f"q{row.id}") for row in other)))


def of_prompts(count: int) -> Record:
    return replace(HEALTHY, rows=tuple(replace(row, prompt=f"p{i % count}") for i, row in enumerate(ROWS)))


def surer(right: int) -> Record:
    """Margins of a hundred nats, of which so many of four have the right sign."""
    rows = tuple(replace(row, margin=100.0 if i % 4 < right else -100.0) for i, row in enumerate(ROWS))
    return replace(HEALTHY, rows=rows)


def start(**changed: float | None) -> Record:
    return replace(HEALTHY, evaluations=({**START, **changed}, END))


def asks(record: Record, **objective: object) -> Record:
    return replace(record, run={**record.run, "objective": objective})


def steps(**changed: float) -> Record:
    return replace(HEALTHY, steps=tuple({**step, **changed} for step in STEPS))


def rows(**changed: float) -> Record:
    return replace(HEALTHY, rows=tuple(replace(row, **changed) for row in ROWS))


def train(**changed: object) -> Record:
    return replace(HEALTHY, data=replace(HEALTHY.data, train=replace(HEALTHY.data.train, **changed)))


def chosen_longer(value: float) -> Record:
    return replace(HEALTHY, data=replace(HEALTHY.data, chosen_longer=value))


def losses(*values: float) -> Record:
    points = [{**END, "step": 50.0 * i, "loss": loss} for i, loss in enumerate(values)]
    return replace(HEALTHY, evaluations=({**START, "loss": values[0]}, *points[1:]))


def judged(count: int) -> tuple[HeldOutRow, ...]:
    """All rows, of which so many have an accuracy."""
    return tuple(replace(row, accuracy=row.accuracy if i < count else None) for i, row in enumerate(ROWS))


def scattered(count: int, kind: str = "pairs") -> tuple[HeldOutRow, ...]:
    """A few rows, half of which went one way and half the other; a rating has one side and no margin."""
    ratings = {"margin": None, "rejected_logp_change": None} if kind == "ratings" else {}
    return tuple(replace(row, chosen_logp_change=2.0 + 5 * (-1) ** i, **ratings) for i, row in enumerate(ROWS[:count]))


def stuck(**changed: float) -> Record:
    still = {"margin": 0.01, "loss": 0.6929} | changed
    run = replace(HEALTHY, steps=tuple({**step, **still} for step in STEPS))
    moved = still["margin"]
    return replace(run, evaluations=(START, {**START, "step": 100, "rows": 400, "margin": moved}),
                   rows=make_rows(chosen=moved, rejected=-moved))  # fmt: skip


def pairs_of(record: Record) -> Record:
    return replace(record, data=replace(record.data, train=replace(record.data.train, kinds={"pair": 990})))


def foreign(residual: float) -> Record:
    return replace(start(log_ratio_rms=residual), run={"reference": {"kind": "stored", "path": "other"}})


CASES: list[tuple[str, str, Record, Record]] = [
    ("length.reward", "warn", longer(2.4), longer(1.9)),
    ("length.reward", "serious", longer(6.0), asks(longer(6.0), name="nll")),
    ("length.reward", "serious", asks(longer(6.0), name="of_its_author"), HEALTHY),
    ("length.reward", "warn", asks(longer(6.0), name="orpo"), longer(2.4, count=90)),
    ("length.reward", "serious", longer(-8.0), replace(longer(6.0), rows=of_prompts(9).rows)),
    ("reward.word", "warn", word(), word(correlation=0.45)),
    ("reward.word", "warn", word(z=-12.0, label_z=-8.0, correlation=-0.6), word(label_z=-8.0)),
    ("reward.word", "warn", word(), word(length_z=15.0)),
    ("reward.word", "warn", word(label_z=2.1), word(label_z=1.9)),
    ("reward.word", "warn", replace(word(), words=(*word(z=20.0, length_z=30.0).words, *word().words)), HEALTHY),
    ("reward.word", "warn", word(), replace(word(), data=texts(twins=0.9).data)),
    ("reward.parts", "warn", of_two_files(0.3), of_two_files(0.05)),
    ("reward.parts", "warn", of_two_files(0.3), of_two_files(0.3, file="held_out.jsonl")),
    ("reward.too_sure", "warn", surer(right=3), replace(HEALTHY, rows=ROWS)),
    ("reward.too_sure", "warn", surer(right=2), surer(right=4)),
    ("reward.too_easy", "info", end(accuracy=1.0), end(accuracy=0.95)),
    ("end.unlearned", "warn", rows(chosen_end_logp=-0.4, chosen_end_change=-0.3),
     rows(chosen_end_logp=-0.4, chosen_end_change=-0.05)),
    ("end.unlearned", "warn", rows(rejected_end_logp=-0.9, rejected_end_change=-0.8),
     asks(rows(rejected_end_logp=-0.9, rejected_end_change=-0.8), name="nll")),
    ("end.wrong", "warn", rows(chosen_end_logp=-13.0, chosen_end_change=0.4),
     rows(chosen_end_logp=-13.0, chosen_end_change=-12.0)),
    ("shift.seen", "warn", replace(HEALTHY, data=replace(HEALTHY.data, held_out_trained=1.0)),
     replace(HEALTHY, data=replace(HEALTHY.data, held_out_trained=0.05))),
    ("data.cut", "warn", texts(piled={"chosen": 0.3, "rejected": 0.0}), texts(piled={"chosen": 0.05})),
    ("data.cut", "warn", texts(unclosed={"chosen": 0.02, "rejected": 0.6}),
     texts(unclosed={"chosen": 0.6, "rejected": 0.62})),
    ("data.contradictory", "warn", pairs_of(texts(repeated=200, contradictory=30)),
     pairs_of(texts(repeated=200, contradictory=5))),
    ("data.batch", "info", replace(HEALTHY, run={**HEALTHY.run, "batch": {"rows": 1}}),
     replace(HEALTHY, run={**HEALTHY.run, "batch": {"rows": 16}})),
    ("anchor.few_steps", "info", replace(HEALTHY, steps=STEPS[:5]), HEALTHY),
    ("anchor.foreign", "warn", foreign(1.2), foreign(0.4)),
    ("anchor.foreign", "warn", foreign(1.2), start(log_ratio_rms=1.2)),
    ("anchor.start", "warn", start(log_ratio_rms=0.3), foreign(0.3)),
    ("anchor.start", "warn", start(log_ratio_rms=0.3), start(log_ratio_rms=0.01)),
    ("shift.held_out", "info", of_prompts(4), of_prompts(10)),
    ("anchor.chance", "warn", end(accuracy=0.5, margin=0.0), end(accuracy=0.5, margin=0.0, chosen_logp_change=0.01,
                                                                rejected_logp_change=-0.01)),
    ("length.data", "info", chosen_longer(0.66), chosen_longer(0.64)),
    ("displacement.chosen", "warn", end(chosen_logp_change=-1.2), end(chosen_logp_change=-0.9)),
    ("displacement.chosen", "serious", end(chosen_logp_change=-10.0, rejected_logp_change=-16.0),
     end(chosen_logp_change=-10.0, rejected_logp_change=-9.0)),
    ("displacement.chosen", "warn", end(rows=20, chosen_logp_change=-10.0, rejected_logp_change=-16.0),
     asks(end(chosen_logp_change=-10.0, rejected_logp_change=-16.0), name="nll")),
    ("displacement.chosen", "warn", end(chosen_logp_change=-1.2), end(chosen_logp_change=-1.2, margin=-0.5)),
    ("anchor.drift", "warn", end(rejected_logp_change=-21.0), end(rejected_logp_change=-19.0)),
    ("anchor.drift", "serious", end(rejected_logp_change=-41.0), end(rejected_logp_change=-19.9)),
    ("anchor.drift", "serious", end(chosen_logp_change=80.0), asks(end(chosen_logp_change=80.0), name="orpo")),
    ("anchor.drift", "serious", asks(end(chosen_logp_change=-80.0), name="orpo"),
     asks(end(chosen_logp_change=80.0), name="sum", parts=[{"name": "dpo", "beta": 0.1}, {"name": "nll"}])),
    ("anchor.start", "warn", start(margin=0.2), start(margin=0.05)),
    ("anchor.start", "warn", start(margin=0.2), replace(start(margin=0.2), run={"reference": {"kind": "none"}})),
    ("anchor.start", "serious", start(margin=-3.0),
     replace(start(margin=-3.0), run={"reference": {"kind": "stored", "path": "other"}})),
    ("anchor.weak", "warn", rows(chosen_logp=-70.0), rows(chosen_logp=-55.0)),
    ("anchor.weak", "warn", rows(chosen_logp=-70.0),
     replace(rows(chosen_logp=-70.0), run={"reference": {"kind": "none"}})),
    ("anchor.stuck", "serious", stuck(), stuck(margin=0.5)),
    ("anchor.chance", "warn", end(accuracy=0.53), end(accuracy=0.57)),
    ("anchor.chance", "warn", replace(end(accuracy=0.57), rows=judged(100)), asks(end(accuracy=0.53), name="nll")),
    ("anchor.overfit", "warn", steps(accuracy=0.95), steps(accuracy=0.85)),
    ("anchor.overfit", "warn", steps(accuracy=0.95, examples=16.0), steps(accuracy=0.95, examples=0.5)),
    ("anchor.overfit", "warn", losses(0.69, 0.5, 0.6), losses(0.69, 0.5, 0.505)),
    ("anchor.overfit", "serious", losses(0.69, 0.5, 0.8), losses(0.69, 0.6, 0.5)),
    ("anchor.overfit", "serious", losses(0.693, 0.735), replace(losses(0.693, 0.735), rows=scattered(13))),
    ("anchor.overfit", "serious", losses(0.693, 0.735), replace(losses(0.693, 0.735), rows=scattered(13, "ratings"))),
    ("anchor.not_finite", "serious", replace(HEALTHY, steps=(*STEPS, {"step": 101, "loss": math.nan})), HEALTHY),
    ("anchor.not_finite", "serious", replace(HEALTHY, events=(Happened(7, "non_finite", "loss"),)),
     replace(HEALTHY, events=(Happened(7, "note", "loss"),))),
    ("shift.unlikely", "warn", start(chosen_mean_logp=-3.4, rejected_mean_logp=-3.1),
     start(chosen_mean_logp=-3.4, rejected_mean_logp=-2.9)),
    ("shift.unlikely", "warn", start(chosen_mean_logp=-3.4, rejected_mean_logp=-3.1),
     asks(start(chosen_mean_logp=-3.4, rejected_mean_logp=-3.1), name="orpo")),
    ("shift.skipped", "warn", train(skipped={"too_long": 60}), train(skipped={"too_long": 40})),
    ("shift.skipped", "serious", train(skipped={"too_long": 160, "pair.identical": 60}), train(skipped={})),
    ("shift.cut", "warn", train(cut=120), train(cut=80)),
    ("shift.held_out", "info", replace(HEALTHY, rows=judged(60)), replace(HEALTHY, rows=judged(100))),
    ("shift.held_out", "warn", replace(HEALTHY, evaluations=()), HEALTHY),
    *drawn.CASES,
]  # fmt: skip


def codes(record: Record) -> dict[str, str]:
    return {finding.code: finding.severity for finding in diagnose(record)}


def test_healthy_run_has_no_finding() -> None:
    assert diagnose(HEALTHY) == []
    assert diagnose(drawn.ONLINE) == []


@pytest.mark.parametrize(("code", "severity", "ill", "well"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_found_where_it_is_and_only_there(code: str, severity: str, ill: Record, well: Record) -> None:
    assert codes(ill).get(code) == severity
    assert code not in codes(well)


def test_every_check_has_a_case() -> None:
    hit = {check for check in CHECKS for _, _, ill, _ in CASES if check(ill)}
    assert hit == set(CHECKS)


def test_findings_name_their_numbers_and_come_by_severity() -> None:
    fallen = end(chosen_logp_change=-10.0, rejected_logp_change=-16.0, reward_length_correlation=0.4, rows=60)
    findings = diagnose(fallen)
    assert [f.severity for f in findings] == sorted((f.severity for f in findings), key=ORDER.index)
    evidence = finding_of(fallen, "displacement.chosen").evidence
    assert all(text in evidence for text in ("−10.0", "−16.0", "28\u00a0%", "1.00 times"))  # exp(10 / 40) = 1.284


SENTENCES = [replace(ill, rows=rows) for _, _, ill, _ in CASES for rows in (ill.rows, ill.rows[:7])]
SENTENCES += [replace(asks(ill, name="ipo", tau=0.1), evaluations=ill.evaluations[-1:]) for ill in SENTENCES]


def test_every_text_is_whole_sentences() -> None:
    findings = [finding for record in SENTENCES for finding in diagnose(record)]
    assert {finding.code for finding in findings} == {code for code, *_ in CASES}
    for text in (text for f in findings for text in (f.evidence, f.meaning, f.remedy)):
        assert re.fullmatch(r"[A-Z0-9](?!.*  ).*\.", text)


def finding_of(record: Record, code: str) -> Finding:
    return next(finding for finding in diagnose(record) if finding.code == code)


def test_accuracy_is_of_the_rows_that_have_it() -> None:
    few = replace(end(accuracy=0.55), rows=judged(10))
    assert "10 of 400 held-out rows have an accuracy" in finding_of(few, "shift.held_out").evidence
    assert "on 10 held-out rows, although" in finding_of(few, "anchor.chance").evidence
    mixed = replace(few, rows=(*few.rows, replace(ROW, id="rating", margin=None, chosen_tokens=None)))
    assert mixed.judged == 10, "beside pairs, the accuracy is of pairs"
    assert replace(few, rows=()).judged == 400
    assert end(accuracy=None).judged == 0


def test_displacement_says_in_which_tokens_and_what_the_others_got() -> None:
    fallen = end(chosen_logp_change=-10.0, rejected_logp_change=-16.0)
    fork = {"shared_logp_change": -2.0, "chosen_fork_change": 1.0, "outside_fork": 0.3, "outside_fork_change": 0.2}
    fallen = replace(fallen, rows=tuple(replace(row, **fork) for row in fallen.rows))
    evidence = finding_of(fallen, "displacement.chosen").evidence
    assert "−2.0 came before the two responses part, +1.0 at the token where they part, and −9.0 after it." in evidence
    assert "All tokens but these two had 10.0\u00a0% of the probability there, and have 30.0\u00a0% now." in evidence


def memorized(accuracy: float, *, epochs: float, repeated: int = 0, rows: int = 400) -> Record:
    """Right in training, at such an accuracy held out, after so many passes over 990 pairs."""
    record = replace(end(accuracy=accuracy, rows=rows), steps=steps(accuracy=0.95, epoch=epochs).steps)
    return replace(record, data=replace(pairs_of(record).data, texts=Texts(repeated=repeated)))


def test_what_was_memorized_in_a_few_passes_is_no_cause_of_chance() -> None:
    """Labels that say nothing are memorized as well, but then fewer passes help nobody."""
    assert next(iter(codes(memorized(0.5, epochs=3)))) == "anchor.chance"
    assert "Held-out rows do not follow" in finding_of(memorized(0.5, epochs=3), "anchor.chance").effects[0]
    for record in (memorized(0.5, epochs=30), memorized(0.5, epochs=3, repeated=900),
                   memorized(0.5, epochs=3, rows=60), memorized(0.6, epochs=3)):  # fmt: skip
        assert next(iter(codes(record))) == "anchor.overfit"
        assert "anchor.chance" not in codes(record)


def test_below_chance_is_another_matter_than_at_chance() -> None:
    at, below = (finding_of(memorized(accuracy, epochs=3), "anchor.chance") for accuracy in (0.5, 0.4))
    assert "cannot be told from chance" in at.title
    assert "below chance" in below.title
    assert "opposite" in below.meaning


def test_noise_on_few_rows_is_no_alarm() -> None:
    few = {**END, "rows": 13, "loss": 0.8}
    assert codes(replace(HEALTHY, evaluations=(START, few), rows=ROWS[:13]))["anchor.overfit"] == "warn"
    falling = steps(chosen_logp_change=-50.0, rejected_logp_change=-90.0, chosen_tokens=40.0, rejected_tokens=40.0)
    falling = replace(falling, evaluations=(), rows=())
    assert codes(falling)["displacement.chosen"] == "serious"
    assert codes(replace(falling, steps=falling.steps[:8]))["displacement.chosen"] == "warn"


def test_only_rows_seen_twice_are_memorized() -> None:
    once, twice = (finding_of(steps(accuracy=0.95, epoch=epoch), "anchor.overfit") for epoch in (0.9, 1.1))
    assert "No row was seen twice" in once.meaning
    assert "epochs" not in once.remedy
    assert "begun to memorize" in twice.meaning


@pytest.mark.parametrize(
    ("objective", "hint"),
    [({"name": "dpo", "beta": 0.1}, "; as a last resort raise objective.beta."),
     ({"name": "ipo", "tau": 1.0}, "; as a last resort raise objective.tau."),
     ({"name": "sum", "parts": [{"name": "dpo", "beta": 0.1}, {"name": "nca"}]},
      "; as a last resort raise beta in objective.parts."),
     ({"name": "of_its_author", "beta": 0.1}, "; train for fewer steps."),
     ({"name": "orpo", "odds_weight": 0.1}, "; train for fewer steps.")],
)  # fmt: skip
def test_remedies_name_keys_that_there_are(objective: dict[str, object], hint: str) -> None:
    assert hint in finding_of(asks(end(rejected_logp_change=-41.0), **objective), "anchor.drift").remedy


def test_what_is_measured_on_a_model_that_did_not_move_is_no_finding_of_its_own() -> None:
    still = replace(stuck(), rows=make_rows(400, chosen=0.0, rejected=0.0, by_length=6.0))
    assert "length.reward" in codes(longer(6.0))
    assert codes(still) == {"anchor.stuck": "serious"}
    assert any("grows with length" in effect for effect in finding_of(still, "anchor.stuck").effects)


def test_both_directions_of_length() -> None:
    long, short = (finding_of(longer(nats), "length.reward") for nats in (8.0, -8.0))
    assert (long.title, short.title) == ("The reward grows with length", "The reward falls with length")
    assert "r_dpo" in long.remedy
    assert "r_dpo" not in short.remedy, "it subtracts what grows with length"


def test_equally_long_sides_have_no_length_bias() -> None:
    """What falls with the number of tokens in all responses is not yet length."""
    record = end(reward_length_correlation=-0.9)
    even = replace(record, rows=tuple(replace(row, chosen_tokens=20.0 + i % 40, rejected_tokens=20.0 + i % 40,
                                              chosen_logp_change=-float(i % 40))
                                      for i, row in enumerate(record.rows)))  # fmt: skip
    assert "length.reward" not in codes(even)


def test_the_root_is_named_once_and_its_effects_below_it() -> None:
    cut = rows(rejected_end_logp=-0.9, rejected_end_change=-0.8, chosen_logp_change=-10.0, rejected_logp_change=-16.0)
    cut = replace(cut, evaluations=end(chosen_logp_change=-10.0, rejected_logp_change=-16.0).evaluations)
    (found,) = diagnose(cut)
    assert (found.code, found.severity) == ("end.unlearned", "serious")
    assert found.effects[0].startswith("The chosen responses became less probable. On held-out rows")
    in_file = replace(cut, data=texts(unclosed={"chosen": 0.0, "rejected": 0.9}).data)
    (found,) = diagnose(in_file)
    assert found.code == "data.cut"
    titles = [effect.partition(".")[0] for effect in found.effects]
    assert titles == ["The model unlearns to stop", "The chosen responses became less probable"]
    every = {code for code, *_ in CASES}
    assert EXPLAINS.keys() <= every
    assert {effect for effects in EXPLAINS.values() for effect in effects} <= every


def test_tests_share_one_error_rate() -> None:
    """A p value of 2 % is a finding for a check alone, and none among eight."""
    for p, found in ((0.02, False), (0.005, True)):
        record = replace(word(), words=(replace(word().words[0], p=p),))
        assert ("reward.word" in codes(record)) is found


def test_calibration_is_that_of_the_labels() -> None:
    """Rewards of 2 that are right in 73 % are right with sigma(1): k is one half."""
    rewards = [2.0 if i < 731 else -2.0 for i in range(1000)]
    k = calibration(rewards, [str(i) for i in range(1000)])
    assert k.value == pytest.approx(0.5, abs=0.001)
    assert k.error == pytest.approx(1 / (2 * math.sqrt(1000 * 0.731 * 0.269)), rel=0.01)
    assert calibration([1.0] * 50, [str(i) for i in range(50)]).value == pytest.approx(40), (
        "no maximum where all are right"
    )


def test_remedies_name_objectives_that_exist() -> None:
    known = BY_NAME.keys() | presets.NAMES
    remedies = {f.remedy for _, _, ill, _ in CASES for check in CHECKS if (f := check(ill))}
    named = {name for text in remedies for name in re.findall(r'"([a-z_]+)"', text)} - {"skip", "float32", "preferred"}
    assert len(named) > 5
    assert named <= known


DOCS = Path(__file__).parents[2] / "docs" / "findings.md"


def test_the_list_of_findings_is_complete() -> None:
    listed = re.findall(r"^\| `([a-z_.]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted({code for code, *_ in CASES})


def test_no_advice_that_the_model_has_no_positions_for() -> None:
    long = train(skipped={"too_long": 160})
    limited = replace(long, data=replace(long.data, max_tokens=512))
    chosen = replace(limited, run={**limited.run, "data": {"max_tokens": 512}})
    for record, advice in ((long, "raise data.max_tokens"), (limited, "only 512 positions"),
                           (chosen, "raise data.max_tokens")):  # fmt: skip
        assert advice in finding_of(record, "shift.skipped").remedy
    assert "too long" not in finding_of(train(skipped={"pair.identical": 160}), "shift.skipped").remedy


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_missing_numbers_are_no_crash(check: Callable[[Record], object]) -> None:
    for record in (Record(path=Path("run")), _holes(None), _holes(math.nan)):
        check(record)


def _holes(hole: float | None) -> Record:
    """Every number missing, or none of them a number."""
    lines = [{key: value if key in ("step", "rows") else hole for key, value in line.items()} for line in (START, END)]
    blank = tuple({key: value if key == "step" else hole for key, value in step.items()} for step in STEPS)
    return replace(HEALTHY, evaluations=tuple(lines), steps=blank, rows=())


def test_demos_raise_no_pair_findings() -> None:
    """SFT has neither margin nor rejected; a rising chosen log-probability is what it is for."""
    demo: Numbers = {"step": 0, "rows": 400, "loss": 1.5, "chosen_mean_logp": -1.5, "chosen_tokens": 40.0}
    after: Numbers = {**demo, "step": 100, "loss": 1.2, "chosen_mean_logp": -1.2, "chosen_logp_change": 12.0}
    course = tuple({"step": i, "loss": 1.5 - 0.003 * i, "grad_norm": 1.0} for i in range(100))
    assert diagnose(Record(path=Path("sft"), evaluations=(demo, after), steps=course)) == []
    far = {**after, "rows": 11, "chosen_logp_change": 80.0}
    (held_out,) = diagnose(
        Record(path=Path("sft"), evaluations=({**demo, "chosen_mean_logp": -4.0}, far), steps=course)
    )
    assert held_out.code == "shift.held_out"
    assert "accuracy" not in held_out.evidence


def test_numbers_are_spelled() -> None:
    for value, text in (
        (0.0, "0"), (320.0, "320"), (1234567.0, "1,234,567"), (99.99, "100"), (12.345, "12.3"), (1.2345, "1.23"),
        (0.01234, "0.012"), (2.1e-7, "2.1e−7"), (-3.99, "−3.99"), (-0.0, "0"), (math.nan, "not a number"),
        (-math.inf, "−∞"), (None, "–"),
    ):  # fmt: skip
        assert number(value) == text
    assert number(3.14159, 1, sign=True) == "+3.1"
    assert number(-0.04, 1, sign=True) == "0.0", "a rounded zero has no sign"
    assert share(0.7284) == "72.8\u00a0%"


def test_a_penalty_that_a_run_has_is_not_asked_for() -> None:
    cut = drawn.phases(ended=(1.0, 0.4))
    table = {"reward": {"verify": "exact", "missing_end": 0.5}}
    remedies = [diagnose(record)[0].remedy for record in (cut, replace(cut, run=drawn.RLOO | table))]
    assert ["set reward.missing_end" in remedy for remedy in remedies] == [True, False]
    assert "raise reward.missing_end" in remedies[1]
