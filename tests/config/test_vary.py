"""A sweep is every combination of what its words give, each once, and says what a combination lacks."""

from __future__ import annotations

import pytest

from preftune import objective as o
from preftune.config.vary import combinations
from preftune.errors import UserError
from preftune.reference.config import Moving, Stored


def told(*words: str, tree: dict | None = None) -> list[tuple[list[str], o.Objective, list[str]]]:
    return [(named, run.objective, lacks) for named, run, lacks in combinations(tree or {}, words)]


def test_every_combination_once_and_keys_that_an_objective_lacks_left_out() -> None:
    assert told("objective=dpo,ipo,mpo", "objective.beta=0.05,0.1") == [
        (["objective=dpo", "objective.beta=0.05"], o.DPO(beta=0.05), []),
        (["objective=dpo", "objective.beta=0.1"], o.DPO(beta=0.1), []),
        (["objective=ipo"], o.IPO(), ["objective.beta"]),
        (["objective=mpo"], told("objective=mpo")[0][1], ["objective.beta"]),
    ]


def test_a_key_that_another_kind_of_reference_lacks_is_left_out_too() -> None:
    runs = combinations({}, ["reference=stored,moving", "reference.alpha=0.2,0.3"])
    assert [run.reference for _, run, _ in runs] == [Stored(), Moving(alpha=0.2), Moving(alpha=0.3)]
    assert [lacks for _, _, lacks in runs] == [["reference.alpha"], [], []]


def test_the_order_of_words_decides_nothing_but_the_order_of_runs() -> None:
    one, two = told("objective.tau=0.2", "objective=dpo,ipo"), told("objective=dpo,ipo", "objective.tau=0.2")
    assert one == two
    assert [lacks for _, _, lacks in one] == [["objective.tau"], []]


def test_which_objective_it_is_is_never_left_out() -> None:
    for name in ("objective", "objective.name"):
        runs = told(f"{name}=ipo,dpo", "objective.beta=0.3")
        assert runs == [([f"{name}=ipo"], o.IPO(), ["objective.beta"]), ([f"{name}=dpo"], o.DPO(beta=0.3), [])]
    with pytest.raises(UserError, match=r"objective\.beta: there is no such key"):
        told("objective.name=ipo,dpo", tree={"objective": {"name": "dpo", "beta": 0.3}})
    (rloo, gspo) = told("objective.name=rloo,gspo", "objective.clip_high=0.3", "rollout.tasks=4")
    assert (rloo[1], gspo[1]) == (o.RLOO(clip_high=0.3), o.GSPO(clip_high=0.3))


def test_seeds_are_a_key_like_any_other() -> None:
    runs = combinations({"seed": 5, "optim": {"lr": 1e-4}}, ["seed=0,1,2", "optim.betas=[0.9,0.95],[0.9, 0.99]"])
    assert [(run.seed, run.optim.betas[1]) for _, run, _ in runs] == [(s, b) for s in range(3) for b in (0.95, 0.99)]
    assert {run.optim.lr for _, run, _ in runs} == {1e-4}


def test_a_list_is_one_value() -> None:
    (only,) = combinations({}, ['data.train=["a", "b"]', "optim.betas=[0.9, 0.95]"])
    assert (only.run.data.train, only.run.optim.betas, only.words) == (("a", "b"), (0.9, 0.95), [])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["objective=dpo,simpo", "objective.tau=1,2"], "objective.tau: there is no such key"),
        (["objective=dpo,simpo", "objective.bta=1,2"], 'Did you mean "beta"?'),
        (["objective=simpo,orpo", "objective.simpo_gamma=1,2"], "Here it is objective.gamma of objective=simpo"),
        (["seed=1,2", "seed=3"], "seed: is given twice"),
        (["objective=simpo,orpo", "reference=stored"], "these objectives use no reference"),
        (["objective=dpo,dop"], '"dop" is not one of them'),
        (["objective=dpo,cdpo"], "Write objective=dpo objective.flip=0.1"),
        (["objective.beta=0.1,0"], "objective.beta"),
        (["optm.lr=1,2"], "optm"),
        ([f"seed={','.join(map(str, range(201)))}"], "this sweep has 201 runs; the limit is 200."),
    ],
)
def test_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        combinations({}, words)
    assert sentence in str(raised.value)
