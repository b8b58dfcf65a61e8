"""Check a run as a whole and fill in what it leaves open, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from preftune.config.draws import refuse_tables_of_draws
from preftune.config.load import convert
from preftune.config.run import Run, reward_tables
from preftune.config.tree import python_values, tree_of, with_values
from preftune.errors import UserError, without_effect
from preftune.model.adapter_files import adapter_at
from preftune.model.config import Adapter
from preftune.objective import of_scores, parts, uses_reference
from preftune.reference.config import Moving, NoReference, Reference, Stored
from preftune.tokens.aggregate import Mean, Plain
from preftune.training.config import DECAY, LR, LR_OF_ADAPTER, WARMUP, Optim

TYPICAL = 0.02  # size of a weight of a language model
SPACING = 2.0**-13  # distance of bfloat16 numbers of that size: they have 8 digits, and begin anew at 2^-6


def resolve(run: Run) -> Run:
    """Hold the run against types and bounds, refuse keys that contradict each other and fill in what is open.

    A run may come from Python, where nothing has checked it yet. Nothing is loaded. Raises UserError.
    """
    run = _with_optim(_checked(run))
    refuse_tables_of_draws(run)
    _refuse_best_of_nothing(run)
    needed = uses_reference(run.objective)
    reference = run.reference or (Stored() if needed else NoReference())
    if needed and isinstance(reference, NoReference):
        hint = 'Use reference = "stored", or leave the key out.'
        raise UserError("this objective needs a reference.", location="reference", hint=hint)
    if not needed and not isinstance(reference, NoReference):
        raise without_effect("this objective uses no reference", "reference")
    if isinstance(run.aggregate, Mean) and all(part.length_normalized for _, part in parts(run.objective)):
        raise without_effect("this objective takes means over tokens already", "aggregate")
    if of_scores(run.objective) and not isinstance(run.aggregate, Plain):
        raise without_effect("a reward model reads a response's last token", "aggregate")
    if (adapter := run.adapter) is not None:
        _refuse_adapter(adapter, reference)
        run = replace(run, adapter=_with_stored_keys(adapter))
        if run.model.trainable is not None:
            raise without_effect("under an adapter no other weights learn", "model.trainable")
        if adapter.start in ("pissa", "olora") and run.model.weights in ("nf4", "int8"):
            raise UserError(f"{adapter.start} decomposes matrices that {run.model.weights} does not have.",
                            location="adapter.start", hint='Use "zero".')  # fmt: skip
    if not isinstance(run.model.path, str):
        if run.model.revision:
            raise without_effect("the model is loaded already", "model.revision")
        if run.model.tokenizer is None:
            hint = "Use Model(path=model, tokenizer=tokenizer)."
            raise UserError("a loaded model needs its tokenizer.", location="model.tokenizer", hint=hint)
    elif run.model.revision and Path(run.model.path).expanduser().is_dir():
        raise without_effect("a folder has no revisions", "model.revision")
    return replace(run, reference=reference)


def _checked(run: object) -> Run:
    """The run as a file with the same values gives it; values that only Python can hold are kept as they are."""
    if not isinstance(run, Run):
        raise UserError(f"a Run is needed, not {type(run).__name__}.", hint='Use Run(...), or load("run.toml").')
    values = python_values(run)
    if "objective" in values:
        from preftune.objective.own import OwnObjective, own_objective

        if not isinstance(values["objective"], OwnObjective):
            values["objective"] = own_objective(values["objective"])
    values |= {name: list(rows) for name, rows in values.items() if isinstance(rows, Iterator)}
    tree = tree_of(with_values(run, values))
    for whole_table in (name for name in values if "." not in name):
        del tree[whole_table]  # it stands in no union of types
    return with_values(convert(tree), values)


def _refuse_adapter(adapter: Adapter, reference: Reference) -> None:
    """Raise UserError where keys of an adapter contradict each other or have no effect."""
    if isinstance(reference, Moving):
        raise UserError("a moving reference cannot follow an adapter: the mean of two is not their product's.",
                        location="reference", hint="Use reference = \"stored\".")  # fmt: skip
    if adapter.start == "orthogonal" and adapter.rank % 2:
        raise UserError("has to be even for an orthogonal start.", location="adapter.rank",
                        hint=f"Use {adapter.rank + 1}.")  # fmt: skip
    if adapter.kind == "dora" and adapter.start in ("pissa", "olora"):
        raise UserError(f"dora cannot begin as {adapter.start}.", location="adapter.start", hint='Use "zero".')


def _with_stored_keys(adapter: Adapter) -> Adapter:
    """The table with what the adapter that it goes on from says of itself, so that a record holds what is trained.
    Raises UserError where a key says otherwise."""
    files = None if adapter.path is None else adapter_at(adapter.path, None, "adapter.path")
    if files is None:  # where there should be one, that is told when it is asked for
        return adapter
    keys = files.keys
    for name, value in keys.items():
        if getattr(adapter, name) not in (getattr(Adapter(), name), value):
            raise without_effect(f"the adapter that it goes on from says {value}", f"adapter.{name}")
    return replace(adapter, **keys)


def _with_optim(run: Run) -> Run:
    """The run with the open keys of [optim] filled in. Raises UserError where one has no effect, or two exclude
    each other."""
    optim = run.optim
    _refuse_schedule(optim)
    _refuse_moving(run)
    changes: dict[str, object] = {}
    if optim.lr is None:
        changes["lr"] = LR if run.adapter is None else LR_OF_ADAPTER
    if optim.warmup_steps is None and optim.warmup is None:
        changes["warmup"] = WARMUP
    if optim.schedule == "wsd" and optim.decay is None:
        changes["decay"] = DECAY
    return with_rounding(replace(run, optim=replace(optim, **changes)))


def _refuse_schedule(optim: Optim) -> None:
    for first, second in (("steps", "epochs"), ("warmup", "warmup_steps")):
        if getattr(optim, first) is not None and getattr(optim, second) is not None:
            hint = f"Remove one of the two: the word optim.{first}= or optim.{second}= takes it out of a file's keys."
            raise UserError(f"{first} and {second} are both given.", location="optim", hint=hint)
    if optim.floor is not None and optim.schedule == "constant":
        raise without_effect("a constant rate has no floor", "optim.floor")
    if optim.decay is not None and optim.schedule != "wsd":
        raise without_effect(f"{optim.schedule} falls from the warm-up on", "optim.decay")
    decay = DECAY if optim.decay is None else optim.decay
    if optim.schedule == "wsd" and (optim.warmup or 0.0) + decay > 1:
        raise UserError("the warm-up and the decay are longer than the run.", location="optim.decay", hint="Lower it.")


def _refuse_moving(run: Run) -> None:
    if isinstance(run.reference, Moving) and run.reference.alpha < 1 and run.model.weights == "bfloat16":
        message = "a part of the policy's movement is lost to rounding where the reference has bfloat16 weights."
        hint = 'Set model.weights = "float32", or reference.alpha = 1, which copies the policy.'
        raise UserError(message, location="reference.alpha", hint=hint)


def with_rounding(run: Run) -> Run:
    """The run with optim.rounding filled in, where the type of its weights is known: under an adapter `auto` has to
    know the device first. Raises UserError where the key has no effect, or would lose the updates."""
    if run.adapter is not None and run.model.weights == "auto":
        return run
    whole_parts = run.adapter is None or run.adapter.train_also or of_scores(run.objective)
    narrow = run.model.weights == "bfloat16" and bool(whole_parts)  # an adapter's own are in float32
    rounding = run.optim.rounding
    if rounding == "stochastic" and not narrow:
        raise without_effect("weights in float32 hold their updates", "optim.rounding")
    if rounding == "nearest" and narrow:
        raise UserError(
            f"updates of {run.optim.rate:g} would be rounded away: {SPACING / 2:.1e} is half the distance of a "
            f"bfloat16 weight of {TYPICAL} to its neighbor.",
            location="optim.rounding",
            hint='Leave it out, which makes it "stochastic", or set model.weights = "float32".',
        )
    return replace(run, optim=replace(run.optim, rounding="stochastic" if narrow else "nearest"))


def _refuse_best_of_nothing(run: Run) -> None:
    """Raise UserError where a key asks which evaluation is best, and none shows it before the end."""
    key = "save.best" if run.save.best else None if run.evaluate.patience is None else "evaluate.patience"
    by, drawn = run.evaluate.best_by, run.rollout is not None
    if key is None:
        if by is not None:
            raise without_effect("neither save.best nor evaluate.patience is given", "evaluate.best_by")
        return
    if run.data.evaluate is None and not run.data.holdout:
        raise without_effect("no row is held out", key, "Add data.evaluate or data.holdout, or remove it.")
    if run.evaluate.every is None:
        raise without_effect("held-out rows are measured at the end alone", key, "Add evaluate.every, or remove it.")
    if any(reward.judge for reward in reward_tables(run)):
        raise without_effect("a judge gives no score that could be the best", key)
    if by is not None and drawn != (by == "score"):
        has = "the score of what is drawn alone" if drawn else "no score of drawn responses"
        raise UserError(f"the evaluations of this run have {has}.", location="evaluate.best_by", hint="Remove it.")
