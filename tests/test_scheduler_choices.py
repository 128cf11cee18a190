"""What the scheduler chooses: whose turn it is, how much at once, where to, and when to take it back."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bench import MICROSECOND, MILLISECOND, Bench
from pairpool._pacing import (
    COST,
    DEPTH,
    GATHERED,
    GROWTH,
    LEARNING,
    MAX_UNITS,
    SHORT_WAIT,
    TARGET_ALONE,
    TARGET_TOGETHER,
    UNDISTURBED,
)
from pairpool._states import Action, Job, Packet, PacketEvent
from simulated import SimulatedPool
from simulated_workers import SimulatedJob, SimulatedWorker

pytestmark = pytest.mark.once


@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("unit_ns", [0, MICROSECOND, 5 * MILLISECOND, 1000 * MILLISECOND])
def test_a_short_job_does_not_wait_for_a_long_one(unit_ns: int, stuck: bool) -> None:
    """A job of one unit that comes while a million units wait is in one of the next packets sent.

    It may be one whose last unit has been `stuck` in another slot for long, unlike those before.
    """
    bench = Bench(2 + stuck)
    calls = bench.job(2, int(stuck), closed=False, unit_ns=unit_ns)
    for packet in bench.send():
        bench.now = 1000 * MILLISECOND
        bench.scheduler.look_at = packet.look_at = bench.now
        bench.scheduler.late(bench.now)
    million = bench.job(1, 1_000_000)
    bench.send()
    while million.grown * million.unit_ns < TARGET_ALONE:
        bench.finish(next(packet for packet in bench.scheduler.packets.values() if packet.job is million))
        bench.send()
    bench.scheduler.backlog.feed(calls, calls.ready + 1, closed=False)
    sent: list[Packet] = []
    while not any(packet.job is calls for packet in sent):
        packet = next(packet for packet in bench.scheduler.packets.values() if packet.job is million)
        bench.finish(packet, unit_ns=million.unit_ns)
        sent += bench.send()
    ahead = sum(packet.load for packet in sent[-1].slot.packets.values() if packet is not sent[-1])
    assert ahead <= DEPTH
    assert len(sent) <= 2 * DEPTH // TARGET_ALONE


def test_short_units_of_an_open_job_go_ahead_together() -> None:
    """Where a slot has some of them already; as soon as they are worth a packet, or those are answered."""
    bench = Bench(1)
    job = bench.job(1, 1, closed=False, unit_ns=MICROSECOND)
    job.grown = MAX_UNITS
    (first,) = bench.send()
    bench.scheduler.backlog.feed(job, GATHERED // MICROSECOND, closed=False)
    assert bench.send() == []
    bench.scheduler.backlog.feed(job, GATHERED // MICROSECOND + 1, closed=False)
    (second,) = bench.send()
    assert second.count == GATHERED // MICROSECOND
    bench.scheduler.backlog.feed(job, job.ready + 1, closed=False)
    bench.finish(first)
    bench.finish(second)
    assert [packet.count for packet in bench.send()] == [1]


def deep(bench: Bench, unit_ns: int, *, visible: bool = False) -> Job:
    """Have all slots of a bench hold as much of a job of a million units as they may."""
    job = bench.job(1, 1_000_000, unit_ns=unit_ns, visible=visible)
    job.grown = MAX_UNITS
    bench.send()
    return job


def test_a_job_that_comes_is_the_next() -> None:
    """What others have queued at a slot is taken back for it, and the rest of what runs there."""
    bench = Bench(2)
    long = deep(bench, MILLISECOND)
    short = bench.job(2, 2, unit_ns=MILLISECOND)
    assert bench.send() == []
    recall, look = bench.taken()
    slot = bench.scheduler.slots[recall[1]]
    head, *queued = slot.packets.values()
    assert sum(packet.load for packet in queued) > DEPTH
    assert (recall, look) == ((Action.RECALL, slot.ident), (Action.LOOK, slot.ident, head.ident, True))
    assert bench.send() == []  # it is being taken back
    assert bench.taken() == []
    for packet in queued:
        bench.scheduler.came_back(packet, PacketEvent.RECALL, bench.now, None)
    bench.scheduler.cut(head, 3, bench.now, None)
    assert slot.load == head.load == 3 * MILLISECOND
    first, *others = bench.send()
    assert (first.job, first.slot) == (short, slot)
    assert long in {packet.job for packet in others}
    assert [*slot.packets.values()][:2] == [head, first]


def test_who_comes_does_not_take_the_turn_of_others() -> None:
    """Of each job that is queued at a slot more has to be under way; and a slot is soon there for it, or it waits."""
    bench = Bench(1)
    deep(bench, MILLISECOND)
    second = bench.job(2, 1, unit_ns=MILLISECOND)
    bench.send()
    assert len(bench.taken()) == 2
    head, *queued = bench.slots[0].packets.values()
    for packet in queued:
        bench.scheduler.came_back(packet, PacketEvent.RECALL, bench.now, None)
    bench.scheduler.cut(head, 1, bench.now, None)
    bench.send()
    assert second.in_flight == 1
    bench.job(3, 1, unit_ns=MILLISECOND)
    bench.send()
    assert bench.taken() == []


def test_a_slot_that_gave_way_does_as_much_for_others_before_it_does_so_again() -> None:
    """Or a job would stand still beside a row of others, and jobs take from each other for ever what is not begun."""
    bench = Bench(1)
    deep(bench, MILLISECOND)
    bench.job(2, 1, unit_ns=MILLISECOND)
    bench.send()
    head, *queued = bench.slots[0].packets.values()
    for packet in queued:
        bench.scheduler.came_back(packet, PacketEvent.RECALL, bench.now, None)
    bench.scheduler.cut(head, 1, bench.now, None)
    bench.send()
    assert len(bench.taken()) == 2
    (slot,) = bench.slots
    assert slot.owes == SHORT_WAIT
    waiting = bench.job(3, 1, unit_ns=MILLISECOND)
    bench.send()
    assert bench.taken() == []
    bench.scheduler.backlog.remove(waiting)
    while slot.owes:
        packet = next(iter(slot.packets.values()))
        owed = slot.owes if packet.ahead else max(0, slot.owes - packet.load)
        bench.finish(packet, unit_ns=MILLISECOND)
        assert slot.owes == owed
        bench.send()
    bench.taken()
    bench.job(4, 1, unit_ns=MILLISECOND)
    bench.send()
    assert (Action.RECALL, slot.ident) in bench.taken()


@pytest.mark.parametrize("loops", [1, 3])
def test_a_long_job_keeps_its_share_beside_rows_of_short_ones(loops: int) -> None:
    """Each of which comes when the one before it has ended, and is the next."""
    pool = SimulatedPool(1)
    long = SimulatedJob([500 * MICROSECOND] * 100_000, visible=False)
    pool.submit(long, 100_000, closed=True)
    pool.digest()
    (worker,) = pool.workers.values()
    while len(long.fates) < 100:
        go_on(pool, worker)
    begun, before, rows = pool.now, len(long.fates), 0
    short: list[SimulatedJob] = []
    while pool.now < begun + 2000 * MILLISECOND:
        short = [job for job in short if not job.finished]
        while len(short) < loops:
            short.append(SimulatedJob([10 * MILLISECOND]))
            pool.submit(short[-1], 1, closed=True)
            rows += 1
        go_on(pool, worker)
    share = (len(long.fates) - before) * 500 * MICROSECOND / (pool.now - begun)
    assert 0.8 / (loops + 1) < share < 0.9
    assert rows > 20 * loops


def test_nobody_waits_for_a_slot_that_cannot_be_cleared() -> None:
    """What is queued there did not come back, and what runs hangs: he who waits for it goes elsewhere."""
    bench = Bench(2)
    deep(bench, MILLISECOND)
    short = bench.job(2, 1, unit_ns=MILLISECOND)
    bench.send()
    hung = short.cleared
    assert hung is not None
    (other,) = [slot for slot in bench.slots if slot is not hung]
    bench.now = 1
    while short.cleared is hung and bench.now < 1000 * MILLISECOND:
        bench.now += MILLISECOND
        bench.scheduler.late(bench.now)
        bench.send()
    assert short.cleared is not hung
    while short.in_flight == 0:
        bench.finish(next(iter(other.packets.values())), unit_ns=MILLISECOND)
        bench.send()
    assert short in [packet.job for packet in other.packets.values()]


def test_nobody_makes_way_where_there_is_little_to_wait_for() -> None:
    """To take it back costs more than the wait."""
    bench = Bench(1)
    job = bench.job(1, 10, unit_ns=SHORT_WAIT // 10)
    job.grown = MAX_UNITS
    bench.send()
    short = bench.job(2, 1, unit_ns=MILLISECOND)
    bench.send()
    assert short.in_flight == 1
    assert bench.taken() == []


def test_where_others_wait_slots_are_less_deep() -> None:
    """A job alone whose results are awaited together has more at each slot, in longer packets."""
    bench = Bench(1)
    deep(bench, MILLISECOND)
    alone = [packet.load for packet in bench.slots[0].packets.values()]
    assert (alone[0], sum(alone)) == (UNDISTURBED * TARGET_TOGETHER, UNDISTURBED * DEPTH)
    bench = Bench(1)
    bench.job(2, 1_000_000, unit_ns=MILLISECOND, visible=False).grown = MAX_UNITS
    deep(bench, MILLISECOND)
    beside = [packet.load for packet in bench.slots[0].packets.values()]
    assert beside[0] == TARGET_TOGETHER
    assert sum(beside) <= DEPTH + TARGET_TOGETHER
    bench = Bench(1)
    deep(bench, MILLISECOND, visible=True)
    assert sum(packet.load for packet in bench.slots[0].packets.values()) == DEPTH


def test_jobs_take_turns() -> None:
    """Jobs with waiting units are given packets one after another."""
    bench = Bench(1)
    for ident in (1, 2, 3):
        bench.job(ident, 1000, unit_ns=MILLISECOND)
    assert [packet.job.ident for packet in bench.send()][:6] == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(("visible", "target"), [(True, TARGET_ALONE), (False, UNDISTURBED * TARGET_TOGETHER)])
def test_packets_grow_while_they_are_short(visible: bool, target: int) -> None:
    """Packets begin with one unit and grow until one takes about as long as it should; slow units go one by one."""
    bench = Bench(1)
    bench.job(1, 10**6, visible=visible)
    sizes = []
    for _ in range(10):
        packet = bench.send()[0]
        sizes.append(packet.count)
        for each in bench.slots[0].packets.copy().values():
            bench.finish(each, unit_ns=10 * MICROSECOND)
    assert sizes[0] == 1
    assert all(1 < larger / smaller <= GROWTH for smaller, larger in pairwise(sizes[:4]))
    assert sizes[-1] == target // (10 * MICROSECOND)
    slow = bench.job(2, 100, visible=visible)
    slow.unit_ns, slow.grown = target + 1, MAX_UNITS
    bench.scheduler.backlog.remove(bench.scheduler.jobs[1])
    assert {packet.count for packet in bench.send()} == {1}


def test_packets_of_a_growing_job_are_not_sent_far_ahead() -> None:
    """While packets still grow only a few are sent ahead, since the next will be larger."""
    bench = Bench(2)
    bench.job(1, 10**6, unit_ns=MICROSECOND)
    assert len(bench.send()) == LEARNING * 2


def test_the_last_units_are_shared_out() -> None:
    """Near the end of a job packets shrink, so that every slot has some of it."""
    bench = Bench(4)
    job = bench.job(1, 64, unit_ns=COST)
    job.grown = MAX_UNITS
    sent = bench.send()
    assert {packet.slot.ident for packet in sent} == {0, 1, 2, 3}
    assert max(packet.count for packet in sent) <= 64 // 4


@pytest.mark.parametrize("slots", [16, 1000])
def test_a_job_has_no_more_packets_than_it_is_worth(slots: int) -> None:
    """However many slots there are, a job that is short against what packets cost is not shared out among all.

    That holds once something has come back.
    """
    bench = Bench(slots)
    job = bench.job(1, 10_000, unit_ns=COST // 1000)
    job.grown, job.settled = MAX_UNITS, 1
    assert [packet.count for packet in bench.send()] == [3162, 2614, 2055, 1472, 697]
    alone = bench.job(2, 900, unit_ns=COST // 1000)
    alone.grown, alone.settled = MAX_UNITS, 1
    assert [packet.count for packet in bench.send()] == [900]


def test_what_is_known_of_an_earlier_job_leaves_no_slot_without_units() -> None:
    """A job that is expected to be tiny is shared out, however short that makes its packets."""
    bench = Bench(4)
    tiny = bench.job(1, 10, unit_ns=MICROSECOND)
    tiny.grown = MAX_UNITS
    assert [packet.count for packet in bench.send()] == [3, 3, 3, 1]
    assert {slot.load for slot in bench.slots} == {3 * MICROSECOND, MICROSECOND}


def test_a_slot_is_as_deep_as_time_says() -> None:
    """A slot holds about `DEPTH` of work, whatever the number of packets."""
    bench = Bench(2)
    bench.job(1, 10**6, unit_ns=MILLISECOND)
    bench.send()
    assert all(DEPTH - MILLISECOND < slot.load <= DEPTH for slot in bench.slots)


def test_a_slot_holds_no_more_than_its_credit() -> None:
    """However short the packets, a slot's channel is never given more than it takes."""
    bench = Bench(1, credit=3)
    bench.job(1, 1000, unit_ns=TARGET_ALONE)
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
    job = bench.job(1, 1000, unit_ns=TARGET_ALONE // 4)
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
    bench.scheduler.steal()
    bench.scheduler.steal()
    assert bench.taken() == [(Action.RECALL, bench.slots[0].ident)]


def test_nothing_is_recalled_where_units_wait() -> None:
    """Where every slot has something to do nothing is recalled."""
    bench = Bench(2)
    bench.job(1, 1000, unit_ns=MILLISECOND)
    bench.send()
    bench.finish(next(iter(bench.slots[0].packets.values())), unit_ns=MILLISECOND)
    bench.taken()
    bench.scheduler.steal()
    assert bench.taken() == []


def test_a_new_worker_is_relieved_while_it_starts() -> None:
    """A packet that waits for a worker to come up is recalled for a slot that idles."""
    bench = Bench(1)
    bench.scheduler.roster.maintain(2)
    asked = bench.slots[1]
    bench.job(1, 2, unit_ns=DEPTH)
    assert [packet.slot for packet in bench.send()] == bench.slots[:1]  # there is no way to send it anything yet
    bench.scheduler.roster.opened(asked, None)
    head = bench.send()[0]
    assert head.slot is asked
    bench.finish(next(iter(bench.slots[0].packets.values())))
    bench.taken()
    bench.scheduler.steal()
    assert bench.taken() == [(Action.RECALL, asked.ident)]


def late_packet(bench: Bench, units: int = 4) -> Packet:
    """Send a packet of some units and let it become late."""
    job = bench.job(1, 1000, closed=False, unit_ns=TARGET_ALONE // units)
    job.grown = units
    head = bench.send()[0]
    bench.now = head.look_at
    return head


def test_the_tail_of_a_late_packet_is_cut_for_an_idle_slot() -> None:
    """A packet that takes longer than thought is looked at; its tail goes to a slot that idles."""
    bench = Bench(2)
    job = bench.job(1, 4, unit_ns=TARGET_ALONE // 4)
    job.grown = MAX_UNITS
    head = bench.assign(bench.scheduler.choose()._replace(limit=4))  # type: ignore[union-attr]
    assert bench.scheduler.look_at == head.look_at
    bench.scheduler.late(head.look_at - 1)
    assert bench.taken() == []
    bench.scheduler.late(head.look_at)
    assert bench.taken() == [(Action.LOOK, head.slot.ident, head.ident, True)]
    bench.scheduler.cut(head, 1, bench.now, None)
    assert job.returned == ((1, 4),)
    assert bench.send()[0].slot is not head.slot


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
        for worker in (hung, busy):
            worker.step()
            while not worker.running:
                pool.now += worker.step() or 0
            worker.receive(len(worker.channel))
        pool.digest()
    if short.plan.ident not in [packet.job.ident for packet in pool.scheduler.slots[hung.slot].packets.values()]:
        hung, busy = busy, hung
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
    assert bench.scheduler.look_at is None


def test_one_long_unit_soon_needs_no_timer() -> None:
    """A single unit with nothing behind it needs no timer; with something behind it, only until that is recalled."""
    bench = Bench(1)
    bench.job(1, 1)
    bench.send()
    assert bench.looks() == []
    bench.job(2, 1)
    (queued,) = bench.send()
    looks = bench.looks()
    assert 0 < len(looks) < 8
    assert bench.taken() == [(Action.RECALL, 0)]
    bench.scheduler.came_back(queued, PacketEvent.RECALL, bench.now, None)
    assert bench.send() == []
    assert bench.looks() == []


def test_a_retiring_slot_gets_no_packets() -> None:
    """A slot that retires is given nothing more, and its late packet is cut whoever waits."""
    bench = Bench(1)
    head = late_packet(bench)
    bench.scheduler.roster.maintain(0)
    bench.scheduler.late(bench.now)
    assert bench.send() == []
    assert (Action.LOOK, head.slot.ident, head.ident, True) in bench.taken()


def test_a_cut_that_takes_nothing_changes_nothing() -> None:
    """Where the worker had claimed every unit a cut changes nothing."""
    bench = Bench(1)
    head = late_packet(bench)
    bench.scheduler.cut(head, head.count, 0, None)
    assert head.count == 4
    assert head.job.returned == ()
