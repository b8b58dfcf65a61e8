"""Log-probabilities, rewards and margins of every row of a file under a model and a reference, or a reward model's
scores."""

from __future__ import annotations

import json
from pathlib import Path

from preftune import events, files, signals
from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.distributed import process_group
from preftune.evaluate.evaluate import Evaluation, evaluate
from preftune.evaluate.metrics import Metrics, margins, rewards
from preftune.objective import of_scores
from preftune.pack.oom import OomRetry
from preftune.record.terminal import default_progress
from preftune.run.prepare import prepare_scoring


def score(run: Run, out: str | Path | None = None) -> Metrics:
    """Score the rows of `run.data.train` under `run.model` against `run.reference`; nothing is trained. With
    objective = "reward" the model is a reward model, and rows of every kind get a score a response.

    out: JSON-lines file with one object a row. Returns means over all rows (record.schema.EVALUATION, without the
    changes, which a file alone does not have). Raises UserError.
    """
    with process_group() as dist, default_progress() if dist.first else events.silence(), signals.listening():
        run, models, loss, rows = prepare_scoring(resolve(run), dist)
        with signals.interruptible():
            evaluation = evaluate(models, loss, rows, OomRetry(), dist)
    if out is not None and dist.first:
        lines = (json.dumps(files.plain(row), allow_nan=False) for row in score_rows(evaluation, run))
        files.write(Path(out), "".join(f"{line}\n" for line in lines))
    metrics = evaluation.metrics
    return {name: value for name, value in metrics.items() if not name.endswith("_change") and name != "seconds"}


def score_rows(evaluation: Evaluation, run: Run) -> list[dict[str, object]]:
    """One object a row: id, each response's logp, ref_logp, tokens and reward, or its score, and a pair's margin."""
    examples, responses = evaluation.examples, evaluation.examples.responses
    reward = rewards(run.objective, responses)
    margin = margins(examples).tolist() if len(examples.pair_index[0]) else []
    rows: list[dict[str, object]] = []
    pair = 0
    for start, group in zip(examples.starts, examples.groups, strict=True):
        scores = []
        for place in range(start, start + len(group.responses)):
            says = "score" if of_scores(run.objective) else "logp"
            score: dict[str, object] = {says: float(responses.logp[place]), "tokens": int(responses.tokens[place])}
            if responses.reference is not None:
                score["ref_logp"] = float(responses.reference[place])
                score["reward"] = None if reward is None else float(reward[place])
            scores.append(score)
        row: dict[str, object] = {"id": group.id or str(group.place), "place": str(group.place)}
        if group.kind == "pair":
            row |= {"chosen": scores[0], "rejected": scores[1], "margin": margin[pair]}
        elif group.kind == "ranking":
            row |= {"responses": scores, "ranks": list(group.ranks)}
        else:
            row |= {"response": scores[0]} | ({"good": group.good} if group.kind == "rating" else {})
        pair += examples.pairs_of(group)
        rows.append(row)
    return rows
