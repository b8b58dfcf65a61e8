"""What is trained answers for itself: the whole model, and a second kind that is one class and no edit elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from making import groups, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from preftune import folders
from preftune.folders import Folder
from preftune.model.load import load_model
from preftune.model.policy import trainable, wrap
from preftune.model.weights import Weights, WholeModel

CPU = torch.device("cpu")


@dataclass(frozen=True)
class LastLayer(Weights):
    """Trains the last layer on a base that stays."""

    def __post_init__(self) -> None:
        self.module.requires_grad_(False)
        self.module.base_model.layers[-1].requires_grad_(True)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if ".layers.2." in name}

    def rate(self, name: str) -> float:
        return 1.0

    def activate(self) -> None:
        pass

    def digest(self) -> str:
        return WholeModel(self.module).digest()

    def state(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.trained().items()}

    def export(self, into: Folder, tokenizer: PreTrainedTokenizerBase) -> None:
        WholeModel(self.module).export(into, tokenizer)


@pytest.mark.parametrize("kind", [WholeModel, LastLayer])
def test_weights_go_there_and_back(kind: type[Weights], tmp_path: Path) -> None:
    """A step changes what is trained and nothing else; its state, put into another model, gives the same bits."""
    source = save_model(tmp_path / "source")
    policies = []
    for _ in range(2):
        module = load_model(str(source), revision=None, weights="float32", device=CPU, location="m").module
        policy = wrap(module, "auto")[0]
        policies.append(trainable(replace(policy, weights=kind(policy.module)), checkpointing=False))
    ours, other = (policy.weights for policy in policies)
    start, batch = ours.digest(), policies[0].batch(groups(4, seed=1))
    before = {name: p.detach().clone() for name, p in ours.module.named_parameters()}
    assert start == other.digest()
    policies[0].token_logp(batch).sum().backward()
    assert {name for name, p in ours.module.named_parameters() if p.grad is not None} == ours.trained().keys()
    with torch.no_grad():
        for parameter in ours.trained().values():
            parameter.sub_(1e-3 * parameter.grad)
    changed = {name for name, p in ours.module.named_parameters() if not torch.equal(p, before[name])}
    assert changed == ours.trained().keys() <= ours.state().keys()
    assert ours.digest() != start
    for name, tensor in other.state().items():
        tensor.copy_(ours.state()[name])
    assert other.digest() == ours.digest()
    assert torch.equal(policies[0].token_logp(batch), policies[1].token_logp(batch))
    with folders.folder(tmp_path / "exported") as folder:
        ours.export(folder, AutoTokenizer.from_pretrained(source))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert WholeModel(exported).digest() == ours.digest()
    assert torch.equal(policies[0].token_logp(batch), policies[1].token_logp(batch))  # export leaves the model usable
