"""Text to token ids; what a tokenizer adds on its own is found out by trying.

The ids of the prompt are the beginning of the ids of prompt and response: what a model is given to continue. The
response's ids are the rest. Only where a token would join the end of one with the beginning of the other is the
response encoded separately. The begin-of-text ids stand once before text; a template brings its own. Each response
ends with one end token, unless it was cut. A control token that a person wrote stays text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from preftune.errors import Problem, UserError
from preftune.rows.account import Tally
from preftune.rows.row import Row
from preftune.tokens.groups import TokenGroup
from preftune.tokens.template import FIRST, GUARD, RenderedRow
from preftune.tokens.tokenizer import backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenOffsets = Sequence[tuple[int, int, int]]  # (id, begin, end): a token and the characters that it stands for
MAX_UNKNOWN = 0.1  # share of unknown tokens from which the tokenizer is surely another model's


class EncodedRow(NamedTuple):
    """Ids of the prompt and of each response."""

    prompt: list[int]
    responses: list[list[int]]


class Encoder:
    """control: the tokens that guards stand for (see `template.GUARD`), in the order of their numbers; special: those
    of them that the tokenizer itself can leave text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: Sequence[str], special: Collection[str]) -> None:
        self._control, self._special = control, special
        self._backend, self._size = backend(tokenizer), len(tokenizer)
        self._backend.no_padding()
        self._backend.no_truncation()
        bare, framed = self._plain_ids(["a"], False)[0], self._backend.encode("a").ids
        start = next((k for k in range(len(framed)) if framed[k : k + len(bare)] == bare), 0)
        self.begin = framed[:start]
        self.begin_text = str(tokenizer.bos_token or "") if self.begin else ""
        named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
        ids = [self._backend.token_to_id(str(token)) if token else None for token in named]
        self._start, self.end, _, unknown = ids
        self._unknown = None if unknown in ids[:-1] else unknown  # GPT-2 calls its end token unknown too
        # SentencePiece puts a space before any text. After a line break, which joins with nothing, it does not.
        line, after = self._plain_ids(["\n", "\na"], False)
        self._anchor = "" if after[len(line) :] == bare else "\n"

    def encode(self, rows: Sequence[tuple[Row, RenderedRow]], tally: Tally) -> list[EncodedRow]:
        """The ids of each row; what is odd about them goes into the tally."""
        encoded: dict[int, EncodedRow] = {}
        for templated in (False, True):
            some = [(index, row, text) for index, (row, text) in enumerate(rows) if text.templated is templated]
            prompts = [self._prompt_text(text) for _, _, text in some]
            prompt_ids = self._ids(prompts, templated)
            wholes = [p + r for p, (_, _, text) in zip(prompts, some, strict=True) for r in text.responses]
            whole_ids = iter(self._ids(wholes, templated))
            for (index, row, text), prompt, start in zip(some, prompts, prompt_ids, strict=True):
                if prompt != text.prompt:
                    message = "the prompt begins with the begin token as text; it is kept once"
                    tally.add("begin.written", message, row.place)
                responses = [self._rest(start, next(whole_ids), r, row, text, tally) for r in text.responses]
                if not templated:
                    start = self._begun(start, row, tally)
                elif isinstance(row.prompt, str):
                    start, responses = self._opened(start, responses, row, tally)
                encoded[index] = EncodedRow(start, responses)
        return [encoded[index] for index in range(len(rows))]

    def offsets(self, text: RenderedRow, index: int) -> TokenOffsets:
        """The tokens of response `index`, without an added end token, with the characters that each stands for.

        Characters are counted from where the row's own text begins; those outside of it were written by a template.
        """
        prompt, response = self._prompt_text(text), text.responses[index]
        start, whole = (self._encode(part, text.templated) for part in (prompt, prompt + response))
        text_start = text.text_starts[index] or 0
        if [token for token, *_ in whole[: len(start)]] == [token for token, *_ in start]:
            return _shifted(whole[len(start) :], -len(self._without_guards(prompt)) - text_start)
        return _shifted(self._encode_continued(response, text.templated), -text_start)

    def _plain_ids(self, texts: Sequence[str], templated: bool) -> list[list[int]]:
        self._backend.encode_special_tokens = not templated  # True: as the text that they are
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        self._backend.encode_special_tokens = False
        return [encoding.ids for encoding in encodings]

    def _ids(self, texts: Sequence[str], templated: bool) -> list[list[int]]:
        """Ids of each text; a guarded control token is encoded as the text that it was."""
        plain = iter(self._plain_ids([text for text in texts if GUARD not in text], templated))
        return [[id_ for id_, *_ in self._encode(text, templated)] if GUARD in text else next(plain) for text in texts]

    def _encode(self, text: str, templated: bool) -> TokenOffsets:
        """Ids with their characters, counted in the text in which guards are replaced by what they stand for."""
        if GUARD not in text:
            self._backend.encode_special_tokens = not templated
            encoding = self._backend.encode(text, add_special_tokens=False)
            self._backend.encode_special_tokens = False
            return [(id_, *characters) for id_, characters in zip(encoding.ids, encoding.offsets, strict=True)]
        first, *rest = text.split(GUARD)
        tokens, position = list(self._encode(first, templated)) if first else [], len(first)
        for part in rest:
            token = self._control[ord(part[0]) - FIRST]
            pieces = [token] if token in self._special else [token[:1], token[1:]]  # parted, an added token is text
            for piece, by_template in (*((piece, False) for piece in pieces), (part[1:], templated)):
                tokens += _shifted(self._encode_continued(piece, by_template), position) if piece else []
                position += len(piece)
        return tokens

    def _encode_continued(self, text: str, templated: bool) -> TokenOffsets:
        """As `_encode`, for a text that follows on another, so that no space is put before it."""
        if GUARD in text or not self._anchor:
            return self._encode(text, templated)
        line, after = self._encode(self._anchor, templated), self._encode(self._anchor + text, templated)
        if after[: len(line)] == line:
            return _shifted(after[len(line) :], -len(self._anchor))
        return self._encode(text, templated)

    def _without_guards(self, text: str) -> str:
        first, *rest = text.split(GUARD)
        return first + "".join(self._control[ord(part[0]) - FIRST] + part[1:] for part in rest)

    def _prompt_text(self, text: RenderedRow) -> str:
        """The prompt without a begin token that a person wrote, since it gets its own."""
        if not text.templated and self.begin_text and text.prompt.startswith(self.begin_text):
            return text.prompt.removeprefix(self.begin_text)
        return text.prompt

    def _rest(
        self, start: list[int], whole: list[int], response: str, row: Row, text: RenderedRow, tally: Tally
    ) -> list[int]:
        """The ids of the response: those of prompt and response (whole) after those of the prompt (start)."""
        ids = whole[len(start) :]
        if whole[: len(start)] != start:
            tally.add("boundary.merge", "a token would join prompt and response; they are kept apart", row.place)
            ids = [id_ for id_, *_ in self._encode_continued(response, text.templated)]
        if text.ends_turn or not ids:
            return ids
        if self.end is None:
            raise UserError("the tokenizer has no end token, so no response can end.", location="model.tokenizer",
                            hint="Set eos_token in its tokenizer_config.json.")  # fmt: skip
        return [*ids, self.end]

    def _opened(
        self, start: list[int], responses: list[list[int]], row: Row, tally: Tally
    ) -> tuple[list[int], list[list[int]]]:
        """Prompt and responses of text with control tokens of its own, after one begin token. Without a prompt, the
        first token of a response is predicted from that, or, where the tokenizer has none, not at all."""
        if start:
            return start if start[: len(self.begin)] == self.begin else self.begin + start, responses
        start = self.begin or (responses[0][:1] if len(responses) == 1 else self._begun([], row, tally))
        return start, [ids[len(start) :] if ids[: len(start)] == start else ids for ids in responses]

    def _begun(self, start: list[int], row: Row, tally: Tally) -> list[int]:
        """The prompt's ids after the begin-of-text ids; never empty, since a token is needed to predict the first."""
        if self.begin or start:
            return self.begin + start
        stand_in = self.end if self._start is None else self._start
        tally.add("prompt.stand_in", "only a begin or end token stands before the response", row.place)
        return [] if stand_in is None else [stand_in]

    def check_known(self, groups: Sequence[TokenGroup]) -> list[Problem]:
        """A note on unknown tokens. Raises UserError where they are many, or an id is not the tokenizer's."""
        highest = max((int(ids.max()) for g in groups for ids in g.parts if len(ids)), default=0)
        if highest >= self._size:
            message = f"the tokenizer gives the id {highest}, but has {self._size} tokens."
            raise UserError(message, location="model.tokenizer")
        if self._unknown is None:
            return []
        counts = [sum(int((ids == self._unknown).sum()) for ids in g.parts) for g in groups]
        share = sum(counts) / max(sum(g.tokens for g in groups), 1)
        if share > MAX_UNKNOWN:
            raise UserError(f"the tokenizer does not know {share:.0%} of the tokens.", location="model.tokenizer",
                            hint="Is it the one of this model, and for this language?")  # fmt: skip
        first = next((str(g.place) for g, count in zip(groups, counts, strict=True) if count), "")
        return [Problem(f"{share:.2%} of all tokens are unknown.", first, reason="token.unknown")] if first else []


def _shifted(tokens: TokenOffsets, by: int) -> list[tuple[int, int, int]]:
    return [(id_, begin + by, end + by) for id_, begin, end in tokens]
