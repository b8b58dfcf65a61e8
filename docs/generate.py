"""Write the pages that follow from the code: keys, objectives with their pictures, what a record holds, the trade-off.

`python docs/generate.py` writes; a test compares.
"""

from __future__ import annotations

import ast
import inspect
import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import torch

from preftune import objective as o
from preftune.config.explain import elsewhere, keys, markdown
from preftune.config.mistakes import answer_to
from preftune.elsewhere import ANSWERS
from preftune.forward.examples import row_kinds
from preftune.forward.loss import Loss
from preftune.objective.presets import NAMES, PRESETS
from preftune.objective.responses import Responses
from preftune.objective.rollouts import RolloutFormula
from preftune.record import schema
from preftune.record.of_rewards import OF_CATEGORY, OF_REWARD
from preftune.report.charts import Series
from preftune.rows.row import Place
from preftune.tokens.aggregate import Aggregate
from preftune.tokens.groups import TokenGroup
from preftune.tradeoff.page import study
from preftune.tradeoff.results import Results

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
"""
RECORD = """# The record

A run folder holds `run.toml` (the whole run, resolved), `identity.json` (what decides its result),
`environment.json`, `data.json`, `metrics.jsonl`, `evaluations.jsonl`, `evaluation_rows.jsonl`,
`evaluation_words.jsonl`, `events.jsonl`,
`start.safetensors` (log-probabilities of the held-out responses before training), `checkpoints/`, `model/` and
`report.html`. A run that draws has `phases.jsonl` and `phases/` besides: for each phase a file of its numbers, which a
resumed run reads, and one of its prompts, texts and scores, `phases/000000.jsonl` and so on, which nothing reads.
"""
EVENTS = """## events.jsonl: one object for each thing that happened once

`step` is the number of updates done before it, `event` its kind, `time` when it happened (UTC) and `text` one sentence;
further keys depend on the kind. Kinds are for instance `resumed`, `out_of_memory`, `non_finite` (an update that was not
applied, or that broke the weights), `save_failed`, `tracker_failed`, `stopped_early`, `best` (`of`: the
step of the exported model, where `save.best` is given) and `finished`.

## Trackers

A run can send its metrics to trackers as well, each by its own library, which has to be installed (`pip install
'preftune[track]'` for trackio and TensorBoard; wandb and mlflow by name).

```toml
[track]
to = ["tensorboard", "wandb"]
project = "soup"
```

Each step appears under `train/NAME`, each evaluation under `evaluate/NAME` and each phase under `phase/NAME`, with the
names below. The configuration is sent once, by dotted keys. Event files of TensorBoard and local files of wandb stand
in the run folder. The libraries read their own environment: `WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`,
`TRACKIO_SPACE_ID`, and so on. A resumed run goes on in the same run of the tracker, which `track.json` names; steps
that it does again may stand there twice, with the same numbers. After a kill, a tracker may lack what its library had
not written yet (wandb: up to 15 seconds); the record has it.
A tracker that fails is turned off, and the run goes on.

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
TRADE_OFF = """# DPO and RLHF, measured

{lead}

`preftune trade-off` makes all of this in about seven minutes of one core, four of them two runs at a time, with a page
that opens offline, and `--offline` leaves out the language model. The other world has 4 prompts and 121 responses to
each: a policy is a table of logits, the reward counts symbols and adds noise of 0.3, and every KL, every reward and the
best policy are sums over all responses. Objectives, advantages and losses are those of the library; only the model is a
table. Pairs are draws of the reference with Bradley-Terry labels.

![Reward over KL](img/trade-off.svg)
"""
KL_LOSSES = """## Why the KL is in the reward

Online objectives pay for KL in the reward of each token, and no objective here has a KL loss. Gradients below are sums
over every response of such a world. *At the optimum* is the size of the gradient at the policy of most
reward - beta KL, over that at the reference: 0 is right. *Cosine* and *size* are against the true gradient at a policy
in between: 1 and 1 are right.

| formula | at the optimum | cosine | size |
|---|---|---|---|
| PPO, any lambda, exact values; RLOO; whole reward | 0 | 1.000 | 1.000 |
| KL of the present token only | 0.362 | 0.988 | 1.021 |
| k1 as a loss | 1.250 | 0.961 | 1.664 |
| k2 as a loss | 0.362 | 0.988 | 1.021 |
| k3 as a loss | 0.795 | 0.958 | 1.057 |
| k3 x ratio as a loss | 0.362 | 0.988 | 1.021 |
| k2 of the response as a loss | 0 | 1.000 | 1.000 |
| k3 of the response as a loss | 0.977 | 0.949 | 1.145 |
| group std, k3 x ratio as a loss | 0.319 | 0.986 | 1.088 |
| V one token late | 2.270 | -0.246 | 1.649 |
| score one token early | 1.690 | 0.450 | 1.616 |
| end token left out | 0 | 0.917 | 0.913 |
| cut responses left out | 0 | 0.949 | 0.781 |
| mean over a response's tokens | 0 | 0.909 | 0.398 |
| drawn at another temperature | 0 | 0.938 | 1.041 |

A loss of each token's KL forgets that a token leads to later KL. k2 as a loss, and k3 times the ratio, are number for
number the KL of the present token alone. A baseline and a scale are free only while the KL is in the reward. The last
four have no gradient at the optimum, since every advantage is 0 there; only the second measure sees them.
"""
CHOSEN, REJECTED, VALUE = "#2a9d8f", "#e76f51", "#6c7a9c"
INKS = (VALUE, "#0072b2", "#c28a00", "#3d9fd3", "#b6558f", "#009e73", "#6b5b95", "#d55e00", "#5f6b6d", "#97938b")


PAIR = TokenGroup(
    prompt=np.ones(1, np.int32), responses=(np.ones(10, np.int32), np.ones(14, np.int32)), kind="pair",
    ranks=(1, 2), scores=(1.2, 0.4), place=Place("docs", 1),
)  # fmt: skip


def measured(objective: o.Single, margins: list[float]) -> list[tuple[float, float, float]]:
    """Value and the derivatives by chosen and rejected logp of the worked pair, at each margin by itself.

    The pair has 10 and 14 tokens and -13 and -14 nats under the reference; the margin is moved by both sides alike.
    """
    loss = Loss(objective, "all")
    tokens, reference, sharpness = (
        torch.tensor(pair, dtype=torch.float64) for pair in ((10, 14), (-13, -14), (-1, -1))
    )
    unmoved = Responses(reference, tokens, reference, sharpness=sharpness)  # where KTO's drift is 0
    rows = []
    for margin in margins:
        logp = reference + torch.tensor([margin / 2, -margin / 2], dtype=torch.float64)
        output = loss([PAIR], replace(unmoved, logp=logp), unmoved)
        rows.append((output.value, *output.d_logp.tolist()))
    return rows


def picture(objective: o.Single) -> str:
    """A small chart of value and incentives against the margin, each scaled to its own height."""
    margins = [-20 + 40 * i / 80 for i in range(81)]  # beyond 26 a response would be more than certain
    rows = measured(objective, margins)
    lines = []
    for column, color, dash in ((0, VALUE, ""), (1, CHOSEN, "4 2"), (2, REJECTED, "4 2")):
        values = [row[column] for row in rows]
        scaled = values if column else [v - min(values) for v in values]
        most = max(abs(v) for v in (scaled if not column else [r[c] for r in rows for c in (1, 2)])) or 1.0
        zero, unit = (HIGH - EDGE, HIGH - 2 * EDGE) if not column else (HIGH / 2, HIGH / 2 - EDGE)
        points = " ".join(
            f"{EDGE + (WIDE - 2 * EDGE) * i / 80:.0f},{zero - unit * v / most:.0f}" for i, v in enumerate(scaled)
        )
        style = f' stroke-dasharray="{dash}"' if dash else ""
        lines.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.6"{style} points="{points}"/>')
    middle = f'<line x1="{WIDE / 2:.0f}" y1="0" x2="{WIDE / 2:.0f}" y2="{HIGH}" stroke="#9996" stroke-width="1"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" height="{HIGH}">' + (
        f"{middle}{''.join(lines)}</svg>\n"
    )


def objectives_page() -> tuple[str, dict[str, str]]:
    """The page and its pictures."""
    head = [OBJECTIVES]
    body, pictures = [], {}
    for tag, table in o.BY_NAME.items():
        objective = table()
        drawn = objective.kind == "rollouts"  # nothing of which a pair could show
        _, chosen, rejected = (0.0, 0.0, 0.0) if drawn else measured(objective, [0.0])[0]
        start = "" if drawn else f"{chosen:.4g}, {rejected:.4g}"
        coupled = ", coupled" if objective.needs_full_step else ""
        head.append(
            f"| [`{tag}`](#{tag}) | `{table.__name__}` | {objective.kind}{coupled} | "
            f"{'yes' if 'reference' in objective.reads else 'no'} | {start} | "
            f"{objective.paper.split(';')[0].split(',')[0]} |"
        )
        if not drawn:
            pictures[f"{tag}.svg"] = picture(objective)
        facts = msgspec.to_builtins(objective)
        defaults = ", ".join(f"`{k} = {msgspec.json.encode(v).decode()}`" for k, v in facts.items() if k != "name")
        body += [
            f"## {tag}", "", (table.__doc__ or "").strip().split("\n")[0], "", f"$${objective.formula}$$", "",
            *code(objective),
            f"- **Paper** arXiv {objective.paper}", f"- **Rows** {rows(objective)}", f"- **Keys** {defaults or 'none'}",
            *([f"- **Says** {objective.variant}"] if objective.variant else []),
            *([] if drawn else [f"- **Start** {chosen:.4g} and {rejected:.4g} a nat of chosen and of rejected"]),
            f"- **Optimum** {objective.optimum}", f"- **When** {objective.when}", f"- **Trap** {objective.fails}", "",
            *([] if drawn else [f"![{tag}](img/{tag}.svg)", ""]),
        ]  # fmt: skip
    return "\n".join([*head, PICTURES, *body, *mixtures(), *aggregates(), *names()]), pictures


def code(objective: o.Formula) -> list[str]:
    """The equation as it stands in the code, without its docstring; of drawn responses, what is its own."""
    called = getattr(type(objective), objective.shown if isinstance(objective, RolloutFormula) else "__call__")
    text = textwrap.dedent(inspect.getsource(called))
    method = ast.parse(text).body[0]
    assert isinstance(method, ast.FunctionDef)
    first = method.body[1] if ast.get_docstring(method) else method.body[0]
    return ["```py", textwrap.dedent("\n".join(text.splitlines()[first.lineno - 1 :])), "```", ""]


def rows(objective: o.Formula) -> str:
    """The rows that it takes."""
    if objective.kind == "rollouts":
        return "prompts of any rows; responses are drawn, with a score each"
    kinds, reads = ", ".join(row_kinds(objective)), objective.uses
    if "score" in reads and not objective.falls_back_on_labels:
        scores = "a score that is a quantile, from 0 to 1" if "quantile" in reads else "a score"
        return f"{kinds}; each response with {scores}"
    votes = ["votes count as soft labels"] * ("votes" in reads)
    scores = ["scores are read where all rows have them"] * objective.falls_back_on_labels
    return "; ".join([kinds, *votes, *scores])


def mixtures() -> list[str]:
    """Sums, and the published ones."""
    lines = ["## Mixtures", "", "`sum` adds objectives, each times its weight:", "", "```toml", "[objective]",
             'name = "sum"', "weights = [1.0, 0.2]", 'parts = [{ name = "dpo", beta = 0.1 }, { name = "nll" }]',
             "```", "", "Published ones have names, such as `objective = \"mpo\"`; the record holds their parts.", "",
             "| name | parts | what for | paper |", "|---|---|---|---|"]  # fmt: skip
    for name, preset in PRESETS.items():
        parts = " + ".join(f"{weight:g} {with_constants(part)}" for weight, part in o.parts(preset.objective))
        lines.append(f"| `{name}` | {parts} | {preset.meaning} | {preset.paper} |")
    return [*lines, ""]


def with_constants(part: o.Formula) -> str:
    """An objective with those of its constants that are numbers, or not what they are if not given."""
    facts, usual = msgspec.to_builtins(part), msgspec.to_builtins(type(part)())
    told = {k: v for k, v in facts.items() if v != usual[k] or (isinstance(v, float) and v)}
    constants = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items())
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


def other_trainers_page() -> str:
    """from_other_trainers.md with every name of other trainers and the answer that it gets."""
    text, of_keys = (HERE / "from_other_trainers.md").read_text(), {}
    for name in dict.fromkeys(name for key in keys() for name in key.also):
        path, _, meaning = answer_to(name).removeprefix("Here it is ").partition(". ")
        of_keys.setdefault(f"`{path.rstrip('.')}`. {meaning}".rstrip(), []).append(name)
    choices_of = {key.name: f"{key.table}={key.choice} " for key in keys() if key.choice and key.path != key.table}
    values = [(f"`{choices_of.get(place, '')}{place.removesuffix('.name').removesuffix('.kind')}={value}`", words)
              for place, by_value in elsewhere().items() for value, words in by_value.items()
              if by_value is not NAMES]  # fmt: skip
    for title, rows in (
        ("keys", [(backticked(names), here) for here, names in of_keys.items()]),
        ("values", [(value, f"Write {words}.") for value, words in values]),
        ("no key", [(backticked(names.split()), answer) for names, answer in ANSWERS.items()]),
    ):
        cells = (f"| {there} | {here.replace('|', '&#124;')} |" for there, here in rows)
        text = between(text, title, "\n".join(["| there | here |", "|---|---|", *cells]))
    return text


def backticked(names: Sequence[str]) -> str:
    """Names in one cell of a table."""
    return ", ".join(f"`{name}`" for name in names)


def keys_page() -> str:
    """Every key of a run."""
    return f"{KEYS}\n{markdown(keys())}\n"


def record_page() -> str:
    """What the files of a record hold."""
    lines = [RECORD, EVENTS, "## Metrics", "", (schema.__doc__ or "").partition("\n\n")[2].strip(), ""]
    for title, table in (
        ("metrics.jsonl: one object a step", schema.STEP),
        ("evaluations.jsonl: one object an evaluation", schema.EVALUATION),
        ("evaluations.jsonl: of each reward, with its name, as `reward verify number`", OF_REWARD),
        ("evaluations.jsonl: of each category of the prompts, with its name, as `score_in algebra`", OF_CATEGORY),
        ("phases.jsonl: one object a phase that was drawn, and the mean of each reward", schema.PHASE),
        ("evaluation_rows.jsonl: one object a held-out row, of the last evaluation", schema.ROW),
        ("evaluation_words.jsonl: the tokens that decide the held-out margins most, at most five", schema.WORD),
    ):
        lines += [f"## {title}", "", "| key | unit | meaning |", "|---|---|---|"]
        lines += [f"| `{name}` | {metric.unit} | {metric.meaning} |" for name, metric in table.items()]
        lines.append("")
    return "\n".join(lines)


def trade_off_page() -> tuple[str, str]:
    """The page of the comparison, from the figures that bench/trade_off.py left, and its picture."""
    figures = HERE.parent / "bench" / "results" / "trade-off.json"
    results = msgspec.json.decode(figures.read_bytes(), type=Results)
    content = study(results)
    lines = [TRADE_OFF.format(lead=content.lead)]
    for panel in content.panels:
        lines += [f"## {panel.title}", "", panel.text, ""]
        if panel.columns:
            lines += [f"| {' | '.join(panel.columns)} |", "|" + "---|" * len(panel.columns)]
            lines += [f"| {' | '.join(map(str, row))} |" for row in panel.rows]
            lines.append("")
    frontier = content.panels[0].charts[0]
    return "\n".join([*lines, KL_LOSSES, content.foot, ""]), frontier_picture(frontier.series)


def frontier_picture(series: Sequence[Series]) -> str:
    """Reward over KL: a line a method, a dot a beta, and the best policy of each KL."""
    wide, high, left, below = 760, 380, 46, 34
    far, most = (max(v for line in series for v in values(line)) * 1.03 for values in (lambda s: s.x, lambda s: s.y))
    least = min(v for line in series for v in line.y if v is not None) * 0.9

    def place(kl: float, reward: float | None) -> str:
        up = ((reward or 0.0) - least) / (most - least)
        return f"{left + (wide - left - 190) * kl / far:.0f},{high - below - (high - below - 12) * up:.0f}"

    shapes = []
    for index, line in enumerate(series):
        color = INKS[index % len(INKS)]
        dots = [place(x, y) for x, y in zip(line.x, line.y, strict=True)]
        dash = ' stroke-dasharray="6 4"' if line.dash else ""
        shapes.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.8"{dash} points="{" ".join(dots)}"/>')
        if not line.dash:
            shapes += [
                f'<circle r="3.4" fill="{color}" cx="{x}" cy="{y}"/>' for x, y in (dot.split(",") for dot in dots)
            ]
        y = 22 + 20 * index
        shapes.append(f'<rect x="{wide - 180}" y="{y - 5}" width="14" height="4" fill="{color}"/>')
        shapes.append(f'<text x="{wide - 160}" y="{y}" fill="{VALUE}">{line.name}</text>')
    for kl in range(int(far) + 1):
        x = place(kl, least).split(",")[0]
        shapes.append(f'<text x="{x}" y="{high - 16}" text-anchor="middle" fill="{VALUE}">{kl}</text>')
    for reward in range(math.ceil(least), math.floor(most) + 1):
        y = place(0, reward).split(",")[1]
        shapes.append(f'<text x="{left - 8}" y="{y}" text-anchor="end" fill="{VALUE}">{reward}</text>')
    shapes.append(
        f'<text x="{left}" y="{high - 2}" fill="{VALUE}">KL from the reference, nats; upwards: true reward</text>'
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" ' \
        f'font-family="sans-serif" font-size="12">{"".join(shapes)}</svg>\n'  # fmt: skip


def tree() -> str:
    """The folders of the source in the order of imports, a line a file: the first sentence of each module."""
    source, lines = HERE.parent / "src" / "preftune", ["```"]
    order = (HERE.parent / "CONTRIBUTING.md").read_text().partition("<!-- order of imports -->\n```\n")[2]
    for name in order.partition("```")[0].split():
        folder = source / name
        files = sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        lines += [f"  {name}/ "] if folder.is_dir() else []
        for path in files:
            if sentence := first_sentence(path):
                indent = "    " if folder.is_dir() else "  "
                lines.append(f"{indent}{path.stem:<{20 - len(indent)}} {sentence}")
    return "\n".join([*lines, "```"])


def first_sentence(path: Path) -> str:
    """Of a module's docstring, in one line; empty where it has none."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].removesuffix(".")


def readme() -> str:
    """README.md with the tree of today."""
    return between((HERE.parent / "README.md").read_text(), "tree", tree())


def scale_page() -> str:
    """scale.md with the tables of memory of today."""
    sys.path.insert(0, str(HERE))
    import memory_table

    text = between((HERE / "scale.md").read_text(), "memory of one", "\n".join(memory_table.memory_of_one_gpu()))
    for gpus, gibibytes in ((1, 24), (1, 80), (8, 80)):
        lines = memory_table.what_fits(gpus, gibibytes)
        text = between(text, f"fits {gpus} {gibibytes}", "\n".join(lines))
    return text


def between(text: str, name: str, content: str) -> str:
    """A page with this content between the marks of a name."""
    before, begin, rest = text.partition(f"<!-- {name}: begin (made by docs/generate.py) -->\n")
    return before + begin + content + "\n" + rest[rest.index(f"<!-- {name}: end -->") :]


def pages() -> dict[str, str]:
    """Every generated file, by its path from docs/."""
    objectives, pictures = objectives_page()
    named = {"keys.md": keys_page(), "objectives.md": objectives, "record.md": record_page(), "../README.md": readme()}
    named["scale.md"], named["from_other_trainers.md"] = scale_page(), other_trainers_page()
    named["trade-off.md"], pictures["trade-off.svg"] = trade_off_page()
    return named | {f"img/{name}": text for name, text in pictures.items()}


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(text)
