"""Keys that contradict each other, or would have no effect, are errors before anything is loaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from preftune.config.load import load
from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.errors import UserError
from preftune.model.config import Model
from preftune.objective import DPO
from preftune.pack.config import Batch
from preftune.reference.config import NoReference, Stored
from preftune.rollout.config import Reward
from preftune.rows.config import Data
from preftune.training.config import Optim, Save


def test_the_reference_follows_from_the_objective() -> None:
    assert isinstance(resolve(load(None)).reference, Stored)
    assert isinstance(resolve(load(None, ["objective=simpo"])).reference, NoReference)
    assert resolve(resolve(load(None))) == resolve(load(None))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["reference=none"], "needs a reference"),
        (["objective=simpo", "reference=stored"], "uses no reference"),
        (["model.weights=bfloat16", "reference=moving", "reference.alpha=0.6"], "lost to rounding"),
        (["optim.steps=3", "optim.epochs=2"], "both given"),
    ],
)
def test_contradictions(words: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        resolve(load(None, words))


def test_a_word_takes_out_the_one_of_two_keys_that_a_file_has(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[optim]\nepochs = 2\n")
    with pytest.raises(UserError, match=r"the word optim\.steps= or optim\.epochs= takes it out"):
        resolve(load(tmp_path / "run.toml", ["optim.steps=3"]))
    assert resolve(load(tmp_path / "run.toml", ["optim.steps=3", "optim.epochs="])).optim.steps == 3


def test_a_revision_of_a_folder_has_no_effect(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.revision"):
        resolve(load(None, [f"model.path={tmp_path}", "model.revision=main"]))


FROM_PYTHON = {
    "a bound of an objective": (lambda: Run(objective=DPO(beta=-1)), "objective.beta: must be a number > 0"),
    "a bound": (lambda: Run(data=Data(holdout=5)), "data.holdout: must be a number < 1"),
    "a rate": (lambda: Run(optim=Optim(lr=-3)), "optim.lr: must be a number > 0"),
    "a type": (lambda: Run(optim=Optim(lr="x")), "optim.lr: must be a number, got text"),  # type: ignore[arg-type]
    "no name": (lambda: Run(objective="dop"), 'objective.name: "dop" is not one of them. Did you mean "dpo"'),
    "no table": (lambda: Run(optim=3), "optim: must be a table"),  # type: ignore[arg-type]
    "a function": (lambda: Run(out=print), "out: is of type builtin_function_or_method"),  # type: ignore[arg-type]
    "an object in a list": (
        lambda: Run(reward=(Reward(verify="exact"), Reward(model=object()))),
        "reward.model: is of type object",
    ),  # type: ignore[arg-type]
    "a key of another library": (lambda: Optim(learning_rate=1e-4), "Optim has no learning_rate. Here it is lr."),  # type: ignore[call-arg]
    "a key of an objective": (lambda: DPO(label_smoothing=0.1), "DPO has no label_smoothing. Here it is flip."),  # type: ignore[call-arg]
    "a slip": (lambda: Batch(row=4), 'Batch has no row. Did you mean "rows"?'),  # type: ignore[call-arg]
    "no such key": (lambda: Save(where="x"), "Save has no where. It has every, keep, best."),  # type: ignore[call-arg]
    "a class": (lambda: Run(objective=DPO), "objective: is the class DPO. Write DPO(...)."),
    "all splits": (
        lambda: Run(data=Data(train=Counter())),
        "data.train: cannot be of type Counter. In Python it may be a list",
    ),
    "no model": (lambda: Run(model=Model(path=[1])), "model.path: must be text, got a list"),  # type: ignore[arg-type]
    "a model object": (
        lambda: Run(model=Model(path=object())),
        "model.path: cannot be of type object. In Python it may be a",
    ),  # type: ignore[arg-type]
    "text": (lambda: "x", "a Run is needed, not str"),
}


@pytest.mark.parametrize("case", FROM_PYTHON)
def test_a_run_from_python_is_held_against_the_same_bounds(case: str) -> None:
    make, said = FROM_PYTHON[case]
    with pytest.raises(UserError) as raised:
        resolve(make())
    assert said in str(raised.value)


def test_a_run_from_python_may_hold_names_paths_and_numbers_of_numpy() -> None:
    run = resolve(Run(objective="dpo", model=Model(path=Path("m")), optim=Optim(lr=np.float32(0.5))))  # type: ignore[arg-type]
    assert (run.objective, run.model.path, run.optim.lr) == (DPO(), "m", 0.5)


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo", "reinforce_pp"])
def test_what_learns_from_draws_needs_them(name: str) -> None:
    with pytest.raises(UserError, match=r"objective: .* draws.*\[rollout\]"):
        resolve(load(None, [f"objective={name}"]))
