"""The plan is a value: the same rows in every step, whatever the packs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.pack.plan import fill, make_plan, prefix_rank

SIZES = st.lists(st.integers(1, 90), min_size=1, max_size=60)


@given(SIZES, st.integers(1, 20), st.integers(1, 200), st.integers(0, 2**40), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_every_epoch_has_every_row_once(sizes: list[int], rows: int, tokens: int, seed: int, epochs: int) -> None:
    plan = make_plan(sizes, rows=rows, tokens=tokens, seed=seed, epochs=epochs)
    per_epoch = -(-len(sizes) // rows)
    assert len(plan.steps) == epochs * per_epoch
    for epoch in range(epochs):
        steps = plan.steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(i for s in steps for pack in s.packs for i in pack) == list(range(len(sizes)))
        assert all(s.rows == rows for s in steps[:-1])
        assert steps[-1].epoch == epoch + 1
    assert all(sum(sizes[i] for i in pack) <= tokens or len(pack) == 1 for s in plan.steps for pack in s.packs)


@given(SIZES, st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_packs_and_neighbours_never_move_a_row_to_another_step(sizes: list[int], rows: int, seed: int) -> None:
    a = make_plan(sizes, rows=rows, tokens=10**6, seed=seed)
    b = make_plan(sizes, rows=rows, tokens=50, seed=seed, near=sizes)
    flat = lambda plan: [sorted(i for pack in s.packs for i in pack) for s in plan.steps]  # noqa: E731
    assert flat(a) == flat(b)


def test_more_steps_go_on_with_the_next_epoch_and_another_order() -> None:
    plan = make_plan([1] * 10, rows=4, tokens=99, seed=1, steps=7)
    assert [s.rows for s in plan.steps] == [4, 4, 2, 4, 4, 2, 4]
    assert plan.steps[0].packs != plan.steps[3].packs
    assert plan == make_plan([1] * 10, rows=4, tokens=99, seed=1, steps=7)
    assert plan != make_plan([1] * 10, rows=4, tokens=99, seed=2, steps=7)


def test_packs_are_even_rather_than_one_full_and_a_rest() -> None:
    packs = fill(range(12), [10] * 12, 100)
    assert sorted(len(p) for p in packs) == [6, 6]


def test_near_rows_share_a_pack() -> None:
    prompts = [np.array(p) for p in ([1, 2], [9, 9], [1, 2, 3], [9, 8])]
    assert fill(range(4), [50] * 4, 100, prefix_rank(prompts)) == ((0, 2), (3, 1))
