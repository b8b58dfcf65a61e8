"""How far an adapter in the engine is from peft's own layers in double precision, on any device.

Apart from on_device.py, which the script for a GPU reads where there is no peft."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from making import groups
from on_device import flat, relative
from torch import Tensor
from transformers import PreTrainedModel

from preftune.model.adapter import AdapterWeights, shaken
from preftune.model.config import Adapter
from preftune.model.load import load_model
from preftune.model.policy import trainable, wrap
from preftune.model.put_adapter import begin_adapter
from preftune.model.quantized import QuantizedLinear
from preftune.tokens.groups import TokenGroup

ADAPTERS = (("float32", "lora"), ("float32", "dora"), ("nf4", "lora"), ("int8", "lora"), ("nf4", "dora"))


class AdapterOff(NamedTuple):
    """layout: of the engine; worst, mean: nats a token; gradient: of the adapter's matrices, relative."""

    layout: str
    worst: float
    mean: float
    gradient: float


def adapter_off(weights: str, kind: str, compute: torch.dtype, device: torch.device, folder: Path) -> AdapterOff:
    """A shaken adapter on a small model in `folder`, whose base is kept as `weights` says, against peft's own layers on
    the same matrices in double precision on the CPU, where nothing is fused and no prefix shared."""
    rows, table = groups(6, prompt=(10, 60), response=(3, 40)), Adapter(rank=4, kind=kind)  # type: ignore[arg-type]
    dense, _ = load_model(str(folder), revision=None, weights="float32", device=torch.device("cpu"), location="dense")
    named = str(compute).removeprefix("torch.")
    base, _ = load_model(str(folder), revision=None, weights=weights, device=device, location="here", compute=named)
    for name, part in base.named_modules():
        if isinstance(part, QuantizedLinear):
            dense.get_submodule(name).get_parameter("weight").data.copy_(part.weight)
    sides = []
    for module in (base, dense):
        begun = begin_adapter(module.requires_grad_(False), table, base="here", revision=None, digest="", seed=0)
        sides.append((module, begun))
    with shaken(sides[1][1]):
        learned = {name: p.detach().clone() for name, p in sides[1][1].trained().items()}
    exact = plain_side(dense.double(), sides[1][1], learned, rows)
    policy = replace(wrap(base, "auto", compute)[0], weights=sides[0][1])
    policy = trainable(policy, checkpointing=False)
    with torch.no_grad():
        for name, parameter in policy.weights.trained().items():
            parameter.copy_(learned[name])
    answer = policy.read(policy.batch(rows))
    ours = (answer.detach().double().cpu(), flat_gradient(policy.weights.trained(), answer))
    off = (ours[0] - exact[0]).abs()
    return AdapterOff(policy.layout, float(off.max()), float(off.mean()), relative(ours[1], exact[1]))


def plain_side(
    module: PreTrainedModel, weights: AdapterWeights, learned: dict[str, Tensor], rows: list[TokenGroup]
) -> tuple[Tensor, Tensor]:
    """(members,) log-probabilities by one plain pass a response, and the adapter's gradient."""
    with torch.no_grad():
        for name, parameter in weights.trained().items():
            parameter.copy_(learned[name])
    module.set_attn_implementation("eager")
    answers = []
    for row in rows:
        for response in row.responses:
            ids = torch.tensor([*row.prompt, *response])
            logits = module(input_ids=ids[None], use_cache=False).logits[0, -len(response) - 1 : -1]
            answers.append(torch.log_softmax(logits, -1).gather(1, ids[-len(response) :, None])[:, 0])
    answer = torch.cat(answers)
    return answer.detach(), flat_gradient(weights.trained(), answer)


def flat_gradient(trained: dict[str, torch.nn.Parameter], answer: Tensor) -> Tensor:
    """(numbers of all parameters,) of a sum over tokens in which each counts otherwise."""
    (answer * torch.linspace(0.5, 1.5, len(answer), device=answer.device).cos().to(answer)).sum().backward()
    return flat([torch.zeros_like(p) if p.grad is None else p.grad for _, p in sorted(trained.items())])
