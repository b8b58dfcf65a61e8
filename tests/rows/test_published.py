"""Rows in forms as people publish them: each file is read as what it means, or refused by the name of a key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from preftune.errors import UserError
from preftune.rows.read import read
from preftune.rows.row import KINDS, Pair, responses, text_of

READ = {
    "arena140k.jsonl": "pair",
    "arena33k.jsonl": "pair",
    "bedrock_nova_dpo.jsonl": "pair",
    "capybara.jsonl": "pair",
    "datasets52_one_extra_key.parquet": "pair",
    "distilabel_uf_task.jsonl": "ranking",
    "dolci_dpo.jsonl": "pair",
    "halos_pairwise.json": "pair",
    "helpsteer2_pref.jsonl": "pair",
    "dolci_calls.jsonl": "pair",
    "dolci_env.jsonl": "pair",
    "json_string_messages.jsonl": "pair",
    "judgebench.jsonl": "pair",
    "message_weight.jsonl": "demo",
    "nectar.jsonl": "ranking",
    "nemo_pref.jsonl": "pair",
    "orca_argilla_ties.jsonl": "pair",
    "reasoning_content.jsonl": "pair",
    "reward_key.jsonl": "rating",
    "rewardbench2.jsonl": "ranking",
    "stackexchange_paired.jsonl": "pair",
    "swift_ppo_margin.jsonl": "pair",
    "swift_prompt_response_rejected.jsonl": "pair",
    "swift_query_response.jsonl": "pair",
    "swift_rejected_response.jsonl": "pair",
    "system_prompt_key.jsonl": "pair",
    "tldr_comparisons.jsonl": "pair",
    "uf_mixed_scale.jsonl": "ranking",
    "ultrafeedback_raw_empty.jsonl": "ranking",
}
REFUSED = {
    "beavertails.jsonl": '"is_safe" (a judgement)',
    "helpsteer2.jsonl": '"helpfulness" (a judgement)',
    "question_plus_context.jsonl": '"context" (a part of what was asked)',
    "question_plus_input.jsonl": '"input" (a part of what was asked)',
    "rlaifv.jsonl": '"image" (a picture or a sound)',
    "thumbs.jsonl": '"feedback" (a judgement)',
    "pku_saferlhf.jsonl": '"better_response_id" and "safer_response_id" both say which response is better',
}
Shared = Callable[[str], Path]


@pytest.mark.parametrize("name", READ)
def test_what_is_read(name: str, shared: Shared) -> None:
    reading = read(str(shared(f"data/published/{name}")))
    assert {KINDS[type(row)] for row in reading.rows} == {READ[name]}
    assert len(reading.rows) == 10 - len(reading.skipped)
    assert [problem.reason for problem in reading.skipped] == ["row.hole"] * (name == "ultrafeedback_raw_empty.jsonl")
    texts = [text_of(response) for row in reading.rows for response in responses(row)]
    assert not any(text.startswith(("[", "{")) for text in texts)
    spaced = [row for row in reading.rows if isinstance(row, Pair) and text_of(row.rejected).startswith(" ")]
    assert len(spaced) == 10 * (name == "tldr_comparisons.jsonl")  # these go on from the prompt's `TL;DR:`


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_name(name: str, shared: Shared) -> None:
    with pytest.raises(UserError) as caught:
        read(str(shared(f"data/published/{name}")))
    (problem,) = caught.value.problems
    assert REFUSED[name] in str(problem)
    assert "(and 9 more rows, up to 10)" in str(problem)


@pytest.mark.parametrize("name", [name for name, kind in READ.items() if kind == "pair" and "arena" not in name])
def test_the_right_sum_is_chosen(name: str, shared: Shared) -> None:
    """All published rows ask for a sum, and one side guesses it."""
    for row in read(str(shared(f"data/published/{name}"))).rows:
        assert isinstance(row, Pair)
        assert row.preferred == 0.5 or ["Perhaps" in text_of(side) for side in (row.chosen, row.rejected)] == [
            False,
            True,
        ]


@pytest.mark.parametrize("name", ["arena33k.jsonl", "arena140k.jsonl"])
def test_who_won_is_chosen(name: str, shared: Shared) -> None:
    rows = [row for row in read(str(shared(f"data/published/{name}"))).rows if isinstance(row, Pair)]
    guessed = ["Perhaps" in text_of(row.chosen) for row in rows if row.preferred == 1]
    assert guessed == [False, True] * 3  # model_a, model_b, and model_b guesses


def test_which_of_two_verdicts_counts_is_asked(shared: Shared) -> None:
    path = str(shared("data/published/pku_saferlhf.jsonl"))
    chosen = [[row.chosen for row in read(path, columns={key: ""}).rows if isinstance(row, Pair)]
              for key in ("safer_response_id", "better_response_id")]  # fmt: skip
    assert [len(side) for side in chosen] == [10, 10]
    assert sum(a != b for a, b in zip(*chosen, strict=True)) == 5


def test_ties_prefer_neither(shared: Shared) -> None:
    ties = {"orca_argilla_ties.jsonl": 4, "capybara.jsonl": 1, "arena33k.jsonl": 4, "arena140k.jsonl": 4}
    for name, tied in ties.items():
        rows = read(str(shared(f"data/published/{name}"))).rows
        assert Counter(row.preferred for row in rows if isinstance(row, Pair)) == {0.5: tied, 1.0: 10 - tied}


def test_every_published_file_is_named(shared: Shared) -> None:
    names = {path.name for path in shared("data/published").iterdir()} - {"README.md"}
    assert names == {*READ, *REFUSED}
