"""Sets of whole numbers as tuples of ranges, in order and without neighbours: units that came back."""

from __future__ import annotations

from bisect import bisect_left

Range = tuple[int, int]  # first, and one past the last


def including(ranges: tuple[Range, ...], more: tuple[Range, ...]) -> tuple[Range, ...]:
    """The ranges, which are in order, and more; neighbours become one, so that there are never many."""
    for start, stop in more:
        ranges = _with(ranges, start, stop)
    return ranges


def _with(ranges: tuple[Range, ...], start: int, stop: int) -> tuple[Range, ...]:
    at = bisect_left(ranges, (start,))
    before, after = ranges[:at], ranges[at:]
    if before and before[-1][1] == start:
        start = before[-1][0]
        before = before[:-1]
    if after and after[0][0] == stop:
        stop = after[0][1]
        after = after[1:]
    return (*before, (start, stop), *after)


def excluding(ranges: tuple[Range, ...], start: int, stop: int) -> tuple[Range, ...]:
    """The ranges less everything in start..stop."""
    kept: list[Range] = []
    for low, high in ranges:
        if low < min(high, start):
            kept.append((low, min(high, start)))
        if max(low, stop) < high:
            kept.append((max(low, stop), high))
    return tuple(kept)


def sum_of(ranges: tuple[Range, ...]) -> int:
    """How many numbers there are in them."""
    return sum([stop - start for start, stop in ranges]) if ranges else 0
