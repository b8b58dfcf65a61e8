"""Rows of every kind as examples of every kind: which response stands where, and with what weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import group
from msgspec.structs import replace

from preftune import objective as o
from preftune.forward.examples import Examples, class_weights, is_useful, mismatch, row_kinds
from preftune.objective.responses import Responses

# places: ranking 0 1 2, pair 3 4, good 5, bad 6, demo 7
GROUPS = [
    group([1], [10], [11], [12], kind="ranking", ranks=(2, 1, 1), weight=2.0),
    group([2], [20], [21, 22], preferred=0.75, weight=3.0),
    group([3], [30], kind="rating", good=True, weight=4.0),
    group([4], [40], kind="rating", good=False, weight=5.0),
    group([5], [50], kind="demo", weight=6.0),
]
LOGP = -torch.arange(8, dtype=torch.float64)


def examples(groups: list = GROUPS, logp: torch.Tensor = LOGP, **keys: object) -> Examples:
    return Examples(groups, Responses(logp, torch.ones_like(logp)), **keys)  # type: ignore[arg-type]


def positions(scores: Responses) -> list[int]:
    return (-scores.logp).int().tolist()


def test_pairs() -> None:
    """A ranking gives its weight to its pairs in equal shares; what has one response gives none."""
    pairs = examples().pairs
    assert (positions(pairs.chosen), positions(pairs.rejected)) == ([1, 2, 3], [0, 0, 4])
    assert pairs.weight.tolist() == [1, 1, 3]
    assert pairs.preferred.tolist() == [1, 1, 0.75]
    assert [examples().pairs_of(g) for g in GROUPS] == [2, 1, 0, 0, 0]


def test_pairs_of_the_best_only() -> None:
    ranked = [group([1], [10], [11], [12], kind="ranking", ranks=(1, 2, 3))]
    assert examples(ranked, LOGP[:3]).pairs_of(ranked[0]) == 3
    best = examples(ranked, LOGP[:3], rankings_as="best")
    assert best.pairs_of(ranked[0]) == 2
    assert (positions(best.pairs.chosen), positions(best.pairs.rejected)) == ([0, 0], [1, 2])
    assert best.pairs.weight.tolist() == [0.5, 0.5]


def test_each_pair_of_a_ranking_may_have_its_own_vote() -> None:
    votes = (0.9, 0.8, 0.7)  # of 1 over 0, 1 over 2 and 2 over 0, as the ranks order them
    ranked = [group([1], [10], [11], [12], kind="ranking", ranks=(3, 1, 2), preferred=votes), *GROUPS[1:2]]
    every = examples(ranked, LOGP[:5]).pairs
    assert list(zip(positions(every.chosen), positions(every.rejected), strict=True)) == [
        (1, 0),
        (1, 2),
        (2, 0),
        (3, 4),
    ]
    assert every.preferred.tolist() == [*votes, 0.75]
    best = examples(ranked, LOGP[:5], rankings_as="best").pairs
    assert best.preferred.tolist() == [0.9, 0.8, 0.75]
    short = [replace(ranked[0], preferred=votes[:2])]
    with pytest.raises(ValueError, match="shorter"):
        examples(short, LOGP[:3]).pairs.preferred  # noqa: B018


def test_a_group_is_even_where_all_of_its_votes_are() -> None:
    ranked = group([1], [10], [11], [12], kind="ranking", ranks=(1, 2, 3), preferred=(0.5, 0.5, 0.5))
    assert ranked.is_even
    assert not replace(ranked, preferred=(0.5, 0.5, 0.6)).is_even
    assert not is_useful(ranked, o.REBEL())
    assert is_useful(ranked, o.DPO())


def test_ratings() -> None:
    """A ranking gives each of its responses an equal share, and calls the best good: for those that read scores."""
    ratings = examples().ratings
    assert positions(ratings.responses) == [0, 1, 2, 3, 4, 5, 6]
    assert ratings.good.tolist() == [False, True, True, True, False, True, False]
    assert ratings.weight.tolist() == pytest.approx([2 / 3] * 3 + [1.5, 1.5, 4, 5])
    assert ratings.mismatched is None
    away = Responses(LOGP, LOGP)
    assert examples(mismatched=away).ratings.mismatched is away


def test_rankings() -> None:
    rankings = examples().rankings
    assert positions(rankings.responses) == [0, 1, 2, 3, 4]
    assert rankings.group.tolist() == [0, 0, 0, 1, 1]
    assert rankings.rank.tolist() == [2, 1, 1, 1, 2]
    assert rankings.weight.tolist() == [2, 3]


def test_demos() -> None:
    """The best of anything; two that share the first place share the weight, and a bad response is no example."""
    demos = examples().demos
    assert positions(demos.responses) == [1, 2, 3, 5, 7]
    assert demos.weight.tolist() == [1, 1, 3, 4, 6]


def test_sides() -> None:
    """Single responses stand with the side that they were called; a demo with chosen."""
    (chosen, chosen_weight), (rejected, rejected_weight) = examples().side_index
    assert (chosen.tolist(), rejected.tolist()) == ([1, 2, 3, 5, 7], [0, 0, 4, 6])
    assert (chosen_weight.tolist(), rejected_weight.tolist()) == ([1, 1, 3, 4, 6], [1, 1, 3, 5])


def test_a_response_that_nobody_called_bad_stands_with_the_good_ones() -> None:
    unlabelled = examples([group([6], [60], kind="rating", good=None)], LOGP[:1])
    assert [index.tolist() for index, _ in unlabelled.side_index] == [[0], []]
    assert len(unlabelled.demos.weight) == 1


def test_classes() -> None:
    assert class_weights(GROUPS) == (1.5 + 4, 1.5 + 5)
    assert class_weights([]) == (0, 0)


def test_scores_are_seen_where_all_rows_of_the_view_have_them() -> None:
    """A demo without a score takes none from the pairs; a pair without one takes it from all of them."""
    scores = Responses(LOGP[:5], torch.ones(5), score=torch.arange(5.0))
    made = [group([1], [10], [11], scores=(1.0, 0.0)), group([2], [20], kind="demo"), group([3], [30], [31])]
    seen = Examples(made[:2], scores[torch.arange(3)])
    assert seen.pairs.chosen.score.tolist() == [0]
    assert seen.pairs.rejected.score.tolist() == [1]
    assert seen.rankings.responses.score.tolist() == seen.ratings.responses.score.tolist() == [0, 1]
    lacking = Examples(made, scores)
    for view in (lacking.pairs.chosen, lacking.pairs.rejected, lacking.ratings.responses, lacking.rankings.responses):
        assert view.score is None
        assert len(view.logp) in (2, 4)


def test_row_kinds() -> None:
    """Only objectives that read scores, not labels, see a ranking as single responses."""
    assert row_kinds(o.DPO()) == ("pair", "ranking")
    assert row_kinds(o.KTO()) == row_kinds(o.BCO()) == row_kinds(o.APOZero()) == ("rating", "pair")
    assert row_kinds(o.QRPO()) == row_kinds(o.DRO()) == ("rating", "pair", "ranking")
    assert row_kinds(o.NCA()) == ("ranking", "pair")
    assert row_kinds(o.NLL()) == ("demo", "pair", "rating", "ranking")


def test_types_where_there_is_nothing() -> None:
    """An empty list of places is still one of integers, and weights have the scores' type."""
    empty = examples(GROUPS[2:], LOGP[:3].float())
    assert empty.pairs.weight.dtype == torch.float32
    assert examples().pairs.weight.dtype == torch.float64
    assert empty.rankings.group.dtype == torch.long
    assert len(empty.pairs.chosen.logp) == len(empty.rankings.weight) == 0


def test_everything_is_made_where_the_scores_are() -> None:
    meta = examples(GROUPS, LOGP.to("meta"))
    made = [*meta.pair_index, meta.ratings.good, meta.ratings.weight, meta.rankings.group, meta.demos.weight]
    assert {x.device.type for x in made} == {"meta"}


def paired(found: list) -> list[tuple[int, int]]:
    return [(int(g.prompt[0]), int(g.responses[0][0])) for g in found]


def test_mismatch() -> None:
    """Prompts 7, 7, 8: each response of 7 goes to another prompt, and one of 7 comes to 8."""
    groups = [group([7], [70], [71]), group([8], [80], kind="rating")]
    found = mismatch(groups, 100)
    assert paired(found) == [(7, 80), (8, 71)]  # of three responses two have one prompt, so one meets itself
    assert {g.kind for g in found} == {"demo"}
    assert [g.place for g in found] == [groups[0].place, groups[1].place]
    even = mismatch([group([9], [90], [91]), group([3], [30], [31])], 100)
    assert paired(even) == [(3, 90), (3, 91), (9, 30), (9, 31)]


def test_a_response_takes_the_weights_of_its_tokens_along() -> None:
    made = [group([n], [10 * n], kind="rating", columns={"weight": (np.array([n + 1], np.float32),)}) for n in (1, 2)]
    found = mismatch(made, 100)
    assert paired(found) == [(1, 20), (2, 10)]
    assert [g.column("weight")[0].tolist() for g in found] == [[3], [2]]
    pair = group([3], [30], [31], columns={"weight": tuple(np.array([w], np.float32) for w in (4, 5))})
    of_pairs = mismatch([pair, group([4], [40], [41], columns=pair.columns)], 100)
    assert paired(of_pairs) == [(3, 40), (3, 41), (4, 30), (4, 31)]
    assert [[w.tolist() for w in g.column("weight")] for g in of_pairs] == [[[4]], [[5]]] * 2
    assert mismatch([group([n], [n], kind="rating") for n in (1, 2)], 100)[0].columns == {}


def test_mismatch_goes_by_the_whole_prompt_and_not_by_the_order_of_rows() -> None:
    one = [group([5], [50], kind="rating"), group([6], [60], kind="rating"), group([5], [51], kind="rating")]
    assert paired(mismatch(one, 100)) == paired(mismatch([one[1], one[0], one[2]], 100))
    assert all(prompt != response // 10 for prompt, response in paired(mismatch(one, 100)))


@pytest.mark.parametrize(("longest", "sizes"), [(6, [6, 2]), (5, [2]), (2, [2]), (1, [])])
def test_mismatch_leaves_out_what_is_too_long(longest: int, sizes: list[int]) -> None:
    """Prompts of 3 and 1 tokens, responses of 1 and 3: exchanged they are 6 and 2 tokens."""
    groups = [group([1, 1, 1], [10], kind="rating"), group([2], [20, 21, 22], kind="rating")]
    assert [len(g.prompt) + len(g.responses[0]) for g in mismatch(groups, longest)] == sizes


def test_mismatch_of_nothing() -> None:
    assert mismatch([], 10) == []
    assert mismatch([group([1], [10], [11]), group([1], [20], [21])], 10) == []
