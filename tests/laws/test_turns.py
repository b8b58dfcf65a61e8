"""A response of several turns has the sum of their log-probabilities, each after its own prompt, and their gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from making import PLACE, tiny
from msgspec.structs import replace
from steps import one_step, step_of

from preftune import objective as o
from preftune.model.plain import plain_logp
from preftune.model.policy import wrap
from preftune.pack.batch import collate
from preftune.reference.fill import filled, score_missing
from preftune.reference.store import Store
from preftune.tokens.groups import LaterTurn, TokenGroup

FAMILIES = ["llama", "gpt2", "mistral", "gemma3_text", "qwen3_next", "mamba"]


def conversation(seed: int, *sizes: tuple[int, int, int], kind: str = "demo") -> TokenGroup:
    """sizes: of each later turn, how many tokens before it it does not share, those of its context, and its own."""
    rng = np.random.default_rng(seed)
    prompt, said = (rng.integers(3, 60, n).astype(np.int32) for n in (5, 4))
    response, later, path = said, [], np.concatenate([prompt, said])
    for dropped, between, own in sizes:
        shared, context = len(path) - dropped, rng.integers(3, 60, between).astype(np.int32)
        later.append(LaterTurn(len(response), shared, context))
        said = rng.integers(3, 60, own).astype(np.int32)
        response, path = np.concatenate([response, said]), np.concatenate([path[:shared], context, said])
    return TokenGroup(prompt=prompt, responses=(response,), kind=kind, place=PLACE, later_turns=(tuple(later),))


ROWS = [conversation(0, (0, 3, 4), (0, 2, 5)), conversation(1, (2, 4, 3), (9, 6, 4)), conversation(2)]


def apart(groups: list[TokenGroup]) -> list[TokenGroup]:
    """Each turn as a row of its own."""
    return [
        TokenGroup(prompt=turn.prompt, responses=(turn.ids,), kind="demo", place=PLACE)
        for group in groups for turns in group.turns for turn in turns
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_is_the_sum_of_its_turns(family: str) -> None:
    policy = wrap(tiny(family, num_hidden_layers=4 if family == "qwen3_next" else 2), "auto")[0]
    with torch.no_grad():
        batch = collate(ROWS)
        token_logp, alone = policy.token_logp(batch), collate(apart(ROWS))
        by_turn = policy.token_logp(alone)
    assert (batch.responses, alone.responses) == (3, 7)
    assert torch.allclose(token_logp, by_turn, atol=policy.noise)
    assert torch.allclose(token_logp, plain_logp(policy, batch), atol=policy.noise)
    assert batch.sum(token_logp).tolist() == pytest.approx(
        [alone.sum(by_turn)[first:last].sum().item() for first, last in ((0, 3), (3, 6), (6, 7))], abs=1e-3
    )


def test_limits_of_a_family_part_the_turns_of_a_response() -> None:
    policy = wrap(tiny(dtype=torch.float64), "auto")[0]
    with torch.no_grad():
        whole, parted = (policy.token_logp(batch) for batch in (collate(ROWS), collate(ROWS, limits=(12,))))
    assert len(collate(ROWS, limits=(12,)).parts) == 2
    assert torch.allclose(whole, parted, atol=1e-9)
    assert collate(ROWS).response.tolist() == collate(ROWS, limits=(12,)).response.tolist()


@pytest.mark.parametrize("norm", ["sum", "sequence", "token"])
def test_the_gradient_is_that_of_the_turns(norm: str) -> None:
    policy = wrap(tiny(dtype=torch.float64, num_hidden_layers=2), "auto")[0]

    def gradient(objective: o.Objective, groups: list[TokenGroup]) -> torch.Tensor:
        policy.module.zero_grad()
        one_step(policy, policy, objective, *step_of([groups]))
        return torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])

    whole = gradient(o.NLL(norm), ROWS)  # type: ignore[arg-type]
    tokens = [len(group.responses[0]) for group in ROWS]
    share = {"sum": [1.0] * 3, "sequence": [1 / n for n in tokens], "token": [3 / sum(tokens)] * 3}[norm]
    turns = [
        replace(turn, weight=part * 7 / 3)  # a step divides by its rows: three here and seven there
        for group, part in zip(ROWS, share, strict=True)
        for turn in apart([group])
    ]
    assert torch.allclose(whole, gradient(o.NLL("sum"), turns), rtol=1e-9, atol=1e-12)


def test_the_reference_of_a_turn_is_stored_once_and_found_by_all_rows(tmp_path: Path) -> None:
    policy = wrap(tiny(), "auto")[0]
    store = Store(tmp_path, "weights", "numerics")
    first = score_missing(policy, store, apart(ROWS), tokens=64)
    again = score_missing(policy, store, ROWS, tokens=64)
    assert (first.scored, again.scored, again.reused) == (7, 0, 7)
    with torch.no_grad():
        token_logp = policy.token_logp(collate(ROWS)).numpy()
    columns = [group.column("reference") for group in filled(ROWS, store)]
    assert np.concatenate([c[0] for c in columns if c]) == pytest.approx(token_logp, abs=policy.noise)


def test_a_pair_of_several_turns_has_the_margin_of_its_turns() -> None:
    policy, reference = (wrap(tiny(dtype=torch.float64, seed=seed), "auto")[0] for seed in (0, 1))
    sides = [conversation(seed, (0, 3, 4), (1, 2, 5)) for seed in (4, 5)]
    pair = TokenGroup(
        prompt=sides[0].prompt, responses=tuple(side.responses[0] for side in sides), kind="pair", place=PLACE,
        ranks=(1, 2), later_turns=tuple(side.later_turns[0] for side in sides),
    )  # fmt: skip
    gradient = one_step(policy, reference, o.DPO(), *step_of([[pair]]))
    with torch.no_grad():
        ratios = [
            float(sum(plain_logp(p, collate([turn])).sum() * sign for p, sign in ((policy, 1), (reference, -1))
                      for turn in apart([replace(pair, responses=(r,), later_turns=(later,), ranks=(1,))])))
            for r, later in zip(pair.responses, pair.later_turns, strict=True)
        ]  # fmt: skip
    assert gradient.output.value == pytest.approx(float(np.log1p(np.exp(-0.1 * (ratios[0] - ratios[1])))), abs=1e-6)
