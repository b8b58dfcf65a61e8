"""The chat templates that TRL and llama.cpp carry: nothing of a conversation is lost, and each response ends once.

They are read where `make test-peers` put them, or in the environment whose python PEERS names; none is copied.
"""

from __future__ import annotations

import os
import re
import tarfile
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from preftune.errors import UserError
from preftune.rows.read import read
from preftune.rows.row import Message, Pair, Place, with_thoughts
from preftune.tokens.tokenize import tokenize

PEERS = Path(os.environ.get("PEERS", Path(__file__).parents[2] / ".venv-peers/bin/python")).absolute().parents[1]
TAG = re.compile(r"<[|｜]?[\w:▁-]+[|｜]?>|\[/?[A-Z_]{3,}\]|</s>")
CONTROL = re.compile(r"[|｜]|^\[|</?s>|of_turn|utterance|bos>|eos>")  # of such tags, those that are one token
PROBE = "the-response-goes-here"
ASKED = Message("user", "Which of the two, naïve or 東京?")
SAID = Message("assistant", "Neither: it is forty-two.")
AGAIN = Message("user", "Why not\nforty-one?")
SYSTEM = Message("system", "Speak like a page of a lexicon.")
CHOSEN, REJECTED = "Since 6 * 7 = 42.\n\n    That is all.", "No idea, sorry!"
ROWS = {"short": [ASKED], "long": [ASKED, SAID, AGAIN], "system": [SYSTEM, ASKED], "thought": [ASKED]}


@cache
def templates() -> dict[str, str]:
    """Name -> template."""
    paths = sorted(PEERS.glob("lib/python*/site-packages/trl/chat_templates/*.jinja"))
    sources = {f"trl/{path.stem}": path.read_text() for path in paths}
    for archive in PEERS.glob("templates/llama_cpp_python-*.tar.gz"):
        with tarfile.open(archive) as members:
            for member in members:
                stream = members.extractfile(member) if "/models/templates/" in member.name else None
                if stream is not None and member.name.endswith(".jinja"):
                    sources[f"llama.cpp/{Path(member.name).stem}"] = stream.read().decode()
    return sources


def tokenizer_of(template: str) -> PreTrainedTokenizerBase:
    """Bytes, with the control tokens that the template names; its end token is the one that ends an answered turn."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({piece: k for k, piece in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    control = sorted({tag for tag in TAG.findall(template) if CONTROL.search(tag)} | {"<s>", "</s>"})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", additional_special_tokens=control
    )
    tokenizer.chat_template = template
    rendered = ""
    for wrap in (str, lambda text: [{"type": "text", "text": text}]):
        turns = [{"role": role, "content": wrap(text)} for role, text in (("user", "ask"), ("assistant", PROBE))]
        try:
            rendered = rendered or str(tokenizer.apply_chat_template(turns, tokenize=False)).partition(PROBE)[2]
        except Exception:  # a template that wants the other form may raise anything
            continue
    run = re.search(f"(?:{'|'.join(map(re.escape, control))})+", rendered)
    if run and "</s>" not in run.group():
        tokenizer.eos_token = [tag for tag in control if run.group().endswith(tag)][-1]
    return tokenizer


def row_of(kind: str) -> Pair:
    thought = "Multiply first." if kind == "thought" else ""
    sides = [(Message("assistant", text, thought),) for text in (CHOSEN, REJECTED)]
    return Pair(prompt=tuple(ROWS[kind]), chosen=sides[0], rejected=sides[1], place=Place(kind, 1))


@cache
def refusal(name: str, kind: str) -> str:
    """Why a row of this kind is refused, "" where it is not; then all of it is there, and each response ends once."""
    tokenizer, row = tokenizer_of(templates()[name]), row_of(kind)
    try:
        (group,) = tokenize([row], tokenizer, max_tokens=99_999).groups
    except UserError as error:
        return str(error)
    prompt = str(tokenizer.decode(group.prompt.tolist()))
    for side, ids in zip((row.chosen, row.rejected), group.responses, strict=True):
        response = str(tokenizer.decode(ids.tolist()))
        whole, missing = letters(prompt + response), [*ROWS[kind]]
        assert [turn.content for turn in missing if letters(turn.content) not in whole] == []
        assert letters(with_thoughts(side).splitlines()[0]) in letters(response)
        assert letters(side[-1].content) in letters(response)
        ended = response.rpartition(side[-1].content.splitlines()[-1])[2] if side[-1].thought else response
        assert ended.count(str(tokenizer.eos_token)) == 1  # it may end a thought too
        assert ids[-1] == tokenizer.eos_token_id
    return ""


def letters(text: str) -> str:
    return "".join(text.split())


CASES = [(name, kind) for name in templates() for kind in ROWS]


@pytest.mark.skipif(not CASES, reason="no chat templates of TRL and llama.cpp: `make test-peers` gets them")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_nothing_of_a_conversation_is_lost_or_it_is_refused(name: str, kind: str) -> None:
    reason = refusal(name, kind)
    assert not reason or re.search("chat template|made:|thought", reason)


@pytest.mark.skipif(len(CASES) < 4 * 142, reason="not all 142 chat templates are here: `make test-peers` gets them")
def test_few_templates_are_refused() -> None:
    refused = {name: reason for name in templates() for kind in ("short", "long") if (reason := refusal(name, kind))}
    assert len(templates()) == 142
    assert len(refused) < 12, refused  # 4 are: they need tools


TOOL = {"name": "weather", "description": "Of a town.", "parameters": {"type": "object", "properties": {
    "town": {"type": "string", "description": "Where."}}, "required": ["town"]}}  # fmt: skip
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "abcdefghi", "function": {"name": "weather", "arguments": {"town": 'Köln "am" Rhein'}}}]}  # fmt: skip
TOLD = {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "rain, 7 degrees"}


def says_of_tools(name: str) -> list[str]:
    """What is scored of a conversation with a call of a tool, turn by turn, or one error."""
    messages = [{"role": "user", "content": "How is it?"}, CALL, TOLD, {"role": "assistant", "content": "It rains."}]
    tokenizer = tokenizer_of(templates()[name])
    try:
        (group,) = tokenize(read([{"messages": messages, "tools": [TOOL]}]).rows, tokenizer, max_tokens=99_999).groups
    except UserError as error:
        return [str(error)]
    call, last = group.turns[0]
    context = str(tokenizer.decode(last.prompt.tolist()))
    assert "7 degrees" in context
    assert context.index("weather") < context.index("7 degrees")
    return [str(tokenizer.decode(turn.ids.tolist())) for turn in (call, last)]


@pytest.mark.skipif(len(CASES) < 4 * 142, reason="not all 142 chat templates are here: `make test-peers` gets them")
def test_calls_of_tools_are_scored_as_templates_write_them() -> None:
    """As JSON, between tags, in channels and with ends of their own: by 95 of the templates that speak of tools."""
    said = {name: says_of_tools(name) for name, source in templates().items() if "tool" in source}
    scored = {name: turns for name, turns in said.items() if len(turns) == 2}
    for name, (call, last) in scored.items():
        assert "weather" in call, name
        assert any(town in call for town in ('Köln "am" Rhein', 'Köln \\"am\\" Rhein', 'K\\u00f6ln \\"am\\" Rhein')), (
            name
        )
        assert "It rains." in last, name
        assert "7 degrees" not in call + last, name
    refused = {name: turns[0] for name, turns in said.items() if name not in scored}
    assert (len(said), len(scored) >= 95) == (117, True), refused
    assert all("chat template" in reason for reason in refused.values()), refused
