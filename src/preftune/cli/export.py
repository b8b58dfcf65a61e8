"""preftune export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from preftune.errors import UserError
from preftune.events import Note, emit


def export(
    adapter: str, into: Path, *, merge: bool = True, weights: Literal["float32", "bfloat16"] = "float32"
) -> None:
    """Write an adapter and its base as one model, which needs peft no more.

    `preftune export RUN merged`

    Parameters
    ----------
    adapter
        The record of a run with [adapter], its `model` folder, or any other folder or hub name of an adapter.
    into
        Folder to write.
    merge
        What it does, and all that it does: a run has written its adapter already.
    weights
        Type of the merged weights; the sum is made in float32, and the difference is told.
    """
    if not merge:
        raise UserError("the adapter is written already, in the layout of peft.", location=adapter,
                        hint="Without --no-merge it is made one model with its base.")  # fmt: skip
    from preftune.record.terminal import terminal

    with terminal():
        emit(Note("loading torch and transformers"))
        from preftune.run.export import merge as merged

        off = merged(adapter, into, weights)
    print(f"{into}: off base and adapter by {off.mean:.1e} {off.unit} on average, {off.worst:.1e} at worst")
    if off.quantized:
        print(f"  and off the model that was tuned, whose base is in {off.quantized}, by {off.off_quantized:.1e}")
