"""The reward model's loss and gradient against its formula, written with transformers' own padded forward pass in fp64.

The formula is TRL's RewardTrainer's: the mean of -logsigmoid(chosen - rejected - margin), and a coefficient times the
mean of (chosen + rejected)^2.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from making import group, groups, norms_in_double, tiny
from steps import one_step, step_of
from torch import Tensor

from preftune import objective as o
from preftune.model.policy import wrap
from preftune.model.scalar import put_score, with_score
from preftune.tokens.groups import TokenGroup

PAD, END = 0, 2


def scorer() -> torch.nn.Module:
    module = with_score(tiny(dtype=torch.float64), "model.path")
    generator = torch.Generator().manual_seed(1)
    put_score(module, torch.randn(1, 32, generator=generator, dtype=torch.float64), None)
    norms_in_double(module)
    module.config.pad_token_id = PAD
    return module


def scores(module: torch.nn.Module, rows: list[TokenGroup]) -> Tensor:
    sequences = [[*map(int, row.prompt), *map(int, r)] for row in rows for r in row.responses]
    longest = max(map(len, sequences))
    module.set_attn_implementation("sdpa")  # the eager one takes its softmax in fp32
    ids = torch.tensor([s + [PAD] * (longest - len(s)) for s in sequences])
    return module(input_ids=ids, attention_mask=(ids != PAD).long()).logits[:, 0]


def ended(rows: list[TokenGroup], **keys: object) -> list[TokenGroup]:
    return [
        group(row.prompt, *(np.append(r, END) for r in row.responses), scores=(1.5, 0.25 * i), **keys)
        for i, row in enumerate(rows)
    ]


def compare(objective: o.Reward, rows: list[TokenGroup], expected: Tensor, module: torch.nn.Module) -> None:
    """expected: the mean loss over the rows, with its graph in `module`."""
    expected.backward()
    policy, _ = wrap(scorer(), "trie")
    packed, step = step_of([rows[:2], rows[2:]])
    gradient = one_step(policy, policy, objective, packed, step)
    assert gradient.output.value / len(rows) == pytest.approx(float(expected.detach()), rel=1e-9)
    theirs, ours = dict(module.named_parameters()), dict(policy.module.named_parameters())
    assert theirs.keys() == ours.keys()
    for name, parameter in theirs.items():
        assert torch.allclose(ours[name].grad, parameter.grad, rtol=1e-7, atol=1e-9), name


@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("center", [0.0, 0.01])
def test_pairs(margin: float, center: float) -> None:
    rows, module = ended(groups(5, seed=3)), scorer()
    chosen, rejected = scores(module, rows).view(-1, 2).unbind(1)
    asked = torch.tensor([margin * (row.scores[0] - row.scores[1]) for row in rows], dtype=torch.float64)
    loss = (
        -torch.nn.functional.logsigmoid(chosen - rejected - asked).mean() + center * ((chosen + rejected) ** 2).mean()
    )
    compare(o.Reward(margin=margin, center=center), rows, loss, module)


def test_votes_are_the_expected_loss() -> None:
    rows, module = ended(groups(4, seed=4), preferred=0.8), scorer()
    chosen, rejected = scores(module, rows).view(-1, 2).unbind(1)
    log = torch.nn.functional.logsigmoid
    loss = -(0.8 * log(chosen - rejected) + 0.2 * log(rejected - chosen)).mean()
    compare(o.Reward(), rows, loss, module)


def test_a_ranking_is_all_its_pairs_at_one_over_their_number() -> None:
    """InstructGPT's eq. 1."""
    rng = np.random.default_rng(0)
    rows = [
        group(rng.integers(3, 64, 5), *(np.append(rng.integers(3, 64, n), END) for n in (2, 5, 3, 4)), kind="ranking",
              ranks=(2, 1, 4, 3))
        for _ in range(3)
    ]  # fmt: skip
    module = scorer()
    by_rank = scores(module, rows).view(-1, 4)[:, [1, 0, 3, 2]]
    losses = [-torch.nn.functional.logsigmoid(by_rank[:, i] - by_rank[:, j]) for i, j in combinations(range(4), 2)]
    compare(o.Reward(), rows, torch.stack(losses).mean(), module)


def test_a_constant_changes_the_loss_only_where_scores_are_centered() -> None:
    def value(objective: o.Reward, constant: float) -> float:
        policy, _ = wrap(scorer(), "trie")
        put_score(policy.module, policy.head.weight.detach(), torch.tensor([constant]))
        shifted, _ = wrap(policy.module, "trie")
        packed, step = step_of([ended(groups(3, seed=5))])
        return one_step(shifted, shifted, objective, packed, step).output.value

    assert value(o.Reward(), 5.0) == pytest.approx(value(o.Reward(), 0.0), rel=1e-9)
    assert abs(value(o.Reward(center=0.01), 5.0) - value(o.Reward(center=0.01), 0.0)) > 0.1
