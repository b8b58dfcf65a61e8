"""The whole configuration of a run. One Struct a table of the file, one description a key.

Unknown keys are errors, bounds stand in the types, and `preftune keys` prints what is written here.
`Run(...)` in Python, `run.toml`, and `key=value` on the command line are the same object.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from preftune.objective import DPO, Objective
from preftune.objective.aggregate import Aggregate, Plain

Count = Annotated[int, Meta(ge=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]


class Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the configuration file."""


class Model(Table, frozen=True):
    """[model] The policy: the model that is trained."""

    path: Annotated[str, Meta(description="Folder or hub name of the model to tune.")] = ""
    revision: Annotated[str | None, Meta(description="Branch, tag or commit of a hub model.")] = None
    tokeniser: Annotated[
        str | None, Meta(description="Folder or hub name of the tokeniser, where not the model's.")
    ] = None
    weights: Annotated[
        Literal["float32", "bfloat16"], Meta(description="Type in which weights and optimiser state are kept.")
    ] = "float32"
    compute: Annotated[
        Literal["float32", "bfloat16"], Meta(description="Type of the matrix products; bfloat16 halves time on a GPU.")
    ] = "float32"
    checkpointing: Annotated[bool, Meta(description="Recompute activations in the backward pass to save memory.")] = (
        False
    )
    layout: Annotated[
        Literal["auto", "trie", "padded"],
        Meta(description="auto: share prefixes where the model allows it; trie: insist; padded: one row a response."),
    ] = "auto"


class Data(Table, frozen=True):
    """[data] Rows to learn from and how they become tokens."""

    train: Annotated[
        str | tuple[str, ...],
        Meta(description="File, files or hub name of the rows: .jsonl, .json, .parquet, also .gz."),
    ] = ""
    evaluate: Annotated[str | tuple[str, ...] | None, Meta(description="Held-out rows, in any of the same forms.")] = (
        None
    )
    holdout: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            description="Share of the prompts held out where `evaluate` is not given, whatever the seed.",
        ),
    ] = 0.0
    template: Annotated[
        str | None, Meta(description="File with a chat template (Jinja), where not the tokeniser's own.")
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        Meta(description="Longest prompt with one response, in tokens; 1024, or the model's positions if fewer."),
    ] = None
    rankings: Annotated[
        Literal["all", "best"],
        Meta(
            description="Pairs that a ranking gives: every two of different rank, or the best against each other one."
        ),
    ] = "all"
    too_long: Annotated[
        Literal["skip", "cut"],
        Meta(description="skip: leave longer rows out; cut: drop the response's end, and then no end token is added."),
    ] = "skip"
    max_skipped: Annotated[
        float,
        Meta(ge=0, le=1, description="Largest share of unusable rows (too long ones aside) before the run refuses."),
    ] = 0.05


class Stored(Table, frozen=True, tag_field="kind", tag="stored"):
    """The reference is scored once per response into a store that all runs share."""

    path: Annotated[
        str | None, Meta(description="Folder or hub name of the reference; the policy's start if not given.")
    ] = None
    store: Annotated[
        str | None,
        Meta(description="Folder of the store; $PREFTUNE_STORE or ~/.cache/preftune/reference if not given."),
    ] = None


class Frozen(Table, frozen=True, tag_field="kind", tag="frozen"):
    """A second model in memory, asked in every step."""

    path: Annotated[
        str | None, Meta(description="Folder or hub name of the reference; the policy's start if not given.")
    ] = None


class Moving(Table, frozen=True, tag_field="kind", tag="moving"):
    """A second model in memory that follows the policy (TR-DPO, arXiv 2404.09656)."""

    share: Annotated[
        float, Meta(gt=0, le=1, description="Share of the policy's weights at each move; 1 copies the policy.")
    ] = 0.6
    every: Annotated[Count, Meta(description="Updates between two moves.")] = 64


class NoReference(Table, frozen=True, tag_field="kind", tag="none"):
    """No reference: for objectives that do not use one."""


Reference = Stored | Frozen | Moving | NoReference


class Batch(Table, frozen=True):
    """[batch] Examples of one update (the mathematics) and tokens of one forward pass (the memory)."""

    rows: Annotated[int, Meta(ge=1, description="Rows that make one update, on all ranks together.")] = 64
    tokens: Annotated[
        Count | None, Meta(description="Distinct tokens of one forward pass; found from the free memory if not given.")
    ] = None


class Optim(Table, frozen=True):
    """[optim] AdamW, its schedule, and how long to train."""

    lr: Annotated[float, Meta(gt=0, le=1, description="Highest learning rate.")] = 1e-6
    schedule: Annotated[
        Literal["constant", "linear", "cosine"], Meta(description="Course of the learning rate after the warm-up.")
    ] = "linear"
    warmup: Annotated[float, Meta(ge=0, lt=1, description="Share of the steps in which the rate rises from 0.")] = 0.1
    epochs: Annotated[Count | None, Meta(description="Passes over the rows; 1 where `steps` is not given.")] = None
    steps: Annotated[Count | None, Meta(description="Updates, instead of `epochs`.")] = None
    betas: Annotated[tuple[Decay, Decay], Meta(description="Decay of the first and the second moment.")] = (0.9, 0.999)
    eps: Annotated[float, Meta(gt=0, description="Added to the root of the second moment.")] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0, description="Decoupled weight decay; matrices only.")] = 0.0
    clip: Annotated[float, Meta(gt=0, description="Largest norm of the gradient.")] = 1.0


class Evaluate(Table, frozen=True):
    """[evaluate] When to measure on the held-out rows; always at the start and at the end."""

    every: Annotated[Count | None, Meta(description="Steps between evaluations; only start and end if not given.")] = (
        None
    )


class Save(Table, frozen=True):
    """[save] Checkpoints."""

    every: Annotated[Count | None, Meta(description="Steps between checkpoints; only the last if not given.")] = None
    keep: Annotated[int, Meta(ge=1, description="Newest checkpoints kept.")] = 2


class Run(Table, frozen=True):
    """A run: everything that decides its result, and where it is written."""

    model: Model = Model()
    data: Data = Data()
    objective: Objective = DPO()
    aggregate: Aggregate = Plain()
    reference: Annotated[
        Reference | None,
        Meta(description="stored, frozen, moving or none; by default stored if the objective needs one."),
    ] = None
    batch: Batch = Batch()
    optim: Optim = Optim()
    evaluate: Evaluate = Evaluate()
    save: Save = Save()
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="Decides the order of rows.")] = 0
    out: Annotated[str, Meta(description="Folder of the record that this run writes.")] = "run"
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="Where to compute; auto takes a GPU where there is one.")
    ] = "auto"
