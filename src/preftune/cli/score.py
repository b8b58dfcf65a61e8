"""preftune score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preftune.cli.verbs import run_of
from preftune.errors import UserError
from preftune.events import Note, emit

CONFIGURATIONS = (".toml", ".yaml", ".yml")


def words_of_reward(words: Sequence[str], reward: str) -> list[str]:
    """The words of a run that scores rows with this reward model. A word without `=` is a configuration file, or, of
    any other type, the file of rows. Raises UserError for a key that the flag sets."""
    fixed = {"objective": "objective=reward", "model.path": f"model.path={reward}"}
    if word := next((word for word in words if word.partition("=")[0] in fixed), None):
        raise UserError(f"{word} cannot stand beside --reward, which says it.", hint="Remove it.")
    rows = [word for word in words if "=" not in word and Path(word).suffix not in CONFIGURATIONS]
    if len(rows) > 1:
        raise UserError(f'"{rows[1]}" is a second file of rows.', hint='Use data.train=["A", "B"].')
    return [word for word in words if word not in rows] + [*fixed.values(), *(f"data.train={file}" for file in rows)]


def score(*words: str, reward: str | None = None, out: Path = Path("scores.jsonl")) -> None:
    """Score every row of data.train under two models, or every response of a file under a reward model.

    `preftune score model.path=A reference.path=B data.train=FILE`
    `preftune score --reward MODEL FILE`

    Parameters
    ----------
    words
        A configuration file, and keys that differ from it. With --reward also the file of rows.
    reward
        Folder or hub name of a reward model: one number a response is written, and rows may be of every kind.
    out
        JSON-lines file to write, one object a row.
    """
    if word := next((word for word in words if word.partition("=")[0] == "out"), ""):
        raise UserError(f"{word} would be the folder of a run.", hint="Name the file to write by --out.")
    if out.is_dir():
        raise UserError("this is a folder.", location=f"--out {out}", hint="Name a file.")
    run = run_of(words if reward is None else words_of_reward(words, reward))
    from preftune.record.terminal import terminal

    with terminal():
        emit(Note("loading torch and transformers"))
        from preftune.run.score import score

        means = score(run, out)
    from rich.console import Console

    from preftune.cli.view import metrics_table
    from preftune.distributed import current

    if current().first:
        Console().print(metrics_table(means))
        print(out)
