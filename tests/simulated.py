"""A pool without processes or time: the real scheduler over simulated workers and channels.

`SimulatedPool` is the caller's side: it digests events as the dispatcher does, carries out the scheduler's
actions, and checks after each digestion what must always hold. `SimulatedWorker` is one worker with its two
channels, its page and its outbox; it goes on by single steps, and whoever owns it says when: a rule of
hypothesis in test_scheduler.py, the agenda in simulation.py.

Assumptions: a worker's claim and the parent's taking of a tail are one step each; whatever a worker sent
before it died arrives; a stop that is sent before the worker has channels is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Any, NamedTuple

from pairpool._scheduler import MAX_PACKETS, Action, Choice, Scheduler
from pairpool._states import Job, Packet, PacketEvent, Slot, SlotState

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
    count: int
    needs: tuple[str, ...]
    definitions: frozenset[int] = frozenset()


class Record(NamedTuple):
    """Outcomes of some units."""

    first: int
    count: int
    fate: Fate


class Told(NamedTuple):
    """Outcomes as a worker sends them."""

    packet: int
    offset: int
    count: int
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
        if self.stopping:
            self.die()
        return None

    def _enter(self, packet: Sent) -> None:
        if packet.needs:
            self._tell(self.pool.on_refused, packet.ident)
            self.packet = None
            return
        self.entered = True
        self.next, self.limit = 0, packet.count
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


class SimulatedPool:
    """The caller's side of a pool, from the users' wishes down to the channels."""

    def __init__(
        self,
        size: int,
        *,
        budget: int | None = None,
        depth: int = 8,
        most_units: int = 4096,
        batch: Callable[[], int] = lambda: 1,
        wake: Callable[[SimulatedWorker], None] = lambda worker: None,
    ) -> None:
        """Args are in the scheduler's words, but for these.

        `depth`: packets that a slot's credit is for; `most_units`: how many fit into one; `batch`: of each worker;
        `wake`: called when a worker has got something to do.
        """
        self.now = 0
        self.size = size
        self.shrunk = self.closing = False
        self.most_units = most_units
        self.events: deque[tuple[Callable[[Any], None], Any]] = deque()
        self.outbox: deque[tuple[SimulatedWorker, Sent]] = deque()
        self.jobs: dict[int, SimulatedJob] = {}
        self.workers: dict[int, SimulatedWorker] = {}
        self.deaths = 0  # of workers that were not told to stop
        self.losses = 0  # packets that lost units
        self.scheduler = Scheduler(credit=depth, packet_room=1, budget=budget)
        self._batch = batch
        self._wake = wake

    # -- what users do ----------------------------------------------------------------------------------------

    def submit(self, job: SimulatedJob, ready: int, *, closed: bool) -> None:
        """Begin a job with its first units."""
        self.jobs[job.plan.ident] = job
        self.scheduler.add(job.plan)
        self.scheduler.feed(job.plan, ready, closed)

    def feed(self, job: SimulatedJob, ready: int, *, closed: bool) -> None:
        """Make more units of a job ready."""
        if not job.over:
            self.scheduler.feed(job.plan, ready, closed)

    def cancel(self, job: SimulatedJob) -> None:
        """Forget a job."""
        if not job.over:
            job.cancelled = True
            self.scheduler.remove(job.plan)

    def resize(self, size: int) -> None:
        """Want another number of workers."""
        self.shrunk = self.shrunk or size < self.size
        self.size = size

    def close(self) -> None:
        """Want no worker once every job is over."""
        self.closing = True

    def run(self) -> None:
        """Let every worker go on, in turns, until only a further wish would change anything."""
        for _ in range(100_000):
            self.digest()
            moved = [self._run_worker(worker) for worker in list(self.workers.values())]
            if not any(moved):
                look_at = self.scheduler.deadline()
                if look_at is None:
                    return
                self.now = max(self.now, look_at)
        raise AssertionError("the pool never comes to rest")

    def _run_worker(self, worker: SimulatedWorker) -> bool:
        delay = worker.step() if worker.alive else None
        if not worker.alive:
            worker.bury()
            return True
        worker.receive(len(worker.channel))
        self.now += delay or 0
        return delay is not None

    # -- digesting --------------------------------------------------------------------------------------------

    def digest(self) -> None:
        """What the dispatcher does when something has happened."""
        scheduler = self.scheduler
        for _ in range(100_000):
            while self.events:
                handler, argument = self.events[0]
                handler(argument)
            while scheduler.actions:
                self._act(*scheduler.actions[0])
                del scheduler.actions[0]
            while (choice := scheduler.choose()) is not None:
                self._assign(choice)
            scheduler.late(self.now)
            if scheduler.steal() or scheduler.actions or self.events:
                continue
            if scheduler.maintain(self._wanted()):
                continue
            self._check()
            return
        raise AssertionError("the scheduler never comes to rest")

    def _wanted(self) -> int:
        return 0 if self.closing and all(job.over for job in self.jobs.values()) else self.size

    def _assign(self, choice: Choice) -> None:
        slot, plan, first, limit = choice
        assert limit > 0
        job = self.jobs[plan.ident]
        needs = ("name",) if job.refused else ()
        sent = Sent(self.scheduler.next_packet, job, first, min(limit, self.most_units), needs)
        worker = self.workers[slot.ident]
        self.scheduler.assign(choice, sent, 1, self.now, self.outbox, (worker, sent))
        worker.queue.append(self.outbox.popleft()[1])
        self._wake(worker)

    def _act(self, kind: Action, *arguments: Any) -> None:
        match kind, *arguments:
            case Action.DELIVER, ident, record:
                self._deliver(self.jobs[ident], record)
            case Action.FINISH, ident:
                job = self.jobs[ident]
                assert not job.finished, "a job finishes twice"
                assert len(job.fates) == job.plan.ready, "a job finishes too early"
                job.finished = True
                self.scheduler.remove(job.plan)
            case Action.OPEN, slot:
                self.workers[slot] = worker = SimulatedWorker(self, slot, self._batch())
                self._wake(worker)
            case _, slot, *rest if slot in self.workers:
                self._ask(kind, self.workers[slot], *rest)

    def _ask(self, kind: Action, worker: SimulatedWorker, *arguments: Any) -> None:
        match kind, *arguments:
            case Action.RECALL, :
                worker.recall()
            case Action.LOOK, packet, cut:
                worker.look(packet, cut=cut)
            case Action.STOP, :
                self._stop(worker)
            case _:
                raise AssertionError(f"no such action: {kind}")

    def _stop(self, worker: SimulatedWorker) -> None:
        worker.stopping = worker.opened
        self._wake(worker)

    def _deliver(self, job: SimulatedJob, record: Record) -> None:
        if job.over:
            assert job.cancelled, "an outcome after the end of its job"
            return
        if record.fate is Fate.LOST:
            self.losses += 1
        job.settle(*record)
        if job.chunk > 1:
            for unit in range(record.first, record.first + record.count):
                if unit in job.errors:
                    self._skip(job, unit + 1, unit - unit % job.chunk + job.chunk)

    def _skip(self, job: SimulatedJob, start: int, stop: int) -> None:
        before = set(waiting_units(job.plan))
        self.scheduler.skip(job.plan, start, stop)
        skipped = before.difference(waiting_units(job.plan))
        assert skipped == {unit for unit in before if start <= unit < stop}
        for unit in skipped:
            job.settle(unit, 1, Fate.SKIPPED)

    # -- handlers (each removes its event) --------------------------------------------------------------------

    def _packet(self, ident: int) -> Packet | None:
        packet = self.scheduler.packets.get(ident)
        if packet is None:
            del self.events[0]
        return packet

    def on_open(self, ident: int) -> None:
        """A worker has channels."""
        slot = self.scheduler.slots[ident]
        if slot.state is SlotState.RETIRING and not slot.packets:
            self._stop(self.workers[ident])
        self.scheduler.opened(slot, self.events)

    def on_up(self, ident: int) -> None:
        """A worker takes packets."""
        self.scheduler.up(self.scheduler.slots[ident], self.now, self.events)

    def on_outcomes(self, told: Told) -> None:
        """A worker tells outcomes, or a look at its outbox did."""
        packet = self._packet(told.packet)
        if packet is None:
            return
        done = told.offset + told.count
        if done <= packet.done:
            del self.events[0]
            return
        record = Record(packet.first + packet.done, done - packet.done, Fate.DELIVERED)
        self.scheduler.result(packet, done, told.ran_ns, record, self.now, self.events)

    def on_refused(self, ident: int) -> None:
        """A worker has other things under the names that a packet needs."""
        packet = self._packet(ident)
        if packet is not None:
            self.jobs[packet.job.ident].refused = False
            self.scheduler.came_back(packet, PacketEvent.REFUSE, self.now, self.events)

    def on_came_back(self, ident: int) -> None:
        """A packet was recalled."""
        packet = self._packet(ident)
        if packet is not None:
            self.scheduler.came_back(packet, PacketEvent.RECALL, self.now, self.events)

    def on_cut(self, cut: tuple[int, int]) -> None:
        """The tail of a packet was taken back."""
        packet = self._packet(cut[0])
        if packet is not None:
            self.scheduler.cut(packet, cut[1], self.now, self.events)

    def on_down(self, end: End) -> None:
        """A worker has ended."""
        slot = self.scheduler.slots[end.slot]
        worker = self.workers.pop(end.slot)
        self.deaths += not worker.stopping
        if worker.stopping and not self.closing and not self.shrunk:
            assert worker.begun == self.scheduler.budget, "a worker was stopped before its time"
        for packet in list(slot.packets.values()):
            running = end.unit if packet.ident == end.packet and end.unit >= packet.done else None
            lost = 0 if running is None else min(running + 1, packet.count) - packet.done
            record = Record(packet.first + packet.done, lost, Fate.LOST)
            self.scheduler.lose(packet, running, record, self.now)
        self.scheduler.down(slot, self.events)

    # -- what must hold whenever everything is digested --------------------------------------------------------

    def _check(self) -> None:
        scheduler, slots = self.scheduler, self.scheduler.slots
        staying = [slot for slot in slots.values() if slot.state is not SlotState.RETIRING]
        assert len(staying) == self._wanted()
        assert slots.keys() == self.workers.keys()
        for slot in slots.values():
            self._check_slot(slot)
        assert scheduler.packets == {ident: each for slot in slots.values() for ident, each in slot.packets.items()}
        for job in self.jobs.values():
            in_flight = [packet for packet in scheduler.packets.values() if packet.job is job.plan]
            assert job.plan.in_flight == len(in_flight)
            assert (job.plan.ident in scheduler.waiting) == (job.plan.waiting > 0 and not job.over)
            assert job.over or job.plan.settled == len(job.fates)
        assert self.losses <= self.deaths, "more was lost than died"

    def _check_slot(self, slot: Slot) -> None:
        packets = slot.packets.values()
        assert slot.load == sum(packet.load for packet in packets)
        assert slot.size == sum(packet.size for packet in packets) <= self.scheduler.credit
        assert len(packets) <= MAX_PACKETS
        if slot.state is SlotState.IDLE:
            assert not packets
            assert not self.scheduler.waiting, "a slot idles beside a waiting unit"
        if slot.budget is not None:
            assert self.scheduler.budget is not None
            left = self.scheduler.budget - self.workers[slot.ident].begun
            assert 0 <= slot.budget <= left, "a worker is given more units than it may run"

    def check_units(self) -> None:
        """Each unit is in exactly one place: it waits, is in flight, or has ended."""
        for job in self.jobs.values():
            if job.over:
                continue
            places = [*waiting_units(job.plan), *job.fates]
            for packet in self.scheduler.packets.values():
                if packet.job is job.plan:
                    places += range(packet.first + packet.done, packet.first + packet.count)
            assert sorted(places) == list(range(job.plan.ready))


def waiting_units(plan: Job) -> list[int]:
    """The units of a job that can be handed out."""
    returned = [unit for start, stop in plan.returned for unit in range(start, stop)]
    return [*returned, *range(plan.next, plan.ready)]
