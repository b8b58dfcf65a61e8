"""The plan is a value: the same rows in every step, whatever the packs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from making import group

from preftune.pack.plan import Packing, fill, make_plan, prefix_order

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
def test_packs_and_neighbors_never_move_a_row_to_another_step(sizes: list[int], rows: int, seed: int) -> None:
    a = make_plan(sizes, rows=rows, tokens=10**6, seed=seed)
    b = make_plan(sizes, rows=rows, tokens=50, seed=seed, sort_key=sizes)
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
    assert fill(range(4), [50] * 4, 100, prefix_order(prompts)) == ((0, 2), (3, 1))


@given(SIZES, st.integers(1, 20), st.integers(1, 200), st.integers(1, 5), st.data())
@settings(max_examples=100, deadline=None)
def test_ranks_share_the_packs_of_the_same_steps(
    sizes: list[int], rows: int, tokens: int, ranks: int, data: st.DataObject
) -> None:
    costs = [size * data.draw(st.floats(1, 3)) for size in sizes]
    alone = make_plan(sizes, rows=rows, tokens=tokens, seed=5)
    plan = make_plan(sizes, rows=rows, tokens=tokens, seed=5, costs=costs, world_size=ranks, sort_key=sizes)
    assert [step.order for step in plan.steps] == [step.order for step in alone.steps]
    for step in plan.steps:
        assert sorted(i for rank in range(ranks) for pack in step.packs_of_rank(rank) for i in pack) == step.order
        assert len(step.packs) % ranks == 0 or all(len(pack) == 1 for pack in step.packs)
        assert all(sum(sizes[i] for i in pack) <= tokens or len(pack) == 1 for pack in step.packs)
        flat = [sizes[i] for pack in step.packs for i in pack]
        assert flat == sorted(flat)  # neighbors stay together
        if len(step.packs) == ranks and sum(flat) <= tokens:
            work = [sum(costs[i] for i in pack) for pack in step.packs]
            assert max(work) <= sum(work) / ranks + max(costs)


def test_ranks_without_a_pack_have_none() -> None:
    (step,) = make_plan([5], rows=4, tokens=99, seed=0, world_size=3).steps
    assert [step.packs_of_rank(rank) for rank in range(3)] == [((0,),), (), ()]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 6), st.integers(0, 99), st.data())
def test_idle_groups_stay_in_their_step_and_are_in_no_pack(
    sizes: list[int], rows: int, seed: int, data: st.DataObject
) -> None:
    idle = frozenset(data.draw(st.sets(st.integers(0, len(sizes) - 1))))
    whole = make_plan(sizes, rows=rows, tokens=40, seed=seed)
    less = make_plan(sizes, rows=rows, tokens=40, seed=seed, idle=idle)
    for step, without in zip(whole.steps, less.steps, strict=True):
        assert step.rows == without.rows
        assert sorted([*without.order, *without.idle]) == step.order
        assert without.order, "a step makes one pass, if only for a gradient of 0"
        assert not idle & set(without.order) or len(without.order) == 1


def test_long_paths_cost_more_than_their_tokens() -> None:
    """One row of 400 tokens against four of 100: half of the tokens, and more than half of the work."""
    made = [group(range(350), range(25), range(25)), *(group(range(50), range(25), range(25)) for _ in range(4))]
    assert Packing(9999).cost(made[0]) == 400
    assert Packing(9999, attention_crossover=375).cost(made[0]) == 800
    assert Packing(9999, attention_crossover=375).cost(made[1]) == 120
    assert [len(pack) for pack in Packing(9999, attention_crossover=375).step(made, 2).packs] == [4, 1]
    step = make_plan([100] * 5, rows=5, tokens=100, seed=0, costs=[400.0, 100, 100, 100, 100], world_size=2).steps[0]
    assert sorted(len(step.packs_of_rank(rank)) for rank in range(2)) == [1, 4]
