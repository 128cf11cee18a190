"""A hundred thousand futures and as many asynchronous calls, each with callbacks: each is called back once.

One call in ten raises, which makes an error with its traceback and ends in the other callback. An object that one call
in 160 costs for good is seen, and 7 bytes of every call.
"""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future
from functools import partial
from typing import Any

from soak._part import MINUTE, Course, Part, make_pool

CALLS = 100_000  # of each kind
BURST = 250  # calls that are pending at once: with more, the memory that they lie in is moved by chance


class OddCallError(Exception):
    """What every tenth call raises, with its number."""


def negate(number: int) -> int:
    """Return -number; raise every tenth time."""
    if number % 10 == 0:
        raise OddCallError(number)
    return -number


class Tally:
    """Counts callbacks, of which so many are awaited."""

    def __init__(self, awaited: int) -> None:
        self.results: Counter[int] = Counter()
        self.errors: Counter[Any] = Counter()
        self._left = awaited
        self._all_came = threading.Event()
        self._lock = threading.Lock()  # a future that is done calls back in the caller's thread, others in the pool's

    def on_result(self, value: int) -> None:
        """Be called back with a result."""
        self._count(self.results, -value)

    def on_error(self, error: BaseException) -> None:
        """Be called back with an error."""
        # What a future's callback raises goes to a log, so what is odd is told by `check`.
        self._count(self.errors, error.args[0] if isinstance(error, OddCallError) else repr(error))

    def on_done(self, future: Future[int]) -> None:
        """Be called back by a future."""
        error = future.exception()
        if error is None:
            self.on_result(future.result())
        else:
            self.on_error(error)

    def _count(self, kind: Counter[Any], key: Any) -> None:
        with self._lock:
            kind[key] += 1
            self._left -= 1
            if self._left == 0:
                self._all_came.set()

    def check(self, numbers: range) -> None:
        """Wait until all have come, each once and to its own callback."""
        self._all_came.wait()  # and not for the pool: so it is the I/O thread that receives
        assert self.errors == Counter(number for number in numbers if number % 10 == 0)
        assert self.results == Counter(number for number in numbers if number % 10)


def submit(pool: Any, numbers: range) -> None:
    """Make futures with callbacks."""
    tally = Tally(len(numbers))
    for number in numbers:
        pool.submit(negate, number).add_done_callback(tally.on_done)
    tally.check(numbers)


def apply_async(pool: Any, numbers: range) -> None:
    """Make calls with callbacks."""
    tally = Tally(len(numbers))
    call = partial(pool.apply_async, negate, callback=tally.on_result, error_callback=tally.on_error)
    results = [call((number,)) for number in numbers]
    tally.check(numbers)
    for number, result in zip(numbers, results, strict=True):
        result.wait()  # it is ready after its callback has returned
        assert result.successful() == (number % 10 > 0)


def work(course: Course) -> str:
    """Make the calls, bursts of each kind in turn."""
    calls = course.scaled(CALLS)
    with make_pool(2) as pool:
        for numbers in course.turns(calls):
            for start in range(0, len(numbers), BURST):
                submit(pool, numbers[start : start + BURST])
                apply_async(pool, numbers[start : start + BURST])
            course.read(workers=2)
    return f"{calls:,} submits and {calls:,} apply_async"


PART = Part("submits", work, deadline=10 * MINUTE)
