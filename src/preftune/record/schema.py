"""Every number that a record holds, with its unit and its meaning. No other place says them.

`chosen` stands for the chosen response of a pair, the good one of a rating, the better one of each two of a
ranking, and the response of a demo; `rejected` stands for the other one, where there is one. All values are means
over the step's examples unless their meaning says otherwise; a value that a kind of row does not have is null.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct


class Metric(Struct, frozen=True):
    """unit: as an axis shows it; meaning: one sentence; of_demos: its name and its meaning where each row is one
    response to imitate, which nobody there calls chosen."""

    unit: str
    meaning: str
    of_demos: tuple[str, str] | None = None


COMMON: dict[str, Metric] = {
    "loss": Metric("as the objective", "the objective's value, averaged over the rows of the step"),
    "margin": Metric(
        "nats",
        "log-ratio of chosen minus log-ratio of rejected (no beta); without a reference, of logp; of a reward model, "
        "of scores",
    ),
    "accuracy": Metric(
        "share",
        "pairs whose margin is above 0; a tie (within a thousandth of a nat) counts one half, and even votes do not "
        "count; where the objective divides by tokens, the margin is that per token; of held-out ratings, how often "
        "a good response has a larger log-ratio than a bad one",
    ),
    "accuracy_per_token": Metric("share", "accuracy by the margin per token, whatever the objective"),
    "chosen_reward": Metric(
        "beta nats",
        "beta times the log-ratio of chosen, per token where the objective divides by tokens; null without a reference",
    ),
    "rejected_reward": Metric("beta nats", "beta times the log-ratio of rejected"),
    "chosen_logp": Metric(
        "nats",
        "log-probability of chosen, summed over its tokens",
        ("log-probability", "log-probability of a response, summed over its tokens"),
    ),
    "rejected_logp": Metric("nats", "log-probability of rejected, summed over its tokens"),
    "chosen_mean_logp": Metric(
        "nats a token",
        "log-probability of chosen per token",
        ("log-probability a token", "log-probability of a response per token, averaged over responses"),
    ),
    "rejected_mean_logp": Metric("nats a token", "log-probability of rejected per token"),
    "chosen_logp_change": Metric(
        "nats",
        "chosen_logp minus its value under the model that training began from, on the same rows; "
        "null in training steps whose reference is another model",
        ("change of log-probability", "log-probability of a response minus its value before training"),
    ),
    "rejected_logp_change": Metric("nats", "rejected_logp minus its value under the model that training began from"),
    "chosen_score": Metric(
        "nats", "score of chosen by a reward model, whose differences are log-odds; null for a language model"
    ),
    "rejected_score": Metric("nats", "score of rejected by a reward model"),
    "chosen_tokens": Metric("tokens", "scored tokens of chosen", ("response tokens", "scored tokens of a response")),
    "rejected_tokens": Metric("tokens", "scored tokens of rejected"),
}

STEP: dict[str, Metric] = {
    "step": Metric("", "number of the update, from 1"),
    "epoch": Metric("passes", "passes over the rows that are done after this step, with fraction"),
    **COMMON,
    "chosen_incentive": Metric(
        "1 / nat",
        "derivative of an example's loss by the logp (or score) of chosen; negative: the update raises chosen",
    ),
    "rejected_incentive": Metric("1 / nat", "derivative of an example's loss by the logp (or score) of rejected"),
    "drift": Metric("nats", "mean log-ratio on mismatched responses, at least 0 (KTO's z0); null where there are none"),
    "drift_error": Metric("nats", "standard error of that mean"),
    "off_policy": Metric(
        "nats a token",
        "mean |log pi - log pi_old| of drawn tokens, pi_old being the policy that drew them; null offline",
    ),
    "clipped": Metric("share", "drawn tokens whose ratio to that policy is cut, so that they have no gradient"),
    "value_loss": Metric("squared scores", "the value model's loss, averaged over the rows of the step"),
    "grad_norm": Metric("", "norm of the gradient before clipping"),
    "lr": Metric("", "learning rate of this step"),
    "examples": Metric("rows", "rows of this step"),
    "tokens_computed": Metric(
        "tokens",
        "tokens through the model on all ranks, each distinct prefix of a pack once; coupled: twice",
    ),
    "tokens_shared": Metric(
        "tokens",
        "tokens that sharing saved in a pass: each prompt with each response, minus distinct",
    ),
    "seconds": Metric("s", "wall time of the step; a resumed run does not repeat it"),
}

EVALUATION: dict[str, Metric] = {
    "step": Metric("", "updates done before this evaluation; 0 is before training"),
    "rows": Metric("rows", "held-out rows measured"),
    "responses": Metric("responses", "responses of these rows"),
    **COMMON,
    "perplexity": Metric(
        "",
        "exp of minus the log-probability of the responses over their tokens, all rows together; only where nothing is "
        "pushed down, as in SFT",
    ),
    "accuracy_of_change": Metric(
        "share",
        "pairs whose chosen response has gained more log-probability than the rejected one since training began; of "
        "ratings, how often a good response has gained more than a bad one; comparable between all objectives",
    ),
    "accuracy_chosen_longer": Metric("share", "accuracy on the pairs whose chosen response has more tokens"),
    "accuracy_chosen_shorter": Metric("share", "accuracy on the pairs whose chosen response has fewer tokens"),
    "accuracy_best_of_k": Metric(
        "share", "rankings whose response of the highest score has the first rank; only of a reward model"
    ),
    "reward_length_correlation": Metric(
        "", "Spearman rank correlation of log-ratio (or score) and tokens over all responses"
    ),
    "score_mean": Metric("nats", "mean score of all responses by a reward model"),
    "score_spread": Metric("nats", "standard deviation of these scores"),
    "calibration_error": Metric(
        "share",
        "expected calibration error of a reward model: in ten bins of the probability that its margin gives to the "
        "order it prefers, the mean distance from how often that order is right",
    ),
    "calibration_slope": Metric(
        "",
        "what a reward model's margins have to be multiplied by to make the labels most probable; below 1 it is too "
        "sure, and a policy tuned on its scores acts as if beta were multiplied by it",
    ),
    "score": Metric("score", "mean score of responses drawn to held-out prompts"),
    "score_error": Metric("score", "standard error of score, over prompts"),
    "score_best": Metric(
        "score", "mean over prompts of the highest score drawn to them: pass@K where scores are 0 and 1"
    ),
    "kl": Metric(
        "nats",
        "mean log-ratio to the reference of responses drawn to held-out prompts",
        ("KL from the start", "mean log-ratio of drawn responses to the model before training"),
    ),
    "kl_error": Metric(
        "nats", "standard error of kl, over prompts", ("error of this KL", "its standard error, over prompts")
    ),
    "ceiling": Metric(
        "score", "the best mean score that any policy at this KL could have, by the reference's own draws"
    ),
    "tokens": Metric(
        "tokens",
        "mean tokens of drawn responses",
        ("drawn tokens", "mean tokens of drawn responses"),
    ),
    "ended": Metric("share", "drawn responses that have their end token"),
    "repeated": Metric("share", "of the 3-grams of drawn responses, those that stand in their response before"),
    "start_mean_logp": Metric("nats a token", "log-probability of drawn responses under the model before training"),
    "log_ratio_rms": Metric(
        "nats", "root mean square of the log-ratios of all responses; 0 where the policy is its reference"
    ),
    "seconds": Metric("s", "wall time of the evaluation"),
}

PHASE: dict[str, Metric] = {
    "phase": Metric("", "number of the phase, from 0"),
    "step": Metric("", "updates done before it was drawn"),
    "responses": Metric("responses", "responses drawn"),
    "score": Metric("score", "mean score of the responses"),
    "score_spread": Metric("score", "standard deviation of the scores of a prompt's responses, averaged"),
    "alike": Metric("share", "prompts whose responses all have one score, from which nothing is learned but the KL"),
    "replaced": Metric(
        "share", "prompts in the place of others whose responses had one score; only where rollout.redraws is given"
    ),
    "kl": Metric("nats", "mean log-ratio to the reference of the responses: the KL of policy and reference"),
    "kl_error": Metric("nats", "standard error of that mean, over prompts"),
    "tokens": Metric("tokens", "mean tokens of a response"),
    "ended": Metric("share", "responses that have their end token; the others were cut"),
    "distinct": Metric("share", "responses that differ from all others to their prompt"),
    "entropy": Metric("nats a token", "minus the mean log-probability of the drawn tokens"),
    "sampler_off": Metric(
        "nats a token",
        "mean difference between what the sampler and the policy say of a drawn token, where it is more than rounding",
    ),
    "value_explained": Metric(
        "share", "of the variance of the returns, what the values explain; 0 is no better than their mean"
    ),
    "seconds_draw": Metric("s", "wall time of drawing"),
    "seconds_score": Metric("s", "wall time of rewards, of drawing anew (rollout.redraws), of reference and values"),
}

ROW: dict[str, Metric] = {
    "id": Metric("", "id of the row, or file:line"),
    "place": Metric("", "file:line"),
    "category": Metric("", "part of the data that the row says it belongs to, in its key category or subset"),
    "prompt": Metric("", "key of the row's prompt: rows with the same key are not independent"),
    "margin": Metric("nats", f"{COMMON['margin'].meaning}; of a ranking, the mean of its pairs"),
    "accuracy": Metric(
        "share",
        "pairs of the row that are ranked right; of a rating, responses of the other class that it is ranked right "
        "against; null where votes are even",
    ),
    "accuracy_of_change": Metric("share", "accuracy by the change since training began"),
    "chosen_logp": Metric("nats", COMMON["chosen_logp"].meaning),
    "rejected_logp": Metric("nats", COMMON["rejected_logp"].meaning),
    "chosen_logp_change": Metric("nats", "chosen_logp minus its value before training"),
    "rejected_logp_change": Metric("nats", "rejected_logp minus its value before training"),
    "chosen_score": Metric("nats", COMMON["chosen_score"].meaning),
    "rejected_score": Metric("nats", COMMON["rejected_score"].meaning),
    "chosen_tokens": Metric("tokens", COMMON["chosen_tokens"].meaning),
    "rejected_tokens": Metric("tokens", COMMON["rejected_tokens"].meaning),
    "shared_logp_change": Metric("nats", "change since the start over the tokens before the two responses part"),
    "chosen_fork_change": Metric("nats", "change at the token of chosen where the two responses part"),
    "rejected_fork_change": Metric("nats", "change at the token of rejected where the two responses part"),
    "outside_fork": Metric("", "probability of every token but those two where the two responses part"),
    "outside_fork_change": Metric("", "outside_fork minus its value before training"),
    "chosen_end_logp": Metric("nats", "log-probability of the end token of chosen; null where it was cut"),
    "rejected_end_logp": Metric("nats", "log-probability of the end token of rejected; null where it was cut"),
    "chosen_end_change": Metric("nats", "chosen_end_logp minus its value before training"),
    "rejected_end_change": Metric("nats", "rejected_end_logp minus its value before training"),
}

WORD: dict[str, Metric] = {
    "token": Metric("", "id of the token"),
    "text": Metric("", "the token as text"),
    "pairs": Metric("pairs", "held-out pairs whose responses do not have it equally often"),
    "margin_per_token": Metric(
        "nats", "by how much the margin grows with each time that chosen has it more often, at equal length"
    ),
    "correlation": Metric("", "correlation of the two about the origin, at equal length"),
    "z": Metric("", "that slope over its standard error"),
    "length_z": Metric("", "the slope of the margin by length over its standard error, at equal counts of this token"),
    "label_z": Metric("", "the z of the label in place of the margin: what the data say themselves"),
    "p": Metric("", "two-sided p value of z, after Holm over all tokens looked at"),
}


def described(key: str, metric: Metric, *, demos: bool) -> tuple[str, str]:
    """What a person calls a number of an evaluation, and its meaning. demos: whether each row is a response to imitate;
    else its name is that of the record."""
    return metric.of_demos if demos and metric.of_demos else (key, metric.meaning)


def numbered(names: Sequence[str]) -> list[str]:
    """How a record names rewards of these names: the second of equal ones ends with (2)."""
    counts: Counter[str] = Counter()
    unequal = []
    for name in names:
        counts[name] += 1
        unequal.append(f"{name} ({counts[name]})" if counts[name] > 1 else name)
    return unequal
