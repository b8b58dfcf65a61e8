"""A reference that follows the policy (TR-DPO, arXiv 2404.09656): a second model in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from preftune.distributed import Distributed
from preftune.model.policy import Policy
from preftune.pack.oom import Groups, OomRetry
from preftune.pack.plan import Step
from preftune.reference.fill import score_packs
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
                filled |= self._fill(groups, part, oom, dist)
        return filled

    def _fill(self, groups: Groups, step: Step, oom: OomRetry, dist: Distributed) -> dict[int, TokenGroup]:
        scored, _ = score_packs(self.policy, groups, step.packs_of_rank(dist.rank), oom)
        counts = [sum(map(len, groups[i].responses)) for i in step.order]
        dtype = self.policy.logp_dtype
        parts = torch.zeros(sum(counts), dtype=dtype).split(counts)
        for i, part in zip(step.order, parts, strict=True):
            if i in scored:
                part.copy_(torch.from_numpy(scored[i]))
        flat = torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)  # zeros where others scored
        table = dist.sum(flat).split(counts)
        filled: dict[int, TokenGroup] = {}
        for i, values in zip(step.order, table, strict=True):
            by_response = values.split([len(response) for response in groups[i].responses])
            filled[i] = groups[i].with_column("reference", tuple(part.numpy() for part in by_response))
        return filled
