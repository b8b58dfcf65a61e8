"""Objectives as configuration: names, bounds, sentences, sums, and no torch until one is called."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import msgspec
import pytest

from preftune import objective as o
from preftune.objective.aggregate import Aggregate
from preftune.objective.base import Formula
from preftune.objective.combine import Sum, parts
from preftune.objective.presets import PRESETS

TAGS = [
    "dpo",
    "ipo",
    "kto",
    "orpo",
    "simpo",
    "nll",
    "robust",
    "ln_dpo",
    "r_dpo",
    "dpo_positive",
    "hypo",
    "hinge",
    "exo",
    "sppo",
    "cal_dpo",
    "apo_down",
    "f_dpo",
    "chi_po",
    "odpo",
    "rpo",
    "rebel",
    "slic",
    "cpo",
    "alpha_po",
    "simper",
    "aot",
    "beta_dpo",
    "dr_dpo",
    "wpo",
    "apo_zero",
    "bco",
    "qrpo",
    "dro",
    "plackett_luce",
    "info_nca",
    "nca",
    "sum",
]
EVERY = get_args(o.Objective)


def read(text: str) -> o.Objective:
    return msgspec.json.decode(text, type=o.Objective)


def test_names() -> None:
    assert [table.__struct_config__.tag for table in EVERY] == TAGS
    assert {read(f'{{"name": "{tag}"}}').__class__ for tag in TAGS if tag != "sum"} == set(get_args(o.Single))


@pytest.mark.parametrize("table", EVERY, ids=TAGS)
def test_every_objective_says_what_it_is(table: type) -> None:
    for fact in ("paper", "formula", "optimum", "when", "fails"):
        assert getattr(table, fact).strip(), fact
    assert (table.__doc__ or "").strip()
    assert table.when.endswith(".")
    assert table.fails.endswith(".")
    if issubclass(table, Formula):
        assert table.kind in ("pairs", "ratings", "rankings", "demos")
        assert table.needs <= {"score", "sharpness", "mismatched"}


@pytest.mark.parametrize("table", EVERY, ids=TAGS)
def test_every_key_has_a_meaning_and_numbers_a_bound(table: type) -> None:
    shape = msgspec.json.schema(table)["$defs"][table.__name__]["properties"]
    for name, key in shape.items():
        if name == "name":
            continue
        assert "description" in key, name
        inner = next((k for k in key.get("anyOf", []) if k["type"] == "number"), key)
        if inner.get("type") == "number" and (table, name) != (o.BetaDPO, "centre"):
            assert {"minimum", "exclusiveMinimum"} & set(inner), name


@pytest.mark.parametrize("table", EVERY, ids=TAGS)
def test_there_and_back(table: type) -> None:
    value = Sum((o.DPO(beta=0.2), o.NLL()), (1.0, 0.2)) if table is Sum else table()
    assert read(msgspec.json.encode(value).decode()) == value
    with pytest.raises(AttributeError):
        value.beta = 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"name": "dpo", "beta": 0}', "> 0.*beta"),
        ('{"name": "dpo", "flip": 0.5}', "< 0.5.*flip"),
        ('{"name": "robust", "flip": 0.7}', "flip"),
        ('{"name": "dpo", "bta": 1}', "bta"),
        ('{"name": "simpo", "gamma": 1, "gamma_ratio": 0.1}', "gamma and gamma_ratio"),
        ('{"name": "alpha_po", "gamma": 1, "gamma_ratio": 0.1}', "gamma and gamma_ratio"),
        ('{"name": "f_dpo", "alpha": 0.3}', "alpha has an effect only"),
        ('{"name": "f_dpo", "divergence": "kl"}', "kl"),
        ('{"name": "sum", "parts": []}', "length >= 1"),
        ('{"name": "sum", "parts": [{"name": "dpo"}], "weights": [1, 2]}', "1 parts need as many weights, not 2"),
        ('{"name": "sum", "parts": [{"name": "dpo"}], "weights": [0]}', "above 0"),
        ('{"name": "sum", "parts": [{"name": "sum", "parts": [{"name": "dpo"}]}]}', "'sum'"),
        ('{"name": "dop"}', "dop"),
    ],
)
def test_refused(text: str, sentence: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=sentence):
        read(text)


def test_refused_in_python() -> None:
    with pytest.raises(ValueError, match="one half"):
        o.DPO(flip=0.5)
    with pytest.raises(ValueError, match="one half"):
        o.RobustDPO(flip=-0.1)
    with pytest.raises(ValueError, match="cannot stand in a sum"):
        Sum((Sum((o.DPO(),)),))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        Sum(())


def test_sum_and_its_parts() -> None:
    found = read('{"name": "sum", "weights": [1, 0.2], "parts": [{"name": "dpo"}, {"name": "nll"}]}')
    assert parts(found) == [(1.0, o.DPO()), (0.2, o.NLL())]
    assert parts(read('{"name": "sum", "parts": [{"name": "dpo"}, {"name": "nll"}]}'))[1] == (1.0, o.NLL())
    assert parts(o.IPO()) == [(1.0, o.IPO())]


def test_presets_are_what_a_file_can_say() -> None:
    for preset in PRESETS.values():
        assert read(msgspec.json.encode(preset).decode()) == preset


def test_aggregates_are_read() -> None:
    for name in ("sum", "ld", "sampo", "decay"):
        part = msgspec.json.decode(f'{{"name": "{name}"}}', type=Aggregate)
        assert len(part(5, 3, 0)) == 5
        assert part.paper


def test_reading_configuration_loads_no_torch() -> None:
    code = "import sys, preftune.objective, preftune.objective.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
