"""Items and results of all sizes from nothing to 300 KB through one pool: each is what it should be, and nothing grows.

So many ways do they travel: inside a message, together in a slab, in one of their own, by way of an outbox that is full
again and again. Which are next to each other is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from soak._part import MINUTE, Course, Part, make_pool
from soak.arrays import give_back_soon, wait_until_slabs_are_gone

ITEMS = 300_000
PIECE = 100
LARGEST = 300_000  # bytes
MEMORY = 16_384  # bytes from which on what is freed is given back at once

Item = tuple[int, bytes, int]  # its number, what it carries, and the size of its result


def of(number: int, size: int) -> bytes:
    """Make so many bytes that tell their number."""
    return number.to_bytes(4, "little") * (size // 4)


def answer(item: Item) -> bytes:
    """Look at what came, and return something of another size."""
    number, data, size = item
    assert data == of(number, len(data)), f"item {number} arrived as another"
    return of(number, size)


WAYS: tuple[Callable[[Any, list[Item]], list[bytes]], ...] = (
    lambda pool, items: list(pool.map(answer, items)),
    lambda pool, items: list(pool.map(answer, items, 1)),
    lambda pool, items: list(pool.map(answer, items, 7)),
    lambda pool, items: list(pool.imap(answer, items)),
    lambda pool, items: list(pool.imap(answer, (item for item in items), 3)),
    lambda pool, items: list(pool.imap(answer, items, buffersize=20)),
    lambda pool, items: [result.get() for result in [pool.apply_async(answer, (item,)) for item in items]],
    lambda pool, items: [future.result() for future in [pool.submit(answer, item) for item in items]],
    lambda pool, items: [pool.apply(answer, (item,)) for item in items],
)


def drawn(random: Random) -> int:
    """Draw a size: as many between 10 and 100 as between 10 000 and 100 000."""
    return int(LARGEST ** random.random()) // 4 * 4


def work(course: Course) -> str:
    """Send piece after piece, each by the next way."""
    give_back_soon(MEMORY)
    count = course.scaled(ITEMS)
    with make_pool(2) as pool:
        for numbers in course.turns(count):
            for start in range(0, len(numbers), PIECE):
                piece = numbers[start : start + PIECE]
                items = [(number, of(number, drawn(course.random)), drawn(course.random)) for number in piece]
                found = WAYS[start // PIECE % len(WAYS)](pool, items)
                assert found == [of(number, size) for number, _, size in items], f"not what {piece} should have become"
            items, found = [], []
            wait_until_slabs_are_gone()
            course.read(workers=2)
    return f"{count:,} items of 0 to {LARGEST:,} bytes"


PART = Part("sizes", work, deadline=10 * MINUTE)
