"""Objectives as configuration: names, bounds, sentences, sums, and no torch until one is called."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import msgspec
import pytest
from objective.cases import ones

from preftune import objective as o
from preftune.config.load import load
from preftune.config.resolve import resolve
from preftune.errors import UserError
from preftune.objective.presets import NAMES, PRESETS
from preftune.tokens.aggregate import Aggregate

EVERY = get_args(o.Objective)
TAGS = [table.__struct_config__.tag for table in EVERY]


def read(text: str) -> o.Objective:
    return msgspec.json.decode(text, type=o.Objective)


def test_names() -> None:
    assert len(set(TAGS)) == 45
    assert (
        [type(read(f'{{"name": "{tag}"}}')) for tag in o.BY_NAME]
        == [*o.BY_NAME.values()]
        == [*get_args(o.Single | o.Online)]
    )


@pytest.mark.parametrize("table", EVERY, ids=TAGS)
def test_every_objective_says_what_it_is(table: type) -> None:
    for fact in ("paper", "formula", "optimum", "when", "fails"):
        assert getattr(table, fact).strip(), fact
    assert (table.__doc__ or "").strip()
    assert table.when.endswith(".")
    assert table.fails.endswith(".")


@pytest.mark.parametrize("table", EVERY, ids=TAGS)
def test_every_key_has_a_meaning_and_numbers_a_bound(table: type) -> None:
    shape = msgspec.json.schema(table)["$defs"][table.__name__]["properties"]
    for name, key in shape.items():
        if name == "name":
            continue
        assert "description" in key, name
        inner = next((k for k in key.get("anyOf", []) if k["type"] == "number"), key)
        if inner.get("type") == "number":
            assert {"minimum", "exclusiveMinimum"} & set(inner), name


@pytest.mark.parametrize("table", EVERY, ids=TAGS)
def test_there_and_back(table: type) -> None:
    value = o.Sum((o.DPO(beta=0.2), o.NLL()), (1.0, 0.2)) if table is o.Sum else table()
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
        ('{"name": "sum", "parts": [{"name": "dpo"}, {"name": "reward"}]}', "one kind of model"),
        ('{"name": "reward", "center": -1}', ">= 0.*center"),
        ('{"name": "dop"}', "dop"),
        ('{"name": "ppo", "lam": 1.1}', "<= 1.*lam"),
        ('{"name": "grpo", "scale": "std"}', "std"),
        ('{"name": "sum", "parts": [{"name": "rloo"}]}', "'rloo'"),
    ],
)
def test_refused(text: str, sentence: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=sentence):
        read(text)


def test_sum_and_its_parts() -> None:
    found = read('{"name": "sum", "weights": [1, 0.2], "parts": [{"name": "dpo"}, {"name": "nll"}]}')
    assert o.parts(found) == [(1.0, o.DPO()), (0.2, o.NLL())]
    assert o.parts(read('{"name": "sum", "parts": [{"name": "dpo"}, {"name": "nll"}]}'))[1] == (1.0, o.NLL())
    assert o.parts(o.IPO()) == [(1.0, o.IPO())]


def test_presets_are_what_a_file_can_say() -> None:
    for name, preset in PRESETS.items():
        assert read(msgspec.json.encode(preset.objective).decode()) == preset.objective
        assert load(None, [f"objective={name}"]).objective == preset.objective
        assert preset.meaning.endswith(".")
        assert preset.paper


@pytest.mark.parametrize("name", NAMES)
def test_names_from_elsewhere_are_words_that_make_a_run(name: str) -> None:
    assert name not in {*TAGS, *PRESETS}
    online = ["rollout.responses=8", "reward.verify=exact", "data.train=prompts.jsonl"]
    run = load(None, NAMES[name].split())
    resolve(load(None, NAMES[name].split() + online * (o.parts(run.objective)[0][1].kind == "rollouts")))
    with pytest.raises(UserError) as raised:
        load(None, [f"objective={name.upper().replace('_', '-')}"])
    assert f"Write {NAMES[name]}." in str(raised.value)


def test_a_mixture_by_its_name_has_no_keys() -> None:
    with pytest.raises(UserError, match=r"objective\.beta: there is no such key in mpo, which is a sum"):
        load(None, ["objective=mpo", "objective.beta=0.2"])


VARIANTS = {
    "ipo": (o.IPO(tau=0.2), "per token", "2.5"),
    "ipo, summed": (o.IPO(tau=0.2, per_token=False), "summed", "2.5 nats"),
    "simpo, gamma": (o.SimPO(beta=10, gamma=3), "gamma = 3,", "gamma / beta = 0.3"),
    "simpo, ratio": (o.SimPO(beta=10, gamma_ratio=0.3), "gamma = 3,", "gamma / beta = 0.3"),
    "alpha_po": (o.AlphaPO(), "gamma = 0.25,", "gamma / beta = 0.1"),
    "ln_dpo": (o.LengthNormalizedDPO(), "beta = 5", "per token"),
    "dpo": (o.DPO(), "summed", "end token included"),
    "cdpo": (o.DPO(flip=0.1), "0.1", "cDPO"),
    "robust": (o.RobustDPO(), "1 - 2 flip", "not bounded below"),
    "orpo": (o.ORPO(), "0.1 times", "response alone"),
    "r_dpo": (o.RDPO(), "alpha = 0.05", "shortens"),
    "dpo_positive": (o.DPOPositive(), "inside beta", ""),
    "sppo": (o.SPPO(), "half", "+-500 nats"),
    "cal_dpo": (o.CalDPO(), "half", "not before h"),
    "exo": (o.EXO(), "0.001", "policy || label"),
    "hinge": (o.Hinge(), "RSO", "slic"),
    "slic": (o.SLiC(), "summed", "of chosen, per token"),
    "cpo": (o.CPO(), "summed", "per token"),
    "apo_zero": (o.APOZero(), "1 is added", ""),
    "apo_down": (o.APODown(), "1 is added", ""),
    "f_dpo, alpha": (o.FDPO(divergence="alpha"), "the paper's", "1 minus"),
    "odpo": (o.ODPO(), "1 log(s_w - s_l)", ""),
    "rpo": (o.RPO(), "scores || policy", "regularized_dpo"),
    "rpo, reverse": (o.RPO(reverse=True), "policy || scores", "irpo"),
    "aot": (o.AOT(), "paired", "whole step"),
    "aot, unpaired": (o.AOT(paired=False), "unpaired", "whole step"),
    "beta_dpo": (o.BetaDPO(), "0.6 a nat", "0.9"),
    "wpo": (o.WPO(), "stop at 1", "no gradient"),
    "kto": (o.KTO(bad_weight=3), "1 good, 3 bad", "whole step"),
    "bco": (o.BCO(), "the step's own", "no running mean"),
    "qrpo": (o.QRPO(beta=1), "0.5413", "exact"),
    "dro": (o.DRO(), "one V", ""),
    "plackett_luce": (o.PlackettLuce(), "tied", ""),
    "info_nca": (o.InfoNCA(), "score / 0.01", ""),
    "nca": (o.NCA(), "score / 0.01", "1 / K"),
    "ppo": (o.PPO(lam=0.9), "lam = 0.9", "not whitened"),
    "rloo": (o.RLOO(), "in the reward", "each token"),
    "grpo": (o.GRPO(), "not divided by the group's", "the phase's tokens"),
    "grpo, group": (o.GRPO(scale="group"), "the group's standard deviation", "not a loss"),
    "grpo, sequence": (o.GRPO(norm="sequence"), "grpo: the KL is in the reward", "each response's tokens"),
    "gspo": (o.GSPO(), "gspo: the KL is in the reward", "each response's tokens"),
    "cispo": (o.CISPO(), "cispo: the KL is in the reward", "the phase's tokens"),
    "sapo": (o.SAPO(norm="sum"), "sapo: the KL is in the reward", "a sum over tokens"),
    "reinforce_pp": (o.ReinforcePP(), "whitened over the phase", ""),
    "reward": (o.Reward(), "last token", "end token"),
    "reward, margin": (o.Reward(margin=0.5), "0.5 times", "rows' scores"),
    "nll": (o.NLL(), "rows count alike", ""),
    "nll, token": (o.NLL("token"), "all tokens of the step", "length"),
    "nll, sum": (o.NLL("sum"), "a sum over the tokens", "length"),
}
PLAIN = {o.HyPO, o.ChiPO, o.REBEL, o.SimPER, o.DrDPO, o.Sum, o.FDPO}  # one formula goes by the name, or (f_dpo) most


@pytest.mark.parametrize("name", VARIANTS)
def test_a_name_with_several_meanings_says_which_it_has(name: str) -> None:
    objective, *parts_of_it = VARIANTS[name]
    assert objective.variant.startswith(name.partition(",")[0].replace("cdpo", "dpo"))
    assert all(part in objective.variant for part in parts_of_it), objective.variant
    assert "\n" not in objective.variant
    assert len(objective.variant) < 160


def test_every_objective_states_its_variant_or_has_one_formula() -> None:
    assert {type(objective) for objective, *_ in VARIANTS.values()} | PLAIN == set(EVERY)
    assert {table for table in EVERY if table is not o.Sum and not table().variant} == PLAIN - {o.Sum}
    assert o.Sum((o.IPO(), o.HyPO(), o.NLL())).variant == f"{o.IPO().variant} · {o.NLL().variant}"


def test_aggregates_are_read() -> None:
    for name in ("sum", "mean", "ld", "sampo", "decay"):
        part = msgspec.json.decode(f'{{"name": "{name}"}}', type=Aggregate)
        assert len(part(ones(5), 3, 0)) == 5
        assert part.paper


def test_reading_configuration_loads_no_torch() -> None:
    code = "import sys, preftune.objective, preftune.objective.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
