"""The loop that draws: a token for every row that has not ended, until all have.

Held by tests/rollout/test_embedded.py.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from preftune.events import Progress, emit
from preftune.model.fused import product_type
from preftune.model.heads import LanguageHead
from preftune.rollout.draw import Drawn, most_likely, pick, uniform

# A row's bits must not depend on how many rows there are. Products of MKL in fp32 want 4 rows at least; elementwise
# functions of torch take 32 numbers at a time and the rest in another way, and widths are multiples of 4.
ROWS = 8
SLOW = 10.0  # seconds after which a draw tells how far it is
LOGITS = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}  # bytes of logits at a time


class Continuation(ABC):
    """Rows that a model goes on with, and what it keeps of the tokens that they have so far."""

    @abstractmethod
    def step(self, token: Tensor, position: Tensor) -> Tensor:
        """One token more for each row, (rows,), at its position: the last hidden states, (rows, width)."""

    @abstractmethod
    def keep(self, order: np.ndarray) -> None:
        """Go on with these rows, in this order; the first stay where they are but for those that others replace."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a token is chosen: by its random number from the distribution at this temperature, or the likeliest."""

    head: LanguageHead
    temperature: float
    greedy: bool

    def tokens(self, states: Tensor, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """states: (rows, width); u: (rows,). A token a row and its log-probability, (rows,) each.

        Raises FloatingPointError where a log-probability is not finite.
        """
        numbers = torch.from_numpy(u).to(states.device)
        at_once = max(1, LOGITS[states.device.type] // (4 * ROWS * len(self.head.weight))) * ROWS
        pairs = [self._pick(*part) for part in zip(states.split(at_once), numbers.split(at_once), strict=True)]
        token, logp = (torch.cat(columns).cpu().numpy() for columns in zip(*pairs, strict=True))
        if not np.isfinite(logp).all():
            raise FloatingPointError("a log-probability of a drawn token is not finite")
        return token, logp

    def logits(self, states: Tensor) -> Tensor:
        """(rows, width) -> (rows, vocab) in fp32 or wider, at the temperature."""
        logits = self.head.logits(states.to(product_type(states)))
        return logits if self.temperature == 1 else logits.div_(self.temperature)

    def _pick(self, states: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(states)
        return most_likely(logits) if self.greedy else pick(logits, u)


@dataclass(frozen=True, slots=True)
class Responses:
    """All responses of a phase as they grow. ids, logp: (rows, most tokens); tokens: (rows,) how many there are."""

    ids: np.ndarray
    logp: np.ndarray
    tokens: np.ndarray
    ended: np.ndarray

    @classmethod
    def empty(cls, rows: int, longest: int) -> Responses:
        shape = (rows, longest)
        return cls(np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(rows, int), np.zeros(rows, bool))

    def put(self, rows: np.ndarray, others: Responses) -> None:
        """Take over the responses of some rows."""
        longest = others.ids.shape[1]
        self.ids[rows, :longest], self.logp[rows, :longest] = others.ids, others.logp
        self.tokens[rows], self.ended[rows] = others.tokens, others.ended

    def drawn(self, rows: range) -> Drawn:
        """The responses of these rows, which are to one prompt."""
        return Drawn(
            tuple(self.ids[row, : self.tokens[row]].copy() for row in rows),
            tuple(self.logp[row, : self.tokens[row]].copy() for row in rows),
            tuple(bool(self.ended[row]) for row in rows),
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of each row, (rows,): the key of its random numbers, the position of its first token, its most tokens (0: it
    only fills products up), and the tokens that end any row."""

    keys: np.ndarray
    start: np.ndarray
    most: np.ndarray
    ends: np.ndarray

    def at(self, rows: np.ndarray) -> Wanted:
        return Wanted(self.keys[rows], self.start[rows], self.most[rows], self.ends)

    def with_fill(self, fill: np.ndarray) -> Wanted:
        """With rows behind the others that only fill products up."""
        none = np.zeros_like(fill)
        keys, start, most = (np.append(x, none.astype(x.dtype)) for x in (self.keys, self.start, self.most))
        return Wanted(keys, start, most, self.ends)


def decode(rows: Continuation, states: Tensor, wanted: Wanted, choice: Choice) -> Responses:
    """states: (rows, width) of each prompt's last token. Raises FloatingPointError where the model is not finite."""
    responses = Responses.empty(len(states), longest := int(wanted.most.max()))
    row, live, began = np.arange(len(states)), wanted.most > 0, time.monotonic()
    for t in range(longest):
        if time.monotonic() - began > SLOW:
            emit(Progress("drawing tokens", t, longest))
        token, logp = choice.tokens(states, uniform(wanted.keys[row], t))
        growing = row[live]
        responses.ids[growing, t], responses.logp[growing, t] = token[live], logp[live]
        responses.tokens[growing] += 1
        ends = np.isin(token, wanted.ends)
        responses.ended[row[live & ends]] = True
        live = live & ~ends & (t + 1 < wanted.most[row])
        if not live.any():
            break
        if not live.all() and len(row) > ROWS:
            order = live_first(live)
            rows.keep(order)
            row, live, token = row[order], live[order], token[order]
        device = states.device
        position = torch.from_numpy(wanted.start[row] + t).to(device)
        states = rows.step(torch.from_numpy(token.astype(np.int64)).to(device), position)
    return responses


def live_first(live: np.ndarray) -> np.ndarray:
    """Which rows to go on with, in order: live ones, and some that ended, up to a multiple of ROWS.

    They stay where they are; the last take the places of those that leave, so that little is moved.
    """
    stays = live.copy()
    stays[np.flatnonzero(~live)[: -int(live.sum()) % ROWS]] = True
    count = int(stays.sum())
    order = np.arange(count)
    order[~stays[:count]] = count + np.flatnonzero(stays[count:])
    return order
