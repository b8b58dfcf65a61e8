"""The model that a run trains: its device and types, loaded, with its adapter, and checked against its own forward
passes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from msgspec.structs import replace as replace_keys
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune import signals
from preftune.config.run import Run
from preftune.distributed import Distributed
from preftune.errors import UserError
from preftune.events import Note, emit
from preftune.model import load, scalar
from preftune.model.adapter_files import AdapterFiles, adapter_at
from preftune.model.as_made import as_made
from preftune.model.config import Model
from preftune.model.fuse import fused_parts
from preftune.model.memory import Shard
from preftune.model.policy import Policy, trainable, wrap
from preftune.model.probe import not_followed
from preftune.model.quantized import QUANTIZED
from preftune.model.shard import mesh_of
from preftune.model.shard_layer import ShardedByLayer
from preftune.model.verify import Difference, sample, verify_layout
from preftune.model.weights import Weights, WholeModel, train_only
from preftune.objective import of_scores
from preftune.run.dataset import Dataset
from preftune.run.match_rows import Notes
from preftune.tokens.groups import TokenGroup

Compute = Literal["float32", "bfloat16"]


def device_of(run: Run, local_rank: int = 0) -> torch.device:
    """The device of the run, for this process of the machine. Raises UserError where it does not exist."""
    if run.device == "cpu" or (run.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("there is no CUDA device here.", location="device", hint='Use device = "auto".')
    if local_rank >= torch.cuda.device_count():
        raise UserError(f"there is no GPU for rank {local_rank} of this machine.", hint="Start one process a GPU.")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def with_precision(run: Run, device: torch.device) -> Run:
    """The run with the types that it leaves open; a note tells where products are taken in bfloat16 unasked: a CUDA
    device that multiplies in it (Ampere and later) does so at 12 times the rate of fp32 (H100)."""
    usual = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "float32"
    if run.model.compute == "auto" and usual == "bfloat16":
        emit(Note('products in bfloat16, which this GPU has; model.compute = "float32" takes them in float32'))
    weights, compute = types_of(run.model, usual, adapter=run.adapter is not None)
    return replace_keys(run, model=replace_keys(run.model, weights=weights, compute=compute))


def types_of(model: Model, usual: Compute, *, adapter: bool) -> tuple[Compute | Literal["nf4", "int8"], Compute]:
    """The types of weights and of products. usual: of the products, where nothing is said of them; weights of which
    nothing is said are in fp32, which holds the smallest update, or as the products where they stay under an adapter.
    """
    compute = usual if model.compute == "auto" else model.compute
    weights = compute if adapter else "float32"
    return weights if model.weights == "auto" else model.weights, compute


@signals.interruptible()
def load_policy(
    run: Run, dataset: Dataset, notes: Notes, dist: Distributed, *, fresh: bool = True, shard: Shard = "none"
) -> Policy:
    """The model that is trained, with the run's adapter, in the layout that is right for it, tried on some training
    rows.

    fresh: an objective of scores may begin from a language model, which has no score yet; shard: what ranks divide, by
    layers from here on. Raises UserError where the model cannot be used, or disagrees with its own forward pass.
    """
    device, mesh = device_of(run, dist.local), None
    if shard == "layer":
        device, mesh = torch.device("cpu"), mesh_of(device)
    with in_turn_on(device, mesh, dist):
        policy, reason = _load_policy(run, dataset, notes, device, fresh)
        if mesh is not None:
            policy = by_layer(policy, device_of(run, dist.local), mesh)
    wanted = policy.layout
    policy, off = verified(run, policy, dataset.train, notes)
    measured = f"{off.worst:.1e} {policy.head.unit} off plain forward passes, rounding may give {policy.noise:.1e}"
    if policy.layout != wanted:
        reason = f"one padded row a response, because sharing prefixes is not possible: {off.reason}" if off.reason \
            else "one padded row a response, because sharing prefixes changes what this model says"  # fmt: skip
    parts = fused_parts(policy.module)
    fused = ", ".join(f"{taken} of {met} {kind}s" for kind, (taken, met) in sorted(parts.items()))
    text = f"layout {policy.layout}: {reason}" + ("" if off.reason else f"; {measured}")
    text += f"; fused: {fused}" if fused else ""
    notes["layout"] = (text, {"layout": policy.layout, "off": off.worst, "fused": parts})
    return policy


def _load_policy(run: Run, dataset: Dataset, notes: Notes, device: torch.device, fresh: bool) -> tuple[Policy, str]:
    """The policy before it is tried, and why it has its layout."""
    weights = load_weights(run, dataset.tokenizer, notes, device, fresh=fresh)
    policy, reason = wrap(weights.module, run.model.layout, load.DTYPES[run.model.compute])
    check_vocabulary(policy.vocab, [*dataset.train, *dataset.held_out])
    return trainable(replace(policy, weights=weights), checkpointing=run.model.checkpointing), reason


def load_weights(
    run: Run, tokenizer: PreTrainedTokenizerBase, notes: Notes, device: torch.device, *, fresh: bool = True
) -> Weights:
    """What is trained, in its model as training begins. fresh: as for `load_policy`. Raises UserError."""
    module, remarks = _load_module(run, tokenizer, device, fresh)
    notes |= remarks
    if run.model.trainable is not None:
        notes["trainable"] = text, _ = train_only(module, run.model.trainable)
        emit(Note(text))
    with as_made(module):
        sentences = not_followed(module)
    if sentences:
        notes["not_followed"] = ("; ".join(sentences), {"sentences": sentences})
    weights: Weights = WholeModel(module)
    if run.adapter is not None:
        from preftune.run.adapt import put_adapter  # peft is imported where it is needed

        weights = put_adapter(run, module, notes)
    return weights


def verified(run: Run, policy: Policy, groups: Sequence[TokenGroup], notes: Notes) -> tuple[Policy, Difference]:
    """The policy in a layout that agrees with its own forward pass, without its adapter and with it; and how far off
    the given layout is. Raises UserError where no layout agrees."""
    emit(Note("comparing the model's passes with plain ones"))
    fall_back = run.model.layout == "auto"
    if run.adapter is None:
        return verify_layout(policy, sample(groups, policy), fall_back=fall_back)
    from preftune.run.adapt import as_started, tried

    started, off = verify_layout(as_started(policy), sample(groups, policy), fall_back=fall_back)
    return tried(run, replace(policy, layout=started.layout, noise=started.noise), groups, notes), off


def in_turn_on(device: torch.device, mesh: DeviceMesh | None, dist: Distributed) -> AbstractContextManager[None]:
    """Ranks one after the other where a whole model is on the host only until a GPU has it, or it is cut."""
    return nullcontext() if device.type == "cpu" and mesh is None else dist.in_turn()


def by_layer(policy: Policy, device: torch.device, mesh: DeviceMesh) -> Policy:
    """The policy with its layers cut among ranks, each of which has its part on the device."""
    weights = ShardedByLayer.of(policy.weights, device, mesh)
    return replace(policy, weights=weights, head=policy.head.of_pass(policy.module))  # or it would keep a whole matrix


def _load_module(run: Run, tokenizer: PreTrainedTokenizerBase, device: torch.device, fresh: bool) -> load.Loaded:
    """The model that the objective is about: one with logits, or one with a score, which knows the tokenizer's pad."""
    path, revision, weights = run.model.path, run.model.revision, run.model.weights
    if not of_scores(run.objective):
        return load.load_model(path, revision=revision, weights=weights, compute=run.model.compute, device=device,
                               location="model.path")  # fmt: skip
    loaded = scalar.load_scorer(
        path, revision=revision, weights=weights, device=device, location="model.path", fresh=fresh,
        compute=run.model.compute,
    )  # fmt: skip
    loaded.module.config.pad_token_id = tokenizer.pad_token_id
    if isinstance(path, PreTrainedModel) and loaded.module is not path and run.adapter is None:
        text = "the layers of the loaded model become those of a reward model: it is no language model any more"
        loaded = loaded._replace(remarks={**loaded.remarks, "loaded_trunk": (text, {})})
    if fresh and (bias := scalar.without_bias(loaded.module)):
        text = f"the constant {bias:.3g} of its score is left out: only differences of scores mean something"
        return loaded._replace(remarks={**loaded.remarks, "score_bias": (text, {"bias": bias})})
    return loaded


def refuse_untrainable(run: Run) -> None:
    """Raise UserError where the model that is to be trained is an adapter, or quantized and has none, or where the run
    goes on from an adapter that is not there."""
    if run.adapter is None and run.model.weights in QUANTIZED:
        raise UserError(f"weights in {run.model.weights} cannot be trained.", location="model.weights",
                        hint="Train an adapter beside them, such as adapter.rank=16.")  # fmt: skip
    stored_adapter(run)
    path, location = run.model.path, "model.path"
    if isinstance(path, str) and (adapter := adapter_at(path, run.model.revision, location)) is not None:
        raise UserError(f"{path} is an adapter, of {adapter.base or 'a model that it does not name'}.",
                        location=location, hint=f'Go on with it: model.path = "{adapter.base}" and adapter.path = '
                        f'"{path}"; or make one model of both: preftune export.')  # fmt: skip


def stored_adapter(run: Run) -> AdapterFiles | None:
    """The adapter that a run goes on from; None where it begins anew, or has none. Raises UserError."""
    if run.adapter is None or run.adapter.path is None:
        return None
    files = adapter_at(run.adapter.path, None, "adapter.path")
    if files is None:
        raise UserError(f"{run.adapter.path} is no adapter.", location="adapter.path",
                        hint="It is a folder or hub name with adapter_config.json.")  # fmt: skip
    return files


def stands_on_base(run: Run, path: str, location: str) -> bool:
    """Whether a model with a score is an adapter of the base on which the run trains another, so that one is enough."""
    files = None if run.adapter is None else adapter_at(path, None, location)
    return files is not None and files.of_scores and same_base(run, files)


def same_base(run: Run, files: AdapterFiles) -> bool:
    """Whether an adapter is of the model of this run, by its name."""
    by_name = isinstance(run.model.path, str)  # a loaded one may have changed since
    return by_name and bool(files.base) and base_name(run) == named_model(files.base)


def base_name(run: Run) -> str:
    """The name of the run's model, which finds it from everywhere; of a loaded one what it says of itself, or empty."""
    path = run.model.path if isinstance(run.model.path, str) else str(run.model.path.name_or_path)
    return named_model(path) if path else ""


def named_model(path: str) -> str:
    folder = Path(path).expanduser()
    return str(folder.resolve()) if folder.is_dir() else path


def check_vocabulary(vocab: int, groups: Sequence[TokenGroup], model: str = "model") -> None:
    """Raise UserError where a row has a token beyond the `vocab` ones of the model. model: what it is called."""
    for group in groups:
        largest = max(int(ids.max()) for ids in group.parts if len(ids))
        if largest >= vocab:
            raise UserError(
                f"token {largest} of this row is unknown to the {model}, which has {vocab}.",
                location=str(group.place),
                hint="Is this the model's tokenizer?",
            )
