"""Units that may take only so long, or are wanted no more: when to look at their workers, and how those are ended.

A worker's page tells what it is at and since when, so that nothing is measured where nothing is late: the dispatcher
looks when the first unit in flight could be over its limit. A unit that is goes down a ladder, rung by rung:

- at its soft limit, an exception is raised in it;
- at its limit, its worker is asked for its stack, and killed a moment later with its process group;
- once it is cancelled, an exception is raised in it; then its worker gets SIGTERM; then it is killed.

Exceptions are raised by a signal, and that is sent twice. Python looks for signals before it enters a call that blocks,
so one that arrives in between is not noticed before that call ends. Who was told takes no notice of the second.

Before a worker is sent what may end it, it is *closed*: retired, and everything that it has not begun taken back. So if
the unit ends at that very moment no other can have begun in its place, and nobody is hit who was not meant. The word of
a worker's end accounts for its packets as after any death.

With the dispatcher's lock held. An interrupted look is done again: the same rung twice does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from pairpool._packet import Reason
from pairpool._states import Packet, Slot

if TYPE_CHECKING:
    from pairpool._terms import Terms
    from pairpool.engines import Processes

UNHURRIED = 100_000_000  # ns after which, at the earliest, it is looked again where nothing of ours runs
PAUSE = 50_000_000  # ns that a worker has to take notice, or to write down its stack before it is killed
GRACE = 1_000_000_000  # ns that a cancelled unit has to end after it was interrupted, and its worker after SIGTERM


class Rung(Enum):
    """What is done about a unit."""

    SOFT_LIMIT = auto()
    SOFT_LIMIT_AGAIN = auto()
    CANCEL = auto()
    CANCEL_AGAIN = auto()
    DUMP = auto()
    CLOSE = auto()
    TERMINATE = auto()
    KILL = auto()


_INTERRUPTS = {
    Rung.SOFT_LIMIT: Reason.SOFT_LIMIT,
    Rung.SOFT_LIMIT_AGAIN: Reason.SOFT_LIMIT,
    Rung.CANCEL: Reason.CANCELLED,
    Rung.CANCEL_AGAIN: Reason.CANCELLED,
}
_REPETITIONS = {Rung.SOFT_LIMIT_AGAIN: Rung.SOFT_LIMIT, Rung.CANCEL_AGAIN: Rung.CANCEL}


class Step(NamedTuple):
    """A rung of a unit's ladder."""

    at: int  # ns
    rung: Rung
    pause: int = 0  # ns that the rung before it is given


Mark = tuple[int, int, int]  # packet, unit, and since when in ns


class Descent(NamedTuple):
    """How far down its ladder a slot's unit has come."""

    mark: Mark
    done: dict[Rung, int]  # when, in ns
    latest: int  # when the latest that is no repetition was, in ns


class Limits:
    """The limits of everything in flight."""

    def __init__(
        self, processes: Processes, terms_of: Callable[[Packet, int], Terms | None], close: Callable[[Slot], None]
    ) -> None:
        """`terms_of`: what was agreed for a unit of a packet. `close`: has nothing more begin at a slot."""
        self.look_at: int | None = None  # ns; None: nothing in flight has a limit
        self._processes = processes
        self._terms_of = terms_of
        self._close = close
        self._cancelled: dict[tuple[int, int], int] = {}  # packet and unit: since when, in ns
        self._descents: dict[int, Descent] = {}  # by slot
        self._killed: dict[int, Mark] = {}  # by slot

    def watch(self, limit: int, now: int) -> None:
        """Something with a limit is about to be sent."""
        if limit and (self.look_at is None or now + limit < self.look_at):
            self.look_at = now + limit

    def cancel(self, packet: Packet, unit: int, now: int) -> None:
        """A unit in flight is wanted no more."""
        self._cancelled.setdefault((packet.ident, unit), now)
        self.look_at = now

    def clear(self) -> None:
        """Nothing is in flight."""
        self.look_at = None
        self._cancelled.clear()

    def look(self, slots: Iterable[Slot], now: int) -> None:
        """Does what is due."""
        if self.look_at is None or now < self.look_at:
            return
        slots = list(slots)
        looks = [self._look_at_slot(slot, now) for slot in slots]
        self.look_at = min([look for look in looks if look is not None], default=None)
        if self._cancelled:
            in_flight = {packet for slot in slots for packet in slot.packets}
            self._cancelled = {unit: since for unit, since in self._cancelled.items() if unit[0] in in_flight}

    def _look_at_slot(self, slot: Slot, now: int) -> int | None:
        """Returns when to look again."""
        shortest = min([packet.limit for packet in slot.packets.values() if packet.limit], default=0)
        cancelled = any(packet in slot.packets for packet, _ in self._cancelled)
        if not (shortest or cancelled):
            return None
        mark = self._processes.mark(slot.ident)
        packet = None if mark is None else slot.packets.get(mark[0])
        if mark is None or packet is None:
            # Nothing of ours runs; what begins now is not late before its limit, nor need that be seen at once where
            # the worker was busy with something else.
            return now + max(shortest, UNHURRIED)
        due = self._descend(slot, mark, self._ladder(packet, mark), now)
        if due is None and slot.ident not in self._killed:
            return now + max(shortest, UNHURRIED)  # for what begins behind this unit
        return due

    def _ladder(self, packet: Packet, mark: Mark) -> list[Step]:
        """What is done about the unit that runs, and when."""
        _, offset, since = mark
        at = self._cancelled.get((packet.ident, offset))
        if at is not None:
            return [
                Step(at, Rung.CANCEL),
                Step(at, Rung.CANCEL_AGAIN, PAUSE),
                Step(at, Rung.CLOSE, GRACE),
                Step(at, Rung.TERMINATE, PAUSE),
                Step(at, Rung.KILL, GRACE),
            ]
        terms = self._terms_of(packet, packet.first + offset)
        steps = []
        if terms is not None and terms.soft_limit_ns:
            at = since + terms.soft_limit_ns
            steps += [Step(at, Rung.SOFT_LIMIT), Step(at, Rung.SOFT_LIMIT_AGAIN, PAUSE)]
        if terms is not None and terms.limit_ns:
            at = since + terms.limit_ns
            steps += [Step(at, Rung.DUMP), Step(at, Rung.CLOSE), Step(at, Rung.KILL, PAUSE)]
        return steps

    def _descend(self, slot: Slot, mark: Mark, ladder: list[Step], now: int) -> int | None:
        """Does what is due by now; returns when the next is, None where there is nothing more to be done."""
        descent = self._descents.get(slot.ident)
        if descent is None or descent.mark != mark:
            descent = Descent(mark, {}, 0)
        again = None
        for at, rung, pause in ladder:
            done = descent.done
            if rung in done:
                continue
            repeats = _REPETITIONS.get(rung)
            if repeats is not None and (Rung.DUMP in done or Rung.CLOSE in done):
                continue  # what is done now is no matter of exceptions any more
            due = max(at, descent.latest + pause) if repeats is None else done[repeats] + pause
            if now >= due:
                self._do(slot, mark, rung)
                descent = Descent(mark, {**done, rung: now}, now if repeats is None else descent.latest)
                self._descents[slot.ident] = descent
            elif repeats is not None:
                again = due  # what follows may be due sooner
            else:
                return due if again is None else min(due, again)
        return again

    def _do(self, slot: Slot, mark: Mark, rung: Rung) -> None:
        processes, ident = self._processes, slot.ident
        if rung in _INTERRUPTS:
            processes.interrupt(ident, mark, _INTERRUPTS[rung])
        elif rung is Rung.DUMP:
            processes.dump(ident)
        elif rung is Rung.CLOSE:
            self._close(slot)
        elif rung is Rung.TERMINATE:
            processes.terminate(ident)
        else:
            self._killed[ident] = mark
            processes.kill(ident)

    def was_killed_for(self, slot: int, packet: int | None, unit: int) -> bool:
        """Whether that is why its worker has ended."""
        killed = self._killed.get(slot)
        return killed is not None and killed[:2] == (packet, unit)

    def forget(self, slot: int) -> None:
        """Its worker has ended, and is accounted for."""
        self._descents.pop(slot, None)
        self._killed.pop(slot, None)
