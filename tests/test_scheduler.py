"""What becomes of units, jobs and workers in the scheduler: by hypothesis, and one by one."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bench import MICROSECOND, MILLISECOND, Bench
from pairpool._pacing import DEPTH, MAX_UNITS, TARGET_ALONE
from pairpool._states import Action, PacketEvent, SlotState
from simulated import SimulatedPool
from simulated_workers import Fate, SimulatedJob

pytestmark = pytest.mark.once

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


def test_a_finished_job_finishes_once() -> None:
    """A closed job is told to be finished once, after its last outcome."""
    bench = Bench(1)
    bench.job(1, 2, unit_ns=TARGET_ALONE)
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
    bench.scheduler.backlog.feed(job, 1, True)
    assert bench.taken() == [(Action.FINISH, 1)]


def test_a_removed_job_stays_gone() -> None:
    """Of a removed job nothing is handed out again, and nothing finishes."""
    bench = Bench(1)
    job = bench.job(1, 100, unit_ns=TARGET_ALONE)
    first, second, *_ = bench.send()
    bench.scheduler.backlog.remove(job)
    bench.scheduler.came_back(second, PacketEvent.RECALL, 0, None)
    bench.finish(first)
    assert bench.send() == []
    assert (Action.FINISH, 1) not in bench.taken()


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
    job = bench.job(1, 100, unit_ns=TARGET_ALONE // 5)
    job.grown = 5
    packet, *queued = bench.send()
    bench.scheduler.result(packet, 1, MICROSECOND, ("one",), 0, None)
    bench.taken()
    for each in queued:
        bench.scheduler.lose(each, None, "nothing", 0)
    bench.scheduler.lose(packet, running, "lost", 0)
    bench.scheduler.roster.down(packet.slot, None)
    assert job.settled == 1 + lost
    assert job.returned == ((1 + lost, job.next),)
    assert bench.taken() == ([(Action.DELIVER, 1, "lost")] if lost else [])
    assert bench.slots == []


def test_a_worker_runs_its_share_of_units_and_is_replaced() -> None:
    """With a budget a worker is given exactly so many units, whatever comes back, then it is stopped."""
    bench = Bench(1, budget=6)
    job = bench.job(1, 100, unit_ns=TARGET_ALONE // 4)
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
    assert bench.scheduler.roster.maintain(1)
    assert len(bench.slots) == 2


def test_no_worker_is_replaced_while_it_runs() -> None:
    """However short the budget, there are no more workers at work than were wanted."""
    bench = Bench(2, budget=1)
    bench.job(1, 1000)
    bench.send()
    assert not bench.scheduler.roster.maintain(2)


def test_shrinking_stops_idle_workers_first() -> None:
    """When the pool shrinks, idle workers stop at once; a busy one gives back its queue and ends its unit."""
    bench = Bench(2)
    bench.job(1, 1)
    busy = bench.send()[0].slot
    idle = next(slot for slot in bench.slots if slot is not busy)
    assert bench.scheduler.roster.maintain(1)
    assert bench.taken() == [(Action.STOP, idle.ident)]
    assert bench.scheduler.roster.maintain(0)
    assert bench.taken() == [(Action.RECALL, busy.ident)]
    bench.finish(next(iter(busy.packets.values())))
    assert (Action.STOP, busy.ident) in bench.taken()
    assert not bench.scheduler.roster.maintain(0)


def test_skipped_units_count_as_settled() -> None:
    """Units that are skipped never run, those handed out already do; the job finishes all the same."""
    bench = Bench(1)
    job = bench.job(1, 10, unit_ns=DEPTH)
    packet = bench.send()[0]
    bench.scheduler.backlog.skip(job, 1, 10)
    assert bench.send() == []
    bench.finish(packet)
    assert bench.taken()[-1] == (Action.FINISH, 1)


def test_skipping_the_last_units_finishes_the_job() -> None:
    """A job whose last units are skipped is finished by that, once."""
    bench = Bench(1)
    job = bench.job(1, 10, unit_ns=DEPTH)
    bench.finish(bench.send()[0])
    bench.taken()
    bench.scheduler.backlog.skip(job, 1, 10)
    bench.scheduler.backlog.skip(job, 1, 10)
    assert bench.taken() == [(Action.FINISH, 1)]


def test_a_cut_packet_of_which_all_is_known_is_over() -> None:
    """Where every unit that a worker keeps has its outcome, a cut ends the packet."""
    bench = Bench(1)
    job = bench.job(1, 100, unit_ns=TARGET_ALONE // 4)
    job.grown = 4
    packet = bench.send()[0]
    bench.scheduler.result(packet, 2, 0, ("two",), 0, None)
    bench.scheduler.cut(packet, 2, 0, None)
    assert packet.ident not in bench.scheduler.packets
    assert job.returned == ((2, 4),)


def test_an_event_leaves_its_queue_with_what_it_changed() -> None:
    """Each event that the scheduler digests is gone from its queue afterwards, and no other is."""
    bench = Bench(1)
    bench.job(1, 1)
    events: deque[str] = deque(["result", "next"])
    packet = bench.send()[0]
    bench.scheduler.result(packet, 1, 0, ("record",), 0, events)
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
