"""Drawing with the model's own forward pass and an attention of ours: a prompt's keys and values are there once.

All rows of a prompt meet its keys in one product. Its part of a row's softmax is then one key more beside the row's
own: its score is the log-sum of the prompt's scores, its value what they give. Prompts stand in shelves by their own
length, rounded up, and a product has no fewer than LEAST rows, so that a row's bits (fp32, CPU) do not depend on what
else is drawn. Held by tests/rollout/test_embedded.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from preftune.model.layout import Shape
from preftune.model.policy import Policy
from preftune.model.probe import FAILURES, decoder
from preftune.rollout.decode import Continuation
from preftune.rollout.shelf import WIDTH, Shelf
from preftune.rollout.softmax import causal, past

NAME = "preftune_draw"
GROW = 32  # tokens by which the rows' own keys get more room: 8 take 3 % more time, 128 2 % less
AT_ONCE = 4096  # tokens of prompts in one pass
HARMLESS = {"position_ids", "use_cache", "cache_position", "is_causal", "output_attentions", "output_hidden_states"}


class NotReplaceableError(Exception):
    """This family's attention cannot be ours."""


def register() -> str:
    """Make this attention known to transformers; returns the name to set on a model."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    return NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    branches: Branches | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    dropout: float = 0.0,
    **others: object,
) -> tuple[Tensor, None]:
    """query (rows, heads, tokens, width), key and value (rows, key heads, tokens, width) -> (rows, tokens, heads, value
    width), for whole prompts or for one token a row.

    Raises NotReplaceableError where the branches did not arrive, or the family asks for what is not known here: left
    out silently it would give other numbers.
    """
    unknown = sorted(name for name, x in others.items() if name not in HARMLESS and x is not None)
    if branches is None or attention_mask is not None or dropout or unknown:
        raise NotReplaceableError(", ".join(unknown) or "its attention does not get what the model is given")
    shape = Shape(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, sliding_window)
    wide = torch.promote_types(value.dtype, torch.float32) if value.device.type == "cpu" else value.dtype
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (x.to(wide) for x in (query, key, value))
        out = branches.attend(module, q, k, v, None if s_aux is None else s_aux.to(wide), shape)
    return out.to(value.dtype), None


class Branches(Continuation):
    """Keys and values: each prompt's once, on shelves, and each row's own, rows that go on first."""

    def __init__(self, policy: Policy, prompts: Sequence[np.ndarray], of_row: np.ndarray) -> None:
        """of_row: (rows,) the prompt of each row."""
        self._module, self._prompts, self._device = policy.module, prompts, policy.device
        self._layers: dict[nn.Module, int] = {}  # in the order in which they ask
        self._own: list[tuple[Tensor, Tensor]] = []  # a layer: (rows, key heads, room, width), views of the buffers
        self._buffers: list[Tensor] = []  # those of one shape side by side, so that rows move in one go
        self._tokens, self._room, self._rows = 0, 0, len(of_row)
        lengths = np.array([len(prompt) for prompt in prompts])
        widths = -(-lengths // WIDTH) * WIDTH
        self._members = [np.flatnonzero(widths == width) for width in np.unique(widths)]  # the prompts of each shelf
        self._shelves = [Shelf(int(widths[members[0]]), lengths[members], self._device) for members in self._members]
        shelf_of_prompt, place_on_shelf = np.zeros((2, len(prompts)), int)
        for index, members in enumerate(self._members):
            shelf_of_prompt[members], place_on_shelf[members] = index, np.arange(len(members))
        self._shelf_of_row, self._of_row = shelf_of_prompt[of_row], place_on_shelf[of_row]
        self._filling: Shelf | None = None

    def begin(self) -> Tensor:
        """The last hidden state of each prompt, (prompts, width). Raises NotReplaceableError."""
        states: list[Tensor] = []
        try:
            for shelf, members in zip(self._shelves, self._members, strict=True):
                self._filling = shelf
                for part in np.array_split(members, -(-len(members) * shelf.width // AT_ONCE)):
                    states.append(self._pass(part, shelf.width))
                shelf.filled(len(self._layers))
        except FAILURES as error:
            raise NotReplaceableError(str(error)) from error
        self._filling = None
        layers = self._module.config.get_text_config().num_hidden_layers
        if len(self._layers) != layers:
            raise NotReplaceableError("not all of its layers take the attention that they are given")
        self._arrange()
        order = np.concatenate(self._members)
        return torch.cat(states)[torch.from_numpy(np.argsort(order)).to(self._device)]

    def step(self, token: Tensor, position: Tensor) -> Tensor:
        if self._tokens == self._room:
            self._grow()
        inputs = {"input_ids": token[:, None], "position_ids": position[:, None]}
        states = decoder(self._module)(**inputs, use_cache=False, branches=self).last_hidden_state[:, 0]
        self._tokens += 1
        return states

    def keep(self, order: np.ndarray) -> None:
        moved = np.flatnonzero(order != np.arange(len(order)))
        to, source = (torch.from_numpy(x).to(self._device) for x in (moved, order[moved]))
        if len(moved) and self._tokens:
            for x in self._buffers:
                x[:, to, :, : self._tokens] = x[:, source, :, : self._tokens]
        self._of_row, self._shelf_of_row = self._of_row[order], self._shelf_of_row[order]
        self._rows = len(order)
        self._arrange()

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, shape: Shape) -> Tensor:
        if self._filling is not None:
            layer = self._layers.setdefault(module, len(self._layers))
            self._filling.add(layer, k, v)
            return causal(q, k, v, sinks, shape)
        return self._one_token(self._layers[module], q[:, :, 0], k[:, :, 0], v[:, :, 0], sinks, shape)[:, None]

    # For a row with scores s_j of its own keys j, whose prompt gives lse = log sum_i exp s_i and o = its own output:
    #
    #     w = softmax([lse, s_0, ..., s_t])        out = w_0 o + sum_j w_j v_j
    #
    # A sink is one more score, without a value.
    def _one_token(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, shape: Shape) -> Tensor:
        """q (rows, heads, width), k and v (rows, key heads, width) -> (rows, heads, value width)."""
        (rows, heads, width), key_heads, t = q.shape, k.shape[1], self._tokens
        n_rep, window = heads // key_heads, shape.window
        own_k, own_v = (x[:rows] for x in self._own[layer])
        own_k[:, :, t], own_v[:, :, t] = k, v
        seen = slice(0 if window is None else max(0, t + 1 - window), t + 1)
        q = (q * shape.scale).reshape(rows, key_heads, n_rep, width)
        prompt_out, lse = self._of_prompts(layer, q, shape)
        q, k, v = q.flatten(0, 1), own_k.flatten(0, 1)[:, seen], own_v.flatten(0, 1)[:, seen]
        scores = torch.bmm(q, k.transpose(1, 2))
        if shape.softcap is not None:
            scores.div_(shape.softcap).tanh_().mul_(shape.softcap)
        columns = [lse.reshape(-1, n_rep, 1), scores]
        if sinks is not None:
            columns.append(sinks.view(1, key_heads, n_rep, 1).expand(rows, -1, -1, -1).reshape(-1, n_rep, 1))
        weights = torch.softmax(torch.cat(columns, -1), -1)
        out = torch.bmm(weights[..., 1 : 1 + scores.shape[-1]], v)
        out.addcmul_(prompt_out.reshape(out.shape), weights[..., :1])
        return out.view(rows, heads, -1)

    def _of_prompts(self, layer: int, q: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """q (rows, key heads, n_rep, width), scaled -> what its prompt gives each row, (rows, key heads, n_rep, value
        width), and the log-sum of its scores, (rows, key heads, n_rep)."""
        outs, sums = [], []
        for shelf in self._shelves:
            if shelf.live:
                window = shape.window if shelf.beyond(self._tokens, shape.window) else None
                mask = shelf.hidden(self._tokens, window)
                out, lse = past(shelf.queries(q), *shelf.keys(layer), mask, shape._replace(window=window))
                outs.append(shelf.by_place(out, q.shape[2]))
                sums.append(shelf.by_place(lse[..., None], q.shape[2]))
        out, lse = (x[0] if len(x) == 1 else torch.cat(x) for x in (outs, sums))
        return (out, lse) if self._place is None else (out[self._place], lse[self._place])

    def _pass(self, members: np.ndarray, width: int) -> Tensor:
        """Some prompts of one shelf through the model; the state of each one's last token."""
        ids = torch.zeros(len(members), width, dtype=torch.long)
        for row, index in enumerate(members):
            ids[row, : len(self._prompts[index])] = torch.from_numpy(self._prompts[index].astype(np.int64))
        ids, position = ids.to(self._device), torch.arange(width, device=self._device).expand(len(ids), -1)
        states = decoder(self._module)(input_ids=ids, position_ids=position, use_cache=False, branches=self)
        last = torch.tensor([len(self._prompts[index]) - 1 for index in members], device=self._device)
        return states.last_hidden_state[torch.arange(len(ids), device=self._device), last]

    def _grow(self) -> None:
        self._room += GROW
        sides = [x for layer in self._shelves[0].layers for x in layer]
        views: dict[int, Tensor] = {}
        old, self._buffers = self._buffers, []
        for place, shape in enumerate(dict.fromkeys(x.shape[1::2] for x in sides)):
            alike = [index for index, x in enumerate(sides) if x.shape[1::2] == shape]
            wider = sides[0].new_empty(len(alike), self._rows, shape[0], self._room, shape[1])
            if old:
                wider[:, :, :, : self._tokens] = old[place][:, : self._rows, :, : self._tokens]
            self._buffers.append(wider)
            views |= zip(alike, wider, strict=True)
        self._own = [(views[index], views[index + 1]) for index in range(0, len(sides), 2)]

    def _arrange(self) -> None:
        """Give each row a place among the queries of its prompt."""
        place, first = np.zeros(self._rows, np.int64), 0
        for index, shelf in enumerate(self._shelves):
            rows = np.flatnonzero(self._shelf_of_row == index)
            self._of_row[rows], places = shelf.arrange(self._of_row[rows], rows)
            place[rows] = first + places
            first += shelf.places
        simple = first == self._rows and bool((place == np.arange(first)).all())
        self._place = None if simple else torch.from_numpy(place).to(self._device)
