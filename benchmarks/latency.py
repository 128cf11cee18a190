"""How long one thing takes: a call there and back, and a pool from start to end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks._harness import Case, Setting, Target
from benchmarks.rivals import STDLIB, Rival
from benchmarks.work import increment

IDLE = 0.002  # seconds between two calls of a caller that has something else to do
START_FOR = 1.0  # seconds in which pools are started, ten at most


def median_call(rival: Rival, setting: Setting, calls: int, between: Callable[[], None]) -> float:
    """Return the microseconds of a call in the middle of many, with something to do between them."""
    taken = []
    pool = rival.open(setting.workers)
    for number in range(calls // 10):
        pool.apply(increment, number)
    for number in range(calls):
        between()
        begun = time.perf_counter_ns()
        pool.apply(increment, number)
        taken.append(time.perf_counter_ns() - begun)
    pool.close()
    return statistics.median(taken) / 1000


def apply_at_once(rival: Rival, setting: Setting) -> float:
    """The median of 3 000 calls of `apply` one after another (executors: `submit().result()`)."""
    return median_call(rival, setting, setting.less(3000), lambda: None)


def apply_after_idling(rival: Rival, setting: Setting) -> float:
    """The median of 300 calls of `apply`, before each of which the caller sleeps for 2 ms, which do not count."""
    return median_call(rival, setting, setting.less(300), lambda: time.sleep(IDLE))


def start_call_stop(rival: Rival, setting: Setting) -> float:
    """From making a pool, over one `apply`, to the end of its workers; median of ten, after one for the imports."""
    taken: list[float] = []
    begun_all = time.perf_counter()
    while len(taken) < 2 or (len(taken) <= 10 and time.perf_counter() - begun_all < setting.shorter(START_FOR)):
        begun = time.perf_counter()
        pool = rival.open(setting.workers)
        assert pool.apply(increment, 1) == 2
        pool.close()
        taken.append((time.perf_counter() - begun) * 1000)
    return statistics.median(taken[1:])


CASES = (
    Case("apply, one after another, p50", "us", apply_at_once, targets=(Target(0.1, STDLIB),)),
    Case("apply after 2 ms idle, p50", "us", apply_after_idling, targets=(Target(0.25, STDLIB),)),
    Case("start, one call, stop", "ms", start_call_stop, targets=(Target(0.3, STDLIB),)),
)
