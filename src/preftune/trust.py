"""Refuse model folders that want to run code or that read outside themselves."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from preftune.errors import UserError
from preftune.folders import MODEL, RUN_FILE

FORBIDDEN = {"auto_map", "trust_remote_code", "_attn_implementation_internal", "auto_mapping"}
CONFIGS = ("config.json", "adapter_config.json")  # one of them is in every folder of a model


def refuse_unnamed(path: object, location: str) -> None:
    """Raise UserError where no model is named, or a run's folder in its place. location: the key that would hold it."""
    if not path:
        table, _, key = location.rpartition(".")
        hint = f'Write {location}=my-model, or {key} = "my-model" below [{table}]: a folder or a hub name.'
        raise UserError("no model is named.", location=location, hint=hint)
    folder = Path(path).expanduser() if isinstance(path, str) else Path()
    if (folder / RUN_FILE).is_file() and not any((folder / name).is_file() for name in CONFIGS):
        hint = f"Name the model that it has tuned: {folder / MODEL}"
        raise UserError("is the folder of a run, and no model.", location=f"{location}: {path}", hint=hint)


def refuse_hub_code(name: str, revision: str | None, location: str) -> None:
    """`refuse_code` for what of a hub repository is on this machine; every loader is told not to run code besides."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "tokenizer_config.json"):
        with contextlib.suppress(ValueError):  # not a name that the hub could have
            cached = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(cached, str):
                refuse_code(Path(cached).parent, location)


def refuse_code(folder: Path, location: str) -> None:
    """Raise UserError if a JSON file of the folder asks to run code of its own, or names a file outside."""
    for file in sorted(folder.glob("*.json")):
        if not file.is_file():  # a pipe would be waited for
            raise UserError("is not an ordinary file.", location=f"{location}: {file}")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"cannot be read: {error}.", location=f"{location}: {file}") from error
        if key := _forbidden_key(content):
            raise UserError(f'asks for code of its own ("{key}").', location=f"{location}: {file}",
                            hint="Such models are not loaded.")  # fmt: skip
        if not file.name.endswith(".index.json"):
            continue
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict):
            raise UserError("does not say which file holds which weights.", location=f"{location}: {file}")
        outside = next((name for name in shards.values() if not name or Path(str(name)).name != name), None)
        if outside is not None:
            raise UserError(f'names a file outside of its folder ("{outside}").', location=f"{location}: {file}")


def _forbidden_key(content: object) -> str:
    stack = [content]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if keys := FORBIDDEN & {key for key, entry in value.items() if entry}:
                return min(keys)
            stack += value.values()
        elif isinstance(value, list):
            stack += value
    return ""
