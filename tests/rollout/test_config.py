"""The tables [rollout], [reward] and [value]: what contradicts itself or does nothing is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from preftune.rollout.config import OWN_REWARD, Reward, Rewards, Rollout, Value


def test_defaults() -> None:
    assert [Rollout(responses=k, tasks=t).phase_tasks for k, t in ((8, None), (5, None), (300, None), (8, 3))] == [
        32, 51, 1, 3,
    ]  # fmt: skip
    assert msgspec.convert({"verify": "number"}, Rewards) == Reward(verify="number")
    assert msgspec.convert([{"model": "m"}, {"function": "a.b:c"}], Rewards) == (
        Reward(model="m"),
        Reward(function="a.b:c"),
    )
    assert Value().warm_up == 0


GOOD: list[dict[str, Any]] = [
    {"function": "rewards.py:short"},
    {"function": "/a b/rewards.py:short"},
    {"function": "package.module:short"},
    {"judge": "judges.py:better"},
    {"judge": "http://127.0.0.1:8000/v1"},
    {"judge": "https://host/v1", "model": "name"},
    {"verify": "regex", "pattern": "a"},
    {"verify": "exact", "missing_end": 1.0, "weight": -2.0},
]


@pytest.mark.parametrize("table", GOOD, ids=str)
def test_good(table: dict[str, Any]) -> None:
    assert msgspec.convert(table, Reward).name


BAD: list[tuple[type, dict[str, Any], str]] = [
    (Reward, {}, "names nothing that scores"),
    (Reward, {"model": "m", "verify": "exact"}, "has model and verify"),
    (Reward, {"model": "m", "judge": "judges.py:f"}, "has model and judge"),
    (Reward, {"function": "short"}, "no rewards.py:name"),
    (Reward, {"function": "rewards.py"}, "no rewards.py:name"),
    (Reward, {"function": "../rewards:short"}, "no rewards.py:name"),
    (Reward, {"judge": "host:8000"}, "no address"),
    (Reward, {"judge": "ftp://host/"}, "no address"),
    (Reward, {"verify": "regex"}, "need each other"),
    (Reward, {"verify": "exact", "pattern": "a"}, "need each other"),
    (Reward, {"verify": "exact", "time_limit": 1.0}, "time_limit has no effect"),
    (Reward, {"verify": "exact", "missing_end_tokens": 9}, "no effect without missing_end"),
    (Reward, {"verify": "exact", "missing_end": -1.0}, "Expected `float` >= 0.0"),
    (Reward, {"judge": "judges.py:f", "weight": 2.0}, "gives no score"),
    (Reward, {"verify": "words"}, "Invalid enum value"),
    (Reward, {"modle": "m"}, "unknown field"),
    (Rollout, {"responses": 0}, ">= 1"),
    (Rollout, {"temperature": 0.0}, "> 0"),
    (Rollout, {"labels": "hard"}, "Invalid enum value"),
    (Value, {"lr": 0.0}, "> 0"),
]


@pytest.mark.parametrize(("kind", "table", "message"), BAD, ids=str)
def test_bad(kind: type, table: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(table, kind)


def test_a_callable_is_recorded_by_name_and_source() -> None:
    def short(prompt: object, responses: list[str], answer: str | None) -> list[float]:
        return [-len(text) for text in responses]

    assert OWN_REWARD.accepts(short)
    assert not OWN_REWARD.accepts(Reward(verify="exact"))
    assert not OWN_REWARD.accepts(Reward)
    recorded = OWN_REWARD.recorded(short)
    assert isinstance(recorded, dict)
    assert recorded["function"].endswith("short")
    assert len(recorded["source"]) == 64
    several = [short, Reward(verify="exact"), Reward(function=short, weight=0.5)]  # type: ignore[arg-type]
    assert OWN_REWARD.accepts(several)
    first, second, third = OWN_REWARD.recorded(several)  # type: ignore[misc]
    assert first == recorded
    assert second["verify"] == "exact"
    assert (third["function"], third["source"], third["weight"], third["verify"]) == (*recorded.values(), 0.5, None)
