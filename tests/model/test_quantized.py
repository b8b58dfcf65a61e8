"""A base in few bits is one function, whatever is asked of it: of its rows alone, with and without a gradient."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from adapter_on_device import ADAPTERS, adapter_off
from making import groups, save_model

from preftune.errors import UserError
from preftune.model import quantized
from preftune.model.load import load_model
from preftune.model.policy import Policy, wrap
from preftune.model.quantized import QuantizedLinear, quantization
from preftune.model.verify import verify_layout
from preftune.reference.fill import numerics

pytest.importorskip("bitsandbytes")


@pytest.fixture(params=["nf4", "int8"])
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> Policy:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bitsandbytes and torch, about each other
        module, remarks = load_model(
            str(save_model(tmp_path)), revision=None, weights=request.param, device=torch.device("cpu"), location="here"
        )
    assert request.param in remarks["quantized"][0]
    return wrap(module.requires_grad_(False), "auto")[0]


def test_it_is_near_the_model_of_the_files_and_not_it(policy: Policy, tmp_path: Path) -> None:
    plain, _ = load_model(str(tmp_path), revision=None, weights="float32", device=torch.device("cpu"), location="here")
    layers = {name: part for name, part in policy.module.named_modules() if isinstance(part, QuantizedLinear)}
    assert len(layers) == 21  # all but the head
    for name, layer in layers.items():
        matrix = plain.get_submodule(name).get_parameter("weight").detach()
        off = (layer.weight - matrix).norm() / matrix.norm()
        assert 1e-3 < float(off) < {"nf4": 0.12, "int8": 0.01}[layer.kind]


def test_every_way_through_it_is_the_same(policy: Policy) -> None:
    batch = policy.batch(groups(6, seed=1))
    policy, off = verify_layout(policy, batch)
    assert policy.layout == "trie"
    assert off.worst < 5e-5
    with torch.no_grad():
        without = policy.read(batch)
    policy.module.get_input_embeddings().requires_grad_(True)
    assert torch.equal(policy.read(batch).detach(), without)
    alone = policy.batch(batch.groups[:1])
    with torch.no_grad():
        assert torch.allclose(policy.read(alone), without[: len(alone.member)], atol=2e-5)


def test_the_gradient_is_that_of_the_matrix_that_it_multiplies_with(policy: Policy) -> None:
    layer = policy.module.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, QuantizedLinear)
    x = torch.randn(2, 5, 32, requires_grad=True)
    plain = x @ layer.weight.T
    y, upstream = layer(x), torch.randn_like(plain)
    assert torch.allclose(y, plain, atol=1e-5)
    ours, theirs = (torch.autograd.grad(each, x, upstream)[0] for each in (y, plain))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_it_has_a_digest_and_a_class_of_numerics_of_its_own(policy: Policy) -> None:
    kind = quantization(policy.module)
    assert kind.split("-")[0] in ("nf4", "int8")
    assert kind in numerics(policy)
    before = policy.weights.digest()
    with torch.no_grad():
        policy.read(policy.batch(groups(2)))
    assert policy.weights.digest() == before
    policy.module.get_submodule("model.layers.1.self_attn.q_proj").codes[0] ^= 1
    assert policy.weights.digest() != before


@pytest.mark.filterwarnings("ignore")  # of bitsandbytes and torch, about each other
@pytest.mark.parametrize(("weights", "kind"), ADAPTERS)
def test_an_adapter_learns_what_peft_says_on_the_same_matrices(weights: str, kind: str, tmp_path: Path) -> None:
    """As tests/gpu asks a GPU."""
    off = adapter_off(weights, kind, torch.float32, torch.device("cpu"), save_model(tmp_path))
    assert off.layout == "trie"
    assert off.worst < 5e-5
    assert off.gradient < 1e-5


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    folder = str(save_model(tmp_path))
    with pytest.raises(UserError, match=r"preftune\[quant\]"):
        load_model(folder, revision=None, weights="nf4", device=torch.device("cpu"), location="here")
