"""Simulated jobs, and workers that run them step by step.

A worker has its two channels, its page and its outbox, and does what the real one does; whoever owns it says when.

Assumptions: a worker's claim and the parent's taking of a tail are one step each; whatever a worker sent before it
died arrives; a stop that is sent before the worker has channels is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from pairpool._states import Job

if TYPE_CHECKING:
    from simulated import SimulatedPool

MICROSECOND = 1_000  # ns

_idents = count(1)


class Fate(StrEnum):
    """How a unit ended."""

    DELIVERED = "delivered"
    LOST = "lost"
    SKIPPED = "skipped"


@dataclass(eq=False)
class SimulatedJob:
    """A job, and what became of its units."""

    costs: list[int]  # ns that each unit runs
    visible: bool = True
    refused: bool = False  # workers have other things under its names, until it is sent by value
    chunk: int = 1  # units; the first error of a chunk is the end of it
    errors: frozenset[int] = frozenset()
    flaky: set[int] = field(default_factory=set)  # units that are to run again after the next failure or death
    begun: set[int] = field(default_factory=set)
    fates: dict[int, Fate] = field(default_factory=dict)
    finished: bool = False
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.plan = Job(next(_idents), visible=self.visible)

    @property
    def over(self) -> bool:
        """Nobody waits for it any more."""
        return self.finished or self.cancelled

    def runs_again(self, unit: int) -> bool:
        """Whether a unit that has begun is to begin once more."""
        if unit not in self.flaky:
            return False
        self.flaky.remove(unit)
        return True

    def settle(self, first: int, units: int, fate: Fate) -> None:
        """Record how units ended."""
        for unit in range(first, first + units):
            assert unit not in self.fates, f"unit {unit} ended twice: {self.fates[unit]}, then {fate}"
            self.fates[unit] = fate


class Sent(NamedTuple):
    """A packet on its way; what the scheduler calls its cargo."""

    ident: int
    job: SimulatedJob
    first: int
    units: int
    needs: tuple[str, ...]
    definitions: frozenset[int] = frozenset()
    retries: bool = False
    limit: int = 0


class Record(NamedTuple):
    """Outcomes of some units."""

    first: int
    units: int
    fate: Fate


class Told(NamedTuple):
    """Outcomes as a worker sends them."""

    packet: int
    offset: int
    units: int
    ran_ns: int


class End(NamedTuple):
    """The end of a worker, and the unit it was at."""

    slot: int
    packet: int | None
    unit: int


class SimulatedWorker:
    """One worker: it takes packets, claims units, runs them and tells their outcomes."""

    def __init__(self, pool: SimulatedPool, slot: int, batch: int) -> None:
        """`batch`: units of a visible job that it commits before it sends their outcomes."""
        self.pool = pool
        self.slot = slot
        self.batch = batch
        self.queue: deque[Sent] = deque()  # the tasks channel, towards the worker
        self.channel: deque[tuple[Callable[[Any], None], Any]] = deque()  # towards the parent
        self.packet: Sent | None = None  # taken
        self.entered = False  # its units may be claimed
        self.next = self.limit = 0  # the claim word
        self.claimed_ns = 0  # what the units ran whose outcomes were not sent
        self.running = False
        self.done = self.told = 0  # units of the packet that have an outcome, and that were sent
        self.begun = 0  # units in all
        self.opened = False  # it has channels
        self.up = False
        self.stopping = False
        self.roused = False  # it is to say that it is up
        self.alive = True

    def step(self) -> int | None:
        """Do what comes next; return ns until the next step, or None where something must come first."""
        if not self.opened:
            self.open()
        elif not self.up:
            self.up = True
            self._tell(self.pool.on_up, self.slot)
        elif self.running:
            self._finish_unit()
        elif self.packet is None:
            return self._take()
        elif not self.entered:
            self._enter(self.packet)
        elif self.next < self.limit:
            return self._claim(self.packet)
        else:
            self._leave_packet()
        return 0

    def _take(self) -> int | None:
        if self.queue:
            self.packet = self.queue.popleft()
            return MICROSECOND
        if self.roused:
            self.roused = False
            self._tell(self.pool.on_up, self.slot)
            return 0
        if self.stopping:
            self.die()
        return None

    def _enter(self, packet: Sent) -> None:
        if packet.needs:
            self._tell(self.pool.on_refused, packet.ident)
            self.packet = None
            return
        self.entered = True
        self.next, self.limit = 0, packet.units
        self.done = self.told = self.claimed_ns = 0

    def _claim(self, packet: Sent) -> int:
        job, unit = packet.job, packet.first + self.next
        assert unit not in job.begun, f"unit {unit} begins twice"
        job.begun.add(unit)
        self.begun += 1
        self.next += 1
        self.running = True
        self.claimed_ns += job.costs[unit]
        return job.costs[unit]

    def _finish_unit(self) -> None:
        packet = self.packet
        assert packet is not None
        self.running = False
        self.done += 1
        if packet.job.visible and self.done - self.told >= self.batch:
            self._send_outcomes(packet)

    def _send_outcomes(self, packet: Sent) -> None:
        fresh = self.done - self.told
        if fresh:
            self._tell(self.pool.on_outcomes, Told(packet.ident, self.told, fresh, self.claimed_ns))
            self.told, self.claimed_ns = self.done, 0

    def _leave_packet(self) -> None:
        assert self.packet is not None
        self._send_outcomes(self.packet)
        self.packet, self.entered = None, False

    def _tell(self, handler: Callable[[Any], None], argument: Any) -> None:
        self.channel.append((handler, argument))

    def die(self) -> None:
        """End, now, whatever it is at."""
        self.alive = False

    # -- the engine's side of its channels, page and outbox ---------------------------------------------------

    def open(self) -> None:
        """The engine has made its channels."""
        self.opened = True
        self.pool.events.append((self.pool.on_open, self.slot))

    def receive(self, messages: int) -> None:
        """The parent receives what the worker has sent."""
        for _ in range(min(messages, len(self.channel))):
            self.pool.events.append(self.channel.popleft())

    def recall(self) -> None:
        """The parent takes back what the worker has not taken."""
        while self.queue:
            self.pool.events.append((self.pool.on_came_back, self.queue.popleft().ident))

    def look(self, packet: int, *, cut: bool) -> None:
        """The parent reads the outbox and takes the tail."""
        if self.packet is None or self.packet.ident != packet or not self.entered:
            if cut:
                self.pool.events.append((self.pool.on_cut, (packet, 1 << 20)))
            return
        if self.packet.job.visible and self.done > self.told:
            told = Told(packet, self.told, self.done - self.told, 0)
            self.pool.events.append((self.pool.on_outcomes, told))
        if cut:
            self.limit = min(self.limit, self.next)
            self.pool.events.append((self.pool.on_cut, (packet, self.limit)))

    def bury(self) -> None:
        """The parent hears of the end: first comes all that was sent, committed or never begun."""
        assert not self.alive
        self.receive(len(self.channel))
        at = self.packet.ident if self.packet is not None else None
        if at is not None:
            self.look(at, cut=True)
        self.recall()
        begun = at is not None and self.entered and self.next > 0
        self.pool.events.append((self.pool.on_down, End(self.slot, at if begun else None, self.next - 1)))
