"""How much memory a run will take, from shapes alone, and the budget of a pack that follows."""

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
    text = config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 2**30)


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
    """Memory of training with packs of `tokens`; frozen references come on top."""
    own = parameters * weight_bytes
    return Expected(own, own, 2 * own, tokens * token_bytes(config, weight_bytes, checkpointing))


def token_bytes(config: PreTrainedConfig, element: int, checkpointing: bool) -> int:
    """Bytes that one token keeps for the backward pass: about 16 widths and 5 MLP widths a layer."""
    text = config.get_text_config()
    width = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * width
    layer = 16 * width + 5 * inner
    layers = text.num_hidden_layers
    kept = layer + 2 * layers * width if checkpointing else layers * layer
    return element * (kept + 4 * width)


def pack_budget(module: PreTrainedModel, device: torch.device, checkpointing: bool) -> int:
    """Tokens a pack may hold: what fits beside weights, gradients and moments, at most where speed stops rising."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    element = next(module.parameters()).element_size()
    room = 0.6 * (free - 3 * weights)
    fit = int(room / token_bytes(module.config, element, checkpointing))
    return max(SMALLEST, min(LARGEST[device.type], fit // 256 * 256))


def available_memory() -> int:
    """Bytes that programs can still take on this machine; 4 GiB where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 * 2**30
