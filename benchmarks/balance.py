"""Whether workers have something to do, and whether what is queued gets its turn."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from benchmarks._harness import Case, Setting, Target
from benchmarks.rivals import STDLIB, Adapter, Rival
from benchmarks.work import compute, increment, now

ITEM = 0.0002  # seconds
LONG = 0.001  # seconds
SHORTEST = 0.0002  # seconds that the shortest of the heavy-tailed items takes
SLOW = 0.5  # seconds
AHEAD = 0.05  # seconds after which a map is well under way


def busy_beside_caller(rival: Rival, setting: Setting) -> float:
    """The share of the workers' time in which items run, while the caller computes in Python for each result.

    5 000 items of 200 us go through `imap_unordered`, chunksize=1; for each result the caller computes for as long as
    half the time in which another comes when all workers are busy. An item's time is taken in the worker.
    """
    count = setting.less(5000)
    pool = rival.open(setting.workers)
    sum(pool.imap_unordered(compute, [ITEM] * max(1, count // 20)))
    busy, taken = 0.0, 0.0
    begun = time.perf_counter()
    for taken in pool.imap_unordered(compute, [ITEM] * count):
        busy += taken
        compute(ITEM / setting.workers / 2)
    taken_by_all = setting.workers * (time.perf_counter() - begun)
    pool.close()
    return busy / taken_by_all


def heavy_tail(rival: Rival, setting: Setting) -> float:
    """The ideal time by the real one of `map` of 3 000 items, default chunks, whose durations are Pareto(1.3).

    The durations, of 0.2 ms and more, are the same for all. Ideal is what all items took, as taken in the workers, by
    the number of workers; or the longest item where that is more.
    """
    chance = random.Random(1)
    durations = [SHORTEST * chance.paretovariate(1.3) for _ in range(setting.less(3000))]
    pool = rival.open(setting.workers)
    pool.map(compute, [SHORTEST] * 100)
    begun = time.perf_counter()
    taken: list[float] = pool.map(compute, durations)
    real = time.perf_counter() - begun
    pool.close()
    return max(sum(taken) / setting.workers, *taken) / real


def single_beside_map(rival: Rival, setting: Setting) -> float:
    """From the call of `apply_async` to the start of that one item, 50 ms after a map of a million ints has begun.

    The map is in default chunks, and begun by `map_async`.
    """
    count = setting.less(1_000_000)
    pool = rival.open(setting.workers)
    pool.map(increment, range(1000))
    wait_for_map = pool.map_async(increment, range(count))
    return _start_beside(wait_for_map, pool, setting)


def single_beside_long_items(rival: Rival, setting: Setting) -> float:
    """From the call of `apply_async` to the start of that one item, beside a map of items of a millisecond.

    The map takes a second, is in default chunks, and was begun 50 ms before by `map_async`.
    """
    pool = rival.open(setting.workers)
    pool.map(compute, [LONG] * 100)
    wait_for_map = pool.map_async(compute, [LONG] * setting.less(1000 * setting.workers))
    return _start_beside(wait_for_map, pool, setting)


def _start_beside(wait_for_map: Callable[[], Any], pool: Adapter, setting: Setting) -> float:
    """Return after how many ms an item starts that is called for when a map is well under way."""
    time.sleep(setting.shorter(AHEAD))
    called = time.perf_counter()
    started: float = pool.call_later(now)()
    wait_for_map()
    pool.close()
    return (started - called) * 1000


def quick_beside_slow(rival: Rival, setting: Setting) -> float:
    """The time until 1 000 tiny calls are done, amid which is one of half a second, which does not count."""
    count = setting.less(1000) // 2
    pool = rival.open(setting.workers)
    for wait in [pool.call_later(increment, number) for number in range(count)]:
        wait()
    begun = time.perf_counter()
    quick = [pool.call_later(increment, number) for number in range(count)]
    wait_for_slow = pool.call_later(compute, setting.shorter(SLOW))
    quick += [pool.call_later(increment, number) for number in range(count)]
    for wait in quick:
        wait()
    taken = time.perf_counter() - begun
    wait_for_slow()
    pool.close()
    return taken * 1000


CASES = (
    Case(
        "worker time used beside a computing caller",
        "share",
        busy_beside_caller,
        more_is_better=True,
        targets=(Target(1.3, STDLIB),),
    ),
    Case("heavy-tailed durations", "share of ideal", heavy_tail, more_is_better=True, targets=(Target(0.98),)),
    Case("start of one item beside a map of a million", "ms", single_beside_map),
    Case("start of one item beside a map of long items", "ms", single_beside_long_items),
    Case("1 000 tiny calls beside a slow one", "ms", quick_beside_slow),
)
