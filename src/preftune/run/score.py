"""Log-probabilities, rewards and margins of every row of a file under a model and a reference."""

from __future__ import annotations

import json
from pathlib import Path

from preftune import files
from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.distributed import process_group
from preftune.evaluate.evaluate import Evaluation, HeldOut, evaluate
from preftune.evaluate.metrics import Values, margins, rewards
from preftune.pack.oom import OomRetry
from preftune.record.show import Show, silent
from preftune.run.prepare import set_up
from preftune.signals import listening


def score(run: Run, out: str | Path | None = None, *, show: Show = silent) -> Values:
    """Score the rows of `run.data.train` under `run.model` against `run.reference`; nothing is trained.

    out: JSON-lines file with one object a row. Returns means over all rows (record.meters.EVALUATION, without the
    changes, which a file alone does not have). Raises UserError.
    """
    with process_group() as dist:
        with listening() as stop:
            setup = set_up(resolve(run), show if dist.first else silent, stop, dist=dist, as_one=True)
        held_out = HeldOut.of(setup.prepared.train, setup.engine)
        found = evaluate(setup.engine, held_out, OomRetry(), None)
    if out is not None and dist.first:
        lines = (json.dumps(files.plain(row), allow_nan=False) for row in rows(found, run))
        files.write(Path(out), "".join(f"{line}\n" for line in lines))
    return {name: value for name, value in found.values.items() if not name.endswith("_change") and name != "seconds"}


def rows(found: Evaluation, run: Run) -> list[dict[str, object]]:
    """One object a row: id, each response's logp, ref_logp, tokens and reward, and a pair's margin."""
    views, scores = found.views, found.views.responses
    reward = rewards(run.objective, scores)
    margin = margins(views).tolist() if len(views.pair_index[0]) else []
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
