"""[evaluate] of a configuration."""

from __future__ import annotations

from typing import Annotated

from preftune.table import Count, Table, about


class Evaluate(Table, frozen=True):
    """[evaluate] When to measure on the held-out rows; always at the start and at the end."""

    every: Annotated[
        Count | None,
        about(
            "Steps between evaluations; only at start and end if not given.",
            also="eval_steps eval_strategy evaluation_strategy evals_per_epoch",
            identity=False,
        ),
    ] = None
    samples: Annotated[
        int,
        about(
            "Held-out prompts to which texts are drawn before and after training; 0 for none.",
            also="generate_during_eval log_completions num_completions_to_print generate_samples",
            ge=0,
            le=1000,
        ),
    ] = 12
