"""Every objective in a real run, and what is settled, followed and refused around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest

from preftune import objective as o
from preftune.config.load import load
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.files import read_lines
from preftune.run.train import train

TAGS = [table.__struct_config__.tag for table in get_args(o.Single)]
UNSET = msgspec.UNSET
FREE = {"reference__kind": "none", "reference__store": UNSET}


def told(out: Path, name: str = "metrics") -> list[dict]:
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "time")} for line in read_lines(out / f"{name}.jsonl")
    ]


def events(out: Path) -> dict[str, dict]:
    return {event["event"]: event for event in read_lines(out / "events.jsonl")}


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def scored(world: Path, tmp_path: Path) -> str:
    """The pairs of the world with scores; their number leaves one row for the last step of an epoch."""
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()][:17]
    return written(tmp_path / "scored.jsonl", [r | {"score_chosen": 0.9, "score_rejected": 0.2} for r in rows])


def keys_of(tag: str) -> dict[str, object]:
    """Without a reference there is no store to name."""
    free = "reference" not in o.BY_NAME[tag].reads
    return {"objective__name": tag} | (FREE if free else {})


@pytest.mark.parametrize("tag", TAGS)
def test_it_trains_and_says_what_it_is(tag: str, run_of: Callable[..., Run], scored: str) -> None:
    out = train(run_of(data__train=scored, data__evaluate=UNSET, data__holdout=0.2, optim__epochs=1, **keys_of(tag)))
    lines = told(out)
    assert len(lines) == 2
    for line in (*lines, *told(out, "evaluations")):
        assert np.isfinite(line["loss"])
    assert lines[0]["grad_norm"] > 0
    assert lines[0]["chosen_incentive"] is not None
    reading = load(out / "run.toml").objective.variant
    assert events(out).get("objective", {}).get("text", "") == reading


def test_kto_finds_its_weights_in_all_rows_and_writes_them_down(run_of: Callable[..., Run], tmp_path: Path) -> None:
    rows = [{"prompt": f"w{n % 5 + 3} w9", "completion": f" w{n + 4}", "label": n % 4 == 0} for n in range(16)]
    run = run_of(data__train=written(tmp_path / "rows.jsonl", rows), data__evaluate=UNSET, optim__epochs=2,
                 objective__name="kto", save__every=1)  # fmt: skip
    out = train(run)
    assert load(out / "run.toml").objective == o.KTO(good_weight=3.0, bad_weight=1.0)
    assert "weights 3 good, 1 bad" in events(out)["objective"]["text"]
    identity = json.loads((out / "identity.json").read_text())
    assert (identity["objective.good_weight"], identity["objective.bad_weight"]) == (3.0, 1.0)
    assert told(out)[0]["loss"] == pytest.approx(0.5 * (3 * 4 + 12) / 16, abs=1e-6), (
        "the step holds any mix, the weights one"
    )
    train(run, resume=True)  # the same rows settle the same weights, so it is the same run


def test_a_step_whose_rows_have_one_prompt_takes_its_drift_as_0(run_of: Callable[..., Run], tmp_path: Path) -> None:
    rows = [{"prompt": f"w{n + 3}", "completion": " w5", "label": n % 2 == 0} for n in range(9)]
    file = written(tmp_path / "rows.jsonl", rows)
    out = train(run_of(data__train=file, data__evaluate=UNSET, optim__epochs=2, objective__name="kto"))
    assert [line["drift"] is None for line in told(out)] == [False, True, False, True]
    assert told(out)[0]["drift_error"] is not None
    assert events(out)["drift"]["steps"] == 2
    with pytest.raises(UserError, match=r"batch\.rows: no step has rows of two prompts"):
        train(
            run_of(
                data__train=file, data__evaluate=UNSET, batch__rows=1, objective__name="kto", out=str(tmp_path / "b")
            )
        )


def test_what_beta_dpo_follows_goes_on_over_a_resume(run_of: Callable[..., Run], tmp_path: Path) -> None:
    keys = {"objective__name": "beta_dpo", "save__every": 3, "optim__epochs": 2, "data__evaluate": UNSET}
    whole, cut = (train(run_of(out=str(tmp_path / name), **keys)) for name in ("whole", "cut"))
    states = sorted((cut / "checkpoints").glob("step-*"))
    held = json.loads((states[0] / "state.json").read_text())["ema"][0]
    margins = [line["margin"] for line in told(whole)][: int(states[0].name[-8:])]
    mean = margins[0]
    for margin in margins[1:]:
        mean = 0.9 * mean + 0.1 * margin
    assert held == pytest.approx(mean, abs=1e-6)
    assert held != 0
    states[-1].rename(tmp_path / "lost")
    train(run_of(out=str(tmp_path / "cut"), **keys), resume=True)
    assert told(cut) == told(whole)
    packed = train(run_of(out=str(tmp_path / "packed"), batch__tokens=60, **keys))
    for one, other in zip(told(whole), told(packed), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_weights_of_one_each_change_no_bit(run_of: Callable[..., Run], tmp_path: Path, world: Path) -> None:
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    same = [row | {"chosen_token_weights": [[0, 2, 1]], "rejected_token_weights": [[0, 1, 1.0]]} for row in rows]
    half = [row | {"chosen_token_weights": [[0, 3, 0.5]]} for row in rows]
    plain, ones, halves = (
        train(run_of(data__train=written(tmp_path / f"{n}.jsonl", made), out=str(tmp_path / str(n)), optim__epochs=1))
        for n, made in enumerate((rows, same, half))
    )
    assert told(plain) == told(ones) != told(halves)
    assert events(ones)["token_weights"]["text"] == "50 of 62 rows give token weights"
    assert "token_weights" not in events(plain)


def scores_of(rows: list[dict]) -> list[dict]:
    return [row | {"score_chosen": 1.0, "score_rejected": 0.5} for row in rows]


def test_scores_that_some_rows_lack_are_read_in_none(run_of: Callable[..., Run], tmp_path: Path, world: Path) -> None:
    """Otherwise which rows share a pack would decide what they are led to."""
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()][:16]
    keys = {"data__evaluate": UNSET, "optim__epochs": 1, "objective__name": "info_nca"}
    files = [written(tmp_path / f"{n}.jsonl", made) for n, made in enumerate((rows, [*scores_of(rows[:9]), *rows[9:]]))]
    bare, mixed = (train(run_of(data__train=f, out=f[:-6], **keys)) for f in files)
    assert told(bare) == told(mixed)
    assert events(mixed)["scores"]["rows"] == 7
    assert "7 of 16 rows have no scores" in events(mixed)["scores"]["text"]
    assert "scores" not in events(bare)


RATED = [{"prompt": f"w{n + 3}", "completion": " w5 w6", "label": n % 2 == 0} for n in range(8)]
ONLY_SCORED = [{"prompt": f"w{n + 3}", "completion": " w5 w6", "score": n / 8} for n in range(8)]
RANKED = [{"prompt": f"w{n + 3}", "responses": [" w5", " w6 w7", " w8"], "scores": [0.1, 0.9, n / 8]} for n in range(8)]
REFUSED = {
    "one response": (
        RATED,
        {"objective__name": "kto", "aggregate__name": "ld"},
        "aggregate: these rows have one response",
    ),
    "one response, drawn": (
        RATED,
        {"objective__name": "nll", "aggregate__name": "sampo", **FREE},
        "aggregate",
    ),
    "no label": (ONLY_SCORED, {"objective__name": "kto"}, "rows.jsonl:1: this row has a score and no label"),
    "no score": (RATED, {"objective__name": "dro"}, "rows.jsonl:1: the objective dro needs a score"),
    "no quantile": (
        [row | {"score": 7} for row in ONLY_SCORED],
        {"objective__name": "qrpo"},
        "rows.jsonl:1: qrpo reads quantiles",
    ),
    "a ranking": (
        RANKED,
        {"objective__name": "kto"},
        "this row is a ranking, and the objective kto needs a rating or pair",
    ),
    "pairs": (RATED, {"objective__name": "dpo"}, "needs a pair or ranking. Objectives for it: kto, nll"),
    "tasks": (
        [{"prompt": row["prompt"], "ground_truth": 1} for row in RATED],
        {"objective__name": "dpo"},
        "rows.jsonl:1: this row is a task, and the objective dpo needs a pair or ranking. Add [rollout]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_do_not_fit_are_refused(case: str, run_of: Callable[..., Run], tmp_path: Path) -> None:
    rows, keys, sentence = REFUSED[case]
    with pytest.raises(UserError) as raised:
        train(run_of(data__train=written(tmp_path / "rows.jsonl", rows), data__evaluate=UNSET, **keys))
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("rows", "objective"),
    [
        (ONLY_SCORED, "qrpo"),
        (ONLY_SCORED, "dro"),
        (ONLY_SCORED, "nll"),
        (RANKED, "qrpo"),
        (RANKED, "dro"),
        (RANKED, "dpo"),
    ],
)
def test_scores_alone_are_enough_for_what_reads_them(
    rows: list[dict], objective: str, run_of: Callable[..., Run], tmp_path: Path
) -> None:
    file = written(tmp_path / "rows.jsonl", rows)
    lines = told(
        train(run_of(data__train=file, data__evaluate=UNSET, optim__epochs=3, optim__lr=2e-4, **keys_of(objective)))
    )
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_responses_are_counted(run_of: Callable[..., Run], tmp_path: Path) -> None:
    for n, (rows, objective) in enumerate(((RANKED, "dpo"), (RATED, "kto"))):
        keys = {"data__train": written(tmp_path / f"{n}.jsonl", rows), "data__evaluate": UNSET, "data__holdout": 0.3}
        out = train(run_of(**keys, optim__epochs=1, objective__name=objective, out=str(tmp_path / objective)))
        (start, end) = told(out, "evaluations")
        assert (end["rows"], end["responses"]) == ((2, 6), (2, 2))[n]
        assert start["accuracy"] == 0.5, "a policy that equals its reference is right in half of them"


def test_a_margin_is_a_difference_of_scores(run_of: Callable[..., Run], tmp_path: Path, world: Path) -> None:
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()][:16]
    made = ([row | {"margin": 0.5} for row in rows], scores_of(rows))
    keys = {"data__evaluate": UNSET, "optim__epochs": 1, "objective__name": "rebel"}
    one, two = (
        train(run_of(data__train=written(tmp_path / f"{n}.jsonl", m), out=str(tmp_path / str(n)), **keys))
        for n, m in enumerate(made)
    )
    assert told(one) == told(two)
    both = written(tmp_path / "both.jsonl", [row | {"margin": 0.4} for row in scores_of(rows)])
    with pytest.raises(UserError, match=r'both\.jsonl:1.*"margin" is 0\.4, but "score_chosen" minus'):
        train(run_of(data__train=both, **keys))


def test_rows_of_several_kinds_serve_the_parts_that_they_can(
    run_of: Callable[..., Run], tmp_path: Path, world: Path
) -> None:
    """Pairs and demos under one sum: packs and their order decide nothing, and what sees what is said."""
    pairs = scores_of([json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()][:12])
    demos = [{"prompt": f"w{n + 3} w4", "completion": " w5 w6"} for n in range(6)]
    files = [written(tmp_path / f"{name}.jsonl", rows) for name, rows in (("pairs", pairs), ("demos", demos))]
    parts = [{"name": "rebel"}, {"name": "nll", "norm": "token"}, {"name": "beta_dpo"}]
    keys = {"data__train": files, "data__evaluate": UNSET, "optim__epochs": 2, "batch__rows": 6,
            "objective__name": "sum", "objective__parts": parts}  # fmt: skip
    one = train(run_of(out=str(tmp_path / "one"), **keys))
    small = train(run_of(out=str(tmp_path / "small"), batch__tokens=40, **keys))
    for a, b in zip(told(one), told(small), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    assert events(one)["parts"]["text"] == "of 18 rows, parts of the objective see only some: rebel 12, beta_dpo 12"
    with pytest.raises(
        UserError, match=r"demos\.jsonl:1: this row is a demo, and the objective dpo \+ ipo needs a pair or ranking"
    ):
        train(run_of(**keys | {"objective__parts": [{"name": "dpo"}, {"name": "ipo"}]}))
    with pytest.raises(UserError, match=r"objective\.parts: no row serves dpo, which needs a pair or ranking"):
        train(run_of(**keys | {"data__train": files[1], "objective__parts": [{"name": "dpo"}, {"name": "nll"}]}))


@pytest.mark.parametrize(("rows", "objective"), [(RANKED, "plackett_luce"), (RATED, "dpo"), (RATED, "kto")])
def test_a_choice_of_pairs_where_there_is_none_is_refused(
    rows: list[dict], objective: str, run_of: Callable[..., Run], tmp_path: Path
) -> None:
    file = written(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"data\.rankings: .*so the key has no effect"):
        train(run_of(data__train=file, data__evaluate=UNSET, data__rankings="best", objective__name=objective))
