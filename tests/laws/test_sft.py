"""A run of SFT says perplexity, and calls its numbers as whoever tunes on demos expects."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import UNSET
from rich.console import Console

from preftune.cli.view import metrics_table, show_run
from preftune.config.run import Run
from preftune.diagnosis.finding import number
from preftune.record.reader import Record
from preftune.record.terminal import summary
from preftune.report import page
from preftune.run.train import train

Make = Callable[..., Run]


@pytest.fixture
def out(run_of: Make, tmp_path: Path) -> Path:
    """The record of a run on demos of several lengths, some of them with weights."""
    for part, count in (("train", 12), ("held", 6)):
        rows = [
            {"prompt": f"w{3 + k}", "completion": " w9" * (1 + k % 4), **({"weight": 2} if k == 1 else {}),
             **({"token_weights": [[1, 3, 0.5]]} if k == 2 else {})}
            for k in range(count)
        ]  # fmt: skip
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"data__train": str(tmp_path / "train.jsonl"), "data__evaluate": str(tmp_path / "held.jsonl")}
    return train(run_of(**keys, objective__name="nll", objective__norm="token", reference=None, reference__store=UNSET))


def test_perplexity_is_that_of_all_held_out_tokens(out: Path) -> None:
    """By its definition, from numbers of rows; the loss that means over tokens is its logarithm."""
    record = Record.open(out)
    tokens = [row.chosen_tokens for row in record.rows]
    logp = [row.chosen_logp for row in record.rows]
    weight = [2.0 if row.place.endswith(":2") else 1.0 for row in record.rows]
    halved = [0.5 if row.place.endswith(":3") else 0.0 for row in record.rows]
    summed = sum(w * x for w, x in zip(weight, logp, strict=True))
    counted = sum(w * (n - half) for w, n, half in zip(weight, tokens, halved, strict=True))
    per_token = summed / counted
    assert record.end["perplexity"] == pytest.approx(math.exp(-per_token))
    assert record.end["perplexity"] < record.start["perplexity"]


def test_page_and_terminal_call_it_so(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record.open(out)
    html = page([record])
    for words in (
        "held-out perplexity of",
        "Held-out perplexity",
        "Log-probability a token",
        "KL from the start",
    ):
        assert words in html
    assert "Chosen log-probability" not in html
    show_run(out)
    shown = capsys.readouterr().out
    for words in ("perplexity", "log-probability a token", "KL from the start"):
        assert words in shown
    assert "chosen" not in shown.partition("page ")[0]
    assert "perplexity" in summary({**record.end})


def test_a_page_of_several_runs_has_a_column_for_it(out: Path, run_of: Make) -> None:
    record = Record.open(out)
    both = page([record, record])
    assert '<th scope="col" class="n">Perplexity</th>' in both
    assert f'<td class="n">{number(record.end["perplexity"])}</td>' in both


def test_pairs_keep_their_words(run_of: Make) -> None:
    record = Record.open(train(run_of(optim__epochs=1)))
    console = Console(width=100, color_system=None)
    with console.capture() as shown:
        console.print(metrics_table(record.end))
    assert "chosen_logp " in shown.get()
    assert "perplexity" not in record.end
    assert "Chosen log-probability" in page([record])
