"""Log-probabilities, rewards and margins of every row of a file under a model and a reference."""

from __future__ import annotations

import json
from pathlib import Path

from preftune import files
from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.pack.memory import Memory
from preftune.ranks import joined
from preftune.training.evaluate import Evaluation, HeldOut, evaluate
from preftune.training.measure import Values, margins, rewards
from preftune.training.setup import set_up
from preftune.training.show import Show, silent
from preftune.training.signals import listening


def score(run: Run, out: str | Path | None = None, *, show: Show = silent) -> Values:
    """Score the rows of `run.data.train` under `run.model` against `run.reference`; nothing is trained.

    out: JSON-lines file with one object a row. Returns means over all rows (record.meters.EVALUATION, without the
    changes, which a file alone does not have). Raises UserError.
    """
    with joined() as ranks:
        with listening() as stop:
            setup = set_up(resolve(run), show if ranks.first else silent, stop, ranks=ranks, as_one=True)
        held_out = HeldOut.of(setup.prepared.train, setup.engine)
        found = evaluate(setup.engine, held_out, Memory(), None)
    if out is not None and ranks.first:
        lines = (json.dumps(files.plain(row), allow_nan=False) for row in rows(found, run))
        files.write(Path(out), "".join(f"{line}\n" for line in lines))
    return {name: value for name, value in found.values.items() if not name.endswith("_change") and name != "seconds"}


def rows(found: Evaluation, run: Run) -> list[dict[str, object]]:
    """One object a row: id, each response's logp, ref_logp, tokens and reward, and a pair's margin."""
    views, scores = found.views, found.views.scores
    reward = rewards(run.objective, scores)
    margin = margins(views).tolist() if len(views.compared[0]) else []
    written: list[dict[str, object]] = []
    pair = 0
    for start, group in zip(views.starts, views.groups, strict=True):
        responses = []
        for at in range(start, start + len(group.responses)):
            one: dict[str, object] = {"logp": float(scores.logp[at]), "tokens": int(scores.tokens[at])}
            if scores.reference is not None:
                one["ref_logp"] = float(scores.reference[at])
                one["reward"] = None if reward is None else float(reward[at])
            responses.append(one)
        row: dict[str, object] = {"id": group.id or str(group.place), "place": str(group.place)}
        if group.kind == "pair":
            row |= {"chosen": responses[0], "rejected": responses[1], "margin": margin[pair]}
        elif group.kind == "ranking":
            row |= {"responses": responses, "ranks": list(group.ranks)}
        else:
            row |= {"response": responses[0]} | ({"good": group.good} if group.kind == "rating" else {})
        pair += views.pairs_of(group)
        written.append(row)
    return written
