"""What is odd about a model's files is refused, or told by name; and what its family does beside is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from making import save_model, tiny
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel

from preftune.errors import UserError
from preftune.model.load import Loaded, load_config, load_model
from preftune.model.probe import not_followed
from preftune.model.weights import WholeModel

LAYERS = {"model.layers.3.mlp.up_proj.weight": torch.ones(48, 32)}
CARRIED = {  # what a folder holds besides -> what is told
    "prediction layer": {**LAYERS, "model.layers.3.eh_proj.weight": torch.ones(32, 64)},
    "prediction head": {"mtp.fc.weight": torch.ones(32, 64), "mtp.layers.0.norm.weight": torch.ones(32)},
    "pictures": {"vision_tower.layers.0.mlp.up_proj.weight": torch.ones(4, 4), "projector.weight": torch.ones(4, 4)},
    "nothing": {"model.rotary_emb.inv_freq": torch.ones(4)},
}


def loaded(folder: Path) -> Loaded:
    return load_model(str(folder), revision=None, weights="float32", device=torch.device("cpu"), location="model.path")


def saved(module: PreTrainedModel, folder: Path, **more: torch.Tensor) -> Path:
    module.save_pretrained(folder)
    save_file({**load_file(folder / "model.safetensors"), **more}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", CARRIED)
def test_weights_that_are_not_trained_are_told_by_name(kind: str, tmp_path: Path) -> None:
    remarks = loaded(saved(tiny(), tmp_path, **CARRIED[kind])).remarks
    names = remarks["weights_left_out"][1]["names"] if remarks else []
    assert names == ([] if kind == "nothing" else sorted(CARRIED[kind]))


@pytest.mark.filterwarnings("ignore")
def test_weights_that_a_family_passes_over_are_told_too(tmp_path: Path) -> None:
    module, text = tiny("qwen3_next", full_attention_interval=2), "3 weights .* will lack them: mtp"
    more = {f"mtp.{name}.weight": torch.ones(32, 32) for name in ("fc", "norm", "layers.0.mlp.up_proj")}
    remarks = loaded(saved(module, tmp_path, **more)).remarks
    assert re.search(text, remarks["weights_left_out"][0])


def test_whole_numbers_and_zeros_are_seen(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    remarks = loaded(saved(tiny(), tmp_path / "a", **{name: torch.zeros(48, 32)})).remarks
    assert remarks["weights_of_zero"][1] == {"names": [name]}
    with pytest.raises(UserError, match="holds whole numbers"):
        loaded(saved(tiny(), tmp_path / "b", **{name: torch.ones(48, 32, dtype=torch.int8)}))


@pytest.mark.parametrize("peft_keys", [{"base_model_name_or_path": "elsewhere"}, {}])
def test_an_adapter_beside_a_model_is_refused(peft_keys: dict, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **peft_keys}))
    with pytest.raises(UserError, match="holds an adapter"):
        loaded(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("qwen2_5_vl", "more than text .*vision"),
        ("llava", "more than text .*vision"),
        ("qwen2_audio", "more than text .*audio"),
        ("t5", "t5 is no causal language model"),
        ("distilbert", "distilbert is no causal language model"),
    ],
)
def test_a_model_of_another_kind_is_refused_in_words(family: str, text: str, tmp_path: Path) -> None:
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=text):
        load_config(str(tmp_path), None, "model.path")


@pytest.mark.filterwarnings("ignore")
def test_numbers_without_dimensions_are_weights_too(tmp_path: Path) -> None:
    weights = WholeModel(loaded(saved(tiny("apertus"), tmp_path)).module)
    scalar = next(tensor for tensor in weights.module.state_dict().values() if tensor.dim() == 0)
    digest = weights.digest()
    scalar.add_(1)
    assert weights.digest() != digest
    scalar.sub_(1)
    assert weights.digest() == digest


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "keys", "text"),
    [
        ("mixtral", {"output_router_logits": True}, "adds .* to its loss"),
        ("qwen3_moe", {"output_router_logits": True}, "adds .* to its loss"),
        ("olmoe", {"output_router_logits": True}, "adds .* to its loss"),
        ("mixtral", {"router_jitter_noise": 0.2}, "router_jitter_noise = 0.2"),
        ("falcon", {"hidden_dropout": 0.3}, "hidden_dropout = 0.3"),
        ("gpt2", {}, "resid_pdrop = 0.1"),
        ("llama", {}, ""),
        ("mixtral", {}, ""),
    ],
)
def test_what_training_does_not_follow_is_told(family: str, keys: dict, text: str) -> None:
    module, drawn = tiny(family, **keys), torch.random.get_rng_state()
    sentences = not_followed(module)
    assert len(sentences) == bool(text)
    assert all(re.search(text, sentence) for sentence in sentences)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert not any(part.training for part in module.modules())
