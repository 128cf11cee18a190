"""What it costs when there is more: of data, of workers, of items."""

from __future__ import annotations

import os
import statistics
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks._harness import Case, Setting, Target
from benchmarks.latency import start_call_stop
from benchmarks.rivals import EXECUTOR, NO_SUCH_CALL, OURS, STDLIB, Adapter, LeftOut, Rival
from benchmarks.throughput import map_singly
from benchmarks.work import doze, echo, element, increment, report_start

MEGABYTE = 1_000_000
CALLER = 30 * MEGABYTE  # the resident memory of a program that grows its pool
GROWN = 128  # workers

SOME = (OURS, STDLIB, EXECUTOR)  # to measure all at every point would take too long


def function_with_array(rival: Rival, setting: Setting) -> float:
    """`map` over 60 items, chunksize=1, of a partial that carries a numpy array of 16 MB; from call to list.

    The pool is warm, but has not seen the array.
    """
    import numpy as np

    array = np.arange(setting.less(2 * MEGABYTE), dtype=np.float64)
    pool = rival.open(setting.workers)
    pool.map(increment, range(100), 1)
    begun = time.perf_counter()
    assert pool.map(partial(element, array), range(60), 1)[-1] == 59
    taken = time.perf_counter() - begun
    pool.close()
    return 60 / taken


def growth(rival: Rival, setting: Setting) -> float:
    """From the call that grows a pool of 2 to 128 workers until all are up, by worker.

    The caller has 30 MB of memory, and a map of items that sleep for 10 ms goes on meanwhile. A worker is up when it
    runs the pool's initializer.
    """
    added = setting.less(GROWN - 2)
    ballast = bytearray(max(0, CALLER - _resident_memory()))
    ballast[::4096] = b"!" * len(ballast[::4096])  # memory is there once it has been written to
    reading, writing = os.pipe()
    pool = rival.open(2, report_start, (writing,))
    if not pool.grows:
        pool.close()
        raise LeftOut(NO_SUCH_CALL)
    _read_exactly(reading, 2)
    stop = threading.Event()

    def map_on() -> None:
        while not stop.is_set():
            pool.map(doze, [0.01] * GROWN, 1)

    mapping = threading.Thread(target=map_on)
    mapping.start()
    try:
        time.sleep(0.1)
        begun = time.perf_counter()
        pool.grow(2, added)
        _read_exactly(reading, added)
        return (time.perf_counter() - begun) / added * 1000
    finally:
        stop.set()
        mapping.join()
        pool.close()


def _read_exactly(descriptor: int, count: int) -> None:
    while count:
        count -= len(os.read(descriptor, count))


def _resident_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def rate_by_workers(rival: Rival, setting: Setting) -> float:
    """`map` of 20 000 ints with chunksize=1, as in the table, with more and more workers, all of which are up."""
    reading, writing = os.pipe()

    def open_and_wait(workers: int) -> Adapter:
        pool = rival.open(workers, report_start, (writing,))
        pool.map(increment, [0])  # some start their workers only then
        _read_exactly(reading, workers)
        return pool

    return map_singly(replace(rival, open=open_and_wait), setting.with_workers(setting.point))


def start_by_workers(rival: Rival, setting: Setting) -> float:
    """Start, one call and stop, as in the table, with more and more workers."""
    return start_call_stop(rival, setting.with_workers(setting.point))


def rate_by_items(rival: Rival, setting: Setting) -> float:
    """`map` of more and more ints in default chunks, from call to list, by a pool that is warm."""
    pool = rival.open(setting.workers)
    if not pool.default_chunks:
        pool.close()
        raise LeftOut("its default chunk is one item")
    pool.map(increment, range(1000))
    begun = time.perf_counter()
    assert pool.map(increment, range(setting.point))[-1] == setting.point
    taken = time.perf_counter() - begun
    pool.close()
    return setting.point / taken


def call_by_payload(rival: Rival, setting: Setting) -> float:
    """`apply` with more and more bytes, which come back: the median of as many calls as fit into half a second."""
    payload = bytes(setting.point)
    pool = rival.open(setting.workers)
    pool.apply(echo, payload)
    taken: list[float] = []
    deadline = time.perf_counter() + setting.shorter(0.5)
    while len(taken) < 3 or time.perf_counter() < deadline:
        begun = time.perf_counter()
        assert len(pool.apply(echo, payload)) == setting.point
        taken.append(time.perf_counter() - begun)
    pool.close()
    return statistics.median(taken) * 1_000_000


WORKERS = (1, 2, 4, 16, 64, 256)

CASES = (
    Case(
        "function with an array of 16 MB, 60 items",
        "items/s",
        function_with_array,
        more_is_better=True,
        targets=(Target(50, STDLIB),),
    ),
    Case("growing from 2 to 128 workers", "ms/worker", growth, targets=(Target(0.5),)),
    Case(
        "map, chunksize=1, by workers",
        "items/s",
        rate_by_workers,
        more_is_better=True,
        rivals=SOME,
        axis="workers",
        points=WORKERS,
    ),
    Case("start, one call, stop, by workers", "ms", start_by_workers, rivals=SOME, axis="workers", points=WORKERS),
    Case(
        "map, default chunks, by items",
        "items/s",
        rate_by_items,
        more_is_better=True,
        rivals=SOME,
        axis="items",
        points=(1000, 10_000, 100_000, 1_000_000, 10_000_000),
    ),
    Case(
        "apply, there and back, by payload",
        "us",
        call_by_payload,
        rivals=SOME,
        axis="bytes",
        points=(1, 1000, 30_000, 100_000, MEGABYTE, 8 * MEGABYTE, 64 * MEGABYTE),
    ),
)
