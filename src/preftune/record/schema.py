"""Every number that a record holds: its unit and its meaning, in the one place where they are written.

`chosen` stands for the chosen response of a pair, the good one of a rating, the better one of each two of a
ranking, and the response of a demo; `rejected` for the other, where there is one. All values are means over
the step's examples unless said otherwise; a value that does not exist for the row kind is null.
"""

from __future__ import annotations

from msgspec import Struct


class Meter(Struct, frozen=True):
    """unit: as printed on an axis; meaning: one sentence."""

    unit: str
    meaning: str


SCORES: dict[str, Meter] = {
    "loss": Meter("as the objective", "the objective's value, averaged over the rows of the step"),
    "margin": Meter("nats", "log-ratio of chosen minus log-ratio of rejected (no beta); without a reference, of logp"),
    "accuracy": Meter(
        "share",
        "pairs whose margin is above 0, a tie (within a thousandth of a nat) counting one half, and even votes not at "
        "all; where the objective divides by tokens, by the margin per token; of held-out ratings, how often a good "
        "response has a larger log-ratio than a bad one",
    ),
    "accuracy_per_token": Meter("share", "the same by the margin per token, whatever the objective"),
    "chosen_reward": Meter(
        "beta nats",
        "beta times the log-ratio of chosen, per token where the objective divides by tokens; null without a reference",
    ),
    "rejected_reward": Meter("beta nats", "beta times the log-ratio of rejected"),
    "chosen_logp": Meter("nats", "log-probability of chosen, summed over its tokens"),
    "rejected_logp": Meter("nats", "log-probability of rejected, summed over its tokens"),
    "chosen_mean_logp": Meter("nats a token", "log-probability of chosen per token"),
    "rejected_mean_logp": Meter("nats a token", "log-probability of rejected per token"),
    "chosen_logp_change": Meter(
        "nats",
        "chosen_logp minus its value under the model that training began from, on the same rows; "
        "null in training steps whose reference is not that model",
    ),
    "rejected_logp_change": Meter("nats", "the same for rejected"),
    "chosen_tokens": Meter("tokens", "scored tokens of chosen"),
    "rejected_tokens": Meter("tokens", "scored tokens of rejected"),
}

STEP: dict[str, Meter] = {
    "step": Meter("", "number of the update, from 1"),
    "epoch": Meter("passes", "passes over the rows after this step, with fraction"),
    **SCORES,
    "chosen_incentive": Meter(
        "1 / nat", "derivative of an example's loss by the logp of chosen: what pushes it, negative is up"
    ),
    "rejected_incentive": Meter("1 / nat", "derivative of an example's loss by the logp of rejected"),
    "drift": Meter("nats", "mean log-ratio on mismatched responses, not below 0 (KTO's z0); null where there are none"),
    "drift_error": Meter("nats", "standard error of that mean"),
    "grad_norm": Meter("", "norm of the gradient before clipping"),
    "lr": Meter("", "learning rate of this step"),
    "examples": Meter("rows", "rows of this step"),
    "tokens_computed": Meter(
        "tokens", "tokens through the model on all ranks, each distinct prefix of a pack once; coupled: twice"
    ),
    "tokens_shared": Meter(
        "tokens", "tokens that sharing saved in a pass: each prompt with each response, minus distinct"
    ),
    "seconds": Meter("s", "wall time of the step; not part of what a resumed run repeats"),
}

EVALUATION: dict[str, Meter] = {
    "step": Meter("", "updates done before this evaluation; 0 is before training"),
    "rows": Meter("rows", "held-out rows measured"),
    "responses": Meter("responses", "responses of these rows"),
    **SCORES,
    "accuracy_of_change": Meter(
        "share",
        "pairs whose chosen response has gained more log-probability than the rejected one since training began; of "
        "ratings, how often a good response has gained more than a bad one: the same thing for all objectives",
    ),
    "accuracy_chosen_longer": Meter("share", "accuracy on the pairs whose chosen response has more tokens"),
    "accuracy_chosen_shorter": Meter("share", "accuracy on the pairs whose chosen response has fewer tokens"),
    "reward_length_correlation": Meter("", "Spearman rank correlation of log-ratio and tokens over all responses"),
    "seconds": Meter("s", "wall time of the evaluation"),
}

ROW: dict[str, Meter] = {
    "id": Meter("", "id of the row, or file:line"),
    "margin": Meter("nats", f"{SCORES['margin'].meaning}; of a ranking, the mean of its pairs"),
    "accuracy": Meter(
        "share",
        "pairs of the row that are ranked right; of a rating, responses of the other class that it stands on the right "
        "side of; null where votes are even",
    ),
    "accuracy_of_change": Meter("share", "the same by the change since training began"),
    "chosen_logp": Meter("nats", SCORES["chosen_logp"].meaning),
    "rejected_logp": Meter("nats", SCORES["rejected_logp"].meaning),
    "chosen_logp_change": Meter("nats", "chosen_logp minus its value before training"),
    "rejected_logp_change": Meter("nats", "rejected_logp minus its value before training"),
    "chosen_tokens": Meter("tokens", SCORES["chosen_tokens"].meaning),
    "rejected_tokens": Meter("tokens", SCORES["rejected_tokens"].meaning),
}
