"""From rows to groups of token ids. Which tokens are a response is decided here, once, and never again inferred.

The ids of the prompt are the beginning of the ids of prompt and response: what a model is given to continue. The
response's ids are the rest; only where a token would join the end of one with the begin of the other is the response
encoded by itself. The begin-of-text ids stand once in front of text; a template brings its own. Each response ends
with one end token, unless it was cut. A control token that a person wrote stays text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from msgspec import Struct

from preftune.data.chat import FIRST, GUARD, Pieces, Renderer, template_of
from preftune.data.fields import Defect, Unusable
from preftune.data.groups import TokenGroup
from preftune.data.read import Tally
from preftune.data.rows import KINDS, Pair, Ranking, Rating, Row
from preftune.data.sources import HUB
from preftune.data.trust import refuse_code
from preftune.errors import SHOWN, Problem, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

ENDS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|eot_id|>", "<eos>", "<end_of_turn>", "<|end|>")
PROBES = ("Hello, world!", " 1234567 + 8.9", "naïve Ænima 東京 العربية", "a\n\n  b\tc", "don't WON'T", "x=[i**2];")
NAMED = "It is the folder or hub name in model.tokeniser or, without one, in model.path."
CHUNK = 256  # rows encoded at once
UNKNOWN = 0.1  # share of unknown tokens from which the tokeniser is surely another model's


class Tokenised(Struct, frozen=True):
    """groups: one for each row kept, in order; skipped: one problem a row left out; cut: rows with a response cut."""

    groups: list[TokenGroup]
    skipped: list[Problem]
    cut: int
    notes: list[Problem]


def load_tokeniser(path: str, revision: str | None = None, template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokeniser of a folder or hub name; code that such a folder brings along is never run.

    template: file with a chat template in place of its own. A folder with tokenizer.json alone does too; its end
    token is then the one of `ENDS` that it knows. Raises UserError.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    folder = Path(path).expanduser()
    file = folder / "tokenizer.json"
    if folder.is_dir():
        refuse_code(folder, "tokeniser")
    elif not HUB.fullmatch(path) or path.startswith((".", "~")) or folder.exists():
        raise UserError(f"there is no folder {path}.", where="tokeniser", mend=NAMED)
    try:
        if file.exists() and not (folder / "tokenizer_config.json").exists():
            found = PreTrainedTokenizerFast(tokenizer_file=str(file))
            ends = [end for end in ENDS if end in found.get_vocab()]
            if len(ends) == 1:
                found.eos_token = ends[0]
        else:
            found = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else path, revision=revision)
    except Exception as error:  # transformers, tokenizers and the hub's client each have their own
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0].strip()}"
        raise UserError(f"none at {path} ({why}).", where="tokeniser", mend=NAMED) from error
    if not isinstance(found, PreTrainedTokenizerBase) or not found.is_fast:
        raise UserError(f"{path} has no tokenizer.json.", where="model.tokeniser",
                        mend="Convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...).")  # fmt: skip
    if file.exists():
        _honest(found, file)
    if template is not None:
        found.chat_template = template_of(Path(template).expanduser())
    return found


def _honest(tokeniser: PreTrainedTokenizerBase, file: Path) -> None:
    """Raise UserError where the tokeniser as loaded differs from its file, as transformers 5 makes some do."""
    from tokenizers import Tokenizer

    plain, loaded = Tokenizer.from_file(str(file)), _backend(tokeniser)
    for probe in PROBES:
        if loaded.encode(probe, add_special_tokens=False).ids != plain.encode(probe, add_special_tokens=False).ids:
            raise UserError(f"transformers encodes {probe!r} otherwise than {file} does.", where="model.tokeniser",
                            mend="Its tokenizer_config.json names a class that changes it.")  # fmt: skip


def _backend(tokeniser: PreTrainedTokenizerBase) -> Tokenizer:
    from tokenizers import Tokenizer

    found = tokeniser.backend_tokenizer
    if not isinstance(found, Tokenizer):
        raise UserError("the tokeniser is not one of the tokenizers library.", where="model.tokeniser")
    return found


def tokeniser_digest(tokeniser: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that decides ids: the content of tokenizer.json, the begin and end tokens, the chat template."""
    content = json.loads(_backend(tokeniser).to_str())
    del content["truncation"], content["padding"]  # left behind by whoever called it last
    decides = [content, tokeniser.chat_template, tokeniser.bos_token, tokeniser.eos_token]
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()


def tokenise(
    rows: Sequence[Row],
    tokeniser: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    too_long: Literal["skip", "cut"] = "skip",
) -> Tokenised:
    """Groups of all rows.

    max_tokens: longest prompt with one response; too_long: `skip` leaves longer rows out, `cut` drops the end of
    their responses. Raises UserError that lists the rows which the chat template fails.
    """
    renderer = Renderer(tokeniser)
    encoder = _Encoder(tokeniser, renderer.control)
    groups: list[TokenGroup] = []
    skipped: list[Problem] = []
    defects: list[Problem] = []
    tally, cut = Tally(), 0
    for start in range(0, len(rows), CHUNK):
        kept: list[tuple[Row, Pieces]] = []
        for row in rows[start : start + CHUNK]:
            try:
                kept.append((row, renderer.pieces(row)))
            except Defect as defect:
                defects.append(Problem(defect.what, str(row.place), defect.mend, defect.reason))
            except Unusable as unusable:
                skipped.append(Problem(unusable.what, str(row.place), reason=unusable.reason))
        if len(defects) >= SHOWN:
            break
        for (row, pieces), (prompt, given) in zip(kept, encoder.encode(kept, tally), strict=True):
            try:
                group, shortened = _group(row, prompt, given, max_tokens, too_long)
            except Unusable as unusable:
                skipped.append(Problem(unusable.what, str(row.place), reason=unusable.reason))
                continue
            groups.append(group)
            cut += shortened
            for reason, what in pieces.remarks:
                tally.add(reason, what, row.place)
    if defects:
        raise UserError(defects)
    general = [Problem(what, reason=reason) for reason, what in renderer.notes()]
    return Tokenised(groups, skipped, cut, [*general, *encoder.known(groups), *tally.problems()])


def tokenise_row(row: Row, tokeniser: PreTrainedTokenizerBase) -> TokenGroup:
    """One row of any length. Raises UserError where it is unusable."""
    done = tokenise([row], tokeniser, max_tokens=2**31)
    if done.groups:
        return done.groups[0]
    raise UserError(done.skipped)


class _Encoder:
    """Text to ids, with what a tokeniser adds of itself found out by trying."""

    def __init__(self, tokeniser: PreTrainedTokenizerBase, control: Sequence[str]) -> None:
        self._control, self._backend, self._size = control, _backend(tokeniser), len(tokeniser)
        self._backend.no_padding()
        self._backend.no_truncation()
        bare, framed = self._ids(["a"], False)[0], self._backend.encode("a").ids
        start = next((k for k in range(len(framed)) if framed[k : k + len(bare)] == bare), 0)
        self.begin = framed[:start]
        self.begin_text = str(tokeniser.bos_token or "") if self.begin else ""
        special = (tokeniser.bos_token, tokeniser.eos_token, tokeniser.unk_token)
        self._start, self.end, self._unknown = (self._backend.token_to_id(str(one)) if one else None for one in special)
        # SentencePiece puts a space before any text. Behind a line break, which joins with nothing, it does not.
        line, after = self._ids(["\n", "\na"], False)
        self._anchor = "" if after[len(line) :] == bare else "\n"

    def _ids(self, texts: Sequence[str], templated: bool) -> list[list[int]]:
        self._backend.encode_special_tokens = not templated  # True: as the text that they are
        found = [one.ids for one in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        self._backend.encode_special_tokens = False
        return found

    def _many(self, texts: Sequence[str], templated: bool) -> list[list[int]]:
        """Ids of each text; a guarded control token (see `chat.GUARD`) is encoded as the text that it was."""
        plain = iter(self._ids([text for text in texts if GUARD not in text], templated))
        return [self._guarded(text) if GUARD in text else next(plain) for text in texts]

    def _guarded(self, text: str) -> list[int]:
        first, *rest = text.split(GUARD)
        ids = self._ids([first], True)[0] if first else []
        for part in rest:
            ids = ids + self.alone(self._control[ord(part[0]) - FIRST], False)
            ids = ids + (self.alone(part[1:], True) if part[1:] else [])
        return ids

    def alone(self, text: str, templated: bool) -> list[int]:
        """Ids of a text that follows on another."""
        if GUARD in text:
            return self._guarded(text)
        line, after = self._ids([self._anchor, self._anchor + text], templated) if self._anchor else ([], [])
        return after[len(line) :] if line and after[: len(line)] == line else self._ids([text], templated)[0]

    def encode(self, rows: Sequence[tuple[Row, Pieces]], tally: Tally) -> list[tuple[list[int], list[list[int]]]]:
        """(ids of the prompt, ids of each response) of each row."""
        done: dict[int, tuple[list[int], list[list[int]]]] = {}
        for templated in (False, True):
            mine = [k for k, (_, pieces) in enumerate(rows) if pieces.templated is templated]
            prompts = [self._opening(*rows[k], tally) for k in mine]
            starts = self._many(prompts, templated)
            whole = [p + r for p, k in zip(prompts, mine, strict=True) for r in rows[k][1].responses]
            fulls = iter(self._many(whole, templated))
            for k, start in zip(mine, starts, strict=True):
                row, pieces = rows[k]
                given = [self._rest(start, next(fulls), text, row, pieces, tally) for text in pieces.responses]
                done[k] = (start if templated else self._begun(start, row, tally), given)
        return [done[k] for k in range(len(rows))]

    def _opening(self, row: Row, pieces: Pieces, tally: Tally) -> str:
        if not pieces.templated and self.begin_text and pieces.prompt.startswith(self.begin_text):
            tally.add("begin.written", "the prompt begins with the begin token as text; it is kept once", row.place)
            return pieces.prompt.removeprefix(self.begin_text)
        return pieces.prompt

    def _rest(self, start: list[int], full: list[int], text: str, row: Row, pieces: Pieces, tally: Tally) -> list[int]:
        ids = full[len(start) :]
        if full[: len(start)] != start:
            tally.add("boundary.merge", "a token would join prompt and response; they are kept apart", row.place)
            ids = self.alone(text, pieces.templated)
        if pieces.closed or not ids:
            return ids
        if self.end is None:
            raise UserError("the tokeniser has no end token, so no response can end.", where="model.tokeniser",
                            mend="Set eos_token in its tokenizer_config.json.")  # fmt: skip
        return [*ids, self.end]

    def _begun(self, start: list[int], row: Row, tally: Tally) -> list[int]:
        """The prompt's ids behind the begin-of-text ids; never empty, since the first response token needs a place."""
        if self.begin or start:
            return self.begin + start
        stand_in = self.end if self._start is None else self._start
        tally.add("prompt.stand_in", "nothing stands before the response but one begin or end token", row.place)
        return [] if stand_in is None else [stand_in]

    def known(self, groups: Sequence[TokenGroup]) -> list[Problem]:
        """A note on unknown tokens. Raises UserError where they are many, or an id is none of the tokeniser's."""
        highest = max((int(ids.max()) for g in groups for ids in (g.prompt, *g.responses)), default=0)
        if highest >= self._size:
            raise UserError(f"gives the id {highest}, but has {self._size} tokens.", where="model.tokeniser")
        if self._unknown is None:
            return []
        counts = [sum(int((ids == self._unknown).sum()) for ids in (g.prompt, *g.responses)) for g in groups]
        share = sum(counts) / max(sum(g.tokens for g in groups), 1)
        if share > UNKNOWN:
            raise UserError(f"does not know {share:.0%} of the tokens.", where="model.tokeniser",
                            mend="Is it the one of this model, and for this language?")  # fmt: skip
        first = next((str(g.place) for g, n in zip(groups, counts, strict=True) if n), "")
        return [Problem(f"{share:.2%} of all tokens are unknown.", first, reason="token.unknown")] if first else []


def _group(
    row: Row, prompt: list[int], given: list[list[int]], max_tokens: int, too_long: Literal["skip", "cut"]
) -> tuple[TokenGroup, bool]:
    """The group, and whether it was cut. Raises Unusable."""
    longest = len(prompt) + max(map(len, given))
    ranks = (1, 2) if isinstance(row, Pair) else row.ranks if isinstance(row, Ranking) else (1,)
    if not all(given):
        raise Unusable("response.empty", "a response has no token.")
    _differ(row, given, ranks, "")
    if longest > max_tokens:
        if too_long == "skip":
            raise Unusable("too_long", f"prompt and response have {longest} tokens, {max_tokens} are allowed.")
        if len(prompt) >= max_tokens:
            raise Unusable("prompt.too_long", f"the prompt alone has {len(prompt)} tokens, {max_tokens} are allowed.")
        given = [ids[: max_tokens - len(prompt)] for ids in given]
        _differ(row, given, ranks, "_after_cut")
    score = row.score if isinstance(row, Rating) else None
    scores = row.scores if isinstance(row, Pair | Ranking) else None if score is None else (score,)
    return TokenGroup(
        prompt=np.asarray(prompt, np.int32),
        responses=tuple(np.asarray(ids, np.int32) for ids in given),
        kind=KINDS[type(row)], place=row.place, id=row.id,
        ranks=ranks,
        good=not isinstance(row, Rating) or row.good,
        preferred=row.preferred if isinstance(row, Pair) else 1.0,
        scores=scores, weight=row.weight,
    ), longest > max_tokens  # fmt: skip


def _differ(row: Row, given: list[list[int]], ranks: Sequence[int], when: str) -> None:
    """Raise Unusable where two responses of different rank are the same tokens."""
    seen: dict[tuple[int, ...], int] = {}
    if any(seen.setdefault(tuple(ids), rank) != rank for ids, rank in zip(given, ranks, strict=True)):
        raise Unusable(f"{KINDS[type(row)]}.identical{when}", "responses of different rank are the same tokens.")
