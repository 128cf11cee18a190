"""What the scheduler promises: by hypothesis, and one by one."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated import MICROSECOND, Fate, SimulatedJob, SimulatedPool, SimulatedWorker

from pairpool._scheduler import (
    DEPTH,
    GROWTH,
    LEARNING,
    MAX_UNITS,
    SHORTEST,
    TARGET,
    Action,
    Choice,
    Scheduler,
)
from pairpool._states import Job, Packet, PacketEvent, Slot, SlotState

MILLISECOND = 1_000_000  # ns
COSTS = (MICROSECOND, 100 * MICROSECOND, 5 * MILLISECOND, 1000 * MILLISECOND)


class PoolMachine(RuleBasedStateMachine):
    """A pool whose users, workers and misfortunes come in whatever order hypothesis finds."""

    @initialize(
        size=st.integers(1, 4),
        budget=st.sampled_from([None, None, 1, 3]),
        depth=st.sampled_from([1, 2, 1000]),
        most_units=st.sampled_from([1, 3, MAX_UNITS]),
        batch=st.sampled_from([1, 3, 1000]),
    )
    def make_pool(self, size: int, budget: int | None, depth: int, most_units: int, batch: int) -> None:
        """Make a pool with no worker up yet."""
        self.pool = SimulatedPool(size, budget=budget, depth=depth, most_units=most_units, batch=lambda: batch)
        self.pool.digest()
        self.unfed: list[SimulatedJob] = []

    @precondition(lambda self: not self.pool.closing)
    @rule(
        costs=st.lists(st.sampled_from(COSTS), max_size=30),
        visible=st.booleans(),
        refused=st.booleans(),
        chunk=st.sampled_from([1, 4]),
        errors=st.frozensets(st.integers(0, 29), max_size=3),
        data=st.data(),
    )
    def submit(
        self, costs: list[int], visible: bool, refused: bool, chunk: int, errors: frozenset[int], data: st.DataObject
    ) -> None:
        """Begin a job, with all its units or some."""
        job = SimulatedJob(costs, visible=visible, refused=refused, chunk=chunk, errors=errors)
        ready = data.draw(st.integers(0, len(costs)))
        self.pool.submit(job, ready, closed=ready == len(costs))
        if ready < len(costs):
            self.unfed.append(job)
        self.pool.digest()

    @precondition(lambda self: self.unfed)
    @rule(data=st.data())
    def feed(self, data: st.DataObject) -> None:
        """Make more units of a job ready."""
        job = data.draw(st.sampled_from(self.unfed))
        ready = data.draw(st.integers(job.plan.ready, len(job.costs)))
        self._feed(job, ready)

    def _feed(self, job: SimulatedJob, ready: int) -> None:
        if ready == len(job.costs):
            self.unfed.remove(job)
        self.pool.feed(job, ready, closed=ready == len(job.costs))
        self.pool.digest()

    @precondition(lambda self: self.pool.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Forget a job."""
        self.pool.cancel(data.draw(st.sampled_from(list(self.pool.jobs.values()))))
        self.pool.digest()

    @rule(size=st.integers(1, 5))
    def resize(self, size: int) -> None:
        """Want another number of workers."""
        self.pool.resize(size)
        self.pool.digest()

    @rule(ns=st.sampled_from([MICROSECOND, MILLISECOND, 30 * MILLISECOND, 1000 * MILLISECOND]))
    def pass_time(self, ns: int) -> None:
        """Let time pass."""
        self.pool.now += ns
        self.pool.digest()

    @precondition(lambda self: self.pool.workers)
    @rule(data=st.data(), steps=st.integers(1, 12), told=st.booleans())
    def go_on(self, data: st.DataObject, steps: int, told: bool) -> None:
        """Let a worker go on, and perhaps hear of it."""
        worker = data.draw(st.sampled_from(list(self.pool.workers.values())))
        for _ in range(steps):
            if worker.alive:
                self.pool.now += worker.step() or 0
        if told:
            worker.receive(len(worker.channel))
        self.pool.digest()

    @precondition(lambda self: self.pool.workers)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        """Kill a worker; the word of it comes later, or now."""
        data.draw(st.sampled_from(list(self.pool.workers.values()))).die()

    @precondition(lambda self: not all(worker.alive for worker in self.pool.workers.values()))
    @rule()
    def hear_of_deaths(self) -> None:
        """Hear that workers have ended."""
        for worker in list(self.pool.workers.values()):
            if not worker.alive:
                worker.bury()
        self.pool.digest()

    @invariant()
    def every_unit_is_in_one_place(self) -> None:
        """No unit is lost, none is in two places."""
        self.pool.check_units()

    def teardown(self) -> None:
        """Whatever came before: fed and left alone, the pool finishes every job, and ends once closed."""
        if not hasattr(self, "pool"):
            return
        for job in list(self.unfed):
            self._feed(job, len(job.costs))
        self.pool.run()
        assert all(job.over for job in self.pool.jobs.values())
        self.pool.close()
        self.pool.run()
        assert not self.pool.scheduler.slots
        assert not self.pool.scheduler.jobs


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# -- One by one -----------------------------------------------------------------------------------


class Freight:
    """A packet's cargo of nothing but units."""

    definitions: frozenset[int] = frozenset()
    needs: tuple[Any, ...] = ()

    def __init__(self, count: int) -> None:
        self.count = count


class Bench:
    """A scheduler with workers that are up, and what it decided."""

    def __init__(self, slots: int, *, budget: int | None = None, credit: int = 1000) -> None:
        self.scheduler = Scheduler(credit=credit, packet_room=1, budget=budget)
        self.sent: list[Packet] = []
        self.now = 0
        while self.scheduler.maintain(slots):
            pass
        self.scheduler.actions.clear()
        for slot in self.slots:
            self.scheduler.opened(slot, None)
            self.scheduler.up(slot, self.now, None)

    @property
    def slots(self) -> list[Slot]:
        return list(self.scheduler.slots.values())

    def job(self, ident: int, units: int, *, closed: bool = True, unit_ns: int = 0) -> Job:
        """Add a job with all its units."""
        job = Job(ident, visible=True, unit_ns=unit_ns)
        self.scheduler.add(job)
        self.scheduler.feed(job, units, closed)
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
        self.scheduler.result(packet, packet.count, ran, "record", self.now, None)

    def taken(self) -> list[tuple[Any, ...]]:
        """Take the actions decided since the last time."""
        actions = list(self.scheduler.actions)
        self.scheduler.actions.clear()
        return actions


def test_a_finished_job_finishes_once() -> None:
    """A closed job is told to be finished once, after its last outcome."""
    bench = Bench(1)
    bench.job(1, 2, unit_ns=TARGET)
    for packet in bench.send():
        bench.finish(packet)
    assert [action[0] for action in bench.taken()] == [Action.DELIVER, Action.DELIVER, Action.FINISH]


def test_a_job_without_units_finishes_at_once() -> None:
    """A closed job of no units is finished when it is closed."""
    bench = Bench(1)
    bench.job(1, 0)
    assert bench.taken() == [(Action.FINISH, 1)]


def test_an_open_job_does_not_finish() -> None:
    """A job all of whose units ended is finished only when it is closed."""
    bench = Bench(1)
    job = bench.job(1, 1, closed=False)
    bench.finish(bench.send()[0])
    assert [action[0] for action in bench.taken()] == [Action.DELIVER]
    bench.scheduler.feed(job, 1, True)
    assert bench.taken() == [(Action.FINISH, 1)]


def test_a_removed_job_stays_gone() -> None:
    """Of a removed job nothing is handed out again, and nothing finishes."""
    bench = Bench(1)
    job = bench.job(1, 100, unit_ns=TARGET)
    first, second, *_ = bench.send()
    bench.scheduler.remove(job)
    bench.scheduler.came_back(second, PacketEvent.RECALL, 0, None)
    bench.finish(first)
    assert bench.send() == []
    assert (Action.FINISH, 1) not in bench.taken()


@pytest.mark.parametrize("unit_ns", [0, MICROSECOND, 5 * MILLISECOND, 1000 * MILLISECOND])
def test_a_short_job_does_not_wait_for_a_long_one(unit_ns: int) -> None:
    """A job of one unit that comes while a million units wait is in one of the next packets sent."""
    bench = Bench(2)
    million = bench.job(1, 1_000_000)
    while len(bench.send()) != 1 or million.grown * million.unit_ns < TARGET:
        bench.finish(next(iter(bench.scheduler.packets.values())))
    bench.job(2, 1, unit_ns=unit_ns)
    sent: list[Packet] = []
    while not any(packet.job.ident == 2 for packet in sent):
        bench.finish(next(iter(bench.scheduler.packets.values())), unit_ns=million.unit_ns)
        sent += bench.send()
    ahead = sum(packet.load for packet in sent[-1].slot.packets.values() if packet is not sent[-1])
    assert ahead <= DEPTH
    assert len(sent) <= 2 * DEPTH // TARGET


def test_jobs_take_turns() -> None:
    """Jobs with waiting units are given packets one after another."""
    bench = Bench(1)
    for ident in (1, 2, 3):
        bench.job(ident, 1000, unit_ns=MILLISECOND)
    assert [packet.job.ident for packet in bench.send()][:6] == [1, 2, 3, 1, 2, 3]


def test_packets_grow_while_they_are_short() -> None:
    """Packets begin with one unit and grow until one takes about `TARGET`; slow units go one by one."""
    bench = Bench(1)
    bench.job(1, 10**6)
    sizes = []
    for _ in range(10):
        packet = bench.send()[0]
        sizes.append(packet.count)
        for each in bench.slots[0].packets.copy().values():
            bench.finish(each, unit_ns=MICROSECOND)
    assert sizes[0] == 1
    assert all(1 < larger / smaller <= GROWTH for smaller, larger in pairwise(sizes[:4]))
    assert sizes[-1] == TARGET // MICROSECOND
    slow = bench.job(2, 100)
    slow.unit_ns, slow.grown = TARGET + 1, MAX_UNITS
    bench.scheduler.remove(bench.scheduler.jobs[1])
    assert {packet.count for packet in bench.send()} == {1}


def test_packets_of_a_growing_job_are_not_sent_far_ahead() -> None:
    """While packets still grow only a few are sent ahead, since the next will be larger."""
    bench = Bench(2)
    bench.job(1, 10**6, unit_ns=MICROSECOND)
    assert len(bench.send()) == LEARNING * 2


def test_the_last_units_are_shared_out() -> None:
    """Near the end of a job packets shrink, so that every slot has some of it; but not to the tiniest."""
    bench = Bench(4)
    job = bench.job(1, 64, unit_ns=SHORTEST)
    job.grown = MAX_UNITS
    sent = bench.send()
    assert {packet.slot.ident for packet in sent} == {0, 1, 2, 3}
    assert max(packet.count for packet in sent) <= 64 // 4
    tiny = bench.job(2, 10, unit_ns=SHORTEST // 10)
    tiny.grown = MAX_UNITS
    assert [packet.count for packet in bench.send()] == [10]


def test_a_slot_is_as_deep_as_time_says() -> None:
    """A slot holds about `DEPTH` of work, whatever the number of packets."""
    bench = Bench(2)
    bench.job(1, 10**6, unit_ns=MILLISECOND)
    bench.send()
    assert all(DEPTH - MILLISECOND < slot.load <= DEPTH for slot in bench.slots)


def test_a_slot_holds_no_more_than_its_credit() -> None:
    """However short the packets, a slot's channel is never given more than it takes."""
    bench = Bench(1, credit=3)
    bench.job(1, 1000, unit_ns=TARGET)
    assert len(bench.send()) == 3


def test_a_long_unit_is_not_queued_behind_another() -> None:
    """Units that each fill a slot's depth wait with the pool, not behind each other."""
    bench = Bench(2)
    bench.job(1, 10, unit_ns=DEPTH)
    assert len(bench.send()) == 2


def test_an_unknown_job_is_tried_first() -> None:
    """Of a job that nothing is known of, one packet a slot is sent."""
    bench = Bench(3)
    bench.job(1, 1000)
    assert [packet.count for packet in bench.send()] == [1, 1, 1]


def test_what_comes_back_goes_first_and_in_order() -> None:
    """Recalled units are handed out again before new ones, lowest first, in packets as long as others."""
    bench = Bench(1)
    job = bench.job(1, 1000, unit_ns=TARGET // 4)
    job.grown = 4
    head, *queued = bench.send()
    for packet in reversed(queued):
        bench.scheduler.came_back(packet, PacketEvent.RECALL, 0, None)
    assert job.returned == ((head.count, job.next),)
    again = bench.send()
    assert [(packet.first, packet.count) for packet in again] == [(each.first, each.count) for each in queued]


def test_idle_slots_get_what_is_queued_elsewhere() -> None:
    """Where a slot idles and no unit waits, the queue of the fullest slot is recalled, once."""
    bench = Bench(2)
    bench.job(1, 8, unit_ns=MILLISECOND)
    bench.send()
    for packet in list(bench.slots[1].packets.values()):
        bench.finish(packet, unit_ns=MILLISECOND)
    bench.taken()
    assert bench.scheduler.steal()
    assert not bench.scheduler.steal()
    assert bench.taken() == [(Action.RECALL, bench.slots[0].ident)]


def test_nothing_is_recalled_where_units_wait() -> None:
    """Where every slot has something to do nothing is recalled."""
    bench = Bench(2)
    bench.job(1, 1000, unit_ns=MILLISECOND)
    bench.send()
    assert not bench.scheduler.steal()


def test_a_new_worker_is_relieved_while_it_starts() -> None:
    """A packet that waits for a worker to come up is recalled for a slot that idles."""
    bench = Bench(1)
    bench.scheduler.maintain(2)
    asked = bench.slots[1]
    bench.job(1, 2, unit_ns=DEPTH)
    assert [packet.slot for packet in bench.send()] == bench.slots[:1]  # there is no way to send it anything yet
    bench.scheduler.opened(asked, None)
    head = bench.send()[0]
    assert head.slot is asked
    bench.finish(next(iter(bench.slots[0].packets.values())))
    bench.taken()
    assert bench.scheduler.steal()
    assert bench.taken() == [(Action.RECALL, asked.ident)]


def late_packet(bench: Bench, units: int = 4) -> Packet:
    """Send a packet of some units and let it become late."""
    job = bench.job(1, 1000, closed=False, unit_ns=TARGET // units)
    job.grown = units
    head = bench.send()[0]
    bench.now = head.look_at
    return head


def test_the_tail_of_a_late_packet_is_cut_for_an_idle_slot() -> None:
    """A packet that takes longer than thought is looked at; its tail goes to a slot that idles."""
    bench = Bench(2)
    job = bench.job(1, 4, unit_ns=TARGET // 4)
    job.grown = MAX_UNITS
    head = bench.assign(bench.scheduler.choose()._replace(limit=4))  # type: ignore[union-attr]
    assert bench.scheduler.deadline() == head.look_at
    bench.scheduler.late(head.look_at - 1)
    assert bench.taken() == []
    bench.scheduler.late(head.look_at)
    assert bench.taken() == [(Action.LOOK, head.slot.ident, head.ident, True)]
    bench.scheduler.cut(head, 1, bench.now, None)
    assert job.returned == ((1, 4),)
    assert [packet.slot for packet in bench.send()][0] is not head.slot


def test_where_no_slot_idles_a_late_packet_keeps_its_tail() -> None:
    """Where units wait for every slot, a look only brings results."""
    bench = Bench(1)
    head = late_packet(bench)
    bench.scheduler.late(bench.now)
    assert bench.taken() == [(Action.LOOK, head.slot.ident, head.ident, False)]


def test_looks_become_rare() -> None:
    """Each look at a packet is twice as long after the one before, within limits."""
    bench = Bench(1)
    head = late_packet(bench)
    pauses = []
    for _ in range(10):
        bench.scheduler.late(head.look_at)
        pauses.append(head.look_at - bench.now)
        bench.now = head.look_at
    assert pauses == [MILLISECOND * min(64, 2**each) for each in range(1, 11)]


def test_nothing_stays_behind_a_unit_that_hangs() -> None:
    """Queue and tail of a slot that is stuck go elsewhere, even if no other slot ever idles."""
    pool = SimulatedPool(2)
    endless = SimulatedJob([50 * MICROSECOND] * 100_000)
    pool.submit(endless, 100_000, closed=False)
    short = SimulatedJob([50 * MICROSECOND])
    hung, busy = warm_up(pool, endless)
    pool.submit(short, 1, closed=True)
    while short.plan.in_flight == 0:
        go_on(pool, hung)
        go_on(pool, busy)
    if short.plan.ident not in [packet.job.ident for packet in pool.scheduler.slots[hung.slot].packets.values()]:
        hung, busy = busy, hung
    while not hung.running:
        hung.step()
    at = pool.now
    while not short.finished:
        go_on(pool, busy)
        assert pool.now < at + 1000 * MILLISECOND
    assert hung.packet is not None
    assert pool.scheduler.packets[hung.packet.ident].count == hung.next
    assert list(pool.scheduler.slots[hung.slot].packets) == [hung.packet.ident]


def warm_up(pool: SimulatedPool, job: SimulatedJob) -> tuple[SimulatedWorker, SimulatedWorker]:
    """Have two workers at work on a job until its running time is known."""
    pool.digest()
    first, second = pool.workers.values()
    while len(job.fates) < 100:
        go_on(pool, first)
        go_on(pool, second)
    return first, second


def go_on(pool: SimulatedPool, worker: SimulatedWorker) -> None:
    """Let a worker take some steps, and hear of them."""
    for _ in range(6):
        pool.now += worker.step() or 0
    worker.receive(len(worker.channel))
    pool.digest()


def test_an_idle_pool_needs_no_timer() -> None:
    """Where nothing is in flight there is no moment at which to look at anything."""
    bench = Bench(2)
    bench.job(1, 4)
    while sent := bench.send():
        for packet in sent:
            bench.finish(packet)
    assert bench.scheduler.deadline() is None


def test_one_long_unit_soon_needs_no_timer() -> None:
    """A single unit with nothing behind it needs no timer; with something behind it, only until that is recalled."""
    bench = Bench(1)
    bench.job(1, 1)
    (running,) = bench.send()
    assert bench.scheduler.deadline() is None
    bench.job(2, 1)
    (queued,) = bench.send()
    looks = 0
    while (look_at := bench.scheduler.deadline()) is not None:
        bench.scheduler.late(look_at)
        looks += 1
    assert looks < 8
    assert bench.taken() == [(Action.RECALL, 0)]
    bench.scheduler.came_back(queued, PacketEvent.RECALL, bench.now, None)
    assert bench.send() == []
    assert bench.scheduler.deadline() is None


def test_a_refused_packet_is_sent_again() -> None:
    """A packet that a worker refuses is sent again; none of its units is settled by that."""
    bench = Bench(1)
    job = bench.job(1, 1)
    packet = bench.send()[0]
    bench.scheduler.came_back(packet, PacketEvent.REFUSE, 0, None)
    assert job.settled == 0
    bench.finish(bench.send()[0])
    assert bench.taken()[-1] == (Action.FINISH, 1)


@pytest.mark.parametrize(("running", "lost"), [(None, 0), (1, 1), (3, 3)])
def test_a_death_costs_what_had_begun(running: int | None, lost: int) -> None:
    """Of a packet whose worker died, units without outcome up to the running one are lost; the rest runs."""
    bench = Bench(1)
    job = bench.job(1, 100, unit_ns=TARGET // 5)
    job.grown = 5
    packet, *queued = bench.send()
    bench.scheduler.result(packet, 1, MICROSECOND, "one", 0, None)
    bench.taken()
    for each in queued:
        bench.scheduler.lose(each, None, "nothing", 0)
    bench.scheduler.lose(packet, running, "lost", 0)
    bench.scheduler.down(packet.slot, None)
    assert job.settled == 1 + lost
    assert job.returned == ((1 + lost, job.next),)
    assert bench.taken() == ([(Action.DELIVER, 1, "lost")] if lost else [])
    assert bench.slots == []


def test_a_worker_runs_its_share_of_units_and_is_replaced() -> None:
    """With a budget a worker is given exactly so many units, whatever comes back, then it is stopped."""
    bench = Bench(1, budget=6)
    job = bench.job(1, 100, unit_ns=TARGET // 4)
    job.grown = 4
    first, second = bench.send()
    assert (first.count, second.count) == (4, 2)
    bench.scheduler.came_back(second, PacketEvent.RECALL, 0, None)
    bench.scheduler.cut(first, 1, 0, None)
    again = bench.send()
    assert first.count + sum(packet.count for packet in again) == 6
    for packet in [first, *again]:
        bench.finish(packet)
    old = bench.slots[0]
    assert (Action.STOP, old.ident) in bench.taken()
    assert old.state is SlotState.RETIRING
    assert bench.scheduler.maintain(1)
    assert len(bench.slots) == 2


def test_no_worker_is_replaced_while_it_runs() -> None:
    """However short the budget, there are no more workers at work than were wanted."""
    bench = Bench(2, budget=1)
    bench.job(1, 1000)
    bench.send()
    assert not bench.scheduler.maintain(2)


def test_shrinking_stops_idle_workers_first() -> None:
    """When the pool shrinks, idle workers stop at once; a busy one gives back its queue and ends its unit."""
    bench = Bench(2)
    bench.job(1, 1)
    busy = bench.send()[0].slot
    idle = next(slot for slot in bench.slots if slot is not busy)
    assert bench.scheduler.maintain(1)
    assert bench.taken() == [(Action.STOP, idle.ident)]
    assert bench.scheduler.maintain(0)
    assert bench.taken() == [(Action.RECALL, busy.ident)]
    bench.finish(next(iter(busy.packets.values())))
    assert (Action.STOP, busy.ident) in bench.taken()
    assert not bench.scheduler.maintain(0)


def test_a_retiring_slot_gets_no_packets() -> None:
    """A slot that retires is given nothing more, and its late packet is cut whoever waits."""
    bench = Bench(1)
    head = late_packet(bench)
    bench.scheduler.maintain(0)
    bench.scheduler.late(bench.now)
    assert bench.send() == []
    assert (Action.LOOK, head.slot.ident, head.ident, True) in bench.taken()


def test_skipped_units_count_as_settled() -> None:
    """Units that are skipped never run, those handed out already do; the job finishes all the same."""
    bench = Bench(1)
    job = bench.job(1, 10, unit_ns=DEPTH)
    packet = bench.send()[0]
    bench.scheduler.skip(job, 1, 10)
    assert bench.send() == []
    bench.finish(packet)
    assert bench.taken()[-1] == (Action.FINISH, 1)


def test_skipping_the_last_units_finishes_the_job() -> None:
    """A job whose last units are skipped is finished by that, once."""
    bench = Bench(1)
    job = bench.job(1, 10, unit_ns=DEPTH)
    bench.finish(bench.send()[0])
    bench.taken()
    bench.scheduler.skip(job, 1, 10)
    bench.scheduler.skip(job, 1, 10)
    assert bench.taken() == [(Action.FINISH, 1)]


def test_a_cut_packet_of_which_all_is_known_is_over() -> None:
    """Where every unit that a worker keeps has its outcome, a cut ends the packet."""
    bench = Bench(1)
    job = bench.job(1, 100, unit_ns=TARGET // 4)
    job.grown = 4
    packet = bench.send()[0]
    bench.scheduler.result(packet, 2, 0, "two", 0, None)
    bench.scheduler.cut(packet, 2, 0, None)
    assert packet.ident not in bench.scheduler.packets
    assert job.returned == ((2, 4),)


def test_a_cut_that_takes_nothing_changes_nothing() -> None:
    """Where the worker had claimed every unit a cut changes nothing."""
    bench = Bench(1)
    head = late_packet(bench)
    bench.scheduler.cut(head, head.count, 0, None)
    assert head.count == 4
    assert head.job.returned == ()


def test_an_event_leaves_its_queue_with_what_it_changed() -> None:
    """Each event that the scheduler digests is gone from its queue afterwards, and no other is."""
    bench = Bench(1)
    bench.job(1, 1)
    events: deque[str] = deque(["result", "next"])
    packet = bench.send()[0]
    bench.scheduler.result(packet, 1, 0, "record", 0, events)
    assert list(events) == ["next"]


def test_every_unit_is_delivered_without_misfortune() -> None:
    """With nothing in the way each unit is delivered, and nothing else happens to any."""
    pool = SimulatedPool(3)
    jobs = [SimulatedJob([MICROSECOND] * units, visible=units % 2 == 0) for units in (1, 10, 1000)]
    for job in jobs:
        pool.submit(job, len(job.costs), closed=True)
    pool.run()
    assert all(job.finished for job in jobs)
    assert {fate for job in jobs for fate in job.fates.values()} == {Fate.DELIVERED}
