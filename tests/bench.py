"""A scheduler with workers that are up, and nothing else: for what it decides, decision by decision."""

from __future__ import annotations

from collections import deque
from typing import Any

from pairpool._scheduler import Scheduler
from pairpool._states import Choice, Job, Packet, Slot

MICROSECOND, MILLISECOND = 1_000, 1_000_000  # ns


class Freight:
    """A packet's cargo of nothing but units."""

    definitions: frozenset[int] = frozenset()
    needs: tuple[Any, ...] = ()
    retries = False
    limit = 0

    def __init__(self, units: int) -> None:
        self.units = units


class Bench:
    """A scheduler with workers that are up, and what it decided."""

    def __init__(self, slots: int, *, budget: int | None = None, credit: int = 1000, rouses: bool = False) -> None:
        self.scheduler = Scheduler(credit=credit, packet_room=1, budget=budget, rouses=rouses)
        self.sent: list[Packet] = []
        self.now = 0
        while self.scheduler.roster.maintain(slots):
            pass
        self.scheduler.actions.clear()
        for slot in self.slots:
            self.scheduler.roster.opened(slot, None)
            self.scheduler.up(slot, self.now, None)

    @property
    def slots(self) -> list[Slot]:
        """The slots, in the order in which they were asked for."""
        return list(self.scheduler.slots.values())

    def job(self, ident: int, units: int, *, closed: bool = True, unit_ns: int = 0, visible: bool = True) -> Job:
        """Add a job with all its units."""
        job = Job(ident, visible=visible, unit_ns=unit_ns)
        self.scheduler.backlog.add(job)
        self.scheduler.backlog.feed(job, units, closed)
        return job

    def send(self) -> list[Packet]:
        """Send every packet that is worth it."""
        sent = []
        while (choice := self.scheduler.choose()) is not None:
            sent.append(self.assign(choice))
        return sent

    def assign(self, choice: Choice) -> Packet:
        """Send one packet."""
        ident = self.scheduler.next_packet
        outbox: deque[int] = deque()
        self.scheduler.assign(choice, Freight(choice.limit), 1, self.now, outbox, ident)
        assert list(outbox) == [ident]
        return self.scheduler.packets[ident]

    def finish(self, packet: Packet, unit_ns: int = MICROSECOND) -> None:
        """Have every unit of a packet delivered."""
        ran = unit_ns * (packet.count - packet.done)
        self.scheduler.result(packet, packet.count, ran, ("record",), self.now, None)

    def taken(self) -> list[tuple[Any, ...]]:
        """Take the actions decided since the last time."""
        actions = list(self.scheduler.actions)
        self.scheduler.actions.clear()
        return actions

    def looks(self) -> list[int]:
        """Have the scheduler look whenever it wants to, until it never does; return when that was."""
        looks = []
        while (look_at := self.scheduler.look_at) is not None:
            self.scheduler.late(look_at)
            looks.append(look_at)
        return looks
