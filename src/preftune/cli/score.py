"""preftune score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from preftune.cli.verbs import at_work, run_of
from preftune.config.inputs import inputs
from preftune.config.load import load
from preftune.errors import UserError
from preftune.objective import uses_reference
from preftune.record.output import SCORES, assert_replaceable
from preftune.record.parse import RUN_FILE, model_of, system_of_run
from preftune.rows.config import Data
from preftune.rows.split import refuse_missing_rows

CONFIGURATIONS = (".toml", ".yaml", ".yml")


def words_of(words: Sequence[str], reward: str | None) -> list[str]:
    """The words of a run that scores rows. Words without `=` are a run's folder, a configuration file or a model, and
    then the file of rows; with a reward model they are the last alone. Raises UserError."""
    keys = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    if reward is not None:
        reward = model_of(reward)
        if (system := system_of_run(reward)) and not any(key.startswith("data.system=") for key in keys):
            keys.append(f"data.system={json.dumps(system)}")
        fixed = {"objective": "objective=reward", "model.path": f"model.path={reward}"}
        if word := next((word for word in keys if word.partition("=")[0] in fixed), None):
            raise UserError(f"{word} cannot stand beside --reward, which says it.", hint="Remove it.")
        keys += fixed.values()
    elif names and (Path(names[0]) / RUN_FILE).is_file():  # a run: its configuration, and the model that it wrote
        keys.insert(0, f"model.path={model_of(names[0])}")
        if objective := [key for key in keys if key.startswith("objective")]:  # the run's reference may not suit it
            needed = uses_reference(load(None, objective).objective)
            keys.insert(0, "reference=stored" if needed else "reference=none")
    elif (
        names and Path(names[0]).suffix not in CONFIGURATIONS and not any(key.startswith("model.path=") for key in keys)
    ):
        keys.append(f"model.path={names.pop(0)}")
    files = [name for name in names if (Path(name) / RUN_FILE).is_file() or Path(name).suffix in CONFIGURATIONS]
    rows = [name for name in names if name not in files]
    if len(rows) > 1:
        raise UserError(f'"{rows[1]}" is a second file of rows.', hint='Use data.train=["A", "B"].')
    return [*files, *keys, *(f"data.train={file}" for file in rows)]


def score(*words: str, reward: str | None = None, out: Path = Path("scores.jsonl")) -> None:
    """Score every row of a file under a model and the one that it was tuned from, or under a reward model.

    `preftune score RUN rows.jsonl`
    `preftune score model.path=A reference.path=B data.train=rows.jsonl`
    `preftune score --reward MODEL rows.jsonl`

    Nothing is trained: so rows are measured that a run did not hold out. RUN may be a run's folder or a model; the
    reference of what a run has tuned is what the run began from.

    Parameters
    ----------
    words
        The folder of a run, a model or a configuration file, the file of rows, and keys that differ.
    reward
        Folder or hub name of a reward model: one number a response is written, and rows may be of every kind.
    out
        JSON-lines file to write, one object a row. It replaces one of an earlier score, and no other file.
    """
    if word := next((word for word in words if word.partition("=")[0] == "out"), ""):
        raise UserError(f"{word} would be the folder of a run.", hint="Name the file to write by --out.")
    if out.is_dir():
        raise UserError("this is a folder.", location=f"--out {out}", hint="Name a file.")
    run = run_of(words_of(words, reward))
    refuse_missing_rows(Data(train=run.data.train or run.data.evaluate or ""))
    assert_replaceable(out, SCORES, [path for _, path in inputs(run)])
    with at_work():
        from preftune.run.score import score

        means = score(run, out)
    from rich.console import Console

    from preftune.cli.view import metrics_table
    from preftune.distributed import current

    if current().first:
        demos = means.get("perplexity") is not None and means.get("rejected_logp") is None
        Console().print(metrics_table(means, demos=demos))
        print(out)
