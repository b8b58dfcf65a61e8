"""The sampler that is part of this library: a policy draws its own responses.

Held by tests/rollout/test_embedded.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from preftune.errors import NON_FINITE, UserError
from preftune.model.as_made import as_made
from preftune.model.budget import positions
from preftune.model.heads import LanguageHead
from preftune.model.policy import Policy, not_plain
from preftune.rollout.branches import Branches, NotReplaceableError, register
from preftune.rollout.decode import LEAST, Choice, Continuation, Responses, Wanted, decode
from preftune.rollout.draw import Drawn, stream_keys
from preftune.rollout.plain import Cached


@dataclass(frozen=True)
class Embedded:
    """A `Sampler`. max_tokens: of a response, its end token included; end_tokens: any of them ends one; temperature:
    logits are divided by it; greedy: the likeliest token is taken, and the K responses are equal."""

    policy: Policy
    max_tokens: int
    end_tokens: frozenset[int]
    temperature: float = 1.0
    greedy: bool = False

    def draw(self, prompts: Sequence[np.ndarray], count: int, seed: Sequence[int]) -> list[Drawn]:
        """`count` responses to each prompt, a function of the weights, each prompt, k and the seed.

        Raises UserError where a prompt leaves too few positions, or the model is not finite.
        """
        most = np.full((len(prompts), count), self.max_tokens)
        return self.draw_up_to(prompts, most, seed)

    def draw_up_to(self, prompts: Sequence[np.ndarray], most: np.ndarray, seed: Sequence[int]) -> list[Drawn]:
        """As `draw`; most: (prompts, count), the tokens at which each response is cut."""
        self._refuse_too_long(prompts, int(most.max()))
        count = most.shape[1]
        fill = max(0, -(-LEAST // len(prompts)) - count)  # responses that are begun and dropped
        most = np.pad(most, ((0, 0), (0, fill)))
        keys = stream_keys(prompts, count + fill, seed).reshape(most.shape)
        try:
            with torch.no_grad(), self.policy.autocast():
                drawn = self._draw(prompts, keys, most)
        except FloatingPointError as error:
            raise UserError(f"the model cannot draw: {error}.", location="model.path", code=NON_FINITE) from error
        return [Drawn(d.ids[:count], d.logp[:count], d.ended[:count]) for d in drawn]

    def _draw(self, prompts: Sequence[np.ndarray], keys: np.ndarray, most: np.ndarray) -> list[Drawn]:
        """keys, most: (prompts, count)."""
        module = self.policy.module
        if not not_plain(module):
            try:
                with as_made(module, register()):
                    return self._branched(prompts, keys, most)
            except NotReplaceableError:
                pass
        drawn: dict[int, Drawn] = {}
        with as_made(module, "sdpa" if module._supports_sdpa else "eager"):
            for length in sorted({len(prompt) for prompt in prompts}):
                these = [index for index, prompt in enumerate(prompts) if len(prompt) == length]
                drawn |= zip(these, self._cached([prompts[i] for i in these], keys[these], most[these]), strict=True)
        return [drawn[index] for index in range(len(prompts))]

    def _branched(self, prompts: Sequence[np.ndarray], keys: np.ndarray, most: np.ndarray) -> list[Drawn]:
        of_row = np.repeat(np.arange(len(prompts)), keys.shape[1])
        branches = Branches(self.policy, prompts, of_row)
        states = branches.begin()[torch.from_numpy(of_row).to(self.policy.device)]
        return self._responses(branches, states, prompts, keys, most)

    def _cached(self, prompts: Sequence[np.ndarray], keys: np.ndarray, most: np.ndarray) -> list[Drawn]:
        """Responses to prompts of one length."""
        ids = torch.from_numpy(np.stack(prompts).astype(np.int64)).to(self.policy.device)
        of_row = np.repeat(np.arange(len(prompts)), keys.shape[1])
        cached = Cached(self.policy)
        states = cached.begin(ids, torch.from_numpy(of_row).to(ids.device))
        return self._responses(cached, states, prompts, keys, most)

    def _responses(
        self, rows: Continuation, states: Tensor, prompts: Sequence[np.ndarray], keys: np.ndarray, most: np.ndarray
    ) -> list[Drawn]:
        start = np.repeat([len(prompt) for prompt in prompts], keys.shape[1])
        wanted = Wanted(keys.reshape(-1), start, most.reshape(-1), np.array(sorted(self.end_tokens), np.int64))
        choice = Choice(_language_head(self.policy), self.temperature, self.greedy)
        return _by_prompt(decode(rows, states, wanted, choice), *keys.shape)

    def _refuse_too_long(self, prompts: Sequence[np.ndarray], longest: int) -> None:
        limit = positions(self.policy.module.config)
        most = max(len(prompt) for prompt in prompts)
        if most + longest > limit:
            raise UserError(f"a prompt has {most} tokens and a response up to {longest}; the model has {limit} "
                            "positions.", hint="Draw fewer tokens, or leave out long prompts.")  # fmt: skip


def _language_head(policy: Policy) -> LanguageHead:
    assert isinstance(policy.head, LanguageHead)  # nothing else has tokens to draw
    return policy.head


def _by_prompt(responses: Responses, prompts: int, count: int) -> list[Drawn]:
    """One `Drawn` a prompt."""
    drawn = []
    for first in range(0, prompts * count, count):
        rows = range(first, first + count)
        ids = tuple(responses.ids[row, : responses.tokens[row]].copy() for row in rows)
        logp = tuple(responses.logp[row, : responses.tokens[row]].copy() for row in rows)
        drawn.append(Drawn(ids, logp, tuple(bool(responses.ended[row]) for row in rows)))
    return drawn
