"""Decides which slot runs what: events in, actions out; no I/O, no clock, no threads.

Theory of operation
===================
A *job* is a numbered row of *units* (an item, or an atomic chunk of the caller's; see _backlog.py). A *slot* is a
place where packets run: a worker process, a thread. A *packet* is a run of consecutive units of one job on its way
through one slot.

- **Work is pulled.** `choose()` names the next packet worth sending, `assign()` records it. A slot is
  given packets until it holds `DEPTH` nanoseconds of work by our estimate (_pacing.py): deep enough that a slot does
  not run dry while the caller computes in Python and nobody refills it (two or three GIL switch intervals).
- **Packets adapt.** A job begins with one unit a packet; they grow while they take less than their target.
- **Nothing strands.** When a slot has nothing to do and nobody waits, the packets queued at another slot are
  recalled, and the tail of a packet that runs late is cut off (_balance.py). Both are safe because each packet, and
  each unit of one, is taken by exactly one of worker and parent (see _page.py and engines/local.py).
- **Fair.** Jobs with waiting units take turns, packet by packet; and one of which nothing is under way does not wait
  for what others have queued (_balance.py).

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

from collections import deque
from itertools import islice
from typing import Any

from pairpool import _pacing
from pairpool._backlog import Backlog
from pairpool._balance import Balance
from pairpool._pacing import LATE, MAX_UNITS, SHORT_WAIT
from pairpool._ranges import Range, including, sum_of
from pairpool._roster import Events, Roster
from pairpool._states import (
    PACKET_TRANSITIONS,
    SLOT_TRANSITIONS,
    Action,
    Cargo,
    Choice,
    Job,
    Packet,
    PacketEvent,
    Sent,
    Slot,
    SlotEvent,
    SlotState,
)

CANDIDATES = 8  # waiting jobs looked at for one choice: the first few are refused only where slots are deep


class Scheduler(Balance):
    """All jobs, slots and packets of one pool.

    Methods named after an event take the queue that it came from: its first entry is removed in the commit.
    """

    def __init__(self, *, credit: int, packet_room: int, budget: int | None = None, rouses: bool = False) -> None:
        """The roster has what they mean."""
        self.actions: deque[tuple[Any, ...]] = deque()
        self.roster = Roster(self.actions, credit=credit, packet_room=packet_room, budget=budget, rouses=rouses)
        self.backlog = Backlog(self.actions)
        self.jobs, self.waiting = self.backlog.jobs, self.backlog.waiting
        self.slots = self.roster.slots
        self.changed = self.roster.changed  # a slot that is changed is noted there in the same commit
        self.packets: dict[int, Packet] = {}
        self.may_steal = False  # a slot came to idle while others had packets
        self.look_at: int | None = None  # no packet is late before; None: none will be
        self.next_packet = 1

    # -- handing out -----------------------------------------------------------------------------------------

    def choose(self) -> Choice | None:
        """The next packet worth sending, or None where nobody waits or no slot has room."""
        if not self.waiting:
            return None
        if self.changed:
            self.roster.file()
        reserved: tuple[Slot, ...] = ()
        candidates = [*islice(self.waiting.values(), CANDIDATES)]
        for job in candidates:
            self.make_way(job)
        for job in sorted(candidates, key=_pacing.rank):
            # Of each slot's depth and of a packet's length a job has more that has the pool to itself.
            alone = len(self.waiting) == 1 and job.in_flight == len(self.packets)
            times = _pacing.stretch(job) if alone else 1
            slot = job.cleared
            if slot is not None and not _pacing.comes_free(slot):
                job.cleared = slot = None
            if slot is not None and len(slot.packets) > 1:
                reserved += (slot,)  # it is being taken back
                continue
            if slot is None:
                slot = self.roster.roomiest(reserved)
            if slot is None:
                continue
            if slot.state is SlotState.BUSY and slot is not job.cleared:
                if not _pacing.may_send_ahead(job, len(self.slots)) or _pacing.gathers(job, slot):
                    continue
                if not _pacing.fits(job, slot, times):
                    # Its turn, but no room yet. Were a slot refilled by those after it, there might never be.
                    awaited = job.awaited
                    if awaited is None or not _pacing.may_have_room(awaited):
                        job.awaited = awaited = slot
                    reserved += (awaited,)
                    continue
            first, stop = job.returned[0] if job.returned else (job.next, job.ready)
            limit = min(_pacing.units_at_once(job, len(self.slots), times), stop - first)
            if slot.budget is not None:
                limit = min(limit, slot.budget)
            return Choice(slot, job, first, limit)
        return None

    def assign(self, choice: Choice, cargo: Cargo, size: int, now: int, outbox: deque[Any], entry: Any) -> None:
        """Records that packet number `next_packet` carries `cargo`, and puts `entry` in the outbox."""
        slot, job, first, _ = choice
        ident = self.next_packet
        count = cargo.units
        load = _pacing.load(job, count)
        packet = Packet(
            ident, job, slot, first, count, size, load, cargo.definitions, cargo.needs, cargo.retries, cargo.limit
        )
        state = SLOT_TRANSITIONS[slot.state][SlotEvent.ASSIGN]
        if state is SlotState.BUSY:
            for head in slot.packets.values():
                if not head.look_at or (head.count == 1 and len(slot.packets) == 1):
                    self._look_again(head, now + LATE)  # from now on it may keep something waiting
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
        queued = job.queued + (len(slot.packets) > 0)
        packet.ahead = job.cleared is slot
        owes = max(load, SHORT_WAIT) if packet.ahead else slot.owes
        # commit
        self.next_packet = ident + 1
        self.packets[ident] = packet
        slot.packets[ident] = packet
        slot.state = state
        slot.load += load
        slot.size += size
        slot.budget = budget
        slot.recalled = False
        self.changed[slot.ident] = slot
        job.next = following
        job.returned = returned
        slot.owes = owes
        job.in_flight += 1
        job.queued = queued
        job.awaited = None
        job.cleared = None
        del self.waiting[job.ident]
        if waits:
            self.waiting[job.ident] = job  # at the end: the others' turn first
        outbox += (entry,)

    def adopt(self, sent: list[Sent], now: int) -> None:
        """Records the packet that was sent, and numbers its unit."""
        ident, slot, job, cargo, size, units, unit = sent[0]
        load, number = _pacing.load(job, 1), job.ready
        packet = Packet(
            ident, job, slot, number, 1, size, load, cargo.definitions, cargo.needs, cargo.retries, cargo.limit
        )
        state = SLOT_TRANSITIONS[slot.state][SlotEvent.ASSIGN]
        self._watch(packet, now, alone=True)
        # commit
        self.packets[ident] = packet
        slot.packets[ident] = packet
        slot.state = state
        slot.load += load
        slot.size += size
        slot.recalled = False
        self.changed[slot.ident] = slot
        units[number] = unit
        job.ready = number + 1
        job.next = number + 1
        job.in_flight += 1
        del sent[0]

    def _watch(self, packet: Packet, now: int, *, alone: bool) -> None:
        """Sets when a packet that begins now is late. A single unit with nothing behind it has only to be taken."""
        packet.since = now
        packet.patience = LATE
        allowance = packet.slot.allowance if alone and packet.count == 1 else 2 * packet.load + LATE
        self._look_again(packet, allowance and now + allowance)

    def _look_again(self, packet: Packet, look_at: int) -> None:
        """Has a slot's head looked at, 0 = never; before the commit: a look too many does no harm."""
        packet.look_at = look_at
        if look_at and (self.look_at is None or look_at < self.look_at):
            self.look_at = look_at

    # -- what slots answer -----------------------------------------------------------------------------------

    def result(
        self,
        packet: Packet,
        done: int,
        ran_ns: int,
        records: tuple[Any, ...],
        now: int,
        events: Events | None,
        again: tuple[Range, ...] = (),
    ) -> None:
        """Units of `packet` before `done` have outcomes now; `records` hold the new ones, but for those to run `again`.

        `ran_ns` is how long the new ones ran, 0 where that is not known.
        """
        job = packet.job
        fresh = done - packet.done
        unit_ns = job.unit_ns
        if ran_ns:
            newest = max(1, ran_ns // fresh)
            unit_ns = (unit_ns + newest + 1) // 2 if unit_ns else newest
        delivery = tuple([(Action.DELIVER, job.ident, record) for record in records])
        if done >= packet.count:
            grown = job.grown
            if ran_ns < _pacing.stretch(job) * _pacing.target(job):
                grown = max(grown, min(_pacing.GROWTH * packet.count, MAX_UNITS))
            self._settle(
                packet,
                PacketEvent.FINISH,
                delivery,
                None,
                now,
                events,
                settled=fresh,
                unit_ns=unit_ns,
                grown=grown,
                again=again,
            )
            return
        returned, settled = including(job.returned, again), job.settled + fresh - sum_of(again)
        waits = returned and job.ident in self.jobs
        state = PACKET_TRANSITIONS[packet.state][PacketEvent.RESULT]
        # commit
        packet.state = state
        packet.done = done
        job.settled = settled
        job.unit_ns = unit_ns
        job.returned = returned
        if waits:
            self.waiting[job.ident] = job
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
        again: tuple[Range, ...] = (),
    ) -> None:
        """A packet leaves its slot: `settled` more units have outcomes (in `delivery`), or are to run `again`.

        Those of `back` had not begun, and wait as before.
        """
        job, slot = packet.job, packet.slot
        packet_state = PACKET_TRANSITIONS[packet.state][why]
        known = job.ident in self.jobs
        waits = known and (back is not None or again)
        returned = including(job.returned, again if back is None else (*again, back))
        settled += job.settled - sum_of(again)
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
        staff = self.roster.staff
        if drained and budget == 0 and state is not SlotState.RETIRING:
            state = SLOT_TRANSITIONS[state][SlotEvent.RETIRE]
            staff -= 1
        if drained and state is SlotState.RETIRING:
            delivery += ((Action.STOP, slot.ident),)
        unqueued: Job | None = job  # of which a packet less is queued
        heads = iter(slot.packets.values())
        if next(heads) is packet:
            following = next(heads, None)
            unqueued = None if following is None else following.job
            if following is not None:
                self._watch(following, now, alone=len(slot.packets) == 2)
        owes = slot.owes
        if why is PacketEvent.FINISH and (drained or not packet.ahead):
            owes = 0 if drained else max(0, owes - packet.load)
        others = len(self.packets) > 1
        look_at = self.look_at if others else None
        may_steal = others and (drained or self.may_steal)
        # commit
        self.look_at = look_at
        self.may_steal = may_steal
        self.roster.staff = staff
        packet.state = packet_state
        del self.packets[packet.ident]
        del slot.packets[packet.ident]
        slot.state = state
        slot.load -= packet.load
        slot.size -= packet.size
        slot.owes = owes
        slot.budget = budget
        self.changed[slot.ident] = slot
        job.in_flight -= 1
        if unqueued is not None:
            unqueued.queued -= 1
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
        # What is late may need any time.
        is_late = now - packet.since > _pacing.load(job, kept) + LATE
        load = packet.load if is_late else min(packet.load, _pacing.load(job, kept))
        less = packet.load - load
        known = job.ident in self.jobs and kept < packet.count
        returned = including(job.returned, (back,)) if known else ()
        budget = slot.budget
        if budget is not None:
            budget += packet.count - kept
        # commit
        packet.state = state
        packet.count = kept
        packet.load = load
        slot.load -= less
        slot.budget = budget
        self.changed[slot.ident] = slot
        if known:
            job.returned = returned
            self.waiting[job.ident] = job
        if events is not None:
            del events[0]

    # -- slots -----------------------------------------------------------------------------------------------

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
        self.may_steal = True
        self.changed[slot.ident] = slot
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
