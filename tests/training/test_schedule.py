"""The learning rate of every update, held against transformers' schedules, and what a schedule refuses."""

from __future__ import annotations

import re

import pytest
import torch
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from preftune.config.load import load
from preftune.config.resolve import resolve
from preftune.errors import UserError
from preftune.training.config import Optim
from preftune.training.schedule import learning_rate, refuse_long_warmup

STEPS, WARMUP = 40, 8


def rates(**keys: object) -> list[float]:
    optim = Optim(lr=2.0, **keys)  # type: ignore[arg-type]
    return [learning_rate(optim, step, STEPS) for step in range(STEPS)]


def theirs(make: object, **keys: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    schedule = make(optimizer, num_warmup_steps=WARMUP, **keys)  # type: ignore[operator]
    made = []
    for _ in range(STEPS):
        made.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return made


@pytest.mark.parametrize(
    ("keys", "make", "peers"),
    [
        ({"schedule": "constant"}, get_constant_schedule_with_warmup, {}),
        ({"schedule": "linear"}, get_linear_schedule_with_warmup, {"num_training_steps": STEPS}),
        (
            {"schedule": "cosine", "floor": 0.1},
            get_cosine_with_min_lr_schedule_with_warmup,
            {"num_training_steps": STEPS, "min_lr_rate": 0.1},
        ),
        (
            {"schedule": "wsd", "decay": 0.25, "floor": 0.2},
            get_wsd_schedule,
            {"num_training_steps": STEPS, "num_decay_steps": 10, "decay_type": "linear", "min_lr_ratio": 0.2},
        ),
    ],
    ids=lambda value: value.get("schedule") if isinstance(value, dict) and "schedule" in value else "",
)
def test_after_the_warmup_rates_are_those_of_transformers(keys: dict, make: object, peers: dict) -> None:
    ours = rates(warmup_steps=WARMUP, **keys)
    assert ours[WARMUP:] == pytest.approx(theirs(make, **peers)[WARMUP:])
    assert ours == rates(warmup=WARMUP / STEPS, **keys)
    assert ours[:WARMUP] == pytest.approx([2.0 * (step + 1) / (WARMUP + 1) for step in range(WARMUP)])


def test_a_floor_holds_for_linear_and_the_decay_of_wsd_is_a_tenth() -> None:
    assert rates(schedule="linear", warmup=0.0, floor=0.25)[-1] == pytest.approx(2.0 * (0.25 + 0.75 / STEPS))
    stays = rates(schedule="wsd", warmup=0.0)
    assert stays[: STEPS - 4] == [2.0] * (STEPS - 4)
    assert stays[STEPS - 4 :] == pytest.approx([2.0, 1.5, 1.0, 0.5])


@pytest.mark.parametrize(
    ("optim", "text"),
    [
        (Optim(warmup_steps=10), "of the run's 10 updates 10 would be warm-up, and none"),
        (Optim(warmup_steps=10, schedule="wsd"), "10 would be warm-up and 1 decay"),
    ],
)
def test_a_warmup_that_leaves_no_update_is_refused(optim: Optim, text: str) -> None:
    refuse_long_warmup(optim, 12)
    with pytest.raises(UserError, match=text):
        refuse_long_warmup(optim, 10)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("optim.warmup=0.1 optim.warmup_steps=3", "warmup and warmup_steps are both given"),
        (
            "optim.schedule=constant optim.floor=0.1",
            "optim.floor: a constant rate has no floor, so the key has no effect",
        ),
        ("optim.decay=0.2", "optim.decay: linear falls from the warm-up on, so the key has no effect"),
        ("optim.schedule=wsd optim.warmup=0.5 optim.decay=0.6", "longer than the run"),
        ("optim.schedule=constant_with_warmup", 'Write schedule = "constant", with warmup'),
        ("optim.schedule=warmup_stable_decay", 'Write schedule = "wsd", with decay'),
        ("optim.lr_scheduler_type=cosine", "Here it is optim.schedule"),
        ("num_warmup_steps=3", "Here it is optim.warmup_steps"),
        ("optim.min_lr_ratio=0.1", "Here it is optim.floor"),
        ("optim.rounding=stochastic", "weights in float32 hold their updates, so the key has no effect"),
        ("optim.rounding=nearest model.weights=bfloat16", r"updates of 1e-06 would be rounded away: 6\.1e-05 is half"),
    ],
)
def test_keys_that_exclude_each_other_or_do_nothing_are_refused(words: str, text: str) -> None:
    with pytest.raises(UserError, match=text if "\\" in text else re.escape(text)):
        resolve(load(None, words.split()))


def test_what_is_open_is_filled_in_once() -> None:
    run = resolve(load(None, ["model.weights=bfloat16", "optim.schedule=wsd"]))
    assert (run.optim.rounding, run.optim.warmup, run.optim.decay) == ("stochastic", 0.1, 0.1)
    assert resolve(run) == run
    assert resolve(load(None)).optim.rounding == "nearest"
    assert resolve(load(None, ["optim.warmup_steps=3"])).optim.warmup is None
