"""Text to token ids, with what a tokenizer adds of itself found out by trying.

The ids of the prompt are the beginning of the ids of prompt and response: what a model is given to continue. The
response's ids are the rest; only where a token would join the end of one with the begin of the other is the response
encoded by itself. The begin-of-text ids stand once in front of text; a template brings its own. Each response ends
with one end token, unless it was cut. A control token that a person wrote stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from preftune.errors import Problem, UserError
from preftune.rows.read import Tally
from preftune.rows.row import Row
from preftune.rows.token_weights import Placed
from preftune.tokens.groups import TokenGroup
from preftune.tokens.template import FIRST, GUARD, Pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

UNKNOWN = 0.1  # share of unknown tokens from which the tokenizer is surely another model's


def backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer of the tokenizers library below one of transformers. Raises UserError."""
    from tokenizers import Tokenizer

    found = tokenizer.backend_tokenizer
    if not isinstance(found, Tokenizer):
        raise UserError("the tokenizer is not one of the tokenizers library.", location="model.tokenizer")
    return found


class Encoder:
    """control: the tokens that a guard stands for (see `chat.GUARD`), in the order of their numbers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: Sequence[str]) -> None:
        self._control, self._backend, self._size = control, backend(tokenizer), len(tokenizer)
        self._backend.no_padding()
        self._backend.no_truncation()
        bare, framed = self._ids(["a"], False)[0], self._backend.encode("a").ids
        start = next((k for k in range(len(framed)) if framed[k : k + len(bare)] == bare), 0)
        self.begin = framed[:start]
        self.begin_text = str(tokenizer.bos_token or "") if self.begin else ""
        special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
        self._start, self.end, self._unknown = (self._backend.token_to_id(str(one)) if one else None for one in special)
        # SentencePiece puts a space before any text. Behind a line break, which joins with nothing, it does not.
        line, after = self._ids(["\n", "\na"], False)
        self._anchor = "" if after[len(line) :] == bare else "\n"

    def encode(self, rows: Sequence[tuple[Row, Pieces]], tally: Tally) -> list[tuple[list[int], list[list[int]]]]:
        """(ids of the prompt, ids of each response) of each row."""
        done: dict[int, tuple[list[int], list[list[int]]]] = {}
        for templated in (False, True):
            mine = [k for k, (_, pieces) in enumerate(rows) if pieces.templated is templated]
            prompts = [self._opening(rows[k][1]) for k in mine]
            starts = self._many(prompts, templated)
            whole = [p + r for p, k in zip(prompts, mine, strict=True) for r in rows[k][1].responses]
            fulls = iter(self._many(whole, templated))
            for k, prompt, start in zip(mine, prompts, starts, strict=True):
                row, pieces = rows[k]
                if prompt != pieces.prompt:
                    tally.add(
                        "begin.written", "the prompt begins with the begin token as text; it is kept once", row.place
                    )
                given = [self._rest(start, next(fulls), text, row, pieces, tally) for text in pieces.responses]
                done[k] = (start if templated else self._begun(start, row, tally), given)
        return [done[k] for k in range(len(rows))]

    def placed(self, pieces: Pieces, number: int) -> Placed:
        """The tokens of response `number`, the added end token aside, with the characters of the row's own text that
        each stands for; characters before and behind that text are what a template wrote."""
        opening, response = self._opening(pieces), pieces.responses[number]
        start, full = (self._placed(text, pieces.templated) for text in (opening, opening + response))
        lead = pieces.leads[number] or 0
        if [one for one, *_ in full[: len(start)]] == [one for one, *_ in start]:
            return _shifted(full[len(start) :], -len(self._spelled(opening)) - lead)
        return _shifted(self._placed_alone(response, pieces.templated), -lead)

    def _ids(self, texts: Sequence[str], templated: bool) -> list[list[int]]:
        self._backend.encode_special_tokens = not templated  # True: as the text that they are
        found = [one.ids for one in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        self._backend.encode_special_tokens = False
        return found

    def _many(self, texts: Sequence[str], templated: bool) -> list[list[int]]:
        """Ids of each text; a guarded control token is encoded as the text that it was."""
        plain = iter(self._ids([text for text in texts if GUARD not in text], templated))
        return [[one for one, *_ in self._placed(text, templated)] if GUARD in text else next(plain) for text in texts]

    def _placed(self, text: str, templated: bool) -> Placed:
        """Ids with their characters in the text with its guards spelled out."""
        if GUARD not in text:
            self._backend.encode_special_tokens = not templated
            found = self._backend.encode(text, add_special_tokens=False)
            self._backend.encode_special_tokens = False
            return [(one, *place) for one, place in zip(found.ids, found.offsets, strict=True)]
        first, *rest = text.split(GUARD)
        found, done = list(self._placed(first, True)) if first else [], len(first)
        for part in rest:
            for piece, template in ((self._control[ord(part[0]) - FIRST], False), (part[1:], True)):
                found += _shifted(self._placed_alone(piece, template), done) if piece else []
                done += len(piece)
        return found

    def _placed_alone(self, text: str, templated: bool) -> Placed:
        """The same of a text that follows on another."""
        if GUARD in text or not self._anchor:
            return self._placed(text, templated)
        line, after = self._placed(self._anchor, templated), self._placed(self._anchor + text, templated)
        if after[: len(line)] == line:
            return _shifted(after[len(line) :], -len(self._anchor))
        return self._placed(text, templated)

    def _spelled(self, text: str) -> str:
        first, *rest = text.split(GUARD)
        return first + "".join(self._control[ord(part[0]) - FIRST] + part[1:] for part in rest)

    def _opening(self, pieces: Pieces) -> str:
        if not pieces.templated and self.begin_text and pieces.prompt.startswith(self.begin_text):
            return pieces.prompt.removeprefix(self.begin_text)
        return pieces.prompt

    def _rest(self, start: list[int], full: list[int], text: str, row: Row, pieces: Pieces, tally: Tally) -> list[int]:
        ids = full[len(start) :]
        if full[: len(start)] != start:
            tally.add("boundary.merge", "a token would join prompt and response; they are kept apart", row.place)
            ids = [one for one, *_ in self._placed_alone(text, pieces.templated)]
        if pieces.closed or not ids:
            return ids
        if self.end is None:
            raise UserError("the tokenizer has no end token, so no response can end.", location="model.tokenizer",
                            hint="Set eos_token in its tokenizer_config.json.")  # fmt: skip
        return [*ids, self.end]

    def _begun(self, start: list[int], row: Row, tally: Tally) -> list[int]:
        """The prompt's ids behind the begin-of-text ids; never empty, since the first response token needs a place."""
        if self.begin or start:
            return self.begin + start
        stand_in = self.end if self._start is None else self._start
        tally.add("prompt.stand_in", "nothing stands before the response but one begin or end token", row.place)
        return [] if stand_in is None else [stand_in]

    def known(self, groups: Sequence[TokenGroup]) -> list[Problem]:
        """A note on unknown tokens. Raises UserError where they are many, or an id is none of the tokenizer's."""
        highest = max((int(ids.max()) for g in groups for ids in (g.prompt, *g.responses)), default=0)
        if highest >= self._size:
            raise UserError(f"gives the id {highest}, but has {self._size} tokens.", location="model.tokenizer")
        if self._unknown is None:
            return []
        counts = [sum(int((ids == self._unknown).sum()) for ids in (g.prompt, *g.responses)) for g in groups]
        share = sum(counts) / max(sum(g.tokens for g in groups), 1)
        if share > UNKNOWN:
            raise UserError(f"does not know {share:.0%} of the tokens.", location="model.tokenizer",
                            hint="Is it the one of this model, and for this language?")  # fmt: skip
        first = next((str(g.place) for g, n in zip(groups, counts, strict=True) if n), "")
        return [Problem(f"{share:.2%} of all tokens are unknown.", first, reason="token.unknown")] if first else []


def _shifted(placed: Placed, by: int) -> list[tuple[int, int, int]]:
    return [(one, begin + by, end + by) for one, begin, end in placed]
