"""A user's function: found where it was named, refused where it was downloaded, and ended where it hangs."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from preftune import Run
from preftune.config.resolve import resolve
from preftune.errors import UserError
from preftune.rollout.config import JUDGE_ARGUMENTS
from preftune.rollout.config import REWARD_ARGUMENTS as ARGUMENTS
from preftune.rollout.functions import Function, call, given_function, load_function
from preftune.rows.asked import Asked

FIRST = "def short(prompt, responses, answer):\n    return [-len(r) for r in responses]\n"


def named(work: Callable[..., object]) -> Function:
    return Function(work, "rewards.py:f", "")


def test_a_file_and_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper_of_rewards.py").write_text("def size(text):\n    return len(text)\n")
    (tmp_path / "my_rewards.py").write_text(
        "from dataclasses import dataclass\nfrom helper_of_rewards import size\n\n"
        "@dataclass\nclass A:\n    x: 'int' = 1\n\n"
        "def short(prompt, responses, answer):\n    return [size(r) for r in responses]\n"
    )
    of_file = load_function(str(tmp_path / "my_rewards.py:short"), "reward.function")
    assert of_file.call("p", ["ab"], None) == [2]
    monkeypatch.chdir(tmp_path)
    of_module = load_function("my_rewards:short", "reward.function")
    assert of_module.call("p", ["abc"], None) == [3]
    assert of_module.digest == of_file.digest
    assert str(tmp_path) not in sys.path


def test_the_digest_is_of_name_and_source(tmp_path: Path) -> None:
    file = tmp_path / "r.py"
    file.write_text(FIRST + FIRST.replace("short", "other"))
    before = load_function(f"{file}:short", "x").digest
    assert before != load_function(f"{file}:other", "x").digest
    file.write_text(file.read_text().replace("-len", "len"))
    assert before != load_function(f"{file}:short", "x").digest


def test_a_file_that_changed_within_a_second_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "r.py"
    for number in range(4):
        file.write_text(f"def f(prompt, responses, answer):\n    return [{number}]\n")
        assert load_function(f"{file}:f", "x").call("", [""], None) == [number]
    assert [path.name for path in tmp_path.iterdir()] == ["r.py"]


def test_a_callable_is_identified_by_its_source() -> None:
    def first(prompt: object, responses: object, answer: object) -> list[int]:
        return [1]

    def second(prompt: object, responses: object, answer: object) -> list[int]:
        return [2]

    assert given_function(first).digest != given_function(second).digest


OTHER_FORMS = (
    "(completions, **kwargs)", "(prompts, completions, **columns)", "(prompts, completions, answer, **columns)",
    "(prompt)", "(responses, prompt)", "(prompt, responses, *, answer)",
    "(answer, responses, prompt)", "(text, prompt, responses)", "(queries, prompts, labels)",
    "(solution_str, ground_truth, data_source)", "(prompt, responses, truth, answer)", "(a, b, c, d, /)",
)  # fmt: skip


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_function_of_another_form_is_refused_before_it_is_called(form: str, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(f"def f{form}:\n    return []\n")
    sentence = re.escape(f"takes {form}, and is called with (prompt, responses, answer).")
    with pytest.raises(UserError, match=sentence):
        load_function(f"{tmp_path}/r.py:f", "reward.function")
    scope: dict[str, Callable[..., object]] = {}
    exec(f"def f{form}:\n    return []\n", scope)
    with pytest.raises(UserError, match=sentence) as raised:
        resolve(Run(reward=scope["f"]))
    assert "one prompt at a time, with all its responses; whatever else it takes is a column" in str(raised.value)


@pytest.mark.parametrize(
    ("form", "asked"),
    [
        ("(prompt, responses, answer)", Asked(but=ARGUMENTS)),
        ("(prompt, responses)", Asked(but=ARGUMENTS[:2])),
        ("(prompt, responses, *, tests)", Asked(("tests",), but=ARGUMENTS[:2])),
        ("(prompt, responses, level, limit=3)", Asked(("level",), ("limit",), but=ARGUMENTS[:2])),
        ("(prompt, responses, **columns)", Asked(every=True, but=ARGUMENTS[:2])),
        ("(prompt, responses, _)", Asked(but=("prompt", "responses", "_"))),
        ("(p, r, a, tests, limit=3)", Asked(("tests",), ("limit",), but=("p", "r", "a"))),
        ("(prompt, responses, answer, *, tests)", Asked(("tests",), but=ARGUMENTS)),
        ("(prompt, responses, answer=None, **columns)", Asked(every=True, but=ARGUMENTS)),
        ("(*arguments)", Asked()),
        ("(prompt, responses, answer, /, prompt_id)", Asked(("prompt_id",), but=ARGUMENTS)),
    ],
)
def test_further_parameters_are_columns(form: str, asked: Asked) -> None:
    scope: dict[str, Callable[..., object]] = {}
    exec(f"def f{form}:\n    return []\n", scope)
    assert given_function(scope["f"]).asked == asked


def test_a_judge_reads_no_columns(tmp_path: Path) -> None:
    forms = "(prompt, first, second, topic)", "(prompt, second, first)"
    for form in forms:
        (tmp_path / "r.py").write_text(f"def f{form}:\n    return 0.5\n")
        with pytest.raises(UserError, match=r"and is called with \(prompt, first, second\)\.$"):
            load_function(f"{tmp_path}/r.py:f", "reward.judge", JUDGE_ARGUMENTS)
    (tmp_path / "r.py").write_text("def f(prompt, first, second, topic=1, **more):\n    return 0.5\n")
    assert load_function(f"{tmp_path}/r.py:f", "reward.judge", JUDGE_ARGUMENTS).asked.named == frozenset()


def test_forms_that_can_be_called_are_taken(tmp_path: Path) -> None:
    class Judge:
        def __call__(self, prompt: object, responses: object, answer: object = None) -> list[int]:
            return [1]

    assert given_function(Judge()).call("p", ["a"]) == [1]
    assert given_function(lambda *arguments: [1]).call("p", ["a"], None) == [1]
    (tmp_path / "r.py").write_text("def better(prompt, first, second):\n    return 0.5\n")
    assert load_function(f"{tmp_path}/r.py:better", "reward.judge", JUDGE_ARGUMENTS).call("p", "a", "b") == 0.5


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (FIRST, "r.py:shrt", 'has no shrt. Did you mean "short"?'),
        (FIRST, "absent.py:short", "there is no file"),
        (FIRST, "absent_module:short", "there is no module absent_module"),
        (FIRST, "json.nothing:short", "cannot be imported|there is no module"),
        ("x = 1\n", "r.py:x", "is no function"),
        ("class A:\n    pass\n", "r.py:A", "is no function"),
        ("def f(:\n", "r.py:f", "cannot be imported: SyntaxError"),
        ("import absent_thing\n", "r.py:f", "cannot be imported: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)\n", "r.py:f", "cannot be imported: SystemExit: 3"),
    ],
)
def test_what_cannot_be_used(
    source: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_function(name, "reward.function")
    assert caught.value.problems[0].location == "reward.function"


def test_code_that_came_with_a_download_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    folder = tmp_path / "model" / "code"
    folder.mkdir(parents=True)
    (folder / "r.py").write_text(f"open({str(ran)!r}, 'w')\n" + FIRST)
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.chdir(folder)
    for name in (f"{folder}/r.py:short", "r:short"):
        with pytest.raises(UserError, match="came with a download"):
            load_function(name, "reward.function")
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "model"))
    with pytest.raises(UserError, match="came with a download"):
        load_function(f"{folder}/r.py:short", "reward.function")
    (tmp_path / "link.py").symlink_to(folder / "r.py")
    with pytest.raises(UserError, match="came with a download"):
        load_function(f"{tmp_path}/link.py:short", "reward.function")
    assert not ran.exists()


def sleeps() -> object:
    time.sleep(30)
    return 1


def spins() -> object:
    while True:
        pass


def catches_everything() -> object:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(30)


def stubborn() -> object:
    for _ in range(2):
        with contextlib.suppress(BaseException):
            time.sleep(30)
    return 1


def backtracks() -> object:
    return re.match(r"(a+)+$", "a" * 40 + "b")


def waits() -> object:
    return subprocess.run(["sleep", "30"], check=True)


@pytest.mark.parametrize("work", [sleeps, spins, catches_everything, stubborn, backtracks, waits])
def test_a_hang_ends(work: Callable[[], object]) -> None:
    timer = signal.getitimer(signal.ITIMER_REAL)[0]  # pytest's own
    handler = signal.getsignal(signal.SIGALRM)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"rows:3: rewards.py:f took longer than 0.2 seconds\. .*reward\.time_limit"):
        call(named(work), work, 0.2, "rows:3")
    assert time.monotonic() - start < 5
    assert signal.getsignal(signal.SIGALRM) is handler
    assert timer - 10 < signal.getitimer(signal.ITIMER_REAL)[0] <= timer


def test_a_hang_ends_off_the_main_thread_too() -> None:
    errors: list[str] = []

    def run() -> None:
        try:
            call(named(sleeps), sleeps, 0.2, "rows:3")
        except UserError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(5)
    assert len(errors) == 1
    assert "took longer than 0.2 seconds" in errors[0]


def fails() -> object:
    raise ValueError("bad\nthing")


def exits() -> object:
    raise SystemExit(3)


@pytest.mark.parametrize(("work", "said"), [(fails, "raised ValueError: bad."), (exits, "raised SystemExit: 3.")])
@pytest.mark.parametrize("has_alarm", [True, False])
def test_what_it_raises_has_the_tasks_place(
    work: Callable[[], object], said: str, has_alarm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preftune.rollout.functions._has_alarm", lambda: has_alarm)
    with pytest.raises(UserError) as caught:
        call(named(work), work, 5, "rows:3")
    assert str(caught.value) == f"rows:3: rewards.py:f {said}"


def test_what_it_prints_goes_to_the_error_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(named(print), lambda: print("hello") or 7, 5, "rows:3") == 7
    assert capsys.readouterr() == ("", "hello\n")
