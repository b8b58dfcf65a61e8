"""The figures of docs/trade-off.md: those of `preftune trade-off`, kept in bench/results for docs/generate.py."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import torch
from msgspec.structs import replace

from preftune.events import Progress, listening
from preftune.tradeoff.language import compare_language
from preftune.tradeoff.panels import compare

RESULTS = Path(__file__).parent / "results" / "trade-off.json"


def show(event: object) -> None:
    if isinstance(event, Progress):
        print(event, file=sys.stderr)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with listening(show):
        results = replace(compare(), language=compare_language())
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
