"""The laws that a program can see."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = sorted((ROOT / "src" / "preftune").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
_, _, ORDER = CONTRIBUTING.partition("<!-- order of imports -->\n```\n")
LEFT_TO_RIGHT = ORDER.partition("```")[0].split()
LOCALS = {"found", "told", "mine", "one", "given", "held", "kept", "done", "theirs"}
LINES, FUNCTION_LINES = 260, 48
BANNED = re.compile(
    r"\b(logps|logprobs?|log_probs|logratios?|ref_model|completions?|micro_?batch\w*|loss_type|winner|loser|lens)\b"
)
# where other people's key names are read
THEIRS = {"formats.py", "keys.py", "verdicts.py", "config.py", "run.py", "server.py", "judges.py", "elsewhere.py"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCE, ids=name)
def test_a_screenful(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name  # type: ignore[operator]


@pytest.mark.parametrize("path", SOURCE, ids=name)
def test_words(path: Path) -> None:
    lines = path.read_text().splitlines()
    found = [
        f"{n}: {line.strip()}" for n, line in enumerate(lines, 1) if BANNED.search(line) and path.name not in THEIRS
    ]
    assert found == []


@pytest.mark.parametrize("path", [p for p in PAGES if p.name != "peers.md"], ids=name)
def test_words_of_the_pages(path: Path) -> None:
    told = [line for line in path.read_text().splitlines() if BANNED.search(line) and "`" not in line]
    assert told == []


@pytest.mark.parametrize("path", SOURCE, ids=name)
def test_locals_are_named_by_what_they_hold(path: Path) -> None:
    tree = ast.walk(ast.parse(path.read_text()))
    functions = [node for node in tree if isinstance(node, ast.FunctionDef | ast.Lambda)]
    bound = [node for function in functions for node in ast.walk(function)]
    names = {(node.lineno, node.arg) for node in bound if isinstance(node, ast.arg)}
    stored = [node for node in bound if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    names |= {(node.lineno, node.id) for node in stored}
    assert [(line, local) for line, local in sorted(names) if local in LOCALS] == []


def test_every_module_stands_in_the_order_of_imports() -> None:
    root = ROOT / "src" / "preftune"
    modules = {path.stem for path in root.glob("*.py")} - {"__init__", "__main__"}
    folders = {path.parent.name for path in SOURCE if path.parent.parent == root}
    assert sorted(LEFT_TO_RIGHT) == sorted(modules | folders)
    readme = re.findall(r"^  (\w+)/ ", (ROOT / "README.md").read_text(), re.M)
    assert readme == [each for each in LEFT_TO_RIGHT if each in folders], "README's tree has another order"


@pytest.mark.parametrize("path", SOURCE, ids=name)
def test_imports_go_to_the_left(path: Path) -> None:
    here = path.relative_to(ROOT / "src" / "preftune").parts[0].removesuffix(".py")
    if here not in LEFT_TO_RIGHT:  # the package's own door and its command
        assert here in {"__init__", "__main__"}
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""] + [
                f"{node.module}.{alias.name}" for alias in node.names if node.module == "preftune"
            ]
        else:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            if module.startswith("preftune."):
                there = module.split(".")[1]
                assert LEFT_TO_RIGHT.index(there) <= LEFT_TO_RIGHT.index(here), f"{here} imports {module}"


FORBIDDEN_NAMES = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile_command"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("yaml", "load"), ("numpy", "load"), ("np", "load")}
LOADERS = {"from_pretrained", "from_config"}  # each is told that no code of a model runs, so none asks whether it may
WRITERS = {"write_text", "write_bytes", "mkdir", "rename", "replace", "unlink", "rmdir", "touch"}


@pytest.mark.parametrize("path", SOURCE, ids=name)
def test_nothing_runs_what_it_reads_and_one_module_writes(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name.split(".")[0] for a in node.names} | {(getattr(node, "module", None) or "").split(".")[0]}
            assert not names & FORBIDDEN_NAMES
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle"
            assert node.arg != "trust_remote_code" or ast.unparse(node.value) == "False"
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name):
            assert called.id not in FORBIDDEN_CALLS
            assert called.id != "hasattr"
        if isinstance(called, ast.Attribute):
            if called.attr in LOADERS:
                assert "trust_remote_code" in {keyword.arg for keyword in node.keywords}, ast.unparse(node)
            owner = called.value.id if isinstance(called.value, ast.Name) else ""
            assert (owner, called.attr) not in FORBIDDEN_ATTRIBUTES
            if path.name not in {"files.py", "folders.py"} and called.attr in WRITERS - {"replace"} | {"open"}:
                modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                assert called.attr == "open", ast.unparse(node)
                assert not any(set(mode) & set("wax+") for mode in modes), ast.unparse(node)


LIGHT = {
    "help": (["--help"], 0),
    "help of a verb": (["train", "--help"], 0),
    "a wrong key": (["train", "optim.lrr=1"], 2),
    "keys": (["keys"], 0),
    "check without a model": (["check", "data.train=ROWS"], 0),
    "a folder that holds other files": (["train", "model.path=m", "data.train=ROWS", "out=OUT"], 2),
    "a folder that holds a run": (["train", "model.path=m", "data.train=ROWS", "out=RUN"], 2),
    "rows that are not there": (["train", "model.path=m", "data.train=no.jsonl"], 2),
    "no rows at all": (["train", "model.path=m"], 2),
    "a pattern that nothing fits": (["train", "model.path=m", "data.train=ROWS", "data.evaluate=no*.jsonl"], 2),
    "a tracker that is not there": (["train", "model.path=m", "data.train=ROWS", "track.to=wandb"], 2),
    "a sweep of rows that are not there": (["sweep", "model.path=m", "data.train=ROWS,no.jsonl"], 2),
    "prompts that are not there": (["draw", "m", "no.jsonl"], 2),
    "rows to score that are not there": (["score", "model.path=m", "objective=nll", "no.jsonl"], 2),
    "a sweep over another's page": (["sweep", "model.path=m", "data.train=ROWS", "--out", "SWEEP"], 2),
}


@pytest.mark.parametrize("case", LIGHT)
def test_light_verbs_load_no_torch(case: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"prompt": "a", "chosen": " b", "rejected": " c"}\n' * 1
        + '{"prompt": "d", "chosen": " e", "rejected": " f"}\n'
    )
    for file in ("OUT/thesis.tex", "RUN/identity.json", "SWEEP/compare.html"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("")
    words, code = LIGHT[case]
    for name in ("ROWS", "OUT", "RUN", "SWEEP"):
        words = [word.replace(name, str(rows if name == "ROWS" else tmp_path / name)) for word in words]
    script = (
        "import sys, time\nsys.argv = ['preftune', *sys.argv[1:]]\nfrom preftune.__main__ import main\n"
        "code = 0\ntry:\n    main()\nexcept SystemExit as error:\n    code = error.code or 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'plotly'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), 'CODE', code, 'CPU', time.process_time())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    told = done.stdout.strip().splitlines()[-1].split()
    assert told[:4] == ["HEAVY", "[]", "CODE", str(code)], done.stdout + done.stderr


def test_importing_the_package_is_free() -> None:
    script = "import sys, preftune; print(sorted({'torch', 'numpy', 'msgspec'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_every_public_name_is_there() -> None:
    import preftune

    for public in preftune.__all__:
        assert getattr(preftune, public) is not None
    assert callable(preftune.train)
    assert callable(preftune.diagnose)  # no folder hides behind these names
    with pytest.raises(AttributeError):
        preftune.nothing  # noqa: B018


def test_a_type_checker_sees_the_names_that_are_there() -> None:
    import preftune

    folder = ROOT / "src" / "preftune"
    tree = ast.parse((folder / "__init__.py").read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("preftune")
        for alias in node.names
    }
    assert seen == {**preftune._MODULE_OF, "objective": "preftune"}
    assert sorted(seen) == sorted(preftune.__all__)
    assert (folder / "py.typed").is_file()
