"""One raw record, seen through its format: slots in place of keys, typed values in place of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from preftune.rows.messages import parse_turns
from preftune.rows.parse import MalformedRow, describe, parse_list, parse_number, parse_text, refuse_keys
from preftune.rows.row import Message, Place, Prompt, Response, TokenWeights, text_of
from preftune.rows.token_weights import parse_token_weights

UNSUPPORTED = ("tools", "history", "images", "videos", "audios")


class RawRow:
    """A record whose slots stand for whichever key filled them. Its methods raise MalformedRow."""

    def __init__(self, value: Mapping[str, object], place: Place, keys: Mapping[str, str]) -> None:
        self.value, self.place, self.keys = value, place, keys
        refuse_keys(value, UNSUPPORTED)

    def __getitem__(self, slot: str) -> object:
        return self.value[self.keys[slot]]

    def turns(self, slot: str) -> Prompt:
        return parse_turns(self[slot], self.keys[slot])

    def optional_number(self, key: str) -> float | None:
        return None if self.value.get(key) is None else parse_number(self.value[key], key)

    @property
    def id(self) -> str:
        value = self.value.get("id")
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            raise MalformedRow(f'"id" is {describe(value)}, needs text or a whole number.')
        return "" if value is None else str(value)

    @property
    def weight(self) -> float:
        weight = self.optional_number("weight")
        if weight is not None and weight <= 0:
            raise MalformedRow(f'"weight" is {weight:g}, needs to be above 0.')
        return 1.0 if weight is None else weight

    def prompt(self) -> Prompt:
        """The prompt slot, with the system text and the alpaca `input` that the record may have beside it."""
        key, prompt = self.keys["prompt"], self.turns("prompt")
        if isinstance(prompt, str) and key != "prompt":
            more = self.value.get("input") if key == "instruction" else None
            prompt = (Message("user", f"{prompt}\n{parse_text(more, 'input')}" if more else prompt),)
        system = self.value.get("system")
        if not system:
            return prompt
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        return turns if turns[0].role == "system" else (Message("system", parse_text(system, "system")), *turns)

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


def parse_weights(
    fields: Sequence[tuple[object, str]], responses: Sequence[Response]
) -> tuple[TokenWeights | None, ...] | None:
    """The token weights of each response. fields: a value with the name of its field for each. Raises MalformedRow."""
    weights = tuple(
        parse_token_weights(value, field, text_of(response))
        for (value, field), response in zip(fields, responses, strict=True)
    )
    return weights if any(weights) else None
