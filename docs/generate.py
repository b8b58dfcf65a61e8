"""Write the pages that follow from the code: keys, objectives with their pictures, and what a record holds.

`python docs/generate.py` writes; a test compares.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import get_args

import msgspec
import torch

from preftune import objective as o
from preftune.config.explain import keys
from preftune.forward.examples import row_kinds
from preftune.objective.presets import NAMES, PRESETS
from preftune.objective.responses import Pairs, Ratings, Responses
from preftune.objective.sum import value_of_pairs
from preftune.record import schema
from preftune.tokens.aggregate import Aggregate

HERE = Path(__file__).parent
WIDE, HIGH, EDGE = 300, 150, 8
OBJECTIVES = """# Objectives

One frozen struct each; calling it is the formula. $u$ is a log-ratio, $h$ the margin of two, $s$ an explicit score and
$n$ tokens. Start: derivative of the value by the logp of chosen and of rejected where the policy is the reference, on
a pair of 10 and 14 tokens with reference logp -13 and -14; negative pushes up. Coupled: the examples of a step depend
on each other, and each pack goes through the model a second time.

[Mixtures](#mixtures) · [weights of tokens](#weights-of-tokens) · [names from elsewhere](#names-from-elsewhere)

| name | class | rows | reference | start: chosen, rejected | paper |
|---|---|---|---|---|---|"""
PICTURES = """
Pictures: value (grey, from its lowest), incentive of chosen (green) and of rejected (red, around the middle line)
against a margin of -20 to 20 nats, each scaled to the picture.
"""
KEYS = """# Keys

Every key of a run, as `preftune keys` prints them. *of*: the choice of objective, reference or aggregate that has it.

| key | of | type | default | meaning |
|---|---|---|---|---|"""
RECORD = """# The record

A run folder holds `run.toml` (the whole run, resolved), `identity.json` (what decides its result),
`environment.json`, `data.json`, `metrics.jsonl`, `evaluations.jsonl`, `evaluation_rows.jsonl`, `events.jsonl`,
`start.safetensors` (log-probabilities of the held-out responses before training), `checkpoints/`, `model/` and
`report.html`.
"""
EVENTS = """## events.jsonl: one object for each thing that happened once

`step` is the number of updates done before it, `event` its kind, `time` when it happened (UTC) and `text` one sentence;
further keys depend on the kind. Kinds are for instance `resumed`, `out_of_memory`, `non_finite` (an update that was not
applied), `tracker_failed` and `finished`.

## Trackers

A run can send its metrics to trackers as well, each by its own library, which has to be installed (`pip install
'preftune[track]'` for trackio and TensorBoard; wandb and mlflow by name).

```toml
[track]
to = ["tensorboard", "wandb"]
project = "soup"
```

Each step appears under `train/NAME` and each evaluation under `evaluate/NAME`, with the names below. The configuration
is sent once, by dotted keys. Event files of TensorBoard and local files of wandb stand in the run folder. The libraries
read their own environment: `WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`, `TRACKIO_SPACE_ID`, and so on. A resumed run
goes on in the same run of the tracker, which `track.json` names; steps that it does again may stand there twice, with
the same numbers. After a kill, a tracker may lack what its library had not written yet (wandb: up to 15 seconds); the
record has it. A tracker that fails is turned off, and the run goes on.

In Python, any function that takes an event is a sink:

```python
from preftune.events import StepDone, emit, listening

def show(event):
    if isinstance(event, StepDone):
        print(event.step, event.metrics["loss"])

with listening(show):
    emit(StepDone(step=1, steps=10, metrics={"loss": 0.69}))  # `preftune.train(run)` emits such events
```
"""
CHOSEN, REJECTED, VALUE = "#2a9d8f", "#e76f51", "#6c7a9c"


def pairs_at(margin: torch.Tensor, sharp: float = -1.0) -> Pairs:
    """The worked pair (10 and 14 tokens, reference -13 and -14 nats) with its margin moved by both sides alike."""

    def side(logp: torch.Tensor, reference: float, tokens: int, score: float) -> Responses:
        full = lambda value: torch.full_like(logp, value)  # noqa: E731
        return Responses(logp, full(tokens), full(reference), full(score), full(sharp))

    one = torch.ones_like(margin)
    return Pairs(side(-13 + margin / 2, -13, 10, 1.2), side(-14 - margin / 2, -14, 14, 0.4), one, one)


def measured(objective: o.Single, margins: list[float]) -> list[tuple[float, float, float]]:
    """Value and the derivatives by chosen and rejected logp, at each margin by itself."""
    found = []
    for margin in margins:
        pairs = pairs_at(torch.tensor([margin], dtype=torch.float64))
        chosen, rejected = (s.logp.detach().requires_grad_() for s in (pairs.chosen, pairs.rejected))
        pairs = Pairs(
            with_logp(pairs.chosen, chosen), with_logp(pairs.rejected, rejected), pairs.weight, pairs.preferred
        )
        if "mismatched" in objective.needs:
            none = Responses(chosen.detach() * 0, pairs.chosen.tokens, chosen.detach() * 0)
            both = Responses(torch.cat([chosen, rejected]), torch.cat([pairs.chosen.tokens, pairs.rejected.tokens]),
                          torch.cat([pairs.chosen.ref_logp, pairs.rejected.ref_logp]))  # fmt: skip
            good = torch.tensor([True, False])
            value = objective(Ratings(both, good, torch.full((2,), 0.5, dtype=torch.float64), none)).mean()  # type: ignore[operator]
        else:
            value = value_of_pairs(objective, pairs).sum()
        down = torch.autograd.grad(value, [chosen, rejected], allow_unused=True)
        found.append((float(value.detach()), *(0.0 if g is None else float(g) for g in down)))
    return found


def with_logp(scores: Responses, logp: torch.Tensor) -> Responses:
    """The same scores with another logp."""
    return Responses(logp, scores.tokens, scores.reference, scores.score, scores.sharpness)


def picture(objective: o.Single) -> str:
    """A small chart of value and incentives against the margin, each scaled to its own height."""
    margins = [-20 + 40 * i / 80 for i in range(81)]  # beyond 26 a response would be more than certain
    rows = measured(objective, margins)
    lines = []
    for column, colour, dash in ((0, VALUE, ""), (1, CHOSEN, "4 2"), (2, REJECTED, "4 2")):
        values = [row[column] for row in rows]
        scaled = values if column else [v - min(values) for v in values]
        most = max(abs(v) for v in (scaled if not column else [r[c] for r in rows for c in (1, 2)])) or 1.0
        zero, unit = (HIGH - EDGE, HIGH - 2 * EDGE) if not column else (HIGH / 2, HIGH / 2 - EDGE)
        points = " ".join(
            f"{EDGE + (WIDE - 2 * EDGE) * i / 80:.0f},{zero - unit * v / most:.0f}" for i, v in enumerate(scaled)
        )
        style = f' stroke-dasharray="{dash}"' if dash else ""
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6"{style} points="{points}"/>')
    middle = f'<line x1="{WIDE / 2:.0f}" y1="0" x2="{WIDE / 2:.0f}" y2="{HIGH}" stroke="#9996" stroke-width="1"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" height="{HIGH}">' + (
        f"{middle}{''.join(lines)}</svg>\n"
    )


def objectives_page() -> tuple[str, dict[str, str]]:
    """The page and its pictures."""
    made = [kind() for kind in get_args(o.Single)]
    head = [OBJECTIVES]
    body, pictures = [], {}
    for one in made:
        tag = msgspec.to_builtins(one)["name"]
        _, chosen, rejected = measured(one, [0.0])[0]
        coupled = ", coupled" if one.coupled else ""
        head.append(
            f"| [`{tag}`](#{tag}) | `{type(one).__name__}` | {one.kind}{coupled} | {'yes' if one.reference else 'no'} "
            f"| {chosen:.4g}, {rejected:.4g} | {one.paper.split(';')[0].split(',')[0]} |"
        )
        pictures[f"{tag}.svg"] = picture(one)
        facts = msgspec.to_builtins(one)
        defaults = ", ".join(f"`{k} = {msgspec.json.encode(v).decode()}`" for k, v in facts.items() if k != "name")
        body += [
            f"## {tag}", "", (type(one).__doc__ or "").strip().split("\n")[0], "", f"$${one.formula}$$", "",
            *code(one),
            f"- **Paper** arXiv {one.paper}", f"- **Rows** {rows(one)}", f"- **Keys** {defaults or 'none'}",
            *([f"- **Says** {one.variant}"] if one.variant else []),
            f"- **Start** {chosen:.4g} and {rejected:.4g} a nat of chosen and of rejected",
            f"- **Optimum** {one.optimum}", f"- **When** {one.when}", f"- **Trap** {one.fails}", "",
            f"![{tag}](img/{tag}.svg)", "",
        ]  # fmt: skip
    return "\n".join([*head, PICTURES, *body, *mixtures(), *aggregates(), *names()]), pictures


def code(one: o.Single) -> list[str]:
    """The equation as it stands in the code, without its docstring."""
    method = next(m for m in ("value", "__call__") if m in vars(type(one)))
    text = textwrap.dedent(inspect.getsource(vars(type(one))[method]))
    made = ast.parse(text).body[0]
    assert isinstance(made, ast.FunctionDef)
    first = made.body[1] if ast.get_docstring(made) else made.body[0]
    return ["```py", textwrap.dedent("\n".join(text.splitlines()[first.lineno - 1 :])), "```", ""]


def rows(one: o.Single) -> str:
    """What data it takes."""
    found = ", ".join(row_kinds(one))
    if "quantile" in one.needs:
        return f"{found}; each response with a score that is a quantile, from 0 to 1"
    if "score" in one.needs:
        return f"{found}; each response with a score"
    extra = ["votes count as soft labels"] * one.votes + ["scores are read where all rows have them"] * one.scores
    return "; ".join([found, *extra])


def mixtures() -> list[str]:
    """Sums, and the published ones."""
    lines = ["## Mixtures", "", "`sum` adds objectives, each times its weight:", "", "```toml", "[objective]",
             'name = "sum"', "weights = [1.0, 0.2]", 'parts = [{ name = "dpo", beta = 0.1 }, { name = "nll" }]',
             "```", "", "Published ones have names, such as `objective = \"mpo\"`; the record holds their parts.", "",
             "| name | parts | what for | paper |", "|---|---|---|---|"]  # fmt: skip
    for name, preset in PRESETS.items():
        parts = " + ".join(f"{weight:g} {told(part)}" for weight, part in o.parts(preset.objective))
        lines.append(f"| `{name}` | {parts} | {preset.meaning} | {preset.paper} |")
    return [*lines, ""]


def told(part: o.Single) -> str:
    """An objective with those of its constants that are numbers."""
    facts = msgspec.to_builtins(part)
    constants = ", ".join(f"{k} {v:g}" for k, v in facts.items() if isinstance(v, float) and v)
    return facts["name"] + (f" ({constants})" if constants else "")


def aggregates() -> list[str]:
    """What each token of a response counts, for any objective."""
    lines = ["## Weights of tokens", "",
             "`aggregate` says what each token counts, in policy and reference alike and for any objective; a mean",
             "over tokens divides by the weights that it sums. Weights that [rows give](preftune.md#rows) are",
             "multiplied by them.", "",
             "| name | what it does | paper |", "|---|---|---|"]  # fmt: skip
    for kind in get_args(Aggregate):
        meaning = (kind.__doc__ or "").strip().split("\n")[0]
        lines.append(f"| `{kind.__struct_config__.tag}` | {meaning} | {kind.paper} |")
    return [*lines, ""]


def names() -> list[str]:
    """Other names of the literature, as words that make a run."""
    lines = ["## Names from elsewhere", "", "| there | here |", "|---|---|"]
    return [*lines, *(f"| {name} | `{words}` |" for name, words in NAMES.items()), ""]


def keys_page() -> str:
    """Every key of a run."""
    lines = [KEYS]
    for key in keys():
        kind = f"{key.type} {key.bound}".strip().replace("|", "\\|")
        default = f"`{key.default}`" if key.default else ""
        lines.append(
            f"| `{key.name}` | {key.choice} | {kind} | {default} | {key.meaning.replace('|', chr(92) + '|')} |"
        )
    return "\n".join([*lines, ""])


def record_page() -> str:
    """What the files of a record hold."""
    lines = [RECORD, EVENTS, "## Metrics", "", (schema.__doc__ or "").partition("\n\n")[2].strip(), ""]
    for title, table in (
        ("metrics.jsonl: one object a step", schema.STEP),
        ("evaluations.jsonl: one object an evaluation", schema.EVALUATION),
        ("evaluation_rows.jsonl: one object a held-out row, of the last evaluation", schema.ROW),
    ):
        lines += [f"## {title}", "", "| key | unit | meaning |", "|---|---|---|"]
        lines += [f"| `{name}` | {metric.unit} | {metric.meaning} |" for name, metric in table.items()]
        lines.append("")
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Every generated file below docs/, by its name."""
    objectives, pictures = objectives_page()
    named = {"keys.md": keys_page(), "objectives.md": objectives, "record.md": record_page()}
    return named | {f"img/{name}": text for name, text in pictures.items()}


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(text)
