"""Failures planted in a small world and trained for real: the first finding names what was planted, and honest rows
raise none."""

from __future__ import annotations

from pathlib import Path

import planted
import pytest

from preftune.diagnosis import diagnose


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return planted.models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", planted.FAILURES)
def test_the_first_finding_names_what_was_planted(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    failure = planted.FAILURES[name]
    findings = diagnose(planted.run(failure, models, tmp_path, seed=0))
    assert findings
    assert findings[0].code in failure.codes


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_honest_rows_raise_no_finding(seed: int, models: dict[str, Path], tmp_path: Path) -> None:
    assert diagnose(planted.run(planted.CLEAN, models, tmp_path, seed)) == []
