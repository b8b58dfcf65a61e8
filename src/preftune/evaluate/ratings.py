"""How often a good response stands above a bad one, for each rated response."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from preftune.evaluate.metrics import (
    TIE,
)
from preftune.forward.examples import Examples


def rating_auc(examples: Examples, values: Tensor) -> dict[int, float]:
    """Place of each rated response -> share of the other class on whose right side its value, (responses,), stands.

    The mean over the good ones, or over the bad ones, is how often a good one has the larger value.
    """
    classes = rated(examples)
    places = [place for of_class in classes.values() for place in of_class]
    if not places:
        return {}
    good = np.isin(places, classes[True])
    return dict(zip(places, class_auc(values.numpy()[places], good).tolist(), strict=True))


def class_auc(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """(rated,) share of the other class on whose right side each value stands: DeLong's placements."""
    auc = np.empty(len(values))
    for called in (True, False):
        own, others = values[good == called], np.sort(values[good != called])
        below = np.searchsorted(others, own - TIE) + np.searchsorted(others, own + TIE, "right")
        auc[good == called] = below / (2 * len(others)) if called else 1 - below / (2 * len(others))
    return auc


def rated(examples: Examples) -> Mapping[bool, list[int]]:
    """Places of the responses called good (True) and bad (False); empty where one of the two is missing."""
    rated = [(start, g.good) for start, g in zip(examples.starts, examples.groups, strict=True) if g.kind == "rating"]
    classes = {called: [place for place, good in rated if good is called] for called in (True, False)}
    return classes if all(classes.values()) else {}
