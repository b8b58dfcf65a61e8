"""PPO with a loop of your own, from the library's pieces: the same weights, bit for bit, as `preftune train` gives.

python examples/ppo_loop.py MODEL PROMPTS OUT
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from preftune import folders
from preftune.distributed import SINGLE_PROCESS
from preftune.forward.examples import column_of, response_of_tokens
from preftune.model.budget import attention_crossover, pack_budget
from preftune.model.columns import fill_column
from preftune.model.load import load_model
from preftune.model.memory import Setup
from preftune.model.policy import Policy, trainable, wrap
from preftune.model.scalar import load_scorer
from preftune.model.shapes import shapes_of
from preftune.objective import PPO
from preftune.objective.responses import Draws, Rollouts, Values
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Packing, make_plan, prefix_order
from preftune.rollout.embedded import Embedded
from preftune.rollout.functions import given_function
from preftune.rollout.scorers import FunctionScorer, answered_task
from preftune.rollout.tasks import Task, tasks_of
from preftune.rows.read import read
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenizer import load_tokenizer
from preftune.training.config import Optim
from preftune.training.optimizer import adamw
from preftune.training.schedule import learning_rate

CPU = torch.device("cpu")


def kind_words(prompt: object, responses: Sequence[str], answer: str | None) -> list[float]:
    """The reward: how many words of a response are kind."""
    return [float(sum(response.count(word) for word in ("good", "lovely", "superb", "fine"))) for response in responses]


def main(model: str, prompts: str, out: str, *, count: int = 4, phases: int = 3, seed: int = 0) -> None:
    """Tune the model of a folder on what it writes to the prompts of a file. count: responses to each prompt."""
    objective, optim = PPO(beta=0.05), Optim(lr=1e-4, steps=phases)

    # file -> rows -> tasks: prompts in token ids, equal ones merged
    tokenizer = load_tokenizer(model)
    tasks = tasks_of(read(prompts).rows, tokenizer, max_prompt_tokens=32).tasks
    end = tokenizer.get_vocab()[str(tokenizer.eos_token)]

    # the policy, the reference that it is held to, and the value model, which begins with a value of 0 for everything
    policy, anchor = (wrap(load_model(model, revision=None, weights="float32", device=CPU, location="MODEL").module,
                           "auto")[0] for _ in range(2))  # fmt: skip
    scorer = load_scorer(model, revision=None, weights="float32", device=CPU, location="MODEL", fresh=True).module
    value = wrap(scorer, "auto")[0]
    value = replace(value, head=replace(value.head, reads="tokens"))  # a number a token, and not one a response
    policy, value = trainable(policy, checkpointing=False), trainable(value, checkpointing=False)
    budget = pack_budget(policy.module, shapes_of(policy.module), Setup(device="cpu"))
    packing = Packing(budget, attention_crossover(policy.module.config))
    sampler, reward = Embedded(policy, 16, frozenset({end})), FunctionScorer(given_function(kind_words))
    learners = [(learner, adamw(learner.weights, optim)) for learner in (policy, value)]

    for number in range(phases):
        # the phase: draw, score, ask the reference and the value model, and fix the advantages for all updates
        drawn = sampler.draw([task.ids for task in tasks], count, (seed, number))
        answered = [answered_task(task, d.ids, d.ended, tokenizer) for task, d in zip(tasks, drawn, strict=True)]
        scores = torch.from_numpy(reward.score(answered))
        groups = [group_of(task, d.ids, d.logp) for task, d in zip(tasks, drawn, strict=True)]
        everything = packing.step(groups, 1)
        for name, reader in (("reference", anchor), ("value", value)):
            filled = fill_column(reader, name, groups, everything, OomRetry(), SINGLE_PROCESS)
            groups = [filled[i] for i in range(len(groups))]
        groups = with_advantages(objective, groups, scores)

        # the update of the policy and of the value model, pack by pack
        plan = make_plan([g.tokens for g in groups], rows=len(groups), tokens=packing.tokens, seed=(seed, number),
                         sort_key=prefix_order([g.prompt for g in groups]),
                         costs=[packing.cost(g) for g in groups])  # fmt: skip
        (step,) = plan.steps
        for pack in step.packs:
            rows = [groups[i] for i in pack]
            leaf = policy.token_logp(batch := policy.batch(rows))
            weight = torch.full((batch.responses,), 1 / count, dtype=torch.float64)
            index = response_of_tokens(rows)
            rollouts = Rollouts(leaf.double(), column_of(rows, "sampled"), column_of(rows, "advantage"), index, weight)
            ((weight * objective(rollouts)).sum() / step.rows).backward()
            said = value.read(value.batch(rows)).double()
            values = Values(said, column_of(rows, "value"), column_of(rows, "returns"), index, weight)
            ((weight * objective.value_loss(values)).sum() / step.rows).backward()
        rate = learning_rate(optim, number, phases)
        for learner, optimizer in learners:
            update(learner, optimizer, optim.clip, rate)
        print(f"phase {number + 1} of {phases}: mean score {scores.mean():.3f}")

    with folders.folder(Path(out)) as folder:
        policy.weights.export(folder, tokenizer)


def group_of(task: Task, ids: tuple, logp: tuple) -> TokenGroup:
    """The responses to a prompt, with what the sampler said of their tokens."""
    return TokenGroup(prompt=task.ids, responses=ids, kind="ranking", place=task.place, ranks=(1,) * len(ids),
                      columns={"sampled": logp})  # fmt: skip


def with_advantages(objective: PPO, groups: list[TokenGroup], scores: torch.Tensor) -> list[TokenGroup]:
    """The groups with advantages and returns, which follow from the whole phase."""
    index = response_of_tokens(groups)
    owner = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(g.responses) for g in groups]))
    ended = torch.ones(len(scores), dtype=torch.bool)  # PPO does not ask
    sampled, reference, value = (column_of(groups, name) for name in ("sampled", "reference", "value"))
    advantages = objective.advantages(Draws(sampled, reference, value, index, owner, scores, ended))
    lengths = [len(response) for group in groups for response in group.responses]
    for name, numbers in (("advantage", advantages.advantage), ("returns", advantages.returns)):
        parts = iter(numbers.float().split(lengths))
        groups = [group.with_column(name, tuple(next(parts).numpy() for _ in group.responses)) for group in groups]
    return groups


def update(policy: Policy, optimizer: torch.optim.Optimizer, clip: float, rate: float) -> None:
    """One step of AdamW with the gradient's norm clipped."""
    parameters = list(policy.weights.trained().values())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm > clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    for part in optimizer.param_groups:
        part["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main(*sys.argv[1:])
