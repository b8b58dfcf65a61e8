"""What a reward model reads: the drawn ids, or with another tokenizer the ids that its own rows would have."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from making import SMALL
from tokens.conftest import CHAT, byte_level, sentence
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from preftune.errors import UserError
from preftune.model.scalar import load_reward_model, model_scores
from preftune.rollout.reward_model import ModelScorer, recorded_slope
from preftune.rollout.scorers import Answered, answered_task
from preftune.rollout.tasks import Task, tasks_of
from preftune.rows.row import Demo, Message, Place, Prompt, Response
from preftune.rows.row import Task as TaskRow
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenize import tokenize

__all__ = ["byte_level", "sentence"]
Make = Callable[..., PreTrainedTokenizerBase]
Read = list[tuple[list[int], list[int]]]
CHATTED = (Message("user", "what is the best way"),)
THINKS = CHAT.replace("m.content", "(m.content if m.role == 'user' else m.content.split('</think>')[-1])")


def reading(seen: Read) -> Callable[[Sequence[TokenGroup]], list[np.ndarray]]:
    """A stand-in that notes what it is asked and scores by the number of tokens."""

    def ask(groups: Sequence[TokenGroup]) -> list[np.ndarray]:
        seen.extend((group.prompt.tolist(), ids.tolist()) for group in groups for ids in group.responses)
        return [np.array([len(group.prompt) + len(ids) for ids in group.responses]) for group in groups]

    return ask


def drawn(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, texts: Sequence[str], cut: Sequence[int] = ()
) -> Answered:
    (task,) = tasks_of([TaskRow(prompt=prompt, place=Place("f", 3))], tokenizer, 999).tasks
    ids = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
    ended = [k not in cut for k in range(len(texts))]
    arrays = [np.array(row if end else row[:-1], np.int32) for row, end in zip(ids, ended, strict=True)]
    return replace(answered_task(task, arrays, ended, tokenizer), responses=tuple(texts))


def test_the_same_tokenizer_reads_the_drawn_ids_as_a_real_model_does(byte_level: Make) -> None:
    tokenizer = byte_level()
    config = AutoConfig.for_model("llama", **{**SMALL, "vocab_size": len(tokenizer), "num_labels": 1})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()

    def ask(groups: Sequence[TokenGroup]) -> list[np.ndarray]:
        said = [[one(np.concatenate([group.prompt, ids])) for ids in group.responses] for group in groups]
        return [np.array(scores) for scores in said]

    def one(ids: np.ndarray) -> float:
        with torch.no_grad():
            return float(model(torch.tensor(ids.tolist())[None]).logits[0, 0])

    answered = [drawn(tokenizer, CHATTED, ["the cat", "a dog"], cut=[1]), drawn(tokenizer, "the", [" mat", "", "x"])]
    scores = ModelScorer(ask, tokenizer, byte_level(), 999).score(answered)
    direct = [one(np.concatenate([task.prompt_ids, ids])) for task in answered for ids in task.ids]
    assert scores.tolist() == direct
    assert len(set(direct)) == 5


def test_a_loaded_reward_model_says_what_transformers_says(byte_level: Make, tmp_path: Path) -> None:
    tokenizer = byte_level()
    config = AutoConfig.for_model("llama", **{**SMALL, "vocab_size": len(tokenizer), "num_labels": 1})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    policy = load_reward_model(str(tmp_path))
    answered = [
        drawn(tokenizer, CHATTED, ["the cat", "a dog", "the cat", "the"], cut=[1, 3]),
        drawn(tokenizer, "the", [" mat", "", "x"]),
        drawn(tokenizer, CHATTED, ["the cat sat"]),
    ]
    made = ModelScorer(lambda groups: model_scores(policy, groups, 64), tokenizer, tokenizer, 999)
    with torch.no_grad():
        direct = [
            float(model(torch.tensor([[*task.prompt_ids.tolist(), *ids.tolist()]])).logits[0, 0])
            for task in answered
            for ids in task.ids
        ]
    np.testing.assert_allclose(made.score(answered), direct, atol=1e-5)
    assert np.std(direct) > 1e-3


@pytest.mark.parametrize("prompt", ["the cat:", CHATTED], ids=["text", "chat"])
def test_another_tokenizer_reads_what_its_own_rows_would_have(
    prompt: Prompt, byte_level: Make, sentence: PreTrainedTokenizerBase
) -> None:
    seen: Read = []
    texts = [" sat on the mat", "a dog </s> x", " the  cat", "the cat"]
    policy, read_by = sentence, byte_level(bos_token="<s>")
    answered = drawn(policy, prompt, texts, cut=[3])
    ModelScorer(reading(seen), policy, read_by, 999).score([answered])
    kind: Callable[[str], Response] = lambda text: text if isinstance(prompt, str) else (Message("assistant", text),)  # noqa: E731
    rows = [Demo(prompt=prompt, response=kind(text), place=Place("f", k)) for k, text in enumerate(texts)]
    groups = tokenize(rows, read_by, max_tokens=999).groups
    expected = [(group.prompt.tolist(), group.responses[0].tolist()) for group in groups]
    assert seen[:3] == expected[:3]
    assert seen[3] == (expected[3][0], expected[3][1][:-1])
    assert expected[3][1][-1] == read_by.eos_token_id


def test_scores_come_in_the_order_of_the_responses(byte_level: Make, sentence: PreTrainedTokenizerBase) -> None:
    thinks = byte_level(THINKS)
    answered = [
        drawn(sentence, CHATTED, ["the cat sat", "", "hm</think>the mat", "  ", "a"], cut=[3]),
        drawn(sentence, "the", ["cat", ""]),
    ]
    seen: Read = []
    scores = ModelScorer(reading(seen), sentence, thinks, 999).score(answered)
    assert sorted(scores) == sorted(len(prompt) + len(ids) for prompt, ids in seen)
    alone = []
    for task in answered:
        for text, ids, ended in zip(task.responses, task.ids, task.ended, strict=True):
            single = replace(task, responses=(text,), ids=(ids,), ended=(ended,))
            alone += ModelScorer(reading([]), sentence, thinks, 999).score([single]).tolist()
    assert scores.tolist() == alone
    texts = [str(thinks.decode(ids)) for _, ids in seen]
    assert "<|im_end|>" in texts
    assert any("the mat" in text for text in texts)


def test_an_empty_response_of_another_tokenizer_is_its_end_alone(
    byte_level: Make, sentence: PreTrainedTokenizerBase
) -> None:
    seen: Read = []
    read_by = byte_level()
    ModelScorer(reading(seen), sentence, read_by, 999).score([drawn(sentence, CHATTED, ["", "\ufdd0", "a"])])
    (task,) = tasks_of([TaskRow(prompt=CHATTED, place=Place("f", 1))], read_by, 999).tasks
    assert seen[0] == (task.ids.tolist(), [read_by.eos_token_id])
    assert [str(read_by.decode(ids)) for _, ids in seen[1:]] == ["\ufffd<|im_end|>", "a<|im_end|>"]


def test_what_is_too_long_or_not_finite_has_the_tasks_place(byte_level: Make) -> None:
    answered = [drawn(byte_level(), "the", [" cat"]), drawn(byte_level(), "the", [" cat sat on the mat"])]
    with pytest.raises(UserError, match=r"^f:3: the reward model reads 6 tokens, and prompt and response have"):
        ModelScorer(reading([]), byte_level(), byte_level(), 6).score(answered)
    with pytest.raises(UserError, match=r"^f:3: the reward model gives a score that is not finite"):
        ModelScorer(lambda groups: [np.full(len(g.responses), np.nan) for g in groups], byte_level(), byte_level(), 99
                    ).score(answered)  # fmt: skip


def test_tasks_with_equal_prompts_are_scored_each(byte_level: Make) -> None:
    tokenizer, ids = byte_level(), np.array([40, 41], np.int32)
    tasks = [Task(np.array([9, 10], np.int32), "p", None, Place("f", k)) for k in (1, 2)]
    answered = [answered_task(task, [ids, ids], [False, False], tokenizer) for task in tasks]
    seen: Read = []
    assert ModelScorer(reading(seen), tokenizer, tokenizer, 99).score(answered).tolist() == [4] * 4


def test_a_recorded_slope_has_the_error_of_its_held_out_prompts(tmp_path: Path) -> None:
    record = tmp_path / "rm"
    (record / "model").mkdir(parents=True)
    assert recorded_slope(record / "model") is None
    (record / "run.toml").write_text("")
    rng = np.random.default_rng(0)
    margins = rng.normal(0.5, 1.0, 40)
    rows = [{"id": str(n), "prompt": str(n), "margin": margin} for n, margin in enumerate(margins)]
    (record / "evaluation_rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (record / "evaluations.jsonl").write_text(json.dumps({"step": 3, "calibration_slope": 0.9}) + "\n")
    slope = recorded_slope(record / "model")
    assert slope is not None
    assert (slope.value, slope.prompts) == (0.9, 40)
    assert 0.1 < slope.half_width() < 2
