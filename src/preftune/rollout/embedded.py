"""The sampler that is part of this library: a policy draws its own responses.

Held by tests/rollout/test_embedded.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from preftune.errors import NON_FINITE, UserError
from preftune.events import Note, emit
from preftune.model.as_made import as_made
from preftune.model.budget import positions
from preftune.model.heads import LanguageHead
from preftune.model.policy import Policy, not_plain
from preftune.rollout.branches import Branches, NotReplaceableError, register
from preftune.rollout.decode import ROWS, Choice, Responses, Wanted, decode
from preftune.rollout.draw import Drawn, stream_keys
from preftune.rollout.plain import Cached, Recomputed, off_a_plain_pass

OFF = 0.05  # nats a token in a row by which a cache may be off: far above rounding, far below a state that is another's


@dataclass(frozen=True)
class Embedded:
    """A `Sampler`. max_tokens: of a response, its end token included; end_tokens: any of them ends one; temperature:
    logits are divided by it; greedy: the likeliest token is taken, and the K responses are equal."""

    policy: Policy
    max_tokens: int
    end_tokens: frozenset[int]
    temperature: float = 1.0
    greedy: bool = False
    _without_cache: list[str] = field(default_factory=list)  # the family, once its cache was seen to be wrong

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
        of_row = np.repeat(np.arange(len(prompts)), count)
        wanted = Wanted(
            keys=stream_keys(prompts, count, seed),
            start=np.array([len(prompt) for prompt in prompts])[of_row],
            most=most.reshape(-1),
            ends=np.array(sorted(self.end_tokens), np.int64),
        )
        try:
            with torch.no_grad(), self.policy.autocast():
                responses = self._responses(prompts, of_row, wanted)
        except FloatingPointError as error:
            raise UserError(f"the model cannot draw: {error}.", location="model.path", code=NON_FINITE) from error
        return [responses.drawn(range(first, first + count)) for first in range(0, len(of_row), count)]

    def _responses(self, prompts: Sequence[np.ndarray], of_row: np.ndarray, wanted: Wanted) -> Responses:
        """of_row: (rows,) the prompt of each row."""
        module, head = self.policy.module, self.policy.head
        assert isinstance(head, LanguageHead)  # nothing else has tokens to draw
        self.policy.weights.activate()
        choice = Choice(head, self.temperature, self.greedy)
        if not not_plain(module):
            fill = np.arange(-len(of_row) % ROWS)  # rows that are begun and no more
            try:
                with as_made(module, register()):
                    more = np.append(of_row, fill % len(prompts))
                    branches = Branches(self.policy, prompts, more)
                    return decode(branches, branches.begin()[self._on_device(more)], wanted.with_fill(fill), choice)
            except NotReplaceableError:
                pass
        return self._responses_by_cache(prompts, of_row, wanted, choice)

    def _responses_by_cache(
        self, prompts: Sequence[np.ndarray], of_row: np.ndarray, wanted: Wanted, choice: Choice
    ) -> Responses:
        """With the family's own cache, where a pass without one says the same of what is drawn; else without."""
        module = self.policy.module
        responses = Responses.empty(len(of_row), int(wanted.most.max()))
        with as_made(module, "sdpa" if module._supports_sdpa else "eager"):
            for length in np.unique(wanted.start):
                rows = np.flatnonzero(wanted.start == length)
                members, of_member = np.unique(of_row[rows], return_inverse=True)
                ids = self._on_device(np.stack([prompts[index] for index in members]).astype(np.int64))
                member = self._on_device(of_member)
                drawn = None if self._without_cache else self._drawn_by_cache(ids, member, wanted.at(rows), choice)
                if drawn is None:
                    recomputed = Recomputed(self.policy, ids[member])
                    drawn = decode(recomputed, recomputed.begin(), wanted.at(rows), choice)
                responses.put(rows, drawn)
        return responses

    def _drawn_by_cache(self, ids: Tensor, member: Tensor, wanted: Wanted, choice: Choice) -> Responses | None:
        """ids: (prompts, tokens); member: (rows,) their prompts. None where a pass without a cache says otherwise."""
        cached = Cached(self.policy)
        drawn = decode(cached, cached.begin(ids, member), wanted, choice)
        if off_a_plain_pass(self.policy, ids[member], drawn, choice) <= max(OFF, self.policy.noise):
            return drawn
        family = self.policy.module.config.model_type
        text = f"{family} keeps what it has read outside of its cache: each token is drawn by a pass over all before it"
        emit(Note(f"{text}, which is slow"))
        self._without_cache.append(family)
        return None

    def _on_device(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self.policy.device)

    def _refuse_too_long(self, prompts: Sequence[np.ndarray], longest: int) -> None:
        limit = positions(self.policy.module.config)
        most = max(len(prompt) for prompt in prompts)
        if most + longest > limit:
            raise UserError(f"a prompt has {most} tokens and a response up to {longest}; the model has {limit} "
                            "positions.", hint="Draw fewer tokens, or leave out long prompts.")  # fmt: skip
