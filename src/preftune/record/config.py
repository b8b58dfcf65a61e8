"""The table [track]."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from preftune.table import Table, about

PROJECTS = "wandb_project mlflow_experiment_name trackio_project_name"
TrackerName = Literal["trackio", "tensorboard", "wandb", "mlflow"]


class Track(Table, frozen=True):
    """Where the metrics of a run go besides its record."""

    to: Annotated[
        TrackerName | Annotated[tuple[TrackerName, ...], Meta(min_length=1)],
        about(
            "One tracker or a list of them; each has to be installed.",
            also="report_to use_wandb use_mlflow use_trackio use_tensorboard",
        ),
    ]
    project: Annotated[str, about("Project of the tracker (an experiment in mlflow).", also=PROJECTS)] = "preftune"
    name: Annotated[
        str | None,
        about(
            "Name of the run there; by default that of its folder.",
            also="run_name wandb_name mlflow_run_name trackio_run_name",
        ),
    ] = None

    @property
    def names(self) -> tuple[TrackerName, ...]:
        """Every tracker once, in the order given."""
        return (self.to,) if isinstance(self.to, str) else tuple(dict.fromkeys(self.to))
