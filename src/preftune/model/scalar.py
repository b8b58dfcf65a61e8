"""Models that say one number: a reward of a response, or a value of a token. Held by tests/model/test_scalar.py.

Such a model is the trunk of a causal language model with a linear `score`, which is what transformers calls sequence
classification with one label, so that its weights, checkpoints and export are those of any model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from preftune.errors import UserError
from preftune.model.adapter_files import adapter_at, base_of
from preftune.model.budget import attention_crossover
from preftune.model.columns import read_packs
from preftune.model.load import DTYPES, Loaded, load_config, load_model, source_of, tensors_in_files
from preftune.model.policy import Policy, wrap
from preftune.model.probe import decoder
from preftune.model.weights import SCORE
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Packing
from preftune.tokens.groups import TokenGroup

VALUE_HEADS = ("v_head.summary", "v_head", "value_head")  # what others put beside a whole language model
PARTS = ("weight", "bias")


def load_scorer(
    path: str | PreTrainedModel, *, revision: str | None, weights: str, device: torch.device, location: str,
    fresh: bool, compute: str = "float32",
) -> Loaded:  # fmt: skip
    """A model with a `score`: a reward model, a language model with a value head, or, where `fresh`, a language model,
    whose score then is 0 for everything, so that learning begins at a margin of 0 whatever the size of hidden states.

    The other arguments are those of `load_model`. Raises UserError where `path` is none of these.
    """
    if isinstance(path, str) and (adapter := adapter_at(path, revision, location)) is not None and adapter.of_scores:
        from preftune.model.put_adapter import load_adapter  # peft is imported where it is needed

        adapter.tell_base(weights)
        base = load_scorer(base_of(adapter, location), revision=adapter.revision, weights=weights, device=device,
                           location=location, fresh=True, compute=compute)  # fmt: skip
        load_adapter(base.module, adapter, location)
        return base
    if isinstance(path, PreTrainedModel):
        scores, heads, place = path.get_output_embeddings() is None, {}, location
        if scores and "score" not in dict(path.named_children()):
            raise UserError(f"{type(path).__name__} has no score.", location=location,
                            hint="Use a causal language model, or a sequence classification model of one.")  # fmt: skip
    else:
        config, place = load_config(path, revision, location), f"{location}: {path}"
        names = [f"{head}.{part}" for head in ("score", *VALUE_HEADS) for part in PARTS]
        heads = tensors_in_files(source_of(path, revision, location), revision, names)
        architectures = config.architectures or ()
        scores = SCORE in heads or any(name.endswith("ForSequenceClassification") for name in architectures)
    loaded = load_model(path, revision=revision, weights=weights, device=device, location=location, scores=scores,
                        known=tuple(heads), compute=compute)  # fmt: skip
    if scores:
        if (bias := heads.get("score.bias")) is not None:
            put_score(loaded.module, loaded.module.get_submodule("score").get_parameter("weight").detach(), bias)
        return loaded
    name = next((name for name in VALUE_HEADS if f"{name}.weight" in heads), None)
    if name is None and not fresh:
        raise UserError(f"is no reward model: it has neither {SCORE} nor the weights of a value head.", location=place,
                        hint='Train one with objective = "reward".')  # fmt: skip
    module = with_score(loaded.module, place)
    if name is not None:
        put_score(module, heads[f"{name}.weight"], heads.get(f"{name}.bias"))
    return Loaded(module, loaded.remarks)


def with_score(module: PreTrainedModel, location: str) -> PreTrainedModel:
    """The model with one label of the family of a language model, around the same trunk; its score is 0.

    Raises UserError where transformers has no such model of the family.
    """
    config, trunk = module.config, decoder(module)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise no_score(config, location)
    config.num_labels = 1
    with torch.device("meta"):
        scorer = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    if type(scorer.base_model) is not type(trunk) or "score" not in dict(scorer.named_children()):
        raise no_score(config, location)
    setattr(scorer, scorer.base_model_prefix, trunk)
    scorer.config = config  # pyright: ignore[reportArgumentType]  one object with the trunk's, as where it was loaded
    width = scorer.get_submodule("score").get_parameter("weight").shape[1]
    put_score(scorer, torch.zeros(1, width), None)
    return scorer.eval()


def no_score(config: PreTrainedConfig, location: str) -> UserError:
    """The error of a family whose reward models could not be exported."""
    return UserError(
        f"transformers has no {config.model_type} with a score (AutoModelForSequenceClassification), so nobody could "
        "read such a reward model.", location=location, hint="Take a language model of another family.",
    )  # fmt: skip


def put_score(module: PreTrainedModel, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give a model this score, in the type and on the device of its other weights. weight: (1, width) or (width,)."""
    like = module.get_input_embeddings().get_parameter("weight")
    layer = nn.Linear(weight.shape[-1], 1, bias=bias is not None, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(1, -1))
        if bias is not None:
            layer.bias.copy_(bias.reshape(1))
    module.add_module("score", layer)


def without_bias(module: PreTrainedModel) -> float:
    """Take the bias off the score of a model that is to be trained; returns it.

    A reward is defined up to a constant, and the plain layout has no place for one.
    """
    layer = module.get_submodule("score")
    bias = dict(layer.named_parameters()).get("bias")
    if bias is not None:
        put_score(module, layer.get_parameter("weight").detach(), None)
    return 0.0 if bias is None else float(bias.detach())


def load_reward_model(
    path: str | PreTrainedModel, *, revision: str | None = None, weights: str = "float32", compute: str = "float32",
    device: torch.device | str = "cpu", layout: str = "auto",
) -> Policy:  # fmt: skip
    """A reward model to ask, not to train. It is to be compared with its own forward pass (`verify_layout`) before it
    is believed. Raises UserError."""
    module, _ = load_scorer(path, revision=revision, weights=weights, device=torch.device(device),
                            location="reward.model", fresh=False, compute=compute)  # fmt: skip
    module.requires_grad_(False)
    return wrap(module, layout, DTYPES[compute])[0]


def model_scores(policy: Policy, groups: Sequence[TokenGroup], tokens: int) -> list[np.ndarray]:
    """What a reward model says of every response: one fp64 array (responses,) a group, in the order of the groups.

    tokens: budget of a pack.
    """
    step = Packing(tokens, attention_crossover(policy.module.config)).step(groups, 1)
    scores, _ = read_packs(policy, groups, step.packs, OomRetry())
    return [scores[index].astype(np.float64) for index in range(len(groups))]
