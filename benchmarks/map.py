"""How many tasks a second: maps, iterators, and calls by the thousand.

Run it: ``python -m benchmarks.map [--quick] [--rounds N] [--only WORD] [--json FILE]``
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import pairpool
from benchmarks._harness import Case, Options, parse_options, run


def increment(number: int) -> int:
    """Do next to nothing, so that what is measured is the pool."""
    return number + 1


Work = Callable[[Any, int], None]
"""Do so many tasks with a pool."""


def rate_of(make_pool: Callable[[], Any], work: Work, count: int) -> float:
    """Return how many tasks a second a pool does that is up and warm."""
    with make_pool() as pool:
        warm_up(pool)
        begun = time.perf_counter()
        work(pool, count)
        return count / (time.perf_counter() - begun)


def warm_up(pool: Any) -> None:
    """Have every worker started and the function known to it."""
    list(pool.map(increment, range(1000), chunksize=1))


def map_singly(pool: Any, count: int) -> None:
    """Map with chunksize=1, as programs do whose items differ in length."""
    assert pool.map(increment, range(count), chunksize=1)[-1] == count


def map_in_default_chunks(pool: Any, count: int) -> None:
    """Map with the default chunksize."""
    assert pool.map(increment, range(count))[-1] == count


def imap_unordered(pool: Any, count: int) -> None:
    """Iterate over results as they come, with chunksize=1."""
    assert sum(pool.imap_unordered(increment, range(count))) == count * (count + 1) // 2


def apply_async(pool: Any, count: int) -> None:
    """Make many calls, and get their results afterwards."""
    results = [pool.apply_async(increment, (number,)) for number in range(count)]
    assert [result.get() for result in results][-1] == count


def submit(pool: Any, count: int) -> None:
    """Make many calls that give futures, and get their results afterwards."""
    futures = [pool.submit(increment, number) for number in range(count)]
    assert [future.result() for future in futures][-1] == count


def cases(options: Options) -> list[Case]:
    """Return what is measured; a tenth of the items where it has to be quick."""
    ours = partial(pairpool.get_context("fork").Pool, options.workers)
    theirs = partial(multiprocessing.get_context("fork").Pool, options.workers)
    executor = partial(ProcessPoolExecutor, options.workers, mp_context=multiprocessing.get_context("fork"))
    share = 10 if options.quick else 1

    def case(title: str, work: Work, count: int, rival: str, make_rival: Callable[[], Any]) -> Case:
        rivals = {
            "pairpool.Pool": partial(rate_of, ours, work, count // share),
            rival: partial(rate_of, make_rival, work, count // share),
        }
        return Case(title, "tasks/s", rivals, more_is_better=True)

    pool = ("multiprocessing.Pool", theirs)
    return [
        case("map(f, range(20_000), chunksize=1)", map_singly, 20_000, *pool),
        case("map(f, range(500_000))", map_in_default_chunks, 500_000, *pool),
        case("imap_unordered(f, range(20_000))", imap_unordered, 20_000, *pool),
        case("10_000 apply_async, then get", apply_async, 10_000, *pool),
        case("10_000 submit, then result", submit, 10_000, "ProcessPoolExecutor", executor),
    ]


if __name__ == "__main__":
    chosen = parse_options(__doc__)
    run(cases(chosen), chosen)
