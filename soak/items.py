"""Ten million tiny items through one pool: every result comes once and in its place, and nothing grows.

An object that one item in 8 000 costs for good is seen; memory by other ways at an eighth of a byte an item.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

from soak._part import MINUTE, Course, Part, make_pool

ITEMS = 10_000_000
# Results that the caller has not taken yet lie in his memory, and how many there are at most is chance. With pieces
# of 12 500 that made 17 to 23 MiB, without a trend over 160 million items.
PIECE = 2_500


def increment(number: int) -> int:
    """Do next to nothing, so that what is worn is the pool."""
    return number + 1


# With and without a chunksize; from a range, which is cut as it is, and from a generator, which a feeder thread pulls.
WAYS: tuple[Callable[[Any, range], list[int]], ...] = (
    lambda pool, numbers: list(pool.map(increment, numbers, 1)),
    lambda pool, numbers: list(pool.map(increment, numbers)),
    lambda pool, numbers: list(pool.map(increment, (number for number in numbers))),
    lambda pool, numbers: list(pool.imap(increment, numbers)),
    lambda pool, numbers: list(pool.imap(increment, numbers, 64)),
    lambda pool, numbers: list(pool.imap(increment, (number for number in numbers))),
    lambda pool, numbers: sorted(pool.imap_unordered(increment, numbers)),
    lambda pool, numbers: sorted(pool.imap_unordered(increment, (number for number in numbers), 64)),
)


def work(course: Course) -> str:
    """Send piece after piece, each by the next way."""
    items = course.scaled(ITEMS)
    ways = cycle(WAYS)
    with make_pool(2) as pool:
        for numbers in course.turns(items):
            for start in range(0, len(numbers), PIECE):
                piece = numbers[start : start + PIECE]
                assert next(ways)(pool, piece) == [*map(increment, piece)], f"{piece} gave other results"
            course.read(workers=2)
    return f"{items:,} items"


PART = Part("items", work, deadline=15 * MINUTE)
