"""Calls of tools are scored as the template writes them, tools and answers are context, and nothing of them is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokens.test_chat import OPENS, PLAIN, TURNS
from transformers import PreTrainedTokenizerBase

from preftune.errors import UserError
from preftune.rollout.tasks import tasks_of
from preftune.rows.read import read
from preftune.run.tasks import end_tokens
from preftune.tokens.tokenize import tokenize

Make = Callable[..., PreTrainedTokenizerBase]
LIST = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
AS_OBJECT = "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
AS_TEXT = (
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name + ': ' + c.function.arguments }}</call>{% endfor %}"
)
END = "<|im_end|>\n{% endfor %}"
OWN_END = "{% if m.tool_calls %}</s>{% else %}<|im_end|>\n{% endif %}{% endfor %}"
TEMPLATES = {
    "as an object": LIST + TURNS + "{{ m.content }}" + AS_OBJECT + END + OPENS,
    "as text": LIST + TURNS + "{{ m.content }}" + AS_TEXT + END + OPENS,
    "with an end of its own": LIST + TURNS + "{{ m.content }}" + AS_OBJECT + OWN_END + OPENS,
}
TOOL = {"name": "look_up", "description": "Looks it up.", "parameters": {"type": "object"}}
U = {"role": "user", "content": "where is the cat?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"name": "look_up", "arguments": {"what": 'the "cat"', "n": 2}}],
}
ANSWER = {"role": "tool", "content": "on the mat", "name": "look_up"}
SAYS = {"role": "assistant", "content": "on it"}
WRITTEN = {
    "as an object": '<call>{"name": "look_up", "arguments": {"what": "the \\"cat\\"", "n": 2}}</call><|im_end|>',
    "as text": '<call>look_up: {"what": "the \\"cat\\"", "n": 2}</call><|im_end|>',
    "with an end of its own": '<call>{"name": "look_up", "arguments": {"what": "the \\"cat\\"", "n": 2}}</call></s>',
}


def turns(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[tuple[str, str]]:
    """(prompt, what is scored) of each turn of the first response."""
    (group,) = tokenize(read([row]).rows, tokenizer, max_tokens=999).groups
    return [(str(tokenizer.decode(turn.prompt)), str(tokenizer.decode(turn.ids))) for turn in group.turns[0]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_is_scored_and_its_answer_is_context(byte_level: Make, name: str) -> None:
    tokenizer = byte_level(TEMPLATES[name])
    (asked, call), (answered, says) = turns(tokenizer, {"messages": [U, CALL, ANSWER, SAYS], "tools": [TOOL]})
    assert '"name": "look_up"' in asked
    assert asked.endswith("where is the cat?<|im_end|>\n<|im_start|>assistant\n")
    assert (call, says) == (WRITTEN[name], "on it<|im_end|>")
    assert answered.startswith(asked + call)
    assert answered.endswith("tool\non the mat<|im_end|>\n<|im_start|>assistant\n")


def test_a_call_may_stand_against_an_answer(byte_level: Make) -> None:
    row = {"prompt": [U], "chosen": [CALL], "rejected": [SAYS], "tools": [TOOL]}
    (group,) = tokenize(read([row]).rows, byte_level(TEMPLATES["as an object"]), max_tokens=999).groups
    assert [str(byte_level().decode(ids)) for ids in group.responses] == [WRITTEN["as an object"], "on it<|im_end|>"]


LOST = [
    (PLAIN, {"messages": [U, SAYS], "tools": [TOOL]}, "no place for 'look_up' of tools"),
    (PLAIN, {"messages": [U, CALL, ANSWER, SAYS]}, "no place for 'look_up' of tool_calls"),
    (PLAIN, {"messages": [U, SAYS | {"function_calls": "f(1)"}]}, r"no place for 'f\(1\)' of function_calls"),
    (
        TEMPLATES["as text"].replace(" + c.function.arguments", ""),
        {"messages": [U, CALL], "tools": [TOOL]},
        "'what' of",
    ),
    (None, {"messages": [U, CALL, ANSWER, SAYS]}, "no chat template, so thoughts and tools"),
]


ELSEWHERE = U | {"content": 'look_up what the "cat" n 2'}  # all words of the call, in the user's turn
NO_CALLS = LIST + PLAIN
FIRST_CALL = TEMPLATES["as an object"].replace("in m.tool_calls or []", "in (m.tool_calls or [])[:1]")
NO_CONTENT = LIST + TURNS + "{% if m.tool_calls %}" + AS_OBJECT + "{% else %}{{ m.content }}{% endif %}" + END
LOST += [
    (PLAIN, {"messages": [ELSEWHERE, SAYS], "tools": [TOOL]}, "no place for 'look_up' of tools"),
    (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}" + PLAIN,
        {
            "messages": [U, SAYS],
            "tools": [TOOL | {"parameters": {"type": "object", "properties": {"what": {"type": "string"}}}}],
        },
        "no place for 'what' of",
    ),
    (NO_CALLS + OPENS, {"messages": [ELSEWHERE, CALL, ANSWER, SAYS], "tools": [TOOL]}, "of tool_calls"),
    (NO_CALLS, {"prompt": [ELSEWHERE, CALL, ANSWER], "chosen": "a", "rejected": "b", "tools": [TOOL]}, "of tool_calls"),
    (NO_CALLS, {"messages": [U, CALL | {"content": 'look_up what the "cat" n 2'}], "tools": [TOOL]}, "of tool_calls"),
    (FIRST_CALL, {"messages": [U, CALL | {"tool_calls": [*CALL["tool_calls"]] * 2}]}, "of tool_calls"),
    (NO_CONTENT + OPENS, {"messages": [U, CALL | {"content": "what"}]}, "'what' of content beside it"),
]


@pytest.mark.parametrize(("template", "row", "message"), LOST)
def test_what_a_template_has_no_place_for_is_refused(byte_level: Make, template: str, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        turns(byte_level(template), row)


def test_control_tokens_in_a_call_stay_text(byte_level: Make) -> None:
    tokenizer = byte_level(TEMPLATES["as an object"])
    call = CALL | {"tool_calls": [{"name": "look_up", "arguments": {"what": "<|im_end|>"}}]}
    (group,) = tokenize(read([{"messages": [U, call], "tools": [TOOL]}]).rows, tokenizer, max_tokens=999).groups
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert group.responses[0].tolist().count(end) == 1
    assert "<|im_end|>" in str(tokenizer.decode(group.responses[0][:-1]))


def test_a_draw_ends_where_a_call_ends_too(byte_level: Make) -> None:
    tokenizer, rows = (
        byte_level(TEMPLATES["with an end of its own"]),
        [{"prompt": [U], "tools": [TOOL]}, {"prompt": [U]}],
    )
    ends = end_tokens(tasks_of(read(rows).rows, tokenizer, 99_999).tasks, tokenizer)
    assert ends == {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "</s>")}


AS_TAGS = ("{% for c in m.tool_calls or [] %}{{ c.function.name }}{% for k, v in c.function.arguments.items() %}"
           "<{{ k }}>{{ v }}</{{ k }}>{% endfor %}{% endfor %}")  # fmt: skip
AS_GIVEN = "{% for c in m.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments }}{% endfor %}"


VALUES = {
    AS_TAGS: "look_up<all>True</all><of>None</of><n>1.5</n>",
    AS_GIVEN: 'look_up {"all": true, "of": null, "n": 1.5}',
}


@pytest.mark.parametrize("form", VALUES)
def test_values_are_what_the_template_makes_of_them(byte_level: Make, form: str) -> None:
    """Python's spelling where it prints values one by one; JSON, and no repr, where it prints all that it gets."""
    call = CALL | {"tool_calls": [{"name": "look_up", "arguments": '{"all": true, "of": null, "n": 1.5}'}]}
    tokenizer = byte_level(LIST + TURNS + "{{ m.content }}" + form + END + OPENS)
    assert turns(tokenizer, {"messages": [U, call], "tools": [TOOL]})[0][1] == VALUES[form] + "<|im_end|>"


def test_a_row_may_tell_the_template_how_to_render_it(byte_level: Make) -> None:
    tokenizer = byte_level("{% if brief %}<|im_start|>brief\n{% endif %}" + PLAIN)
    rows = [{"messages": [U, SAYS], **more} for more in ({}, {"chat_template_kwargs": {"brief": True}})]
    plain, brief = (turns(tokenizer, row)[0][0] for row in rows)
    assert brief == "<|im_start|>brief\n" + plain
    assert turns(tokenizer, rows[0] | {"chat_template_kwargs": '{"brief": true}'})[0][0] == brief
