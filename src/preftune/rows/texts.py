"""What the texts of the rows show without a model: cuts, contradictions, and held-out prompts that are trained on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from operator import ne

from msgspec.structs import replace

from preftune.rows.account import Account, Texts
from preftune.rows.row import Pair, Rating, Row, responses, shared_by, text_of

CLOSING = set(".!?:;…。！？｡．।؟»”’\"'`)]}>*_|~^$%")  # also ends of quotations, code and markup
FEWEST = 20  # responses of a side
SENTENCE = 4  # words; shorter responses are answers without punctuation, such as names and numbers


def with_texts(account: Account, train: Sequence[Row], evaluate: Sequence[Row]) -> Account:
    """The account with what the texts of these rows show."""
    trained = {shared_by(row) for row in train}
    seen = sum(shared_by(row) in trained for row in evaluate) / len(evaluate) if evaluate else None
    sides: dict[str, list[str]] = defaultdict(list)
    for row in train:
        for index, response in enumerate(responses(row)):
            bad = row.good is False if isinstance(row, Rating) else index > 0
            sides["rejected" if bad else "chosen"].append(text_of(response).rstrip())
    enough = {side: texts for side, texts in sides.items() if len(texts) >= FEWEST}
    pairs = [row for row in train if isinstance(row, Pair)]
    repeated, contradictory = _repeats(pairs)
    texts = Texts(
        repeated=repeated,
        contradictory=contradictory,
        twins=sum(map(_are_twins, pairs)) / len(pairs) if pairs else 0.0,
        unclosed={side: sum(map(_unclosed, texts)) / len(texts) for side, texts in enough.items()},
        piled={side: _piled(texts) for side, texts in enough.items()},
    )
    return replace(account, held_out_trained=seen, texts=texts)


def _unclosed(text: str) -> bool:
    return (bool(text) and text[-1] not in CLOSING and text[-1].isalnum()) or text.endswith(",")


def _piled(texts: Sequence[str]) -> float:
    """Share of the texts that have exactly the greatest number of words, or of characters, and do not end there."""
    measures: tuple[Callable[[str], int], ...] = (lambda text: len(text.split()), len)
    shares = [0.0]
    for measure in measures:
        sizes = [measure(text) for text in texts]
        most = max(sizes)
        longest = [text for text, size in zip(texts, sizes, strict=True) if size == most]
        open_ended = sum(_unclosed(text) and len(text.split()) >= SENTENCE for text in longest)
        if 2 * open_ended > len(longest):
            shares.append(open_ended / len(texts))
    return max(shares)


def _are_twins(pair: Pair) -> bool:
    chosen, rejected = text_of(pair.chosen).split(), text_of(pair.rejected).split()
    return len(chosen) == len(rejected) > 1 and sum(map(ne, chosen, rejected)) == 1


def _repeats(pairs: Sequence[Pair]) -> tuple[int, int]:
    """Pairs that repeat an earlier pair in either order, and those of them whose order is the rarer one."""
    orders: dict[tuple[object, frozenset[str]], Counter[str]] = defaultdict(Counter)
    for pair in pairs:
        chosen, rejected = text_of(pair.chosen), text_of(pair.rejected)
        orders[pair.prompt, frozenset((chosen, rejected))][chosen] += 1
    repeated = sum(counts.total() - 1 for counts in orders.values())
    return repeated, sum(counts.total() - max(counts.values()) for counts in orders.values())
