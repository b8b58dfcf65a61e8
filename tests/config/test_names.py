"""The names of a first script stand at the top, and a type checker sees the same ones."""

from __future__ import annotations

import ast
from pathlib import Path

import preftune


def test_a_type_checker_sees_the_names_that_are_there() -> None:
    folder = Path(preftune.__file__).parent
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


def test_a_first_script_needs_one_import() -> None:
    from preftune import DPO, Batch, Data, Evaluate, Model, Moving, Optim, Run, Save, Stored

    run = Run(
        model=Model(path="m"), data=Data(train="rows.jsonl"), objective=DPO(beta=0.2), reference=Stored(store="memory"),
        optim=Optim(lr=1e-6), batch=Batch(rows=8), evaluate=Evaluate(every=5), save=Save(every=5),
    )  # fmt: skip
    assert run != Run(reference=Moving())
