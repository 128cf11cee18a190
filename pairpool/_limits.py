"""Units that may take only so long: when to look at the workers that have them, and how those that overrun are ended.

A worker's page tells what it is at and since when, so that nothing is measured where nothing is late: the dispatcher
looks when the first unit in flight could be over its limit. A worker whose unit is over is asked for its stack, and
killed a moment later with its process group; the word of its end accounts for its packets as after any death.

With the dispatcher's lock held. An interrupted look is done again: a stack asked for twice, or a kill, does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pairpool._states import Packet, Slot, SlotState

if TYPE_CHECKING:
    from pairpool.engines import Processes

ASLEEP = 1_000_000_000  # ns after which, at the earliest, a worker is given up that does not take what it was sent
UNHURRIED = 100_000_000  # ns after which, at the earliest, it is looked again where nothing with a limit runs
PAUSE = 20_000_000  # ns that a worker has to write down its stack before it is killed


class TimeLimits:
    """The limits of everything in flight."""

    def __init__(self, processes: Processes, limit_of: Callable[[Packet, int], int]) -> None:
        """`limit_of`: the limit of a unit of a packet, in ns; 0: none."""
        self.look_at: int | None = None  # ns; None: nothing in flight has a limit
        self._processes = processes
        self._limit_of = limit_of
        self._dumped: dict[int, tuple[tuple[int, int], int]] = {}  # by slot: packet and unit, and when
        self._killed: dict[int, tuple[int, int]] = {}  # by slot

    def watch(self, limit: int, now: int) -> None:
        """Something with a limit is about to be sent."""
        if limit and (self.look_at is None or now + limit < self.look_at):
            self.look_at = now + limit

    def look(self, slots: Iterable[Slot], now: int) -> None:
        """Ends the workers whose units are over their limits."""
        if self.look_at is None or now < self.look_at:
            return
        looks = [self._look_at_slot(slot, now) for slot in slots]
        self.look_at = min([look for look in looks if look is not None], default=None)

    def _look_at_slot(self, slot: Slot, now: int) -> int | None:
        """Returns when to look again."""
        shortest = min([packet.limit for packet in slot.packets.values() if packet.limit], default=0)
        if not shortest or slot.ident in self._killed:
            return None
        mark = self._processes.mark(slot.ident)
        packet = None if mark is None else slot.packets.get(mark[0])
        if mark is None or packet is None:
            # None with a limit runs; one that begins now is not late before its limit, nor need that be seen at once
            # where the worker was busy with something else. But is there anyone to begin it?
            if slot.state is SlotState.BUSY and self._is_asleep(slot, max(shortest, ASLEEP), now):
                self._processes.kill(slot.ident)  # nothing has begun, so all of it runs elsewhere
                return None
            return now + max(shortest, UNHURRIED)
        _, unit, since = mark
        limit = self._limit_of(packet, packet.first + unit)
        if not limit:
            return now + max(shortest, UNHURRIED)
        if now < since + limit:
            return since + limit
        return self._end(slot.ident, (packet.ident, unit), now)

    def _is_asleep(self, slot: Slot, patience: int, now: int) -> bool:
        """Whether its worker has not taken what it was to take that long ago: somebody has stopped it."""
        head = next(iter(slot.packets.values()))
        return 0 < head.since <= now - patience and not self._processes.has_taken(slot.ident, head.ident)

    def _end(self, slot: int, unit: tuple[int, int], now: int) -> int | None:
        dumped, at = self._dumped.get(slot, (None, now))
        if dumped != unit:
            self._dumped[slot] = unit, now
            self._processes.dump(slot)
            return now + PAUSE
        if now < at + PAUSE:
            return at + PAUSE
        self._killed[slot] = unit
        self._processes.kill(slot)
        return None

    def was_killed_for(self, slot: int, packet: int | None, unit: int) -> bool:
        """Whether that is why its worker has ended."""
        return self._killed.get(slot) == (packet, unit)

    def forget(self, slot: int) -> None:
        """Its worker has ended, and is accounted for."""
        self._dumped.pop(slot, None)
        self._killed.pop(slot, None)
