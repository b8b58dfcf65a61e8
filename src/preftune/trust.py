"""What a model folder may not ask for."""

from __future__ import annotations

import json
from pathlib import Path

from preftune.errors import UserError

FORBIDDEN = {"auto_map", "trust_remote_code", "_attn_implementation_internal", "auto_mapping"}


def refuse_unnamed(path: object, location: str) -> None:
    """Raise UserError where no model is named. location: the key that would hold it."""
    if not path:
        table, _, key = location.rpartition(".")
        hint = f'Write {location}=my-model, or {key} = "my-model" below [{table}]: a folder or a hub name.'
        raise UserError("no model is named.", location=location, hint=hint)


def refuse_code(folder: Path, location: str) -> None:
    """Raise UserError if any JSON file of the folder asks that code of its own be run, or names a file outside."""
    for file in sorted(folder.glob("*.json")):
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot be read: {error}.", location=f"{location}: {file}") from error
        if found := _forbidden(tree):
            raise UserError(f'asks for code of its own ("{found}").', location=f"{location}: {file}",
                            hint="Such models are not loaded.")  # fmt: skip
        shards = tree.get("weight_map", {}) if isinstance(tree, dict) and file.name.endswith(".index.json") else {}
        outside = next((name for name in shards.values() if Path(str(name)).name != name), None)
        if outside:
            raise UserError(f'names a file outside of its folder ("{outside}").', location=f"{location}: {file}")


def _forbidden(tree: object) -> str:
    stack = [tree]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if found := FORBIDDEN & {key for key, held in value.items() if held}:
                return min(found)
            stack += value.values()
        elif isinstance(value, list):
            stack += value
    return ""
