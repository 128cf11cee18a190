"""The slots of a pool: how many there are to be, and which is given the next packet, found at once among however many.

Every slot lies on one *shelf*, by what it can take next. Whoever changes a slot only notes it in `changed`, which is
an operator and so can be part of a commit (see _scheduler.py); `file` puts each where it belongs before anything is
looked up.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from pairpool._pacing import ASLEEP, SLOWEST
from pairpool._states import SLOT_TRANSITIONS, Action, Packet, Slot, SlotEvent, SlotState

MAX_PACKETS = 64  # packets in flight a slot, so that a recall stays short
GRAIN = 16  # bits of a load, in ns, that are not looked at: less than a packet should take
LOADS = 11  # shelves of busy slots, by the bits of their load above that: the last has all from 67 ms

IDLE, BUSY, STARTING = SlotState.IDLE, SlotState.BUSY, SlotState.STARTING  # looked up for every packet

Shelf = dict[int, Slot]
Events = deque[Any]


class Roster:
    """Slots by number, and by what they can take."""

    def __init__(
        self,
        actions: deque[tuple[Any, ...]],
        *,
        credit: int,
        packet_room: int,
        budget: int | None = None,
        rouses: bool = False,
    ) -> None:
        """`credit`: bytes of packets a slot may hold; `packet_room`: bytes the largest packet takes.

        `budget`: units a slot is given in all. `rouses`: slots can be asked whether they are awake. `actions`: the
        scheduler's.
        """
        self.budget = budget
        self.allowance = ASLEEP if rouses else 0  # of a new slot
        self.slots: dict[int, Slot] = {}
        self.changed: dict[int, Slot] = {}  # since they were last filed
        self.idle: Shelf = {}
        self.fresh: Shelf = {}  # starting, nothing queued yet
        self.retiring: Shelf = {}
        self.staff = 0  # slots that take packets, or will
        self.crowded: dict[int, Slot] = {}  # hold packets that another could run, and were not asked for them
        self._actions = actions
        self._next_slot = 0
        self._busy: tuple[Shelf, ...] = tuple({} for _ in range(LOADS + 1))
        self._full: Shelf = {}  # can take nothing now
        self._crammed = credit - packet_room  # bytes beyond which there may be no room for a packet

    # -- finding --------------------------------------------------------------------------------------------

    def roomiest(self, reserved: tuple[Slot, ...]) -> Slot | None:
        """The slot for a packet, `reserved` ones aside: an idle one, a fresh one, or one of those least loaded."""
        idle = self.warmest()
        if idle is not None:
            return idle
        for slot in self.fresh.values():
            return slot
        for shelf in self._busy:
            if shelf:
                for slot in shelf.values():
                    if slot not in reserved:
                        return slot
        return None

    def warmest(self) -> Slot | None:
        """Of idle slots the one that worked last: its worker is still warm, and often still awake."""
        for slot in reversed(self.idle.values()):
            return slot
        return None

    def file(self) -> None:
        """Puts every slot that has changed where it belongs."""
        changed, crowded = self.changed, self.crowded
        for ident, slot in tuple(changed.items()):
            old, new = slot.shelf, self._shelf(slot)
            was_crowded = ident in crowded
            # A starting slot needs nothing to keep it at work yet.
            others = len(slot.packets) - (slot.state is not STARTING)
            is_crowded = others > 0 and not slot.recalled and new is not None
            # commit
            if old is not None:
                del old[ident]
            if new is not None:
                new[ident] = slot
            slot.shelf = new
            if is_crowded:
                crowded[ident] = slot
            elif was_crowded:
                del crowded[ident]
            del changed[ident]

    def _shelf(self, slot: Slot) -> Shelf | None:
        state = slot.state
        if state is BUSY:
            if slot.size > self._crammed or len(slot.packets) >= MAX_PACKETS or slot.budget == 0 or slot.asleep:
                return self._full
            bits = (slot.load >> GRAIN).bit_length()
            return self._busy[min(bits, LOADS)]
        if state is IDLE:
            return self._full if slot.asleep else self.idle
        if state is STARTING:
            return self._full if slot.packets else self.fresh
        if state is SlotState.RETIRING:
            return self.retiring
        return self._full if state is SlotState.ASKED else None

    # -- coming and going (events and commits: see _scheduler.py) -------------------------------------------

    def opened(self, slot: Slot, events: Events | None) -> None:
        """Packets can be sent to the slot."""
        state = SLOT_TRANSITIONS[slot.state][SlotEvent.OPEN]
        # commit
        slot.state = state
        self.changed[slot.ident] = slot
        if events is not None:
            del events[0]

    def down(self, slot: Slot, events: Events | None) -> None:
        """The slot's worker has ended; each packet that it held was settled by `lose` before."""
        state = SLOT_TRANSITIONS[slot.state][SlotEvent.DOWN]
        staff = self.staff - (slot.state is not SlotState.RETIRING)
        # commit
        slot.state = state
        self.changed[slot.ident] = slot
        self.staff = staff
        del self.slots[slot.ident]
        if events is not None:
            del events[0]

    def untaken(self, packet: Packet, now: int) -> None:
        """A packet was taken back: where its worker has had nothing else to do for too long, that one is asleep.

        It is given nothing more until it says that it is awake, which it is asked for.
        """
        slot, allowance = packet.slot, packet.slot.allowance
        if not packet.since or not allowance or slot.asleep or slot.state is not BUSY:
            return
        lain = slot.lain + now - packet.since
        asleep = lain >= allowance
        if asleep:
            lain, allowance = 0, min(2 * allowance, SLOWEST)
        actions = ((Action.ROUSE, slot.ident),) if asleep else ()
        # commit
        slot.lain = lain
        slot.asleep = asleep
        slot.allowance = allowance
        self.changed[slot.ident] = slot
        self._actions += actions

    def awoke(self, slot: Slot, events: Events) -> None:
        """Its worker has given a sign of life."""
        # commit
        slot.asleep = False
        self.changed[slot.ident] = slot
        del events[0]

    def maintain(self, wanted: int) -> bool:
        """Takes one step towards `wanted` slots that take packets; False where none is needed."""
        staff = self.staff
        if staff < wanted:
            ident = self._next_slot
            slot = Slot(ident, self.budget, allowance=self.allowance)
            # commit
            self._next_slot = ident + 1
            self.slots[ident] = slot
            self.changed[ident] = slot
            self.staff = staff + 1
            self._actions += ((Action.OPEN, ident),)
            return True
        if staff > wanted:
            staying = [slot for slot in self.slots.values() if slot.state is not SlotState.RETIRING]
            self.retire(
                min(staying, key=lambda slot: (not slot.asleep, slot.state is not IDLE, slot.load, -slot.ident)), None
            )
            return True
        return False

    def retire(self, slot: Slot, events: Events | None) -> None:
        """No more packets for this slot; it stops once what it runs is settled."""
        state = SLOT_TRANSITIONS[slot.state][SlotEvent.RETIRE]
        action = (Action.RECALL if slot.packets else Action.STOP, slot.ident)
        staff = self.staff - 1
        # commit
        self.staff = staff
        slot.state = state
        self.changed[slot.ident] = slot
        self._actions += (action,)
        if events is not None:
            del events[0]
