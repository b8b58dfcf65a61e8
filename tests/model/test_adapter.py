"""Adapters in the trie engine say and learn what peft's own layers do, and begin as the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from making import groups, save_model, tiny
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from preftune import folders
from preftune.errors import UserError
from preftune.model.adapter import AdapterWeights, described, lora_layers, shaken
from preftune.model.adapter_files import adapter_at
from preftune.model.as_made import as_made, take_back
from preftune.model.config import Adapter
from preftune.model.fuse import fused_parts
from preftune.model.plain import plain_logp
from preftune.model.policy import Policy, trainable, wrap
from preftune.model.put_adapter import begin_adapter, go_on
from preftune.pack.batch import Batch
from preftune.tokens.tokenizer import load_tokenizer

FAMILIES = [
    "llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
    "olmo2", "smollm3", "granite", "starcoder2", "glm4", "cohere", "cohere2", "gpt2", "gpt_neox", "opt", "gpt_oss",
    "bloom", "falcon", "stablelm", "lfm2",
]  # fmt: skip
CASES = [(family, Adapter(rank=4, alpha=8)) for family in FAMILIES] + [
    ("llama", Adapter(rank=4, kind="dora")),
    ("gpt2", Adapter(rank=4, kind="dora")),
    ("llama", Adapter(rank=4, scaling="root")),
    ("llama", Adapter(rank=4, targets=("q_proj", "down_proj"))),
    ("llama", Adapter(rank=4, targets=("layers.1.mlp.up_proj",))),
    ("llama", Adapter(rank=4, start="pissa")),
    ("gemma2", Adapter(rank=4, start="olora")),
    ("llama", Adapter(rank=4, start="orthogonal")),
    ("llama", Adapter(rank=4, train_also=("lm_head",))),
    ("gemma", Adapter(rank=4, train_also=("lm_head", "embed_tokens"))),
    ("qwen3_moe", Adapter(rank=4, targets=("q_proj", "gate_up_proj", "down_proj"))),
    ("mixtral", Adapter(rank=4, targets=("gate_up_proj", "down_proj"))),
    ("gpt_oss", Adapter(rank=4, targets=("o_proj", "gate_up_proj"))),
]


def adapted(module: PreTrainedModel, table: Adapter) -> Policy:
    """A policy with an adapter, as a run makes it."""
    policy = wrap(module.requires_grad_(False), "auto")[0]
    digest = policy.weights.digest()
    take_back(module, "eager")
    weights = begin_adapter(module, table, base="here", revision=None, digest=digest, seed=0)
    return trainable(replace(wrap(module, policy.layout)[0], weights=weights), checkpointing=False)


def gradients(policy: Policy, answer: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a sum over tokens in which each counts otherwise, and otherwise in each response."""
    policy.weights.zero_grad()
    (answer * torch.linspace(0.5, 1.5, len(answer)).cos()).sum().backward()
    found = {name: p.grad.clone() for name, p in policy.weights.trained().items() if p.grad is not None}
    policy.weights.zero_grad()
    return found


def by_peft(policy: Policy, batch: Batch) -> torch.Tensor:
    """(members,) by the family's forward pass with peft's layers, one response at a time, with gradient."""
    answers = []
    with as_made(policy.module, "eager"):
        for row in batch.groups:
            for response in row.responses:
                ids = torch.tensor([*row.prompt, *response])
                logits = policy.module(input_ids=ids[None], use_cache=False).logits[0, -len(response) - 1 : -1]
                answers.append(torch.log_softmax(logits, -1).gather(1, ids[-len(response) :, None])[:, 0])
    return torch.cat(answers)


@pytest.mark.filterwarnings("ignore")  # transformers warns about missing kernels of some families
@pytest.mark.parametrize(("family", "table"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_engine_says_and_learns_what_peft_does(family: str, table: Adapter) -> None:
    policy = adapted(tiny(family), table)
    batch = policy.batch(groups(4, seed=1, prompt=(3, 20), response=(1, 9)))
    assert isinstance(policy.weights, AdapterWeights)
    with shaken(policy.weights):
        ours, expected = policy.read(batch), by_peft(policy, batch)
        assert float((ours - expected).detach().abs().max()) < 5e-5
        own, peft = gradients(policy, ours), gradients(policy, expected)
    assert own.keys() == peft.keys() == policy.weights.learned
    largest = max(float(g.abs().max()) for g in peft.values())
    assert max(float((own[name] - g).abs().max()) for name, g in peft.items()) < 5e-5 * largest
    policy.weights.activate()
    with torch.no_grad():  # what training begins from is another number, so the comparison above could have failed
        assert float((policy.read(batch) - ours.detach()).abs().max()) > 0.05


@pytest.mark.parametrize("start", ["zero", "gaussian", "orthogonal", "pissa", "olora"])
def test_every_start_begins_as_the_model_and_is_taken_off_to_the_bit(start: str) -> None:
    module = tiny().requires_grad_(False)
    before = wrap(module, "auto")[0]
    batch = before.batch(groups(3, seed=2))
    with torch.no_grad():
        loaded = before.read(batch)
        policy = adapted(module, Adapter(rank=4, start=start))  # type: ignore[arg-type]
        assert isinstance(policy.weights, AdapterWeights)
        assert float((policy.read(batch) - loaded).abs().max()) < 2e-5
        if start in ("pissa", "olora"):
            assert all(float(part.lora_B["default"].weight.abs().max()) > 0 for part in lora_layers(module).values())
        off = replace(policy, weights=policy.weights.as_started())
        assert float((off.read(batch) - loaded).abs().max()) < 1e-6
        assert float((policy.read(batch) - loaded).abs().max()) < 2e-5
    assert policy.weights.digest() == off.weights.digest() == before.weights.digest() or start  # the base's


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # peft asks transformers for it by its old name
@pytest.mark.parametrize("start", ["zero", "pissa"])
@pytest.mark.parametrize("scaling", ["rank", "root"])
def test_what_is_exported_is_what_plain_peft_loads(tmp_path: Path, start: str, scaling: str) -> None:
    save_model(tmp_path / "base")
    base = lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")  # noqa: E731
    policy = adapted(base(), Adapter(rank=4, start=start, scaling=scaling))  # type: ignore[arg-type]
    batch = policy.batch(groups(3, seed=2))
    with torch.no_grad():
        for name, parameter in policy.weights.trained().items():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))), alpha=0.1)
        ours = policy.read(batch)
    with folders.folder(tmp_path / "adapter") as into:
        policy.weights.export(into, load_tokenizer(str(tmp_path / "base")))
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter")
    theirs = plain_logp(wrap(loaded.get_base_model(), "padded")[0], batch)  # type: ignore[arg-type]
    assert float((ours - theirs).abs().max()) < 2e-5
    again = base().requires_grad_(False)
    files = adapter_at(str(tmp_path / "adapter"), None, "adapter.path")
    assert files is not None
    weights = go_on(again, files, Adapter(), base="here", revision=None, digest="", location="adapter.path")
    policy = replace(wrap(again, "auto")[0], weights=weights)
    for model in (policy, replace(policy, weights=weights.as_started())):  # it begins as what is stored
        with torch.no_grad():
            assert float((model.read(batch) - ours).abs().max()) < 2e-5


def test_two_adapters_on_a_base_do_not_touch_each_other() -> None:
    policy = adapted(tiny(), Adapter(rank=4))
    batch = policy.batch(groups(3, seed=2))
    other = begin_adapter(policy.module, Adapter(rank=4, train_also=("lm_head",)), base="", revision=None, digest="",
                          seed=1, name="other")  # fmt: skip
    assert not policy.weights.trained().keys() & other.trained().keys()
    assert all(p.requires_grad for p in (*policy.weights.trained().values(), *other.trained().values()))
    assert isinstance(policy.weights, AdapterWeights)
    with shaken(policy.weights), torch.no_grad():
        first = policy.read(batch)
        replace(policy, weights=other).read(batch)
        assert torch.equal(policy.read(batch), first)
    assert all(p.requires_grad for p in (*policy.weights.trained().values(), *other.trained().values()))


@pytest.mark.parametrize(
    ("tied", "part", "says"),
    [
        (True, "lm_head", "trained whole: lm_head, and embedding and output layer, which are one matrix"),
        (False, "lm_head", "trained whole: lm_head"),
        (True, "norm", "trained whole: input_layernorm, norm, post_attention_layernorm"),  # as peft reads a name
    ],
)
def test_what_is_trained_whole_is_said(tied: bool, part: str, says: str) -> None:
    module = tiny("llama", tie_word_embeddings=tied)
    weights = begin_adapter(module, Adapter(rank=4, train_also=(part,)), base="", revision=None, digest="", seed=0)
    assert says in described(weights)
    assert ("one matrix" in described(weights)) == ("one matrix" in says)


def test_plain_products_are_fused_and_others_are_peft_s() -> None:
    assert fused_parts(adapted(tiny(), Adapter(rank=4)).module)["adapted layer"] == (21, 21)
    assert fused_parts(adapted(tiny(), Adapter(rank=4)).module)["gated MLP"] == (3, 3)
    assert fused_parts(adapted(tiny("gemma2"), Adapter(rank=4)).module)["gated MLP"] == (0, 3)  # another activation
    assert fused_parts(adapted(tiny(), Adapter(rank=4, kind="dora")).module)["adapted layer"] == (0, 21)


def test_what_learns_is_fp32_beside_a_base_in_half_precision() -> None:
    policy = adapted(tiny(dtype=torch.bfloat16), Adapter(rank=4))
    assert {p.dtype for p in policy.weights.trained().values()} == {torch.float32}
    assert policy.module.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("table", "place", "says"),
    [
        (Adapter(targets=("lm_head",)), "adapter.targets", "train_also"),
        (Adapter(targets=("q_porj",)), "adapter.targets", "q_proj"),
        (Adapter(rank=17), "adapter.rank", "at most 16"),
        (Adapter(rank=3, start="orthogonal"), "adapter", "even"),
        (Adapter(rank=4, train_also=("head",)), "adapter.train_also", "lm_head"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(table: Adapter, place: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        adapted(tiny(), table)
    assert place in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize("damage", ["type", "json", "list", "tensors", "cut off", "other model", "missing", "unknown"])
def test_a_folder_that_holds_no_adapter_of_this_model_is_refused(tmp_path: Path, damage: str) -> None:
    save_model(tmp_path / "base")
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    policy = adapted(module, Adapter(rank=4))
    with folders.folder(tmp_path / "adapter") as into:
        policy.weights.export(into, load_tokenizer(str(tmp_path / "base")))
    config, tensors = tmp_path / "adapter" / "adapter_config.json", tmp_path / "adapter" / "adapter_model.safetensors"
    settings = json.loads(config.read_text())
    if damage == "type":
        config.write_text(json.dumps(settings | {"peft_type": "IA3"}))
    elif damage == "json":
        config.write_text("{")
    elif damage == "list":
        config.write_text("[]")
    elif damage == "cut off":
        tensors.write_bytes(tensors.read_bytes()[:200])
    elif damage == "unknown":
        config.write_text(json.dumps(settings | {"lora_of_tomorrow": True}))
    elif damage == "tensors":
        tensors.unlink()
    elif damage == "missing":
        config.write_text(json.dumps(settings | {"target_modules": ["q_proj", "k_proj"]}))
    other = tiny(num_hidden_layers=2) if damage == "other model" else tiny()

    def put() -> None:
        files = adapter_at(str(tmp_path / "adapter"), None, "adapter.path")
        go_on(other, files, Adapter(), base="here", revision=None, digest="", location="adapter.path")  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"adapter\.path"):
        put()
