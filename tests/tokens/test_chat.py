"""Chat templates: thoughts, ends of several control tokens, control tokens that a person wrote, words that are lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from transformers import AddedToken, PreTrainedTokenizerBase

from preftune.errors import UserError
from preftune.rows.row import Demo, Message, Pair, Place
from preftune.tokens.tokenize import Tokenized, tokenize

Make = Callable[..., PreTrainedTokenizerBase]
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = TURNS + "{{ m.content }}<|im_end|>\n{% endfor %}" + OPENS
OPENS_THOUGHT = OPENS.replace("assistant\n", "assistant\n<think>\n")
BY_KEY = TURNS + (
    "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}"
)
CUTS = TURNS + "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
CHANNELS = TURNS + (
    "{% if m.thinking %}<a>{{ m.thinking }}<b>{% endif %}{% if m.role == 'assistant' %}<c>{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}"
)
THOUGHTFUL = "<think>\nadd\n</think>\n\n4"
TEMPLATES = {
    "by key": BY_KEY + OPENS,
    "by key, opened": BY_KEY + OPENS_THOUGHT,
    "by key, an empty one closed": BY_KEY + OPENS.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n"),
    "cut": CUTS + OPENS,
    "cut, opened": CUTS + OPENS_THOUGHT,
    "kept": PLAIN,
}


def pair(chosen: Message, rejected: Message, *prompt: Message) -> Pair:
    prompt = prompt or (Message("user", "2+2?"),)
    return Pair(prompt=prompt, chosen=(chosen,), rejected=(rejected,), place=Place("made", 1))


def said(content: str, thought: str = "") -> Message:
    return Message("assistant", content, thought)


def scored(tokenizer: PreTrainedTokenizerBase, *rows: Pair) -> tuple[str, list[str], list[str]]:
    """(prompt, responses, reasons of notes) of the first row."""
    result = tokenize(rows, tokenizer, max_tokens=999)
    group = result.groups[0]
    texts = [str(tokenizer.decode(ids.tolist())) for ids in (group.prompt, *group.responses)]
    return texts[0], texts[1:], reasons(result)


def reasons(result: Tokenized) -> list[str]:
    return [note.reason for note in result.notes]


def adding(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer with tokens that are not marked special."""
    tokens: list[str | AddedToken] = [AddedToken(word, special=False, normalized=False) for word in words]
    tokenizer.add_tokens(tokens)
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_thought_in_the_content_is_scored_as_the_model_writes_it(byte_level: Make, name: str) -> None:
    prompt, (chosen, rejected), _ = scored(
        byte_level(TEMPLATES[name]), pair(said(THOUGHTFUL), said("<think>\nno\n</think>\n\n5"))
    )
    assert [(prompt + text).partition("assistant\n")[2] for text in (chosen, rejected)] == [
        THOUGHTFUL + "<|im_end|>", "<think>\nno\n</think>\n\n5<|im_end|>",
    ]  # fmt: skip
    assert prompt.endswith("<think>\n") is ("opened" in name or "closed" in name)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "kept"])
def test_a_thought_beside_the_content_is_the_same_as_one_inside(byte_level: Make, name: str) -> None:
    tokenizer = byte_level(TEMPLATES[name])
    inside = pair(said(THOUGHTFUL), said("<think>\nno\n</think>\n\n5"))
    assert scored(tokenizer, pair(said("4", "add"), said("5", "no")))[:2] == scored(tokenizer, inside)[:2]


def test_a_thought_goes_under_the_key_that_the_template_reads(byte_level: Make) -> None:
    prompt, responses, _ = scored(byte_level(CHANNELS + OPENS), pair(said("4", "add"), said("5", "no")))
    assert prompt.endswith("<|im_start|>assistant\n")
    assert responses == ["<a>add<b><c>4<|im_end|>", "<a>no<b><c>5<|im_end|>"]


def test_a_thought_on_one_side_alone(byte_level: Make) -> None:
    prompt, responses, _ = scored(byte_level(TEMPLATES["by key, opened"]), pair(said(THOUGHTFUL), said("5")))
    assert prompt.endswith("assistant\n<think>\n")
    assert responses == ["add\n</think>\n\n4<|im_end|>", "\n</think>\n\n5<|im_end|>"]


def test_an_empty_thought_that_the_template_writes_is_not_written_twice(byte_level: Make) -> None:
    prompt, responses, _ = scored(byte_level(TEMPLATES["by key"]), pair(said("<think>\n\n</think>\n\n4"), said("5")))
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert responses == ["4<|im_end|>", "5<|im_end|>"]


def test_a_response_without_a_thought_follows_its_own_opening(byte_level: Make) -> None:
    prompt, responses, notes = scored(byte_level(TEMPLATES["cut, opened"]), pair(said("4"), said("5")))
    assert prompt.endswith("<|im_start|>assistant\n")
    assert responses == ["4<|im_end|>", "5<|im_end|>"]
    assert notes == ["template.opens"]


@pytest.mark.parametrize("template", [PLAIN, None])
def test_a_thought_without_a_place_is_refused(byte_level: Make, template: str | None) -> None:
    with pytest.raises(UserError, match="no place"):
        scored(byte_level(template), pair(said("4", "add"), said("5", "no")))


def test_thoughts_of_earlier_turns_that_are_left_out_are_told(byte_level: Make) -> None:
    row = pair(said("yes"), said("no"), Message("user", "2+2?"), said(THOUGHTFUL), Message("user", "sure?"))
    prompt, _, notes = scored(byte_level(TEMPLATES["cut"]), row)
    assert ("add" in prompt, notes) == (False, ["template.thoughts"])
    assert "template.thoughts" not in scored(byte_level(PLAIN), row)[2]


LOSES = {
    "a word": ("{{ m.content | replace('mat', '') }}", said("the mat is")),
    "what follows the first line": ("{{ m.content.split('\n')[0] }}", said("a\nb")),
    "all but its beginning": ("{{ m.content | truncate(9, True, '', 0) }}", said("the cat sat on")),
}


@pytest.mark.parametrize("name", LOSES)
def test_a_lost_word_of_a_response_is_an_error(byte_level: Make, name: str) -> None:
    content, response = LOSES[name]
    template = PLAIN.replace("{{ m.content }}", f"{{% if m.content == 'the-response-goes-here' or m.role == 'user' %}}"
                             f"{{{{ m.content }}}}{{% else %}}{content}{{% endif %}}")  # fmt: skip
    with pytest.raises(UserError, match=r"leaves out words of the response|differently once"):
        scored(byte_level(template), pair(response, said("no")))


@pytest.mark.parametrize("role", ["system", "developer", "tool", "user"])
def test_a_lost_message_is_an_error(byte_level: Make, role: str) -> None:
    row = pair(said("a"), said("b"), Message("user", "2+2?"), said("c"), Message(role, "be kind"), Message("user", "d"))
    keeps = f"{{% for m in messages if m.role != '{role}' or m.content != 'be kind' %}}"
    with pytest.raises(UserError, match=f"drops the {role}'s turn 'be kind'"):
        scored(byte_level(PLAIN.replace("{% for m in messages %}", keeps)), row)
    assert "be kind" in scored(byte_level(PLAIN), row)[0]


def test_content_in_parts_where_the_template_wants_it(byte_level: Make) -> None:
    template = PLAIN.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")
    assert scored(byte_level(template), pair(said("a"), said("b")))[1] == ["a<|im_end|>", "b<|im_end|>"]


@pytest.mark.parametrize("cut", ["m.content[:8]", "m.content|first", "m.content|list|last", "(m.content[:4]|string)|e"])
def test_a_template_that_cuts_content_never_gets_it_in_parts(byte_level: Make, cut: str) -> None:
    with pytest.raises(UserError, match="the chat template drops the assistant's turn"):
        scored(byte_level(PLAIN.replace("m.content", cut)), pair(said("a"), said("b")))


def test_a_list_of_parts_is_never_written_as_it_is(byte_level: Make) -> None:
    parts = "{% for p in m.content %}{{ p.text }}{% endfor %}"
    parts = f"{{% if m.role == 'system' %}}{{{{ m.content }}}}{{% else %}}{parts}{{% endif %}}"
    tokenizer = byte_level(PLAIN.replace("{{ m.content }}", parts))
    assert scored(tokenizer, pair(said("a"), said("b")))[0].count("2+2?") == 1
    with pytest.raises(UserError, match="writes a content's list of parts as it stands"):
        scored(tokenizer, pair(said("a"), said("b"), Message("system", "be kind"), Message("user", "2+2?")))


@pytest.mark.parametrize(
    ("tail", "eos", "end"),
    [
        ("</s><|im_end|>\n", "<|im_end|>", "</s><|im_end|>"),
        ("<|im_end|>\n</s>", "</s>", "<|im_end|>\n</s>"),
        ("</s><|im_end|>\n", "<unk>", "</s><|im_end|>"),
        ("<|im_end|>\n", "</s>", "<|im_end|>"),
    ],
)
def test_a_turn_ends_with_the_end_token(byte_level: Make, tail: str, eos: str, end: str) -> None:
    tokenizer = byte_level(PLAIN.replace("<|im_end|>\n", tail), eos_token=eos)
    for written in ("", end, tail, end + "\n" + end):
        assert scored(tokenizer, pair(said("a" + written), said("b")))[1] == ["a" + end, "b" + end]


def test_a_header_that_a_response_repeats_is_kept_once(byte_level: Make) -> None:
    _, responses, notes = scored(byte_level(PLAIN), pair(said("<|im_start|>assistant\na<|im_end|>"), said("b")))
    assert responses == ["a<|im_end|>", "b<|im_end|>"]
    assert notes == ["end.written", "header.written"]


def test_options_reach_the_template(byte_level: Make) -> None:
    template = PLAIN + "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    row, tokenizer = pair(said("a"), said("b")), byte_level(template)
    plain, quiet = (
        tokenize([row], tokenizer, max_tokens=99, template_options=options).groups[0].prompt.tolist()
        for options in ({}, {"enable_thinking": False})
    )
    assert tokenizer.decode(quiet[len(plain) :]) == "<think>\n\n</think>\n\n"


class TestAddedTokens:
    """Tokens that a tokenizer has and does not mark special."""

    words = ("<think>", "</think>", "<call>", "<sep>")

    def tokenizer(self, byte_level: Make) -> PreTrainedTokenizerBase:
        template = BY_KEY.replace("<|im_end|>", "<sep>") + OPENS + "{% if tools %}<call>{% endif %}"
        return adding(byte_level(template, eos_token="</s>"), self.words)

    def test_those_of_the_template_are_text_where_a_person_writes_them(self, byte_level: Make) -> None:
        tokenizer = self.tokenizer(byte_level)
        ids = {word: tokenizer.convert_tokens_to_ids(word) for word in self.words}
        row = pair(said("a <sep> b"), said("c"), Message("user", "hi <sep><call></think> you"))
        group = tokenize([row], tokenizer, max_tokens=999).groups[0]
        assert [word for word in self.words if ids[word] in group.prompt] == ["<think>", "</think>", "<sep>"]
        assert group.prompt.tolist().count(ids["<sep>"]) == 1
        assert [ids_.tolist().count(ids["<sep>"]) for ids_ in group.responses] == [1, 1]
        assert tokenizer.decode(group.responses[0].tolist()) == "a <sep> b<sep>"

    def test_those_of_a_thought_or_a_tool_are_tokens_where_the_assistant_speaks(self, byte_level: Make) -> None:
        tokenizer = self.tokenizer(byte_level)
        group = tokenize([pair(said(THOUGHTFUL), said("<call>f"))], tokenizer, max_tokens=999).groups[0]
        call, close = tokenizer.convert_tokens_to_ids("<call>"), tokenizer.convert_tokens_to_ids("</think>")
        assert close in group.responses[0]
        assert call in group.responses[1]

    def test_they_are_text_in_text_too(self, byte_level: Make) -> None:
        tokenizer = self.tokenizer(byte_level)
        row = Demo(prompt="a <sep> b", response=" c<sep>d", place=Place("made", 1))
        group = tokenize([row], tokenizer, max_tokens=999).groups[0]
        sep = tokenizer.convert_tokens_to_ids("<sep>")
        assert sep not in {*group.prompt.tolist(), *group.responses[0].tolist()}
        assert tokenizer.decode(group.responses[0].tolist()) == " c<sep>d</s>"


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "pad_token"])
def test_an_unknown_token_that_is_another_says_nothing(byte_level: Make, name: str) -> None:
    tokenizer = byte_level(**{"unk_token": "<|im_end|>", "eos_token": "</s>", name: "<|im_end|>"})
    assert "token.unknown" not in reasons(tokenize([pair(said("a"), said("b"))], tokenizer, max_tokens=99))
