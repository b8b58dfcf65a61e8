"""What only Python can hold passes through a run as it is, and its record says what it was."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from making import tiny

from preftune import DPO, Data, Model, Run, UserError
from preftune.config.load import dump
from preftune.config.resolve import resolve
from preftune.objective.responses import Pairs
from preftune.run.identity import compare, identity

ROWS = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 40


@pytest.fixture
def loaded() -> Model:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return Model(path=tiny(), tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())))


def test_rows_model_and_tokenizer_stay_what_they_are_and_a_record_says_what_they_were(loaded: Model) -> None:
    run = resolve(resolve(Run(model=loaded, data=Data(train=ROWS, evaluate=iter(ROWS[:3])))))
    assert run.data.train is ROWS
    assert run.data.evaluate == ROWS[:3]  # read once, so that it can be read again
    assert run.model == loaded
    tree = tomllib.loads(dump(run))
    assert tree["data"]["train"] == "(40 rows given in Python)"
    assert (tree["model"]["path"], tree["model"]["tokenizer"]) == (
        "(LlamaForCausalLM given in Python)",
        f"({type(loaded.tokenizer).__name__} given in Python)",
    )


def test_any_iterable_of_mappings_is_rows() -> None:
    datasets = pytest.importorskip("datasets")
    held = datasets.Dataset.from_list(ROWS)
    assert resolve(Run(data=Data(train=held))).data.train is held
    assert tomllib.loads(dump(Run(data=Data(train=held))))["data"]["train"] == "(40 rows given in Python)"
    assert tomllib.loads(dump(Run(data=Data(train=iter(ROWS)))))["data"]["train"] == "(rows given in Python)"
    with pytest.raises(UserError, match=r"data\.train: cannot be of type DatasetDict.*one split"):
        resolve(Run(data=Data(train=datasets.DatasetDict(train=held))))
    with pytest.raises(UserError, match=r"optim\.lr"):  # all else is checked as in a file
        resolve(Run(data=Data(train=ROWS), optim={"lr": -1}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("field", "value"), [("tokenizer", None), ("revision", "main")])
def test_a_loaded_model_needs_its_tokenizer_and_has_no_revision(loaded: Model, field: str, value: object) -> None:
    from msgspec.structs import replace

    with pytest.raises(UserError, match=rf"model\.{field}: .*loaded"):
        resolve(Run(model=replace(loaded, **{field: value})))


def test_an_objective_of_ones_own_is_recorded_by_name_and_source() -> None:
    own = pytest.importorskip("preftune.objective.own")

    def half_margin(pairs: Pairs) -> object:
        return -pairs.margin / 2

    half_margin.reads = {"reference"}
    run = resolve(resolve(Run(objective=half_margin)))
    assert run.objective == own.own_objective(half_margin)
    recorded = tomllib.loads(dump(run))["objective"]
    assert recorded == {"name": "half_margin", "source": run.objective.source}
    known = identity(run, {})
    assert {key: known[f"objective.{key}"] for key in recorded} == recorded


def test_the_identity_of_a_run_is_what_decides_its_result() -> None:
    left_out = {
        "model.path", "model.revision", "model.tokenizer", "data.train", "data.evaluate", "data.template", "out",
        "reference.path", "reference.store", "evaluate.every", "save.every", "save.keep", "track",
    }  # fmt: skip
    known = identity(resolve(Run(objective=DPO(beta=0.2))), {"model": "1"})
    assert not known.keys() & left_out
    assert {"objective.name", "reference.kind", "optim.lr", "seed", "batch.tokens"} <= known.keys()
    assert (known["objective.beta"], known["optim.betas"], known["model"]) == (0.2, [0.9, 0.999], "1")


def test_a_change_is_shown_where_it_is(tmp_path: Path) -> None:
    """Of long values too, such as a list of rewards that differ in a weight."""
    before = {"reward": [{"function": "rewards.py:short", "weight": 0.0}], "data.train": "a" * 64, "seed": 0}
    now = {"reward": [{"function": "rewards.py:short", "weight": 1.0}], "data.train": "b" * 64, "seed": 1}
    (tmp_path / "identity.json").write_text(json.dumps(before))
    with pytest.raises(UserError) as raised:
        compare(tmp_path / "identity.json", now, [])
    for line in (
        "reward: was ...t': 0.0}]... -> ...t': 1.0}]....", f"data.train: was {'a' * 16}... -> {'b' * 16}....",
        "seed: was 0 -> 1.",
    ):  # fmt: skip
        assert line in str(raised.value)
