"""Calls of a user's async function, all at once. Held by tests/rollout/test_together.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from preftune.rollout.functions import Function, call, out_of_time, raised

BLOCKED = 1.0  # seconds beyond its limit after which a call that never gives way to the others is ended


def call_together(
    function: Function, calls: Sequence[tuple[str, Callable[[], Awaitable[Any]]]], time_limit: float
) -> list[Any]:
    """What each call returns, in their order. calls: each with its task's place.

    Raises UserError where one raises, exits or takes longer than time_limit seconds from their common start.
    """

    async def result_of(place: str, work: Callable[[], Awaitable[Any]]) -> Any:
        limit = asyncio.timeout(time_limit)
        try:
            async with limit:
                return await work()
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():  # else it is one of the function's own
                raise out_of_time(function, time_limit, place) from error
            raise raised(function, error, place) from error

    async def results() -> list[Any]:
        return await asyncio.gather(*(result_of(place, work) for place, work in calls))

    def run() -> list[Any]:
        return asyncio.run(results())

    return call(function, _outside_of_loops(run), time_limit + BLOCKED, calls[0][0]) if calls else []


def _outside_of_loops(run: Callable[[], list[Any]]) -> Callable[[], list[Any]]:
    """The same work, in a thread of its own where this one runs a loop already, as a notebook does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run

    def elsewhere() -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(run).result()

    return elsewhere
