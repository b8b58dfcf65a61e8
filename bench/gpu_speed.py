"""Stages 5 to 8 of bench/gpu.py: what an update takes, and the peer beside it in the same process."""

from __future__ import annotations

import gc
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import common
import torch
from gpu_checks import Numbers, Size, forget, guarded, milliseconds, peak, wait
from making import group
from transformers import PreTrainedModel, Qwen3ForCausalLM

from preftune.distributed import SINGLE_PROCESS
from preftune.forward.forward import Models, step_gradient
from preftune.forward.loss import Loss
from preftune.model import fused
from preftune.model.budget import attention_crossover
from preftune.model.columns import fill_column
from preftune.model.policy import Policy, trainable, wrap
from preftune.objective import DPO
from preftune.pack.oom import OomRetry
from preftune.pack.plan import Packing, Step
from preftune.tokens.groups import TokenGroup

LR, BETA, KERNELS = 1e-6, 0.1, 15
RANK = 16  # of LoRA, on all linear layers
Shape = tuple[int, int, int, int]  # width, MLP width, layers, heads
REGIMES = ("hh", "ultrafeedback", "long-prompt")


def model_of(shape: Shape, vocab: int, device: torch.device) -> PreTrainedModel:
    """A random model, made where it is used: nothing is saved or loaded."""
    torch.manual_seed(0)
    with device:
        return Qwen3ForCausalLM(common.qwen3_config(shape, vocab)).eval()


def compute_of(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def as_groups(rows: Sequence[common.Row]) -> list[TokenGroup]:
    """Rows of numbered words in token ids, with the end token behind each response."""
    ids = [{key: [int(word[1:]) for word in text.split()] for key, text in row.items()} for row in rows]
    return [group(row["prompt"], [*row["chosen"], 1], [*row["rejected"], 1]) for row in ids]


def least_flops(policy: Policy, tokens: int, scored: int) -> float:
    """Products that the distinct tokens ask for, forward and back; attention counts as nothing."""
    head = policy.module.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in policy.module.parameters()) - head  # the embedding is the head's matrix
    return 6.0 * (body * tokens + head * scored)


def packs(device: torch.device, size: Size, most: float) -> Numbers:
    """Packs of several sizes, forward and back; of the last, what took the time. most: TFLOP/s of products here."""
    policy = trainable(wrap(model_of(size.model, size.vocab, device), "trie", compute_of(device))[0],
                       checkpointing=False)  # fmt: skip
    numbers: Numbers = {}
    for pairs in size.packs:
        rows = as_groups(common.made_rows("ultrafeedback", size.vocab, pairs))
        for kernels, fused.TRITON in {"torch": False, **({"triton": True} if device.type == "cuda" else {})}.items():
            numbers[f"{pairs} pairs, {kernels}"] = guarded(partial(one_pack, policy, rows, device, most))
        fused.TRITON = False
    if device.type == "cuda":
        numbers["profile"] = guarded(partial(profile, policy, rows))
    return numbers


def passes(policy: Policy, rows: Sequence[TokenGroup]) -> None:
    batch = policy.batch(rows)
    batch.sum(policy.token_logp(batch)).sum().backward()
    policy.module.zero_grad()


def one_pack(policy: Policy, rows: Sequence[TokenGroup], device: torch.device, most: float) -> Numbers:
    batch = policy.batch(rows)
    flops, begin = least_flops(policy, batch.tokens, len(batch.target)), forget(device)
    spent = milliseconds(lambda: passes(policy, rows), device, 3)
    waits = milliseconds(lambda: policy.batch(rows), device, 3)
    return {"tokens": batch.tokens, "ms": spent, "collate ms": waits, "MiB": peak(device, begin),
            "share of the peak": flops / spent / 1e9 / most}  # fmt: skip


def profile(policy: Policy, rows: Sequence[TokenGroup]) -> Numbers:
    """Kernels by their time in microseconds, and how often the host waited."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        passes(policy, rows)
        torch.cuda.synchronize()
    events = trace.key_averages()
    slowest = sorted(events, key=lambda event: event.self_device_time_total, reverse=True)[:KERNELS]
    waiting = ("Synchronize", "_local_scalar_dense", "aten::nonzero", "aten::item")
    return {
        "kernels": {event.key[:90]: round(event.self_device_time_total) for event in slowest},
        "waits": {event.key: event.count for event in events if any(name in event.key for name in waiting)},
    }


def updates(policy: Policy, rows: list[TokenGroup], size: Size, device: torch.device, at_once: int | None) -> Numbers:
    """Updates of 8 pairs as `preftune train` makes them, the reference stored. at_once: pairs of a pack; None: as many
    as the token budget takes."""
    trained = list(policy.weights.trained().values())
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=device.type == "cuda")
    packing, oom = Packing(size.tokens, attention_crossover(policy.module.config)), OomRetry()
    loss, models = Loss(DPO(beta=BETA), "all"), Models(policy)
    with_reference = fill_column(policy, "reference", rows, packing.step(rows, 1), oom, SINGLE_PROCESS)
    steps, losses, tokens = [], [], 0
    forget(device)
    for first in range(0, size.steps * common.PAIRS, common.PAIRS):
        here = [with_reference[i] for i in range(first, first + common.PAIRS)]
        step = packing.step(here, 1)
        if at_once is not None:
            cut = [tuple(range(i, min(i + at_once, len(here)))) for i in range(0, len(here), at_once)]
            step = Step(tuple(cut), 0.0, (0,) * len(cut))
        wait(device)
        began = time.perf_counter()
        gradient = step_gradient(models, here, step, loss, oom, SINGLE_PROCESS)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait(device)
        steps.append(time.perf_counter() - began)
        losses.append(gradient.output.value / common.PAIRS)
        tokens = gradient.tokens
    return {"seconds": common.median(steps[1:]), "MiB": peak(device), "losses": losses, "tokens": tokens}


def freed(work: Callable[[], Numbers], device: torch.device) -> Numbers:
    """What `work` measures, with the memory of the one before given back first."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return guarded(work)


def against_peer(device: torch.device, size: Size, shape: Shape, regimes: Sequence[str]) -> Numbers:
    """Ours, TRL's way of computing in our loop (padded, the head on response rows), and TRL where it is there."""
    numbers: Numbers = {}

    for regime in regimes:
        rows, source = common.rows_of(regime, size.vocab, size.steps * common.PAIRS)
        ours = partial(by_ours, "trie", shape, rows, size, device, None)
        cell: Numbers = {"rows": source, "ours": freed(ours, device)}
        for pairs in size.batches:
            padded = partial(by_ours, "padded", shape, rows, size, device, pairs)
            cell[f"padded, {pairs} pairs a pass"] = freed(padded, device)
            cell[f"TRL, {pairs} pairs a pass"] = freed(partial(by_trl, shape, rows, size, device, pairs), device)
        cell["over"] = {name: ratio(cell, name) for name in cell if name.startswith(("TRL", "padded"))}
        numbers[regime] = cell
    return numbers


def by_ours(
    layout: str, shape: Shape, rows: Sequence[common.Row], size: Size, device: torch.device, at_once: int | None
) -> Numbers:
    module = model_of(shape, size.vocab, device)
    policy = trainable(wrap(module, layout, compute_of(device))[0], checkpointing=False)
    return updates(policy, as_groups(rows), size, device, at_once)


def ratio(cell: Numbers, name: str) -> dict[str, float] | None:
    """How many times more time and memory than ours; None where either was not measured."""
    ours, other = cell["ours"], cell[name]
    assert isinstance(ours, dict)
    assert isinstance(other, dict)
    if "seconds" not in ours or "seconds" not in other:
        return None
    return {key: other[key] / ours[key] for key in ("seconds", "MiB") if ours[key]}


def by_trl(
    shape: Shape, rows: Sequence[common.Row], size: Size, device: torch.device, pairs: int, rank: int | None = None
) -> Numbers:  # fmt: skip
    """The same updates by TRL, set for speed: the reference precomputed, no checkpointing. rank: of LoRA on
    all linear layers, where only that is trained."""
    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        return {"skipped": f"{' and '.join(missing)} cannot be imported here"}
    import datasets
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    steps: list[float] = []
    losses: list[float] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            forget(device)

        def on_step_begin(self, *_: object, **__: object) -> None:
            wait(device)
            steps.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            wait(device)
            steps[-1] = time.perf_counter() - steps[-1]

        def on_log(self, *_: object, logs: dict[str, float] | None = None, **__: object) -> None:
            losses.extend([logs["loss"]] if logs and "loss" in logs else [])

    with tempfile.TemporaryDirectory() as out:
        args = DPOConfig(
            output_dir=out, max_steps=size.steps, learning_rate=LR, lr_scheduler_type="constant", warmup_steps=0,
            weight_decay=0.0, max_grad_norm=1.0, beta=BETA, max_length=1024, logging_steps=1, save_strategy="no",
            report_to="none", use_cpu=device.type == "cpu", bf16=device.type == "cuda", seed=0, disable_tqdm=True,
            per_device_train_batch_size=pairs, gradient_accumulation_steps=common.PAIRS // pairs,
            precompute_ref_log_probs=True, gradient_checkpointing=False, train_sampling_strategy="sequential",
        )  # fmt: skip
        tokenizer = common.word_tokenizer(size.vocab)
        data = datasets.Dataset.from_list([dict(row) for row in rows])
        module, table = (model_of if rank is None else base_of)(shape, size.vocab, device), None
        if rank is not None:
            from peft import LoraConfig

            table = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        DPOTrainer(
            module, peft_config=table, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[Watch()]
        ).train()
    return {"seconds": common.median(steps[1:]), "MiB": peak(device), "losses": losses}


def adapters(device: torch.device, size: Size, regimes: Sequence[str]) -> Numbers:
    """LoRA on all linear layers: ours with fused products, ours with peft's own forward, and TRL with peft."""
    if importlib.util.find_spec("peft") is None:
        return {"skipped": "peft cannot be imported here"}
    numbers: Numbers = {}
    for regime in regimes:
        rows, source = common.rows_of(regime, size.vocab, size.steps * common.PAIRS)
        cell: Numbers = {"rows": source}
        for name, plain in {"ours": False, "ours, peft's own forward": True}.items():
            cell[name] = freed(partial(by_adapter, rows, size, device, plain=plain), device)
        for pairs in size.batches:
            cell[f"TRL, {pairs} pairs a pass"] = freed(
                partial(by_trl, size.model, rows, size, device, pairs, rank=RANK), device
            )
        cell["over"] = {name: ratio(cell, name) for name in cell if name not in ("rows", "ours")}
        numbers[regime] = cell
    return numbers


def by_adapter(rows: Sequence[common.Row], size: Size, device: torch.device, *, plain: bool) -> Numbers:
    """plain: with the parts that peft and the family gave the model, in place of the fused ones."""
    from preftune.model.config import Adapter
    from preftune.model.put_adapter import begin_adapter

    module = base_of(size.model, size.vocab, device).requires_grad_(False)
    weights = begin_adapter(module, Adapter(rank=RANK, alpha=2 * RANK), base="made", revision=None, digest="", seed=0)
    policy = replace(wrap(module, "trie", compute_of(device))[0], weights=weights)
    policy = trainable(policy, checkpointing=False)
    for part in module.modules() if plain else ():
        vars(part).pop("forward", None)
    return updates(policy, as_groups(rows), size, device, None)


def base_of(shape: Shape, vocab: int, device: torch.device) -> PreTrainedModel:
    """The model in the type in which a base stays: of the products."""
    return model_of(shape, vocab, device).to(compute_of(device))  # pyright: ignore[reportArgumentType]
