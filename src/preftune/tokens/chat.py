"""A tokenizer's chat template: what it puts around a response, and how it renders a thought before one.

No mask is asked of the template: a conversation is rendered with a probe in the response's place, and the text on both
sides of the probe is the answer. Every message of the prompt and every word of a response is proved to stand in what
is rendered. Held by tests/tokens/test_chat.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from preftune.errors import UserError, third_party_message
from preftune.rows import tools
from preftune.rows.keys import THOUGHT, words_of
from preftune.rows.parse import MalformedRow, SkippedRow, excerpt
from preftune.rows.quality import is_blank
from preftune.rows.row import TOLD, TOOLS, Message
from preftune.tokens.calls import Marks
from preftune.tokens.frame import Frame, Thought, Words, letters, shared_start, stand_in, written_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESPONSE, QUESTION, THINKING = "the-response-goes-here", "the-prompt-goes-here", "the-thought-goes-here"
PROBED = {"name": "tool-goes-here", "arguments": {"key-goes-here": "value-goes-here", "flag-goes-here": True}}
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning", "thought")
CLOSING = re.compile(r"</[\w:]+>|\[/\w+\]")
MAX_TEMPLATE = 2**20  # characters
TODAY = datetime(2024, 7, 26)  # for templates that print the date, since a run must repeat; Llama 3.1 falls back to it
DATE = re.compile(r"""strftime_now\(\s*(["'])([^"']*)\1\s*\)""")
OTHER_TEMPLATE = "Mend it, or give another with data.template."


class ChatTemplate:
    """The template of a tokenizer. Raises UserError where it suits no conversation at all.

    source: the template; sample: a conversation as it renders it; dates: how often it prints the date; close: what it
    puts after a thought, "" if it knows of none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> None:
        self._tokenizer, self._options = tokenizer, options
        self._in_parts, self._thought_key, self._header, self.close = False, "", "", ""
        self._arguments_as_text = False
        try:
            source = tokenizer.get_chat_template()
            if len(source) > MAX_TEMPLATE:
                raise MalformedRow("the chat template is longer than a million characters.")
            self.source, self.dates = DATE.subn(lambda call: f'"{TODAY.strftime(call.group(2))}"', source)
            if "strftime_now(" in self.source:
                message = "the chat template prints the date in a form that it computes."
                raise MalformedRow(message, "Write the form into it.")
            self._check()
        except MalformedRow as error:
            raise UserError(error.message, hint=error.hint) from error
        except ValueError as error:  # several templates, none of them the default
            raise UserError(third_party_message(error), location="chat template") from error

    def _check(self) -> None:
        """Render made-up conversations. Raises MalformedRow for what would be wrong with every row."""
        turns = [Message("user", QUESTION)]
        try:
            opened = self.frame(turns).opened
        except MalformedRow as error:
            self._in_parts = True  # templates of models that see pictures want content as a list of parts
            try:
                opened = self.frame(turns).opened
            except MalformedRow:
                raise error from None
        if opened.count(QUESTION) != 1:
            raise MalformedRow("the chat template repeats the user's turn.")
        frame = self.frame(turns)
        self._header = opened[len(frame.turns) :]  # what opens the assistant's turn, whatever stands before it
        if opened != frame.opened:
            raise MalformedRow("the chat template gives another text each time.", "Remove what is random in it.")
        self.sample = self.apply([*turns, Message("assistant", RESPONSE)], False)
        if "tool_calls" in self.source:
            self._find_form_of_arguments()
        closings = [close for close in CLOSING.findall(self.source) if words_of(close) & THOUGHT]
        self.close = closings[0] if closings else ""
        for key in THOUGHT_KEYS:
            self._thought_key = key
            rendered = self.apply([*turns, Message("assistant", RESPONSE, THINKING)], False)
            _, thought, after = rendered.partition(THINKING)
            if thought and RESPONSE in after:
                self.close = after.partition(RESPONSE)[0].strip() or self.close
                return
        self._thought_key = ""

    def _find_form_of_arguments(self) -> None:
        """Give the arguments of calls as JSON text, if the template renders them only so."""
        call = Message("assistant", "", beside=tools.as_json({"tool_calls": tools.calls(PROBED, "")}))
        for as_text in (False, True):
            self._arguments_as_text = as_text
            try:
                rendered = self.apply([Message("user", QUESTION), call], False)
            except MalformedRow:
                continue
            if "value-goes-here" in rendered and re.search(r"flag-goes-here\W+true\b", rendered):
                return  # true as JSON has it, and not as Python has it
        self._arguments_as_text = False

    def apply(self, turns: Sequence[Message], opened: bool) -> str:
        """The conversation as text. Raises MalformedRow where the template fails."""
        messages, options = [], dict(self._options)
        for turn in turns:
            if turn.role in TOLD:
                value = json.loads(turn.content)
                options |= {"tools": value} if turn.role == TOOLS else value
                continue
            content = [{"type": "text", "text": turn.content}] if self._in_parts else turn.content
            thought = {self._thought_key: turn.thought} if self._thought_key and turn.thought else {}
            beside = tools.for_template(turn, self._arguments_as_text)
            messages.append({"role": turn.role, "content": content, **thought, **beside})
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opened, chat_template=self.source, **options
            )
        except Exception as error:  # a template is a stranger's program: it may raise anything
            line = getattr(error, "lineno", None)
            kind = f"{f' at its line {line}' if line else ''}: {type(error).__name__}"
            message = f"the chat template fails{kind}: {third_party_message(error)}"
            raise MalformedRow(message, OTHER_TEMPLATE, "template") from error
        return str(text)

    def frame(self, turns: Sequence[Message]) -> Frame:
        """What stands around a response to these turns. Raises MalformedRow where the template loses one of them.

        The prompt is what the template gives a model that is to respond. If it puts more than white space between
        that and the response's words, this is prompt too: it is the same for all responses, so nothing to learn. If
        it opens a thought for the model, a response without thoughts follows on what stands before such responses.
        """
        opened = self.apply(turns, True)
        known = self._header and opened.endswith(self._header)
        unopened = opened.removesuffix(self._header) if known else self.apply(turns, False)
        head, probe, tail = self.apply([*turns, Message("assistant", RESPONSE)], False).partition(RESPONSE)
        if not probe:
            raise MalformedRow("the chat template drops the assistant's turn.", reason="template")
        shared = shared_start([opened, head])
        self._prove(turns, shared, opened, head)
        between = head[len(opened) :].strip() if head.startswith(opened) else ""
        if between and opened == unopened:
            opens = "it opens the assistant's turn only when the response is there"
            message = f"the chat template has no generation prompt: {opens} (with {excerpt(head[len(opened) :])})."
            raise MalformedRow(message, "Make the template use `add_generation_prompt`.", "template")
        closed = self.close and opened.rstrip().endswith(self.close)  # an empty thought: the response itself is next
        prompt = head if between or not (head.startswith(opened) or closed) else opened
        return Frame(opened, shared_start([opened, unopened]), head, prompt, tail)

    def _prove(self, turns: Sequence[Message], shared: str, opened: str, head: str) -> None:
        """Raise MalformedRow unless each message stands in `shared`, those of a system anywhere, others in order."""
        Marks(turns).prove(lambda marked: self.apply(marked, True))
        text, position = letters(shared), 0
        for turn in turns:
            if turn.role in TOLD:
                continue
            content = turn.content.partition(self.close)[2] if self._is_thoughtful(turn) else turn.content
            free = turn.role in ("system", "developer")
            forms = map(letters, (content, json.dumps(content, ensure_ascii=False)[1:-1]))  # as text, or inside of JSON
            form = next((form for form in forms if text.find(form, 0 if free else position) >= 0), None)
            if form is not None:
                position = position if free else text.index(form, position) + len(form)
            elif letters(content) in letters(opened):
                raise _changed_prompt(opened, head)
            else:
                raise MalformedRow(f"the chat template drops the {turn.role}'s turn {excerpt(turn.content)}.",
                                   OTHER_TEMPLATE, "template")  # fmt: skip

    def opening(self, frame: Frame) -> str:
        """The prompt to which a response is drawn: that of a response as a model gives it.

        It is the prompt of a pair, except where a template writes an empty thought before a response without thoughts:
        a model that is to respond thinks itself, unless the template opens its turn with the empty thought too.
        """
        start = frame.opened
        is_other = not frame.prompt.startswith(start) or self.close in frame.prompt[len(start) :]
        return start if self.close and is_other else frame.prompt

    def _is_thoughtful(self, turn: Message) -> bool:
        return bool(self.close) and turn.role == "assistant" and self.close in turn.content

    def leaves_out(self, turns: Sequence[Message], opened: str) -> bool:
        """Whether thoughts of earlier turns are not in the prompt, as many templates do it on purpose."""
        thoughts = [turn.content.partition(self.close)[0] for turn in turns if self._is_thoughtful(turn)]
        thoughts += [turn.thought for turn in turns if turn.thought]
        return any(letters(text) not in letters(opened) for text in thoughts)

    def words(
        self, turns: Sequence[Message], said: Message, thought: Thought | None, frame: Frame, remarks: dict[str, str]
    ) -> Words:
        """The response as the template renders it. said: it without its thought. Raises MalformedRow where the template
        loses any word."""
        Marks([said]).prove(lambda marked: self.apply([*turns, *marked], False))
        empty = thought is not None and is_blank(thought.text)
        if thought is None or (empty and self.close in frame.head[len(frame.turns) :]):  # the template writes it
            return self._plain(turns, said, frame, remarks)
        if self._thought_key and not empty:
            whole = self.apply([*turns, replace(said, thought=thought.text.strip())], False)
            rendered = frame.rendered(whole, bool(said.beside))
            if rendered and stand_in([thought.text, said.content], rendered.words):
                return rendered
        if not self.close:
            message = "the chat template has no place for the thought beside a response."
            raise MalformedRow(message, "Write it into the content, or give another template.", "template")
        plain = self._plain(turns, said, frame, remarks) if said.beside else Words("", said.content)
        written = written_out(plain.words, thought, self.close, frame.opened, len(frame.turns))
        return Words(*written, plain.ended)

    def _plain(self, turns: Sequence[Message], said: Message, frame: Frame, remarks: dict[str, str]) -> Words:
        """A response without a thought."""
        whole, text = self.apply([*turns, said], False), said.content
        if not (whole.startswith(frame.head) and whole.endswith(frame.tail)
                and len(whole) >= len(frame.head) + len(frame.tail)):  # fmt: skip
            rendered = frame.rendered(whole, True) if said.beside else None
            if rendered is None or not stand_in([text], rendered.words):
                raise _changed_prompt(frame.head, whole)
            return rendered
        words = whole[len(frame.head) : len(whole) - len(frame.tail)]
        if is_blank(words):
            raise SkippedRow("response.empty", "the template leaves nothing of a response.")
        if words != text and not stand_in([text], words):
            message = f"the chat template leaves out words of the response {excerpt(text)}."
            raise MalformedRow(message, OTHER_TEMPLATE, "template")
        if words != text and not said.beside:
            edits = "trims" if words.strip() == text.strip() else "rewrites"
            remarks["template.edits"] = f"the chat template {edits} a response"
        if not frame.prompt.startswith(frame.opened):
            message = "the chat template opens another turn for a model than stands before a response without thoughts"
            remarks["template.opens"] = f"{message}; such a response follows {excerpt(frame.head[-40:])}"
        space = frame.head[len(frame.prompt) :] if frame.head.startswith(frame.prompt) else ""
        return Words(frame.prompt, space + words)


def _changed_prompt(expected: str, actual: str) -> MalformedRow:
    """The error of a template that renders the prompt differently once a response follows."""
    position = len(shared_start([expected, actual]))
    before, after = (excerpt(text[max(0, position - 20) : position + 30]) for text in (expected, actual))
    return MalformedRow(
        f"the chat template renders the prompt differently once a response follows: {before} became {after}.",
        "Such a template cannot be scored; give another with data.template.",
        "template",
    )
