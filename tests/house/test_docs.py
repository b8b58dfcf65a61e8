"""Pages say what is true: generated ones are fresh, and what they show runs."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(language: str) -> list:
    found = [(page, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text()) if kind == language]
    return [pytest.param(text, id=f"{page.name}-{n}") for n, (page, text) in enumerate(found)]


def test_generated_pages_are_fresh() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stale = [name for name, text in module.pages().items() if (ROOT / "docs" / name).read_text() != text]
    assert stale == [], "run `make docs`"


@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs(text: str, place: Path) -> None:
    exec(compile(text, "page", "exec"), {})


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_is_a_run(text: str, tmp_path: Path) -> None:
    from preftune.config.load import load

    (tmp_path / "run.toml").write_text(text)
    assert load(tmp_path / "run.toml")


@pytest.mark.parametrize("text", blocks("json"))
def test_json_is_rows(text: str, tmp_path: Path) -> None:
    from preftune.rows.read import read

    for line in text.splitlines():
        (tmp_path / "rows.jsonl").write_text(line)
        found = read(str(tmp_path / "rows.jsonl"))
        assert len(found.rows) == 1
        assert found.notes == []


IN_TEXT = re.compile(r"`(preftune [^`]+)`")


def commands() -> list[str]:
    """Every command in a code block without language, and every one between backticks that has words."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        fenced = [line for kind, block in BLOCK.findall(text) if not kind for line in block.splitlines()]
        found |= {line.partition("#")[0].strip() for line in fenced if line.startswith("preftune ")}
        found |= {line for line in IN_TEXT.findall(text) if "\n" not in line}
    return sorted(found)


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb is there, its flags are, and its words make a run."""
    from preftune.cli.app import app
    from preftune.cli.score import words_of
    from preftune.cli.verbs import file_of
    from preftune.config.load import parse
    from preftune.config.vary import combinations

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text("")
    words = shlex.split(line)[1:]
    command, bound, _ = app.parse_args([w for w in words if w not in ("[RUN", "...]")], exit_on_error=False)
    assert command.__name__ == words[0].replace("-", "_")
    if words[0] in {"train", "sweep", "check", "score"}:
        names = bound.args
        if words[0] == "score":
            names = words_of(names, bound.kwargs.get("reward"))
        file, keys = file_of(names)
        assert combinations(parse(Path(file)) if file else {}, keys)


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with my-model and pairs.jsonl, as the pages name them."""
    from making import save_model, save_pairs

    save_model(tmp_path / "my-model")
    save_pairs(tmp_path / "pairs.jsonl", 40)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFTUNE_STORE", str(tmp_path / "store"))
    return tmp_path
