"""How much memory and time a model takes, from its shapes alone, and the budget of a pack that follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

LARGEST = {"cpu": 1024, "cuda": 8192}  # tokens; on a CPU larger packs gain about 1 % of time and take twice the memory
SMALLEST = 512


def positions(config: PreTrainedConfig) -> int:
    """Positions the model can tell apart; a large number where it has no such limit."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**30)


@dataclass(frozen=True, slots=True)
class Expected:
    """Bytes. weights, gradients and moments: of the whole run; activations: of one pack."""

    weights: int
    gradients: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations


def expected(
    config: PreTrainedConfig, parameters: int, *, tokens: int, weight_bytes: int, checkpointing: bool
) -> Expected:
    """Memory of training with packs of `tokens`; a reference that is held in memory comes on top."""
    weights = parameters * weight_bytes
    return Expected(weights, weights, 2 * weights, tokens * token_bytes(config, weight_bytes, checkpointing))


def token_bytes(config: PreTrainedConfig, element: int, checkpointing: bool) -> int:
    """Bytes that one token keeps for the backward pass: about 16 widths and 5 MLP widths a layer."""
    text = config.get_text_config()
    width, layers = text.hidden_size, text.num_hidden_layers
    layer = 16 * width + 5 * _mlp_width(config)
    return element * ((layer + 2 * layers * width if checkpointing else layers * layer) + 4 * width)


def attention_crossover(config: PreTrainedConfig) -> float:
    """Tokens of context at which attention takes as long as a layer's products with its matrices.

    Per token, in multiples of the width, these are about 4 width + 3 MLP width, and attention half the path, twice.
    """
    return 4 * config.get_text_config().hidden_size + 3 * _mlp_width(config)


def _mlp_width(config: PreTrainedConfig) -> int:
    text = config.get_text_config()
    width = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return width if isinstance(width, int) else max(width)  # some families have one a layer


def pack_budget(module: PreTrainedModel, device: torch.device, checkpointing: bool) -> int:
    """Tokens a pack may hold: what fits beside weights, gradients and moments, at most where speed stops rising."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    element = next(module.parameters()).element_size()
    fit = int(0.6 * (free - 3 * weights) / token_bytes(module.config, element, checkpointing))
    return max(SMALLEST, min(LARGEST[device.type], fit // 256 * 256))


def available_memory() -> int:
    """Bytes that programs can still take on this machine; 4 GiB where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 * 2**30
