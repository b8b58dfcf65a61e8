"""A vLLM server that draws for a run with an adapter. Held by tests/laws/test_served.py."""

from __future__ import annotations

from pathlib import Path

from preftune import files, folders
from preftune.config.run import Run
from preftune.rollout.embedded import Embedded
from preftune.rollout.server import ServedAdapter, Server
from preftune.run.tasks import TaskSet

LOCATION, FOLDER = "rollout.server", "served"  # the key, and where in the run's folder the adapter of now is written


def served(run: Run, url: str, tasks: TaskSet, embedded: Embedded) -> ServedAdapter:
    """The sampler of a run whose responses a server draws from the newest adapter; of several ranks, the first asks for
    all. Raises UserError where the server has another tokenizer, or does not answer."""
    policy, tokenizer = embedded.policy, tasks.dataset.tokenizer
    temperature = run.rollout.temperature if run.rollout else 1.0
    server = Server(url, embedded.max_tokens, embedded.end_tokens, temperature, policy.vocab, location=LOCATION)
    server.check_vocabulary(tokenizer)

    def export(path: Path) -> None:
        files.delete(path)
        with folders.folder(path) as folder:
            policy.weights.export(folder, tokenizer)

    return ServedAdapter(server, Path(run.out).expanduser().resolve() / FOLDER, export)
