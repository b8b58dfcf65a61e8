"""A sampler over HTTP against a stand-in that speaks vLLM's API, and each way in which a server may be another."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in import Answer, StandIn, serving
from tokens.conftest import byte_level, sentence
from transformers import PreTrainedTokenizerBase

from preftune.errors import UserError
from preftune.rollout.draw import Sampler
from preftune.rollout.server import Server

__all__ = ["byte_level", "sentence"]
Make = Callable[..., PreTrainedTokenizerBase]
VOCAB, END = 64, frozenset({2, 3})
PROMPTS = [np.array(ids, np.int32) for ids in ([5, 6], [7], [5, 6, 8])]


def choice(body: dict[str, Any], index: int) -> dict[str, Any]:
    """A response that depends on the seed, the prompt and its number alone; every third is cut."""
    rng = np.random.default_rng(zlib.crc32(repr((body["seed"] + index, body["prompt"], body["model"])).encode()))
    is_cut = index % 3 == 2
    ids = rng.integers(4, VOCAB, body["max_tokens"] if is_cut else int(rng.integers(0, body["max_tokens"]))).tolist()
    ids += [] if is_cut else [2]
    return {
        "index": index,
        "text": "x",
        "token_ids": ids,
        "finish_reason": "length" if is_cut else "stop",
        "logprobs": {"token_logprobs": [-math.log(k + 2) for k in ids]},
    }


def vllm(path: str, body: Any) -> Answer:
    if path == "/v1/models":
        return 200, {"data": [{"id": "base"}, {"id": "other"}]}
    if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        return 200, "Success: done."
    assert path == "/v1/completions"
    return 200, {"choices": [choice(body, index) for index in reversed(range(body["n"]))]}


def sampler(server: StandIn, **more: Any) -> Server:
    return Server(server.url + "/v1", 9, END, 0.7, VOCAB, patience=5, **more)


def test_draws() -> None:
    with serving(vllm) as server:
        made: Sampler = sampler(server)
        drawn = made.draw(PROMPTS, 4, [3, 1])
        bodies = {tuple(body["prompt"]): body for body in server.bodies("/v1/completions")}
        assert [len(group.ids) for group in drawn] == [4, 4, 4]
        for ids, group in zip(PROMPTS, drawn, strict=True):
            body = bodies[tuple(ids.tolist())]
            expected = [choice(body, index) for index in range(4)]
            assert [response.tolist() for response in group.ids] == [said["token_ids"] for said in expected]
            assert group.ended == tuple(said["finish_reason"] == "stop" for said in expected)
            assert all(response.dtype == np.int32 for response in group.ids)
            for logp, response in zip(group.logp, group.ids, strict=True):
                assert logp.dtype == np.float32
                np.testing.assert_allclose(logp, -np.log(response + 2.0), rtol=1e-6)
        body = bodies[5, 6]
        assert (body["model"], body["n"], body["max_tokens"], body["temperature"]) == ("base", 4, 9, 0.7)
        assert (body["top_p"], body["top_k"], body["repetition_penalty"], body["stop_token_ids"]) == (1, 0, 1, [2, 3])
        assert len({body["seed"] for body in bodies.values()}) == 3
        assert all(0 <= body["seed"] < 2**62 for body in bodies.values())


def test_draws_depend_on_seed_and_prompt_alone() -> None:
    with serving(vllm) as server:
        made = sampler(server)
        whole, again = made.draw(PROMPTS, 3, [3, 1]), made.draw(PROMPTS[::-1], 3, [3, 1])[::-1]
        other = made.draw(PROMPTS, 3, [3, 2])
    as_lists = [[[ids.tolist() for ids in group.ids] for group in drawn] for drawn in (whole, again, other)]
    assert as_lists[0] == as_lists[1]
    assert as_lists[0] != as_lists[2]


def test_new_weights_are_an_adapter_under_a_new_name(tmp_path: Path) -> None:
    with serving(vllm) as server:
        made = sampler(server)
        first = made.draw(PROMPTS, 2, [0])
        names = []
        for content in ("one", "one", "two"):
            (tmp_path / "adapter_model.safetensors").write_text(content)
            made.load_adapter(tmp_path)
            second = made.draw(PROMPTS[:1], 2, [0])
            names.append(server.bodies("/v1/completions")[-1]["model"])
        loads, unloads = server.bodies("/v1/load_lora_adapter"), server.bodies("/v1/unload_lora_adapter")
    assert names[0] == names[1] != names[2]
    assert [load["lora_name"] for load in loads] == [names[0], names[2]]
    assert {load["lora_path"] for load in loads} == {str(tmp_path)}
    assert [unload["lora_name"] for unload in unloads] == [names[0]]
    assert [ids.tolist() for ids in first[0].ids] != [ids.tolist() for ids in second[0].ids]


def test_a_server_without_adapters_says_how_to_start_it(tmp_path: Path) -> None:
    def answer(path: str, body: Any) -> Answer:
        return (404, {"detail": "Not Found"}) if "lora" in path else vllm(path, body)

    with serving(answer) as server:
        made = sampler(server)
        with pytest.raises(UserError, match=r"answers 404: Not Found\. Start it with --enable-lora"):
            made.load_adapter(tmp_path)
        made.draw(PROMPTS, 2, [0])
        assert {body["model"] for body in server.bodies("/v1/completions")} == {"base"}


Change = Callable[[dict[str, Any]], object]


def says(ids: list[Any], logp: list[float | None], reason: str = "stop") -> Change:
    """The second response has these tokens and log-probabilities, and ends for this reason."""
    logprobs = {"token_logprobs": logp}
    return lambda a: a["choices"][1].update(token_ids=ids, logprobs=logprobs, finish_reason=reason)


CHANGES: dict[str, tuple[Change, str]] = {
    "fewer responses": (lambda a: a["choices"].pop(), "gives 1 responses where 2 were asked for"),
    "no responses": (lambda a: a.pop("choices"), "gives 0 responses where 2"),
    "no ids": (lambda a: a["choices"][1].pop("token_ids"), "tells no token ids. vLLM does from version 0.10.2"),
    "empty ids": (says([], [-1.0]), "tells no token ids"),
    "no log-probabilities": (lambda a: a["choices"][1].update(logprobs=None), "tells no log-probability"),
    "null among them": (says([2], [None]), "tells no log-probability of its tokens"),
    "too few of them": (says([4] * 3, [-1.0]), "gives 3 tokens and 1 log-probabilities"),
    "not finite": (says([2], [math.nan]), "gives a log-probability that is none"),
    "above 0": (says([2], [0.5]), "gives a log-probability that is none"),
    "another vocabulary": (says([64], [-1.0]), "gives the token id 64, and the policy has 64. Is it another model?"),
    "another end": (
        says([9], [-1.0]),
        "ends a response with the token 9 and calls it 'stop'. Start it with --generation-config vllm",
    ),
    "an end that is none": (says([2], [-1.0], "abort"), "ends a response with the token 2 and calls it 'abort'"),
    "a cut that is an abort": (says([9], [-1.0], "abort"), "calls it 'abort'"),
    "too long": (says([4] * 10, [-1.0] * 10), "gives 10 tokens and 10 log-probabilities, of at most 9"),
    "another form": (lambda a: a["choices"][1].pop("index"), "answers in another form than vLLM's"),
    "texts": (lambda a: a.update(choices=["a", "b"]), "answers in another form than vLLM's"),
    "ids that are texts": (says(["x"], [-1.0]), "answers in another form than vLLM's"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_answers_of_another_kind(case: str) -> None:
    change, message = CHANGES[case]

    def answer(path: str, body: Any) -> Answer:
        status, value = vllm(path, body)
        value = copy.deepcopy(value)
        if path == "/v1/completions" and isinstance(value, dict):
            change(value)
        return status, value

    with serving(answer) as server, pytest.raises(UserError) as caught:
        sampler(server).draw(PROMPTS, 2, [0])
    assert message in str(caught.value)
    assert str(caught.value).startswith("--server: ")


def test_refusals_and_dead_servers() -> None:
    def refuses(path: str, body: Any) -> Answer:
        return vllm(path, body) if path == "/v1/models" else (400, {"error": {"message": "context is 8 tokens"}})

    with serving(refuses) as server:
        made = sampler(server)
        with pytest.raises(UserError, match="answers 400: context is 8 tokens"):
            made.draw(PROMPTS, 2, [0])
    with pytest.raises(UserError, match="no server answers at"):
        made.draw(PROMPTS, 2, [0])
    with pytest.raises(UserError, match="no server answers at"):
        sampler(server)
    with serving(lambda path, body: (200, {"data": []})) as empty, pytest.raises(UserError, match="lists no model"):
        sampler(empty)


def test_the_tokenizer_is_compared(byte_level: Make, sentence: PreTrainedTokenizerBase) -> None:
    tokenizer = byte_level()

    def answer(path: str, body: Any) -> Answer:
        if path != "/tokenize":
            return vllm(path, body)
        return 200, {"tokens": tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"]).input_ids}

    with serving(answer) as server:
        made = sampler(server)
        made.check_vocabulary(tokenizer)
        with pytest.raises(UserError, match="the server's model base has another tokenizer"):
            made.check_vocabulary(sentence)
