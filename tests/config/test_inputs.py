"""What a run reads is known from its keys, so that no `--force` deletes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import save_model
from transformers import AutoModelForCausalLM

from preftune import Data, Model, Reward, Run
from preftune.config.inputs import inputs, refuse_inside
from preftune.config.load import load
from preftune.errors import UserError

WORDS = {
    "model.path": ["model.path=PATH/model"],
    "model.tokenizer": ["model.tokenizer=PATH/model"],
    "adapter.path": ["adapter.path=PATH/model"],
    "reference.path": ["reference.path=PATH/model"],
    "data.train": ['data.train=["PATH/rows.jsonl"]'],
    "data.evaluate": ["data.evaluate=PATH/*.jsonl"],
    "data.template": ["data.template=PATH/rows.jsonl"],
    "reward.model": ["reward.model=PATH/model"],
    "reward.function": ["reward.function=PATH/code.py:name"],
    "reward.judge": ["reward.judge=PATH/code.py:name"],
    "value.path": ["value.path=PATH/model"],
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run's folder with something in it for every key."""
    path = tmp_path / "run"
    (path / "model").mkdir(parents=True)
    for name in ("rows.jsonl", "code.py", "model/config.json"):
        (path / name).write_text("{}")
    return path


@pytest.mark.parametrize("key", WORDS)
def test_nothing_that_a_run_reads_lies_in_what_it_replaces(key: str, out: Path, tmp_path: Path) -> None:
    run = load(None, [word.replace("PATH", str(out)) for word in WORDS[key]])
    with pytest.raises(UserError, match=rf"^{key}: .* lies in .*, which --force replaces\. Choose another `out`"):
        refuse_inside(run, out)
    refuse_inside(run, tmp_path / "other")
    (tmp_path / "link").symlink_to(out)
    linked = load(None, [word.replace("PATH", str(tmp_path / "link")) for word in WORDS[key]])
    for folder in (out, tmp_path / "link"):
        with pytest.raises(UserError, match=key):
            refuse_inside(linked, folder)


def test_every_key_that_says_where_something_is_is_asked(out: Path) -> None:
    from preftune.config.explain import keys

    assert {key.name for key in keys() if key.location} - WORDS.keys() == {"model.revision"}
    several = Run(reward=(Reward(verify="exact"), Reward(model=str(out / "model"))))
    assert [key for key, _ in inputs(several)] == ["reward.model"]


def test_what_leads_there_by_a_link_or_an_adapter(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "config.json").symlink_to(out / "model" / "config.json")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"base_model_name_or_path": str(out / "model"), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "adapter_model.safetensors").write_text("")
    for name in ("linked", "adapter"):
        with pytest.raises(UserError, match=r"reference\.path: .* lies in"):
            refuse_inside(load(None, [f"reference.path={tmp_path / name}"]), out)
    monkeypatch.chdir(tmp_path)  # a folder that holds `out` is not in it, and names that are no files are none
    refuse_inside(Run(model=Model(path="."), data=Data(train="org/rows:train", evaluate=[{"prompt": "a"}])), out)


def test_a_loaded_model_is_what_it_was_loaded_from(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "run" / "model"))
    with pytest.raises(UserError, match=r"model\.path"):
        refuse_inside(Run(model=Model(path=model)), tmp_path / "run")
