"""Check a run as a whole and fill in its reference, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from preftune.config.drawing import refuse_contradictions, without_effect
from preftune.config.load import convert
from preftune.config.optimizing import with_optim
from preftune.config.run import Run
from preftune.config.tree import python_values, tree_of, with_values
from preftune.errors import UserError
from preftune.model.config import Adapter
from preftune.objective import Objective, of_scores, parts
from preftune.reference.config import Moving, NoReference, Reference, Stored
from preftune.tokens.aggregate import Mean, Plain


def resolve(run: Run) -> Run:
    """Hold the run against types and bounds, refuse keys that contradict each other and fill in what is open.

    A run may come from Python, where nothing has checked it yet. Nothing is loaded. Raises UserError.
    """
    run = with_optim(_checked(run))
    refuse_contradictions(run)
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
    if run.adapter is not None:
        refuse_adapter(run.adapter, reference)
        if run.model.trainable is not None:
            raise without_effect("under an adapter no other weights learn", "model.trainable")
        if run.adapter.start in ("pissa", "olora") and run.model.weights in ("nf4", "int8"):
            raise UserError(f"{run.adapter.start} decomposes matrices that {run.model.weights} does not have.",
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


def refuse_adapter(adapter: Adapter, reference: Reference) -> None:
    """Raise UserError where keys of an adapter contradict each other or have no effect."""
    if isinstance(reference, Moving):
        raise UserError("a moving reference cannot follow an adapter: the mean of two is not their product's.",
                        location="reference", hint="Use reference = \"stored\".")  # fmt: skip
    if adapter.start == "orthogonal" and adapter.rank % 2:
        raise UserError("has to be even for an orthogonal start.", location="adapter.rank",
                        hint=f"Use {adapter.rank + 1}.")  # fmt: skip
    if adapter.kind == "dora" and adapter.start in ("pissa", "olora"):
        raise UserError(f"dora cannot begin as {adapter.start}.", location="adapter.start", hint='Use "zero".')
    if adapter.path is not None:
        said = [name for name in ("kind", "rank", "alpha", "scaling", "targets", "start", "train_also")
                if getattr(adapter, name) != getattr(Adapter(), name)]  # fmt: skip
        if said:
            raise without_effect("the adapter that it goes on from says it", f"adapter.{said[0]}")


def uses_reference(objective: Objective) -> bool:
    """Whether any part of it reads the reference."""
    return any("reference" in part.reads for _, part in parts(objective))


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
