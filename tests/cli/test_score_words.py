"""The words of `preftune score`: a run or a model and a file of rows may stand by themselves; nothing is said twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import save_model

from preftune.cli.score import score, words_of
from preftune.config.load import load
from preftune.errors import UserError
from preftune.objective import Reward

NAMED = {
    "RUN rows.jsonl": "RUN model.path=RUN/model data.train=rows.jsonl",
    "RUN": "RUN model.path=RUN/model",
    "RUN rows.jsonl objective=simpo": "RUN reference=none model.path=RUN/model objective=simpo data.train=rows.jsonl",
    "RUN rows.jsonl objective=ipo": "RUN reference=stored model.path=RUN/model objective=ipo data.train=rows.jsonl",
    "my-model rows.jsonl seed=1": "seed=1 model.path=my-model data.train=rows.jsonl",
    "run.toml rows.jsonl": "run.toml data.train=rows.jsonl",
    "model.path=m rows.jsonl": "model.path=m data.train=rows.jsonl",
}


@pytest.mark.parametrize("line", NAMED)
def test_words_name_a_run_or_a_model_and_a_file(line: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    meant = NAMED[line].replace("RUN", str(tmp_path)).split()
    assert words_of(line.replace("RUN", str(tmp_path)).split(), None) == meant


def test_a_reward_model_may_be_a_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    assert words_of(["rows.jsonl"], str(tmp_path))[1] == f"model.path={tmp_path / 'model'}"


def test_a_file_of_rows_may_stand_by_itself() -> None:
    words = words_of(["rows.jsonl", "data.max_tokens=64"], "runs/rm/model")
    run = load(None, words)
    assert (run.data.train, run.model.path, run.objective) == ("rows.jsonl", "runs/rm/model", Reward())
    assert run.data.max_tokens == 64
    assert words_of(["run.toml"], "m")[0] == "run.toml"


def test_what_the_flag_says_is_not_said_twice() -> None:
    for word in ("objective=dpo", "model.path=other"):
        with pytest.raises(UserError, match="cannot stand beside --reward"):
            words_of([word, "rows.jsonl"], "m")
    with pytest.raises(UserError, match="second file of rows"):
        words_of(["a.jsonl", "b.jsonl"], "m")


def test_scores_of_sft_are_told_in_its_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `preftune train` tells them: nothing was chosen."""
    monkeypatch.chdir(tmp_path)
    model, rows = str(save_model(tmp_path / "model")), tmp_path / "demos.jsonl"
    rows.write_text('{"prompt": "w3 w4", "response": "w5 w6"}\n{"prompt": "w4", "response": "w7"}\n')
    score(model, str(rows), "objective=sft")
    shown = capsys.readouterr().out
    assert "log-probability a token" in shown
    assert "perplexity" in shown
    assert "chosen" not in shown
