"""The peers' own loss code, called on given log-probabilities: a trainer without weights, and a model that only
says what it was told. Nothing of theirs is repeated here; the field names are the ones that their code reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from preftune.objective.responses import Pairs, Ratings

Slopes = tuple[Tensor, Tensor, Tensor]
ALONE = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x,
                        reduce=lambda x, reduction: x, num_processes=1)  # fmt: skip


def bare(trainer: type, **fields: object) -> object:
    """A trainer whose constructor never ran, for one process."""
    made = object.__new__(trainer)
    always = {
        "model": SimpleNamespace(training=True), "accelerator": ALONE, "aux_loss_enabled": False, "_tp_size": 1,
        "_metrics": {"train": defaultdict(list)}, "_total_train_tokens": 0, "precompute_ref_logps": True,
    }  # fmt: skip
    made.__dict__.update({**always, **fields})
    return made


def spread(logp: Tensor, tokens: Tensor, width: int) -> Tensor:
    """(responses, width) the same log-probability on each token of a response, 0 on the padding."""
    held = torch.arange(width) < tokens.unsqueeze(1)
    return (logp / tokens).unsqueeze(1) * held


def told(token_logp: Tensor, sum_of_squares: Tensor | None = None) -> SimpleNamespace:
    """What their models return, from (responses, tokens)."""
    zero = torch.zeros_like(token_logp).detach()
    squares = zero if sum_of_squares is None else sum_of_squares
    return SimpleNamespace(
        log_probs=token_logp, log_sum_sq_probs=squares, entropy=zero, mean_logits=zero, is_top1=zero.bool()
    )


def masks(tokens: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(responses, width + 1) ids and the mask of the response: one token of prompt, then the response."""
    held = (torch.arange(width + 1) > 0) & (torch.arange(width + 1) <= tokens.unsqueeze(1))
    return torch.ones_like(held, dtype=torch.long), held.long()


def trl_dpo(pairs: Pairs, kind: str = "sigmoid", **fields: object) -> Slopes:
    """Loss of one batch by TRL's DPOTrainer, and its derivatives by the summed logp of chosen and of rejected.

    The derivative is read at each response's first token, which lies before any discounted tail.
    """
    from trl import DPOTrainer

    usual = {
        "ld_alpha": None, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "loss_types": [kind],
        "loss_weights": [1.0], "beta": 0.1, "label_smoothing": 0.0, "use_weighting": False,
        "args": SimpleNamespace(discopop_tau=0.05),
    }  # fmt: skip
    trainer = bare(DPOTrainer, **{**usual, **fields})
    tokens = torch.cat([pairs.chosen.tokens, pairs.rejected.tokens])
    width = int(tokens.max())
    leaf = spread(torch.cat([pairs.chosen.logp, pairs.rejected.logp]), tokens, width).detach().requires_grad_()
    squares = None
    if pairs.chosen.sharpness is not None and pairs.rejected.sharpness is not None:
        squares = leaf.detach() - torch.cat([pairs.chosen.sharpness, pairs.rejected.sharpness]).unsqueeze(1)
    ids, mask = masks(tokens, width)
    batch = {
        "input_ids": ids, "attention_mask": ids, "completion_mask": mask,
        "ref_chosen_logps": pairs.chosen.ref_logp, "ref_rejected_logps": pairs.rejected.ref_logp,
    }  # fmt: skip
    loss = trainer._compute_loss(lambda **_: told(leaf, squares), batch, False)  # type: ignore[attr-defined]
    slope = torch.autograd.grad(loss, leaf)[0][:, 0]
    return loss.detach(), *slope.chunk(2)


def trl_reward(chosen: Tensor, rejected: Tensor, center: float | None, margin: Tensor | None) -> Slopes:
    """Loss of one batch by TRL's RewardTrainer, and its derivatives by the scores of chosen and of rejected."""
    from trl import RewardTrainer

    trainer = bare(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=center))
    leaf = torch.cat([chosen, rejected]).detach().requires_grad_()
    batch = {"attention_mask": torch.ones(len(leaf), 1)} | ({} if margin is None else {"margin": margin})
    loss = trainer.compute_loss(  # type: ignore[attr-defined]
        lambda **_: SimpleNamespace(logits=leaf.unsqueeze(1)), batch
    )
    return loss.detach(), *torch.autograd.grad(loss, leaf)[0].chunk(2)


def trl_kto(ratings: Ratings, kind: str = "kto", beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """Loss of one batch by TRL's KTOTrainer, and its derivative by the summed logp of each response."""
    from trl import KTOTrainer

    trainer = bare(KTOTrainer, loss_type=kind, beta=beta, desirable_weight=1.0, undesirable_weight=1.0,
                   calculate_KL=kind == "kto")  # fmt: skip
    own, away = ratings.responses, ratings.mismatched
    width = int(own.tokens.max())
    leaf = spread(own.logp, own.tokens, width).detach().requires_grad_()
    ids, mask = masks(own.tokens, width)
    batch = {"input_ids": ids, "attention_mask": ids, "completion_mask": mask, "label": ratings.good,
             "ref_logps": own.ref_logp}  # fmt: skip
    answers = [told(leaf)]
    if away is not None:
        ids, mask = masks(away.tokens, int(away.tokens.max()))
        batch |= {"KL_input_ids": ids, "KL_attention_mask": ids, "KL_completion_mask": mask,
                  "ref_KL_logps": away.ref_logp}  # fmt: skip
        answers.insert(0, told(spread(away.logp, away.tokens, int(away.tokens.max()))))
    loss = trainer._compute_loss(lambda **_: answers.pop(0), batch, False)  # type: ignore[attr-defined]
    return loss.detach(), torch.autograd.grad(loss, leaf)[0][:, 0]


def trl_cpo(chosen: Tensor, rejected: Tensor, kind: str = "sigmoid", **fields: object) -> Slopes:
    """Loss by TRL's CPOTrainer without imitation, by whatever log-probabilities its loss is given: sums or means."""
    from trl.experimental.cpo import CPOTrainer

    usual = {"loss_type": kind, "alpha": 0.0, "beta": 0.1, "simpo_gamma": 0.5, "label_smoothing": 0.0}
    trainer = bare(CPOTrainer, **{**usual, **fields})
    return by(lambda a, b: trainer.cpo_loss(a, b)[0].mean(), chosen, rejected)  # type: ignore[attr-defined]


def trl_orpo(chosen: Tensor, rejected: Tensor, beta: float = 0.1) -> Slopes:
    """The odds-ratio part by TRL's ORPOTrainer, from mean log-probabilities; it is subtracted from the imitation."""
    from trl.experimental.orpo import ORPOTrainer

    trainer = bare(ORPOTrainer, beta=beta)
    return by(lambda a, b: -trainer.odds_ratio_loss(a, b)[0].mean(), chosen, rejected)  # type: ignore[attr-defined]


def liger(name: str, chosen: Tensor, rejected: Tensor, **fields: object) -> Slopes:
    """Loss by Liger's chunked preference loss of that name, from the log-probabilities of one chunk."""
    from importlib import import_module

    module = import_module(f"liger_kernel.chunked_loss.{name.lower()}_loss")
    function = getattr(module, f"LigerFusedLinear{name}Function").preference_loss_fn
    target = torch.zeros(2 * len(chosen), 1)
    return by(lambda a, b: function(a, b, target, **fields)[0], chosen, rejected)


def by(loss: Callable[[Tensor, Tensor], Tensor], chosen: Tensor, rejected: Tensor) -> Slopes:
    """A loss of two tensors and its derivatives by them."""
    leaves = [x.detach().clone().requires_grad_() for x in (chosen, rejected)]
    found = loss(*leaves)
    return found.detach(), *torch.autograd.grad(found, leaves)


def trl_grpo(
    token_logp: Tensor, sampled: Tensor, advantage: Tensor, response: Tensor, kind: str, level: str = "token",
    **fields: object,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss of one batch by TRL's GRPOTrainer, and its derivative by each token. advantage: (responses,)."""
    from trl import GRPOTrainer

    lengths = torch.bincount(response)
    place = torch.cat([torch.arange(int(length)) for length in lengths])

    def padded(values: Tensor) -> Tensor:
        return values.new_zeros(len(lengths), int(lengths.max())).index_put((response, place), values)

    leaf = token_logp.detach().clone().requires_grad_()
    usual = {"loss_type": kind, "importance_sampling_level": level, "epsilon_low": 0.2, "epsilon_high": 0.2,
             "beta": 0.0, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "use_vllm": False,
             "_entropy_bonus_enabled": False, "current_gradient_accumulation_steps": 1, "max_completion_length": 1,
             "args": SimpleNamespace(delta=None, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
                                     steps_per_generation=1)}  # fmt: skip
    trainer = bare(GRPOTrainer, **{**usual, **fields})
    ones = padded(torch.ones_like(leaf)).detach()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (padded(leaf), ones, None)  # type: ignore[attr-defined]
    ids = ones.long()
    batch = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": ids,
             "advantages": advantage, "old_per_token_logps": padded(sampled),
             "num_items_in_batch": ids.sum()}  # fmt: skip
    loss = trainer._compute_loss(None, batch)  # type: ignore[attr-defined]
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]
