"""From a row's words to the text of its prompt and of each response: where a response begins and where it ends.

Text is continued as it stands. A conversation goes through the tokenizer's chat template (`chat.py`). What the template
puts before the response's own words (a header, an empty block of thoughts) is prompt; of what it puts after them, what
reaches to the tokenizer's end token, or else to the first control tokens, is response. Where the tokenizer has no
template, a conversation is written as in hh-rlhf (`transcripts.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from preftune.errors import Problem, UserError
from preftune.rows import transcripts
from preftune.rows.parse import MalformedRow, SkippedRow
from preftune.rows.quality import is_blank
from preftune.rows.row import TOLD, Demo, Message, Prompt, Response, Row, responses, text_of
from preftune.rows.tools import changed
from preftune.tokens.chat import QUESTION, TODAY, ChatTemplate
from preftune.tokens.frame import Thought, shared_start, split_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GUARD = "\ufdd0"  # not a character; GUARD and one more stand for a control token that a person wrote
CONTROL, STAY_TEXT = "control.text", 'control tokens in the text stay text; data.control_tokens = "tokens" reads them'
NOTHING = re.compile(r"(?!)")  # a pattern that is nowhere
FIRST = 0xF0000  # where those second characters begin, in a plane for private use


class RenderedRow(Struct, frozen=True):
    """One row as text. A task has no response, and its prompt is the one to which responses are drawn.

    templated: control tokens in the text are a template's and count as such; ends_turn: each response ends with its
    end-of-turn token, else the tokenizer's end token is still to be added; remarks: (reason, message) of what is odd;
    text_starts: where the row's own text begins in each response, in characters; None where the template rewrote it.
    """

    prompt: str
    responses: tuple[str, ...]
    templated: bool
    ends_turn: bool
    remarks: tuple[tuple[str, str], ...]
    text_starts: tuple[int | None, ...]


class Patterns(NamedTuple):
    """The control tokens that stay text where a person wrote them, by who speaks."""

    prompt: re.Pattern[str]  # all that the template writes, such as a tool's: nobody but the assistant may say them
    assistant: re.Pattern[str]  # those around every turn
    text: re.Pattern[str]  # those of them that are not marked special, for text that no template sees


class Renderer:
    """Renders rows for one tokenizer. Raises UserError where its template suits no row at all.

    as_tokens: whether control tokens in the text of rows are tokens; special: tokens that the tokenizer knows to be
    control tokens; control: these and every added token that the template writes, for which guards stand.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any], *, as_tokens: bool = False
    ) -> None:
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        self.special = frozenset({*special, *map(str, tokenizer.all_special_tokens)} - {""})
        self._begin, self._end = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
        self._as_tokens = as_tokens
        self._template = ChatTemplate(tokenizer, options) if tokenizer.chat_template else None
        source, sample = (self._template.source, self._template.sample) if self._template else ("", "")
        written = {token.content for token in added if token.content in source or token.content in sample}
        around = {token for token in written if token in sample}
        self.control = sorted(self.special | written, key=lambda token: (-len(token), token))
        self._patterns = Patterns(_any_of(self.control), _any_of(self.special | around), _any_of(around - self.special))

    def render(self, row: Row) -> RenderedRow:
        """The row's text. Raises MalformedRow where the template fails, SkippedRow where no response is left."""
        remarks: dict[str, str] = {}
        if isinstance(row.prompt, str) and (self._as_tokens or (isinstance(row, Demo) and row.rendered)):
            texts = [self._without_end(text_of(response), [self._end], remarks) for response in responses(row)]
            prompt, *texts = (self._guard(text, NOTHING) for text in (row.prompt, *texts))
            return RenderedRow(prompt, tuple(texts), True, False, tuple(remarks.items()), (0,) * len(texts))
        if isinstance(row.prompt, str) or self._template is None:
            prompt, texts, starts = self._text(row.prompt, responses(row), remarks)
            return RenderedRow(prompt, texts, False, False, tuple(remarks.items()), starts)
        spoken = [response[-1] for response in responses(row) if not isinstance(response, str)]
        return self._conversation(self._template, row.prompt, spoken, remarks)

    def notes(self) -> list[Problem]:
        """What is odd about the template as a whole."""
        message = f"the chat template prints the date; it is always {TODAY:%d %b %Y}."
        return [Problem(message, reason="template.date")] if self._template and self._template.dates else []

    def _text(
        self, prompt: Prompt, spoken: Sequence[Response], remarks: dict[str, str]
    ) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
        """(prompt, responses, where their own text begins) of text and of a conversation without a template."""
        texts = [self._without_end(text_of(response), [self._end], remarks) for response in spoken]
        written = prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)
        start = 0
        if any(map(self._patterns.assistant.search, (written.removeprefix(self._begin), *texts))):
            remarks[CONTROL] = STAY_TEXT
        if not isinstance(prompt, str):
            turns = [turn for turns in (prompt, *spoken) for turn in turns if isinstance(turn, Message)]
            if any(turn.thought or turn.beside or turn.role in TOLD for turn in turns):
                message = "there is no chat template, so thoughts and tools beside the content have no place."
                raise MalformedRow(message, "Give a template with data.template.", "template")
            remarks["chat.transcript"] = "written as a Human/Assistant transcript, since there is no chat template"
            written, start = transcripts.render(prompt), len(transcripts.response(""))
            texts = [transcripts.response(text) for text in texts]
        written, *guarded = (self._guard(text, self._patterns.text) for text in (written, *texts))
        return written, tuple(guarded), (start,) * len(texts)

    def _without_end(self, text: str, ends: Collection[str], remarks: dict[str, str]) -> str:
        """The response without an end that is written as text, since it gets its own."""
        bare, ends = text, tuple(sorted(filter(None, ends), key=len, reverse=True))
        while (stripped := bare.rstrip()).endswith(ends):
            bare = next(stripped.removesuffix(end) for end in ends if stripped.endswith(end)).rstrip()
        if bare != text:
            remarks["end.written"] = "a response ends with the end token as text; it is kept once"
        if is_blank(bare):
            raise SkippedRow("response.empty", "a response holds nothing but the end token.")
        return bare

    def _conversation(
        self, template: ChatTemplate, prompt: Sequence[Message], spoken: Sequence[Message], remarks: dict[str, str]
    ) -> RenderedRow:
        turns = [self._guarded(turn) for turn in prompt]
        frame = template.frame(turns)
        if template.leaves_out(turns, frame.opened):
            remarks["template.thoughts"] = "the chat template leaves out thoughts of earlier turns"
        end, ends_turn = self._turn_end(frame.tail)
        if not ends_turn:
            message = "the chat template ends a turn with no control token, so the tokenizer's end token is added"
            remarks["template.end"] = message
        ends = [self._end, end.strip(), *self._patterns.assistant.findall(frame.tail)]
        header = frame.opened[len(frame.turns) :].lstrip()
        rendered, cores = [], []
        for turn in spoken:
            text = self._without_end(turn.content, ends, remarks) if turn.content or not turn.beside else ""
            if self._patterns.assistant.search(header) and text.lstrip().startswith(header.rstrip()):
                text = text.lstrip().removeprefix(header.rstrip()).removeprefix(header[len(header.rstrip()) :])
                remarks["header.written"] = "a response begins with the template's header as text; it is kept once"
            thought, text = split_thought(text, template.close)
            if turn.thought and thought:
                raise MalformedRow("a response has one thought in its content and one beside it.", "Keep one of them.")
            thought = Thought("", turn.thought, "") if turn.thought else thought
            thought = thought and thought._replace(text=self._guard(thought.text, self._patterns.assistant))
            text = self._guard(text, self._patterns.assistant)
            said = Message("assistant", text, beside=self._guarded(turn).beside)
            rendered.append(template.words(turns, said, thought, frame, remarks))
            cores.append((text.strip(), turn.content))
        if any(GUARD in text for text in (*(said.words for said in rendered), *(turn.says for turn in turns))):
            remarks[CONTROL] = STAY_TEXT
        shared = shared_start([said.prompt for said in rendered] or [template.opening(frame)])
        whole = [said.prompt[len(shared) :] + said.words for said in rendered]
        starts = [self._start(words, *core) for words, core in zip(whole, cores, strict=True)]
        texts = tuple(words if said.ended else words + end for words, said in zip(whole, rendered, strict=True))
        return RenderedRow(shared, texts, True, ends_turn, tuple(remarks.items()), tuple(starts))

    def _start(self, words: str, core: str, content: str) -> int | None:
        """Where a response's content begins in its words; core: what the template kept of it, guarded."""
        position = words.rfind(core)
        plain = core
        if GUARD in core:
            plain = re.sub(f"{GUARD}(.)", lambda guard: self.control[ord(guard[1]) - FIRST], core)
        return None if position < 0 else position - content.rfind(plain)

    def _turn_end(self, tail: str) -> tuple[str, bool]:
        """The part of the tail that is response, and whether it has a control token."""
        if self._end and self._end in tail:
            return tail[: tail.index(self._end) + len(self._end)], True
        run = re.search(rf"(?:{self._patterns.assistant.pattern})+", tail)
        return (tail[: run.end()], True) if run else (tail.rstrip(), False)

    def _guarded(self, turn: Message) -> Message:
        pattern = self._patterns.assistant if turn.role == "assistant" else self._patterns.prompt
        guard = partial(self._guard, pattern=pattern)
        if turn.role in TOLD:
            return Message(turn.role, changed(turn.content, guard))
        return Message(turn.role, guard(turn.content), guard(turn.thought), changed(turn.beside, guard))

    def _guard(self, text: str, pattern: re.Pattern[str]) -> str:
        if GUARD in text:
            raise SkippedRow("text.noncharacter", "holds U+FDD0, which is no character.")
        if self._as_tokens or pattern is NOTHING:
            return text
        return pattern.sub(lambda match: GUARD + chr(FIRST + self.control.index(match.group())), text)


def _any_of(tokens: Collection[str]) -> re.Pattern[str]:
    """The tokens as a pattern, the longest first, since one may be the beginning of another."""
    ordered = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else NOTHING


def refuse_no_system(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any], text: str) -> None:
    """Raise UserError where a conversation cannot begin with this system text: there is no chat template, or it has no
    place for one."""
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template, which would say where a system text stands.",
                        location="data.system", hint="Give one with data.template.")  # fmt: skip
    template = ChatTemplate(tokenizer, options)
    try:
        template.frame([Message("system", text), Message("user", QUESTION)])
    except MalformedRow as error:
        hint = "Write it into the user's turn, or give another template with data.template."
        raise UserError(error.message, location="data.system", hint=hint) from error
