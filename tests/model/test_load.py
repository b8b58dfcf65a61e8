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
from preftune.model.scalar import load_scorer
from preftune.model.shapes import meta_module, shapes_of
from preftune.model.weights import WholeModel

UP = "model.layers.0.mlp.up_proj.weight"
LAYERS = {"model.layers.3.mlp.up_proj.weight": torch.ones(48, 32)}
CARRIED = {  # what a folder holds besides -> what is told
    "prediction layer": {**LAYERS, "model.layers.3.eh_proj.weight": torch.ones(32, 64)},
    "prediction head": {"mtp.fc.weight": torch.ones(32, 64), "mtp.layers.0.norm.weight": torch.ones(32)},
    "pictures": {"vision_tower.layers.0.mlp.up_proj.weight": torch.ones(4, 4), "projector.weight": torch.ones(4, 4)},
    "value heads": {"v_head.summary.weight": torch.ones(1, 32), "value_head.weight": torch.ones(1, 32)},
    "caches of older files": {
        f"model.layers.0.self_attn.{name}": torch.ones(4)
        for name in ("rotary_emb.cos_cached", "rotary_emb.sin_cached", "masked_bias", "k_scale")
    },
    "masks": {"model.layers.0.self_attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool)},
    "nothing": {
        "model.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    },
}
LAYER = "model.layers.0.self_attn"
INSIDE = {  # what a folder holds besides -> what is said of it
    "bias": ({f"{LAYER}.q_proj.bias": torch.ones(32)}, "does not use: .*q_proj.bias.*attention_bias"),
    "without prefix": ({"layers.0.self_attn.q_proj.bias": torch.ones(32)}, "does not use: layers.0.*q_proj.bias"),
    "norm": ({f"{LAYER}.q_norm.weight": torch.ones(8)}, "does not use: .*q_norm.weight"),
    "output layer": ({"lm_head.bias": torch.ones(64)}, "does not use: lm_head.bias"),
    "scale": ({f"{LAYER}.q_proj.weight_scale": torch.ones(())}, "does not use: .*q_proj.weight_scale"),
    "adapter": ({f"{LAYER}.q_proj.lora_{side}.weight": torch.ones(4, 32) for side in "AB"},
                "does not use: .*lora_A.* merge"),
}  # fmt: skip


def loaded(model: Path | PreTrainedModel) -> Loaded:
    path = str(model) if isinstance(model, Path) else model
    return load_model(path, revision=None, weights="float32", device=torch.device("cpu"), location="model.path")


def saved(module: PreTrainedModel, folder: Path, **more: torch.Tensor | None) -> Path:
    """The folder of a model with other tensors; None deletes one."""
    module.save_pretrained(folder)
    tensors = {**load_file(folder / "model.safetensors"), **more}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", CARRIED)
def test_weights_that_are_not_trained_are_told_by_name(kind: str, tmp_path: Path) -> None:
    remarks = loaded(saved(tiny(), tmp_path, **CARRIED[kind])).remarks
    names = remarks["weights_left_out"][1]["names"] if remarks else []
    assert names == ([] if kind == "nothing" else sorted(CARRIED[kind]))


@pytest.mark.parametrize("kind", INSIDE)
def test_weights_inside_of_layers_that_the_model_does_not_use_are_refused(kind: str, tmp_path: Path) -> None:
    """The model that is trained would be another than that of the files."""
    more, says = INSIDE[kind]
    with pytest.raises(UserError, match=says):
        loaded(saved(tiny(), tmp_path, **more))


def configured(folder: Path, **keys: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))
    return folder


@pytest.mark.parametrize("of_scores", [False, True])
def test_an_attention_that_the_config_names_is_not_asked_for(of_scores: bool, tmp_path: Path) -> None:
    saved(tiny(), tmp_path)
    for keys in ({"_attn_implementation": "flash_attention_2"}, {"attn_implementation": "flash_attention_3"}):
        configured(tmp_path, **keys)
        shapes = shapes_of(meta_module(load_config(str(tmp_path), None, "model.path")))
        where = {"revision": None, "weights": "float32", "device": torch.device("cpu"), "location": "model.path"}
        module = load_scorer(str(tmp_path), fresh=True, **where).module if of_scores else loaded(tmp_path).module
        assert not str(module.config._attn_implementation).startswith("flash")
        assert shapes == shapes_of(tiny())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["float32", "nf4"])
def test_plain_numbers_that_the_config_calls_quantized_are_refused(weights: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = configured(saved(tiny(), tmp_path), quantization_config=quantized)
    with pytest.raises(UserError, match=r"quantized by its config.json .bitsandbytes.*take quantization_config out"):
        load_model(str(folder), revision=None, weights=weights, device=torch.device("cpu"), location="model.path")


@pytest.mark.filterwarnings("ignore")
def test_numbers_of_few_bits_need_a_config_that_scales_them(tmp_path: Path) -> None:
    module, name = tiny(), "model.layers.0.mlp.up_proj.weight"
    plain = module.get_parameter(name).detach()
    scale = plain.abs().max() / 448
    more = {name: (plain / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.reshape(1, 1)}
    saved(module, tmp_path, **more)
    with pytest.raises(UserError, match=r"up_proj.weight holds numbers of few bits \(F8_E4M3\)"):
        loaded(tmp_path)
    keys = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    modules = [n for n, p in module.named_modules() if isinstance(p, torch.nn.Linear) and f"{n}.weight" != name]
    configured(tmp_path, quantization_config={**keys, "modules_to_not_convert": modules})
    if not torch.cuda.is_available():  # where it is made floats
        assert float((loaded(tmp_path).module.get_parameter(name) - plain).abs().max()) < 0.07 * float(
            plain.abs().max()
        )


@pytest.mark.filterwarnings("ignore")
def test_weights_that_a_family_passes_over_are_told_too(tmp_path: Path) -> None:
    module, text = tiny("qwen3_next", full_attention_interval=2), "3 weights .* will lack them: mtp"
    more = {f"mtp.{name}.weight": torch.ones(32, 32) for name in ("fc", "norm", "layers.0.mlp.up_proj")}
    remarks = loaded(saved(module, tmp_path, **more)).remarks
    assert re.search(text, remarks["weights_left_out"][0])


def test_zeros_are_told(tmp_path: Path) -> None:
    remarks = loaded(saved(tiny(), tmp_path, **{UP: torch.zeros(48, 32)})).remarks
    assert remarks["weights_of_zero"][1] == {"names": [UP]}


@pytest.mark.parametrize(
    ("name", "tensor", "text"),
    [
        ("model.norm.weight", None, "has no weights for model.norm.weight"),
        ("model.norm.weight", torch.ones(31), "model.norm.weight is 31 in its weights, but 32 by its config"),
        ("model.layers.3.mlp.up_proj.weight", torch.ones(48, 32), "has no place for, such as model.layers.3"),
        ("model.norm.weight", torch.full((32,), torch.nan), "model.norm.weight holds NaN"),
        (UP, torch.ones(48, 32, dtype=torch.int8), "holds whole numbers"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name: str, tensor: torch.Tensor | None, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=text):
        loaded(saved(tiny(), tmp_path, **{name: tensor}))


def test_a_loaded_model_is_taken_as_it_is() -> None:
    module = tiny("llama", attention_dropout=0.5, tie_word_embeddings=True).bfloat16().train()
    module.tie_weights()
    angles, embedding = module.base_model.rotary_emb.inv_freq, module.get_input_embeddings().weight
    assert loaded(module).module is module
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert module.get_input_embeddings().weight is module.get_output_embeddings().weight is embedding
    assert module.base_model.rotary_emb.inv_freq is angles
    assert not module.training
    assert module.config.attention_dropout == 0.5  # off by mode alone, and exported as it came
    with torch.no_grad():
        embedding[3] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        loaded(module)
    with pytest.raises(UserError, match="LlamaModel is no causal language model"):
        loaded(module.base_model)


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
