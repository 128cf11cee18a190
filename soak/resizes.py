"""A thousand resizes while a map runs: each item runs once, each list is whole, and two workers are what two were.

What a resize costs for good is seen from 1.3 KiB or two objects on, and a single descriptor of all of them.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from soak._journal import STEP, Journal, nap, open_journal
from soak._part import MINUTE, Course, Part, make_pool

RESIZES = 1_000
MOST_WORKERS = 4
LONGEST_PAUSE = 0.01  # seconds between two resizes
ITEMS = range(1, 151)  # of a map; a millisecond each


class Maps:
    """One map after another, each checked when it is over."""

    def __init__(self, pool: Any, journal: Journal) -> None:
        self.count = 0
        self._pool = pool
        self._journal = journal
        self._running: Any = None

    def run_on(self) -> None:
        """Have one running."""
        if self._running is not None and self._running.ready():
            self.finish()
        if self._running is None:
            # Items that travel as they like, and chunks, which must stay whole.
            self._running = self._pool.map_async(nap, ITEMS, (None, 1, 7)[self.count % 3])
            self.count += 1

    def finish(self) -> None:
        """Await the one that runs, and check it."""
        assert self._running.get() == [-STEP * item for item in ITEMS]
        assert self._journal.take() == Counter(STEP * item for item in ITEMS), "items ran more or less than once"
        self._running = None


def work(course: Course) -> str:
    """Resize up and down at random moments of maps; read when there are two workers again."""
    resizes = course.scaled(RESIZES, least=20)
    with open_journal() as journal, make_pool(2, *journal.initializer) as pool:
        maps = Maps(pool, journal)
        for numbers in course.turns(resizes):
            for _ in numbers[1:]:
                maps.run_on()
                pool.resize(course.random.randint(1, MOST_WORKERS))
                time.sleep(course.random.uniform(0, LONGEST_PAUSE))
            maps.run_on()
            pool.resize(2)
            maps.finish()
            course.read(workers=2)
    return f"{resizes:,} resizes beside {maps.count:,} maps"


PART = Part("resizes", work, deadline=10 * MINUTE)
