"""What the verbs print: rows and groups, counts, metrics and findings. Marks say what colors say, for want of color."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from preftune.diagnosis import diagnose
from preftune.diagnosis.finding import but_rounding, number
from preftune.diagnosis.objective_facts import of_demos
from preftune.errors import Problem, printable
from preftune.record.of_rewards import evaluation_metrics
from preftune.record.reader import Record
from preftune.record.schema import described
from preftune.rows.account import Account, by_reason
from preftune.rows.read import Reading
from preftune.rows.row import KINDS, Kind, Message, Pair, Prompt, Ranking, Rating, Response, Row, Span, responses
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenize import Tokenized

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from preftune.run.preview import Preview, TaskPreview

LONGEST = 400  # characters of a prompt (its end) or a response (its beginning) that are shown
WIDEST = 40  # letters of a name in a table
LOCATIONS = 3  # locations named for each reason
SWEEP_COLUMNS = {
    "loss": "loss", "perplexity": "perplexity", "accuracy": "accuracy", "accuracy_per_token": "per token",
    "accuracy_of_change": "since start", "margin": "margin", "chosen_logp_change": "chosen",
    "rejected_logp_change": "rejected", "score": "score", "kl": "KL",
}  # fmt: skip


def read(part: str, reading: Reading) -> Text:
    """Counts of the rows of a file, by reason."""
    names = printable(", ".join(reading.files))
    text = Text(f"{part}: {names}\n", style="bold")
    text.append(
        f"  {reading.read} rows read, {len(reading.rows)} usable, {len(reading.skipped)} skipped", style="not bold"
    )
    return _reasons(text, reading.skipped, reading.notes)


def tokenized(part: str, tokens: Tokenized) -> Text:
    """Counts of the rows that became groups."""
    text = Text(f"{part} in tokens: {len(tokens.groups)} kept, {tokens.cut} cut, {len(tokens.skipped)} skipped")
    return _reasons(text, tokens.skipped, tokens.notes)


def _reasons(text: Text, skipped: Sequence[Problem], notes: Sequence[Problem]) -> Text:
    for reason, problems in by_reason(skipped).items():
        locations = ", ".join(p.location for p in problems[:LOCATIONS]) + (" ..." if len(problems) > LOCATIONS else "")
        text.append(f"\n  skipped {len(problems):>6}  {printable(reason)}", style="yellow")
        text.append(f"  {printable(locations)}", style="dim")
    for note in notes:
        text.append(f"\n  note: {printable(str(note))}", style="dim")
    return text


def kinds(rows: Sequence[Row]) -> Text:
    """How many rows of each kind."""
    counts = Counter(KINDS[type(row)] for row in rows)
    return Text("rows: " + ", ".join(f"{count} {kind}s" for kind, count in counts.most_common()))


def row(row: Row) -> Text:
    """A row as text."""
    kind = KINDS[type(row)]
    text = Text(f"\n{printable(str(row.place))} ({kind})\n", style="bold")
    text.append(_end(_plain(row.prompt)), style="not bold dim")
    if row.answer is not None:
        text.append(f"\n[answer] {_beginning(printable(row.answer))}", style="not bold dim")
    ranks = row.ranks if isinstance(row, Ranking) else (1, 2)
    good = row.good if isinstance(row, Rating) else None
    scores = row.scores if isinstance(row, Pair | Ranking) else (row.score,) if isinstance(row, Rating) else None
    names = _names(kind, ranks, good, scores)
    token_weights = row.token_weights or (None,) * len(names)
    for name, response, weights in zip(names, responses(row), token_weights, strict=False):
        spans = f", {len(weights)} {'spans' if isinstance(weights[0], Span) else 'token weights'}" if weights else ""
        text.append(f"\n[{name}{spans}] ", style="bold")
        text.append(_beginning(_plain(response)), style="not bold green")
    return text


def _names(kind: Kind, ranks: Sequence[int], good: bool | None, scores: Sequence[float | None] | None) -> list[str]:
    """What stands before each response of a row."""
    if kind == "task":
        return []
    if kind == "pair":
        names = ["chosen", "rejected"]
    elif kind == "ranking":
        names = [f"rank {rank}" for rank in ranks]
    else:
        names = ["response" if kind == "demo" or good is None else "good" if good else "bad"]
    scores = scores or [None] * len(names)
    return [name if score is None else f"{name}, score {score:g}" for name, score in zip(names, scores, strict=True)]


def _plain(value: Prompt | Response) -> str:
    if isinstance(value, str):
        return printable(value, "\n\t")
    return printable("\n".join(f"{m.role}: {m.says}" for m in value if isinstance(m, Message)), "\n\t")


def group(group: TokenGroup, tokenizer: PreTrainedTokenizerBase) -> Text:
    """A group as the model sees it: the prompt, and each response between marks; what stands between them is scored."""
    text = Text(f"\n{printable(str(group.place))}  ", style="bold")
    text.append(f"prompt {len(group.prompt)} tokens, not scored\n", style="not bold dim")
    text.append(_end(printable(_decode(tokenizer, group.prompt.tolist()), "\n\t")), style="not bold dim")
    names = _names(group.kind, group.ranks, group.good, group.scores)
    token_weights = group.column("weight") or (None,) * len(names)
    later_turns = group.later_turns or ((),) * len(names)
    for name, response, later, weights in zip(names, group.responses, later_turns, token_weights, strict=True):
        text.append(f"\n{name}, {len(response)} tokens scored: ", style="bold")
        contexts = ["", *(_decode(tokenizer, turn.context.tolist()) for turn in later)]
        cuts = [0, *(turn.first for turn in later), len(response)]
        for context, (first, last) in zip(contexts, pairwise(cuts), strict=True):
            marked = _marked(tokenizer, response[first:last], None if weights is None else weights[first:last])
            text.append(_end(printable(context, "\n\t")), style="not bold dim")
            text.append(_beginning(printable(marked, "\n\t")), style="not bold green")
    return text


def _marked(tokenizer: PreTrainedTokenizerBase, response: np.ndarray, weights: np.ndarray | None) -> str:
    """The response between marks; where its tokens have weights, one part for each weight, which follows unless 1."""
    if weights is None:
        return f"⟦{_decode(tokenizer, response.tolist())}⟧"
    cuts = [0, *(k for k in range(1, len(response)) if weights[k] != weights[k - 1]), len(response)]
    parts = [(_decode(tokenizer, response[a:b].tolist()), float(weights[a])) for a, b in pairwise(cuts)]
    return "".join(f"⟦{part}⟧" + (f"×{weight:g}" if weight != 1 else "") for part, weight in parts)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _end(text: str) -> str:
    return text if len(text) <= LONGEST else "... " + text[-LONGEST:]


def _beginning(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest * 3 // 4]} ... {text[-longest // 4 :]}"


def lengths(account: Account) -> Group:
    """Small histograms of lengths, and which side of a pair is longer."""
    parts: list[Text | Table] = [Text("\ntokens", style="bold")]
    for name, spread in account.lengths.items():
        if spread is None:
            continue
        table = Table(box=None, pad_edge=False, show_header=False)
        largest = max((b.count for b in spread.bins), default=1) or 1
        for b in spread.bins:
            table.add_row(f"<= {b.to}", "█" * round(24 * b.count / largest), str(b.count))
        parts += [Text(f"{name}: median {spread.median:g}, 90 % below {spread.p90:g}, longest {spread.max}"), table]
    if account.chosen_longer is not None:
        parts.append(Text(f"chosen is longer in {account.chosen_longer:.1%} of the pairs"))
    return Group(*parts)


def work(preview: Preview) -> Text:
    """Steps, what sharing saves, and memory."""
    steps, memory = preview.plan.steps, preview.memory
    packs = sum(len(step.packs) for step in steps) / len(steps)
    text = Text("\nwork\n", style="bold")
    lines = [
        f"{len(steps)} steps of up to {preview.run.batch.rows} rows, about {packs:.1f} packs a step",
        f"{preview.tokens:,.0f} tokens a step with sharing, {preview.naive:,.0f} without "
        f"({preview.naive / preview.tokens:.2f} times as many)",
        f"{preview.parameters:,} parameters",
        f"about {_size(memory.total)} of memory: weights {_size(memory.weights)}, gradients {_size(memory.gradients)}, "
        f"moments {_size(memory.moments)}, activations of a pack up to {_size(memory.activations)}",
    ]
    return text.append("\n".join(lines), style="not bold")


def drawing(preview: TaskPreview) -> Text:
    """The prompts of a run that draws, three of them as the model sees them, its phases and its steps."""
    tasks, rollout, text = preview.tasks, preview.rollout, Text()
    for part, of_part in tasks.parts.items():
        text.append(f"{part}: {len(of_part.tasks)} prompts to draw responses to, {len(of_part.skipped)} rows skipped")
        _reasons(text, of_part.skipped, of_part.notes).append("\n")
    for task in tasks.train[:3]:
        text.append(f"\n{printable(str(task.place))}  prompt {len(task.ids)} tokens\n", style="bold")
        text.append(_end(printable(_decode(tasks.dataset.tokenizer, task.ids.tolist()), "\n\t")), style="dim")
        if task.answer is not None:
            text.append(f"\n[answer] {_beginning(printable(task.answer))}", style="dim")
    text.append("\n\nwork\n", style="bold")
    prompts = min(rollout.phase_tasks, len(tasks.train))
    return text.append(
        f"{preview.steps} steps in {preview.phases} phases of up to {prompts} prompts "
        f"with {rollout.responses} responses each, of at most {rollout.max_tokens} tokens"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def metrics_table(
    *columns: Mapping[str, float | None], titles: tuple[str, ...] = ("value",), demos: bool = False
) -> Table:
    """A table of evaluation metrics without those that no column has. What each one means stands on the page. demos:
    whether the rows are."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", style="cyan", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("unit", style="dim", no_wrap=True)
    for name, metric in evaluation_metrics(*columns).items():
        values = [column.get(name) for column in columns]
        if name not in ("step", "seconds") and any(value is not None for value in values):
            cells = [number(but_rounding(value, metric.unit)) for value in values]
            said = _beginning(printable(described(name, metric, demos=demos)[0]), WIDEST)
            table.add_row(escape(said), *cells, escape(metric.unit))
    return table


def show_run(out: Path) -> None:
    """After a run: held-out metrics before and after, the findings, and where the model and the page are."""
    record, console = Record.open(out), Console(highlight=False)
    if record.evaluations:
        first, last = record.evaluations[0], record.evaluations[-1]
        console.print(metrics_table(first, last, titles=("before", "after"), demos=of_demos(record)))
    for finding in diagnose(record):
        console.print(f"[bold]{finding.severity}[/bold]: {escape(printable(f'{finding.title}. {finding.evidence}'))}")
        for effect in finding.effects:
            console.print(f"  It shows as: {printable(effect)}", markup=False)
        console.print(f"  What to do: {printable(finding.remedy)}", markup=False)
    console.print(f"model  {out / 'model'}\npage   {out / 'report.html'}", markup=False)


def show_sweep(folders: Sequence[Path]) -> None:
    """After a sweep: a line for each run with its last held-out metrics."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    records = [Record.open(folder) for folder in folders]
    if not all(record.evaluations for record in records):
        table.title, table.title_justify = "no rows are held out: last step, on training rows", "left"
    last = [next(reversed(record.evaluations or record.steps), {}) for record in records]
    columns = [name for name in SWEEP_COLUMNS if any(line.get(name) is not None for line in last)]
    for name in columns:
        table.add_column(SWEEP_COLUMNS[name], justify="right", no_wrap=True)
    for record, line in zip(records, last, strict=True):
        table.add_row(escape(printable(record.path.name)), *(number(line.get(name)) for name in columns))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
