"""Each form in which people keep preferences, as the row that it means."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from preftune.errors import UserError
from preftune.rows.formats import FORMATS, detect_format
from preftune.rows.parse import SkippedRow
from preftune.rows.read import read
from preftune.rows.row import KINDS, Demo, Message, Pair, Place, Ranking, Rating, Row, Task
from preftune.rows.transcripts import parse, render, response

PLACE = Place("made", 1)
ASK, SAY, NO = Message("user", "ask"), Message("assistant", "say"), Message("assistant", "no")
SYSTEM = Message("system", "be kind")
U, A, N = ({"role": m.role, "content": m.content} for m in (ASK, SAY, NO))
H, G, B = ({"from": r, "value": v} for r, v in (("human", "ask"), ("gpt", "say"), ("gpt", "no")))


def pair(prompt: object = (ASK,), chosen: object = (SAY,), rejected: object = (NO,), **more: object) -> Pair:
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, place=PLACE, **more)  # type: ignore[arg-type]


def rating(good: bool | None, prompt: object = (ASK,), response: object = (SAY,), **more: object) -> Rating:
    return Rating(prompt=prompt, response=response, good=good, place=PLACE, **more)  # type: ignore[arg-type]


def ranking(ranks: tuple[int, ...], prompt: object, *responses: object, **more: object) -> Ranking:
    return Ranking(prompt=prompt, responses=responses, ranks=ranks, place=PLACE, **more)  # type: ignore[arg-type]


def demo(prompt: object = (ASK,), response: object = (SAY,), **more: object) -> Demo:
    return Demo(prompt=prompt, response=response, place=PLACE, **more)  # type: ignore[arg-type]


def task(answer: str | None, prompt: object = (ASK,)) -> Task:
    return Task(prompt=prompt, place=PLACE, answer=answer)  # type: ignore[arg-type]


ADDS = '{"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}'
ADD = Message("tools", '[{"type": "function", "function": {"name": "add"}}]')
CANDIDATES = [
    {"content": [{"text": "no"}], "preferenceLabel": "non-preferred"},
    {"content": [{"text": "say"}], "preferenceLabel": "preferred"},
]
FORMS: dict[str, tuple[dict[str, object], Row]] = {
    "LLaMA-Factory, earlier turns": (
        {"instruction": "ask", "output": "say", "system": "be kind", "history": [["hi", "yes?"]]},
        Demo(
            prompt=(SYSTEM, Message("user", "hi")),
            response=(Message("assistant", "yes?"), ASK, SAY),
            place=PLACE,
        ),
    ),
    "earlier turns of a pair": (
        {"query": "ask", "chosen": "say", "rejected": "no", "history": [U, A]},
        pair((ASK, SAY, ASK)),
    ),
    "no earlier turns": ({"instruction": "ask", "output": "say", "history": []}, demo((ASK,), (SAY,))),
    "a conversation that ends with a question": ({"messages": [U, A, U]}, Task(prompt=(ASK, SAY, ASK), place=PLACE)),
    "text": ({"text": "say"}, demo("", "say", rendered=True)),
    "text that is a transcript": (
        {"text": "\n\nHuman: ask\n\nAssistant: say", "system": "be kind"}, demo((SYSTEM, ASK))),
    "text that is JSON of a conversation": ({"text": json.dumps([U, A])}, demo()),
    "TRL, text": ({"prompt": "ask", "chosen": "say", "rejected": "no"}, pair("ask", "say", "no")),
    "TRL, messages": ({"prompt": [U], "chosen": [A], "rejected": [N]}, pair()),
    "TRL, prompt inside": ({"chosen": [U, A], "rejected": [U, N]}, pair()),
    "prompt and whole conversations": ({"prompt": [U], "chosen": [U, A], "rejected": [U, N]}, pair()),
    "UltraFeedback, binarised": (
        {"prompt": "ask", "chosen": [U, A], "rejected": [U, N], "score_chosen": 8.5, "score_rejected": 7},
        pair(scores=(8.5, 7.0))),
    "prompt text, response messages": ({"prompt": "ask", "chosen": [A], "rejected": [N]}, pair()),
    "prompt messages, response text": ({"prompt": [U], "chosen": "say", "rejected": "no"}, pair()),
    "hh-rlhf": ({"chosen": "\n\nHuman: ask\n\nAssistant: say", "rejected": "\n\nHuman: ask\n\nAssistant: no"}, pair()),
    "hh-rlhf with its prompt is turns too": (
        {"prompt": "\n\nHuman: ask\n\nAssistant: ", "chosen": " say", "rejected": "no"}, pair()),
    "ms-swift: the last turn and another response": ({"messages": [U, A], "rejected_response": "no"}, pair()),
    "ms-swift, two conversations": ({"messages": [U, A], "rejected_messages": [U, N]}, pair()),
    "axolotl, system and question": (
        {"system": "be kind", "question": "ask", "chosen": "say", "rejected": "no"}, pair((SYSTEM, ASK))),
    "argilla": ({"instruction": "ask", "chosen_response": "say", "rejected_response": "no"}, pair()),
    "axolotl, input": ({"input": "ask", "chosen": "say", "rejected": "no"}, pair()),
    "LLaMA-Factory, sharegpt": ({"conversations": [H], "chosen": G, "rejected": B}, pair()),
    "LLaMA-Factory, sharegpt with system": (
        {"conversations": [H], "system": "be kind", "chosen": G, "rejected": B}, pair((SYSTEM, ASK))),
    "LLaMA-Factory, alpaca": (
        {"instruction": "do", "input": "this", "chosen": "say", "rejected": "no"},
        pair((Message("user", "do\nthis"),))),
    "OpenAI": ({"input": {"messages": [U], "tools": []}, "preferred_output": [A], "non_preferred_output": [N]}, pair()),
    "soft label": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "preferred": 0.8}, pair("a", "b", "c", preferred=0.8)),
    "id and weight": (
        {"id": 7, "prompt": "a", "chosen": "b", "rejected": "c", "weight": "2"},
        pair("a", "b", "c", id="7", weight=2.0)),
    "votes": (
        {"prompt": "a", "response_a": "b", "response_b": "c", "votes_a": 1, "votes_b": 2, "votes_equal": 1},
        pair("a", "c", "b", preferred=0.625)),
    "votes, tied": (
        {"prompt": "a", "response_a": "b", "response_b": "c", "votes_a": 2, "votes_b": 2},
        pair("a", "b", "c", preferred=0.5)),
    "halos": ({"prompt": "ask", "output_A": "no", "output_B": "say", "label": 0}, pair("ask", "say", "no")),
    "HelpSteer2, a strength above 0 prefers the second": (
        {"prompt": "ask", "response_1": "no", "response_2": "say", "preference_strength": 2},
        pair("ask", "say", "no", scores=(1.0, -1.0))),
    "a winner by its letter": (
        {"prompt": "ask", "response_a": "say", "response_b": "no", "winner": "model_a"}, pair("ask", "say", "no")),
    "JudgeBench": ({"question": "ask", "response_A": "no", "response_B": "say", "label": "B>A"}, pair()),
    "PKU-SafeRLHF": (
        {"prompt": "ask", "response_0": "no", "response_1": "say", "better_response_id": 1}, pair("ask", "say", "no")),
    "AlpacaFarm": ({"instruction": "ask", "output_1": "say", "output_2": "no", "preference": 1}, pair()),
    "Chatbot Arena": ({"conversation_a": [U, N], "conversation_b": [U, A], "winner": "model_b"}, pair()),
    "Stack Exchange, paired": ({"question": "ask", "response_j": "say", "response_k": "no"}, pair()),
    "TL;DR comparisons": (
        {"info": {"post": "ask"}, "summaries": [{"text": " no"}, {"text": " say"}], "choice": 1},
        pair("POST: ask\n\nTL;DR:", " say", " no")),
    "NeMo: rank 0 is the best": (
        {"context": [U], "completions": [{"rank": 1, "completion": [N]}, {"rank": 0, "completion": [A]}]}, pair()),
    "Bedrock": ({"messages": [U, {"role": "assistant", "candidates": CANDIDATES}]}, pair()),
    "TRL KTO": ({"prompt": "a", "completion": "b", "label": False}, rating(False, "a", "b")),
    "a score beside the label": (
        {"prompt": "a", "completion": "b", "label": 1, "score": "0.5"}, rating(True, "a", "b", score=0.5)),
    "LLaMA-Factory KTO, messages": ({"messages": [U, A], "label": True}, rating(True)),
    "LLaMA-Factory KTO, sharegpt": (
        {"conversations": [H, G], "kto_tag": False, "system": "be kind"}, rating(False, (SYSTEM, ASK))),
    "LLaMA-Factory KTO, alpaca": (
        {"instruction": "ask", "input": "", "output": "say", "kto_tag": "true"}, rating(True)),
    "ranks": (
        {"prompt": "a", "responses": ["b", "c", "d"], "ranks": [3, 1, 3]}, ranking((2, 1, 2), "a", "b", "c", "d")),
    "scores alone": (
        {"prompt": "a", "responses": ["b", "c", "d"], "scores": [0.5, 2, 0.5]},
        ranking((2, 1, 2), "a", "b", "c", "d", scores=(0.5, 2.0, 0.5))),
    "ranked messages": (
        {"prompt": [U], "responses": [[A], [N]], "ranks": [1, 2]}, ranking((1, 2), (ASK,), (SAY,), (NO,))),
    "UltraFeedback: the fine-grained score counts, not a misread 10": (
        {"instruction": "ask", "completions": [{"response": "say", "fine-grained_score": 4.5, "overall_score": 8},
                                               {"response": "no", "fine-grained_score": "1.25", "overall_score": 10}]},
        ranking((1, 2), (ASK,), (SAY,), (NO,), scores=(4.5, 1.25))),
    "Nectar: rank 1 is the best": (
        {"prompt": "a", "answers": [{"answer": "b", "rank": 2.0}, {"answer": "c", "rank": 1.0}]},
        ranking((2, 1), "a", "b", "c")),
    "prompt and completion": ({"prompt": "a", "completion": "b"}, demo("a", "b")),
    "alpaca": ({"instruction": "ask", "input": "", "output": "say"}, demo()),
    "xLAM": (
        {"query": "ask", "answers": '[{"name": "add", "arguments": {}}]', "tools": [{"name": "add"}]},
        demo((ADD, ASK), (Message("assistant", "", beside=ADDS),))),
    "messages alone": ({"messages": [U, N, U, A]}, demo((ASK,), (NO, ASK, SAY))),
    "gsm8k: the response is the answer too": ({"question": "ask", "answer": "say"}, demo(answer="say")),
    "TRL GRPO": ({"prompt": [U], "solution": "2"}, task("2")),
    "RLVR: the last turn is the user's": ({"messages": [U], "ground_truth": "2", "dataset": "gsm8k"}, task("2")),
    "verl": (
        {"data_source": "x", "prompt": [U], "ability": "math", "reward_model": {"style": "rule", "ground_truth": "2"}},
        task("2")),
    "an answer that is no text": ({"prompt": "a", "ground_truth": [2, 2.5]}, task("[2, 2.5]", "a")),
    "a conversation with its answer": ({"messages": [U, A], "answer": "2"}, demo(answer="2")),
    "prompts": ({"prompt": [U], "source": "x", "level": 5}, task(None)),
}  # fmt: skip


@pytest.mark.parametrize(
    "more", [{"level": "Level 5", "type": "Algebra"}, {"answer": "4", "subject": "Algebra"}], ids=["MATH", "MATH-500"]
)
def test_a_problem_is_what_a_user_asks(more: dict[str, str]) -> None:
    (row,) = read([{"problem": "2 + 2?", "solution": "It is \\boxed{4}."} | more]).rows
    assert row.prompt == (Message("user", "2 + 2?"),)
    assert row.answer == more.get("answer", "It is \\boxed{4}.")


@pytest.mark.parametrize("form", FORMS)
def test_form(form: str) -> None:
    value, expected = FORMS[form]
    assert detect_format(value).read(value, PLACE).row == expected


def test_every_format_has_a_case() -> None:
    assert {detect_format(value).name for value, _ in FORMS.values()} == {form.name for form in FORMATS}


@pytest.mark.parametrize(
    "more",
    [{"chosen": "b"}, {"choosen": "b"}, {"label": True}, {"responses": ["b"]}, {"score": 1}, {"image": "x.png"}],
)
def test_a_prompt_beside_what_may_be_its_response_is_no_task(more: dict[str, object]) -> None:
    with pytest.raises(UserError):
        read([{"prompt": "a", **more}])


def test_tasks_without_an_answer_are_skipped_where_the_others_have_one() -> None:
    rows = [{"prompt": str(k), "ground_truth": answer} for k, answer in enumerate(["1", None, " ", {"x": [1]}])]
    reading = read(rows)
    assert [row.answer for row in reading.rows] == ["1", '{"x": [1]}']
    assert [problem.reason for problem in reading.skipped] == ["row.hole"] * 2


def test_a_transcript_goes_there_and_back() -> None:
    turns = (Message("user", "a\n\nb"), Message("assistant", "c"), Message("user", "d"))
    written = render(turns) + response("e")
    assert written == "\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant: e"
    assert parse(written) == (*turns, Message("assistant", "e"))


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "turn.order"),
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", "turn.order"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "turn.last"),
        ("\n\nHuman: a\n\nHumans: b\n\nAssistant: c", "turn.marker"),
        ("\n\nHuman: a\n\nAssistant: Human: b", "turn.marker"),
    ],
)
def test_a_transcript_in_doubt(written: str, reason: str) -> None:
    with pytest.raises(SkippedRow) as caught:
        parse(written)
    assert caught.value.reason == reason


REAL = {
    "pairs/hh_helpful.test.jsonl": ("pair", 640, 0),
    "pairs/hh_harmless.test.plain.jsonl": ("pair", 359, 0),
    "pairs/evals_yesno.test.jsonl": ("pair", 460, 0),
    "pairs/ukp_convarg.test.jsonl": ("pair", 1624, 0),
    "votes/ukp_votes.train.jsonl": ("pair", 2496, 4),
    "ranked/gsm8k_ranked.test.jsonl": ("ranking", 133, 0),
    "ranked/oasst100_ranked.jsonl": ("ranking", 154, 0),
    "ranked/ukp_ranked.train.jsonl": ("ranking", 67, 2),
    "unpaired/gsm8k_thumbs.test.jsonl": ("rating", 612, 0),
    "sft/gsm8k_sft.train.jsonl": ("demo", 2984, 0),
    "formats/hh_raw_50.jsonl": ("pair", 49, 1),
    "formats/llamafactory_dpo_en_demo.json": ("pair", 300, 0),
    "formats/llamafactory_kto_en_demo.json": ("rating", 300, 0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str, shared: Callable[[str], Path]) -> None:
    kind, kept, skipped = REAL[name]
    reading = read(str(shared(f"data/{name}")))
    assert Counter(KINDS[type(row)] for row in reading.rows) == {kind: kept}
    assert len(reading.skipped) == skipped


def test_votes_agree_with_the_gold_label_where_it_is_clear(shared: Callable[[str], Path]) -> None:
    path = shared("data/votes/ukp_votes.train.jsonl")
    raw = {str(value["id"]): value for value in map(json.loads, path.read_text().splitlines())}
    rows = [row for row in read(str(path)).rows if isinstance(row, Pair)]
    clear = [row for row in rows if row.preferred > 0.8 and raw[row.id]["gold"] in ("a", "b")]
    assert len(clear) > 500
    agree = sum(row.chosen == raw[row.id][f"response_{raw[row.id]['gold']}"] for row in clear)
    assert agree / len(clear) > 0.95
