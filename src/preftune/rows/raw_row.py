"""One raw record, seen through its format: slots in place of keys, typed values in place of JSON.

Weights of tokens have two forms. Spans of the response's text, `[[begin, end, weight], ...]` in characters, suit any
tokenizer; what no span covers counts 1, and so does the end token. A plain list has one number a token of the
response, end token included, and suits one tokenizer only. Nothing is guessed: numbers that do not fit are an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise

from msgspec.structs import replace

from preftune.rows import transcripts
from preftune.rows.keys import is_nothing
from preftune.rows.messages import Unread, align, parse_turns
from preftune.rows.parse import MalformedRow, describe, parse_count, parse_list, parse_number, parse_text, refuse_other
from preftune.rows.row import TOLD, Message, Place, Prompt, Response, Row, Span, TokenWeights, last_text, text_of
from preftune.rows.tools import LISTED, OF_TEMPLATE, listed, options_of

SYSTEM = ("system", "system_prompt")
ANSWERS = ("ground_truth", "answer", "solution", "reward_model")
CATEGORY = ("category", "subset")


class RawRow:
    """A record whose slots stand for whichever key filled them. Its methods raise MalformedRow and SkippedRow.

    unread: the keys inside of what was read that nothing reads; scale: the key of the scores that were read.
    """

    def __init__(self, value: Mapping[str, object], place: Place, keys: Mapping[str, str]) -> None:
        self.value, self.place, self.keys = value, place, dict(keys)
        self.unread, self.scale = Unread(), ""

    def __getitem__(self, slot: str) -> object:
        return self.value[self.keys[slot]]

    def turns(self, slot: str) -> Prompt:
        return parse_turns(self[slot], self.keys[slot], self.unread)

    def optional_number(self, key: str) -> float | None:
        return None if self.value.get(key) is None else parse_number(self.value[key], key)

    @property
    def id(self) -> str:
        value = self.value.get("id")
        return value.hex() if isinstance(value, bytes) else _as_text(value)

    @property
    def answer(self) -> str | None:
        """What a verifier holds a response against: a text, or the JSON of another value.

        `reward_model` is verl's, an object with a ground_truth. A key that fills another slot is no answer, unless it
        is the row's one response, as in gsm8k; nor is a blank text.
        """
        slots = {key for slot, key in self.keys.items() if slot not in ("answer", "response")}
        for key in ANSWERS:
            value = None if key in slots else self.value.get(key)
            if key == "reward_model" and isinstance(value, Mapping):
                self.unread.add(value, key, ("ground_truth",))
                value = value.get("ground_truth")
            if _as_text(value).strip():
                return _as_text(value)
        return None

    def with_tools_and_options(self, row: Row) -> Row:
        """The row, whose prompt begins with the tools and the options of a template that the record has. Raises
        MalformedRow."""
        nested = {f"{key}.{name}": value[name] for key in self.keys.values() for name in LISTED
                  if isinstance(value := self.value[key], Mapping) and not is_nothing(value.get(name))}  # fmt: skip
        beside = {key: self.value[key] for key in LISTED if not is_nothing(self.value.get(key))}
        turns = {field: listed(value, field) for field, value in (beside | nested).items()}
        if self.value.get(OF_TEMPLATE) not in (None, {}, ""):
            turns[OF_TEMPLATE] = options_of(self.value[OF_TEMPLATE], OF_TEMPLATE)
        for field, turn in turns.items():
            if isinstance(row.prompt, str):
                raise MalformedRow(f'"{field}" needs a conversation, and the prompt is text.', "Make it messages.")
            self.keys[field] = field
            self.unread.pop(field, None)
            others = [other for other in row.prompt if other.role == turn.role]
            if any(other != turn for other in others):
                raise MalformedRow(f'"{field}" is not what something else says too.', "Keep one of them.")
            row = row if others else replace(row, prompt=(turn, *row.prompt))
        return row

    @property
    def category(self) -> str:
        said = (self.value.get(key) for key in CATEGORY)
        return next((str(value).strip() for value in said if isinstance(value, str | int | float)), "")

    @property
    def weight(self) -> float:
        weight = self.optional_number("weight")
        if weight is not None and weight <= 0:
            raise MalformedRow(f'"weight" is {weight:g}, needs to be above 0.')
        return 1.0 if weight is None else weight

    def align(self, responses: Sequence[Prompt]) -> tuple[Prompt, tuple[Response, ...]]:
        """The prompt, with the system text, the earlier turns and the alpaca `input` that the record may have beside
        it, and the responses in one form with it. A Human/Assistant transcript is turns here as everywhere.
        """
        key, prompt, earlier = self.keys["prompt"], self.turns("prompt"), self._history()
        if isinstance(prompt, str) and transcripts.is_transcript(prompt):
            prompt = transcripts.parse(prompt, "Human")
            responses = [response.strip() if isinstance(response, str) else response for response in responses]
        if isinstance(prompt, str) and (key != "prompt" or earlier):
            more = self.value.get("input") if key == "instruction" else None
            prompt = (Message("user", f"{prompt}\n{parse_text(more, 'input')}" if more else prompt),)
        if not isinstance(prompt, str):
            prompt = (*earlier, *prompt)
        return align(self.with_system(prompt), responses)

    def _history(self) -> tuple[Message, ...]:
        """The turns before the prompt: messages, or pairs of a question and its answer, as LLaMA-Factory has them."""
        value = self.value.get("history")
        if is_nothing(value) or "history" in self.keys.values():
            return ()
        self.keys["history"] = "history"
        pairs = value if isinstance(value, list) else []
        if pairs and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            texts = [parse_text(text, f"history[{place}]") for place, pair in enumerate(pairs) for text in pair]
            return tuple(Message(("user", "assistant")[place % 2], text) for place, text in enumerate(texts))
        turns = parse_turns(value, "history", self.unread)
        if isinstance(turns, str):
            raise MalformedRow('"history" is a text, needs a list of turns.', "Write it into the prompt.")
        return turns

    def with_system(self, prompt: Prompt) -> Prompt:
        """The prompt after the system text that the record has beside it. Raises MalformedRow where there are two."""
        texts = [self._system(key) for key in SYSTEM if not is_nothing(self.value.get(key))]
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        first = next((place for place, turn in enumerate(turns) if turn.role not in TOLD), 0)
        has_one = turns[first].role == "system"
        systems = list(dict.fromkeys([*texts, *(turns[first].content for _ in range(has_one))]))
        if len(systems) > 1:
            raise MalformedRow("there are two different system texts.", "Keep one of them.")
        if not texts:
            return prompt
        return turns if has_one else (*turns[:first], Message("system", systems[0]), *turns[first:])

    def _system(self, key: str) -> str:
        """The text under a key, or in the parts under it."""
        if not isinstance(value := self.value[key], list):
            return parse_text(value, key)
        return last_text(parse_turns([{"role": "system", "content": value}], key, self.unread))

    def token_weights(self, responses: Sequence[Response], *keys: str) -> tuple[TokenWeights | None, ...] | None:
        """The token weights of each response, each under a key of its own; None where the record gives none."""
        return parse_weights([(self.value.get(key), key) for key in keys], responses)

    def listed_token_weights(self, responses: Sequence[Response]) -> tuple[TokenWeights | None, ...] | None:
        """The token weights of all responses from one key that holds a list with an entry for each."""
        if self.value.get("token_weights") is None:
            return None
        entries = parse_list(self.value["token_weights"], "token_weights")
        if len(entries) != len(responses):
            raise MalformedRow(f'"token_weights" has {len(entries)} entries for {len(responses)} responses.')
        return parse_weights([(entry, f"token_weights[{index}]") for index, entry in enumerate(entries)], responses)


def _as_text(value: object) -> str:
    """A text as it is, nothing for null, and any other value as JSON."""
    return (
        value
        if isinstance(value, str)
        else ""
        if value is None
        else json.dumps(value, sort_keys=True, default=refuse_other)
    )


def parse_weights(
    fields: Sequence[tuple[object, str]], responses: Sequence[Response]
) -> tuple[TokenWeights | None, ...] | None:
    """The token weights of each response. fields: a value with the name of its field for each. Raises MalformedRow."""
    weights = tuple(
        None if value is None else _token_weights(value, field, response)
        for (value, field), response in zip(fields, responses, strict=True)
    )
    return weights if any(weights) else None


def _token_weights(value: object, field: str, response: Response) -> TokenWeights:
    """The weights that a field gives to a response. Raises MalformedRow."""
    if not isinstance(response, str) and (response[1:] or any(turn.beside for turn in response)):
        raise MalformedRow(f'"{field}" is of one turn of text, and the response is more.', "Leave it out.")
    entries = parse_list(value, field)
    if not any(isinstance(entry, list) for entry in entries):
        numbers = tuple(parse_count(entry, f"{field}[{index}]") for index, entry in enumerate(entries))
        if not any(numbers):
            raise MalformedRow(f'"{field}" is all 0, so nothing of the response counts.', "Leave such rows out.")
        return numbers
    spans = [_span(entry, f"{field}[{index}]", text_of(response)) for index, entry in enumerate(entries)]
    spans.sort(key=lambda span: span.begin)
    for span, following in pairwise(spans):
        if following.begin < span.end:
            raise MalformedRow(f'"{field}": the spans from {span.begin} and from {following.begin} overlap.')
    return tuple(spans)


def _span(value: object, field: str, text: str) -> Span:
    if not isinstance(value, list) or len(value) != 3:
        hint = "Either all entries are spans, or all are numbers, one a token."
        raise MalformedRow(f"{field} is {describe(value)}, needs [begin, end, weight].", hint)
    begin, end, weight = (parse_count(number, f"{field}[{index}]") for index, number in enumerate(value))
    if not (begin.is_integer() and end.is_integer() and begin < end <= len(text)):
        message = f"{field} is no span of the response, which has {len(text)} characters: {begin:g} to {end:g}."
        raise MalformedRow(message, "Count characters from 0; the end is one past the last.")
    return Span(int(begin), int(end), weight)
