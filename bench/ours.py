"""Child: one run of preftune as a spec asks. Prints what was measured as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from contextlib import suppress
from pathlib import Path

from meter import Steps, cuda_peak, forget, memory, warmed

import preftune


class Enough(BaseException):
    """The first updates of a longer run were all that was asked for."""


def engine() -> str:
    """A digest of the source that ran: cells of one table may come from different states of a working tree."""
    told, root = hashlib.sha256(), Path(preftune.__file__).parent
    for path in sorted(root.rglob("*.py")):
        told.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return told.hexdigest()[:12]


def main(spec: dict) -> dict:
    import numpy
    import torch
    import transformers

    import preftune.report  # noqa: F401  loaded before anything is measured
    from preftune import events
    from preftune.config.load import load
    from preftune.events import StepDone
    from preftune.run import reference_model
    from preftune.run.train import train

    torch.set_num_threads(1)
    began = memory("VmRSS")
    empty = warmed(spec["model"]) if spec.get("memory") else began
    forget()
    steps, scoring = Steps(spec.get("cuda", False)), {"cpu": 0.0}
    score_missing = reference_model.score_missing

    def timed(*args, **named):
        before = time.process_time()
        reference_pass = score_missing(*args, **named)
        spent = time.process_time() - before
        scoring.update(cpu=spent, tokens=reference_pass.tokens_computed, scored=reference_pass.scored)
        steps.begin()
        return reference_pass

    reference_model.score_missing = timed
    if spec.get("unfused"):
        from preftune.model import fuse

        fuse.is_plain = fuse.is_plain_mlp = lambda part: False  # peft's own forward in our engine

    def listen(event):
        if isinstance(event, StepDone):
            names = ("loss", "grad_norm", "tokens_computed", "tokens_shared")
            steps.end(**{name: event.metrics[name] for name in names})
            if len(steps.found) == spec.get("updates"):
                raise Enough

    words = [f"{key}={value}" for key, value in spec["run"].items()]
    with suppress(Enough), events.listening(listen):
        train(load(None, words), force=True)
    return {
        "steps": steps.found,
        "reference": scoring,
        "empty": empty,
        "cuda_peak": cuda_peak(spec.get("cuda", False)),
        "versions": {
            "engine": engine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": numpy.__version__,
        },
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
