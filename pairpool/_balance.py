"""Keeps slots at work and jobs from waiting: what is handed out already is taken back where it stands in the way.

Three cases, each safe because a packet, and each unit of one, is taken by exactly one of worker and parent:

- a slot idles while others have packets queued, or a packet with units left that takes long: `steal`, `late`;
- a packet takes so long that what is behind it might wait for ever: `late`;
- a job of which nothing is under way finds all slots deep in the work of others: `make_way`.

Pure, as the scheduler that it is a part of, and interrupted like it (_scheduler.py).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from pairpool._pacing import PATIENCE_LIMIT, SHORT_WAIT, is_stuck
from pairpool._roster import Roster
from pairpool._states import Action, Job, Packet, Slot, SlotState


class Balance:
    """The part of a scheduler that takes back."""

    actions: deque[tuple[Any, ...]]
    roster: Roster
    waiting: dict[int, Job]
    slots: dict[int, Slot]
    packets: dict[int, Packet]
    changed: dict[int, Slot]
    may_steal: bool
    look_at: int | None

    def make_way(self, job: Job) -> None:
        """Takes back what a job would wait for of which nothing is under way, but for the unit that runs.

        Of calls, each of which is a job to who made it, some may run, but none be queued.

        Not where somebody else has all that he has under way in that queue. And a slot that gave way owes those who
        waited as much work before it does so again: else a map would stand still beside somebody who makes one call
        after another, and jobs might take from each other for ever what no worker has taken yet.
        """
        under_way = job.queued if job.calls else job.in_flight
        if under_way or job.cleared is not None or job.in_flight == len(self.packets):
            return
        slot = self.roster.roomiest(())
        if slot is None or slot.state is not SlotState.BUSY or slot.recalled or slot.owes or slot.load <= SHORT_WAIT:
            return
        head, *queued = slot.packets.values()
        others = [packet.job for packet in queued]
        if head.job is job or any(others.count(other) == other.in_flight for other in others):
            return
        actions: tuple[tuple[Any, ...], ...] = ((Action.RECALL, slot.ident),) if queued else ()
        if head.count - head.done > 1:
            actions += ((Action.LOOK, slot.ident, head.ident, True),)
        if actions:
            # commit
            job.cleared = slot
            slot.recalled = True
            self.changed[slot.ident] = slot
            self.actions += actions

    def steal(self) -> None:
        """Recalls the packets queued at the most loaded slot, where another idles and nobody waits."""
        if not self.may_steal or self.waiting:
            return
        self.roster.file()
        crowded = self.roster.crowded
        if not self.roster.idle or not crowded:
            self.may_steal = False
            return
        victim = max(crowded.values(), key=lambda slot: slot.load)
        # commit
        victim.recalled = True
        self.changed[victim.ident] = victim
        self.actions += ((Action.RECALL, victim.ident),)

    def starving(self) -> bool:
        """Whether a slot idles that a waiting unit would be given to at once."""
        self.roster.file()
        return not self.waiting and bool(self.roster.idle or self.roster.fresh)

    def late(self, now: int) -> None:
        """Has packets looked at that take longer than thought.

        A look brings the results which the worker has committed but not yet sent; where a slot idles, or this one
        retires, it also claims the tail back, so that a slow unit strands nobody. From a slot that is stuck the tail
        and the queue are taken in any case: where other slots never idle they might wait there for ever.
        """
        if self.look_at is None or now < self.look_at:
            return
        self.roster.file()
        idle = not self.waiting and bool(self.roster.idle)
        earliest: int | None = None
        for slot in self.slots.values():
            for head in slot.packets.values():
                if head.look_at and head.look_at <= now:
                    self._look(slot, head, idle or slot.state is SlotState.RETIRING, now)
                if head.look_at and (earliest is None or head.look_at < earliest):
                    earliest = head.look_at
                break
        self.look_at = earliest

    def _look(self, slot: Slot, head: Packet, cut: bool, now: int) -> None:
        """A packet is late: it is taken to need as long again as it has run."""
        load = max(head.load, 2 * (now - head.since))
        more = load - head.load
        patience = min(2 * head.patience, PATIENCE_LIMIT)
        stuck = is_stuck(head.job, load)
        look_at = now + patience
        actions: tuple[tuple[Any, ...], ...] = ()
        if head.count - head.done > 1:
            actions = ((Action.LOOK, slot.ident, head.ident, cut or stuck),)
        elif stuck or len(slot.packets) == 1:
            look_at = 0  # nothing to gain: there is nothing to cut, and behind such a load nothing more is queued
        untaken = len(slot.packets) > 1 or 0 < slot.allowance <= now - head.since  # there may be something that is
        recall = stuck and untaken and not slot.recalled
        if recall:
            actions += ((Action.RECALL, slot.ident),)
        # commit
        head.patience = patience
        head.look_at = look_at
        head.load = load
        slot.load += more
        self.changed[slot.ident] = slot
        if recall:
            slot.recalled = True
        self.actions += actions
