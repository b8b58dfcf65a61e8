"""Leave out what nobody reads: in the last layer, rows that predict nothing need keys and values only.

In a pack most rows are prompt, and only the last of each prompt predicts a scored token. The last layer's queries,
attention, output projection and MLP are therefore computed for the rows that are read, and put back among zeros.
Exact: no other row's hidden state leaves the model. Held by tests/model/test_layouts.py.
"""

from __future__ import annotations

import weakref

from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.model.layout import Layout
from preftune.model.probe import decoder


class PrunedLayer:
    """Hooks on a layer. They learn which rows are read from the layout that its attention gets, also when activations
    are recomputed in the backward pass; they keep no pack alive."""

    def __init__(self, layer: nn.Module, parts: list[nn.Module]) -> None:
        self._layout: weakref.ref[Layout] | None = None
        layer.register_forward_pre_hook(self._forget)
        layer.register_forward_hook(self._forget)
        layer.get_submodule("self_attn").register_forward_pre_hook(self._begin, with_kwargs=True)
        for part in parts:
            part.register_forward_pre_hook(self._select)
            part.register_forward_hook(self._among_zeros)

    def _forget(self, *_: object) -> None:
        self._layout = None

    def _begin(self, _: nn.Module, args: tuple, kwargs: dict[str, object]) -> tuple[tuple, dict[str, object]]:
        layout = kwargs.get("trie")
        if not isinstance(layout, Layout) or layout.read is None:
            self._layout = None
            return args, kwargs
        self._layout = weakref.ref(layout)
        return args, {**kwargs, "trie": layout.last_layer}

    def _select(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        layout = self._layout and self._layout()
        if layout is None or layout.read is None:
            return args
        return (args[0].index_select(1, layout.read), *args[1:])

    def _among_zeros(self, _: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        layout = self._layout and self._layout()
        if layout is None or layout.read is None:
            return out
        zeros = out.new_zeros(out.shape[0], len(layout.end), out.shape[2])
        return zeros.index_copy(1, layout.read, out)


def prune_last_layer(module: PreTrainedModel) -> None:
    """Skip rows nobody reads in the last layer. Does nothing to layers of an unusual build, or a second time."""
    count = module.config.get_text_config().num_hidden_layers
    lists = [part for part in decoder(module).modules() if isinstance(part, nn.ModuleList)]
    layer = next((layers[-1] for layers in lists if len(layers) == count), None)
    parts = row_by_row(layer) if layer is not None else []
    if layer is not None and parts and not layer._forward_pre_hooks:
        PrunedLayer(layer, parts)


def row_by_row(layer: nn.Module) -> list[nn.Module]:
    """Parts of a layer of the usual families that map each row by itself; empty for other layers."""
    named = dict(layer.named_modules())
    parts = [named.get(name) for name in ("self_attn.q_proj", "self_attn.o_proj")]
    if not all(isinstance(part, nn.Linear) for part in parts):
        return []
    mlp = named.get("mlp")
    if mlp is not None and not any("expert" in name or "router" in name for name, _ in mlp.named_modules()):
        parts.append(mlp)  # a mixture of experts returns more than the rows
    return [part for part in parts if part is not None]
