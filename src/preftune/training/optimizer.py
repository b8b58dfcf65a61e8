"""AdamW and the course of its learning rate."""

from __future__ import annotations

import math

import torch

from preftune.model.weights import Weights
from preftune.training.config import Optim


def adamw(weights: Weights, optim: Optim) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on matrices only (decoupled: arXiv 1711.05101)."""
    kinds: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in weights.trained().items():
        kinds.setdefault((parameter.dim() < 2, weights.rate(name)), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": 0.0 if is_vector else optim.weight_decay, "rate": rate}
        for (is_vector, rate), parameters in sorted(kinds.items(), key=lambda item: item[0])
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Rate of update `step` (0-based) of `steps`: a rise over the warm-up, then constant, linear or cosine to 0."""
    warmup = math.ceil(optim.warmup * steps)
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    course = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return optim.lr * course[optim.schedule]
