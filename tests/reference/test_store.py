"""The store: complete keys, damage that costs only itself, and a check against the model."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import group, groups, tiny
from transformers import PreTrainedModel

from preftune import events, signals
from preftune.errors import UserError
from preftune.model.policy import Policy, wrap
from preftune.model.verify import plain_logp
from preftune.model.weights import WholeModel
from preftune.pack.batch import Batch, collate
from preftune.reference.fill import filled, numerics, score_missing
from preftune.reference.store import Store, key_of

IDS = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@given(IDS, IDS, IDS, IDS)
@settings(max_examples=300, deadline=None)
def test_a_key_is_the_tokens_and_where_the_prompt_ends(a: list[int], b: list[int], c: list[int], d: list[int]) -> None:
    same = key_of(np.array(a), np.array(b)) == key_of(np.array(c), np.array(d))
    assert same == ((a, b) == (c, d))


def test_what_is_put_comes_back_after_a_flush_and_from_several_writers(tmp_path: Path) -> None:
    one, two = Store(tmp_path, "w" * 64, "n"), Store(tmp_path, "w" * 64, "n")
    one.put(b"a" * 32, np.array([1.0, 2.0]))
    two.put(b"b" * 32, np.array([3.0]))
    one.flush(), two.flush(), one.flush()
    again = Store(tmp_path, "w" * 64, "n")
    assert len(again) == 2
    assert again[b"a" * 32].tolist() == [1.0, 2.0]
    assert b"a" * 32 not in Store(tmp_path, "v" * 64, "n")
    assert b"a" * 32 not in Store(tmp_path, "w" * 64, "m")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder, "w" * 64, "n")
    truth = {bytes([i]) * 32: np.arange(i + 1, dtype=np.float32) for i in range(4)}
    for key, values in truth.items():
        store.put(key, values)
    store.flush()
    file = next(store.folder.glob("*.safetensors"))
    raw = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(raw)
    again = Store(folder, "w" * 64, "n")
    for key in truth:
        assert key not in again or np.array_equal(again[key], truth[key])
    assert again.damaged or len(again) == 4


def scored(tmp_path: Path, made: list, tokens: int = 60):
    policy, _ = wrap(tiny(), "auto")
    store = Store(tmp_path, policy.weights.digest(), numerics(policy))
    return policy, store, score_missing(policy, store, made, tokens=tokens)


def test_the_pass_scores_each_distinct_response_once_and_resumes(tmp_path: Path) -> None:
    made = [*groups(6, seed=1), *groups(2, seed=1)]
    policy, store, first = scored(tmp_path, made)
    assert first.scored == 12
    assert first.tokens_computed < first.tokens_naive
    columns = np.concatenate([values for g in filled(made, store) for values in g.column("reference")])
    assert np.allclose(columns, plain_logp(policy, collate(made)).numpy(), atol=1e-4)
    again = scored(tmp_path, [*made, *groups(1, seed=9)])[2]
    assert (again.scored, again.reused) == (2, 12)


def test_an_entry_of_another_length_is_none(tmp_path: Path) -> None:
    """Its checksum may be right: somebody has written it."""
    made = groups(3, seed=1)
    policy, store, _ = scored(tmp_path, made)
    key = key_of(made[0].prompt, made[0].responses[0])
    store.put(key, store[key][:-1])
    again = score_missing(policy, store, made, tokens=200)
    assert (again.scored, again.damaged) == (1, 1)
    assert len(store[key]) == len(made[0].responses[0])


def test_a_pack_that_does_not_fit_is_scored_half_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, right, sizes = groups(6, seed=1), Policy.read, []
    _, whole, _ = scored(tmp_path / "whole", made)

    def small(self: Policy, batch: Batch) -> torch.Tensor:
        sizes.append(batch.responses)
        if batch.responses > most:
            raise torch.OutOfMemoryError
        return right(self, batch)

    monkeypatch.setattr(Policy, "read", small)
    most = 2
    _, halved, done = scored(tmp_path / "halved", made)
    assert done.scored == 12
    assert max(sizes) > 2
    for one in made:
        for response in one.responses:
            key = key_of(one.prompt, response)
            assert np.allclose(whole[key], halved[key], atol=1e-4)
    most = 0
    with pytest.raises(UserError, match="does not fit into memory"):
        scored(tmp_path / "none", made)


def test_a_store_that_cannot_be_written_is_found_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Policy, "token_logp", None)  # nothing may be computed
    with pytest.raises(UserError, match="cannot write") as caught:
        scored(tmp_path / "file", groups(2))
    assert str(tmp_path / "file") in str(caught.value)


def test_a_store_in_memory_holds_the_same_numbers(tmp_path: Path) -> None:
    made = groups(3, seed=1)
    policy, on_disk, _ = scored(tmp_path, made)
    in_memory = Store(None, policy.weights.digest(), numerics(policy))
    score_missing(policy, in_memory, made, tokens=60)
    for one, other in zip(filled(made, in_memory), filled(made, on_disk), strict=True):
        assert all(
            np.array_equal(*both) for both in zip(one.column("reference"), other.column("reference"), strict=True)
        )


def test_a_stopped_pass_keeps_what_it_did(tmp_path: Path) -> None:
    policy, _ = wrap(tiny(), "auto")
    store, calls = Store(tmp_path, "w" * 64, "n"), []

    def stop(event: object) -> None:
        calls.append(event)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with signals.listening(), events.listening(stop), pytest.raises(UserError, match="SIGTERM"):
        score_missing(policy, store, groups(8, seed=3), tokens=60)
    assert 0 < len(Store(tmp_path, "w" * 64, "n")) < 16


def test_a_store_that_answers_otherwise_than_the_model_is_refused(tmp_path: Path) -> None:
    made = groups(3, seed=4)
    _, store, _ = scored(tmp_path, made)
    next(store.folder.iterdir()).unlink()
    for g in made:
        for response in g.responses:
            store.put(key_of(g.prompt, response), np.full(len(response), -1.0))
    store.flush()
    with pytest.raises(UserError, match="Delete this folder"):
        scored(tmp_path, made)


def test_the_digest_sees_weights_names_and_config() -> None:
    def digest(model: PreTrainedModel) -> str:
        return WholeModel(model).digest()

    base = digest(tiny())
    assert base == digest(tiny())
    changed = tiny()
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-6
    others = {
        digest(model)
        for model in (changed, tiny(rope_theta=5e5), tiny(rms_norm_eps=1e-5), tiny().bfloat16(), tiny("qwen2"))
    }
    assert base not in others
    assert len(others) == 5


def test_a_response_without_finite_probability_is_named(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.get_output_embeddings().weight[9] = float("nan")
    policy, _ = wrap(model, "auto")
    with pytest.raises(UserError, match="made:1"):
        score_missing(policy, Store(tmp_path, "w" * 64, "n"), [group([3, 4], [5], [6])], tokens=99)
