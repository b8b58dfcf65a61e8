"""Keys that contradict each other, or would have no effect, are errors before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from preftune.config.load import load
from preftune.config.resolve import resolve
from preftune.config.run import NoReference, Stored
from preftune.errors import UserError


def test_the_reference_follows_from_the_objective() -> None:
    assert isinstance(resolve(load(None)).reference, Stored)
    assert isinstance(resolve(load(None, ["objective=simpo"])).reference, NoReference)
    assert resolve(resolve(load(None))) == resolve(load(None))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["reference=none"], "needs a reference"),
        (["objective=simpo", "reference=stored"], "uses no reference"),
        (["optim.steps=3", "optim.epochs=2"], "both given"),
    ],
)
def test_contradictions(words: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        resolve(load(None, words))


def test_a_revision_of_a_folder_has_no_effect(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.revision"):
        resolve(load(None, [f"model.path={tmp_path}", "model.revision=main"]))
