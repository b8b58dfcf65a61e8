"""A reference that follows the policy (TR-DPO, arXiv 2404.09656): a second model in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from preftune.distributed import Distributed
from preftune.model.columns import fill_column
from preftune.model.policy import Policy
from preftune.pack.oom import Groups, OomRetry
from preftune.pack.plan import Step
from preftune.tokens.groups import TokenGroup


@dataclass(frozen=True)
class MovingReference:
    """policy: the reference's model; every `update_every` updates: reference <- lerp(reference, policy, alpha)."""

    policy: Policy
    alpha: float
    update_every: int

    def follow(self, policy: Policy, step: int) -> None:
        """Move, if update `step` (from 1) is one to move after (eqs. 1 and 2)."""
        if step % self.update_every == 0:
            with torch.no_grad():
                for reference, trained in zip(self.policy.module.parameters(), policy.module.parameters(), strict=True):
                    reference.lerp_(trained, self.alpha)

    def fill(self, groups: Groups, step: Step, oom: OomRetry, dist: Distributed) -> dict[int, TokenGroup]:
        """The groups of a step by their index, with this model's numbers of now in the column `reference`."""
        filled: dict[int, TokenGroup] = {}
        for part in (step, step.mismatched):
            if part is not None:
                filled |= fill_column(self.policy, "reference", groups, part, oom, dist)
        return filled
