"""DPO with a loop of your own, from the library's pieces: the same weights, bit for bit, as `preftune train` gives.

python examples/dpo_loop.py MODEL PAIRS OUT
"""

import sys
from pathlib import Path

import torch

from preftune import folders
from preftune.model.budget import attention_crossover, pack_budget
from preftune.model.load import load_model
from preftune.model.memory import Setup
from preftune.model.policy import Policy, trainable, wrap
from preftune.model.shapes import shapes_of
from preftune.objective import DPO
from preftune.objective.responses import Pairs, Responses
from preftune.pack.batch import Batch, collate
from preftune.pack.plan import Packing, Plan, make_plan, prefix_order
from preftune.reference.fill import filled, score_missing
from preftune.reference.store import Store
from preftune.rows.read import read
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenize import tokenize
from preftune.tokens.tokenizer import load_tokenizer
from preftune.training.config import Optim
from preftune.training.optimizer import adamw
from preftune.training.schedule import learning_rate

CPU = torch.device("cpu")


def main(model: str, pairs: str, out: str, *, rows: int = 8, seed: int = 0) -> None:
    """Tune the model of a folder on a file of pairs, and write it to the folder `out`. rows: pairs of an update."""
    optim = Optim(lr=1e-4, epochs=1)

    # file -> rows -> groups: a prompt with its two responses, in token ids
    tokenizer = load_tokenizer(model)
    groups = tokenize(read(pairs).rows, tokenizer, max_tokens=64).groups

    # the policy: a transformers model that takes each distinct token of a pack once
    module = load_model(model, revision=None, weights="float32", device=CPU, location="MODEL").module
    policy = trainable(wrap(module, "auto")[0], checkpointing=False)

    # the plan: every update and every forward pass of the run, before the first
    packing = Packing(pack_budget(module, shapes_of(module), Setup(device="cpu")), attention_crossover(module.config))
    plan = plan_of(groups, packing, rows, optim, seed)

    # the reference: the policy before its first update; its log-probabilities are a column of the groups
    store = Store(None, policy.weights.digest(), "fp32")
    score_missing(policy, store, groups, tokens=packing.tokens)
    groups = filled(groups, store)

    objective, optimizer = DPO(beta=0.1), adamw(policy.weights, optim)
    for number, step in enumerate(plan.steps):
        for pack in step.packs:
            batch = collate([groups[i] for i in pack])
            loss = objective(pairs_of(policy, batch)).sum() / step.rows
            loss.backward()
        update(policy, optimizer, optim, learning_rate(optim, number, len(plan.steps)))
        print(
            f"update {number + 1} of {len(plan.steps)}: loss of its last pack {loss.item() * step.rows / len(pack):.4f}"
        )

    with folders.folder(Path(out)) as folder:
        policy.weights.export(folder, tokenizer)


def plan_of(groups: list[TokenGroup], packing: Packing, rows: int, optim: Optim, seed: int) -> Plan:
    """Steps of so many rows, cut into packs of prompts that begin alike."""
    return make_plan(
        [group.tokens for group in groups],
        rows=rows,
        tokens=packing.tokens,
        seed=seed,
        epochs=optim.epochs,
        sort_key=prefix_order([group.prompt for group in groups]),
        costs=[packing.cost(group) for group in groups],
    )


def pairs_of(policy: Policy, batch: Batch) -> Pairs:
    """The batch's pairs: log-probabilities of their responses, (pairs,) in nats; the policy's have a gradient."""
    logp = batch.sum(policy.token_logp(batch)).double()
    tokens = torch.tensor([len(response) for group in batch.groups for response in group.responses]).double()
    sums = [token_logp.sum(dtype="f8") for group in batch.groups for token_logp in group.column("reference")]
    reference = torch.tensor(sums).float().double()  # rounded as the policy's own sums are
    responses = Responses(logp, tokens, reference)
    chosen = torch.arange(0, len(logp), 2)  # a group's responses stand side by side, the chosen one first
    one = torch.ones(len(chosen), dtype=torch.float64)
    return Pairs(responses[chosen], responses[chosen + 1], weight=one, preferred=one)


def update(policy: Policy, optimizer: torch.optim.Optimizer, optim: Optim, rate: float) -> None:
    """One step of AdamW with the gradient's norm clipped."""
    parameters = list(policy.weights.trained().values())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm > optim.clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, optim.clip, norm)
    for part in optimizer.param_groups:
        part["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main(*sys.argv[1:])
