"""Some rows of docs/models.md, made again: what becomes of a family, on packs that mix lengths across its limits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("families", DOCS / "families.py")
assert SPEC is not None
assert SPEC.loader is not None
families = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(families)
SOME = [
    "apertus", "bert", "deepseek_v3", "falcon_h1", "gpt_bigcode", "llama", "mamba", "minicpm3", "mpt", "phi3", "xglm",
]  # fmt: skip


def rows_of_page() -> dict[str, list[str]]:
    """Family -> the cells of its row."""
    lines = [line for line in (DOCS / "models.md").read_text().splitlines() if line.startswith("| ")][1:]
    return {cells[0]: cells for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", SOME)
def test_a_family_fares_as_the_page_says(family: str) -> None:
    row, (_, outcome, _, reason) = families.attempt(family), rows_of_page()[family]
    assert row.outcome == outcome
    assert (row.reason == "") == (reason == "")
    if row.outcome != "refused":
        assert row.off is None or row.off < 1e-3


def test_the_page_lists_families_by_name_and_gives_each_a_reason_or_none() -> None:
    page = rows_of_page()
    assert set(page) <= set(families.families())
    assert all((outcome == "trie") == (reason == "") for _, outcome, _, reason in page.values())
