"""`preftune draw`: prompts of any rows in, responses with what the model says of them out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import save_model, save_pairs

from preftune.cli.draw import draw
from preftune.errors import UserError


def test_responses_are_drawn_to_the_prompts_of_pairs(tmp_path: Path) -> None:
    model, rows, out = save_model(tmp_path / "model"), save_pairs(tmp_path / "rows.jsonl", 3), tmp_path / "out.jsonl"
    draw(str(model), rows, responses=2, max_tokens=6, out=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    asked = [json.loads(line)["prompt"] for line in rows.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == asked
    for line in lines:
        assert len(line["responses"]) == 2
        assert all(r["logp"] < 0 and 1 <= r["tokens"] <= 6 for r in line["responses"])
    draw(str(model), rows, responses=2, max_tokens=6, greedy=True, out=out)
    greedy = [json.loads(line)["responses"] for line in out.read_text().splitlines()]
    assert all(first == second for first, second in greedy)
    with pytest.raises(UserError, match="-k 0"):
        draw(str(model), rows, responses=0)


def test_a_response_takes_what_the_model_has_room_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the positions where those are few; an error names the flag that was typed."""
    model = save_model(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "w3 w4"}\n')
    draw(str(model), rows, responses=1)
    (line,) = capsys.readouterr().out.splitlines()
    assert 0 < json.loads(line)["responses"][0]["tokens"] <= 256
    with pytest.raises(UserError, match=r"^--max-tokens: a response of 100000 tokens"):
        draw(str(model), rows, responses=1, max_tokens=100_000)
