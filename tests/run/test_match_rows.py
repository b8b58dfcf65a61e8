"""Rows the objective cannot use are left out of its steps and counted, or refused if there are no others."""

from __future__ import annotations

import pytest
from making import group
from msgspec.structs import replace

from preftune import objective as o
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.model.config import Model
from preftune.objective import BY_NAME
from preftune.rows.account import Account, Counts
from preftune.run.dataset import Dataset
from preftune.run.match_rows import MatchedRows, match_rows
from preftune.tokens.groups import TokenGroup

GOOD, BAD = (group([1], [5], kind="rating", good=good) for good in (True, False))
PLAIN, EVEN, CLOSE = (group([1], [5], [6], preferred=p) for p in (1.0, 0.5, 0.75))


def matched(objective: o.Objective, train: list[TokenGroup], evaluate: list[TokenGroup] | None = None) -> MatchedRows:
    return match_rows(Run(model=Model(path="m"), objective=objective), dataset(train, evaluate or []))


def dataset(train: list[TokenGroup], held_out: list[TokenGroup], account: Account | None = None) -> Dataset:
    return Dataset(train, held_out, account or Account(), None, None, 64, {}, {})


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
def test_rows_the_objective_cannot_use(objective: o.Objective, train: list[TokenGroup], kept: list[TokenGroup]) -> None:
    result = matched(objective, train, train)
    for groups in (result.dataset.train, result.dataset.held_out):
        assert [(g.kind, g.good, g.preferred) for g in groups] == [(g.kind, g.good, g.preferred) for g in kept]
    left = 2 * (len(train) - len(kept))
    assert ("idle" in result.notes) == bool(left)
    assert not left or str(left) in result.notes["idle"][0]


@pytest.mark.parametrize(("objective", "row", "why"), [(o.NLL(), BAD, "bad responses"), (o.AOT(), EVEN, "even votes")])
def test_no_usable_row_is_refused(objective: o.Objective, row: TokenGroup, why: str) -> None:
    with pytest.raises(UserError, match=f"no row is left to train on: there are 2 .*{why}"):
        matched(objective, [row, row])


def test_a_task_needs_draws_whatever_the_objective() -> None:
    task = replace(group([1]), kind="task", ranks=())
    for objective in BY_NAME.values():
        with pytest.raises(UserError, match=r"this row is a task, and the objective .* needs a .*Add \[rollout\]"):
            matched(objective(), [task])


def test_the_account_and_the_defaults_are_of_the_rows_that_stay() -> None:
    rows = [GOOD, GOOD, GOOD, BAD, EVEN, EVEN]
    account = Account(train=Counts(kept=6, skipped={"too_long": 2}))
    run = Run(model=Model(path="m"), objective=o.KTO())
    result = match_rows(run, dataset(rows, [], account))
    assert result.dataset.account.train == Counts(kept=4, skipped={"too_long": 2, "votes.even": 2})
    assert isinstance(result.run.objective, o.KTO)
    assert result.run.objective == o.KTO().with_data_defaults(3.0, 1.0)
    assert len(match_rows(run, dataset(rows, [], account), full_batch=True).dataset.train) == 6
    with pytest.raises(UserError, match="no row is left to measure on"):
        match_rows(run, dataset(rows, [EVEN], account))
