"""Which definitions workers have: what need not ride on a packet again, and what they are to forget.

With the dispatcher's lock held, but for `watch`. Each step may be interrupted and done again, which does no harm.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable

from pairpool._codec import Definition
from pairpool._states import Packet


class Delivered:
    """The definitions that a pool's workers have."""

    def __init__(self) -> None:
        self.by_slot: dict[int, set[int]] = {}  # what its worker has confirmed
        self.gone: deque[weakref.KeyedRef[int, Definition]] = deque()  # collected here, and to be forgotten there
        self._watched: dict[int, weakref.KeyedRef[int, Definition]] = {}
        self._arriving: dict[int, weakref.KeyedRef[int, Definition]] = {}  # gone, and still on their way

    def watch(self, definition: Definition) -> None:
        """Has workers forget a definition when it is collected here, which may be long after a job of it."""
        ident = definition.ident
        if ident not in self._watched:
            # Whoever drains next tells the workers. A finalizer in C: in one of ours an interrupt is swallowed.
            self._watched[ident] = weakref.KeyedRef(definition, self.gone.append, ident)

    def confirm(self, slot: int, definitions: frozenset[int]) -> None:
        """The worker of a slot has these."""
        known = self.by_slot[slot]
        known |= definitions
        if self._arriving:
            self.gone += [self._arriving[ident] for ident in definitions if ident in self._arriving]

    def forget_gone(self, packets: Iterable[Packet], forget: Callable[[int, int], None]) -> None:
        """Has workers forget what is gone for good: no packet will name it again. `forget`: tells a slot's worker."""
        gone = self.gone
        while gone:
            ident = gone[0].key
            for slot, known in self.by_slot.items():
                if ident in known:
                    forget(slot, ident)
                    known.discard(ident)
            self._watched.pop(ident, None)
            if any(ident in packet.definitions for packet in packets):
                self._arriving[ident] = gone[0]
            else:
                self._arriving.pop(ident, None)
            del gone[0]
