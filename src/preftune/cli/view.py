"""How rows, groups and counts look on a terminal. Marks tell what colours tell, for terminals without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from preftune.__main__ import safe
from preftune.errors import Problem
from preftune.rows.account import Account
from preftune.rows.read import Reading
from preftune.rows.row import KINDS, Kind, Message, Pair, Prompt, Ranking, Rating, Response, Row, Span, responses
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenize import Tokenized

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from preftune.run.preview import Preview

WIDEST = 400  # characters of a prompt (its end) or a response (its beginning) that are shown
PLACES = 3  # places named for each reason


def read(part: str, reading: Reading) -> Text:
    """Counts of the rows of a file, by reason."""
    names = ", ".join(reading.files)
    text = Text(f"{part}: {names}\n", style="bold")
    text.append(
        f"  {reading.read} rows read, {len(reading.rows)} usable, {len(reading.skipped)} skipped", style="not bold"
    )
    return _reasons(text, reading.skipped, reading.notes)


def tokenized(part: str, done: Tokenized) -> Text:
    """Counts of the rows that became groups."""
    text = Text(f"{part} in tokens: {len(done.groups)} kept, {done.cut} cut, {len(done.skipped)} skipped")
    return _reasons(text, done.skipped, done.notes)


def _reasons(text: Text, skipped: Sequence[Problem], notes: Sequence[Problem]) -> Text:
    by_reason: dict[str, list[Problem]] = {}
    for problem in skipped:
        by_reason.setdefault(problem.reason, []).append(problem)
    for reason, problems in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        places = ", ".join(p.location for p in problems[:PLACES]) + (" ..." if len(problems) > PLACES else "")
        text.append(f"\n  skipped {len(problems):>6}  {reason}", style="yellow")
        text.append(f"  {safe(places)}", style="dim")
    for note in notes:
        text.append(f"\n  note: {safe(str(note))}", style="dim")
    return text


def kinds(rows: Sequence[Row]) -> Text:
    """How many rows of each kind."""
    counted = Counter(KINDS[type(row)] for row in rows)
    return Text("rows: " + ", ".join(f"{count} {kind}s" for kind, count in counted.most_common()))


def row(one: Row) -> Text:
    """A row as text."""
    text = Text(f"\n{one.place} ({KINDS[type(one)]})\n", style="bold")
    text.append(_end(_plain(one.prompt)), style="not bold dim")
    ranks = one.ranks if isinstance(one, Ranking) else (1, 2)
    good = one.good if isinstance(one, Rating) else None
    scores = one.scores if isinstance(one, Pair | Ranking) else (one.score,) if isinstance(one, Rating) else None
    weighed = one.token_weights or (None,) * len(responses(one))
    called = _called(KINDS[type(one)], ranks, good, scores)
    for name, response, weights in zip(called, responses(one), weighed, strict=False):
        spans = f", {len(weights)} {'spans' if isinstance(weights[0], Span) else 'token weights'}" if weights else ""
        text.append(f"\n[{name}{spans}] ", style="bold")
        text.append(_beginning(_plain(response)), style="not bold green")
    return text


def _called(kind: Kind, ranks: Sequence[int], good: bool | None, scores: Sequence[float | None] | None) -> list[str]:
    """What stands before each response of a row."""
    if kind == "pair":
        names = ["chosen", "rejected"]
    elif kind == "ranking":
        names = [f"rank {rank}" for rank in ranks]
    else:
        names = ["response" if kind == "demo" or good is None else "good" if good else "bad"]
    given = scores or [None] * len(names)
    return [name if score is None else f"{name}, score {score:g}" for name, score in zip(names, given, strict=True)]


def _plain(value: Prompt | Response) -> str:
    if isinstance(value, str):
        return safe(value)
    return safe("\n".join(f"{m.role}: {m.content}" for m in value if isinstance(m, Message)))


def group(one: TokenGroup, tokenizer: PreTrainedTokenizerBase) -> Text:
    """A group as the model sees it: the prompt, and each response between marks; what is marked is scored."""
    text = Text(f"\n{one.place}  ", style="bold")
    text.append(f"prompt {len(one.prompt)} tokens, not scored\n", style="not bold dim")
    text.append(_end(safe(_decode(tokenizer, one.prompt.tolist()))), style="not bold dim")
    names = _called(one.kind, one.ranks, one.good, one.scores)
    for at, (name, response) in enumerate(zip(names, one.responses, strict=True)):
        text.append(f"\n{name}, {len(response)} tokens scored: ", style="bold")
        weights = one.column("weight")
        marked = _runs(tokenizer, response, weights[at] if weights else None)
        text.append(_beginning(safe(marked)), style="not bold green")
    return text


def _runs(tokenizer: PreTrainedTokenizerBase, response: np.ndarray, weights: np.ndarray | None) -> str:
    """The response between marks, cut where what its tokens count changes, and that behind each part that is not 1."""
    if weights is None:
        return f"⟦{_decode(tokenizer, response.tolist())}⟧"
    cuts = [0, *(k for k in range(1, len(response)) if weights[k] != weights[k - 1]), len(response)]
    parts = [(_decode(tokenizer, response[a:b].tolist()), float(weights[a])) for a, b in pairwise(cuts)]
    return "".join(f"⟦{part}⟧" + (f"×{weight:g}" if weight != 1 else "") for part, weight in parts)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _end(text: str) -> str:
    return text if len(text) <= WIDEST else "... " + text[-WIDEST:]


def _beginning(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST * 3 // 4]} ... {text[-WIDEST // 4 :]}"


def lengths(account: Account) -> Group:
    """Small histograms of tokens, and which side is longer."""
    parts: list[Text | Table] = [Text("\ntokens", style="bold")]
    for name, spread in account.lengths.items():
        if spread is None:
            continue
        table = Table(box=None, pad_edge=False, show_header=False)
        most = max((b.count for b in spread.bins), default=1) or 1
        for b in spread.bins:
            table.add_row(f"<= {b.to}", "█" * round(24 * b.count / most), str(b.count))
        parts += [Text(f"{name}: median {spread.median}, 90 % below {spread.p90}, longest {spread.max}"), table]
    if account.chosen_longer is not None:
        parts.append(Text(f"chosen is longer in {account.chosen_longer:.1%} of the pairs"))
    return Group(*parts)


def work(found: Preview) -> Text:
    """Steps, what sharing saves, and memory."""
    steps, memory = found.plan.steps, found.memory
    packs = sum(len(s.packs) for s in steps) / len(steps)
    text = Text("\nwork\n", style="bold")
    lines = [
        f"{len(steps)} steps of up to {found.run.batch.rows} rows, about {packs:.1f} packs a step",
        f"{found.tokens:,.0f} tokens a step with sharing, {found.naive:,.0f} without "
        f"({found.naive / found.tokens:.2f} times as many)",
        f"{found.parameters:,} parameters",
        f"about {_size(memory.total)} of memory: weights {_size(memory.weights)}, gradients {_size(memory.gradients)}, "
        f"moments {_size(memory.moments)}, a pack's activations up to {_size(memory.activations)}",
    ]
    return text.append("\n".join(lines), style="not bold")


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
