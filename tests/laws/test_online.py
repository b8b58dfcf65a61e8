"""A run that draws what it learns from is one run: however often it is killed, and on however many ranks."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killed import AN_UPDATE, Killed, killed_at
from msgspec.structs import replace as changed
from safetensors.numpy import load_file as read_file
from safetensors.torch import load_file
from several import ends, on_ranks

from preftune import objective as o
from preftune.cli.view import show_run
from preftune.config.run import Run
from preftune.distributed import SINGLE_PROCESS, Distributed
from preftune.errors import STOPPED, USAGE, UserError
from preftune.files import read_lines
from preftune.objective.rollouts import RolloutFormula
from preftune.pack.plan import Phase
from preftune.record.of_rewards import evaluation_metrics
from preftune.record.reader import Record
from preftune.reference.config import Moving
from preftune.report.figures import evaluations
from preftune.rollout import numbers, phase
from preftune.rollout.config import Reward, Rollout, Value
from preftune.rollout.derive import error_over_prompts
from preftune.rollout.draw import Drawn
from preftune.rollout.embedded import Embedded
from preftune.rollout.evaluate import SEED, START, chosen_tasks
from preftune.rollout.numbers import Numbers
from preftune.rollout.redraw import redrawn
from preftune.rollout.tasks import Task
from preftune.rows.row import Place
from preftune.run.online import prepare_online
from preftune.run.train import new_state, train
from preftune.training.loop import fit

CLOCKS = {"seconds", "seconds_draw", "seconds_score", "time"}
OBJECTIVES = (
    o.RLOO(), o.GRPO(scale="group"), o.PPO(), o.ReinforcePP(), o.DPO(), o.IPO(), o.SimPO(), o.PlackettLuce(),
    o.NCA(), o.DRO(), o.BetaDPO(),
)  # fmt: skip


def words(prompt: str, responses: Sequence[str], answer: str | None) -> list[float]:
    """How many different words a response has."""
    return [len(set(response.split())) / 4 for response in responses]


@pytest.fixture
def online(run_of: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """A run that draws to the prompts of the made rows: 2 phases an epoch of up to 4 tasks, 2 updates each."""

    def make(objective: object = o.RLOO(), **keys: object) -> Run:
        keys = {"rollout__tasks": 4, "rollout__responses": 3, "rollout__max_tokens": 5, "batch__rows": 2,
                "save__every": 1, "evaluate__samples": 0, "optim__epochs": None, "optim__steps": 8} | keys  # fmt: skip
        run = run_of(**keys)
        data = changed(run.data, train=[{"prompt": f"w{i} w{i + 3} w{i + 7}"} for i in range(3, 10)], evaluate=None)
        return changed(run, objective=objective, reward=words, data=data)

    return make


def lines(out: Path, name: str) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in read_lines(out / f"{name}.jsonl")]


def tensors(out: Path) -> dict[str, torch.Tensor]:
    files = [path for path in (out / "model", out / "value") if path.exists()]
    return {f"{path.name}/{k}": v for path in files for k, v in load_file(path / "model.safetensors").items()}


def assert_same(a: Path, b: Path) -> None:
    one, two = tensors(a), tensors(b)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert lines(a, "metrics") == lines(b, "metrics")
    assert lines(a, "phases") == lines(b, "phases")


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_every_objective_learns_from_draws(objective: o.Formula, online: Callable[..., Run]) -> None:
    run = online(objective, reference__store="memory") if "reference" in objective.reads else online(objective)
    out = train(changed(run, reference=run.reference if "reference" in objective.reads else None))
    metrics, phases = lines(out, "metrics"), lines(out, "phases")
    assert [line["step"] for line in metrics] == list(range(1, 9))
    assert [line["step"] for line in phases] == [0, 2, 4, 6]
    assert all(np.isfinite(line["loss"]) for line in metrics)
    assert any(line["grad_norm"] > 0 for line in metrics)
    assert all(line["responses"] in (9, 12) for line in phases)
    if isinstance(objective, RolloutFormula):  # its derivative is by each token, and none of a response
        assert metrics[0]["chosen_incentive"] is None
    assert (metrics[0]["value_loss"] is not None) == isinstance(objective, o.PPO)
    assert (out / "value").exists() == isinstance(objective, o.PPO)


@pytest.mark.parametrize("objective", [o.RLOO(clip=0.2), o.PPO(), o.DPO()], ids=lambda objective: objective.name)
@pytest.mark.parametrize("where", ["draw", "file", "first update", "update"])
def test_a_killed_run_goes_on_to_the_same_bits(
    objective: o.Formula, where: str, online: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(changed(online(objective, rollout__epochs=2), out=str(tmp_path / "whole")))
    run = online(objective, rollout__epochs=2)
    call, functions = {
        "draw": (2, [(Embedded, "draw")]),
        "file": (2, [(phase, "write_numbers")]),
        "first update": (5, AN_UPDATE),  # the phase is written, and its line is after the checkpoint
        "update": (6, AN_UPDATE),
    }[where]
    with killed_at(call, monkeypatch, functions), pytest.raises(Killed):
        train(run)
    out = train(run, resume=True)
    assert_same(whole, out)


def test_a_reward_reads_columns_of_its_row(online: Callable[..., Run], tmp_path: Path) -> None:
    """Its scores are those of the row, in draws and on held-out prompts."""

    def of_row(prompt: str, responses: Sequence[str], answer: object, points: list[int], **more: object) -> list[int]:
        assert more == {"topic": "words"}
        return [points[0]] * len(responses)

    run = changed(online(), reward=of_row, out=str(tmp_path / "run"))
    rows = [{"prompt": f"w{i} w{i + 3}", "points": [i], "topic": "words"} for i in range(3, 7)]
    run = changed(run, data=changed(run.data, train=rows, evaluate=[rows[0] | {"prompt": "w9"}]))
    out = train(run)
    assert {line["score"] for line in lines(out, "phases")} == {4.5}
    assert {line["score"] for line in lines(out, "evaluations")} == {3.0}
    without = [{key: value for key, value in row.items() if key != "points"} for row in rows]
    with pytest.raises(UserError, match=r"rows: no row has the key points, which a function of rewards takes."):
        train(changed(run, data=changed(run.data, train=without), out=str(tmp_path / "other")))


def sometimes(prompt: str, responses: Sequence[str], answer: str | None) -> list[float]:
    """One score for all responses to half of the prompts, which so have nothing to teach."""
    return [0.1 if len(prompt) % 2 else len(response) % 2 / 3 for response in responses]


@pytest.mark.parametrize("objective", [o.GRPO(beta=0), o.RLOO(beta=0), o.GSPO(beta=0, scale="group")], ids=repr)
def test_groups_without_a_gradient_are_not_computed(
    objective: RolloutFormula, online: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = changed(online(objective, optim__lr=0.01, optim__eps=1e-3), reference=None, reward=sometimes)
    run = changed(run, data=changed(run.data, train=[{"prompt": f"w{i} w{j}"} for i in range(8, 13) for j in (3, 14)]))
    short, out = train(changed(run, out=str(tmp_path / "short"))), str(tmp_path / "long")
    monkeypatch.setattr(phase.Online, "_is_idle", lambda self, group: False)
    long = train(changed(run, out=out))
    by_run = [lines(run, "metrics") for run in (short, long)]
    tokens = [sum(line["tokens_computed"] for line in metrics) for metrics in by_run]
    assert tokens[0] < 0.9 * tokens[1]
    assert lines(short, "phases")[0]["alike"] > 0
    for less, more in zip(*by_run, strict=True):
        assert (less["examples"], less["step"]) == (more["examples"], more["step"])
        assert less["loss"] == pytest.approx(more["loss"], rel=1e-3, abs=1e-6)
        assert less["grad_norm"] == pytest.approx(more["grad_norm"], rel=1e-3, abs=1e-9)
    one, two = tensors(short), tensors(long)
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_others_take_the_places_of_prompts_that_teach_nothing(
    online: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan stays as it is, and a killed run and one of two ranks have the same replacements."""

    def run(name: str, **keys: object) -> Run:
        keys = {"optim__lr": 0.01, "rollout__redraws": 3, "out": str(tmp_path / name)} | keys
        run = changed(online(o.GRPO(beta=0), **keys), reference=None, reward=sometimes)
        rows = [{"prompt": f"w{i} w{j}", "answer": f"{i} {j}"} for i in range(8, 13) for j in (3, 14)]
        return changed(run, data=changed(run.data, train=rows))

    plain, whole = lines(train(run("plain", rollout__redraws=0)), "phases"), train(run("whole"))
    phases = lines(whole, "phases")
    assert [line["step"] for line in phases] == [line["step"] for line in plain]
    assert sum(line["alike"] for line in phases) < 0.5 * sum(line["alike"] for line in plain)
    assert any(line["replaced"] for line in phases)
    assert all(line["replaced"] is None for line in plain)
    for number, line in enumerate(phases):
        texts = read_lines(whole / f"phases/{number:06d}.jsonl")
        assert len({text["answer"] for text in texts}) == len(texts)
        for text in texts:
            assert text["prompt"].split() == [f"w{word}" for word in text["answer"].split()]
        alike = [len({response["score"] for response in text["responses"]}) == 1 for text in texts]
        assert sum(alike) / len(alike) == pytest.approx(line["alike"])
    with killed_at(6, monkeypatch, AN_UPDATE), pytest.raises(Killed):
        train(run("killed"))
    assert_same(whole, train(run("killed"), resume=True))
    on_ranks(2, tmp_path / "meet", lambda _: str(train(run("ranks"))))
    assert [line["score"] for line in lines(tmp_path / "ranks", "phases")] == [line["score"] for line in phases]


def test_draws_to_other_tasks_stand_in_their_places() -> None:
    def drawn(scores: Sequence[float], token: int) -> Numbers:
        lengths = np.arange(1, len(scores) + 1)
        ids = np.concatenate([np.full(length, token + i, np.int32) for i, length in enumerate(lengths)])
        score = np.array(scores)
        return Numbers(lengths, lengths > 1, ids, -ids.astype(np.float32), score=score, scores=score[:, None])

    asked: list[list[int]] = []

    def draw(tasks: Sequence[int]) -> Numbers:
        asked.append(list(tasks))
        return drawn([0, 0, 1, 2][: 2 * len(tasks)] if len(asked) == 1 else [3, 4], 100 * len(asked))

    start = drawn([5, 5, 6, 7, 8, 8], 0)
    rollout = Rollout(responses=2, redraws=5)
    after = redrawn(start, [10, 11, 12], np.array([1, 2, 3, 4]), rollout, draw)
    assert asked == [[1, 2], [3]]  # two had one score; one of the two others has, too; then nothing is left to replace
    assert after.tasks is not None
    assert after.tasks.tolist() == [2, 11, 3]
    assert after.score is not None
    assert after.score.tolist() == [1, 2, 6, 7, 3, 4]
    assert after.lengths.tolist() == [3, 4, 3, 4, 1, 2]
    assert [ids.tolist() for ids in after.by_response(after.ids)] == [
        [102] * 3, [103] * 4, [2] * 3, [3] * 4, [200], [201] * 2,
    ]  # fmt: skip
    assert (after.sampled == -after.ids).all()
    few = redrawn(start, [10, 11, 12], np.array([1]), Rollout(responses=2, redraws=1), lambda tasks: drawn([1, 2], 9))
    assert few.tasks is not None
    assert few.tasks.tolist() == [1, 11, 12]  # there is one other task, and the last stays


@pytest.mark.parametrize("objective", [o.RLOO(beta=0), o.GRPO(beta=0), o.ReinforcePP(beta=0)], ids=repr)
def test_a_phase_that_teaches_nothing_moves_nothing(objective: RolloutFormula, online: Callable[..., Run]) -> None:
    """All scores are one number that no mean of three in floating point is, and every step is made all the same."""
    run = changed(online(objective, optim__lr=0.01), reference=None, reward=lambda prompt, responses, answer: [0.1] * 3)
    metrics = lines(train(run), "metrics")
    assert [line["step"] for line in metrics] == list(range(1, 9))
    assert all(line["grad_norm"] == line["loss"] == 0 for line in metrics)


@pytest.mark.parametrize("objective", [o.RLOO(), o.GRPO(scale="group"), o.GSPO()], ids=lambda objective: objective.name)
def test_rounding_moves_no_policy_that_is_its_reference(objective: RolloutFormula, online: Callable[..., Run]) -> None:
    """With one score for all and an anchor, only the KL is left, and that is 0 as long as nothing has moved."""
    run = changed(online(objective, optim__lr=0.01), reward=lambda prompt, responses, answer: [0.1] * 3)
    metrics = lines(train(run), "metrics")
    assert all(line["grad_norm"] == 0 for line in metrics)
    mixed = changed(run, reward=sometimes)
    out = train(mixed, force=True)
    assert lines(out, "phases")[-1]["kl"] > 1e-4, "once it has moved, its KL counts"


class Recorded:
    """The phases that a run has recorded, as rows that were there before."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.recorded = phases

    @property
    def steps(self) -> int:
        return sum(len(phase.plan.steps) for phase in self.recorded)

    def phases(self, step: int) -> Iterator[Phase]:
        yield from self.recorded


@pytest.mark.parametrize("objective", [o.RLOO(), o.PPO(lam=0.9), o.DPO()], ids=lambda objective: objective.name)
def test_recorded_phases_make_the_same_weights(objective: o.Formula, online: Callable[..., Run]) -> None:
    run = online(objective)
    out = train(run)
    prepared = prepare_online(run, SINGLE_PROCESS)
    source = prepared.training.source
    phases = [next(iter(source.phases(first + 1))) for first in (0, 2, 4, 6)]  # of begun phases nothing is drawn
    state = new_state(prepared)
    fit(replace(prepared.training, source=Recorded(phases)), state, None)
    trained = state.weights.state()
    assert all(torch.equal(trained[name], p) for name, p in load_file(out / "model" / "model.safetensors").items())


def test_each_prompt_is_drawn_to_once_an_epoch(online: Callable[..., Run]) -> None:
    source = prepare_online(online(optim__steps=None, optim__epochs=3), SINGLE_PROCESS).training.source
    drawn = [i for step in source.plan.steps for i in step.order]
    assert sorted(drawn) == sorted([*range(7)] * 3)
    assert source.steps == 3 * (2 + 2)


@pytest.mark.parametrize("objective", [o.RLOO(), o.PPO()], ids=lambda objective: objective.name)
@pytest.mark.parametrize("shard", ["none", "step"])
def test_two_ranks_make_the_run_of_one(
    objective: o.Formula, shard: str, online: Callable[..., Run], tmp_path: Path
) -> None:
    alone = train(changed(online(objective), out=str(tmp_path / "alone")))
    together = changed(online(objective, ranks__shard=shard), out=str(tmp_path / "together"))

    def work(dist: Distributed) -> None:
        train(together)

    on_ranks(2, tmp_path / "ranks", work)
    one, two = lines(alone, "metrics"), lines(Path(together.out), "metrics")
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], abs=1e-5)
    assert [line["score"] for line in lines(alone, "phases")] == [
        line["score"] for line in lines(Path(together.out), "phases")
    ]


def test_more_ranks_than_prompts(online: Callable[..., Run], tmp_path: Path) -> None:
    keys = {"rollout__tasks": 1, "batch__rows": 1, "optim__steps": 2}
    alone = train(changed(online(**keys), out=str(tmp_path / "alone")))
    together = changed(online(**keys), out=str(tmp_path / "together"))

    def work(dist: Distributed) -> None:
        train(together)

    on_ranks(2, tmp_path / "ranks", work)
    one, two = lines(alone, "phases"), lines(Path(together.out), "phases")
    assert [line["score"] for line in one] == [line["score"] for line in two]


def test_a_missing_or_damaged_phase_is_told(online: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = online(rollout__epochs=2)
    with killed_at(3, monkeypatch, AN_UPDATE), pytest.raises(Killed):
        train(run)
    path = numbers.path_of(Path(run.out), 0)
    other = changed(run, rollout=changed(run.rollout, responses=4))
    with pytest.raises(UserError, match="other prompts, or under other keys"):
        train(other, resume=True, allow_change=["rollout.responses"])
    content = path.read_bytes()
    for damaged in (content[:100], content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            train(other, resume=True)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        train(other, resume=True)


def test_an_empty_first_prompt_is_drawn_to(online: Callable[..., Run]) -> None:
    run = online(optim__steps=1)
    rows = [{"prompt": ""}, *({"prompt": f"w{i} w5"} for i in range(4))]
    assert lines(train(changed(run, data=changed(run.data, train=rows))), "phases")


def test_keys_that_need_each_other(online: Callable[..., Run]) -> None:
    run = online()
    for broken, sentence in (
        (changed(run, reward=None), "nothing scores"),
        (changed(run, rollout=None), "draws none"),
        (changed(run, rollout=None, objective=o.DPO()), "no effect"),
        (changed(run, objective=o.KTO()), "reads mismatched"),
        (changed(run, objective=o.NLL()), "does not learn from scores"),
        (online(rollout__responses=1), "needs 2 or more"),
        (online(rollout__labels="soft"), "no effect"),
        (online(o.GRPO(), rollout__redraws=1), r"rollout\.redraws: beside a reference .* set objective\.beta = 0\."),
        (online(o.PPO(beta=0), rollout__redraws=1), r"rollout\.redraws: ppo learns from responses of one score too"),
        (online(o.ReinforcePP(beta=0), rollout__redraws=1), r"rollout\.redraws: reinforce_pp learns"),
        (
            changed(online(o.GRPO(beta=0), rollout__redraws=1, rollout__tasks=7), reference=None),
            r"rollout\.redraws: a phase draws to all 7 prompts, so the key has no effect\. Lower rollout\.tasks\.",
        ),
        (online(o.DPO(), rollout__redraws=1), r"rollout\.redraws: dpo learns"),
        (changed(run, value=Value()), "only ppo"),
        (changed(run, reward=[]), "nothing scores"),
        (changed(run, reward=[Reward(function=words, weight=0.0)]), "no reward has a weight"),  # type: ignore[arg-type]
        (changed(run, reward=[words, {"verify": "exact"}]), "reward: holds a dict"),
        (changed(run, reward=[[words]]), "reward: holds a list"),
        (changed(run, reward=[words, Reward]), "reward: holds a"),
        (changed(run, objective=o.Sum((o.DPO(), o.DRO()))), "dpo .* dro .* one kind of label"),
        (changed(run, objective=o.Sum((o.DRO(), o.DPO()))), "dpo .* dro .* one kind of label"),
    ):
        with pytest.raises(UserError, match=sentence):
            train(broken)
    with pytest.raises(UserError, match="held_out has no effect"):
        online(o.DPO(), rollout__labels="judge", rollout__held_out=3)


def test_rewards_of_python_are_added_and_measured_by_name(online: Callable[..., Run]) -> None:
    rewards = [words, Reward(verify="exact"), Reward(function=words, weight=0.0)]  # type: ignore[arg-type]
    run = changed(online(optim__steps=2), reward=rewards)
    rows = [{**row, "answer": "w3"} for row in run.data.train]  # type: ignore[arg-type]
    (line,) = lines(train(changed(run, data=changed(run.data, train=rows))), "phases")
    assert (
        line["reward words"] == line["reward words (2)"] == pytest.approx(line["score"] - line["reward verify exact"])
    )
    assert Record.open(Path(run.out)).rewards[2]["function"] == "words"


def test_the_ceiling_is_of_the_prompts_and_rewards_of_now(online: Callable[..., Run]) -> None:
    """Draws of the reference that a record has for others are not taken for theirs."""
    prompts = [{"prompt": f"w{i} w{i + 5} w{i + 2}"} for i in range(3, 13)]
    run = online(optim__steps=2)
    run = changed(run, data=changed(run.data, evaluate=prompts))
    out = train(run)
    count = [len(read_file(out / START)["lengths"])]
    fewer = changed(run, optim=changed(run.optim, steps=4), rollout=changed(run.rollout, held_out=7))
    train(fewer, resume=True, allow_change=["optim.steps", "rollout.held_out"])
    again = read_file(out / START)
    assert [*count, len(again["lengths"])] == [204 * 10, 292 * 7]
    whole = train(changed(fewer, out=f"{out}-whole"))
    np.testing.assert_array_equal(again["score"], read_file(whole / START)["score"])


def test_what_a_phase_has_drawn_can_be_read(online: Callable[..., Run]) -> None:
    """The texts are those that the rewards have read, with what each has said of them."""
    read: list[tuple[str, list[str]]] = []

    def some(prompt: str, responses: list[str], answer: object) -> list[float | None]:
        read.append((prompt, responses))
        return [None if "w3" in response else len(response) for response in responses]

    run = changed(online(optim__steps=2), reward=[words, Reward(function=some, weight=0.1)])  # type: ignore[arg-type]
    rows = [{**row, "answer": "w3"} for row in run.data.train]  # type: ignore[arg-type]
    out = train(changed(run, data=changed(run.data, train=rows)))
    drawn, numbers_of_it = (
        read_lines(out / "phases" / "000000.jsonl"),
        numbers._read(out / "phases" / "000000.safetensors"),
    )
    assert numbers_of_it is not None
    assert [(line["prompt"], [each["text"] for each in line["responses"]]) for line in drawn] == read
    assert {line["answer"] for line in drawn} == {"w3"}
    responses = [each for line in drawn for each in line["responses"]]
    assert [each["score"] for each in responses] == numbers_of_it.score.tolist()  # type: ignore[union-attr]
    assert [each["tokens"] for each in responses] == numbers_of_it.lengths.tolist()
    for each in responses:
        own, other = each["rewards"].values()
        assert other == (None if "w3" in each["text"] else len(each["text"]))
        assert each["score"] == pytest.approx(own + 0.1 * (other or 0.0))


def test_held_out_rewards_are_measured_each_by_itself(online: Callable[..., Run]) -> None:
    """Their mean, its error over prompts, and the best of a prompt's responses; None of a reward is left out."""

    def some(prompt: str, responses: Sequence[str], answer: object) -> list[float | None]:
        return [None if prompt.startswith("w9") or "w3" in response else len(response) for response in responses]

    prompts = [{"prompt": f"w{i} w{i + 5} w{i + 2}"} for i in range(3, 13)]
    run = changed(online(optim__steps=1), reward=[words, Reward(function=some, weight=0.1)])  # type: ignore[arg-type]
    run = changed(run, data=changed(run.data, evaluate=prompts), rollout=changed(run.rollout, held_out=8))
    prepared = prepare_online(run, SINGLE_PROCESS).training
    assert prepared.tasks is not None
    assert len(prepared.tasks.tasks) == 8
    seen = prepared.tasks._scored(  # the draws are those of every evaluation
        phase.draw(prepared.tasks.sampler, prepared.tasks.tasks, 3, (run.seed, SEED), SINGLE_PROCESS), SINGLE_PROCESS
    )
    assert seen.scores is not None
    assert seen.score is not None
    (first, *_) = Record.open(train(run)).evaluations
    by_task = seen.scores.T.reshape(2, 8, 3)
    assert np.isnan(by_task).all(2).any()  # a prompt to which one of them says nothing
    for name, table in zip(("words", next(key[7:] for key in first if key.endswith("some"))), by_task, strict=True):
        rows = [row[~np.isnan(row)] for row in table if not np.isnan(row).all()]
        means = [row.mean() for row in rows]
        assert first[f"reward {name}"] == pytest.approx(np.mean(means))
        assert first[f"reward_error {name}"] == pytest.approx(np.std(means, ddof=1) / len(means) ** 0.5)
        assert first[f"reward_best {name}"] == pytest.approx(np.mean([row.max() for row in rows]))
    assert first["score_best"] == pytest.approx(seen.score.reshape(8, 3).max(1).mean())
    assert first["score"] == pytest.approx(np.mean(by_task[0] + 0.1 * np.nan_to_num(by_task[1])))


def test_each_category_of_held_out_prompts_has_its_score(online: Callable[..., Run]) -> None:
    def of_row(prompt: str, responses: Sequence[str], answer: str | None) -> list[float]:
        return [float(answer or 0) + k / 10 for k in range(len(responses))]

    run = changed(online(optim__steps=2), reward=of_row)
    rows = [
        {"prompt": f"w{i} w7", "answer": str(i), "category": "set theory" if i < 8 else "logic"} for i in range(3, 11)
    ]
    out = train(changed(run, data=changed(run.data, evaluate=[*rows, {"prompt": "w12", "answer": "9"}])))
    line = lines(out, "evaluations")[-1]
    assert line["score_in set theory"] == pytest.approx(5.1)
    assert line["score_in logic"] == pytest.approx(9.1)
    assert line["score_error_in set theory"] == pytest.approx(np.std(range(5), ddof=1) / 5**0.5)
    assert line["score"] == pytest.approx(sum([*range(3, 11), 9]) / 9 + 0.1)
    assert sorted(key for key in line if key.startswith("score_in")) == ["score_in logic", "score_in set theory"]
    shown = {line.name: line for line in evaluations(Record.open(out))}
    assert shown["score_in set theory"].end == "5.10"


def test_no_name_of_a_category_acts_in_a_terminal(
    online: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers are names too, white space is none, and of a hundred the record alone tells."""
    names = ["[/INST]", "[red]x", "a\x1b[31m", "l" * 300, 7, "  "]
    rows = [{"prompt": f"w{i + 3} w7", "category": name} for i, name in enumerate(names)]
    run = online(optim__steps=2)
    show_run(train(changed(run, data=changed(run.data, evaluate=rows))))
    shown = capsys.readouterr().out
    assert all(f"score_in {name}" in shown for name in ("[/INST]", "[red]x", "7", r"a\x1b[31m", "lllll"))
    assert "\x1b[31m" not in shown
    assert max(map(len, shown.splitlines())) < 120
    line = {f"score_in {i}": 0.5 for i in range(100)}
    assert not [key for key in evaluation_metrics(line) if key.startswith("score_in ")]


def test_an_error_counts_prompts_and_not_tasks() -> None:
    """Tasks of one prompt have the same draws, so twice as many of them make no error smaller."""
    rng = np.random.default_rng(0)
    by_task, tasks = rng.normal(size=(5, 3)), [Task(np.array([i]), "", None, Place("f", i)) for i in range(5)]
    error = error_over_prompts(by_task, tasks)
    assert error == pytest.approx(by_task.mean(1).std(ddof=1) / 5**0.5)
    assert error_over_prompts(np.concatenate([by_task, by_task]), [*tasks, *tasks]) == pytest.approx(error)
    assert error_over_prompts(np.concatenate([by_task[:1], by_task[:1]]), [*tasks[:1], *tasks[:1]]) is None


def test_which_held_out_prompts_are_measured_does_not_depend_on_their_order(online: Callable[..., Run]) -> None:
    """A sorted file has one topic first."""
    tasks = [Task(np.array([i, 2], np.int32), str(i), None, Place("f", i)) for i in range(200)]
    chosen = chosen_tasks(tasks, 64)
    assert {task.prompt for task in chosen} == {task.prompt for task in chosen_tasks(tasks[::-1], 64)}
    assert [task.place.line for task in chosen] == sorted(task.place.line for task in chosen)
    assert 20 <= sum(task.place.line < 100 for task in chosen) <= 44
    assert chosen_tasks(tasks[:64], 64) == tasks[:64]


def test_a_row_counts_by_its_weight(online: Callable[..., Run]) -> None:
    run = online()
    rows = [{**row, "weight": 1.0 + (i == 3)} for i, row in enumerate(run.data.train)]  # type: ignore[arg-type]
    source = prepare_online(changed(run, data=changed(run.data, train=rows)), SINGLE_PROCESS).training.source
    weights = [group.weight for phase in itertools.islice(source.phases(0), 2) for group in phase.groups]
    assert sorted(weights) == [1.0] * 6 + [2.0]


def test_long_prompts_refuse_no_run(online: Callable[..., Run]) -> None:
    """As long rows do not: they say nothing against the file."""
    run = online(optim__steps=1, data__max_tokens=20)
    long = [{"prompt": " ".join(f"w{i}" for i in range(3, 30))}] * 6
    out = train(changed(run, data=changed(run.data, train=[*run.data.train, *long])))  # type: ignore[misc]
    assert Record.open(out).data.train.skipped == {"prompt.too_long": 6}


def test_a_signal_stops_all_ranks_while_they_draw(
    online: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that it comes to ends at once; the other ends its draws, and both save what was updated."""
    keys = {"save__every": 100, "evaluate__samples": 0}
    whole = changed(online(**keys), out=str(tmp_path / "whole"))
    on_ranks(2, tmp_path / "a", lambda _: str(train(whole)))
    cut, right = online(**keys), Embedded.draw

    def work(dist: Distributed) -> None:
        calls: list[int] = []

        def draw(self: Embedded, *asked: object) -> object:
            calls.append(dist.rank)
            if len(calls) == 3 and dist.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return right(self, *asked)  # type: ignore[arg-type]

        monkeypatch.setattr(Embedded, "draw", draw)
        train(cut)

    ends(on_ranks(2, tmp_path / "b", work), STOPPED, "stopped by SIGTERM")
    assert [path.name for path in (Path(cut.out) / "checkpoints").iterdir()] == ["step-00000004"]
    on_ranks(2, tmp_path / "c", lambda _: str(train(cut, resume=True)))
    assert_same(Path(whole.out), Path(cut.out))


CALLS: list[str] = []
ACTS = SimpleNamespace(at={})  # by call; no part of what the reward is, since nobody can compare it


def failing(prompt: str, responses: Sequence[str], answer: str | None) -> list[float]:
    """As `words`."""
    CALLS.append(prompt)
    ACTS.at.get(len(CALLS), list)()
    return words(prompt, responses, answer)


def fail() -> None:
    raise ConnectionError


def hang() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)


def acting(run: Run, **acts: Callable[[], object]) -> Path:
    """Do the run whose reward does this at call `_N`."""
    CALLS.clear()
    ACTS.at.clear()
    ACTS.at.update({int(name[1:]): act for name, act in acts.items()})
    return train(run, resume=Path(run.out).exists())


def test_what_was_updated_is_kept_where_a_reward_fails_or_a_signal_comes_while_it_works(
    online: Callable[..., Run], tmp_path: Path
) -> None:
    run = changed(online(save__every=100), reward=failing)
    whole = acting(changed(run, out=str(tmp_path / "whole")))
    for act, text in ((fail, "raised ConnectionError"), (hang, "stopped by SIGTERM")):
        cut, began = changed(run, out=str(tmp_path / act.__name__)), time.monotonic()
        with pytest.raises(UserError, match=text):
            acting(cut, _10=act)  # in the third phase
        assert time.monotonic() - began < 25
        assert [path.name for path in Path(cut.out, "checkpoints").iterdir()] == ["step-00000004"]
        assert_same(whole, acting(cut))


def test_where_a_reward_fails_on_one_rank_all_keep_what_was_updated(online: Callable[..., Run], tmp_path: Path) -> None:
    run = changed(online(save__every=100), reward=failing)

    def work(dist: Distributed) -> None:
        acting(run, **({"_5": fail} if dist.rank else {}))

    told = on_ranks(2, tmp_path / "ranks", work)
    assert [one["code"] for one in told] == [USAGE, USAGE]
    assert any("raised ConnectionError" in one["text"] for one in told), told
    assert [path.name for path in (Path(run.out) / "checkpoints").iterdir()] == ["step-00000004"]


def test_another_source_of_a_reward_may_be_allowed_by_its_key(online: Callable[..., Run], tmp_path: Path) -> None:
    """After an error in a function, a mended one is the usual next step."""
    source = tmp_path / "rewards.py"
    source.write_text("def words(prompt, responses, answer):\n    return [len(text) / 9 for text in responses]\n")
    run = changed(online(optim__steps=2), reward=Reward(function=f"{source}:words"))
    train(run)
    source.write_text(source.read_text().replace("9", "8"))
    longer = changed(run, optim=changed(run.optim, steps=4))
    with pytest.raises(UserError, match="another run is in this folder"):
        train(longer, resume=True, allow_change=["optim.steps"])
    assert len(lines(train(longer, resume=True, allow_change=["optim.steps", "reward.function"]), "metrics")) == 4


class Weighing:
    """A reward with a number of numpy, and something that nobody can compare."""

    def __init__(self, weight: float) -> None:
        self.weight, self.lock = np.float32(weight), threading.Lock()

    def score(self, prompt: str, responses: Sequence[str], answer: str | None) -> list[float]:
        return [float(self.weight) * len(response) for response in responses]


def test_what_a_reward_holds_is_a_part_of_the_run(online: Callable[..., Run]) -> None:
    run = changed(online(optim__steps=2), reward=Weighing(1).score)
    (event,) = [event for event in lines(train(run), "events") if event["event"] == "source_unseen"]
    assert "Weighing.score.lock (lock)" in event["text"]
    longer = changed(run, optim=changed(run.optim, steps=4))
    with pytest.raises(UserError, match="another run is in this folder"):
        train(changed(longer, reward=Weighing(-1).score), resume=True, allow_change=["optim.steps"])
    train(changed(longer, reward=Weighing(1).score), resume=True, allow_change=["optim.steps"])


def permuted(model: Path, folder: Path) -> str:
    """The model with a tokenizer of the same words in another order."""
    shutil.copytree(model, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    names = [name for name in words if name.startswith("w")]
    words |= dict(zip(names, [words[name] for name in (*names[7:], *names[:7])], strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return str(folder)


def test_a_model_that_means_other_tokens_is_refused(online: Callable[..., Run], world: Path, tmp_path: Path) -> None:
    """It would be asked about ids that are other words to it; a folder without a tokenizer says nothing."""
    other = permuted(world / "model", tmp_path / "other")
    with pytest.raises(UserError, match=r"reference\.path: .*token 3 is 'w3' to the policy"):
        train(online(reference__path=other))
    with pytest.raises(UserError, match=r"value\.path: .*token 3 is 'w3' to the policy"):
        train(online(o.PPO(), value__path=other))
    for file in Path(other).glob("token*"):
        file.unlink()
    train(online(o.PPO(), value__path=other, reference__path=other, optim__steps=2))


def test_a_value_model_begins_from_no_reward_model_of_other_tokens(
    online: Callable[..., Run], world: Path, tmp_path: Path
) -> None:
    usual, other = online(optim__steps=2), permuted(world / "model", tmp_path / "m")
    rows = changed(usual.data, train=str(world / "pairs.jsonl"))
    run = changed(usual, rollout=None, reward=None, reference=None, data=rows, objective=o.Reward(),
                  model=changed(usual.model, path=other))  # fmt: skip
    scored = train(changed(run, out=str(tmp_path / "reward")))
    out = train(changed(online(o.PPO(), optim__steps=2), reward=Reward(model=str(scored / "model"))))
    (event,) = [event for event in lines(out, "events") if event["event"] == "value_start"]
    assert "begins from the policy, not from the reward model: token 3" in event["text"]


def test_a_sampler_of_another_model_is_refused(online: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its draws would be learned from as if they were the policy's."""
    draw_up_to = Embedded.draw_up_to

    def wrong(self: Embedded, prompts: Sequence[np.ndarray], most: np.ndarray, seed: Sequence[int]) -> list[Drawn]:
        drawn = draw_up_to(self, prompts, most, seed)
        return [replace(each, logp=tuple(logp - off for logp in each.logp)) for each in drawn]

    monkeypatch.setattr(Embedded, "draw_up_to", wrong)
    off = 0.2
    assert lines(train(online(optim__steps=2)), "phases")[0]["sampler_off"] == pytest.approx(0.2, abs=1e-4)
    off = 0.7
    with pytest.raises(UserError, match=r"model\.path: the sampler says 0.7 nats a token else"):
        train(online(optim__steps=2), force=True)


def test_how_many_draws_the_ceiling_rests_on_is_the_runs_to_say(online: Callable[..., Run]) -> None:
    keys = {"data__holdout": 0.5, "optim__steps": 2}
    none = train(online(rollout__ceiling=0, **keys))
    assert not (none / START).exists()
    assert not any("ceiling" in line for line in Record.open(none).evaluations)
    some = Record.open(train(online(rollout__ceiling=90, **keys), force=True))
    assert len(read_file(some.path / START)["lengths"]) == 90 // 4 * 4, "as many to each of the 4 prompts"
    for run in (
        online(rollout__ceiling=9),
        changed(online(o.RLOO(beta=0), rollout__ceiling=9, **keys), reference=None),
    ):
        with pytest.raises(UserError, match=r"rollout\.ceiling: no .* so no ceiling is told"):
            train(run, force=True)


def test_no_ceiling_is_told_under_a_reference_that_moves(online: Callable[..., Run]) -> None:
    """It would be that of another reference: its draws are made once."""
    keys = {"data__holdout": 0.3, "optim__steps": 2}
    for reference, told in (({}, True), ({"reference": Moving(alpha=1.0, update_every=1)}, False)):
        run = online(o.DPO(), **keys, out=f"{online().out}{told}")
        record = Record.open(train(changed(run, **reference)))
        assert all(("ceiling" in line) == told for line in record.evaluations)


def test_a_phase_that_does_not_fit_is_drawn_half_by_half(
    online: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(changed(online(), out=str(tmp_path / "whole")))
    right = Embedded.draw

    def draw(self: Embedded, prompts: Sequence[np.ndarray], count: int, seed: Sequence[int]) -> object:
        if len(prompts) > most:
            raise torch.OutOfMemoryError
        return right(self, prompts, count, seed)

    monkeypatch.setattr(Embedded, "draw", draw)
    most = 1
    assert_same(whole, train(online()))
    most = 0
    with pytest.raises(UserError, match="do not fit into memory") as caught:
        train(changed(online(), out=str(tmp_path / "none")))
    assert caught.value.code == 74
