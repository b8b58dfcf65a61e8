"""Leave out what nobody reads: of the last layer, rows that predict nothing need keys and values only.

In a pack most rows are prompt, and only the last of each prompt predicts a scored token. The last layer's queries,
output projection and MLP are therefore computed for the rows that are read, and put back among zeros. Exact: no other
row's hidden state leaves the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

WORTH = 0.9  # share of rows read above which moving rows about costs more than it saves


class ReadRows:
    """Hooks on the parts of the last layer that work row by row. rows: (read,) those to compute, or None for all."""

    def __init__(self, module: PreTrainedModel) -> None:
        self.rows: Tensor | None = None
        for part in row_by_row(module):
            part.register_forward_pre_hook(self._only)
            part.register_forward_hook(self._among_zeros)

    def _only(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return None if self.rows is None else (args[0].index_select(1, self.rows), *args[1:])

    def _among_zeros(self, _: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if self.rows is None:
            return out
        return out.new_zeros(out.shape[0], self.tokens, out.shape[2]).index_copy(1, self.rows, out)

    def read(self, rows: Tensor | None, tokens: int) -> None:
        """Compute only these rows of the next forward pass over `tokens` rows; None for all."""
        worth = rows is not None and len(rows) < WORTH * tokens
        self.rows, self.tokens = rows if worth else None, tokens


def row_by_row(module: PreTrainedModel) -> list[nn.Module]:
    """Parts of the last layer of the usual families that map each row by itself; empty for other models."""
    layers = [m for m in module.base_model.modules() if isinstance(m, nn.ModuleList)]
    count = module.config.get_text_config().num_hidden_layers
    last = next((m[-1] for m in layers if len(m) == count), None)
    if last is None:
        return []
    named = dict(last.named_modules())
    parts = [named.get(name) for name in ("self_attn.q_proj", "self_attn.o_proj")]
    found: list[nn.Module] = [part for part in parts if isinstance(part, nn.Linear)]
    mlp = named.get("mlp")
    if mlp is not None and not any("expert" in name or "router" in name for name, _ in mlp.named_modules()):
        found.append(mlp)  # a mixture of experts returns more than the rows
    return found


def rows_read(source: Tensor) -> Tensor:
    """(read,) the distinct rows of `source` (scored,), in order."""
    return torch.unique(source)
