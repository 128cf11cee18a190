"""How long one thing takes: a call there and back, a pool from start to end, and doing nothing.

Run it: ``python -m benchmarks.roundtrip [--quick] [--rounds N] [--only WORD] [--json FILE]``
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pairpool
from benchmarks._harness import Case, Options, parse_options, run

MakePool = Callable[[int], Any]

IDLE = 3.0  # seconds in which an idle pool is watched


def increment(number: int) -> int:
    """Do next to nothing, so that what is measured is the pool."""
    return number + 1


def latency_of_apply(make_pool: MakePool, workers: int, calls: int) -> float:
    """Return the microseconds of a call in the middle of many, made one after another."""
    taken = []
    with make_pool(workers) as pool:
        for number in range(calls // 10):
            pool.apply(increment, (number,))
        for number in range(calls):
            begun = time.perf_counter_ns()
            pool.apply(increment, (number,))
            taken.append(time.perf_counter_ns() - begun)
    return statistics.median(taken) / 1000


def start_call_stop(make_pool: MakePool, workers: int) -> float:
    """Return the milliseconds from making a pool, over one call, to its end."""
    begun = time.perf_counter()
    with make_pool(workers) as pool:
        assert pool.apply(increment, (1,)) == 2
    pool.join()
    return (time.perf_counter() - begun) * 1000


def switches_while_idle(make_pool: MakePool, workers: int, seconds: float) -> float:
    """Return how often the threads and processes of an idle pool were switched to and from.

    All threads of this process count but the one that watches, and all its descendants.
    """
    with make_pool(workers) as pool:
        pool.map(increment, range(1000))
        time.sleep(0.5)  # until whoever was still busy has gone to sleep
        before = _switches()
        time.sleep(seconds)
        return _switches() - before


def _switches() -> int:
    """Return the sum of all context switches of this process's other threads and its descendants."""
    total = 0
    for pid in (os.getpid(), *_descendants(os.getpid())):
        for task in Path(f"/proc/{pid}/task").iterdir():
            if int(task.name) != threading.get_native_id():
                total += _switches_of(task)
    return total


def _switches_of(task: Path) -> int:
    lines = (task / "status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def _descendants(parent: int) -> Iterator[int]:
    """Yield the processes below a process: its children, and theirs."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(") ")[2]
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            if int(after_name.split()[1]) == parent:
                yield int(entry.name)
                yield from _descendants(int(entry.name))


def cases(options: Options) -> list[Case]:
    """Return what is measured; less of it where it has to be quick."""
    pools: dict[str, MakePool] = {
        "pairpool.Pool": pairpool.get_context("fork").Pool,
        "multiprocessing.Pool": multiprocessing.get_context("fork").Pool,
    }
    calls = 300 if options.quick else 3000
    idle = 0.5 if options.quick else IDLE

    def with_each(measure: Callable[..., float], *arguments: Any) -> dict[str, Callable[[], float]]:
        return {name: partial(measure, make, options.workers, *arguments) for name, make in pools.items()}

    return [
        Case("apply(f, (i,)), one after another, p50", "us", with_each(latency_of_apply, calls)),
        Case("start, one call, stop", "ms", with_each(start_call_stop)),
        Case(f"idle for {idle:g} seconds", "context switches", with_each(switches_while_idle, idle)),
    ]


if __name__ == "__main__":
    chosen = parse_options(__doc__)
    run(cases(chosen), chosen)
