"""[evaluate] of a configuration."""

from __future__ import annotations

from typing import Annotated

from preftune.record.best import Figure
from preftune.table import Count, Table, about

METRICS = {  # as other trainers have them
    **dict.fromkeys(("eval_loss", "eval/loss"), "loss"),
    **dict.fromkeys(("eval_accuracy", "eval_rewards/accuracies", "rewards/accuracies"), "accuracy"),
    **dict.fromkeys(("reward", "eval_reward"), "score"),
}


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
    patience: Annotated[
        Count | None,
        about(
            "Evaluations without a better figure after which training ends; it never ends early if not given.",
            also="early_stopping_patience early_stopping_steps",
        ),
    ] = None
    best_by: Annotated[
        Figure | None,
        about(
            "Held-out figure that says which evaluation is best; if not given, the first of score, accuracy and loss "
            "that the run has.",
            also="metric_for_best_model",
            elsewhere=METRICS,
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
