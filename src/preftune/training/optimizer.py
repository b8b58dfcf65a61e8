"""AdamW and the course of its learning rate."""

from __future__ import annotations

import math

import torch

from preftune.model.weights import Weights
from preftune.training.config import Optim


def adamw(weights: Weights, optim: Optim) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on matrices only (decoupled: arXiv 1711.05101)."""
    trained = list(weights.trained().values())
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True
    )


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Rate of update `step` (0-based) of `steps`: a rise over the warm-up, then constant, linear or cosine to 0."""
    warmup = math.ceil(optim.warmup * steps)
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    course = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return optim.lr * course[optim.schedule]
