"""Drawing with a family's own cache: for layers that keep a state, or whose attention cannot be replaced. And without
one, for families that keep what they have read elsewhere.

Rows of one batch have prompts of one length, because a state cannot leave padding out. Held by
tests/rollout/test_embedded.py.
"""

from __future__ import annotations

import inspect

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from preftune.errors import UserError, third_party_message
from preftune.model.policy import Policy
from preftune.model.probe import FAILURES, decoder
from preftune.rollout.decode import ROWS, Choice, Continuation, Responses

NAMES = ("past_key_values", "cache", "cache_params")  # under which families take one; the second from transformers 5.24
COMPARED = 8  # rows that are held against a pass without a cache


class Cached(Continuation):
    """A cache of transformers, one row a response."""

    def __init__(self, policy: Policy) -> None:
        """Raises UserError where the family takes no cache."""
        self._decoder, self._device = decoder(policy.module), policy.device
        keywords = inspect.signature(self._decoder.forward).parameters
        self._name = next((name for name in NAMES if name in keywords), "")
        self._takes_positions = "position_ids" in keywords
        self._family = policy.module.config.model_type
        if not self._name:
            raise UserError(f"{self._family} has no cache, so nothing can be drawn from it.", location="model.path")
        self._cache = DynamicCache(config=policy.module.config)

    def begin(self, prompts: Tensor, rows: Tensor) -> Tensor:
        """prompts: (prompts, tokens); rows: the prompt of each row. Returns the rows' last hidden states."""
        position = torch.arange(prompts.shape[1], device=prompts.device).expand_as(prompts)
        states = self._forward(prompts, position)[rows]
        self._cache.reorder_cache(rows.long())  # pyright: ignore[reportArgumentType]
        return states

    def step(self, token: Tensor, position: Tensor) -> Tensor:
        return self._forward(token[:, None], position[:, None])

    def keep(self, order: np.ndarray) -> None:
        rows = torch.from_numpy(order).to(self._device)
        self._cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]

    def _forward(self, ids: Tensor, position: Tensor) -> Tensor:
        """Raises UserError where the model fails."""
        more = {"position_ids": position} if self._takes_positions else {}
        try:
            states = self._decoder(input_ids=ids, use_cache=True, **{self._name: self._cache}, **more)
        except FAILURES as error:
            text = f"{self._family} fails with its cache: {third_party_message(error)}"
            raise UserError(text, location="model.path") from error
        return states.last_hidden_state[:, -1]


class Recomputed(Continuation):
    """No cache: each token by a pass over all that is before it, in parts of `ROWS` rows."""

    def __init__(self, policy: Policy, ids: Tensor) -> None:
        """ids: (rows, tokens), the prompt of each row."""
        self._decoder, self._ids = decoder(policy.module), ids

    def begin(self) -> Tensor:
        """The rows' last hidden states, (rows, width)."""
        passes = (self._decoder(input_ids=ids, use_cache=False) for ids in self._ids.split(ROWS))
        return torch.cat([states.last_hidden_state[:, -1] for states in passes])

    def step(self, token: Tensor, position: Tensor) -> Tensor:
        self._ids = torch.cat([self._ids, token[:, None]], 1)
        return self.begin()

    def keep(self, order: np.ndarray) -> None:
        self._ids = self._ids[torch.from_numpy(order).to(self._ids.device)]


def off_a_plain_pass(policy: Policy, prompts: Tensor, responses: Responses, choice: Choice) -> float:
    """How far what was said of drawn tokens is off a pass over the whole row without a cache: nats a token, on average
    over the worst of `COMPARED` rows, which are spread over all. prompts: (rows, tokens)."""
    worst = 0.0
    for row in np.unique(np.linspace(0, len(prompts) - 1, COMPARED).astype(int)):
        ids = torch.from_numpy(responses.ids[row, : responses.tokens[row]].astype(np.int64)).to(prompts.device)
        if not len(ids):
            continue
        whole = torch.cat([prompts[row], ids])
        states = decoder(policy.module)(input_ids=whole[None, :-1], use_cache=False).last_hidden_state[0, -len(ids) :]
        logp = torch.log_softmax(choice.logits(states), -1).gather(1, ids[:, None])[:, 0]
        said = torch.from_numpy(responses.logp[row, : len(ids)]).to(logp.device)
        worst = max(worst, float((logp - said).abs().mean()))
    return worst
