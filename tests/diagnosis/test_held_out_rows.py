"""Held-out rows of every kind carry the numbers that say how sure a mean over them is."""

from __future__ import annotations

import torch
from making import group

from preftune.evaluate.evaluate import _gained, _rows
from preftune.evaluate.metrics import right_of
from preftune.forward.examples import Examples
from preftune.objective import DPO
from preftune.objective.responses import Responses


def test_a_row_of_any_kind_tells_its_changes_under_the_name_of_its_side() -> None:
    rows = [group([1], [5], [6]), group([1], [5], kind="rating", good=True), group([1], [5], kind="rating", good=False),
            group([1], [5], kind="demo")]  # fmt: skip
    logp = torch.tensor([3.0, 1.0, 2.0, 4.0, 5.0], dtype=torch.float64)
    views = Examples(rows, Responses(logp, torch.ones_like(logp), torch.zeros_like(logp)))
    before = torch.ones_like(logp)
    told = _rows(views, before, {}, {}, right_of(views, DPO()), _gained(views, before))
    changes = [(row.get("chosen_logp_change"), row.get("rejected_logp_change")) for row in told]
    assert changes == [(2, 0), (1, None), (None, 3), (4, None)]
    assert [row.get("margin") for row in told] == [2, None, None, None]
