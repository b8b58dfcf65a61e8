"""Responses drawn from a model to the prompts of a file. Held by tests/cli/test_draw.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from preftune import signals
from preftune.config.resolve import resolve
from preftune.config.run import Run
from preftune.distributed import SINGLE_PROCESS
from preftune.errors import UserError
from preftune.events import Note, emit
from preftune.model.budget import positions
from preftune.model.config import Model
from preftune.model.load import load_config
from preftune.record.parse import system_of_run
from preftune.rollout.config import Rollout
from preftune.rollout.draw import Drawn, Sampler
from preftune.rollout.embedded import Embedded
from preftune.rollout.server import Server
from preftune.rows.config import Data
from preftune.rows.tools import plain_prompt
from preftune.run.match_rows import Notes
from preftune.run.models import device_of, load_policy, with_precision
from preftune.run.tasks import TaskSet, load_tasks

AT_ONCE = 256  # responses that are drawn together: from here on a larger batch is little faster


def usual_limit(model: str) -> int:
    """Tokens of a response where nobody says: 256, or half of the model's positions. Raises UserError."""
    return min(256, max(1, positions(load_config(model, None, "MODEL")) // 2))


def draw(
    model: str, prompts: str | Path, rollout: Rollout, *,
    seed: int = 0, greedy: bool = False, server: str | None = None, system: str | None = None,
) -> list[dict[str, object]]:  # fmt: skip
    """`rollout.responses` responses to each prompt: one object a prompt, with each response's text, the sum of its
    tokens' log-probabilities, their number and whether it ended.

    server: address of a vLLM server that has the model and draws in place of this process. system: for conversations
    that have no system text; if not given, what the run that has tuned the model gave to its own. Raises UserError.
    """
    if system is None and (system := system_of_run(model)):
        emit(Note("conversations without a system text get that of the run"))
    system = system or None
    run = resolve(Run(model=Model(path=model), data=Data(train=str(prompts), system=system)))
    run = with_precision(run, device_of(run))
    with signals.listening():
        tasks = load_tasks(run, rollout, "--max-tokens")
        sampler = _sampler(run, tasks, rollout, greedy=greedy, server=server)
        at_once, lines = max(1, AT_ONCE // rollout.responses), []
        for first in range(0, len(tasks.train), at_once):
            chosen = tasks.train[first : first + at_once]
            with signals.interruptible():
                drawn = sampler.draw([task.ids for task in chosen], rollout.responses, (seed,))
            for task, responses in zip(chosen, drawn, strict=True):
                line = {"id": task.id or str(task.place), "prompt": plain_prompt(task.prompt)}
                lines.append(line | {"responses": _responses(responses, tasks.dataset.tokenizer.decode)})
    return lines


def _sampler(run: Run, tasks: TaskSet, rollout: Rollout, *, greedy: bool, server: str | None) -> Sampler:
    if server is None:
        emit(Note("loading the model"))
        policy = load_policy(run, tasks.dataset, Notes(), SINGLE_PROCESS)
        return Embedded(policy, rollout.max_tokens, tasks.end_tokens, rollout.temperature, greedy)
    if greedy:
        raise UserError("a server draws at a temperature.", location="--greedy", hint="Leave --server out.")
    vocab = tasks.dataset.config.get_text_config().vocab_size
    remote = Server(server, rollout.max_tokens, tasks.end_tokens, rollout.temperature, vocab)
    remote.check_vocabulary(tasks.dataset.tokenizer)
    return remote


def _responses(drawn: Drawn, decode: Callable[..., str | list[str]]) -> list[dict[str, object]]:
    return [
        {"text": decode(ids, skip_special_tokens=True), "logp": float(logp.sum(dtype="float64")), "tokens": len(ids),
         "ended": ended}
        for ids, logp, ended in zip(drawn.ids, drawn.logp, drawn.ended, strict=True)
    ]  # fmt: skip
