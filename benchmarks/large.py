"""What it costs when items and results are large: arrays there and back, one for all workers, and their memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._harness import BEST_OTHER, Case, Setting, Target
from benchmarks.footprint import descendants
from benchmarks.rivals import IN_PYTHON, OURS, STDLIB, Adapter, Rival
from benchmarks.work import echo, element, ends, negative, read_through

MEGABYTE = 1_000_000
MIB = 1 << 20
GIB = 1 << 30

SHARERS = 8  # workers that use one array
IN_FLOW = 2.0  # seconds in which arrays pass through while memory is watched
LOOKS = 40  # how often memory is looked at meanwhile


def rate_of_arrays(rival: Rival, setting: Setting, size: int, count: int) -> float:
    """Return the GiB/s, out and back, of so many arrays of so many bytes, each another one, by a warm pool."""
    arrays = _arrays(size, count)
    pool = rival.open(setting.workers)
    _import_numpy(pool, setting)
    _take_back(pool, arrays)
    begun = time.perf_counter()
    _take_back(pool, arrays)
    taken = time.perf_counter() - begun
    pool.close()
    return 2 * _bytes_of(arrays) / taken / GIB


def _arrays(size: int, count: int) -> list[Any]:
    """Return arrays of float64, each full of its number, so that all their memory is there before it is sent."""
    import numpy as np

    return [np.full(size // 8, number, dtype=np.float64) for number in range(count)]


def _import_numpy(pool: Adapter, setting: Setting) -> None:
    """Have each worker import numpy, where it is not forked from a process that has it."""
    _take_back(pool, _arrays(8, 8 * setting.workers))


def _bytes_of(arrays: list[Any]) -> int:
    return sum(array.nbytes for array in arrays)


def _take_back(pool: Adapter, arrays: list[Any]) -> None:
    """Send arrays and look at what comes back, each of which is dropped before the next is asked for."""
    results = pool.imap(echo, arrays)
    for number in range(len(arrays)):
        assert next(results)[-1] == number


def out_and_back_8_mb(rival: Rival, setting: Setting) -> float:
    """`imap` of 24 arrays of 8 MB with chunksize=1, which the worker gives back; bytes out and bytes back by time.

    Each array is another one, and the pool is warm: it has had all of them before. Each result is dropped before the
    next is asked for. Executors: `map` with chunksize=1, whose results are dropped as well; pebble: `map`; joblib:
    `return_as="generator"`.
    """
    return rate_of_arrays(rival, setting, setting.less(8 * MEGABYTE), setting.less(24))


def out_and_back_64_mb(rival: Rival, setting: Setting) -> float:
    """As with 8 MB, but 4 arrays of 64 MB."""
    return rate_of_arrays(rival, setting, setting.less(64 * MEGABYTE), setting.less(4))


def out_and_back_256_kb(rival: Rival, setting: Setting) -> float:
    """As with 8 MB, but 500 arrays of 256 KB."""
    return rate_of_arrays(rival, setting, 256_000, setting.less(500))


def one_way(rival: Rival, setting: Setting) -> float:
    """`imap` of 4 arrays of 64 MB with chunksize=1, of which the worker adds the first and the last element.

    The pool is warm: it has had the same arrays before.
    """
    return _rates_of_one_way(rival, setting)[0]


def one_way_by_memcpy(rival: Rival, setting: Setting) -> float:
    """The rate one way by that at which this process, just before, copies an array of 64 MB to another, both warm.

    The copying is `numpy.copyto`, the median of five; the bytes of the array count once.
    """
    ours, of_memory = _rates_of_one_way(rival, setting)
    return ours / of_memory


def _rates_of_one_way(rival: Rival, setting: Setting) -> tuple[float, float]:
    """Return the GiB/s of a pool that is sent arrays, and that of copying one in memory."""
    size, count = setting.less(64 * MEGABYTE), setting.less(4)
    arrays = _arrays(size, count)
    pool = rival.open(setting.workers)
    _import_numpy(pool, setting)
    _add_ends(pool, arrays)
    of_memory = _rate_of_memcpy(arrays[0])
    begun = time.perf_counter()
    _add_ends(pool, arrays)
    taken = time.perf_counter() - begun
    pool.close()
    return _bytes_of(arrays) / taken / GIB, of_memory


def _add_ends(pool: Adapter, arrays: list[Any]) -> None:
    assert list(pool.imap(ends, arrays)) == [2.0 * number for number in range(len(arrays))]


def _rate_of_memcpy(source: Any) -> float:
    import numpy as np

    target = source.copy()  # warm: its memory is there
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        np.copyto(target, source)
        taken.append(time.perf_counter() - begun)
    return float(source.nbytes / statistics.median(taken) / GIB)


def shared_by_workers(rival: Rival, setting: Setting) -> float:
    """`map` with chunksize=1 of 1 000 items that look at one array of 64 MB, by 8 workers that have not seen it.

    Ours shares the array (`pool.share`), which counts, and the function is a partial with its handle. That of the
    others carries the array itself, which most send with each item: they are given 2 items and then 8, and what the 8
    come to by item is their figure. Who takes hardly longer for 8 than for 2 is given all, and that counts.
    """
    import numpy as np

    count = setting.less(1000)
    pool = rival.open(SHARERS)
    pool.map(partial(element, np.arange(100.0)), range(100), 1)
    array = np.arange(setting.less(64 * MEGABYTE) // 8, dtype=np.float64)

    def time_of(items: int) -> float:
        begun = time.perf_counter()
        given: Any = pool.share(array) if pool.shares else array
        assert pool.map(partial(element, given), range(items), 1)[-1] == items - 1
        taken = time.perf_counter() - begun
        if pool.shares:
            given.close()
        return taken

    if pool.shares:
        rate = count / time_of(count)
    else:
        of_two, of_eight = time_of(2), time_of(8)
        rate = 8 / of_eight if of_eight > 1.5 * of_two else count / time_of(count)
    pool.close()
    return rate


def memory_of_shared(rival: Rival, setting: Setting) -> float:
    """How much memory of all workers one array of 64 MB is, which 8 of them share and have read, by its size.

    Memory is the proportional set size (PSS), what a process has mapped by the number of those that have it mapped:
    the sum over the workers, less what it was before. The pool is warm, and has not seen the array.
    """
    import numpy as np

    seconds = setting.shorter(0.1)
    pool = rival.open(SHARERS)
    warmed = _all_read(pool, np.ones(1000), seconds)
    before = sum(map(proportional_memory, warmed))
    array = np.ones(setting.less(64 * MEGABYTE) // 8)
    handle = pool.share(array)
    read = _all_read(pool, handle, seconds)
    grown = sum(map(proportional_memory, read)) - before
    assert read == warmed
    handle.close()
    pool.close()
    return grown / array.nbytes


def _all_read(pool: Adapter, array: Any, seconds: float) -> set[int]:
    """Have every worker read an array, and return their numbers."""
    read: set[int] = set()
    for _ in range(20):
        if len(read) < SHARERS:
            read |= set(pool.map(partial(read_through, array), [seconds] * SHARERS, 1))
    assert len(read) == SHARERS
    return read


def memory_in_flow(rival: Rival, setting: Setting) -> float:
    """How memory grows while arrays of 8 MB go through `imap` for 2 s, with as large a result each, which is dropped.

    A generator makes each array when it is asked for it. Memory is the proportional set size (PSS) of the caller and
    all processes below it, looked at 40 times: the most after the first quarter of the time, less the most within it.
    """
    import numpy as np

    seconds = setting.shorter(IN_FLOW)
    elements = setting.less(MEGABYTE)
    pool = rival.open(setting.workers)
    assert sum(result[0] for result in pool.imap(negative, (np.ones(elements) for _ in range(8)))) == -8
    begun = time.perf_counter()

    def arrays() -> Iterator[Any]:
        while time.perf_counter() - begun < seconds:
            yield np.ones(elements)

    early, late = _watched(pool.imap(negative, arrays()), begun, seconds)
    pool.close()
    return max(0, late - early) / MIB


def _watched(results: Iterable[Any], begun: float, seconds: float) -> tuple[int, int]:
    """Drop results as they come, and return the most memory in the first quarter of some time, and in the rest."""
    most = [_memory_of_all(), 0]
    looks = 0
    for result in results:
        assert result[-1] == -1
        del result  # before the next is waited for
        passed = (time.perf_counter() - begun) / seconds
        if passed * LOOKS > looks:
            looks += 1
            rest = passed > 0.25
            most[rest] = max(most[rest], _memory_of_all())
    most[1] = max(most[1], _memory_of_all())
    return most[0], most[1]


def _memory_of_all() -> int:
    """Return the bytes of this process and all below it, in which each page counts once."""
    return sum(proportional_memory(pid) for pid in (os.getpid(), *descendants(os.getpid())))


def proportional_memory(pid: int) -> int:
    """Return the bytes of a process, each page by the number of processes that have it; none for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def rate_by_size(rival: Rival, setting: Setting) -> float:
    """`imap` of arrays of more and more bytes, out and back, as in the table: 64 MiB of them, but 2 to 1 000."""
    return rate_of_arrays(rival, setting, setting.point, setting.less(max(2, min(1000, 64 * MIB // setting.point))))


def bytes_by_size(rival: Rival, setting: Setting) -> float:
    """`map` of 1 000 `bytes` with chunksize=1, which the worker gives back; bytes out and bytes back by time."""
    payloads = [bytes([number % 256]) * setting.point for number in range(setting.less(1000))]
    pool = rival.open(setting.workers)
    pool.map(echo, payloads[:100], 1)
    begun = time.perf_counter()
    back = pool.map(echo, payloads, 1)
    taken = time.perf_counter() - begun
    pool.close()
    assert back == payloads
    return 2 * len(payloads) * setting.point / taken / GIB


CASES = (
    Case(
        "arrays of 8 MB, out and back",
        "GiB/s",
        out_and_back_8_mb,
        more_is_better=True,
        targets=(Target(6, STDLIB), Target(3, BEST_OTHER)),
    ),
    Case(
        "arrays of 64 MB, out and back",
        "GiB/s",
        out_and_back_64_mb,
        more_is_better=True,
        targets=(Target(8, STDLIB),),
        slow=True,
    ),
    Case("arrays of 64 MB, one way", "GiB/s", one_way, more_is_better=True, targets=(Target(15, STDLIB),), slow=True),
    Case(
        "arrays of 64 MB, one way, by memcpy",
        "x memcpy",
        one_way_by_memcpy,
        more_is_better=True,
        targets=(Target(0.6),),
        rivals=(OURS, IN_PYTHON, STDLIB),
        slow=True,
    ),
    Case(
        "arrays of 256 KB, out and back",
        "GiB/s",
        out_and_back_256_kb,
        more_is_better=True,
        targets=(Target(6, STDLIB),),
    ),
    Case(
        "array of 64 MB shared by 8 workers",
        "items/s",
        shared_by_workers,
        more_is_better=True,
        targets=(Target(50, STDLIB),),
        slow=True,
    ),
    Case(
        "memory of an array shared by 8 workers",
        "copies",
        memory_of_shared,
        targets=(Target(1.2),),
        rivals=(OURS, IN_PYTHON, STDLIB),
        slow=True,
    ),
    Case(
        "memory while arrays of 8 MB pass through imap",
        "MiB",
        memory_in_flow,
        targets=(Target(64),),
        rivals=(OURS, IN_PYTHON, STDLIB, "mpire", "joblib"),  # executors and pebble ask for all items at once
        slow=True,
    ),
    Case(
        "arrays out and back, by size",
        "GiB/s",
        rate_by_size,
        more_is_better=True,
        axis="bytes of an array",
        points=(1 << 10, 1 << 13, 1 << 16, 1 << 18, 1 << 20, 1 << 23, 1 << 26),
        slow=True,
    ),
    Case(
        "bytes out and back, by size",
        "GiB/s",
        bytes_by_size,
        more_is_better=True,
        axis="bytes",
        points=(1000, 4000, 16_000, 64_000),
        slow=True,
    ),
)
