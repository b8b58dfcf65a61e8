"""Patterns of names decide which weights learn; nothing below the first of them is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from making import groups, tiny

from preftune.errors import UserError
from preftune.model.as_made import given_back
from preftune.model.load import load_model
from preftune.model.policy import Policy, trainable, wrap
from preftune.model.scalar import with_score
from preftune.model.weights import WholeModel, train_only


def policy_of(patterns: Sequence[str], *, layout: str = "auto", checkpointing: bool = False, **keys: object) -> Policy:
    """A model as a run trains it."""
    module = load_model(tiny(**keys), revision=None, weights="float32", device=torch.device("cpu"), location="m").module
    if patterns:
        train_only(module, patterns)
    return trainable(wrap(module, layout)[0], checkpointing=checkpointing)


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    policy.read(policy.batch(groups(4, seed=1))).sum().backward()
    return {name: p.grad for name, p in policy.module.named_parameters() if p.grad is not None}


PATTERNS = {
    "one kind": ["*.mlp.*"],
    "the last layer": ["model.layers.2.*"],
    "the head": ["lm_head.*"],
    "the embedding": ["model.embed_tokens.weight"],
    "attention and norms": ["*.self_attn.[qk]_proj.weight", "*norm*"],
}


@pytest.mark.parametrize("layout", ["trie", "padded"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS)
def test_gradients_are_those_of_the_whole_model_and_no_others(patterns: list[str], tied: bool, layout: str) -> None:
    policy = policy_of(patterns, layout=layout, tie_word_embeddings=tied)
    whole, part = gradients(policy_of([], layout=layout, tie_word_embeddings=tied)), gradients(policy)
    assert part.keys() == policy.weights.trained().keys() < whole.keys()
    again = gradients(policy_of(patterns, layout=layout, tie_word_embeddings=tied, checkpointing=True))
    assert again.keys() == part.keys()
    for name, gradient in part.items():
        torch.testing.assert_close(gradient, whole[name])
        torch.testing.assert_close(again[name], whole[name])


def kept(patterns: Sequence[str]) -> list[int]:
    """Numbers of each tensor that the forward pass of a pack keeps for the backward pass, but parameters."""
    policy, sizes = policy_of(patterns), []
    batch, own = policy.batch(groups(4, seed=1)), {p.data_ptr() for p in policy.module.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own and tensor.is_floating_point():
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.read(batch)
    return sizes


def test_nothing_is_kept_below_the_first_trained_layer() -> None:
    sizes = {layer: sum(kept([f"model.layers.{layer}.*"])) for layer in range(3)}
    head = sum(kept(["model.norm.weight"]))
    of_a_layer = sizes[1] - sizes[2]
    assert 0 < head < sizes[2] < sizes[1] < sizes[0]
    assert sizes[0] - sizes[1] == pytest.approx(of_a_layer, rel=0.1)
    assert sizes[0] < 1.05 * sum(kept([]))
    assert sum(kept(["lm_head.weight"])) < of_a_layer


def test_a_tied_matrix_is_trained_under_either_name_and_that_is_said() -> None:
    text, details = train_only(tiny(tie_word_embeddings=True), ["lm_head.weight"])
    assert "model.embed_tokens.weight is one matrix with lm_head.weight" in text
    assert details["parameters"] == 1
    module = tiny(tie_word_embeddings=True)
    text, _ = train_only(module, ["model.layers.*"])
    assert "one matrix" not in text
    assert not module.get_parameter("lm_head.weight").requires_grad
    text, details = train_only(tiny(), ["*"])
    assert details["share"] == 1.0


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        (
            ["*.mpl.*"],
            r'no weight of this model fits "\*\.mpl\.\*"\. It has .*model\.layers\.\*\.mlp\.gate_proj\.weight',
        ),
        (["*.mlp.*", "mlp"], 'fits "mlp"'),
        ([], "no pattern is given"),
    ],
)
def test_patterns_that_fit_nothing_are_refused_with_the_names_there_are(patterns: list[str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        train_only(tiny(), patterns)


def test_a_score_of_zero_has_to_be_trained() -> None:
    with pytest.raises(UserError, match=r'score\.weight is 0 and would stay so.*Add "score\.weight"'):
        train_only(with_score(tiny(), "m"), ["*.mlp.*"])
    train_only(with_score(tiny(), "m"), ["*.mlp.*", "score.weight"])


def test_a_model_of_the_callers_is_given_back_with_what_it_had_frozen() -> None:
    module = tiny()
    module.get_input_embeddings().requires_grad_(False)
    before = WholeModel(module).trained().keys()
    with given_back(module):
        train_only(module, ["model.embed_tokens.*"])
        assert WholeModel(module).trained().keys() == {"model.embed_tokens.weight"}
    assert WholeModel(module).trained().keys() == before
