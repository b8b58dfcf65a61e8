"""A user's own functions: found by name, identified by their source, and called under a time limit.

A call runs in the main thread under an interval timer (SIGALRM), which ends Python code, waiting and most calls of
the system. Code of C that never returns to the interpreter cannot be ended in this process. Off the main thread, and
where there is no such signal, the call runs in a thread of its own, which is left behind when its time is over.
Held by tests/rollout/test_functions.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import SourceFileLoader
from inspect import iscoroutinefunction
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from preftune.errors import LONGEST, UserError, nearest
from preftune.objective.source import source_of
from preftune.rollout.arguments import asked_by, places_of
from preftune.rollout.config import REWARD_ARGUMENTS, Reward
from preftune.rows.asked import Asked, all_of

T = TypeVar("T")
TIME_LIMIT = 60.0  # seconds a call
AGAIN = 0.5  # seconds after which the alarm comes once more, for code that catches everything


class Function(Struct, frozen=True):
    """A function with its name for errors and the record, and SHA-256 of its name and source. remark: a sentence on
    what it holds that this does not cover; asked: the columns of a row that it reads; places: the arguments that it is
    called with by place; is_async: whether what it returns has to be awaited."""

    call: Callable[..., Any]
    name: str
    digest: str
    remark: str = ""
    asked: Asked = Asked()
    places: int = len(REWARD_ARGUMENTS)

    @property
    def is_async(self) -> bool:
        return iscoroutinefunction(self.call) or iscoroutinefunction(type(self.call).__call__)


def given_function(function: Callable[..., Any], location: str = "reward") -> Function:
    """A callable given in Python. Raises UserError where it has no source, or is called with other arguments."""
    name = getattr(function, "__qualname__", type(function).__name__)
    asked = asked_by(function, name, REWARD_ARGUMENTS, location)
    source = source_of(function, name, location)
    return Function(function, name, source.digest, source.remark(name), asked,
                    places_of(function, REWARD_ARGUMENTS))  # fmt: skip


def load_function(name: str, location: str, arguments: Sequence[str] = REWARD_ARGUMENTS) -> Function:
    """The function `file.py:name` or `module:name`. location: the key that names it; arguments: what it is called
    with, in order. Raises UserError."""
    source, _, attribute = name.rpartition(":")
    module, file = _of_file(source, location) if source.endswith(".py") else _of_name(source, location)
    function = vars(module).get(attribute)
    if function is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{source} has no {attribute}.", location=location, hint=nearest(attribute, known))
    if isinstance(function, type) or not callable(function):
        raise UserError(f"{name} is no function.", location=location)
    asked = asked_by(function, name, arguments, location)
    digest = hashlib.sha256(attribute.encode() + b"\0" + file.read_bytes()).hexdigest()
    return Function(function, name, digest, asked=asked, places=places_of(function, arguments))


def functions_of(rewards: Sequence[Reward]) -> tuple[Function | None, ...]:
    """The function that each table of [reward] names, or holds; None for one without. Raises UserError."""
    return tuple(
        None if reward.function is None
        else given_function(reward.function) if callable(reward.function)
        else load_function(reward.function, "reward.function")
        for reward in rewards
    )  # fmt: skip


def columns_of(functions: Sequence[Function | None]) -> Asked:
    """The columns that these read of rows to which responses are drawn."""
    return replace(all_of(function.asked for function in functions if function is not None), drawn=True)


def _of_file(source: str, location: str) -> tuple[ModuleType, Path]:
    file = Path(source).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"there is no file {source}.", location=location)
    _refuse_downloaded(file, location)
    name = f"preftune_of_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    loader = _FromSource(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    with _importable(file.parent), _importing(source, location):
        loader.exec_module(module)
    return module, file


class _FromSource(SourceFileLoader):
    """Compiles what the file says now; a compiled copy of the same second and size may be of another source."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _of_name(source: str, location: str) -> tuple[ModuleType, Path]:
    with _importable(Path.cwd()), _importing(source, location):
        spec = importlib.util.find_spec(source)
        if spec is None or spec.origin is None or not Path(spec.origin).is_file():
            hint = f"A file is named with its ending: {source.replace('.', '/')}.py:name."
            raise UserError(f"there is no module {source} of Python code.", location=location, hint=hint)
        file = Path(spec.origin).resolve()
        _refuse_downloaded(file, location)
        return importlib.import_module(source), file


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """In this block modules of the folder can be imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _importing(source: str, location: str) -> Iterator[None]:
    """Whatever the user's module raises becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{source} cannot be imported: {_said(error)}", location=location) from error


def _refuse_downloaded(file: Path, location: str) -> None:
    """Raise UserError for code in the hub's cache or beside a model: nobody has chosen to run that."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    caches = [Path(folder).expanduser().resolve() for folder in (HF_HOME, HF_HUB_CACHE)]
    beside = any(_is_models(folder / "config.json") for folder in file.parents)
    if beside or any(cache in file.parents for cache in caches):
        hint = "Copy it elsewhere, once you have read it."
        raise UserError(f"{file} came with a download, and such code is not run.", location=location, hint=hint)


def _is_models(file: Path) -> bool:
    """Whether it is the configuration of a model's folder."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and bool({"model_type", "architectures", "auto_map"} & content.keys())


class _OutOfTime(BaseException):
    """Ends a call; not an Exception, so that the function does not take it for an error of its own."""


def call(function: Function, work: Callable[[], T], time_limit: float, location: str) -> T:
    """What `work`, which calls the function, returns; what it prints goes to the error output.

    location: the task's place. Raises UserError where it raises, exits or takes longer than time_limit seconds.
    """
    timed = _in_main_thread if _has_alarm() else _in_a_thread
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return timed(work, time_limit)
    except _OutOfTime:
        raise out_of_time(function, time_limit, location) from None
    except UserError:  # of one of several calls, which says where
        raise
    except (Exception, SystemExit) as error:
        raise raised(function, error, location) from error


def out_of_time(function: Function, time_limit: float, location: str) -> UserError:
    message = f"{function.name} took longer than {time_limit:g} seconds."
    return UserError(message, location=location, hint="Make it faster, or raise reward.time_limit.")


def raised(function: Function, error: Exception | SystemExit, location: str) -> UserError:
    return UserError(f"{function.name} raised {_said(error)}", location=location)


def _said(error: Exception | SystemExit) -> str:
    line = str(error).strip().partition("\n")[0][:LONGEST].rstrip(".")
    return f"{type(error).__name__}: {line}." if line else f"{type(error).__name__}."


def _has_alarm() -> bool:
    return threading.current_thread() is threading.main_thread() and sys.platform != "win32"


def _in_main_thread(work: Callable[[], T], time_limit: float) -> T:
    """Another timer of the process, such as a test's, is set back to what is left of it."""

    def ring(_number: int, _frame: object) -> None:
        raise _OutOfTime

    start = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, time_limit, AGAIN)
    try:
        try:
            result = work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-3), interval)
    if time.monotonic() - start > time_limit + AGAIN:  # it caught the alarm
        raise _OutOfTime
    return result


def _in_a_thread(work: Callable[[], T], time_limit: float) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(time_limit)
    if errors:
        raise errors[0]
    if not results:
        raise _OutOfTime
    return results[0]
