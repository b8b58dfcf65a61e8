"""Whatever happens, the command ends with one sentence and a code; only a bug shows where it is in the source."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

import pytest

from preftune import __main__
from preftune.errors import BUG, IO, USAGE, UserError

Ended = Callable[[BaseException], tuple[int, str]]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ended:
    """Runs a command that raises: its exit code, and what it wrote."""
    monkeypatch.setattr(sys, "stdin", sys.stdin)

    def run(error: BaseException) -> tuple[int, str]:
        def fail() -> None:
            raise error

        monkeypatch.setattr(__main__, "_run_verb", fail)
        with pytest.raises(SystemExit) as exited:
            __main__.main()
        assert isinstance(exited.value.code, int)
        return exited.value.code, capsys.readouterr().err

    return run


SENTENCES = {
    "disk": (OSError(errno.EIO, "Input/output error", "/a/b"), IO, "/a/b: the system refuses: Input/output error."),
    "bytes": (PermissionError(errno.EACCES, "Permission denied", b"/a\x1b"), IO, r"/a\x1b: the system refuses"),
    "read-only": (OSError(errno.EROFS, "Read-only file system"), IO, "the system refuses: Read-only file system."),
    "no number": (OSError("gone"), IO, "the system refuses: gone."),
    "memory": (MemoryError(), IO, "memory ran out. Lower batch.tokens"),
    "allocation": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), IO, "memory ran out."),
    "depth": (RecursionError("maximum recursion depth exceeded"), USAGE, "nested too deeply."),
    "ours": (UserError("too\nbad \x1b[2J", location="a\nb"), USAGE, r"a\nb: too\nbad \x1b[2J"),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_what_the_machine_or_the_input_is_to_blame_for_is_one_sentence(name: str, ended: Ended) -> None:
    error, code, sentence = SENTENCES[name]
    ended_with, text = ended(error)
    assert ended_with == code
    assert text.startswith("preftune: ")
    assert sentence in text
    assert text.count("\n") == 1
    assert all(letter.isprintable() for letter in text[:-1])


def test_a_bug_shows_its_place_and_no_control_characters(ended: Ended) -> None:
    code, text = ended(ValueError("x\x1b[2J\x07"))
    assert code == BUG
    assert "Traceback" in text
    assert "this is a bug of preftune" in text
    assert [letter for letter in text if not letter.isprintable() and letter != "\n"] == []


def test_nothing_can_ask_on_standard_input(ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []

    def ask() -> None:
        answers.append(sys.stdin.read())
        input("Do you wish to run the custom code? [y/N] ")

    monkeypatch.setattr(__main__, "_run_verb", ask)
    monkeypatch.setattr(sys, "argv", ["preftune"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert answers == [""]


@pytest.mark.parametrize("own", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocator_grows_its_blocks_unless_the_user_says_otherwise(
    own: str | None, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in __main__.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    if own is not None:
        monkeypatch.setenv(own, "max_split_size_mb:64")
    ended(MemoryError())
    expected = {own: "max_split_size_mb:64"} if own else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert {name: os.environ[name] for name in __main__.ALLOCATOR if name in os.environ} == expected
