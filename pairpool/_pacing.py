"""How much work is sent at once, how far ahead, and when a packet is late: the scheduler's figures."""

from __future__ import annotations

from itertools import islice
from math import isqrt

from pairpool._states import Job, Slot, SlotState

# ns a packet should take to run: long against what it costs (60 us of the caller's processor where that is not warm),
# short against a wait. Where nobody waits for a single result it may be longer: its tail can be taken back.
TARGET_ALONE = 1_000_000
TARGET_TOGETHER = 4_000_000
COST = 60_000  # ns that a packet takes of the caller, by and large
GATHERED = 30_000  # ns of work that units amount to before they follow others of their job, of which they need not wait
DEPTH = 12_000_000  # ns of work a slot may hold: two or three GIL switch intervals (5 ms each)
# Times as long, and as deep, where nobody waits for a single result, and no other job is at work or waits: what is in
# the way of one that comes is taken back (_balance.py).
UNDISTURBED = 4
UNKNOWN_LOAD = DEPTH // 2  # ns assumed of the first packets of a job
LATE = 1_000_000  # ns beyond twice its estimate after which a packet is looked at
SHORT_WAIT = 2_000_000  # ns of others' work that the first packet of a job is queued behind
STUCK = 4 * DEPTH  # ns of load from which on a late packet is stuck: no mere pause of a busy machine
PATIENCE_LIMIT = 64_000_000  # ns, the longest time between two looks at one packet
ASLEEP = 1_000_000_000  # ns for which a packet lies before a worker that has nothing else to do until that is asleep
SLOWEST = 64 * ASLEEP  # ns, the same of one that has been asleep often, and may be no more than slow
GROWTH = 8  # a packet that took less than its target lets the next of its job be so many times as large
LEARNING = 2  # packets a slot, of a job whose packets still grow
MAX_UNITS = 4096  # units a packet: what a worker's page can count claims for


def target(job: Job) -> int:
    """How long a packet of a job should take to run, in ns."""
    return TARGET_ALONE if job.visible else TARGET_TOGETHER


def stretch(job: Job) -> int:
    """How many times as long packets, and as deep queues, a job may have while no other job is at work or waits."""
    return 1 if job.visible else UNDISTURBED


def rank(job: Job) -> int:
    """Who is served first: for whom a slot is cleared, then who had his turn, but units came back; then all in turn."""
    if job.cleared is not None:
        return 0
    return 1 if job.returned else 2


def units_at_once(job: Job, slots: int, times: int) -> int:
    """Units that the next packet of a job should have. `times`: by which its usual length is stretched."""
    if not job.unit_ns:
        return 1
    waiting = job.waiting
    fair_share = waiting // (slots << job.closed)
    # All together n packets take COST * n of the caller, and then the last its n-th part of the work. That is least
    # where each takes this long, which among many slots is more than their shares.
    worthwhile = isqrt(COST * waiting * job.unit_ns) // job.unit_ns
    if not job.settled:  # the estimate is that of an earlier job: all slots begin, in case that it is wrong
        worthwhile = min(worthwhile, -(-job.ready // slots))
    return max(1, min(job.grown, times * target(job) // job.unit_ns, max(fair_share, worthwhile)))


def load(job: Job, units: int) -> int:
    """How long so many units of a job will take, in ns."""
    return job.unit_ns * units or UNKNOWN_LOAD


def may_send_ahead(job: Job, slots: int) -> bool:
    """Whether a packet may be queued behind others: while those of a job grow, the next ones will carry more."""
    if not job.unit_ns:
        return job.in_flight < slots
    return job.grown >= target(job) // job.unit_ns or job.in_flight < LEARNING * slots


def gathers(job: Job, slot: Slot) -> bool:
    """Whether units wait for others of their job, to go ahead together: a packet costs more than such short ones.

    Only where the slot has some of the job already. When those are answered the others follow.
    """
    return (
        not job.closed
        and job.waiting * job.unit_ns < GATHERED
        and any(packet.job is job for packet in slot.packets.values())
    )


def fits(job: Job, slot: Slot, times: int) -> bool:
    """Whether a busy slot has room for a packet of a job. `times`: by which its usual depth is stretched.

    A unit that alone fills a slot's depth is not queued behind others: it would only have to be recalled.
    """
    unit_ns = job.unit_ns or UNKNOWN_LOAD
    return unit_ns < DEPTH and slot.load <= times * DEPTH - unit_ns


def is_stuck(job: Job, load: int) -> bool:
    """Whether a packet of a job, by what it is taken to need, takes so long that nothing should wait behind it."""
    return load > stretch(job) * STUCK


def comes_free(slot: Slot) -> bool:
    """Whether a slot that is being cleared will take another packet before long."""
    if slot.budget == 0 or slot.asleep or slot.state not in (SlotState.BUSY, SlotState.IDLE):
        return False
    return not any(is_stuck(head.job, head.load) for head in islice(slot.packets.values(), 1))


def may_have_room(slot: Slot) -> bool:
    """Whether a job that waits for a slot to have room may go on to: not where what it runs takes ever longer."""
    return slot.state is SlotState.BUSY and slot.budget != 0 and slot.load <= DEPTH
