"""A file that a command writes replaces none but an earlier one of its own kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.errors import UserError
from preftune.record.output import DRAWS, FIGURES, PAGE, SCORES, STUDY, Kind, assert_replaceable

SCORED = {"id": "1", "place": "rows.jsonl:1", "chosen": {"logp": -1.0, "tokens": 2}, "rejected": {}, "margin": 0.0}
RANKED = {"id": "1", "place": "rows.jsonl:1", "responses": [{"score": "NaN", "tokens": 2}], "ranks": [1]}
RATED = {"id": "1", "place": "rows.jsonl:1", "response": {"score": 1.0, "tokens": 2}}
DRAWN = {"id": "1", "prompt": "a", "responses": [{"text": "b", "logp": -1.0, "tokens": 2, "ended": True}]}
RANKING = {"id": "1", "prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}
HEAD = '<!doctype html>\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="preftune">'
STUDIED = {"beta": 1, "ceiling": [], "frontier": []}
OURS = [(SCORES, SCORED), (SCORES, RANKED), (SCORES, RATED), (DRAWS, DRAWN), (PAGE, HEAD), (STUDY, HEAD),
        (PAGE, "<title>a, b · preftune report</title>"), (FIGURES, STUDIED)]  # fmt: skip
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
OTHERS = ["mine", "[]", "null", "[" * 100_000, "\0", {"id": "1"}, PAIR, RANKING,
          {"id": "1", "prompt": "a", "responses": 3}, "<!doctype html><title>mine</title>"]  # fmt: skip


def written(path: Path, content: object) -> Path:
    path.write_text(f"{content if isinstance(content, str) else json.dumps(content)}\nmore\n" * 2)
    return path


@pytest.mark.parametrize(("kind", "content"), OURS, ids=range(len(OURS)))
def test_what_a_verb_has_written_it_may_replace(kind: Kind, content: object, tmp_path: Path) -> None:
    out = written(tmp_path / "out", content)
    if kind == FIGURES:
        out.write_text(json.dumps(content, indent=2))
    assert_replaceable(out, kind)
    with pytest.raises(UserError, match=r"^--out .*out: this is an input of this command\. Name another file"):
        assert_replaceable(out, kind, [out])
    other = SCORES if kind is DRAWS else DRAWS
    with pytest.raises(UserError, match=f"and preftune {other.verb} has not written it"):
        assert_replaceable(out, other)


@pytest.mark.parametrize("content", OTHERS, ids=lambda content: str(content)[:20])
def test_no_file_of_another_is_replaced(content: object, tmp_path: Path) -> None:
    for kind in (SCORES, DRAWS, PAGE, STUDY, FIGURES):
        with pytest.raises(UserError, match="this file is there already"):
            assert_replaceable(written(tmp_path / "out", content), kind)


def test_nothing_is_written_among_the_inputs_or_in_place_of_what_is_no_file(tmp_path: Path) -> None:
    model, rows = tmp_path / "model", written(tmp_path / "rows.jsonl", SCORED)
    model.mkdir()
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "linked.jsonl").symlink_to(rows)
    for out in (model / "new.jsonl", tmp_path / "link" / "new.jsonl"):
        with pytest.raises(UserError, match=r"this lies in .*model, an input"):
            assert_replaceable(out, SCORES, [rows, model])
    with pytest.raises(UserError, match="this is an input of this command"):
        assert_replaceable(tmp_path / "linked.jsonl", SCORES, [rows])
    with pytest.raises(UserError, match=r"this is a folder\. Name a file"):
        assert_replaceable(model, SCORES)
    with pytest.raises(UserError, match="this is not an ordinary file"):
        assert_replaceable(Path("/dev/null"), SCORES)
    (tmp_path / "empty").touch()
    for name in ("empty", "new"):
        assert_replaceable(tmp_path / name, SCORES, [rows, model])
