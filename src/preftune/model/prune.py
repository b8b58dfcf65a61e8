"""Leave out what nobody reads: of the last layer, rows that predict nothing need keys and values only.

In a pack most rows are prompt, and only the last of each prompt predicts a scored token. The last layer's queries,
attention, output projection and MLP are therefore computed for the rows that are read, and put back among zeros.
Exact: no other row's hidden state leaves the model.
"""

from __future__ import annotations

import weakref

from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.pack.batch import Layout


class ReadRows:
    """Hooks on a layer. Which rows are read they learn from the layout that its attention is given, also when
    activations are computed again for the backward pass; they keep no pack alive."""

    def __init__(self, layer: nn.Module, parts: list[nn.Module]) -> None:
        self.given: weakref.ref[Layout] | None = None
        layer.register_forward_pre_hook(self._forget)
        layer.register_forward_hook(self._forget)
        layer.get_submodule("self_attn").register_forward_pre_hook(self._begin, with_kwargs=True)
        for part in parts:
            part.register_forward_pre_hook(self._only)
            part.register_forward_hook(self._among_zeros)

    @property
    def layout(self) -> Layout | None:
        return self.given and self.given()

    def _forget(self, *_: object) -> None:
        self.given = None

    def _begin(self, _: nn.Module, args: tuple, kwargs: dict[str, object]) -> tuple[tuple, dict[str, object]]:
        layout = kwargs.get("trie")
        if not isinstance(layout, Layout) or layout.read is None:
            self.given = None
            return args, kwargs
        self.given = weakref.ref(layout)
        return args, {**kwargs, "trie": layout.last_layer}

    def _only(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        layout = self.layout
        if layout is None or layout.read is None:
            return None
        return (args[0].index_select(1, layout.read), *args[1:])

    def _among_zeros(self, _: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        layout = self.layout
        if layout is None or layout.read is None:
            return out
        whole = out.new_zeros(out.shape[0], len(layout.end), out.shape[2])
        return whole.index_copy(1, layout.read, out)


def prune_last_layer(module: PreTrainedModel) -> None:
    """Do so in the last layer of this model, once, if its layers are built as usual."""
    count = module.config.get_text_config().num_hidden_layers
    lists = [m for m in module.base_model.modules() if isinstance(m, nn.ModuleList)]
    layer = next((m[-1] for m in lists if len(m) == count), None)
    parts = row_by_row(layer) if layer is not None else []
    if layer is not None and parts and not layer._forward_pre_hooks:
        ReadRows(layer, parts)


def row_by_row(layer: nn.Module) -> list[nn.Module]:
    """Parts of a layer of the usual families that map each row by itself; empty for other layers."""
    named = dict(layer.named_modules())
    found = [named.get(name) for name in ("self_attn.q_proj", "self_attn.o_proj")]
    if not all(isinstance(part, nn.Linear) for part in found):
        return []
    mlp = named.get("mlp")
    if mlp is not None and not any("expert" in name or "router" in name for name, _ in mlp.named_modules()):
        found.append(mlp)  # a mixture of experts returns more than the rows
    return [part for part in found if part is not None]
