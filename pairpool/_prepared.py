"""What a feeder has made ready of a batch, from when it was pickled until it is settled.

A unit has a payload of its own, or shares one with its group (Mode.GROUPED), or could not be pickled. Each group begins
at a multiple of GROUP. A packet may begin and end amid one, so groups are kept until all of their units are settled.

With the dispatcher's lock held, but for what the feeder reads. Whatever is interrupted here is done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

from pairpool._body import BUFFER_ROOM, are_bytes
from pairpool._bounds import size_of
from pairpool._codec import Payload
from pairpool._packet import GROUP


class Group(NamedTuple):
    """Consecutive units in one payload."""

    data: Any
    units: int


class Prepared:
    """What is ready of one batch."""

    def __init__(self) -> None:
        self.payloads: dict[int, Payload | bytes] = {}  # by unit, until settled
        self.failures: dict[int, BaseException] = {}  # units that cannot be sent, and why
        self.paced = False  # all bytes count, and not those of large payloads alone
        self.settled_weight = 0  # bytes of payloads that are not needed any more
        self._groups: dict[int, tuple[Group, int]] = {}  # by number, with a bit for each unit that is not settled

    def take(self, entries: Sequence[Any], ready: int) -> int:
        """Takes what a feeder left, where so many units were ready before; returns how many are."""
        if are_bytes(entries):
            self.payloads.update(enumerate(entries, ready))
            return ready + len(entries)
        for entry in entries:
            if type(entry) is Group:
                self._groups[ready // GROUP] = entry, (1 << entry.units) - 1
                ready += entry.units
                continue
            if isinstance(entry, BaseException):
                self.failures[ready] = entry
            else:
                self.payloads[ready] = entry
            ready += 1
        return ready

    def separate(self, first: int, limit: int, nothing: Payload | bytes) -> list[Payload | bytes]:
        """The payloads of units from `first` on, each its own, and so many at most; `nothing` where there is none."""
        if self._groups:
            numbers = range(first // GROUP + 1, (first + limit - 1) // GROUP + 1)
            limit = next((number * GROUP - first for number in numbers if number in self._groups), limit)
        return list(map(self.payloads.get, range(first, first + limit), repeat(nothing)))

    def together(self, first: int, limit: int, room: int) -> tuple[list[bytes], int]:
        """Payloads of groups, as far as there is room for them, and how many units from `first` on are in them."""
        payloads: list[bytes] = []
        units = 0
        for number in range(first // GROUP, (first + limit - 1) // GROUP + 1):
            if number not in self._groups:
                break
            group, _ = self._groups[number]
            room -= len(group.data) + BUFFER_ROOM
            if room < 0 and payloads:
                break
            payloads.append(group.data)
            units = number * GROUP + group.units - first
        return payloads, min(units, limit)

    def settle(self, first: int, units: int) -> None:
        """These units have ended: what they were sent as is not needed any more."""
        if self.payloads:
            for payload in map(self.payloads.pop, range(first, first + units), repeat(None)):
                if isinstance(payload, Payload) or self.paced:
                    self.settled_weight += self._weight_of(payload)
                if isinstance(payload, Payload) and payload.descriptors:
                    payload.close()
        if self._groups:
            for number in range(first // GROUP, (first + units - 1) // GROUP + 1):
                if number in self._groups:
                    self._settle_in_group(number, first - number * GROUP, first + units - number * GROUP)

    def _settle_in_group(self, number: int, start: int, stop: int) -> None:
        group, left = self._groups[number]
        left &= ~((1 << min(stop, GROUP)) - (1 << max(start, 0)))
        if left:
            self._groups[number] = group, left
        else:
            del self._groups[number]

    def replace(self, unit: int, payload: Payload) -> None:
        """A unit is to be sent as something else."""
        self.settled_weight += self._weight_of(self.payloads[unit]) - self._weight_of(payload)
        self.payloads[unit] = payload

    def fail(self, unit: int, error: BaseException) -> None:
        """A unit cannot be sent. What was about to be keeps its descriptors until then."""
        self.failures[unit] = error
        self.settled_weight += self._weight_of(self.payloads.pop(unit, None))

    def clear(self) -> None:
        """Drops whatever has not been sent."""
        self.payloads.clear()
        self._groups.clear()

    def _weight_of(self, payload: Any) -> int:
        return size_of((payload,)) if self.paced or (isinstance(payload, Payload) and payload.large) else 0
