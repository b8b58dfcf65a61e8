"""Log-probabilities, rewards and margins of every row of a file under a model and a reference, or a reward model's
scores."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace

from preftune import events, files, signals
from preftune.config.inputs import inputs
from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.distributed import process_group
from preftune.errors import UserError
from preftune.evaluate.evaluate import Evaluation, evaluate
from preftune.evaluate.metrics import Metrics, margins, rewards
from preftune.model.modes import own_modes
from preftune.objective import of_scores, parts
from preftune.pack.oom import OomRetry
from preftune.record.output import SCORES, assert_replaceable
from preftune.record.parse import parse_json, written_by_run
from preftune.record.terminal import default_progress
from preftune.reference.config import NoReference, Stored
from preftune.run.dataset import config_of
from preftune.run.prepare import prepare_scoring


def score(run: Run, out: str | Path | None = None) -> Metrics:
    """Score the rows of `run.data.train`, or else of `run.data.evaluate`, under `run.model` against `run.reference`;
    nothing is trained. The reference of a model that a run has tuned is what the run began from, unless one is named.
    With objective = "reward" the model is a reward model, and rows of every kind get a score a response.

    out: JSON-lines file with one object a row, which replaces one of an earlier score alone. Returns means over all
    rows (record.schema.EVALUATION, without the changes, which a file alone does not have). Raises UserError.
    """
    with own_modes(), process_group() as dist, ExitStack() as stack:
        stack.enter_context(default_progress() if dist.first else events.silence())
        stack.enter_context(signals.listening())
        run = replace(run, optim=replace(run.optim, rounding=None))  # nothing is updated, whatever the weights' type
        run, start = _against_start(resolve(run))
        others = isinstance(run.data.train, str) and not run.data.train  # then those that a run would measure on
        named = run.data.evaluate if others and run.data.evaluate is not None else run.data.train
        run = replace(run, data=replace(run.data, train=named, shares=None, evaluate=None, holdout=0.0))
        if out is not None:
            assert_replaceable(Path(out), SCORES, [path for _, path in inputs(run)], "out")
        run, models, loss, rows = prepare_scoring(run, dist, start)
        with signals.interruptible():
            evaluation = evaluate(models, loss, rows, OomRetry(), dist)
    if out is not None and dist.first:
        files.write_lines(Path(out), score_rows(evaluation, run))
    metrics = evaluation.metrics
    return {name: value for name, value in metrics.items() if not name.endswith("_change") and name != "seconds"}


def _against_start(run: Run) -> tuple[Run, str]:
    """The run, whose reference is another model than its own, and the digest that this one has to have, if a record
    tells it. Raises UserError where nobody says which model that is."""
    path, reference = run.model.path, run.reference
    if online := next((part.name for _, part in parts(run.objective) if part.kind == "rollouts"), ""):
        message = f"{online} learns from what it draws, and says nothing of rows."
        raise UserError(message, location="objective", hint="Write objective=dpo to measure pairs, or objective=nll.")
    if run.adapter is not None and run.adapter.path is not None:
        return run, ""  # its reference is its base
    run = replace(run, adapter=None)  # as an adapter begins it changes nothing
    if reference is None or isinstance(reference, NoReference) or (isinstance(reference, Stored) and reference.path):
        return run, ""
    config_of(run)  # a model that is not there is told first
    of_run = written_by_run(Path(path)) if isinstance(path, str) else None
    tables = [table for key in ("reference", "model") if isinstance(table := (of_run or {}).get(key), dict)]
    named = [str(table["path"]) for table in tables if "path" in table]
    if not named or named[0].startswith("("):  # given in Python
        message = "nothing here says what this model was tuned from, and beside itself it has no margins."
        raise UserError(message, location="reference.path", hint="Name that model; objective=nll needs none.")
    events.emit(events.Note(f"the reference is {named[0]}, from which the model was tuned"))
    identity = parse_json(Path(str(path)).expanduser().parent / "identity.json", dict[str, object]) or {}
    types = [table["weights"] for table in tables if "weights" in table]
    another_type = bool(types) and run.model.weights not in ("auto", *types)  # in which the same weights have another
    digest = "" if another_type or (of_run or {}).get("adapter") else str(identity.get("reference", ""))
    return replace(run, reference=Stored(path=named[0])), digest


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
