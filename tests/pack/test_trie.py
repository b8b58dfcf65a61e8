"""The trie against its definition: one row a distinct prefix, and visibility is ancestry."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import group, groups

from preftune.pack.batch import Reads, collate
from preftune.pack.trie import blocks, build, distinct_tokens, visible

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12)


@given(SEQUENCES)
@settings(max_examples=200, deadline=None)
def test_one_row_a_distinct_prefix(sequences: list[list[int]]) -> None:
    trie = build([np.array(s) for s in sequences])
    prefixes = {tuple(s[: n + 1]) for s in sequences for n in range(len(s))}
    assert trie.tokens == len(prefixes) == distinct_tokens([np.array(s) for s in sequences])
    for sequence, path in zip(sequences, trie.paths, strict=True):
        assert trie.ids[path].tolist() == sequence
        assert trie.position[path].tolist() == list(range(len(sequence)))


def ancestry(trie) -> torch.Tensor:
    sees = torch.zeros(trie.tokens, trie.tokens, dtype=torch.bool)
    for path in trie.paths:
        for depth, row in enumerate(path):
            sees[row, path[: depth + 1]] = True
    return sees


@given(SEQUENCES)
@settings(max_examples=200, deadline=None)
def test_the_one_line_is_ancestry(sequences: list[list[int]]) -> None:
    trie = build([np.array(s) for s in sequences])
    row, end = torch.arange(trie.tokens), torch.from_numpy(trie.end)
    assert torch.equal(visible(row[:, None], row[None, :], end), ancestry(trie))


@given(SEQUENCES, st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_blocks_cover_every_visible_pair_once(sequences: list[list[int]], max_rows: int) -> None:
    trie = build([np.array(s) for s in sequences])
    sees = ancestry(trie)
    covered = torch.zeros(sees.shape, dtype=torch.int64)
    last = 0
    for block in blocks(trie, max_rows):
        assert block.start == last
        assert 0 < block.stop - block.start <= max_rows
        rows, last = slice(block.start, block.stop), block.stop
        covered[rows, torch.from_numpy(block.ancestors)] += 1
        covered[rows, rows] += sees[rows, rows]
        assert len({trie.position[p] for p in range(block.start, block.stop) if trie.position[p] == 0}) <= 1
    assert last == trie.tokens
    assert torch.equal(covered, sees.long())


def test_a_batch_scores_every_token_of_every_response_and_no_other() -> None:
    made = groups(5, seed=3, shared=4)
    made += made[:1]  # a repeated row costs nothing
    batch = collate(made)
    assert batch.responses == 12
    assert len(batch.member) == sum(len(r) for g in made for r in g.responses)
    assert batch.target[batch.member].tolist() == [int(t) for g in made for r in g.responses for t in r]
    assert len(batch.target) < len(batch.member)  # the repeated row's tokens are scored once
    sequences = [np.concatenate([g.prompt, r])[:-1] for g in made for r in g.responses]
    assert batch.tokens == distinct_tokens(sequences)
    assert sum(group.tokens_naive for group in batch.groups) == sum(len(s) + 1 for s in sequences)
    counts = batch.sum(torch.ones(len(batch.member)))
    assert counts.tolist() == [len(r) for g in made for r in g.responses]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.sets(st.integers(1, 14), max_size=3), st.integers(1, 5),
       st.sampled_from(["tokens", "ends"]))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_no_forward_pass_has_rows_of_two_classes_of_length(
    lengths: list[int], limits: set[int], multiple: int, reads: Reads
) -> None:
    """And whatever the classes, a pack says which token follows which path of every response."""
    made = [group([3, n % 3], range(4, 4 + n), range(5, 5 + n // 2 + 1)) for n in lengths]
    bounds = sorted(limits)
    batch = collate(made, multiple=multiple, reads=reads, limits=bounds)
    sequences = [(g.prompt, r) for g in made for r in g.responses]
    assert len(batch.passes) == len({bisect_left(bounds, len(p) + len(r)) for p, r in sequences})
    assert sum(part.responses for part in batch.passes) == batch.responses == len(sequences)
    assert batch.tokens == sum(part.trie.tokens for part in batch.passes)
    for part in batch.passes:
        longest = {bisect_left(bounds, len(path) + (reads == "tokens")) for path in part.trie.paths}
        whole = {bisect_left(bounds, len(path)) for path in part.trie.paths}
        assert len(longest) == 1 or len(whole) == 1
    row, ids = batch.source[batch.member], batch.ids
    for number, ((prompt, response), path) in enumerate(zip(sequences, batch.trie.paths, strict=True)):
        members = batch.response == number
        last = len(prompt) + len(response)
        first = len(prompt) - 1 if reads == "tokens" else last - 1
        assert batch.target[batch.member][members].tolist() == response[-int(members.sum()) :].tolist()
        assert row[members].tolist() == path[first : first + int(members.sum())].tolist()
        assert ids[path].tolist() == [*prompt, *response][: len(path)]
