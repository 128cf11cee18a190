"""A thousand pools are made, used once and ended in every way there is; after each few there is nothing left of them.

That is said twice: nothing may be left that was not there before (which is exact, and says what it is), and nothing
may grow. What a pool costs for good is seen from 1.3 KiB or two objects on; one that stays costs far more.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pairpool
from soak._part import MINUTE, Course, Part, borrow, make_pool

POOLS = 1_000
START_METHODS = ("fork",) * 8 + ("forkserver", "spawn")

holdings = borrow("holdings")


def increment(number: int) -> int:
    """Do next to nothing, so that what is worn is the pool."""
    return number + 1


USES: tuple[Callable[[Any], Any], ...] = (
    lambda pool: pool.map(increment, [1, 2, 3]),
    lambda pool: [pool.submit(increment, number) for number in (1, 2, 3)][2].result() - 2,
    lambda pool: list(pool.imap(increment, (number for number in (1, 2, 3)))),
    lambda pool: pool.apply(increment, (1,)),
)
"""What a pool is used for, once; a future is left pending or unread, as happens."""


def close(pool: pairpool.Pool) -> None:
    """End a pool when its work is done."""
    pool.close()
    pool.join()


def terminate(pool: pairpool.Pool) -> None:
    """End a pool at once."""
    pool.terminate()
    pool.join()


def leave(pool: pairpool.Pool) -> None:
    """End a pool by leaving its block."""
    with pool:
        pass


def forget(pool: pairpool.Pool) -> None:
    """Leave it to the collector; the caller holds it no longer, either."""


ENDINGS = (close, terminate, leave, forget)


def live(number: int) -> None:
    """Make, use and end the pool of this number."""
    pool = make_pool(2, start_method=START_METHODS[number % 10])
    assert USES[number // 4 % 4](pool) in (2, [2, 3, 4])
    # Moved on by one every ten, so that each start method meets each ending.
    ENDINGS[(number + number // 10) % 4](pool)


def work(course: Course) -> str:
    """Let pools live, one after another."""
    pools = course.scaled(POOLS, least=10)
    live(8)  # from here on the library keeps its fork server and its resource tracker
    live(9)
    before = holdings.Holdings.now()
    for numbers in course.turns(pools):
        for number in numbers:
            live(number)
        gc.collect()
        left = holdings.remains(before)
        assert left == [], f"pools {numbers} left behind: {', '.join(left)}"
        course.read(workers=0)
    return f"{pools:,} pools"


PART = Part("pools", work, deadline=15 * MINUTE)
