"""Bounds of what may be under way, in items and in bytes, for inputs that do not end or do not fit into memory.

A `Bound` says how much. For calls a `Pending` counts them, and who submits waits until there is room. Of an iterator's
job the feeder pulls no more than its consumer has made room for (see `Feeder.hungry`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

from pairpool._codec import Arrived, Payload
from pairpool._waiting import Settable, wake_all


class Bound(NamedTuple):
    """How much may be under way."""

    items: int | None = None  # None: any number
    size: int | None = None  # bytes, pickled; None: any number

    def leaves_room(self, items: int, size: int, more: int = 1) -> bool:
        """Whether there may be so many items `more`, where so much is under way; where nothing is there always may."""
        if not items:
            return True
        return (self.items is None or items + more <= self.items) and (self.size is None or size < self.size)


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
    """The calls with a bound that have no outcome yet.

    Looking for room and taking it are two steps: of several threads each may take one call's too much.
    """

    def __init__(self, bound: Bound) -> None:
        self.signals: list[Settable] = []  # of those who wait for room
        self._bound = bound
        self._calls: dict[int, tuple[weakref.ref[object], int]] = {}  # the call, which its caller keeps, and size
        self._size = 0  # of all of them; or more, where an interrupt has struck

    def has_room(self) -> bool:
        """Whether there may be another call."""
        if self._bound.leaves_room(len(self._calls), self._size):
            return True
        # A call that an interrupt has kept from being made is gone.
        for number, (call, _) in [*self._calls.items()]:
            if call() is None:
                self._calls.pop(number, None)
        self._size = sum([size for _, size in [*self._calls.values()]])
        return self._bound.leaves_room(len(self._calls), self._size)

    def add(self, call: object, payload: Any) -> None:
        """There is another call."""
        size = size_of((payload,))
        self._size += size
        self._calls[id(call)] = weakref.ref(call), size

    def remove(self, call: object) -> None:
        """A call has its outcome. Idempotent."""
        _, size = self._calls.pop(id(call), (None, 0))
        self._size -= size
        wake_all(self.signals)
