"""A run whose responses a vLLM server draws: a stand-in that speaks its API, and draws with the adapter it has got."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed import AN_UPDATE, Killed, killed_at
from msgspec.structs import replace
from several import on_ranks
from stand_in import Answer, StandIn, serving

from preftune import objective as o
from preftune.config.run import Run
from preftune.distributed import Distributed
from preftune.errors import UserError
from preftune.files import read_lines
from preftune.model.load import load_model
from preftune.model.policy import wrap
from preftune.rollout.embedded import Embedded
from preftune.run.train import train
from preftune.tokens.tokenizer import load_tokenizer


def words(prompt: str, responses: Sequence[str], answer: str | None) -> list[float]:
    return [len(set(response.split())) / 4 for response in responses]


class Vllm:
    """Draws from the base with the adapter of a request's name, as it was when it was loaded."""

    def __init__(self, base: Path, place: Path) -> None:
        self.base, self.place, self.lock = base, place, threading.Lock()
        self.tokenizer, self.models = load_tokenizer(str(base), None, None), {"base": str(base)}

    def __call__(self, path: str, body: Any) -> Answer:
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in self.models]}
        if path == "/tokenize":
            return 200, {"tokens": self.tokenizer.encode(body["prompt"], add_special_tokens=False)}
        if path == "/v1/load_lora_adapter":
            assert body["lora_name"] not in self.models, "it is loaded already"
            copy = shutil.copytree(body["lora_path"], self.place / body["lora_name"], dirs_exist_ok=True)
            self.models[body["lora_name"]] = str(copy)
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            return (200, "Success") if self.models.pop(body["lora_name"], "") else (404, "gone")
        with self.lock:
            return 200, {"choices": [*self._choices(body)]}

    def _choices(self, body: dict[str, Any]) -> Iterator[dict[str, object]]:
        name = self.models[body["model"]]
        module = load_model(name, revision=None, weights="float32", device=torch.device("cpu"), location="").module
        sampler = Embedded(wrap(module, "auto")[0], body["max_tokens"], frozenset(body["stop_token_ids"]))
        (drawn,) = sampler.draw([np.array(body["prompt"], np.int32)], body["n"], (body["seed"] % 1000,))
        for index, (ids, logp, ended) in enumerate(zip(drawn.ids, drawn.logp, drawn.ended, strict=True)):
            yield {"index": index, "token_ids": ids.tolist(), "finish_reason": "stop" if ended else "length",
                   "logprobs": {"token_logprobs": logp.tolist()}}  # fmt: skip


@pytest.fixture
def server(world: Path, tmp_path: Path) -> Iterator[StandIn]:
    with serving(Vllm(world / "model", tmp_path / "server")) as stand_in:
        yield stand_in


@pytest.fixture
def served(run_of: Callable[..., Run], server: StandIn) -> Callable[..., Run]:
    def make(**keys: object) -> Run:
        keys = {"adapter__rank": 4, "rollout__tasks": 4, "rollout__responses": 3, "rollout__max_tokens": 5,
                "batch__rows": 2, "evaluate__samples": 0, "optim__epochs": None, "optim__steps": 6, "optim__lr": 1e-2,
                "rollout__server": server.url, "save__every": 1} | keys  # fmt: skip
        run = run_of(**keys)
        data = replace(run.data, train=[{"prompt": f"w{i} w{i + 3} w{i + 7}"} for i in range(3, 10)], evaluate=None)
        return replace(run, objective=o.RLOO(), reward=words, data=data)

    return make


@pytest.mark.parametrize("objective", [o.RLOO(), o.PPO()], ids=lambda objective: objective.name)
def test_it_draws_from_the_newest_weights(objective: o.Formula, served: Callable[..., Run], server: StandIn) -> None:
    """Each phase has an adapter of its own, and the policy says of the draws what the server said."""
    out = train(replace(served(), objective=objective))
    loaded = [body["lora_name"] for body in server.bodies("/v1/load_lora_adapter")]
    assert len(set(loaded)) == len(loaded) == 3
    asked = [name for name, _ in itertools.groupby(body["model"] for body in server.bodies("/v1/completions"))]
    assert asked == loaded
    phases = read_lines(out / "phases.jsonl")
    assert [phase["step"] for phase in phases] == [0, 2, 4]
    assert all(phase["sampler_off"] is None for phase in phases)  # it would be said if it were more than rounding
    assert phases[-1]["kl"] > 0


def test_one_that_goes_on_finds_what_the_server_has_loaded(
    served: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(served(out=str(tmp_path / "whole")))
    with killed_at(4, monkeypatch, AN_UPDATE), pytest.raises(Killed):
        train(served())
    out = train(served(), resume=True)
    assert [line["loss"] for line in read_lines(out / "metrics.jsonl")] == pytest.approx(
        [line["loss"] for line in read_lines(whole / "metrics.jsonl")], abs=1e-6
    )


def test_refused(served: Callable[..., Run], server: StandIn, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rollout\.server: .*trains the whole model"):
        train(replace(served(), adapter=None))
    with pytest.raises(UserError, match=r"rollout: .*no address"):
        served(rollout__server="localhost")
    with pytest.raises(UserError, match=r"rollout\.server: "):
        train(served(rollout__server="http://127.0.0.1:9"))


@pytest.mark.parametrize("shard", ["none", "step", "layer"])
def test_of_several_ranks_the_first_asks_for_all(
    shard: str, served: Callable[..., Run], server: StandIn, tmp_path: Path
) -> None:
    """The server's draws depend on the adapter and the prompt alone, so two ranks make the run of one."""

    def work(dist: Distributed) -> None:
        train(served(out=str(tmp_path / "ranks"), ranks__shard=shard))

    whole = train(served(out=str(tmp_path / "whole")))
    asked = len(server.bodies("/v1/completions"))
    assert on_ranks(2, tmp_path / "meet", work) == [None, None]
    assert len(server.bodies("/v1/completions")) == 2 * asked
    losses = [[line["loss"] for line in read_lines(out / "metrics.jsonl")] for out in (whole, tmp_path / "ranks")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_a_model_that_no_rank_has_whole_learns_from_what_a_server_draws(
    served: Callable[..., Run], server: StandIn, tmp_path: Path
) -> None:
    """Unlike numbers of packs, held-out prompts and an update that one rank does not live to see included."""
    keys = {"rollout__tasks": 3, "batch__tokens": 20, "evaluate__every": 2, "rollout__max_tokens": 4}

    def run(name: str, shard: str) -> Run:
        run = served(**keys, out=str(tmp_path / name), ranks__shard=shard)
        return replace(run, data=replace(run.data, evaluate=[{"prompt": f"w{i} w5"} for i in (11, 12, 13)]))

    def work(dist: Distributed) -> str:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed), killed_at(4, patch, AN_UPDATE):
            train(run("layer", "layer"))
        return str(train(run("layer", "layer"), resume=True))

    replicas, layer = tmp_path / "none", tmp_path / "layer"
    on_ranks(2, tmp_path / "one", lambda _: str(train(run("none", "none"))))
    assert on_ranks(2, tmp_path / "meet", work) == [str(layer)] * 2
    losses, drawn = (
        [read_lines(out / name) for out in (replicas, layer)] for name in ("metrics.jsonl", "phases.jsonl")
    )
    assert [line["loss"] for line in losses[1]] == pytest.approx([line["loss"] for line in losses[0]], abs=1e-6)
    assert [line["kl"] for line in drawn[1]] == pytest.approx([line["kl"] for line in drawn[0]], abs=1e-6)
    held_out = read_lines(layer / "evaluations.jsonl")
    assert [line["step"] for line in held_out] == [0, 2, 4, 6]
    assert held_out[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert held_out[-1]["kl"] > 0
    assert not any("ceiling" in line for line in held_out)


def test_what_needs_whole_models_is_refused_under_layers(served: Callable[..., Run], tmp_path: Path) -> None:
    def refused(run: Run, why: str) -> None:
        def work(_: Distributed) -> None:
            with pytest.raises(UserError, match=why):
                train(run)

        assert on_ranks(2, tmp_path / why[:9], work) == [None, None]

    refused(served(ranks__shard="layer", rollout__server=None), "drawn by whole models, unless a server draws")
    refused(replace(served(ranks__shard="layer"), objective=o.PPO()), "the value model is a second whole model")
    refused(served(ranks__shard="layer", rollout__ceiling=8), "no rank has the whole reference, so no ceiling")
