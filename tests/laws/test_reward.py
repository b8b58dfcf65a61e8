"""A reward model trains, resumes and is exported as every model, and says scores where others say nats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from several import on_ranks
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from preftune.config.run import Run
from preftune.diagnosis import diagnose
from preftune.errors import UserError
from preftune.files import read_lines
from preftune.record.reader import Record
from preftune.report import page
from preftune.run.score import score
from preftune.run.train import train
from preftune.training import loop

REWARD = {"objective__name": "reward", "reference__kind": "none", "reference__store": msgspec.UNSET}
CLOCKS = {"seconds", "time"}


def lines(out: Path, name: str = "metrics") -> list[dict]:
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in read_lines(out / f"{name}.jsonl")]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(row: dict) -> list[str]:
    return [f"{row['prompt']}{row[side]} </s>" for side in ("chosen", "rejected")]


def test_a_reward_model_learns_and_is_exported(run_of: Callable[..., Run], world: Path) -> None:
    out = train(run_of(**REWARD, optim__epochs=5, optim__lr=3e-3))
    first, *_, last = lines(out, "evaluations")
    assert first["loss"] == pytest.approx(math.log(2))
    assert first["accuracy"] == 0.5
    assert last["accuracy"] > 0.8
    assert last["margin"] == pytest.approx(last["chosen_score"] - last["rejected_score"])
    assert last["score_mean"] == pytest.approx((last["chosen_score"] + last["rejected_score"]) / 2)
    assert 0 <= last["calibration_error"] < 0.5
    for line in (*lines(out), last, *lines(out, "evaluation_rows")):
        assert not [
            key for key in line if line[key] is not None and ("logp" in key or key.endswith(("_reward", "_change")))
        ]
    said = {row["id"]: row for row in lines(out, "evaluation_rows")}
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(out / "model")
    assert theirs.config.num_labels == 1
    assert theirs.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    rows = [json.loads(line) for line in (world / "held.jsonl").read_text().splitlines()]
    batch = tokenizer([text for row in rows for text in texts(row)], padding=True, return_tensors="pt",
                      add_special_tokens=False)  # fmt: skip
    starts = said[rows[0]["id"]]["chosen_tokens"] + len(rows[0]["prompt"].split())
    begin = torch.full((len(batch.input_ids), int(int(batch.attention_mask[0].sum()) < starts)), 1)
    with torch.no_grad():
        logits = theirs(
            input_ids=torch.cat([begin, batch.input_ids], 1),
            attention_mask=torch.cat([torch.ones_like(begin), batch.attention_mask], 1),
        ).logits
    expected = [said[row["id"]][f"{side}_score"] for row in rows for side in ("chosen", "rejected")]
    assert np.allclose(logits[:, 0].numpy(), expected, atol=1e-4)


def test_page_and_findings_say_nothing_of_log_probabilities(run_of: Callable[..., Run]) -> None:
    record = Record.open(train(run_of(**REWARD, optim__epochs=4, optim__lr=3e-3)))
    text = page([record]).partition("<script>")[0]
    assert "reward modeling" in text
    assert "Where did the scores go?" in text
    assert "Calibration slope" in text
    shown = text.replace("log-ratio of chosen minus log-ratio of rejected (no beta); without a reference, of logp", "")
    shown = shown.replace("correlation of log-ratio (or score)", "").replace("larger log-ratio than a bad one", "")
    assert "log-probability" not in shown.lower()
    assert "log-ratio" not in shown
    for finding in diagnose(record):
        told = " ".join((finding.title, finding.evidence, finding.meaning, finding.remedy))
        assert "probab" not in told or finding.code == "reward.too_sure"
        assert "ln_dpo" not in told


def test_a_run_goes_on_to_the_same_bits(
    run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(run_of(**REWARD, out=str(tmp_path / "whole"), save__every=2))
    run, update = run_of(**REWARD, out=str(tmp_path / "cut"), save__every=2), loop.update

    def breaking(training: object, state: object, *rest: object) -> object:
        if state.step == 5:
            raise MemoryError
        return update(training, state, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "update", breaking)
        with pytest.raises(MemoryError):
            train(run)
    cut = train(run, resume=True)
    assert lines(whole) == lines(cut)
    assert lines(whole, "evaluations") == lines(cut, "evaluations")
    a, b = (load_file(out / "model" / "model.safetensors") for out in (whole, cut))
    assert "score.weight" in a
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_ranks_equal_one(run_of: Callable[..., Run], tmp_path: Path) -> None:
    keys = {**REWARD, "optim__epochs": msgspec.UNSET, "optim__steps": 2, "optim__lr": 1e-5}
    one, two = (run_of(**keys, out=str(tmp_path / name)) for name in ("one", "two"))
    out = train(one)
    assert on_ranks(2, tmp_path / "on", lambda _: str(train(two))) == [two.out] * 2
    for name in ("metrics", "evaluations"):
        for a, b in zip(lines(out, name), lines(Path(two.out), name), strict=True):
            for key in ("loss", "margin", "chosen_score", "rejected_score", "accuracy", "chosen_incentive"):
                if key in a:
                    assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-6), (name, key)


def test_rankings_votes_and_margins(run_of: Callable[..., Run], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    say = lambda low, high: " " + " ".join(f"w{i}" for i in rng.integers(low, high, 4))  # noqa: E731
    ranked = [{"prompt": "w5 w6", "responses": [say(3, 20), say(20, 40), say(40, 64)], "ranks": [1, 2, 3],
             "scores": [3, 2, 0]} for _ in range(24)]  # fmt: skip
    paired = [{"prompt": "w7", "chosen": say(3, 30), "rejected": say(30, 64), "preferred": 0.75,
              "score_chosen": 2, "score_rejected": 1, "category": name} for name in ("easy", "hard") * 12]  # fmt: skip
    files = [write(tmp_path / "ranked.jsonl", ranked[8:]), write(tmp_path / "paired.jsonl", paired[8:])]
    held = [write(tmp_path / "ranked_held.jsonl", ranked[:8]), write(tmp_path / "paired_held.jsonl", paired[:8])]
    run = run_of(**REWARD, data__train=files, data__evaluate=held, objective__margin=0.1,
                 objective__center=0.01, optim__epochs=12, optim__lr=3e-3)  # fmt: skip
    out = train(run)
    last = lines(out, "evaluations")[-1]
    assert last["accuracy_best_of_k"] > 0.8
    record = Record.open(out)
    assert {row.category for row in record.rows} == {"", "easy", "hard"}
    assert "By category" in page([record])
    scored = tmp_path / "scores.jsonl"
    asked = run_of(model__path=str(out / "model"), **REWARD, data__train=held, data__evaluate=None)
    means = score(asked, scored)
    assert means["accuracy"] == pytest.approx(last["accuracy"])
    written = list(read_lines(scored))
    assert [len(row["responses"]) for row in written[:8]] == [3] * 8
    assert written[-1]["chosen"].keys() == {"score", "tokens"}
    assert written[-1]["margin"] == pytest.approx(written[-1]["chosen"]["score"] - written[-1]["rejected"]["score"])


def test_rows_of_every_kind_are_scored(run_of: Callable[..., Run], tmp_path: Path) -> None:
    out = train(run_of(**REWARD))
    files = [
        write(tmp_path / "ratings.jsonl", [{"prompt": "w5", "response": " w6 w7", "label": True}]),
        write(tmp_path / "demos.jsonl", [{"prompt": "w5", "response": " w8"}]),
    ]
    scored = tmp_path / "scores.jsonl"
    score(run_of(model__path=str(out / "model"), **REWARD, data__train=files, data__evaluate=None), scored)
    assert [row["response"].keys() for row in read_lines(scored)] == [{"score", "tokens"}] * 2


def test_what_is_refused(run_of: Callable[..., Run], world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no reward model"):
        score(run_of(**REWARD, data__evaluate=None))
    out = train(run_of(**REWARD, optim__epochs=1))
    with pytest.raises(UserError, match=r"is a reward model .* no language model"):
        train(run_of(model__path=str(out / "model"), out=str(tmp_path / "dpo")))
    with pytest.raises(UserError, match=r"is a reward model .* no language model"):
        train(run_of(reference__path=str(out / "model"), out=str(tmp_path / "dpo2")))
    with pytest.raises(UserError, match=r"aggregate: a reward model reads a response's last token"):
        train(run_of(**REWARD, aggregate__name="mean"))
    with pytest.raises(UserError, match="this objective uses no reference"):
        train(run_of(objective__name="reward"))
    with pytest.raises(UserError, match="reward needs a score of each response"):
        train(run_of(**REWARD, objective__margin=1, out=str(tmp_path / "margin")))
