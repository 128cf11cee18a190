"""How many tasks a second, of a pool that is up and warm."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks._harness import Case, Setting, Target
from benchmarks.rivals import EXECUTOR, IN_PYTHON, STDLIB, Adapter, LeftOut, Rival
from benchmarks.work import increment, value_of

Work = Callable[[Adapter, Sequence[Any]], None]
"""Do a task with each item, in a pool."""


def rate_of(
    rival: Rival, setting: Setting, work: Work, count: int, items_of: Callable[[int], Sequence[Any]] = range
) -> float:
    """Return how many tasks a second a pool does that has done some of the same work before.

    `items_of` makes so many items; that does not count.
    """
    count = setting.less(count)
    items = items_of(count)
    pool = rival.open(setting.workers)
    work(pool, items[: max(1, count // 20)])
    begun = time.perf_counter()
    work(pool, items)
    taken = time.perf_counter() - begun
    pool.close()
    return count / taken


def map_singly(rival: Rival, setting: Setting) -> float:
    """`map` of 20 000 ints with chunksize=1, as programs do whose items differ in length; from call to list."""

    def work(pool: Adapter, items: Sequence[Any]) -> None:
        assert pool.map(increment, items, 1)[-1] == len(items)

    return rate_of(rival, setting, work, 20_000)


def imap_unordered(rival: Rival, setting: Setting) -> float:
    """`imap_unordered` of 20 000 ints with chunksize=1, from call to last result."""

    def work(pool: Adapter, items: Sequence[Any]) -> None:
        assert sum(pool.imap_unordered(increment, items)) == len(items) * (len(items) + 1) // 2

    return rate_of(rival, setting, work, 20_000)


def map_in_default_chunks(rival: Rival, setting: Setting) -> float:
    """`map` of 500 000 ints without a chunksize, from call to list. Left out are pools whose default chunk is one."""

    def work(pool: Adapter, items: Sequence[Any]) -> None:
        if not pool.default_chunks:
            raise LeftOut("its default chunk is one item")
        assert pool.map(increment, items)[-1] == len(items)

    return rate_of(rival, setting, work, 500_000)


def map_dicts(rival: Rival, setting: Setting) -> float:
    """`map` of a list of 20 000 dicts of three entries with chunksize=1, all different."""

    def dicts(count: int) -> list[dict[str, Any]]:
        return [{"name": f"item {number}", "value": number, "done": False} for number in range(count)]

    def work(pool: Adapter, items: Sequence[Any]) -> None:
        assert pool.map(value_of, items, 1)[-1] == len(items) - 1

    return rate_of(rival, setting, work, 20_000, dicts)


def apply_async(rival: Rival, setting: Setting) -> float:
    """10 000 calls of `apply_async`, then `get` of all, in order; both count."""

    def work(pool: Adapter, items: Sequence[Any]) -> None:
        waits = [pool.apply_async(increment, number) for number in items]
        assert [wait() for wait in waits][-1] == len(items)

    return rate_of(rival, setting, work, 10_000)


def submit(rival: Rival, setting: Setting) -> float:
    """10 000 calls of `submit` (pebble: `schedule`), then the `result` of each future, in order; both count."""

    def work(pool: Adapter, items: Sequence[Any]) -> None:
        waits = [pool.submit(increment, number) for number in items]
        assert [wait() for wait in waits][-1] == len(items)

    return rate_of(rival, setting, work, 10_000)


CASES = (
    Case(
        "map, chunksize=1",
        "items/s",
        map_singly,
        more_is_better=True,
        targets=(Target(40, STDLIB), Target(15, STDLIB, of=IN_PYTHON)),
    ),
    Case("imap_unordered, chunksize=1", "items/s", imap_unordered, more_is_better=True, targets=(Target(20, STDLIB),)),
    Case("map, default chunks", "items/s", map_in_default_chunks, more_is_better=True, targets=(Target(1, STDLIB),)),
    Case("map of dicts, chunksize=1", "items/s", map_dicts, more_is_better=True, targets=(Target(15, STDLIB),)),
    Case("apply_async, then get", "tasks/s", apply_async, more_is_better=True, targets=(Target(8, STDLIB),)),
    Case("submit, then result", "tasks/s", submit, more_is_better=True, targets=(Target(20, EXECUTOR),)),
)
