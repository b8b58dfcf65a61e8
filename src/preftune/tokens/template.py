"""From a row's words to the text of its prompt and of each response: where a response begins and where it ends.

Text is continued as it stands. A conversation goes through the tokenizer's chat template. What the template puts
before the response's own words (a header, an empty block of thoughts) is prompt; of what it puts after them, only what
reaches to the first control token, the end of the turn, is response. No mask is asked of the template: the
conversation is rendered with a probe in the response's place, and the text on both sides of the probe is the answer.
Where the tokenizer has no template, a conversation is written as in hh-rlhf (`transcripts.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from preftune.errors import Problem, UserError, third_party_message
from preftune.rows import transcripts
from preftune.rows.parse import MalformedRow, SkippedRow, excerpt
from preftune.rows.quality import is_blank
from preftune.rows.row import Message, Row, responses, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE, QUESTION = "the-response-goes-here", "the-prompt-goes-here"
GUARD = "\ufdd0"  # not a character; GUARD and one more stand for a control token that a person wrote
FIRST = 0xF0000  # where those second characters begin, in a plane for private use
MAX_TEMPLATE = 2**20  # characters
TODAY = datetime(2024, 7, 26)  # for templates that print the date, since a run must repeat; Llama 3.1 falls back to it
DATE = re.compile(r"""strftime_now\(\s*(["'])([^"']*)\1\s*\)""")


class RenderedRow(Struct, frozen=True):
    """One row as text.

    templated: control tokens in the text are the template's and count as such; ends_turn: each response ends with its
    end-of-turn token, else the tokenizer's end token is still to be added; remarks: (reason, message) of what is odd;
    text_starts: where the row's own text begins in each response, in characters; None where the template rewrote it.
    """

    prompt: str
    responses: tuple[str, ...]
    templated: bool
    ends_turn: bool
    remarks: tuple[tuple[str, str], ...]
    text_starts: tuple[int | None, ...]


class Renderer:
    """Renders rows for one tokenizer. Raises UserError where its template suits no row at all."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.control = sorted({*special, *map(str, tokenizer.all_special_tokens)} - {""}, key=lambda t: (-len(t), t))
        self._pattern = re.compile("|".join(map(re.escape, self.control)) or r"(?!)")
        self._end = str(tokenizer.eos_token or "")
        self._templated = bool(tokenizer.chat_template)
        self._template, self._dates = "", 0
        if self._templated:
            self._check_template()

    def render(self, row: Row) -> RenderedRow:
        """The row's text. Raises MalformedRow where the template fails, SkippedRow where no response is left."""
        remarks: dict[str, str] = {}
        texts = [self._without_end(text_of(response), remarks) for response in responses(row)]
        written = [*texts, *([row.prompt] if isinstance(row.prompt, str) else [turn.content for turn in row.prompt])]
        if any(map(self._pattern.search, written)):
            remarks["control.text"] = "control tokens in the text stay text"
        if isinstance(row.prompt, str):
            return RenderedRow(row.prompt, tuple(texts), False, False, tuple(remarks.items()), (0,) * len(texts))
        if not self._templated:
            remarks["chat.transcript"] = "written as a Human/Assistant transcript, since there is no chat template"
            turns = tuple(map(transcripts.response, texts))
            starts = tuple(turn.index(text) for turn, text in zip(turns, texts, strict=True))
            return RenderedRow(transcripts.render(row.prompt), turns, False, False, tuple(remarks.items()), starts)
        return self._conversation(row.prompt, texts, remarks)

    def notes(self) -> list[Problem]:
        """What is odd about the template as a whole."""
        message = f"the chat template prints the date; it is always {TODAY:%d %b %Y}."
        return [Problem(message, reason="template.date")] if self._dates else []

    def _without_end(self, text: str, remarks: dict[str, str]) -> str:
        """The response without an end token that is written at its end, since it gets its own."""
        bare = text
        while self._end and bare.rstrip().endswith(self._end):
            bare = bare.rstrip().removesuffix(self._end)
            remarks["end.written"] = "a response ends with the end token as text; it is kept once"
        if is_blank(bare):
            raise SkippedRow("response.empty", "a response holds nothing but the end token.")
        return bare

    def _conversation(self, prompt: Sequence[Message], texts: list[str], remarks: dict[str, str]) -> RenderedRow:
        turns = [Message(turn.role, self._guard(turn.content)) for turn in prompt]
        head, opened, tail = self._frame(turns)
        control = self._pattern.search(tail)
        end = tail[: control.end()] if control else tail.rstrip()
        rendered: list[str] = []
        starts: list[int | None] = []
        for text in map(self._guard, texts):
            whole = self._apply([*turns, Message("assistant", text)], False)
            if not (whole.startswith(head) and whole.endswith(tail) and len(whole) >= len(head) + len(tail)):
                raise _changed_prompt(head, whole)
            words = whole[len(head) : len(whole) - len(tail)]
            core = words.strip()
            if words != text:
                edits = "trims" if core == text.strip() else "rewrites"
                remarks["template.edits"] = f"the chat template {edits} a response"
            if is_blank(words):
                raise SkippedRow("response.empty", "the template leaves nothing of a response.")
            rendered.append(head[len(opened) :] + words + end)
            moved = words.index(core) - text.index(core) if core == text.strip() else None
            starts.append(None if moved is None else len(head) - len(opened) + moved)
        return RenderedRow(opened, tuple(rendered), True, bool(control), tuple(remarks.items()), tuple(starts))

    def _frame(self, turns: list[Message]) -> tuple[str, str, str]:
        """(what stands before the response's words, the part of it that is prompt, what stands after them).

        The prompt is what the template gives a model that is to respond. If it puts more than white space between
        that and the response's words, this is prompt too: it is the same for all responses, so nothing to learn.
        """
        opened = self._apply(turns, True)
        head, probe, tail = self._apply([*turns, Message("assistant", PROBE)], False).partition(PROBE)
        if not probe:
            raise MalformedRow("the chat template drops the assistant's turn.", reason="template")
        if not head.startswith(opened):
            raise _changed_prompt(opened, head)
        if head[len(opened) :].strip():
            if opened == self._apply(turns, False):
                opens = "it opens the assistant's turn only when the response is there"
                message = f"the chat template has no generation prompt: {opens} (with {excerpt(head[len(opened) :])})."
                raise MalformedRow(message, "Make the template use `add_generation_prompt`.", "template")
            opened = head
        position = 0
        for turn in turns:
            if turn.role == "user" and (position := opened.find(turn.content.strip(), position)) < 0:
                message = f"the chat template drops the user's turn {excerpt(turn.content)}."
                raise MalformedRow(message, reason="template")
        return head, opened, tail

    def _guard(self, text: str) -> str:
        if GUARD in text:
            raise SkippedRow("text.noncharacter", "holds U+FDD0, which is no character.")
        return self._pattern.sub(lambda match: GUARD + chr(FIRST + self.control.index(match.group())), text)

    def _apply(self, turns: Sequence[Message], opened: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opened, chat_template=self._template
            )
        except Exception as error:  # a template is a stranger's program: it may raise anything
            line = getattr(error, "lineno", None)
            kind = f"{f' at its line {line}' if line else ''}: {type(error).__name__}"
            message = f"the chat template fails{kind}: {third_party_message(error)}"
            raise MalformedRow(message, "Mend it, or give another with data.template.", "template") from error
        return str(text)

    def _check_template(self) -> None:
        """Render one made-up conversation. Raises UserError for what would be wrong with every row."""
        turns = [Message("user", QUESTION)]
        try:
            template = self._tokenizer.get_chat_template()
            if len(template) > MAX_TEMPLATE:
                raise MalformedRow("the chat template is longer than a million characters.")
            self._template, self._dates = DATE.subn(lambda call: f'"{TODAY.strftime(call.group(2))}"', template)
            if "strftime_now(" in self._template:
                message = "the chat template prints the date in a form that it computes."
                raise MalformedRow(message, "Write the form into it.")
            _, opened, _ = self._frame(turns)
            if opened.count(QUESTION) != 1:
                raise MalformedRow("the chat template repeats the user's turn.")
            if opened != self._frame(turns)[1]:
                message = "the chat template gives another text each time."
                raise MalformedRow(message, "Remove what is random in it.")
        except MalformedRow as error:
            raise UserError(error.message, hint=error.hint) from error
        except ValueError as error:  # several templates, none of them the default
            raise UserError(third_party_message(error), location="chat template") from error


def _changed_prompt(expected: str, actual: str) -> MalformedRow:
    """The error of a template that renders the prompt differently once a response follows."""
    shared = min(len(expected), len(actual))
    position = next((k for k in range(shared) if expected[k] != actual[k]), shared)
    before, after = (excerpt(text[max(0, position - 20) : position + 30]) for text in (expected, actual))
    return MalformedRow(
        f"the chat template renders the prompt differently once a response follows: {before} became {after}.",
        "Such a template (often one that moves thoughts) cannot be scored; give another with data.template.",
        "template",
    )
