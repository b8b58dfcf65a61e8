"""The whole configuration of a run. One Struct a table of the file, one description a key.

Unknown keys are errors, bounds stand in the types, and `preftune keys` prints what is written here.
`Run(...)` in Python, `run.toml`, and `key=value` on the command line are the same object.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from preftune.evaluate.config import Evaluate
from preftune.model.config import Model
from preftune.objective import DPO, Objective
from preftune.pack.config import Batch
from preftune.record.config import Track
from preftune.reference.config import Reference
from preftune.rows.config import Data
from preftune.table import Table
from preftune.tokens.aggregate import Aggregate, Plain
from preftune.training.config import Optim, Save


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
    track: Annotated[
        Track | None,
        Meta(
            description="Trackers that receive the metrics besides the record.",
            extra={"identity": False},
        ),
    ] = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="Decides the order of rows.")] = 0
    out: Annotated[str, Meta(description="Folder of the record that this run writes.")] = "run"
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="Where to compute; auto takes a GPU where there is one.")
    ] = "auto"
