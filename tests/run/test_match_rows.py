"""Rows of which an objective makes nothing are left out of its steps and counted, or refused where they are all."""

from __future__ import annotations

import pytest
from making import group

from preftune import objective as o
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.model.config import Model
from preftune.rows.account import Account, Counts
from preftune.run.match_rows import Fitted, fit
from preftune.run.prepare_rows import Prepared
from preftune.tokens.groups import TokenGroup

GOOD, BAD = (group([1], [5], kind="rating", good=good) for good in (True, False))
PLAIN, EVEN, CLOSE = (group([1], [5], [6], preferred=p) for p in (1.0, 0.5, 0.75))


def fitted(objective: o.Objective, train: list[TokenGroup], evaluate: list[TokenGroup] | None = None) -> Fitted:
    return fit(Run(model=Model(path="m"), objective=objective), Prepared(train, evaluate or [], Account(), {}))


@pytest.mark.parametrize(
    ("objective", "train", "kept"),
    [
        (o.NLL(), [GOOD, BAD, BAD, PLAIN], [GOOD, PLAIN]),
        (o.Sum(parts=(o.NLL(), o.KTO()), weights=(1.0, 1.0)), [GOOD, BAD], [GOOD, BAD]),
        (o.AOT(), [PLAIN, EVEN, CLOSE], [PLAIN, CLOSE]),
        (o.KTO(), [GOOD, BAD, EVEN], [GOOD, BAD]),
        (o.DPO(), [PLAIN, EVEN, CLOSE], [PLAIN, EVEN, CLOSE]),  # it reads votes: an even one holds the margin back
    ],
)
def test_idle_rows(objective: o.Objective, train: list[TokenGroup], kept: list[TokenGroup]) -> None:
    found = fitted(objective, train, train)
    for mine in (found.prepared.train, found.prepared.evaluate):
        assert [(g.kind, g.good, g.preferred) for g in mine] == [(g.kind, g.good, g.preferred) for g in kept]
    left = 2 * (len(train) - len(kept))
    assert ("idle" in found.notes) == bool(left)
    assert not left or str(left) in found.notes["idle"][0]


@pytest.mark.parametrize(("objective", "row", "why"), [(o.NLL(), BAD, "bad responses"), (o.AOT(), EVEN, "even votes")])
def test_nothing_but_idle_rows_is_refused(objective: o.Objective, row: TokenGroup, why: str) -> None:
    with pytest.raises(UserError, match=f"no row is left to train on: there are 2 .*{why}"):
        fitted(objective, [row, row])


def test_the_account_and_what_is_settled_are_of_the_rows_that_stay() -> None:
    rows = [GOOD, GOOD, GOOD, BAD, EVEN, EVEN]
    told = Account(train=Counts(kept=6, skipped={"too_long": 2}))
    run = Run(model=Model(path="m"), objective=o.KTO())
    found = fit(run, Prepared(rows, [], told, {}))
    assert found.prepared.account.train == Counts(kept=4, skipped={"too_long": 2, "votes.even": 2})
    assert isinstance(found.run.objective, o.KTO)
    assert found.run.objective == o.KTO().with_data_defaults(3.0, 1.0)
    assert len(fit(run, Prepared(rows, [], told, {}), whole=True).prepared.train) == 6
    with pytest.raises(UserError, match="no row is left to measure on"):
        fit(run, Prepared(rows, [EVEN], told, {}))
