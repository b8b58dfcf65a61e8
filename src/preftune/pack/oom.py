"""What to do where memory runs out: the same packs, each cut in two. Held by tests/laws/test_trajectory.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from preftune.errors import IO, STOPPED, UserError, is_out_of_memory
from preftune.pack.plan import Pack, halved
from preftune.tokens.groups import TokenGroup

T = TypeVar("T")
Groups = Sequence[TokenGroup] | Mapping[int, TokenGroup]  # what the indices of a pack mean


@dataclass
class OomRetry:
    """splits: how often packs are cut in two; it rises where a pack does not fit. alone: whether a rank may make other
    passes than the others; hint: what to do where a single row does not fit."""

    splits: int = 0
    alone: bool = True
    hint: str = (
        "Lower data.max_tokens, or set model.checkpointing = true if it is not; `preftune check` says what fits."
    )

    def run(self, groups: Groups, packs: Sequence[Pack], work: Callable[[Sequence[Pack]], T]) -> T:
        """work(packs); where memory runs out, again from its beginning with packs cut in two.

        Unless ranks wait for each other inside `work`, each may retry by itself. Raises UserError at a pack of one row,
        or where it may not.
        """
        while True:
            parts = halved(packs, self.splits)
            try:
                return work(parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if not self.alone:
                    raise UserError(
                        "memory ran out, and weights that are divided by layer let no rank cut its packs in two.",
                        location="batch.tokens",
                        hint="Lower it, and go on: --resume --allow-change batch.tokens",
                        code=STOPPED,
                    ) from error
                if max(map(len, parts)) == 1:
                    longest = max((groups[i] for (i,) in parts), key=lambda group: group.tokens)
                    raise UserError(
                        f"one row of {longest.tokens} tokens does not fit into memory.",
                        location=str(longest.place),
                        hint=self.hint,
                        code=IO,
                    ) from error
            torch.cuda.empty_cache()
            self.splits += 1
