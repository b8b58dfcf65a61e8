"""One raw record seen through its dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from preftune.rows.parse import MalformedRow, describe, items, number, refuse, text, turns
from preftune.rows.row import Message, Place, Prompt, Response, Weights, said
from preftune.rows.token_weights import weights

UNSUPPORTED = ("tools", "history", "images", "videos", "audios")


class RawRow:
    """A slot's name stands for whichever key filled it."""

    def __init__(self, value: Mapping[str, object], place: Place, keys: Mapping[str, str]) -> None:
        self.value, self.place, self.keys = value, place, keys
        refuse(value, UNSUPPORTED)

    def __getitem__(self, slot: str) -> object:
        return self.value[self.keys[slot]]

    def turns(self, slot: str) -> Prompt:
        return turns(self[slot], self.keys[slot])

    def optional(self, key: str) -> float | None:
        """A number that need not be there."""
        return None if self.value.get(key) is None else number(self.value[key], key)

    @property
    def id(self) -> str:
        found = self.value.get("id")
        if found is not None and (isinstance(found, bool) or not isinstance(found, str | int)):
            raise MalformedRow(f'"id" is {describe(found)}, needs text or a whole number.')
        return "" if found is None else str(found)

    @property
    def weight(self) -> float:
        found = self.optional("weight")
        if found is not None and found <= 0:
            raise MalformedRow(f'"weight" is {found:g}, needs to be above 0.')
        return 1.0 if found is None else found

    def prompt(self) -> Prompt:
        """The prompt slot, with a system text and an alpaca `input` where the record has them."""
        key, found = self.keys["prompt"], self.turns("prompt")
        if isinstance(found, str) and key != "prompt":
            more = self.value.get("input") if key == "instruction" else None
            found = (Message("user", f"{found}\n{text(more, 'input')}" if more else found),)
        system = self.value.get("system")
        if not system:
            return found
        said = (Message("user", found),) if isinstance(found, str) else found
        return said if said[0].role == "system" else (Message("system", text(system, "system")), *said)

    def weighs(self, keys: Sequence[str], responses: Sequence[Response]) -> tuple[Weights | None, ...] | None:
        """What the tokens of each response count, by the key of each; None where the record says nothing of it."""
        given = [(self.value.get(key), key) for key in keys]
        return self.weighed(given, responses)

    def weighed(
        self, given: Sequence[tuple[object, str]], responses: Sequence[Response]
    ) -> tuple[Weights | None, ...] | None:
        """The same from values with the names of their fields."""
        found = tuple(weights(value, name, said(one)) for (value, name), one in zip(given, responses, strict=True))
        return found if any(found) else None

    def listed_weights(self, responses: Sequence[Response]) -> tuple[Weights | None, ...] | None:
        """The same from one key that holds an entry for each response."""
        if self.value.get("token_weights") is None:
            return None
        given = items(self.value["token_weights"], "token_weights")
        if len(given) != len(responses):
            raise MalformedRow(f'"token_weights" has {len(given)} entries for {len(responses)} responses.')
        return self.weighed([(one, f"token_weights[{k}]") for k, one in enumerate(given)], responses)
