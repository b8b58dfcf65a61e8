"""What rows say of tools is read in every published form, and kept for the template."""

from __future__ import annotations

import json
from typing import Any

import pytest

from preftune.errors import UserError
from preftune.rows.read import read
from preftune.rows.row import TOOLS, Demo, Pair
from preftune.rows.tools import plain_prompt

ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}
WHOLE = {"type": "function", "function": ADD}
U, A = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
SAYS = {"role": "tool", "name": "add", "tool_call_id": "x1", "content": "4"}


def only(row: dict[str, Any]) -> Demo | Pair:
    reading = read([row])
    (made,) = reading.rows
    assert isinstance(made, Demo | Pair)
    assert reading.notes == [] or {note.reason for note in reading.notes} <= {
        "response.turns",
        "fields.extra",
        "demo.turns",
    }
    return made


LISTS: dict[str, dict[str, Any]] = {
    "as OpenAI has them": {"tools": [WHOLE], "messages": [U, A]},
    "functions alone": {"tools": [ADD], "messages": [U, A]},
    "JSON text, as a table holds them": {"tools": json.dumps([ADD]), "messages": [U, A]},
    "one, with keys that a table fills with null": {"tools": ADD | {"strict": None}, "messages": [U, A]},
    "under their earlier name": {"functions": [ADD], "messages": [U, A]},
    "inside of an input": {"input": {"messages": [U], "tools": [WHOLE]}, "preferred_output": [A],
                           "non_preferred_output": [U | {"role": "assistant"}]},
    "as a message, as they are written out": {"messages": [{"role": TOOLS, "content": json.dumps([WHOLE])}, U, A]},
}  # fmt: skip


@pytest.mark.parametrize("form", LISTS)
def test_a_list_of_tools_stands_first_in_the_prompt(form: str) -> None:
    prompt = only(LISTS[form]).prompt
    assert plain_prompt(prompt) == [{"role": TOOLS, "content": json.dumps([WHOLE])}, U]


FORMS: dict[str, dict[str, Any]] = {
    "as OpenAI has them": CALLS,
    "without content": {"role": "assistant", "tool_calls": [CALL]},
    "functions alone": CALLS | {"tool_calls": [CALL["function"]]},
    "arguments as text": CALLS | {"tool_calls": [{"function": {"name": "add", "arguments": '{"a": 2}'}}]},
    "with nulls of a table": CALLS | {"tool_calls": [{"function": {"name": "add", "arguments": {"a": 2, "b": None}}}]},
    "as text": CALLS | {"tool_calls": json.dumps([CALL])},
    "OpenAI's earlier form": {"role": "assistant", "content": "", "function_call": CALL["function"]},
    "LangChain's": CALLS | {"tool_calls": [{"name": "add", "args": {"a": 2}, "type": "tool_call"}]},
    "Anthropic's arguments": CALLS | {"tool_calls": [{"name": "add", "input": {"a": 2}}]},
    "two keys that say the same": CALLS | {"function_call": CALL["function"]},
    "Python text": CALLS | {"tool_calls": "[{'name': 'add', 'arguments': '{\"a\": 2}'}]"},
    "a role of its own": {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
}


@pytest.mark.parametrize("form", FORMS)
def test_calls_are_read_in_all_forms(form: str) -> None:
    demo = only({"messages": [U, FORMS[form], SAYS, A]})
    assert isinstance(demo, Demo)
    assert not isinstance(demo.response, str)
    call, answer, last = demo.response
    assert (call.role, call.content, json.loads(call.beside)) == ("assistant", "", {"tool_calls": [CALL]})
    assert json.loads(answer.beside) == {"name": "add", "tool_call_id": "x1"}
    assert (last.content, last.beside) == ("4", "")


def test_a_question_beside_tools_and_calls_is_a_demo() -> None:
    """As in xLAM: both are JSON text."""
    demo = only({"id": 1, "query": "2+2?", "answers": json.dumps([CALL["function"]]), "tools": json.dumps([ADD])})
    assert isinstance(demo, Demo)
    assert plain_prompt(demo.prompt) == [{"role": TOOLS, "content": json.dumps([WHOLE])}, U]
    assert not isinstance(demo.response, str)
    assert json.loads(demo.response[0].beside) == {"tool_calls": [CALL]}


def test_options_of_a_template_stand_first_too() -> None:
    options = {"enable_thinking": False, "documents": None}
    demo = only({"messages": [U, A], "tools": [ADD], "chat_template_kwargs": options})
    assert [(turn["role"], turn["content"]) for turn in plain_prompt(demo.prompt)[:2]] == [  # type: ignore[index]
        ("options", '{"enable_thinking": false}'), (TOOLS, json.dumps([WHOLE])),
    ]  # fmt: skip
    again = only({"messages": [*plain_prompt(demo.prompt), A]})  # type: ignore[misc]
    assert (again.prompt, again.response) == (demo.prompt, demo.response)  # type: ignore[union-attr]


def test_other_keys_of_tools_are_kept_as_they_are() -> None:
    """As in OLMo's data; whether a template has a place for them is proved where they are rendered."""
    demo = only({"messages": [U, A | {"content": None, "function_calls": "add(a=2)", "functions": None}]})
    assert isinstance(demo, Demo)
    assert not isinstance(demo.response, str)
    assert json.loads(demo.response[0].beside) == {"function_calls": "add(a=2)"}


def test_sides_that_differ_in_a_call_alone_are_a_pair() -> None:
    def calls(number: int) -> dict[str, Any]:
        return {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": number}}]}

    assert isinstance(only({"prompt": [U], "chosen": [calls(1)], "rejected": [calls(2)], "tools": [ADD]}), Pair)
    assert read([{"prompt": [U], "chosen": [calls(1)], "rejected": [calls(1)]}]).skipped[0].reason == "pair.identical"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": ["function_call"], "content": "x"}, A]}, "is no known role"),
    ({"messages": [U, CALLS | {"tool_calls": "[{'name': 'add', 'arguments': {'a': {1}}}]"}]}, "not JSON"),
    ({"tools": [{"description": "x"}], "messages": [U, A]}, r"tools\[0\] is an object, needs a function with a name"),
    ({"tools": ["add"], "messages": [U, A]}, r"tools\[0\] is the text 'add'"),
    ({"tools": [ADD], "prompt": "a", "chosen": "b", "rejected": "c"}, "needs a conversation"),
    ({"messages": [U | {"tool_calls": [CALL]}, A]}, "is the user's. Only the assistant calls tools"),
    ({"messages": [U, CALLS | {"tool_calls": [{"id": "x"}]}, A]}, "needs a function with a name"),
    ({"messages": [U, CALLS | {"tool_calls": [{"name": "add", "arguments": "2"}]}, A]}, "needs an object"),
    ({"messages": [U, {"role": "function_call", "content": "add(2)"}, A]}, "needs a function with a name"),
    ({"messages": [U, CALLS | {"tool_calls": [CALL | {"output": "4"}]}, A]}, r"has output, of which a call has none"),
    (
        {"messages": [U, CALLS | {"function_call": {"name": "sub"}}, A]},
        "has tool_calls and function_call, which differ",
    ),
    ({"tools": [ADD], "functions": [ADD | {"name": "sub"}], "messages": [U, A]}, "is not what something else says too"),
    ({"messages": [U, CALLS | {"tool_calls": '[{"name": "add", "arguments": {"a": 1, "a": 2}}]'}, A]}, "stands twice"),
    ({"messages": [U, CALLS | {"tool_calls": '[{"name": "\\ud83d"}]'}, A]}, "half of a surrogate pair"),
    ({"messages": [U, CALLS | {"tool_calls": "[{'name': 'add', 'arguments': {1: 2}}]"}]}, "not JSON"),
    ({"messages": [U, CALLS | {"tool_calls": "[{'name': '\\ud83d'}]"}, A]}, "half of a surrogate pair"),
    ({"messages": [U, A], "chat_template_kwargs": {"tools": [ADD]}}, "tools is no option of a template"),
    ({"messages": [U, A], "chat_template_kwargs": "[1]"}, "chat_template_kwargs is .* needs an object"),
    ({"messages": [U, CALLS], "token_weights": [[0, 1, 2]]}, "is of one turn of text"),
]


@pytest.mark.parametrize(("row", "message"), WRONG)
def test_what_is_no_tool_or_call_is_one_error(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read([row])


def test_a_list_as_a_message_asks_nothing() -> None:
    listed = {"role": TOOLS, "content": json.dumps([WHOLE])}
    demo = only({"messages": [listed, {"role": "assistant", "content": "hello"}, U, A]})
    assert isinstance(demo, Demo)
    assert [turn["role"] for turn in plain_prompt(demo.prompt)] == [TOOLS, "assistant", "user"]  # type: ignore[index]


def test_a_text_prompt_says_which_turn_is_answered() -> None:
    whole = [U, A, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]
    (pair,) = read([{"prompt": "2+2?", "chosen": whole, "rejected": "5"}]).rows
    assert isinstance(pair, Pair)
    assert (len(pair.prompt), len(pair.chosen), len(pair.rejected)) == (1, 3, 1)


def test_null_is_absent_but_in_text() -> None:
    """A table writes null where a row has no such key; text says what its author wrote."""
    arguments = '{"a": null, "b": 1}'
    forms = [{"tool_calls": [{"name": "add", "arguments": arguments}]},
             {"tool_calls": f'[{{"name": "add", "arguments": {arguments}}}]'},
             {"tool_calls": [{"name": "add", "arguments": json.loads(arguments)}]}]  # fmt: skip
    beside = [only({"messages": [U, {"role": "assistant", **form}]}).response[0].beside for form in forms]  # type: ignore[union-attr]
    assert [json.loads(text)["tool_calls"][0]["function"]["arguments"] for text in beside] == [
        {"a": None, "b": 1}, {"a": None, "b": 1}, {"b": 1},
    ]  # fmt: skip


def test_a_first_turn_that_does_not_count_is_prompt() -> None:
    muted, other = {"role": "assistant", "content": "no", "weight": 0}, {"role": "user", "content": "sure?"}
    (demo,) = read([{"prompt": [U], "completion": [muted, other, A]}]).rows
    assert isinstance(demo, Demo)
    assert (len(demo.prompt), len(demo.response)) == (3, 1)
    (pair,) = read([{"prompt": [U], "chosen": [muted, other, A],
                     "rejected": [muted | {"weight": 1}, other, A | {"content": "5"}]}]).rows  # fmt: skip
    assert isinstance(pair, Pair)
    assert (len(pair.prompt), len(pair.chosen)) == (3, 1)


def test_a_list_on_both_sides_is_one_and_the_system_text_comes_after_it() -> None:
    whole = {"messages": [U, A], "tools": [ADD]}
    pair = only({"chosen": whole, "rejected": {**whole, "messages": [U, A | {"content": "5"}]}})
    assert [turn["role"] for turn in plain_prompt(pair.prompt)] == [TOOLS, "user"]  # type: ignore[index]
    listed = {"role": TOOLS, "content": json.dumps([WHOLE])}
    demo = only({"system": "be kind", "messages": [listed, U, A]})
    assert [turn["role"] for turn in plain_prompt(demo.prompt)] == [TOOLS, "system", "user"]  # type: ignore[index]
    with pytest.raises(UserError, match="two different system texts"):
        read([{"system": "be kind", "messages": [listed, {"role": "system", "content": "be rude"}, U, A]}])


def test_weights_of_turns() -> None:
    muted = {"role": "assistant", "content": "no", "weight": 0}
    assert [p.reason for p in read([{"messages": [U, muted], "label": True}]).skipped] == ["response.weight"]
    other, again = {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "no"}
    row = {"prompt": [U, muted, other], "chosen": [U, again, other, A], "rejected": [U, again, other, again]}
    (pair,) = read([row]).rows
    assert isinstance(pair, Pair)
    assert len(pair.chosen) == 1
