"""preftune keys."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from cyclopts import Parameter


def keys(*words: str, form: Annotated[Literal["text", "markdown", "schema"], Parameter(name="--as")] = "text") -> None:
    """Print every key of a run with its type, default, bound and meaning.

    `preftune keys [objective ...]`

    Parameters
    ----------
    words
        Print only keys that begin with one of these.
    form
        text; markdown, as in the docs; or schema, a JSON schema for editors.
    """
    from preftune.config import explain
    from preftune.errors import UserError, nearest

    if form == "schema":
        print(json.dumps(explain.schema(), indent=2))
        return
    every_key = explain.keys()
    chosen = [key for key in every_key if not words or key.name.startswith(tuple(words)) or key.choice in words]
    if not chosen:
        names = [*{key.name for key in every_key}, *{key.choice for key in every_key}]
        raise UserError(f'no key begins with "{words[0]}".', hint=nearest(words[0], names))
    if form == "markdown":
        print("| key | of | type | default | meaning |\n|---|---|---|---|---|")
        for key in chosen:
            kind = f"{key.type} {key.bound}".strip().replace("|", "\\|")
            default = f"`{key.default}`" if key.default else ""
            print(f"| `{key.name}` | {key.choice} | {kind} | {default} | {key.meaning} |")
        return
    from rich.console import Console
    from rich.markup import escape

    console, last = Console(highlight=False, soft_wrap=True), None
    for key in chosen:
        table = (key.name.rpartition(".")[0], key.choice)
        if table != last:
            console.print(f"\n[bold]\\[{table[0] or 'run'}][/bold]" + (f" {table[1]}" if table[1] else ""))
            last = table
        facts = ", ".join(
            filter(None, [f"{key.type} {key.bound}".strip(), f"default {key.default}" if key.default else ""])
        )
        console.print(f"  [cyan]{key.name}[/cyan]  [dim]{escape(facts)}[/dim]\n      {escape(key.meaning)}")
