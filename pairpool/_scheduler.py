"""Decides which slot runs what: events in, actions out; no I/O, no clock, no threads.

Theory of operation
===================
A *job* is a numbered row of *units* (an item, or an atomic chunk of the caller's). A *slot* is a place
where packets run: a worker process, a thread. A *packet* is a run of consecutive units of one job on its
way through one slot. Units that wait are never listed: a job keeps `next` and `ready` (units in between
have not been handed out) and the few ranges that came back.

- **Work is pulled.** `choose()` names the next packet worth sending, `assign()` records it. A slot is
  given packets until it holds `DEPTH` nanoseconds of work by our estimate: deep enough that a slot does
  not run dry while the caller computes in Python and nobody refills it (two or three GIL switch intervals).
- **Packets adapt.** A job begins with one unit a packet; they grow while they take less than `TARGET`.
- **Nothing strands.** When a slot has nothing to do and nobody waits, the packets queued at another slot are
  recalled, and the tail of a packet that runs late is cut off. Both are safe because each packet, and each
  unit of one, is taken by exactly one of worker and parent (see _page.py and engines/local.py).
- **Fair.** Jobs with waiting units take turns, packet by packet.

Guarantees
==========
Each unit of a job is settled exactly once: delivered, lost with the worker that ran it, or skipped. A unit is
in at most one packet in flight. `actions` leave in the order in which they were decided.

Interruption
============
A signal handler may raise in the main thread whenever a function is entered, a loop turns or a C function
returns; not between two plain operators. So each method that changes anything first computes, then *commits*
with operators alone: no call, no loop. The event that it digests leaves its queue within the same commit
(`del events[0]`). An interrupted method has therefore changed nothing, or all, and is simply called again.
tests/test_commits.py reads the byte code and holds this.

Assumptions: one thread at a time (the dispatcher's lock). `now` is in nanoseconds of any monotonic clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple

from pairpool._states import (
    PACKET_TRANSITIONS,
    SLOT_TRANSITIONS,
    Cargo,
    Job,
    Packet,
    PacketEvent,
    Range,
    Slot,
    SlotEvent,
    SlotState,
)

TARGET = 200_000  # ns a packet should take to run: long against its cost (~20 us), short against a wait
SHORTEST = 30_000  # ns below which a packet is not made shorter only to share work out evenly
DEPTH = 12_000_000  # ns of work a slot may hold: two or three GIL switch intervals (5 ms each)
UNKNOWN_LOAD = DEPTH // 2  # ns assumed of the first packets of a job
LATE = 1_000_000  # ns beyond twice its estimate after which a packet is looked at
STUCK = 4 * DEPTH  # ns of load from which on a late packet is stuck: no mere pause of a busy machine
PATIENCE_LIMIT = 64_000_000  # ns, the longest time between two looks at one packet
GROWTH = 8  # a packet that took less than TARGET lets the next of its job be so many times as large
LEARNING = 2  # packets a slot, of a job whose packets still grow
MAX_UNITS = 4096  # units a packet: what a worker's page can count claims for
MAX_PACKETS = 64  # packets in flight a slot, so that a recall stays short
CANDIDATES = 8  # waiting jobs looked at for one choice: the first few are refused only where slots are deep


class Action(StrEnum):
    """What the dispatcher is told to do, as ``(Action, argument, ...)``."""

    DELIVER = "deliver"  # (job, record): outcomes for the job's results
    PROGRESS = "progress"  # (job,): the dispatcher's own second half of DELIVER
    FINISH = "finish"  # (job,): every unit of a closed job is settled
    RECALL = "recall"  # (slot,): take back what is queued at the slot
    LOOK = "look"  # (slot, packet, cut): fetch results committed so far; with `cut` also the tail
    OPEN = "open"  # (slot,): start a worker
    STOP = "stop"  # (slot,): tell an idle worker to end


class Choice(NamedTuple):
    """A packet worth sending now: up to `limit` units of `job` from `first` on, to `slot`."""

    slot: Slot
    job: Job
    first: int
    limit: int


Events = deque[Any]


def _with(ranges: tuple[Range, ...], start: int, stop: int) -> tuple[Range, ...]:
    """The ranges, which are in order, and start..stop; neighbours become one, so that there are never many."""
    at = bisect_left(ranges, (start,))
    before, after = ranges[:at], ranges[at:]
    if before and before[-1][1] == start:
        start = before[-1][0]
        before = before[:-1]
    if after and after[0][0] == stop:
        stop = after[0][1]
        after = after[1:]
    return (*before, (start, stop), *after)


def _without(ranges: tuple[Range, ...], start: int, stop: int) -> tuple[Range, ...]:
    """The ranges less everything in start..stop."""
    kept: list[Range] = []
    for low, high in ranges:
        if low < min(high, start):
            kept.append((low, min(high, start)))
        if max(low, stop) < high:
            kept.append((max(low, stop), high))
    return tuple(kept)


class Scheduler:
    """All jobs, slots and packets of one pool.

    Methods named after an event take the queue that it came from: its first entry is removed in the commit.
    """

    def __init__(self, *, credit: int, packet_room: int, budget: int | None = None) -> None:
        self.credit = credit  # bytes of packets a slot may hold
        self.budget = budget
        self.packet_room = packet_room  # bytes the largest packet takes
        self.jobs: dict[int, Job] = {}
        self.waiting: dict[int, Job] = {}  # jobs with units to hand out, the one whose turn it is first
        self.slots: dict[int, Slot] = {}
        self.packets: dict[int, Packet] = {}
        self.next_packet = 1
        self.next_slot = 0
        self.actions: deque[tuple[Any, ...]] = deque()

    # -- jobs ------------------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        self.jobs[job.ident] = job

    def feed(self, job: Job, ready: int, closed: bool, source: list[Any] | None = None, taken: int = 0) -> None:
        """Units before `ready` can be handed out; `closed`: there will be no more.

        The first `taken` entries of `source` have become units.
        """
        waits = ready > job.next or job.returned
        finished = closed and job.settled == ready
        # commit
        job.ready = ready
        job.closed = closed
        if waits:
            self.waiting[job.ident] = job
        if finished:
            self.actions += ((Action.FINISH, job.ident),)
        if source is not None:
            del source[:taken]

    def skip(self, job: Job, start: int, stop: int) -> None:
        """Settles the units of start..stop that have not been handed out, without running them."""
        stop = min(stop, job.ready)
        ahead = max(0, stop - job.next) if start <= job.next else 0
        returned = _without(job.returned, start, stop)
        came_back = sum(b - a for a, b in job.returned) - sum(b - a for a, b in returned)
        settled = job.settled + ahead + came_back
        following = job.next + ahead
        waits = following < job.ready or returned
        listed = job.ident in self.waiting
        finished = job.closed and settled == job.ready and settled != job.settled
        # commit
        job.next = following
        job.returned = returned
        job.settled = settled
        if listed and not waits:
            del self.waiting[job.ident]
        if finished:
            self.actions += ((Action.FINISH, job.ident),)

    def remove(self, job: Job) -> None:
        """Forgets a job; what is in flight of it will be ignored when it comes back."""
        listed = job.ident in self.waiting
        known = job.ident in self.jobs
        # commit
        if listed:
            del self.waiting[job.ident]
        if known:
            del self.jobs[job.ident]

    # -- handing out -----------------------------------------------------------------------------------------

    def choose(self) -> Choice | None:
        """The next packet worth sending, or None where nobody waits or no slot has room."""
        reserved: tuple[Slot, ...] = ()
        for job in islice(self.waiting.values(), CANDIDATES):
            slot, fits = self._roomiest(job, reserved)
            if slot is None:
                continue
            if not fits:
                # Its turn, but no room yet. Were this slot refilled by those after it, there might never be.
                reserved += (slot,)
                continue
            first, stop = job.returned[0] if job.returned else (job.next, job.ready)
            limit = min(self._packet_units(job), stop - first)
            if slot.budget is not None:
                limit = min(limit, slot.budget)
            return Choice(slot, job, first, limit)
        return None

    def _packet_units(self, job: Job) -> int:
        if not job.unit_ns:
            return 1
        fair_share = job.waiting // (len(self.slots) << job.closed)
        return max(1, min(job.grown, TARGET // job.unit_ns, max(fair_share, SHORTEST // job.unit_ns)))

    def _roomiest(self, job: Job, reserved: tuple[Slot, ...]) -> tuple[Slot | None, bool]:
        """The slot with the least work, `reserved` ones aside, and whether it has room for a packet of `job` now."""
        best: Slot | None = None
        starting: Slot | None = None
        # A unit that alone fills a slot's depth is not queued behind others: it would only have to be recalled.
        room = DEPTH - (job.unit_ns or UNKNOWN_LOAD)
        # While packets of this job still grow, few are sent ahead: the next ones will carry more.
        if not job.unit_ns:
            ahead = len(self.slots)
        elif job.grown < TARGET // job.unit_ns:
            ahead = LEARNING * len(self.slots)
        else:
            ahead = job.in_flight + 1
        for slot in self.slots.values():
            state = slot.state
            if state is SlotState.IDLE:
                return slot, True
            if state is SlotState.STARTING:
                if not slot.packets and starting is None:
                    starting = slot
            elif (
                state is SlotState.BUSY
                and (best is None or slot.load < best.load)
                and slot.budget != 0
                and len(slot.packets) < MAX_PACKETS
                and slot.size + self.packet_room <= self.credit
                and slot not in reserved
            ):
                best = slot
        if starting is not None:
            return starting, True
        if best is None or job.in_flight >= ahead:
            return None, False
        return best, best.load <= room

    def assign(self, choice: Choice, cargo: Cargo, size: int, now: int, outbox: deque[Any], entry: Any) -> None:
        """Records that packet number `next_packet` carries `cargo`, and puts `entry` in the outbox."""
        slot, job, first, _ = choice
        ident = self.next_packet
        count = cargo.count
        load = job.unit_ns * count or UNKNOWN_LOAD
        packet = Packet(ident, job, slot, first, count, size, load, cargo.definitions, cargo.needs)
        state = SLOT_TRANSITIONS[slot.state][SlotEvent.ASSIGN]
        if state is SlotState.BUSY:
            for head in slot.packets.values():
                if not head.look_at:
                    head.look_at = now + LATE  # from now on it may keep something waiting
                break
            else:
                self._watch(packet, now, alone=True)
        stop = first + count
        budget = None if slot.budget is None else slot.budget - count
        if job.returned:
            high = job.returned[0][1]
            rest = ((stop, high),) if stop < high else ()
            returned, following = rest + job.returned[1:], job.next
        else:
            returned, following = (), stop
        waits = following < job.ready or returned
        # commit
        self.next_packet = ident + 1
        self.packets[ident] = packet
        slot.packets[ident] = packet
        slot.state = state
        slot.load += load
        slot.size += size
        slot.budget = budget
        slot.recalled = False
        job.next = following
        job.returned = returned
        job.in_flight += 1
        del self.waiting[job.ident]
        if waits:
            self.waiting[job.ident] = job  # at the end: the others' turn first
        outbox += (entry,)

    def _watch(self, packet: Packet, now: int, *, alone: bool) -> None:
        """Sets when a packet that begins now is late. A single unit with nothing behind it keeps nothing waiting."""
        packet.since = now
        packet.patience = LATE
        packet.look_at = 0 if alone and packet.count == 1 else now + 2 * packet.load + LATE

    # -- what slots answer -----------------------------------------------------------------------------------

    def result(self, packet: Packet, done: int, ran_ns: int, record: Any, now: int, events: Events | None) -> None:
        """Units of `packet` before `done` have outcomes now; `record` holds the new ones.

        `ran_ns` is how long the new ones ran, 0 where that is not known.
        """
        job = packet.job
        fresh = done - packet.done
        unit_ns = job.unit_ns
        if ran_ns:
            newest = max(1, ran_ns // fresh)
            unit_ns = (unit_ns + newest + 1) // 2 if unit_ns else newest
        delivery: tuple[tuple[Any, ...], ...] = ((Action.DELIVER, job.ident, record),)
        if done >= packet.count:
            grown = job.grown
            if ran_ns < TARGET:
                grown = max(grown, min(GROWTH * packet.count, MAX_UNITS))
            self._settle(
                packet, PacketEvent.FINISH, delivery, None, now, events, settled=fresh, unit_ns=unit_ns, grown=grown
            )
            return
        state = PACKET_TRANSITIONS[packet.state][PacketEvent.RESULT]
        # commit
        packet.state = state
        packet.done = done
        job.settled += fresh
        job.unit_ns = unit_ns
        self.actions += delivery
        if events is not None:
            del events[0]

    def _settle(
        self,
        packet: Packet,
        why: PacketEvent,
        delivery: tuple[tuple[Any, ...], ...],
        back: Range | None,
        now: int,
        events: Events | None,
        *,
        settled: int = 0,
        unit_ns: int | None = None,
        grown: int | None = None,
    ) -> None:
        """A packet leaves its slot: `settled` more units have outcomes (in `delivery`), those of `back` wait again."""
        job, slot = packet.job, packet.slot
        packet_state = PACKET_TRANSITIONS[packet.state][why]
        known = job.ident in self.jobs
        waits = back is not None and known
        returned = job.returned if back is None else _with(job.returned, *back)
        settled += job.settled
        if unit_ns is None:
            unit_ns = job.unit_ns
        if grown is None:
            grown = job.grown
        if known and job.closed and settled == job.ready and settled != job.settled:
            delivery += ((Action.FINISH, job.ident),)
        budget = slot.budget
        if budget is not None and back is not None:
            budget += back[1] - back[0]
        drained = len(slot.packets) == 1
        state = SLOT_TRANSITIONS[slot.state][SlotEvent.DRAIN] if drained else slot.state
        if drained and budget == 0 and state is not SlotState.RETIRING:
            state = SLOT_TRANSITIONS[state][SlotEvent.RETIRE]
        if drained and state is SlotState.RETIRING:
            delivery += ((Action.STOP, slot.ident),)
        if not drained:
            heads = iter(slot.packets.values())
            if next(heads) is packet:
                self._watch(next(heads), now, alone=len(slot.packets) == 2)
        # commit
        packet.state = packet_state
        del self.packets[packet.ident]
        del slot.packets[packet.ident]
        slot.state = state
        slot.load -= packet.load
        slot.size -= packet.size
        slot.budget = budget
        job.in_flight -= 1
        job.settled = settled
        job.unit_ns = unit_ns
        job.grown = grown
        job.returned = returned
        if waits:
            self.waiting[job.ident] = job
        self.actions += delivery
        if events is not None:
            del events[0]

    def came_back(self, packet: Packet, why: PacketEvent, now: int, events: Events | None) -> None:
        """A whole packet was taken back (RECALL) or refused (REFUSE): no unit of it has begun."""
        back = (packet.first, packet.first + packet.count)
        self._settle(packet, why, (), back, now, events)

    def cut(self, packet: Packet, kept: int, now: int, events: Events | None) -> None:
        """The units of `packet` from `kept` on were claimed back."""
        back = (packet.first + kept, packet.first + packet.count)
        if kept == packet.done < packet.count:
            # Every unit that the worker keeps has its outcome already: the packet is over.
            self._settle(packet, PacketEvent.FINISH, (), back, now, events)
            return
        job, slot = packet.job, packet.slot
        state = PACKET_TRANSITIONS[packet.state][PacketEvent.CUT]
        kept = min(kept, packet.count)
        known = job.ident in self.jobs and kept < packet.count
        returned = _with(job.returned, *back) if known else ()
        budget = slot.budget
        if budget is not None:
            budget += packet.count - kept
        # commit
        packet.state = state
        packet.count = kept
        slot.budget = budget
        if known:
            job.returned = returned
            self.waiting[job.ident] = job
        if events is not None:
            del events[0]

    # -- slots -----------------------------------------------------------------------------------------------

    def opened(self, slot: Slot, events: Events | None) -> None:
        """Packets can be sent to the slot."""
        state = SLOT_TRANSITIONS[slot.state][SlotEvent.OPEN]
        # commit
        slot.state = state
        if events is not None:
            del events[0]

    def up(self, slot: Slot, now: int, events: Events | None) -> None:
        """The slot's worker has run the initializer and takes packets."""
        state = SLOT_TRANSITIONS[slot.state][SlotEvent.UP]
        for head in slot.packets.values():
            self._watch(head, now, alone=len(slot.packets) == 1)
            if state is SlotState.IDLE:
                state = SLOT_TRANSITIONS[state][SlotEvent.ASSIGN]
            break
        # commit
        slot.state = state
        if events is not None:
            del events[0]

    def lose(self, packet: Packet, running: int | None, record: Any, now: int) -> None:
        """The worker died with `packet`: units done..running are lost (`record`), later ones run elsewhere.

        `running` None: no unit of it had begun.
        """
        stop = packet.first + packet.count
        delivery: tuple[tuple[Any, ...], ...] = ()
        if running is None:
            begun = packet.done
        else:
            begun = min(running + 1, packet.count)
            delivery = ((Action.DELIVER, packet.job.ident, record),)
        first = packet.first + begun
        back = (first, stop) if first < stop else None
        self._settle(packet, PacketEvent.DOWN, delivery, back, now, None, settled=begun - packet.done)

    def down(self, slot: Slot, events: Events | None) -> None:
        """The slot's worker has ended; each packet that it held was settled by `lose` before."""
        state = SLOT_TRANSITIONS[slot.state][SlotEvent.DOWN]
        # commit
        slot.state = state
        del self.slots[slot.ident]
        if events is not None:
            del events[0]

    def staff(self) -> int:
        """Slots that take packets, or will."""
        return sum(slot.state is not SlotState.RETIRING for slot in self.slots.values())

    def maintain(self, wanted: int) -> bool:
        """Takes one step towards `wanted` slots that take packets; False where none is needed."""
        staying = [slot for slot in self.slots.values() if slot.state is not SlotState.RETIRING]
        if len(staying) < wanted:
            ident = self.next_slot
            slot = Slot(ident, self.budget)
            # commit
            self.next_slot = ident + 1
            self.slots[ident] = slot
            self.actions += ((Action.OPEN, ident),)
            return True
        if len(staying) > wanted:
            self._retire(min(staying, key=lambda slot: (slot.state is not SlotState.IDLE, slot.load, -slot.ident)))
            return True
        return False

    def _retire(self, slot: Slot) -> None:
        """No more packets for this slot; it stops once what it runs is settled."""
        state = SLOT_TRANSITIONS[slot.state][SlotEvent.RETIRE]
        action = (Action.RECALL if slot.packets else Action.STOP, slot.ident)
        # commit
        slot.state = state
        self.actions += (action,)

    # -- balance ---------------------------------------------------------------------------------------------

    def steal(self) -> bool:
        """Recalls the packets queued at the most loaded slot, where another idles and nobody waits."""
        if self.waiting or not any(slot.state is SlotState.IDLE for slot in self.slots.values()):
            return False
        queued = [slot for slot in self.slots.values() if len(slot.packets) > 1 and not slot.recalled]
        queued += [
            slot
            for slot in self.slots.values()
            if slot.state is SlotState.STARTING and slot.packets and not slot.recalled
        ]
        if not queued:
            return False
        victim = max(queued, key=lambda slot: slot.load)
        # commit
        victim.recalled = True
        self.actions += ((Action.RECALL, victim.ident),)
        return True

    def starving(self) -> bool:
        """Whether a slot idles that a waiting unit would be given to at once."""
        return not self.waiting and any(
            slot.state is SlotState.IDLE or (slot.state is SlotState.STARTING and not slot.packets)
            for slot in self.slots.values()
        )

    def deadline(self) -> int | None:
        """When `late` has something to say next, in ns; None: never, so wait without a limit."""
        earliest: int | None = None
        for slot in self.slots.values():
            for head in slot.packets.values():
                if head.look_at and (earliest is None or head.look_at < earliest):
                    earliest = head.look_at
                break
        return earliest

    def late(self, now: int) -> None:
        """Has packets looked at that take longer than thought.

        A look brings the results which the worker has committed but not yet sent; where a slot idles, or this one
        retires, it also claims the tail back, so that a slow unit strands nobody. From a slot that is stuck the tail
        and the queue are taken in any case: where other slots never idle they might wait there for ever.
        """
        idle = not self.waiting and any(slot.state is SlotState.IDLE for slot in self.slots.values())
        for slot in self.slots.values():
            for head in slot.packets.values():
                if head.look_at and head.look_at <= now:
                    self._look(slot, head, idle or slot.state is SlotState.RETIRING, now)
                break

    def _look(self, slot: Slot, head: Packet, cut: bool, now: int) -> None:
        """A packet is late: it is taken to need as long again as it has run."""
        load = max(head.load, 2 * (now - head.since))
        more = load - head.load
        patience = min(2 * head.patience, PATIENCE_LIMIT)
        stuck = load > STUCK
        look_at = now + patience
        actions: tuple[tuple[Any, ...], ...] = ()
        if head.count - head.done > 1:
            actions = ((Action.LOOK, slot.ident, head.ident, cut or stuck),)
        elif stuck or len(slot.packets) == 1:
            look_at = 0  # nothing to gain: there is nothing to cut, and behind such a load nothing more is queued
        recall = stuck and len(slot.packets) > 1 and not slot.recalled
        if recall:
            actions += ((Action.RECALL, slot.ident),)
        # commit
        head.patience = patience
        head.look_at = look_at
        head.load = load
        slot.load += more
        if recall:
            slot.recalled = True
        self.actions += actions
