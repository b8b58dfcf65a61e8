"""What a user's function is called with: arguments by their place, and columns of the row by name.

Held by tests/rollout/test_functions.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any

from preftune.errors import UserError
from preftune.rollout.config import OTHER_ARGUMENTS, REWARD_ARGUMENTS
from preftune.rows.asked import Asked

BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
COLUMNS = (
    "Name them prompt, responses and, where it is read, answer. It is called for one prompt at a time, with all its "
    "responses; whatever else it takes is a column of the row."
)


def places_of(function: Callable[..., Any], arguments: Sequence[str]) -> int:
    """How many of the arguments a function is called with by place: one of rewards whose first two are `prompt` and
    `responses` gets the answer only where the third is named so; another third one is a column."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # one of C may not say
        return len(arguments)
    takes_any = any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters)
    names = tuple(parameter.name for parameter in parameters if parameter.kind in BY_PLACE)
    named = tuple(arguments) == REWARD_ARGUMENTS and names[:2] == REWARD_ARGUMENTS[:2] and not takes_any
    of_answer = len(names) > 2 and (names[2] == REWARD_ARGUMENTS[2] or names[2].startswith("_"))
    return len(arguments) - (named and not of_answer)


def asked_by(function: Callable[..., Any], name: str, arguments: Sequence[str], location: str) -> Asked:
    """The columns that a function of rewards reads, by its further parameters; no other function reads any.

    arguments: what it is called with, in order. Raises UserError where it cannot be called so, names one of these in
    the place of another, or names what is another library's.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one of C may not say
        return Asked()
    parameters, of_rewards = [*signature.parameters.values()], tuple(arguments) == REWARD_ARGUMENTS
    by_place = arguments[: places_of(function, arguments)]
    places = [parameter for parameter in parameters if parameter.kind in BY_PLACE][: len(by_place)]
    more = [parameter for parameter in parameters if parameter not in places and parameter.kind in BY_NAME]
    columns = {parameter.name: parameter.default for parameter in more if of_rewards}
    try:
        signature.bind(*by_place, **columns)
        fits = True
    except TypeError:
        fits = False
    misplaced = {*OTHER_ARGUMENTS} & {*signature.parameters} or {*arguments} & {parameter.name for parameter in more}
    swapped = [each for each, own in zip(places, arguments, strict=False) if each.name in {*arguments} - {own}]
    if not fits or misplaced or swapped:
        raise UserError(f"{name} takes {signature}, and is called with ({', '.join(arguments)}).", location=location,
                        hint=COLUMNS if of_rewards else "")  # fmt: skip
    needed = tuple(column for column, default in columns.items() if default is Parameter.empty)
    optional = tuple(column for column in columns if column not in needed)
    every = of_rewards and any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters)
    return Asked(needed, optional, every, tuple(parameter.name for parameter in places))
