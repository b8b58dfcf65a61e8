"""Liger's chunked losses: equal to ours where they are the paper's, and the rows of docs/peers.md where not."""

from __future__ import annotations

import pytest

pytest.importorskip("liger_kernel", reason="Liger is installed by `make test-peers` only")

import torch
from objective.cases import pairs_of, random_pairs, ratings_of, slopes
from peers.theirs import liger

from preftune import objective as o
from preftune.objective.responses import Pairs, Responses

SAME = {
    "sigmoid": (o.DPO(), {}),
    "hinge": (o.Hinge(), {}),
    "nca_pair": (o.NCA(beta=0.1), {}),
    "robust": (o.RobustDPO(), {"label_smoothing": 0.1}),
    "apo_zero": (o.APOZero(), {}),
    "apo_down": (o.APODown(), {}),
}
WORKED = pairs_of()


def anchored(pairs: Pairs) -> dict[str, torch.Tensor]:
    return {"ref_chosen_logps": pairs.chosen.ref_logp, "ref_rejected_logps": pairs.rejected.ref_logp}


def dpo(pairs: Pairs, kind: str, **fields: object) -> tuple[torch.Tensor, ...]:
    return liger("DPO", pairs.chosen.logp, pairs.rejected.logp, loss_type=kind, **anchored(pairs), **fields)


def check(objective: o.Objective, pairs: Pairs, theirs: tuple[torch.Tensor, ...], digits: float = 1e-12) -> None:
    value, *slope = slopes(objective, pairs)
    for a, b in zip((value.mean(), *(s / len(s) for s in slope)), theirs, strict=True):
        assert torch.allclose(a, b, rtol=digits, atol=digits * 1e-2), (a - b).abs().max()


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("seed", range(3))
def test_dpo(kind: str, seed: int) -> None:
    objective, fields = SAME[kind]
    pairs = random_pairs(6, seed)
    check(objective, pairs, dpo(pairs, kind, **fields))


def test_exo() -> None:
    """Their epsilon passes through fp32."""
    pairs = random_pairs(6)
    check(o.EXO(), pairs, dpo(pairs, "exo_pair", label_smoothing=1e-3), 3e-8)


def test_cpo_and_simpo() -> None:
    pairs = random_pairs(6)
    chosen, rejected = pairs.chosen, pairs.rejected
    check(o.CPO(nll_weight=0.0), pairs, liger("CPO", chosen.logp, rejected.logp, beta=0.1))
    value, a, b = liger("SimPO", chosen.mean_logp, rejected.mean_logp, beta=2.0, gamma=1.0)
    check(o.SimPO(beta=2.0, gamma=1.0), pairs, (value, a / chosen.tokens, b / rejected.tokens))


def test_kto() -> None:
    """Under a drift that is given."""
    from liger_kernel.chunked_loss.kto_loss import LigerFusedLinearKTOFunction

    ratings = ratings_of(random_pairs(5))
    own = ratings.responses
    drift = torch.tensor(0.2, dtype=torch.float64)
    theirs = LigerFusedLinearKTOFunction.preference_loss_fn(
        own.logp, ratings.good, torch.zeros(10, 1), ref_log_prob_chunk=own.ref_logp, beta=0.1, kl=drift
    )[0]
    away = Responses(own.ref_logp + drift, own.tokens, own.ref_logp)
    ours = o.KTO(good_weight=1.0, bad_weight=1.0)(type(ratings)(own, ratings.good, ratings.weight, away))
    assert torch.allclose(ours.mean(), theirs, rtol=1e-12)


def test_the_whole_of_dpo_with_its_head() -> None:
    """From hidden states: loss and the gradients of states and head, theirs in chunks of one pair, fp32."""
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    draw = torch.Generator().manual_seed(0)
    states, ref_states = (torch.randn(6, 9, 8, generator=draw) for _ in range(2))
    head, ref_head = (torch.randn(23, 8, generator=draw) for _ in range(2))
    target = torch.randint(0, 23, (6, 9), generator=draw)
    target[:, :3] = -100
    target[1, 7:] = -100
    found = []
    for theirs in (True, False):
        leaves = [states.clone().requires_grad_(), head.clone().requires_grad_()]
        if theirs:
            function = LigerFusedLinearDPOLoss(beta=0.1, compiled=False)
            loss = function(leaves[1], leaves[0], target, ref_input=ref_states, ref_weight=ref_head)[0]
        else:
            loss = plain_dpo(leaves[0] @ leaves[1].t(), ref_states @ ref_head.t(), target)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def plain_dpo(logits: torch.Tensor, ref_logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Ours from logits, one response a row, chosen first."""

    def logp(of: torch.Tensor) -> torch.Tensor:
        return (of.log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0] * (target >= 0)).sum(-1)

    (a, b), (ref_a, ref_b) = logp(logits).chunk(2), logp(ref_logits).chunk(2)
    return o.dpo_loss(a, b, ref_a, ref_b, beta=0.1)


def test_label_smoothing_is_ignored_by_the_default_loss() -> None:
    plain, smoothed = (dpo(WORKED, "sigmoid", label_smoothing=eps) for eps in (0.0, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(plain, smoothed, strict=True))


def test_sppo_is_twice_the_paper() -> None:
    for theirs, own in zip(dpo(WORKED, "sppo_hard", beta=1e-3), slopes(o.SPPO(), WORKED), strict=True):
        assert float(theirs) == pytest.approx(2 * float(own), rel=1e-12)


def test_bco_has_no_shift() -> None:
    value, *_ = dpo(WORKED, "bco_pair")
    assert float(value) == pytest.approx(1.265354, abs=1e-6)
    assert float(slopes(o.BCO(), WORKED)[0]) == pytest.approx(1.265198, abs=1e-6)


def test_orpo_is_not_a_number_when_sure() -> None:
    """From where exp(x) rounds to 1 in fp32, about -3e-8."""
    assert liger("ORPO", torch.tensor([-1e-8]), torch.tensor([-1.0]))[1].isnan().all()
    assert liger("ORPO", torch.tensor([-1e-7]), torch.tensor([-1.0]))[1].isfinite().all()
    sure = pairs_of(([-1e-8], [-1.0]), tokens=(1, 1), dtype=torch.float32)
    assert all(x.isfinite().all() for x in slopes(o.ORPO(), sure))


def test_simpo_default_beta() -> None:
    from liger_kernel.chunked_loss import LigerFusedLinearSimPOLoss

    assert (LigerFusedLinearSimPOLoss().beta, LigerFusedLinearSimPOLoss().gamma) == (0.1, 0.5)


def test_ipo_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="ipo"):
        dpo(WORKED, "ipo")
