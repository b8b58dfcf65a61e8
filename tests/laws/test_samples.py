"""Every run draws to some held-out prompts before and after training, and says what that shows."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from making import group
from several import on_ranks

from preftune.config.run import Run
from preftune.distributed import Distributed
from preftune.errors import UserError
from preftune.events import StepDone
from preftune.files import read_lines
from preftune.record.reader import Record
from preftune.rollout.embedded import Embedded
from preftune.rollout.samples import chosen_prompts, end_tokens_of, repeated
from preftune.run import prepare
from preftune.run.train import train
from preftune.signals import Stopped

DRAWN = {"tokens", "ended", "repeated", "start_mean_logp"}


def test_texts_before_and_after_with_what_the_rows_say(run_of: Callable[..., Run]) -> None:
    out = train(run_of(optim__lr=3e-3))
    record = Record.open(out)
    assert 0 < len(record.samples) <= 12
    for sample in record.samples:
        assert sample.after is not None
        assert sample.chosen != sample.rejected
        assert len(sample.before.draws) == len(sample.after.draws) == 3
    assert any(sample.before.greedy != sample.after.greedy for sample in record.samples if sample.after)
    assert record.start.keys() >= DRAWN
    assert record.end["kl"] > 5 * record.end["kl_error"] > 0  # type: ignore[operator]
    assert record.end["start_mean_logp"] < 0  # type: ignore[operator]
    assert "What the model writes" in (out / "report.html").read_text()


def test_none_are_drawn_where_none_are_asked_for_or_nothing_is_held_out(
    run_of: Callable[..., Run], tmp_path: Path
) -> None:
    for name, keys in (("off", {"evaluate__samples": 0}), ("alone", {"data__evaluate": None})):
        out = train(run_of(out=str(tmp_path / name), optim__epochs=1, **keys))
        assert not (out / "samples.json").exists()
        assert all(line.keys().isdisjoint(DRAWN) for line in read_lines(out / "evaluations.jsonl"))


def test_texts_change_no_number_of_the_run(run_of: Callable[..., Run], tmp_path: Path) -> None:
    a, b = (train(run_of(out=str(tmp_path / str(count)), evaluate__samples=count)) for count in (0, 5))
    assert len(json.loads((b / "samples.json").read_text())) == 5
    one, two = ([line["loss"] for line in read_lines(out / "metrics.jsonl")] for out in (a, b))
    assert one == two
    assert (a / "model" / "model.safetensors").read_bytes() == (b / "model" / "model.safetensors").read_bytes()


def test_the_same_prompts_whatever_the_order() -> None:
    rows = [group([3, 4, n], [5, 6, 2], [7, 2]) for n in (8, 9, 10, 11, 8)]
    prompts = [g.prompt.tolist() for g in chosen_prompts(rows, 3)]
    assert prompts == [g.prompt.tolist() for g in chosen_prompts(rows[::-1], 3)]
    assert len(chosen_prompts(rows, 9)) == 4
    assert end_tokens_of(rows, [], 1) == {1, 2}
    assert end_tokens_of([*rows, group([3], [5, 9], [7, 6])], [0, 9], 1) == {1, 2, 9}  # 9 ends a call


@pytest.mark.parametrize(("ids", "share"), [([1, 2, 3, 4, 5], 0.0), ([1, 2, 3] * 4, 0.7), ([1, 2], None)])
def test_repeated_3_grams(ids: list[int], share: float | None) -> None:
    assert repeated([np.array(ids)]) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize("failure", [UserError("the folder has gone."), torch.OutOfMemoryError()], ids=["gone", "full"])
def test_a_start_that_cannot_be_loaded_again_ends_no_run(
    failure: Exception, run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise failure

    monkeypatch.setattr(prepare, "start_model", lost)
    record = Record.open(train(run_of(optim__epochs=1)))
    assert record.end["ended"] is not None
    assert "kl" not in record.end
    assert "no_start" in {event.kind for event in record.events}


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_rank_cannot_draw_none_does_and_the_run_goes_on(
    rank: int, run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, right = run_of(optim__epochs=1), Embedded.draw

    def work(dist: Distributed) -> None:
        def draw(self: Embedded, *asked: object) -> object:
            if dist.rank == rank:
                raise UserError("the model cannot draw: no.")
            return right(self, *asked)  # type: ignore[arg-type]

        monkeypatch.setattr(Embedded, "draw", draw)
        train(run)

    assert on_ranks(2, tmp_path / "ranks", work) == [None, None]
    told = [event.text for event in Record.open(Path(run.out)).events if event.kind == "no_samples"]
    assert told
    assert all("the model cannot draw" in text for text in told)


def test_a_signal_while_samples_are_drawn_ends_the_run(
    run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embedded, "draw", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGTERM"):
        train(run_of(optim__epochs=1))


@pytest.mark.parametrize("content", ["[]", "{", '[{"a": 1}]'])
def test_a_damaged_file_of_texts_ends_no_run(content: str, run_of: Callable[..., Run]) -> None:
    run = run_of(optim__epochs=1)

    def damage(event: object) -> None:
        if isinstance(event, StepDone):
            (Path(run.out) / "samples.json").write_text(content)

    record = Record.open(train(run, sinks=[damage]))
    assert all(sample.after is not None for sample in record.samples)
    assert record.samples
