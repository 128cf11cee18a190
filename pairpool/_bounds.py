"""Bounds of what may be under way, in items and in bytes, for inputs that do not end or do not fit into memory.

A `Bound` says how much. For calls a `Pending` counts them, and who submits waits until there is room. Of an iterator's
job the feeder pulls no more than its consumer has made room for (see `Feeder.hungry`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from pairpool._codec import Arrived, Payload
from pairpool._waiting import Settable, wake_all


class Bound(NamedTuple):
    """How much may be under way."""

    items: int | None = None  # None: any number
    size: int | None = None  # bytes, pickled; None: any number

    def leaves_room(self, items: int, size: int) -> bool:
        """Whether there may be another item, where so much is under way. There may always be one."""
        if not items:
            return True
        return (self.items is None or items < self.items) and (self.size is None or size < self.size)


def size_of(payloads: Iterable[Any]) -> int:
    """Bytes of pickled things, those in slabs included. Errors, and what threads hand over as it is, have none."""
    size = 0
    for each in payloads:
        kind = type(each)
        if kind is bytes or kind is memoryview:
            size += len(each)
        elif (kind is Payload or kind is Arrived) and isinstance(each.data, bytes | memoryview):
            size += len(each.data) + each.weight
    return size


class Pending:
    """The calls with a bound that have no outcome yet."""

    def __init__(self, bound: Bound) -> None:
        self.signals: list[Settable] = []  # of those who wait for room
        self._bound = bound
        self._sizes: dict[int, int] = {}  # by the id of the sink, which whoever has the call keeps
        self._size = 0

    def has_room(self) -> bool:
        """Whether there may be another call."""
        if not self._sizes:
            self._size = 0  # an interrupt may have kept something from being subtracted
        return self._bound.leaves_room(len(self._sizes), self._size)

    def add(self, sink: object, payload: Any) -> None:
        """There is another call."""
        size = 0 if isinstance(payload, BaseException) else size_of((payload,))
        self._sizes[id(sink)] = size
        self._size += size

    def remove(self, sink: object) -> None:
        """A call has its outcome. Idempotent."""
        self._size -= self._sizes.pop(id(sink), 0)
        wake_all(self.signals)
