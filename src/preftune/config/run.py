"""The whole configuration of a run. One Struct a table of the file, one description a key.

Unknown keys are errors, bounds stand in the types, and `preftune keys` prints what is written here.
`Run(...)` in Python, `run.toml`, and `key=value` on the command line are the same object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from preftune.evaluate.config import Evaluate
from preftune.model.config import ADAPTERS, OF_PEFT, Adapter, Model, Ranks
from preftune.objective import DPO, Objective
from preftune.objective.presets import NAMES, PRESETS
from preftune.pack.config import Batch
from preftune.record.config import Track
from preftune.reference.config import ELSEWHERE, Reference
from preftune.rollout.config import OWN_REWARD, Reward, Rollout, Value
from preftune.rows.config import Data
from preftune.table import FromPython, Table, about
from preftune.tokens.aggregate import Aggregate, Plain
from preftune.training.config import OPTIMIZERS, Optim, Save

if TYPE_CHECKING:
    from typing import Any

    AnyObjective = Any  # in Python also a callable that says what it reads; `resolve` makes an objective of it
    AnyReward = Any  # in Python also a callable
else:
    AnyObjective = Objective  # what a file may hold
    AnyReward = Reward | tuple[Reward, ...] | None


def is_own_objective(value: object) -> bool:
    """Whether it is a formula that the package does not have."""
    return callable(value) and not isinstance(value, Objective | type)


# a record holds its name and a digest of its source in its place
OWN = FromPython("a callable that says what it `reads`", is_own_objective, lambda objective: objective.recorded())
LOSSES = ("loss_type", "pref_loss", "dpo_loss_type", "rl", "stage")  # names of the key elsewhere
RECORD = "Folder of the record that this run writes, with the metrics of every step."


class Run(Table, frozen=True):
    """A run: everything that decides its result, and where it is written.

    objective, aggregate and reference are one of several tables each: the first of them where none is named.
    """

    model: Model = Model()
    adapter: Annotated[
        Adapter | None,
        Meta(
            description="Train a low-rank adapter; the model's weights stay.",
            extra={"elsewhere": ADAPTERS, "python": OF_PEFT},
        ),
    ] = None
    data: Data = Data()
    objective: Annotated[
        AnyObjective, Meta(extra={"presets": PRESETS, "elsewhere": NAMES, "also": LOSSES, "python": OWN})
    ] = DPO()
    aggregate: Aggregate = Plain()
    reference: Annotated[
        Reference | None,
        Meta(
            description="stored, moving or none; by default stored if the objective needs one.",
            extra={"elsewhere": ELSEWHERE},
        ),
    ] = None
    rollout: Annotated[Rollout | None, Meta(description="Draw what is learned from, to the rows' prompts.")] = None
    reward: Annotated[AnyReward, Meta(description="What scores drawn responses.", extra={"python": OWN_REWARD})] = None
    value: Annotated[Value | None, Meta(description="The value model of ppo.")] = None
    batch: Batch = Batch()
    optim: Annotated[Optim, Meta(extra={"elsewhere": OPTIMIZERS})] = Optim()
    evaluate: Evaluate = Evaluate()
    save: Save = Save()
    ranks: Ranks = Ranks()
    track: Annotated[Track | None, about("Trackers that get the metrics besides the record.", identity=False)] = None
    seed: Annotated[
        int, about("Decides the order of rows, and what is drawn.", also="data_seed", ge=0, le=2**63 - 1)
    ] = 0
    out: Annotated[str, about(RECORD, also="output_dir logging_dir", identity=False)] = "run"
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        about("Where to compute; auto takes a GPU if there is one.", also="device_map use_cpu"),
    ] = "auto"


def reward_tables(run: Run) -> tuple[Reward, ...]:
    """The tables of [reward], where a callable given in Python is one, too."""
    rewards = run.reward if isinstance(run.reward, list | tuple) else () if run.reward is None else (run.reward,)
    return tuple(reward if isinstance(reward, Reward) else Reward(function=reward) for reward in rewards)


def scoring_tables(run: Run) -> tuple[Reward, ...]:
    """Those of them that score one response; a judge compares two."""
    return tuple(reward for reward in reward_tables(run) if not reward.judge)
