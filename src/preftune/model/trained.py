"""Which parameters of a model are trained, by patterns of their names. Held by tests/model/test_trained.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel

from preftune.errors import UserError
from preftune.model.load import SCORE

KEY = "model.trainable"
LISTED = 20  # names that an error gives


def train_only(module: PreTrainedModel, patterns: Sequence[str]) -> tuple[str, dict[str, object]]:
    """Train the parameters of which a name fits a pattern, and no other; returns a sentence and its details.

    A matrix with two names, such as that of a tied head, is trained where either fits, and the sentence says so. Raises
    UserError where a pattern fits no name, or nothing could be learned.
    """
    names = names_of(module)
    if not patterns:
        raise UserError("no pattern is given, so nothing would be trained.", location=KEY, hint="Remove it.")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for aliases in names.values() for name in aliases):
            kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for aliases in names.values() for name in aliases)
            listed = ", ".join([*kinds][:LISTED]) + (", ..." if len(kinds) > LISTED else "")
            raise UserError(f'no weight of this model fits "{pattern}".', location=KEY, hint=f"It has {listed}.")
    tied = []
    for parameter, aliases in names.items():
        fitting = [name for name in aliases if any(fnmatchcase(name, pattern) for pattern in patterns)]
        parameter.requires_grad_(bool(fitting))
        tied += [f"{name} is one matrix with {fitting[0]}" for name in aliases if fitting and name not in fitting]
    score = dict(module.named_parameters()).get(SCORE)
    if score is not None and not score.requires_grad and not score.is_meta and not bool(score.any()):
        raise UserError(f"{SCORE} is 0 and would stay so, and nothing could be learned.", location=KEY,
                        hint=f'Add "{SCORE}".')  # fmt: skip
    trained = [parameter for parameter in names if parameter.requires_grad]
    share = sum(p.numel() for p in trained) / sum(p.numel() for p in names)
    text = "; ".join([f"{len(trained)} of {len(names)} parameters are trained, {share:.2%} of the weights", *tied])
    return text, {"parameters": len(trained), "share": share}


def names_of(module: PreTrainedModel) -> dict[nn.Parameter, list[str]]:
    """Every parameter once, with all its names."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names
