"""Rows in forms as people publish them: each file is read as what it means, or refused by the name of a key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from preftune.errors import UserError
from preftune.rows.read import read
from preftune.rows.row import KINDS, Pair, responses, text_of

READ = {  # kinds, and the reasons of rows that are left out
    "capybara.jsonl": "pair",
    "datasets52_one_extra_key.parquet": "pair",
    "distilabel_uf_task.jsonl": "ranking",
    "dolci_dpo.jsonl": "pair",
    "json_string_messages.jsonl": "pair",
    "message_weight.jsonl": "demo",
    "nectar.jsonl": "ranking",
    "orca_argilla_ties.jsonl": "pair",
    "reasoning_content.jsonl": "pair",
    "reward_key.jsonl": "rating",
    "rewardbench2.jsonl": "ranking",
    "swift_ppo_margin.jsonl": "pair",
    "swift_prompt_response_rejected.jsonl": "pair",
    "swift_query_response.jsonl": "pair",
    "swift_rejected_response.jsonl": "pair",
    "system_prompt_key.jsonl": "pair",
    "uf_mixed_scale.jsonl": "ranking",
    "ultrafeedback_raw_empty.jsonl": "ranking",
}
REFUSED = {
    "beavertails.jsonl": '"is_safe" (a judgement)',
    "dolci_calls.jsonl": '"chosen[].function_calls" (a tool)',
    "dolci_env.jsonl": "'environment', which is no known role",
    "helpsteer2.jsonl": '"helpfulness" (a judgement)',
    "question_plus_context.jsonl": '"context" (a part of what was asked)',
    "question_plus_input.jsonl": '"input" (a part of what was asked)',
    "rlaifv.jsonl": '"image" (a picture or a sound)',
    "thumbs.jsonl": '"feedback" (a judgement)',
    # Forms of two responses beside which one is the better are not read yet.
    "arena140k.jsonl": "winner",
    "arena33k.jsonl": "winner",
    "bedrock_nova_dpo.jsonl": "candidates",
    "halos_pairwise.json": "output_A",
    "helpsteer2_pref.jsonl": "preference_strength",
    "judgebench.jsonl": "response_A",
    "nemo_pref.jsonl": "completions",
    "pku_saferlhf.jsonl": "better_response_id",
    "stackexchange_paired.jsonl": "response_j",
    "tldr_comparisons.jsonl": "choice",
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
    assert all(text_of(row.rejected) == text_of(row.rejected).strip() for row in reading.rows if isinstance(row, Pair))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_name(name: str, shared: Shared) -> None:
    with pytest.raises(UserError) as caught:
        read(str(shared(f"data/published/{name}")))
    (problem,) = caught.value.problems
    assert REFUSED[name] in str(problem)
    assert "(and 9 more rows, up to 10)" in str(problem)


def test_ties_prefer_neither(shared: Shared) -> None:
    for name, tied in (("orca_argilla_ties.jsonl", 4), ("capybara.jsonl", 1)):
        rows = read(str(shared(f"data/published/{name}"))).rows
        assert Counter(row.preferred for row in rows if isinstance(row, Pair)) == {0.5: tied, 1.0: 10 - tied}


def test_every_published_file_is_named(shared: Shared) -> None:
    names = {path.name for path in shared("data/published").iterdir()} - {"README.md"}
    assert names == {*READ, *REFUSED}
