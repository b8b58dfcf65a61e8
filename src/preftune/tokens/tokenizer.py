"""From rows to groups of token ids: which tokens are a response is decided in `encode.py`, once, and never again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from preftune.errors import Problem, UserError, third_party_message
from preftune.rows.parse import MalformedRow, SkippedRow
from preftune.rows.read import Tally, joined
from preftune.rows.row import KINDS, Pair, Place, Ranking, Rating, Row, Span, responses, said
from preftune.rows.sources import HUB
from preftune.rows.token_weights import of_tokens
from preftune.tokens.encode import Encoder, backend
from preftune.tokens.groups import TokenGroup
from preftune.tokens.template import Pieces, Renderer, template_of
from preftune.trust import refuse_code, refuse_unnamed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|eot_id|>", "<eos>", "<end_of_turn>", "<|end|>")
PROBES = ("Hello, world!", " 1234567 + 8.9", "naïve Ænima 東京 العربية", "a\n\n  b\tc", "don't WON'T", "x=[i**2];")
NAMED = "It is the folder or hub name in model.tokenizer or, without one, in model.path."
FILES = ("*token*", "*vocab*", "*.model")  # some of them are in every tokenizer's folder
CHUNK = 256  # rows encoded at once


class Tokenized(Struct, frozen=True):
    """groups: one for each row kept, in order; skipped: one problem a row left out; cut: rows with a response cut."""

    groups: list[TokenGroup]
    skipped: list[Problem]
    cut: int
    notes: list[Problem]


def load_tokenizer(path: str, revision: str | None = None, template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name; code that such a folder brings along is never run.

    template: file with a chat template in place of its own. A folder with tokenizer.json alone does too; its end
    token is then the one of `ENDS` that it knows. Raises UserError.
    """
    refuse_unnamed(path, "model.path")
    from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    folder = Path(path).expanduser()
    file = folder / "tokenizer.json"
    if folder.is_dir():
        refuse_code(folder, "tokenizer")
    elif not HUB.fullmatch(path) or path.startswith((".", "~")) or folder.exists():
        raise UserError(f"there is no folder {path}.", location="tokenizer", hint=NAMED)
    if folder.is_dir() and not any(any(folder.glob(name)) for name in FILES):
        raise UserError(f"none in the folder {path}.", location="tokenizer", hint=NAMED)
    try:
        if file.exists() and not (folder / "tokenizer_config.json").exists():
            found = PreTrainedTokenizerFast(tokenizer_file=str(file))
            ends = [end for end in ENDS if end in found.get_vocab()]
            if len(ends) == 1:
                found.eos_token = ends[0]
        else:
            found = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else path, revision=revision)
    except Exception as error:  # transformers, tokenizers and the hub's client each have their own
        raise UserError(
            f"none at {path} that can be read: {third_party_message(error)}", location="tokenizer", hint=NAMED
        ) from error
    if not isinstance(found, PreTrainedTokenizerBase) or not found.is_fast:
        raise UserError(f"{path} has no tokenizer.json.", location="model.tokenizer",
                        hint="Convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...).")  # fmt: skip
    if file.exists():
        _honest(found, file)
    if template is not None:
        found.chat_template = template_of(Path(template).expanduser())
    return found


def _honest(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Raise UserError where the tokenizer as loaded differs from its file, as transformers 5 makes some do."""
    from tokenizers import Tokenizer

    plain, loaded = Tokenizer.from_file(str(file)), backend(tokenizer)
    for probe in PROBES:
        if loaded.encode(probe, add_special_tokens=False).ids != plain.encode(probe, add_special_tokens=False).ids:
            raise UserError(f"transformers encodes {probe!r} otherwise than {file} does.", location="model.tokenizer",
                            hint="Its tokenizer_config.json names a class that changes it.")  # fmt: skip


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that decides ids: the content of tokenizer.json, the begin and end tokens, the chat template."""
    content = json.loads(backend(tokenizer).to_str())
    del content["truncation"], content["padding"]  # left behind by whoever called it last
    decides = [content, tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token]
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()


def tokenize(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    too_long: Literal["skip", "cut"] = "skip",
) -> Tokenized:
    """Groups of all rows.

    max_tokens: longest prompt with one response; too_long: `skip` leaves longer rows out, `cut` drops the end of
    their responses. Raises UserError that lists the rows which the chat template fails.
    """
    renderer = Renderer(tokenizer)
    encoder = Encoder(tokenizer, renderer.control)
    groups: list[TokenGroup] = []
    skipped: list[Problem] = []
    defects: list[tuple[MalformedRow, Place]] = []
    tally, cut = Tally(), 0
    for start in range(0, len(rows), CHUNK):
        kept: list[tuple[Row, Pieces]] = []
        for row in rows[start : start + CHUNK]:
            try:
                kept.append((row, renderer.pieces(row)))
            except MalformedRow as defect:
                defects.append((defect, row.place))
            except SkippedRow as unusable:
                skipped.append(Problem(unusable.message, str(row.place), reason=unusable.reason))
        for (row, pieces), (prompt, given) in zip(kept, encoder.encode(kept, tally), strict=True):
            try:
                group, shortened = _group(row, prompt, given, max_tokens, too_long)
                group = _weighed(group, row, pieces, [len(ids) for ids in given], encoder)
            except MalformedRow as defect:
                defects.append((defect, row.place))
                continue
            except SkippedRow as unusable:
                skipped.append(Problem(unusable.message, str(row.place), reason=unusable.reason))
                continue
            groups.append(group)
            cut += shortened
            for reason, message in pieces.remarks:
                tally.add(reason, message, row.place)
    if defects:
        raise UserError(joined(defects, lambda defect: (defect.hint, defect.reason)))
    general = [Problem(message, reason=reason) for reason, message in renderer.notes()]
    return Tokenized(groups, skipped, cut, [*general, *encoder.known(groups), *tally.problems()])


def tokenize_row(row: Row, tokenizer: PreTrainedTokenizerBase) -> TokenGroup:
    """One row of any length. Raises UserError where it is unusable."""
    done = tokenize([row], tokenizer, max_tokens=2**31)
    if done.groups:
        return done.groups[0]
    raise UserError(done.skipped)


def _group(
    row: Row, prompt: list[int], given: list[list[int]], max_tokens: int, too_long: Literal["skip", "cut"]
) -> tuple[TokenGroup, bool]:
    """The group, and whether it was cut. Raises Unusable."""
    longest = len(prompt) + max(map(len, given))
    ranks = (1, 2) if isinstance(row, Pair) else row.ranks if isinstance(row, Ranking) else (1,)
    if not all(given):
        raise SkippedRow("response.empty", "a response has no token.")
    _differ(row, given, ranks, "")
    if longest > max_tokens:
        if too_long == "skip":
            raise SkippedRow("too_long", f"prompt and response have {longest} tokens, {max_tokens} are allowed.")
        if len(prompt) >= max_tokens:
            raise SkippedRow("prompt.too_long", f"the prompt alone has {len(prompt)} tokens, {max_tokens} are allowed.")
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
        raise SkippedRow(f"{KINDS[type(row)]}.identical{when}", "responses of different rank are the same tokens.")


def _weighed(group: TokenGroup, row: Row, pieces: Pieces, tokens: Sequence[int], encoder: Encoder) -> TokenGroup:
    """The group with what its row says of tokens; tokens: of each response before any cut. Raises Defect, Unusable."""
    if row.token_weights is None:
        return group
    found = []
    for k, (given, response, kept) in enumerate(zip(row.token_weights, responses(row), group.responses, strict=True)):
        placed = None
        if given and isinstance(given[0], Span):
            if pieces.leads[k] is None:
                raise SkippedRow("weights.text", "the chat template rewrites a response, so its spans are in doubt.")
            placed = encoder.placed(pieces, k)
        weights = of_tokens(given, said(response), tokens[k], placed) if given else np.ones(tokens[k], np.float32)
        if not weights[: len(kept)].any():
            raise SkippedRow("weights.none", "nothing of a response counts.")
        found.append(weights[: len(kept)])
    return replace(group, token_weights=tuple(found))
