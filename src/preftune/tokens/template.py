"""From a row's words to the text of its prompt and of each response: who decides where a response begins and ends.

Text goes on as it stands. A conversation goes through the tokenizer's chat template; what the template puts before
the response's own words (a header, an empty block of thoughts) is prompt, and of what it puts after them only what
reaches to the first control token, the end of the turn, is response. No mask is asked of the template: the
conversation is rendered with a probe in the response's place, and the two sides of the probe are the answer. Where
the tokenizer has no template, a conversation is written as hh-rlhf writes it (`transcripts.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from preftune.errors import UserError, third_party_message
from preftune.rows import transcripts
from preftune.rows.parse import MalformedRow, SkippedRow, excerpt
from preftune.rows.read import blank
from preftune.rows.row import Message, Row, responses, said

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE, ASKED = "the-response-goes-here", "the-prompt-goes-here"
GUARD = "\ufdd0"  # not a character; GUARD and one more stand for a control token that a person wrote
FIRST = 0xF0000  # where those second characters begin, in a plane for private use
TEMPLATE = 2**20  # characters of a chat template
TODAY = datetime(2024, 7, 26)  # for templates that print the date, since a run must repeat; Llama 3.1 falls back to it
DATE = re.compile(r"""strftime_now\(\s*(["'])([^"']*)\1\s*\)""")


class Pieces(Struct, frozen=True):
    """One row as text.

    templated: control tokens in the text are the template's and count as such; closed: each response ends with its
    end-of-turn token, else the tokenizer's end token is still to be added; remarks: (reason, what) to be told once.
    leads: where the row's own text begins in each response, in characters; None where the template rewrote it.
    """

    prompt: str
    responses: tuple[str, ...]
    templated: bool
    closed: bool
    remarks: tuple[tuple[str, str], ...]
    leads: tuple[int | None, ...]


def template_of(path: Path) -> str:
    """A chat template from a file. Raises UserError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path} cannot be read: {why}.", location="data.template") from error


class Renderer:
    """Pieces of rows for one tokenizer. Raises UserError where its template is of no use for any row."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.control = sorted({*special, *map(str, tokenizer.all_special_tokens)} - {""}, key=lambda t: (-len(t), t))
        self._pattern = re.compile("|".join(map(re.escape, self.control)) or r"(?!)")
        self._end = str(tokenizer.eos_token or "")
        self.templated = bool(tokenizer.chat_template)
        self._template, self._dated = "", 0
        if self.templated:
            self._try()

    def pieces(self, row: Row) -> Pieces:
        """The row's text. Raises Defect where the template fails it, Unusable where nothing of a response is left."""
        remarks: dict[str, str] = {}
        texts = [self._without_end(said(one), remarks) for one in responses(row)]
        written = [*texts, *([row.prompt] if isinstance(row.prompt, str) else [turn.content for turn in row.prompt])]
        if any(map(self._pattern.search, written)):
            remarks["control.text"] = "control tokens in the text stay text"
        if isinstance(row.prompt, str):
            return Pieces(row.prompt, tuple(texts), False, False, tuple(remarks.items()), (0,) * len(texts))
        if not self.templated:
            remarks["chat.transcript"] = "written as a Human/Assistant transcript, since there is no chat template"
            given = tuple(map(transcripts.response, texts))
            leads = tuple(one.index(text) for one, text in zip(given, texts, strict=True))
            return Pieces(transcripts.render(row.prompt), given, False, False, tuple(remarks.items()), leads)
        return self._conversation(row.prompt, texts, remarks)

    def _without_end(self, text: str, remarks: dict[str, str]) -> str:
        """The response without an end token written at its end, since it gets its own."""
        bare = text
        while self._end and bare.rstrip().endswith(self._end):
            bare = bare.rstrip().removesuffix(self._end)
            remarks["end.written"] = "a response ends with the end token as text; it is kept once"
        if blank(bare):
            raise SkippedRow("response.empty", "a response holds nothing but the end token.")
        return bare

    def _conversation(self, prompt: Sequence[Message], texts: list[str], remarks: dict[str, str]) -> Pieces:
        asked = [Message(turn.role, self._guard(turn.content)) for turn in prompt]
        head, opened, tail = self._frame(asked)
        found = self._pattern.search(tail)
        end = tail[: found.end()] if found else tail.rstrip()
        given, leads = [], []
        for text in map(self._guard, texts):
            full = self._render([*asked, Message("assistant", text)], False)
            if not (full.startswith(head) and full.endswith(tail) and len(full) >= len(head) + len(tail)):
                raise _departs(head, full)
            kept = full[len(head) : len(full) - len(tail)]
            if kept != text:
                trims = kept.strip() == text.strip()
                remarks["template.edits"] = f"the chat template {'trims' if trims else 'rewrites'} a response"
            if blank(kept):
                raise SkippedRow("response.empty", "the template leaves nothing of a response.")
            given.append(head[len(opened) :] + kept + end)
            core = kept.strip()
            moved = kept.index(core) - text.index(core) if core == text.strip() else None
            leads.append(None if moved is None else len(head) - len(opened) + moved)
        return Pieces(opened, tuple(given), True, bool(found), tuple(remarks.items()), tuple(leads))

    def _frame(self, asked: list[Message]) -> tuple[str, str, str]:
        """(what stands before the response's words, what of it is prompt, what stands after them).

        The prompt is what the template gives a model that is to respond. If it puts more than white space between
        that and the response's words, this is prompt too: it is the same for all responses, so nothing to learn.
        """
        opened = self._render(asked, True)
        head, probe, tail = self._render([*asked, Message("assistant", PROBE)], False).partition(PROBE)
        if not probe:
            raise MalformedRow("the chat template drops the assistant's turn.", reason="template")
        if not head.startswith(opened):
            raise _departs(opened, head)
        if head[len(opened) :].strip():
            if opened == self._render(asked, False):
                raise MalformedRow("the chat template has no generation prompt: it opens the assistant's turn only when the "
                             f"response is there (with {excerpt(head[len(opened):])}).",
                             'Heed "add_generation_prompt" in the template.', "template")  # fmt: skip
            opened = head
        place = 0
        for turn in asked:
            if turn.role == "user" and (place := opened.find(turn.content.strip(), place)) < 0:
                raise MalformedRow(
                    f"the chat template drops the user's turn {excerpt(turn.content)}.", reason="template"
                )
        return head, opened, tail

    def _guard(self, text: str) -> str:
        if GUARD in text:
            raise SkippedRow("text.noncharacter", "holds U+FDD0, which is no character.")
        return self._pattern.sub(lambda found: GUARD + chr(FIRST + self.control.index(found.group())), text)

    def _render(self, turns: Sequence[Message], opened: bool) -> str:
        said = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            found = self._tokenizer.apply_chat_template(
                said, tokenize=False, add_generation_prompt=opened, chat_template=self._template
            )
        except Exception as error:  # a template is a stranger's program: it may raise anything
            line = getattr(error, "lineno", None)
            location = f" at its line {line}" if line else ""
            raise MalformedRow(f"the chat template fails{location}: {type(error).__name__}: {third_party_message(error)}",
                         "Mend it, or give another with data.template.", "template") from error  # fmt: skip
        return str(found)

    def _try(self) -> None:
        """Render one made-up conversation. Raises UserError for what would be wrong with every row."""
        asked = [Message("user", ASKED)]
        try:
            template = self._tokenizer.get_chat_template()
            if len(template) > TEMPLATE:
                raise MalformedRow("the chat template is longer than a million characters.")
            self._template, self._dated = DATE.subn(lambda found: f'"{TODAY.strftime(found.group(2))}"', template)
            if "strftime_now(" in self._template:
                raise MalformedRow(
                    "the chat template prints the date in a form that it computes.", "Write the form into it."
                )
            _, opened, _ = self._frame(asked)
            if opened.count(ASKED) != 1:
                raise MalformedRow("the chat template repeats the user's turn.")
            if opened != self._frame(asked)[1]:
                raise MalformedRow("the chat template gives another text each time.", "Take out what is random in it.")
        except MalformedRow as defect:
            raise UserError(defect.message, hint=defect.hint) from defect
        except ValueError as error:  # several templates, none of them the default
            raise UserError(third_party_message(error), location="chat template") from error

    def notes(self) -> list[tuple[str, str]]:
        """(reason, what) that holds for the template as a whole."""
        if self._dated:
            return [("template.date", f"the chat template prints the date; it is always {TODAY:%d %b %Y}.")]
        return []


def _departs(expected: str, found: str) -> MalformedRow:
    """The error of a template whose prompt is not how prompt and response together begin."""
    shared = min(len(expected), len(found))
    place = next((k for k in range(shared) if expected[k] != found[k]), shared)
    one, other = excerpt(expected[max(0, place - 20) : place + 30]), excerpt(found[max(0, place - 20) : place + 30])
    return MalformedRow(f"the chat template renders the prompt otherwise once a response follows: {one} became {other}.",
                  "Such a template (often: one that moves thoughts) cannot be scored; give another with data.template.",
                  "template")  # fmt: skip
