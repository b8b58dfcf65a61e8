"""The folder of an adapter as peft lays it out: what it says of itself, read without peft and torch.

Held by tests/model/test_adapter.py.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.errors import UserError, third_party_message
from preftune.events import Note, emit
from preftune.trust import refuse_unnamed

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base.json"  # beside them where the base was quantized: peft's file has no key for it
# of init_lora_weights: all that leave the base as it is
BEGUN_ON_THE_BASE = ("true", "false", "none", "gaussian", "orthogonal", "eva", "mica")


@dataclass(frozen=True)
class AdapterFiles:
    """folder: where they lie; settings: adapter_config.json; base, revision: the model that it was made for."""

    folder: Path
    settings: dict[str, Any]
    base: str
    revision: str | None

    @property
    def numbers(self) -> int:
        """How many its tensors have."""
        from safetensors import safe_open

        with safe_open(self.folder / TENSORS, "numpy") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118

    @property
    def of_scores(self) -> bool:
        """Whether it is of a model with a score in place of logits."""
        return self.settings.get("task_type") == "SEQ_CLS"

    @property
    def quantized(self) -> str:
        """The kind of a quantized base on which it has learned; empty where that was in a type, or nobody says."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return str(json.loads((self.folder / BASE).read_text(encoding="utf-8")).get("weights") or "")
        return ""

    def tell_base(self, weights: str) -> None:
        """Say that a base of these weights is not the one on which it has learned, where that is so."""
        if self.quantized not in ("", weights):
            text = (
                f"the adapter {self.folder} has learned on a base in {self.quantized}, and is on one in {weights} here"
            )
            emit(Note(f'{text}, which is another model; model.weights = "{self.quantized}" takes its own'))

    @property
    def keys(self) -> dict[str, Any]:
        """What it says of itself, as keys of [adapter]; the defaults are peft's. targets: last parts of the names of
        its layers, and experts by their parameter. Raises UserError where these are none."""
        says = self.settings
        rank, alpha, experts = says.get("r", 8), says.get("lora_alpha", 8), says.get("target_parameters") or []
        if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or alpha <= 0:
            raise UserError(f"r is {rank} in {CONFIG} and lora_alpha is {alpha}, which no adapter can have.",
                            location=str(self.folder))  # fmt: skip
        layers = {name.partition(".lora_A.")[0].rpartition(".")[2] for name in self._names() if ".lora_A." in name}
        layers -= {part for name in experts for part in (*str(name).split(".")[:-1], "base_layer")}
        return {
            "kind": "dora" if says.get("use_dora") else "lora",
            "rank": rank,
            "alpha": float(alpha),
            "scaling": "root" if says.get("use_rslora") else "rank",
            "targets": tuple(sorted({*layers, *map(str, experts)})),
            "start": "zero",
            "train_also": tuple(sorted(map(str, says.get("modules_to_save") or ()))),
        }

    def _names(self) -> list[str]:
        """Of its tensors; none where the file cannot be read, which is told when it is loaded."""
        from safetensors import SafetensorError, safe_open

        with contextlib.suppress(OSError, SafetensorError), safe_open(self.folder / TENSORS, "numpy") as tensors:
            return [*tensors.keys()]
        return []

    @property
    def has_tokenizer(self) -> bool:
        return any(self.folder.glob("tokenizer*"))


def adapter_at(path: str, revision: str | None, location: str) -> AdapterFiles | None:
    """The adapter at a folder or hub name; None where something else is there. Raises UserError where it is no adapter
    that can be read."""
    refuse_unnamed(path, location)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.exists() or path.startswith((".", "/", "~")) or (on_hub := _hub_folder(path, revision)) is None:
            return None
        folder = on_hub
    if not (folder / CONFIG).is_file():
        return None
    location = f"{location}: {path}"
    if any(file.name != TENSORS for file in folder.glob("*.safetensors")):
        raise UserError("holds an adapter beside a model, and one of them would be left out.", location=location,
                        hint="Take one of them away.")  # fmt: skip
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base = settings.get("base_model_name_or_path")
        kind = settings.get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{CONFIG} is unreadable: {third_party_message(error)}", location=location) from error
    if kind != "LORA":
        raise UserError(f"this adapter is of type {kind}, which is not supported.", location=location,
                        hint="LoRA and DoRA are.")  # fmt: skip
    if not (folder / TENSORS).is_file():
        hint = "Weights in pickle files are not read; save the adapter again as safetensors."
        raise UserError(f"has no {TENSORS}.", location=location, hint=hint)
    _refuse_other_base(settings, location)
    return AdapterFiles(folder, settings, str(base or ""), settings.get("revision"))


def _refuse_other_base(settings: dict[str, Any], location: str) -> None:
    """Raise UserError where the numbers are no difference from the base's files: PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA
    and KaSA change the base as they begin, and what they change it to is not stored."""
    start = str(settings.get("init_lora_weights", True)).lower()
    if settings.get("kasa_config"):
        start = "kasa"
    if start not in BEGUN_ON_THE_BASE:
        hint = (
            "Merge it by peft (PeftModel.from_pretrained(base, adapter).merge_and_unload()) and take that model, or "
            "save it by save_pretrained(path_initial_model_for_weight_conversion=...), which makes a plain LoRA of it."
        )
        raise UserError(f"this adapter began as {start}, which changes the base, so that its numbers do not belong to "
                        "the base's files.", location=location, hint=hint)  # fmt: skip


def _hub_folder(path: str, revision: str | None) -> Path | None:
    """Where the files of an adapter of the hub lie on this machine; None where the name has none."""
    from transformers.utils.hub import cached_file

    try:
        files = [cached_file(path, name, revision=revision) for name in (CONFIG, TENSORS)]
    except OSError:
        return None
    return Path(str(files[0])).parent


def base_of(adapter: AdapterFiles, location: str) -> str:
    """The model that an adapter was made for. Raises UserError where it does not say."""
    if not adapter.base:
        raise UserError(f"{CONFIG} does not say for which model this adapter is.", location=location,
                        hint="Name the model in model.path, and the adapter in adapter.path.")  # fmt: skip
    return adapter.base


def tokenizer_source(path: str, revision: str | None) -> str:
    """Where the tokenizer of a model is: an adapter without one has that of its base."""
    adapter = adapter_at(path, revision, "model.path") if Path(path).expanduser().is_dir() else None
    return path if adapter is None or adapter.has_tokenizer else base_of(adapter, f"model.path: {path}")
