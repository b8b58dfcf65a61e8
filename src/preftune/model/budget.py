"""The tokens of a pack: what fits into the memory that there is, at most where speed stops rising.

Held by tests/model/test_memory.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from preftune.model.memory import Setup, expected
from preftune.model.shapes import Shapes
from preftune.model.weights import local

LARGEST = {"cpu": 1024, "cuda": 8192}  # tokens; on a CPU larger packs gain about 1 % of time and take twice the memory
SMALLEST, MULTIPLE = 512, 256
USABLE = {"cpu": 0.6, "cuda": 0.95}  # of free memory: others want a CPU's, and an allocator loses some of a GPU's


def positions(config: PreTrainedConfig) -> int:
    """Positions the model can tell apart; a large number where it has no such limit."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**30)


def attention_crossover(config: PreTrainedConfig) -> float:
    """Tokens of context at which attention takes as long as a layer's products with its matrices.

    Per token, in multiples of the width, these are about 4 width + 3 MLP width, and attention half the path, twice.
    """
    text = config.get_text_config()
    mlp_width = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return 4 * text.hidden_size + 3 * (mlp_width if isinstance(mlp_width, int) else max(mlp_width))  # or one a layer


def largest_pack(shapes: Shapes, setup: Setup, memory: float, most: int, least: int = 1) -> int:
    """Tokens of the largest pack with which training takes no more than `memory` bytes: `most`, or a multiple of
    MULTIPLE below that is no less than `least`; 0 where none fits."""
    sizes = [most, *range((most - 1) // MULTIPLE * MULTIPLE, least - 1, -MULTIPLE)]
    return next((tokens for tokens in sizes if expected(shapes, setup, tokens).total <= memory), 0)


def pack_budget(module: PreTrainedModel, shapes: Shapes, setup: Setup) -> int:
    """Tokens a pack may hold beside all that training adds to a module that is loaded already, perhaps as a part of the
    one with these shapes."""
    free = torch.cuda.mem_get_info(module.device)[0] if module.device.type == "cuda" else available_memory()
    loaded = sum(local(tensor).nbytes for tensor in (*module.parameters(), *module.buffers()))
    memory = loaded + USABLE[setup.device] * free
    return max(SMALLEST, largest_pack(shapes, setup, memory, LARGEST[setup.device]))


def available_memory() -> int:
    """Bytes that programs can still take on this machine; 4 GiB where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 * 2**30
