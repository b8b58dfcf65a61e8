"""Which code a function is and what it holds, as one digest, so that a run goes on with the function it began with.

Held by tests/objective/test_source.py.
"""

from __future__ import annotations

import datetime
import decimal
import dis
import enum
import functools
import hashlib
import inspect
import json
import numbers
import re
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from types import CodeType, MethodType, ModuleType
from typing import Any, NamedTuple

from preftune.errors import UserError

INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
SAYS_ITSELF = (numbers.Number, decimal.Decimal, range, slice, bytes, PurePath, enum.Enum,
               datetime.date, datetime.time, datetime.timedelta)  # fmt: skip
CONTAINERS = (list, dict, set, deque)
CHANGES = {"append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove",
           "discard", "clear", "sort", "reverse"}  # fmt: skip
PLAIN = (bool, int, float, str, type(None))


class Source(NamedTuple):
    """digest: SHA-256 of a function's source and of what it holds; unseen: names of what it holds that is no part of
    the digest, because nothing here can say whether it is the same in another process."""

    digest: str
    unseen: tuple[str, ...]

    def remark(self, name: str) -> str:
        """A sentence on what is unseen; empty where nothing is."""
        if not self.unseen:
            return ""
        return f"the digest of {name} does not cover {', '.join(self.unseen)}: a resumed run cannot see it change"


def source_of(function: Callable[..., Any], name: str, location: str) -> Source:
    """Of a function, a method with its object, or a callable object: its source text, or its bytecode where there is no
    text; that of the functions and classes of the user's own that it uses; and the values that it holds or names.

    location: the key that holds the function. Raises UserError where it has no source.
    """
    reader = _Reader()
    root = function.func if isinstance(function, functools.partial) else function
    if not _has_code(root):
        raise UserError(f"{name} has no source to record.", location=location,
                        hint="Wrap it in a function of your own.")  # fmt: skip
    content = json.dumps(reader.read(function, name, opened=True), sort_keys=True)
    return Source(hashlib.sha256(content.encode()).hexdigest(), tuple(dict.fromkeys(reader.unseen)))


def _has_code(function: Any) -> bool:
    """Whether it is Python code, or an object of a class that is."""
    function = inspect.unwrap(function.__func__ if isinstance(function, MethodType) else function)
    called = next((vars(base)["__call__"] for base in type(function).__mro__ if "__call__" in vars(base)), None)
    return inspect.isfunction(function) or inspect.isfunction(called)


class _Reader:
    """Makes values that JSON can write of what a function holds. unseen: names of what it could not."""

    def __init__(self) -> None:
        self.unseen: list[str] = []
        self._numbers: dict[int, int] = {}  # of what was read before, by identity
        self._alive: list[object] = []  # so that no identity is given twice

    def read(self, value: Any, name: str, *, opened: bool = False) -> object:
        """What stands for a value. name: of it, for `unseen`; opened: also where it comes from an installed package."""
        if type(value) in PLAIN:
            return value
        if id(value) in self._numbers:
            return ["again", self._numbers[id(value)]]
        self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, ModuleType):
            return [kind, value.__name__ if _is_installed(value) else Path(str(value.__file__)).read_text()]
        if (numeric := _numbers_of(value)) is not None:
            return [kind, numeric]
        if isinstance(value, re.Pattern):
            return [kind, self.read(value.pattern, name), value.flags]
        if isinstance(value, SAYS_ITSELF):
            return [kind, repr(value)]
        if isinstance(value, list | tuple | deque):
            return [kind, [self.read(item, f"{name}[{index}]") for index, item in enumerate(value)]]
        if isinstance(value, set | frozenset):
            return [kind, sorted(json.dumps(self.read(item, name), sort_keys=True) for item in value)]
        if isinstance(value, Mapping):
            pairs = [[self.read(key, name), self.read(item, f"{name}[{key!r}]")] for key, item in value.items()]
            return [kind, sorted(pairs, key=lambda pair: json.dumps(pair[0], sort_keys=True))]
        return self._code_or_object(value, name, kind, opened=opened)

    def _code_or_object(self, value: Any, name: str, kind: str, *, opened: bool) -> object:
        if isinstance(value, MethodType):
            return [kind, self.read(value.__func__, name, opened=opened), self.read(value.__self__, name, opened=True)]
        if isinstance(value, functools.partial):
            return [kind, self.read(value.func, name, opened=opened), self.read([value.args, value.keywords], name),
                    self._state(value, name)]  # fmt: skip
        if (wrapped := getattr(value, "__wrapped__", None)) is not None and not inspect.isfunction(value):
            return [kind, self.read(wrapped, name, opened=opened)]
        if inspect.isroutine(value) or isinstance(value, type):
            return self._code(value, name, opened=opened)
        if not (opened or _is_value(value) or not _is_installed(type(value))):
            self.unseen.append(f"{name} ({type(value).__name__})")
            return [kind]
        if not (state := self._state(value, name)) and type(value).__module__ == "builtins":
            self.unseen.append(f"{name} ({type(value).__name__})")
        return [kind, self._code(type(value), name, opened=opened), state]

    def _state(self, value: Any, name: str) -> dict[str, object]:
        """The attributes of an object, by name."""
        slots = (*getattr(value, "__struct_fields__", ()), *_slots(type(value)))
        state = {slot: getattr(value, slot, None) for slot in slots} | getattr(value, "__dict__", {})
        return {key: self.read(state[key], f"{name}.{key}") for key in sorted(state)}

    def _code(self, code: Any, name: str, *, opened: bool) -> object:
        """A function or class: its text with what it uses, or its name alone where it is installed."""
        called = f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', type(code).__name__)}"
        if not opened and _is_installed(code):
            return called
        attributes = {**vars(code), "__repr__": None}.values() if isinstance(code, type) else [code]  # it only shows
        functions = [
            function
            for function in map(_function_of, attributes)
            if function is not None and (opened or not _is_installed(function))
        ]
        used: dict[str, object] = {}
        for function in functions:
            for key, value in sorted(self._used_by(function, name).items()):
                used[f"{function.__qualname__} {key}"] = self.read(value, key)
        state = self._state(code, name) if inspect.isfunction(code) else {}
        bases = [self.read(base, name) for base in code.__bases__] if isinstance(code, type) else []
        return [_text(code), used, state, bases]

    def _used_by(self, function: Any, name: str) -> dict[str, object]:
        """What a function closes over, and what of its module it and the functions inside it name."""
        codes, names = [function.__code__], set()
        for code in codes:  # which grows
            names.update(code.co_names)
            codes += [const for const in code.co_consts if inspect.iscode(const)]
        used = {each: function.__globals__[each] for each in names if each in function.__globals__}
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                used[variable] = cell.cell_contents
            except ValueError:  # it is not set yet
                self.unseen.append(f"{variable} of {name}")
        state = [each for each in sorted(used) if isinstance(used[each], CONTAINERS) and each in _changed_by(codes)]
        self.unseen += [f"{each}, which {name} changes" for each in state]
        return {each: value for each, value in used.items() if each not in state}


def _changed_by(codes: list[CodeType]) -> set[str]:
    """Names whose containers this code changes while it runs, such as a log or a cache: they are no part of what it is.
    An item that is set may be of any of them."""
    names: set[str] = set()
    for code in codes:
        steps = [*dis.get_instructions(code)]
        if any(step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR") for step in steps):
            names.update(code.co_names, code.co_freevars)
        names |= {str(first.argval) for first, second in pairwise(steps) if second.argval in CHANGES}
    return names


def _text(code: Any) -> str:
    """The source of a function or class, or its bytecode."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        functions = [code] if inspect.isfunction(code) else map(_function_of, getattr(code, "__dict__", {}).values())
        codes = [function.__code__ for function in functions if function is not None]
        return repr([(each.co_code.hex(), each.co_names, [const for const in each.co_consts if type(const) in PLAIN])
                     for each in codes])  # fmt: skip


def _function_of(attribute: Any) -> Any:
    """The function in an attribute of a class; None where it is none."""
    function = getattr(attribute, "__func__", None) or getattr(attribute, "fget", None) or attribute
    return function if inspect.isfunction(function) else None


def _slots(kind: type) -> list[str]:
    slots = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    return [slot for each in slots for slot in ([each] if isinstance(each, str) else each) if not slot.startswith("__")]


def _is_value(value: Any) -> bool:
    """Whether an object is by its kind what its fields are."""
    torch = sys.modules.get("torch")
    is_module = torch is not None and isinstance(value, torch.nn.Module)
    return is_module or is_dataclass(value) or bool(getattr(value, "__struct_fields__", ()))


def _is_installed(code: Any) -> bool:
    """Whether a module, or what a function or class stands in, is of Python, an installed package or this one."""
    module = code if isinstance(code, ModuleType) else sys.modules.get(getattr(code, "__module__", None) or "")
    if module is None or module.__name__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    ours = module.__name__.partition(".")[0] == __name__.partition(".")[0]
    return ours or file is None or str(Path(file).resolve()).startswith(INSTALLED)


def _numbers_of(value: Any) -> object:
    """What stands for an array, a tensor or a number of numpy; None for anything else."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor) and value.layout == torch.strided:
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return [str(value.dtype), list(value.shape), hashlib.sha256(raw.tobytes()).hexdigest()]
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic) and not value.dtype.hasobject:
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    return None
