"""Keys and values of prompts of about one length, each prompt's once, and the places of its rows' queries.

Held by tests/rollout/test_embedded.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

QUERIES = 4  # a prompt's are a multiple of it: torch takes 32 at a time, and products want 4 at least
WIDTH = 32  # widths of shelves are multiples of it: a prompt's bits depend on its own length alone


class Shelf:
    """width: tokens to which prompts are filled up; live: the prompts that still have rows, which come first; places:
    of queries, the same number for each live prompt; layers: (prompts, key heads, width, head width), keys and values.
    """

    def __init__(self, width: int, lengths: np.ndarray, device: torch.device) -> None:
        """lengths: (prompts,) in tokens, none above the width."""
        self.width, self.live, self.places = width, len(lengths), 0
        self._as_they_stand = False
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._parts: list[list[tuple[Tensor, Tensor]]] = []
        self._lengths = torch.from_numpy(lengths).to(device)
        self._rows: Tensor = self._lengths[:0]
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def add(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keep what a layer has of some prompts."""
        if layer == len(self._parts):
            self._parts.append([])
        self._parts[layer].append((k, v))

    def filled(self, layers: int) -> None:
        """Raises ValueError where not every layer was added as often as the others."""
        if len(self._parts) != layers or len({len(parts) for parts in self._parts}) != 1:
            raise ValueError("a layer asks for attention more often than the others")
        for parts in self._parts:
            k, v = (torch.cat(x).contiguous() for x in zip(*parts, strict=True))
            self.layers.append((k, v))
            parts.clear()

    def keys(self, layer: int) -> tuple[Tensor, Tensor]:
        k, v = self.layers[layer]
        return k[: self.live], v[: self.live]

    def arrange(self, of_row: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give each row a place. of_row: the prompt of each row of this shelf; rows: its number among all rows.

        Prompts without rows leave; the last ones take their places. Returns the rows' prompts as numbered from now on,
        and their places.
        """
        counts = np.bincount(of_row, minlength=self.live)
        self.live, before = int((counts > 0).sum()), self.live
        if self.live < before:
            of_row = self._close_gaps(counts)[of_row]
            counts = np.bincount(of_row, minlength=self.live)
        self._masks.clear()
        most = -(-int(counts.max()) // QUERIES) * QUERIES if self.live else 0
        order = np.argsort(of_row, kind="stable")
        places = np.empty(len(of_row), np.int64)
        nth = np.arange(len(of_row)) - np.repeat(np.cumsum(counts) - counts, counts)
        places[order] = of_row[order] * most + nth
        self.places = self.live * most
        of_place = np.full(self.places, rows[0] if len(rows) else 0)  # where nobody stands any query will do
        of_place[places] = rows
        self._as_they_stand = bool((of_place == np.arange(self.places)).all())
        self._rows = torch.from_numpy(of_place).to(self._lengths.device)
        return of_row, places

    def _close_gaps(self, counts: np.ndarray) -> np.ndarray:
        """Move the last prompts with rows to where one has none; returns the new number of each."""
        numbers = np.arange(len(counts))
        gaps = np.flatnonzero(counts[: self.live] == 0)
        movers = self.live + np.flatnonzero(counts[self.live :] > 0)
        numbers[movers] = gaps
        to, source = (torch.from_numpy(x).to(self._lengths.device) for x in (gaps, movers))
        for x in (self._lengths, *(part for layer in self.layers for part in layer)):
            x[to] = x[source]
        return numbers

    def queries(self, q: Tensor) -> Tensor:
        """q (rows, key heads, n_rep, width) -> (live, key heads, queries of a prompt, width)."""
        placed = q if self._as_they_stand and len(q) == self.places else q[self._rows]
        key_heads, n_rep, width = q.shape[1:]
        by_prompt = placed.view(self.live, -1, key_heads, n_rep, width).transpose(1, 2)
        return by_prompt.reshape(self.live, key_heads, -1, width)

    def by_place(self, x: Tensor, n_rep: int) -> Tensor:
        """(live, key heads, queries of a prompt, width) -> (places, key heads, n_rep, width)."""
        live, key_heads, _, width = x.shape
        by_prompt = x.reshape(live, key_heads, -1, n_rep, width).transpose(1, 2)
        return by_prompt.reshape(-1, key_heads, n_rep, width)

    def beyond(self, t: int, window: int | None) -> bool:
        """Whether token t of the responses looks back on less than a whole prompt of this width."""
        return window is not None and self.width + t >= window

    def hidden(self, t: int, window: int | None) -> Tensor:
        """(live, 1, 1, width): 0 where token t of the responses sees a token of the prompt, else -inf."""
        key = (0 if window is None else t, window)
        if key not in self._masks:
            place, lengths = torch.arange(self.width, device=self._lengths.device), self._lengths[: self.live, None]
            unseen = place >= lengths
            if window is not None:
                unseen |= place <= lengths + t - window
            mask = torch.zeros(unseen.shape, device=unseen.device, dtype=self.layers[0][0].dtype)
            self._masks[key] = mask.masked_fill_(unseen, -torch.inf)[:, None, None]
        return self._masks[key]
