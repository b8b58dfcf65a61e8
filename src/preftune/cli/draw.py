"""preftune draw."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from preftune.cli.verbs import at_work
from preftune.errors import UserError
from preftune.record.output import DRAWS, assert_replaceable
from preftune.record.parse import model_of
from preftune.rollout.config import Rollout
from preftune.rows.config import Data
from preftune.rows.split import refuse_missing_rows


def draw(
    model: str,
    prompts: Path,
    *,
    responses: Annotated[int, Parameter(name=["--responses", "-k"])] = 8,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    greedy: bool = False,
    server: str | None = None,
    system: str | None = None,
    out: Path | None = None,
) -> None:
    """Draw responses from a model to the prompts of a file.

    `preftune draw MODEL prompts.jsonl -k 8`

    Parameters
    ----------
    model
        Folder or hub name of a language model, or the folder of a run that has tuned one.
    prompts
        Rows of any kind: their own responses are not read, and equal prompts are one.
    responses
        Responses to each prompt.
    max_tokens
        Tokens after which a response is cut; 256, or half of the model's positions where those are fewer.
    temperature
        What logits are divided by; the log-probabilities said are those of that distribution.
    seed
        The same seed draws the same responses, whatever other prompts there are.
    greedy
        Take the likeliest token each time; responses of one prompt are then equal.
    server
        Address of a vLLM server that has the model and draws in place of this process.
    system
        System text of conversations that have none: of a run's model the run's own if not given, and "" for none.
    out
        JSON-lines file to write, one object a prompt, in place of the screen; it replaces an earlier one of draw alone.
    """
    model, numbers = model_of(model), {"-k": responses, "--max-tokens": max_tokens, "--temperature": temperature}
    _check(out, [prompts, Path(model).expanduser()], numbers)
    with at_work():
        from preftune.run import draw as run

        rollout = Rollout(responses=responses, max_tokens=max_tokens or run.usual_limit(model), temperature=temperature)
        lines = run.draw(model, prompts, rollout, seed=seed, greedy=greedy, server=server, system=system)
    _put(lines, out)


def _check(out: Path | None, inputs: Sequence[Path], positive: Mapping[str, float | None]) -> None:
    """Raise UserError where a flag has no number above 0, or the file to write is an input or somebody's."""
    refuse_missing_rows(Data(train=str(inputs[0])))
    if out is not None:
        assert_replaceable(out, DRAWS, [path for path in inputs if path.exists()])
    for flag, number in positive.items():
        if number is not None and not 0 < number < float("inf"):
            raise UserError("must be above 0.", location=f"{flag} {number}")


def _put(lines: Sequence[Mapping[str, object]], out: Path | None) -> None:
    """Write the file and say its name, or show the lines."""
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    if out is None:
        print(text, end="")
        return
    from preftune import files

    files.write(out, text)
    print(out)
