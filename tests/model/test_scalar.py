"""A reward model's number is what transformers says of the exported folder, and where it is read off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from making import group, groups, save_model, tiny
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from preftune.errors import UserError
from preftune.model.heads import ScalarHead
from preftune.model.load import load_model
from preftune.model.policy import Policy, wrap
from preftune.model.scalar import load_reward_model, load_scorer, model_scores, put_score, with_score, without_bias
from preftune.model.verify import sample, verify_layout

ARGUMENTS = {"revision": None, "weights": "float32", "device": torch.device("cpu"), "location": "model.path"}
END = 2
RANKINGS = [
    group(g.prompt, *(np.append(r, END) for r in g.responses), kind="ranking", ranks=tuple(range(1, 5)))
    for g in [group([3, 4 + i], [5, 6], [5, 6, 7], [8] * (3 + i), [9, 10, 11, 12]) for i in range(4)]
]


def scorer(family: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    module = with_score(tiny(family, dtype=dtype), "model.path")
    torch.manual_seed(1)
    put_score(module, torch.randn(module.get_submodule("score").get_parameter("weight").shape), None)
    return module


def padded(module: PreTrainedModel, sequences: list[list[int]], pad: int) -> torch.Tensor:
    """What transformers says of sequences of unequal length in one batch."""
    module.config.pad_token_id = pad
    longest = max(map(len, sequences))
    ids = torch.tensor([s + [pad] * (longest - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    with torch.no_grad():
        return module(input_ids=ids, attention_mask=mask).logits[:, 0].double()


@pytest.mark.parametrize("layout", ["trie", "padded"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2", "mistral"])
def test_our_number_is_that_of_the_exported_folder_on_padded_batches(family: str, layout: str, tmp_path: Path) -> None:
    policy, _ = wrap(scorer(family), layout if family != "gpt2" else "padded")
    verified, off = verify_layout(policy, sample(RANKINGS, policy))
    assert verified.head is policy.head
    assert off.worst < 1e-4
    ours = np.concatenate(model_scores(verified, RANKINGS, tokens=40))
    policy.module.set_attn_implementation("eager")
    policy.module.save_pretrained(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.num_labels == 1
    sequences = [[*map(int, g.prompt), *map(int, r)] for g in RANKINGS for r in g.responses]
    assert np.allclose(ours, padded(theirs, sequences, pad=0).numpy(), atol=2e-5 * max(1, np.abs(ours).max()))


def test_ended_and_cut_responses_differ_unless_the_pad_is_the_end() -> None:
    """With pad = end, transformers reads the token before the end of both, so that no such model sees an end."""
    module = scorer()
    ended, longer = [3, 4, 5, 6, END], [3, 4, 5, 7, 8, 9, END]
    cut = ended[:-1]
    blind = [float(padded(module, [s, longer], pad=END)[0]) for s in (ended, cut)]
    assert blind[0] == pytest.approx(blind[1])
    seeing = [float(padded(module, [s, longer], pad=0)[0]) for s in (ended, cut)]
    assert abs(seeing[0] - seeing[1]) > 0.1
    policy, _ = wrap(module, "trie")
    pair = group([3, 4], [5, 6, END], [5, 6])
    assert np.allclose(model_scores(policy, [pair], tokens=64)[0], seeing, atol=1e-4)


def test_a_value_is_that_of_the_prefix_alone() -> None:
    """Which is the row that predicts the token, for every branch of a trie."""
    policy, _ = wrap(scorer(), "trie")
    head = policy.head
    assert isinstance(head, ScalarHead)
    valued = Policy(policy.weights, ScalarHead(head.weight, torch.tensor([0.5]), "tokens"), "trie")
    values = valued.read(valued.batch(RANKINGS))
    prefixes = [[*g.prompt, *r[:t]] for g in RANKINGS for r in g.responses for t in range(len(r))]
    expected = torch.cat([padded(scorer(), [[int(i) for i in prefix]], pad=63) for prefix in prefixes]) + 0.5
    assert torch.allclose(values.double(), expected, atol=1e-4)
    verified, off = verify_layout(valued, valued.batch(RANKINGS))
    assert verified.layout == "trie"
    assert off.worst < 1e-4


def test_a_wrong_trie_is_caught_though_a_fresh_score_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = wrap(with_score(tiny(), "model.path"), "padded")
    assert not policy.head.weight.any()
    right = Policy.hidden
    monkeypatch.setattr(Policy, "hidden", lambda self, pack: right(self, pack).roll(1, 0))
    with pytest.raises(UserError, match=r"scores of llama are up to .* of a random score off its own forward pass"):
        verify_layout(policy, policy.batch(groups(3)))


def load(path: object, *, fresh: bool = False) -> PreTrainedModel:
    return load_scorer(path, fresh=fresh, **ARGUMENTS).module


def test_folders_that_are_read(tmp_path: Path) -> None:
    language = save_model(tmp_path / "language")
    fresh = load(str(language), fresh=True)
    assert type(fresh).__name__ == "LlamaForSequenceClassification"
    assert not fresh.get_parameter("score.weight").any()
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    put_score(fresh, torch.arange(32.0), None)
    fresh.save_pretrained(tmp_path / "reward")
    reward = load(str(tmp_path / "reward"))
    assert reward.get_parameter("score.weight")[0].tolist() == list(range(32))
    tensors = load_file(language / "model.safetensors")
    for name, bias in (("v_head.summary", True), ("value_head", False)):
        folder = save_model(tmp_path / name)
        more = {f"{name}.weight": torch.full((1, 32), 2.0)} | ({f"{name}.bias": torch.tensor([3.0])} if bias else {})
        save_file(tensors | more, folder / "model.safetensors", {"format": "pt"})
        loaded = load_scorer(str(folder), fresh=False, **ARGUMENTS)
        assert loaded.remarks == {}
        assert loaded.module.get_parameter("score.weight").unique().tolist() == [2.0]
        assert without_bias(loaded.module) == (3.0 if bias else 0.0)
        assert [key for key in loaded.module.state_dict() if "score" in key] == ["score.weight"]
    policy = load_reward_model(str(tmp_path / "reward"))
    assert not any(parameter.requires_grad for parameter in policy.module.parameters())
    in_memory = AutoModelForCausalLM.from_pretrained(language)
    assert load(in_memory, fresh=True).base_model is in_memory.base_model


def test_folders_that_are_refused(tmp_path: Path) -> None:
    language = save_model(tmp_path / "language")
    with pytest.raises(UserError, match=r"is no reward model: it has neither score\.weight nor"):
        load(str(language))
    put_score(fresh := load(str(language), fresh=True), torch.ones(32), None)
    fresh.save_pretrained(tmp_path / "reward")
    with pytest.raises(UserError, match=r"is a reward model \(it holds score\.weight\) and no language model"):
        load_model(str(tmp_path / "reward"), **ARGUMENTS)
    tied = tiny(tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "tied")
    with_score(tied, "m").save_pretrained(tmp_path / "tied")
    with pytest.raises(UserError, match="is a reward model"):
        load_model(str(tmp_path / "tied"), **ARGUMENTS)
    save_file(load_file(tmp_path / "reward" / "model.safetensors") | {"score.weight": torch.ones(2, 32)},
              tmp_path / "reward" / "model.safetensors", {"format": "pt"})  # fmt: skip
    with pytest.raises(UserError, match=r"score\.weight is 2 x 32 in its weights, but 1 x 32"):
        load(str(tmp_path / "reward"))
    with pytest.raises(UserError, match="has no granite with a score"):
        load(tiny("granite"), fresh=True)
    with pytest.raises(UserError, match="is not the folder of a model"):
        load("./nowhere", fresh=True)
