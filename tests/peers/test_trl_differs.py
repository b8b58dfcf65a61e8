"""Where TRL's number is not the paper's: each row of docs/peers.md, reproduced. A test that fails here after an
upgrade is good news, and the row goes."""

from __future__ import annotations

import pytest

pytest.importorskip("trl", reason="TRL is installed by `make test-peers` only")

from dataclasses import replace
from itertools import pairwise
from math import exp, log
from pathlib import Path
from types import SimpleNamespace

import torch
from objective.cases import pairs_of, random_pairs, ratings_of, slopes, soft
from peers.theirs import bare, trl_cpo, trl_dpo, trl_kto, trl_orpo

from preftune import objective as o
from preftune.objective.responses import Pairs
from preftune.rows.read import read
from preftune.rows.row import Pair, text_of

WORKED = pairs_of()


def ours(objective: o.Objective, pairs: Pairs) -> float:
    return float(slopes(objective, pairs)[0].mean())


def halves(pairs: Pairs) -> list[Pairs]:
    """The first and the second half of some pairs."""
    cut = len(pairs.weight) // 2
    return [
        Pairs(pairs.chosen[at], pairs.rejected[at], pairs.weight[at], pairs.preferred[at])
        for at in (torch.arange(cut), torch.arange(cut, 2 * cut))
    ]


def test_label_smoothing_is_ignored_by_the_default_loss() -> None:
    plain, smoothed = (trl_dpo(WORKED, label_smoothing=eps) for eps in (0.0, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(plain, smoothed, strict=True))
    assert float(smoothed[0]) == pytest.approx(0.575939, abs=1e-6)
    assert ours(o.DPO(flip=0.3), WORKED) == pytest.approx(0.650939, abs=1e-6)


def test_ipo_is_per_token() -> None:
    """The paper's eq. 17 has the summed margin. Ours has both, and this one by default."""
    assert float(trl_dpo(WORKED, "ipo")[0]) == pytest.approx(22.971480, abs=1e-6)
    assert ours(o.IPO(per_token=False), WORKED) == pytest.approx(6.25)


def test_sppo_is_twice_the_paper() -> None:
    value, chosen, rejected = trl_dpo(WORKED, "sppo_hard", beta=1e-3)
    expected = slopes(o.SPPO(), WORKED)
    assert float(value) == pytest.approx(497503.25)
    for theirs, own in zip((value, chosen, rejected), expected, strict=True):
        assert float(theirs) == pytest.approx(2 * float(own), rel=1e-12)


def test_bco_has_no_shift() -> None:
    """delta = 0 there; the middle of 0.1 and -0.15 here, so both responses are 0.125 from it."""
    assert float(trl_dpo(WORKED, "bco_pair")[0]) == pytest.approx(soft(0.1) + soft(0.15), rel=1e-12)
    assert ours(o.BCO(), WORKED) == pytest.approx(2 * soft(0.125), rel=1e-12)
    away = pairs_of(([-12.0], [-15.5]), ([-63.0], [-64.0]))  # both 50 nats above: neither changes its order
    assert float(trl_dpo(away, "bco_pair")[0]) == pytest.approx(soft(5.1) + soft(-4.85), rel=1e-12)
    assert ours(o.BCO(), away) == pytest.approx(2 * soft(0.125), rel=1e-12)


def test_alpha_divergence_is_one_minus_alpha() -> None:
    kind = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.25}
    same = pairs_of(dtype=torch.float32)
    assert float(trl_dpo(same, **kind)[0]) == pytest.approx(ours(o.FDPO(divergence="alpha", alpha=0.75), same))
    assert float(trl_dpo(same, **kind)[0]) == pytest.approx(0.534328, abs=1e-5)
    assert ours(o.FDPO(divergence="alpha", alpha=0.25), same) == pytest.approx(0.567026, abs=1e-5)


def test_alpha_divergence_has_no_double() -> None:
    with pytest.raises(KeyError):
        trl_dpo(WORKED, f_divergence_type="alpha_divergence")


def test_forward_kl_overflows() -> None:
    """Both responses 100 nats below the reference, in fp32: infinity minus infinity."""
    far = pairs_of(([-113.0], [-114.0]), dtype=torch.float32)
    assert torch.isnan(trl_dpo(far, f_divergence_type="forward_kl")[0])
    assert all(x.isfinite().all() for x in slopes(o.FDPO(), far))


def test_weights_of_wpo_pass_one() -> None:
    """A token with probability 1/2 among many rare ones: log(1/2) - log(1/4) = log 2 a token, so a weight of 4."""
    sides = (WORKED.chosen, WORKED.rejected)
    sure = [replace(s, sharpness=torch.full_like(s.logp, log(2))) for s in sides]
    pairs = replace(WORKED, chosen=sure[0], rejected=sure[1])
    assert float(trl_dpo(pairs, use_weighting=True)[0]) == pytest.approx(4 * 0.575939, abs=1e-5)
    assert ours(o.WPO(), pairs) == pytest.approx(0.575939, abs=1e-6)


def test_aot_sorts_within_a_device_batch() -> None:
    """Log-ratios 3, 2, 1, 0 of chosen and 0, 1, 2, 3 of rejected: sorted as a step they are equal; as two batches of
    two pairs they are 2 apart, once either way."""
    zero = torch.zeros(4, dtype=torch.float64)
    pairs = pairs_of(([3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]), ([0.0] * 4, [0.0] * 4))
    split = sum(float(trl_dpo(half, "aot_unpaired", beta=1.0)[0]) for half in halves(pairs)) / 2
    assert split == pytest.approx((soft(2) + soft(-2)) / 2)
    assert float(trl_dpo(pairs, "aot_unpaired", beta=1.0)[0]) == pytest.approx(log(2))
    own = slopes(o.AOT(beta=1.0, paired=False), pairs)
    assert torch.allclose(own[0], zero + log(2))


def test_drift_of_kto_is_that_of_a_device_batch() -> None:
    """The mean of clamped drifts is not the clamped mean: mismatched log-ratios 4 and -2 in two batches of one."""
    pairs = pairs_of(([-12.0, -12.0], [-15.5, -15.5]), ([-13.0, -13.0], [-14.0, -14.0]))
    away = replace(pairs.chosen, logp=pairs.chosen.ref_logp + torch.tensor([4.0, -2.0], dtype=torch.float64))
    ratings = replace(ratings_of(pairs), mismatched=away)
    split = 0.0
    for i in range(2):
        at = torch.tensor([2 * i, 2 * i + 1])
        part = replace(ratings, responses=ratings.responses[at], good=ratings.good[at], weight=ratings.weight[at])
        split += float(trl_kto(replace(part, mismatched=away[torch.tensor([i])]), beta=1.0)[0]) / 2
    objective = o.KTO(beta=1.0, good_weight=1.0, bad_weight=1.0)
    assert split == pytest.approx(0.352003, abs=1e-5)
    assert float(objective(ratings).mean()) == pytest.approx(0.287925, abs=1e-5)


def test_kto_reads_pairs_as_a_thousand_good_then_a_thousand_bad() -> None:
    from datasets import Dataset
    from trl import KTOConfig
    from trl.data_utils import unpair_preference_dataset

    rows = Dataset.from_dict({k: [f"{k} {i}" for i in range(1500)] for k in ("prompt", "chosen", "rejected")})
    labels = unpair_preference_dataset(rows)["label"]
    changes = [0, *(i for i in range(1, 3000) if labels[i] != labels[i - 1]), 3000]
    assert [b - a for a, b in pairwise(changes)] == [1000, 1000, 500, 500]
    assert KTOConfig.__dataclass_fields__["train_sampling_strategy"].default == "sequential"


def test_orpo_is_not_a_number_when_sure() -> None:
    """A chosen response of mean log-probability -1e-8: the branch not taken is infinite and its gradient NaN."""
    chosen, rejected = torch.tensor([-1e-8]), torch.tensor([-1.0])
    _, slope, _ = trl_orpo(chosen, rejected)
    assert slope.isnan().all()
    sure = pairs_of(([-1e-8], [-1.0]), tokens=(1, 1), dtype=torch.float32)
    assert all(x.isfinite().all() for x in slopes(o.ORPO(), sure))


def test_alpha_po_on_sums_is_infinite() -> None:
    """alpha with the default loss takes summed log-probabilities: exp(-400) is 0 and its power infinite."""
    value, slope, _ = trl_cpo(torch.tensor([-400.0]), torch.tensor([-300.0]), alpha=0.25)
    assert not value.isfinite()
    assert not slope.isfinite().all()
    long = pairs_of(([-400.0], [-300.0]), tokens=(200, 200), dtype=torch.float32)
    assert all(x.isfinite().all() for x in slopes(o.AlphaPO(), long))


def test_simpo_default_beta() -> None:
    """The paper's range is 2 to 2.5; gamma / beta is then 0.5 / 0.1 = 5 where the paper has 0.1 to 0.8."""
    from trl.experimental.cpo import CPOConfig

    fields = CPOConfig.__dataclass_fields__
    assert (fields["beta"].default, fields["simpo_gamma"].default) == (0.1, 0.5)


def batch_of_logits(vocab: int = 7) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits (2, 5, vocab) and a pair: three tokens of prompt and two of response."""
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 6, 5]])
    logits = torch.randn(2, 5, vocab, generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(5) < 3, -100)
    named = {}
    for i, side in enumerate(("chosen", "rejected")):
        named |= {f"{side}_input_ids": ids[i : i + 1], f"{side}_labels": labels[i : i + 1]}
        named[f"{side}_attention_mask"] = torch.ones_like(ids[i : i + 1])
    return logits, named


def test_orpo_imitates_the_prompt_too() -> None:
    """Its imitation is over prompt and response (eq. 6 has the response); our two numbers are the two means."""
    from trl.experimental.orpo import ORPOTrainer

    logits, batch = batch_of_logits()
    trainer = bare(ORPOTrainer, is_encoder_decoder=False, padding_value=0, args=SimpleNamespace(max_length=None))
    found = trainer.concatenated_forward(lambda *_, **__: SimpleNamespace(logits=logits), batch)  # type: ignore[attr-defined]
    ids = batch["chosen_input_ids"][0]
    token_logp = logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None]).squeeze(-1)
    assert float(found[4]) == pytest.approx(-float(token_logp.mean()), rel=1e-6)
    assert float(found[0]) == pytest.approx(float(token_logp[2:].mean()), rel=1e-6)
    assert (float(found[4]), -float(found[0])) == pytest.approx((2.120047, 2.201399), abs=1e-5)


def test_imitation_is_a_mean_over_the_tokens_of_a_device_batch() -> None:
    """Two responses of 1 and 9 tokens, -1 and -0.1 nats a token: 0.19 there, 0.55 as the mean of responses."""
    pairs = pairs_of(([-1.0, -0.9], [-1.0, -0.9]))
    counts = torch.tensor([1.0, 9.0], dtype=torch.float64)
    pairs = replace(pairs, chosen=replace(pairs.chosen, tokens=counts), rejected=replace(pairs.rejected, tokens=counts))
    assert float(trl_dpo(pairs, "sft")[0]) == pytest.approx(0.19)
    assert ours(o.NLL(), pairs) == pytest.approx(0.55)


def test_weighting_cannot_be_joined_with_imitation() -> None:
    """use_weighting multiplies the expanded imitation loss in place, which torch refuses, for two pairs or more."""
    with pytest.raises(RuntimeError, match="single memory location"):
        trl_dpo(random_pairs(2), loss_types=["sft"], use_weighting=True)


def test_values_of_apo() -> None:
    """Not a difference: 1 is added on both sides, where the paper may fall below 0."""
    assert float(trl_dpo(WORKED, "apo_zero")[0]) == pytest.approx(1 + 1 / (1 + exp(0.15)) - 1 / (1 + exp(-0.1)))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_stale_reference(tmp_path: Path) -> None:
    """Reference log-probabilities kept on disk are found again under another ld_alpha, which changes them."""
    from peers.tiny import precomputed

    cold = precomputed(tmp_path / "cold", ld_alpha=0.0)
    full = precomputed(tmp_path / "warm", ld_alpha=None)
    warm = precomputed(tmp_path / "warm", ld_alpha=0.0)
    assert cold != pytest.approx(full, abs=0.1)
    assert warm == full


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_turns_of_the_user_are_in_the_loss(tmp_path: Path) -> None:
    """Of a side with several turns, all that comes after the prompt is learned from, as if the model had said it."""
    from peers.tiny import scored_words

    def says(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    chosen = [says("assistant", "w4"), says("user", "w5 w6"), says("assistant", "w7")]
    row = {"prompt": [says("user", "w3")], "chosen": chosen, "rejected": [says("assistant", "w8")]}
    assert scored_words(tmp_path, row) == ("w4 </s> w5 w6 </s> w7 </s>", "w8 </s>")
    (pair,) = read([row]).rows
    assert isinstance(pair, Pair)
    assert text_of(pair.chosen) == "w4\n\nw7"
