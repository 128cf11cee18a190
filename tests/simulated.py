"""A pool without processes or time: the real scheduler over simulated workers.

`SimulatedPool` is the caller's side: it digests events as the dispatcher does, carries out the scheduler's actions,
and checks after each digestion what must always hold. Its workers go on when its owner says so: a rule of hypothesis
in test_scheduler.py, the agenda in simulation.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from pairpool._roster import MAX_PACKETS
from pairpool._scheduler import Scheduler
from pairpool._states import Action, Choice, Job, Packet, PacketEvent, Slot, SlotState
from simulated_workers import End, Fate, Record, Sent, SimulatedJob, SimulatedWorker, Told

IDLE, RETIRING, STARTING = SlotState.IDLE, SlotState.RETIRING, SlotState.STARTING  # looked up at every check


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
        self.awaited = 0  # of these jobs, those that are not over
        self.workers: dict[int, SimulatedWorker] = {}
        self.deaths = 0  # of workers that were not told to stop
        self.losses = 0  # packets that lost units
        self.roused = 0  # workers that were asked whether they are awake
        self._credit = depth
        self.scheduler = Scheduler(credit=depth, packet_room=1, budget=budget, rouses=True)
        roster = self.scheduler.roster
        self._shelves = (roster.idle, roster.fresh, roster.retiring, roster._full, *roster._busy)
        self._batch = batch
        self._wake = wake

    # -- what users do ----------------------------------------------------------------------------------------

    def submit(self, job: SimulatedJob, ready: int, *, closed: bool) -> None:
        """Begin a job with its first units."""
        self.jobs[job.plan.ident] = job
        self.awaited += 1
        self.scheduler.backlog.add(job.plan)
        self.scheduler.backlog.feed(job.plan, ready, closed)

    def feed(self, job: SimulatedJob, ready: int, *, closed: bool) -> None:
        """Make more units of a job ready."""
        if not job.over:
            self.scheduler.backlog.feed(job.plan, ready, closed)

    def cancel(self, job: SimulatedJob) -> None:
        """Forget a job."""
        if not job.over:
            job.cancelled = True
            self.awaited -= 1
            self.scheduler.backlog.remove(job.plan)

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
            if not any(moved) and not self.events:
                look_at = self.scheduler.look_at
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
        scheduler, events, actions = self.scheduler, self.events, self.scheduler.actions
        for _ in range(100_000):
            while events:
                handler, argument = events[0]
                handler(argument)
            while actions:
                self._act(actions[0])
                del actions[0]
            while (choice := scheduler.choose()) is not None:
                self._assign(choice)
            scheduler.late(self.now)
            scheduler.steal()
            if actions or events:
                continue
            wanted = 0 if self.closing and not self.awaited else self.size
            if scheduler.roster.maintain(wanted):
                continue
            self._check(wanted)
            return
        raise AssertionError("the scheduler never comes to rest")

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

    def _act(self, action: tuple[Any, ...]) -> None:
        match action:
            case Action.DELIVER, ident, record:
                self._deliver(self.jobs[ident], record)
            case Action.FINISH, ident:
                job = self.jobs[ident]
                assert not job.finished, "a job finishes twice"
                assert len(job.fates) == len(job.costs), "a job finishes too early"
                self.awaited -= not job.cancelled
                job.finished = True
                self.scheduler.backlog.remove(job.plan)
            case Action.OPEN, slot:
                self.workers[slot] = worker = SimulatedWorker(self, slot, self._batch())
                self._wake(worker)
            case kind, slot, *rest if slot in self.workers:
                self._ask(kind, self.workers[slot], *rest)

    def _ask(self, kind: Action, worker: SimulatedWorker, *arguments: Any) -> None:
        match kind, *arguments:
            case (Action.RECALL,):
                worker.recall()
            case Action.LOOK, packet, cut:
                worker.look(packet, cut=cut)
            case (Action.STOP,):
                self._stop(worker)
            case (Action.ROUSE,):
                self.roused += 1
                worker.roused = True
                self._wake(worker)
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
            for unit in range(record.first, record.first + record.units):
                if unit in job.errors:
                    self._skip(job, unit + 1, unit - unit % job.chunk + job.chunk)

    def _skip(self, job: SimulatedJob, start: int, stop: int) -> None:
        before = set(waiting_units(job.plan))
        self.scheduler.backlog.skip(job.plan, start, stop)
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
        self.scheduler.roster.opened(slot, self.events)

    def on_up(self, ident: int) -> None:
        """A worker takes packets, for the first time or again."""
        slot = self.scheduler.slots[ident]
        if slot.asleep and slot.state is not SlotState.RETIRING:
            self.scheduler.may_steal = True
            self.scheduler.roster.awoke(slot, self.events)
            return
        self.scheduler.up(self.scheduler.slots[ident], self.now, self.events)

    def on_outcomes(self, told: Told) -> None:
        """A worker tells outcomes, or a look at its outbox did."""
        packet = self._packet(told.packet)
        if packet is None:
            return
        done = told.offset + told.units
        if done <= packet.done or told.offset > packet.done:
            # It is known; or what was read from an outbox comes after what is in a message that is still to come.
            del self.events[0]
            return
        packet.slot.lain = 0
        job = self.jobs[packet.job.ident]
        records: list[Record] = []
        again: list[tuple[int, int]] = []
        first, stop = packet.first + packet.done, packet.first + done
        for unit in range(first, stop) if job.flaky else ():
            if job.runs_again(unit):
                job.begun.remove(unit)
                again.append((unit, unit + 1))
                if first < unit:
                    records.append(Record(first, unit - first, Fate.DELIVERED))
                first = unit + 1
        if first < stop:
            records.append(Record(first, stop - first, Fate.DELIVERED))
        self.scheduler.result(packet, done, told.ran_ns, tuple(records), self.now, self.events, tuple(again))

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
            self.scheduler.roster.untaken(packet, self.now)
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
            assert worker.begun == self.scheduler.roster.budget, "a worker was stopped before its time"
        for packet in list(slot.packets.values()):
            running = end.unit if packet.ident == end.packet and end.unit >= packet.done else None
            job = self.jobs[packet.job.ident]
            if running is not None and job.runs_again(packet.first + min(running, packet.count - 1)):
                job.begun -= set(range(packet.first + packet.done, packet.first + packet.count))
                running = None
            lost = 0 if running is None else min(running + 1, packet.count) - packet.done
            record = Record(packet.first + packet.done, lost, Fate.LOST)
            self.scheduler.lose(packet, running, record, self.now)
        self.scheduler.roster.down(slot, self.events)

    # -- what must hold whenever everything is digested --------------------------------------------------------

    def _check(self, wanted: int) -> None:
        scheduler, roster = self.scheduler, self.scheduler.roster
        slots, waiting = scheduler.slots, scheduler.waiting
        roster.file()
        assert not roster.changed
        assert slots.keys() == self.workers.keys()
        # One pass over slots and packets, with plain loops: a quarter of a simulation's time is spent here.
        in_flight = dict.fromkeys(self.jobs, 0)
        staying = crowded = 0
        for ident, slot in slots.items():
            staying += slot.state is not RETIRING
            crowded += self._check_slot(ident, slot, in_flight)
        assert staying == roster.staff == wanted
        assert len(roster.retiring) == len(slots) - staying
        assert sum(map(len, self._shelves)) == len(slots)
        assert len(roster.crowded) == crowded
        if roster.idle and not waiting:
            assert not crowded, "a packet waits beside an idle slot"
            self._check_queues()
        assert len(scheduler.packets) == sum(in_flight.values()), "a packet is at no slot"
        for ident, job in self.jobs.items():
            plan = job.plan
            assert plan.in_flight == in_flight[ident]
            if job.finished or job.cancelled:
                assert ident not in waiting
            else:
                waits = plan.waiting if plan.returned else plan.ready - plan.next
                assert (ident in waiting) == (waits > 0)
                assert plan.settled == len(job.fates)
        assert self.losses <= self.deaths, "more was lost than died"

    def _check_queues(self) -> None:
        """Beside an idle slot: ask the workers, too, as the scheduler's notes of what it recalled may be wrong."""
        for ident, worker in self.workers.items():
            if worker.queue:
                slot = self.scheduler.slots[ident]
                assert slot.state is SlotState.BUSY, "a packet waits for a worker beside an idle slot"
                assert len(slot.packets) == 1, "a packet waits behind others beside an idle slot"

    def _check_slot(self, ident: int, slot: Slot, in_flight: dict[int, int]) -> bool:
        """Check a slot, add its packets to those of their jobs, and return whether it is crowded."""
        scheduler, roster, state, packets = self.scheduler, self.scheduler.roster, slot.state, slot.packets
        load = size = 0
        for number, packet in packets.items():
            assert scheduler.packets[number] is packet
            load += packet.load
            size += packet.size
            in_flight[packet.job.ident] += 1
        assert slot.load == load
        assert slot.size == size <= self._credit
        if packets:
            assert state is not IDLE
            assert len(packets) <= MAX_PACKETS
            look_at = next(iter(packets.values())).look_at
            assert not look_at or (scheduler.look_at is not None and scheduler.look_at <= look_at)
        elif state is IDLE:
            assert slot.asleep or not scheduler.waiting, "a slot idles beside a waiting unit"
        if slot.budget is not None:
            assert roster.budget is not None
            left = roster.budget - self.workers[ident].begun
            assert 0 <= slot.budget <= left, "a worker is given more units than it may run"
        shelf = roster._shelf(slot)
        assert slot.shelf is shelf is not None
        assert shelf[ident] is slot
        queued = len(packets) - (state is not STARTING)
        crowded = queued > 0 and not slot.recalled
        assert (ident in roster.crowded) == crowded
        return crowded

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
