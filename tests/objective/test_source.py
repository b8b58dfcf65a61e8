"""A function is another where its source or anything that it holds is another, and what nobody can compare is said."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from preftune import objective as o
from preftune.objective.own import own_objective
from preftune.objective.source import source_of
from preftune.rollout.functions import given_function

NUMBERS = [1]
OWN = """
import numpy as np, helper
K = {'b', 'a', 'c'}
class S:
    def __init__(s):
        s.k = np.float32(2)
        s.names = {'x', 'y', 'z'}
    def score(s, p, r, a):
        return [helper.f(s.k) for _ in r if K]
"""


class Holder:
    def __init__(self, content: object) -> None:
        self.content = content

    def score(self, prompt: object, responses: list, answer: object) -> list[object]:
        return [self.content for _ in responses]

    def __call__(self, prompt: object, responses: list, answer: object) -> list[object]:
        return [self.content for _ in responses]


class Heir(Holder):
    pass


@dataclass(frozen=True, slots=True)
class Table:
    number: object


def closing_over(content: object) -> Callable:
    def inner(prompt: object, responses: list, answer: object) -> list[object]:
        return [content for _ in responses]

    return inner


def of_module(prompt: object, responses: list, answer: object) -> list[int]:
    return NUMBERS * len(responses)


def digest(function: Callable) -> str:
    return source_of(function, "f", "reward").digest


CONTENTS = [
    (1, -1),
    ([1], [-1]),
    ((1, [2]), (1, [3])),
    ({"a": 1}, {"a": -1}),
    ({1, 2}, {1, 3}),
    (np.float32(1), np.float32(-1)),
    (np.float64(1), np.float64(-1)),
    (np.arange(3), np.arange(3) + 1),
    (torch.tensor(1.0), torch.tensor(-1.0)),
    (torch.ones(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)),
    (re.compile("a" * 300), re.compile("a" * 301)),
    (Path("a"), Path("b")),
    (b"a", b"b"),
    (Table(np.float32(1)), Table(np.float32(2))),
    (Holder([1]), Holder([2])),
    (closing_over([1]), closing_over([2])),
    (Holder([1]).score, Holder([2]).score),
    (functools.partial(closing_over, [1]), functools.partial(closing_over, [2])),
    (o.DPO(beta=0.1), o.DPO(beta=0.2)),
    (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)),
]


@pytest.mark.parametrize("pair", CONTENTS, ids=lambda pair: type(pair[0]).__name__)
@pytest.mark.parametrize("wrap", [Holder, Heir, closing_over, lambda x: Holder(x).score, lambda x: Heir(x).score])
def test_what_a_function_holds_is_a_part_of_it(wrap: Callable, pair: tuple) -> None:
    first, second = (wrap(content) for content in pair)
    assert digest(first) == digest(first) == digest(wrap(pair[0]))
    assert digest(first) != digest(second)
    assert given_function(first).digest != given_function(second).digest
    assert not given_function(first).remark


def test_so_are_values_of_its_module_and_of_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(of_module)
    monkeypatch.setitem(globals(), "NUMBERS", [2])
    assert digest(of_module) != before
    functions = [closing_over(np.float32(number)) for number in (1, 2)]
    for function in functions:
        vars(function)["reads"] = ()
    assert own_objective(functions[0]).source != own_objective(functions[1]).source


def test_what_nobody_can_compare_is_said() -> None:
    remark = "does not cover .*content.* resumed run cannot see it change"
    assert re.search(remark, given_function(Holder(threading.Lock())).remark)
    function = closing_over({"a": [np.random.default_rng(0)]})
    assert "content['a'][0] (Generator)" in given_function(function).remark
    vars(function)["reads"] = ()
    assert re.search(remark, own_objective(function).variant)


LOG: list[object] = []
CACHE: dict[object, object] = {}


def logging_reward(prompt: object, responses: list, answer: object) -> list[int]:
    LOG.append(prompt)
    return [0 for _ in responses]


def caching_reward(prompt: object, responses: list, answer: object) -> list[int]:
    CACHE[prompt] = len(responses)
    return [0 for _ in responses]


@pytest.mark.parametrize("function", [logging_reward, caching_reward])
def test_what_it_fills_while_it_runs_is_said_and_no_part_of_it(function: Callable) -> None:
    before = digest(function)
    function("a question", [""], None)
    assert digest(function) == before
    assert re.search("(LOG|CACHE), which f changes", source_of(function, "f", "reward").remark("f"))


def test_one_that_refers_to_itself_has_an_end() -> None:
    holder = Holder([])
    holder.content.append(holder)
    assert digest(holder) == digest(holder)


def test_another_process_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "helper.py").write_text("def f(x): return x\n")
    code = (
        "import json, own\nfrom preftune.objective.source import source_of\n"
        "print(json.dumps(source_of(own.S().score, 'f', 'reward')))"
    )

    def answer(seed: str) -> list:
        names = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
        process = subprocess.run([sys.executable, "-c", code], env=names, capture_output=True, text=True, check=True)
        return json.loads(process.stdout)

    first, second = answer("1"), answer("2")
    assert first == second
    assert first[1] == []
    (tmp_path / "helper.py").write_text("def f(x): return -x\n")
    assert answer("1")[0] != first[0]
