"""Packets that a local engine is about to send, with the descriptors that go with them.

All of it runs with the dispatcher's lock held, may be interrupted anywhere and is then done again.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pairpool import _channel, _framing
from pairpool._descriptors import OwnedDescriptors
from pairpool._handle import WorkerHandle
from pairpool._packet import Flag, Kind, flagged
from pairpool._slab import Arena
from pairpool._strikes import came_from_handler
from pairpool.engines import Handlers

if TYPE_CHECKING:
    from pairpool._body import Body

_BROKEN = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN))  # what sending into a damaged channel ends in


class Outgoing:
    """The outbox of a local engine."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.answers_inline = False  # the caller had no descriptor to receive outcomes with
        self.entries: deque[Any] = deque()  # (socket, message, descriptors), in the order in which they are to be sent

    def pack(self, handle: WorkerHandle, packet: int, body: Body) -> tuple[Any, int]:
        """An entry, and what it takes of the worker's credit. Raises OSError where it needs a slab and has none.

        The entry keeps its descriptors open, whatever becomes of what they belong to.
        """
        buffers = body.buffers
        if self.answers_inline:
            buffers = [flagged(buffers[0], Flag.INLINE), *buffers[1:]]
        message, descriptors = _framing.pack(Kind.TASKS, packet, buffers), body.descriptors
        if len(message) > _framing.MESSAGE_LIMIT:
            # Several units can go one by one. Without that need they take no descriptor that is the program's.
            put = self._arena.put if body.units > 1 else self._arena.put_anyway
            message, slab = _channel.spill(message, packet, put)
            descriptors = OwnedDescriptors([slab]).and_those_of([descriptors])
        return (handle.tasks, message, descriptors), _channel.charge(len(message))

    def stay_inline(self) -> None:
        """Have workers answer without slabs from now on.

        Whoever has been short of descriptors may be so again, and what is lost for that cannot be had again.
        """
        self.answers_inline = True

    def flush(self, handlers: Handlers, condemn: Callable[[Any], None]) -> bool:
        """Sends what the kernel takes; False where it pushes back. `condemn`: the worker at that socket did harm."""
        taken = True
        while self.entries:
            try:
                taken = _framing.flush(self.entries)
                break
            except OSError as error:
                if came_from_handler(error):
                    raise
                self._drop_first(error, handlers, condemn)
        return taken

    def _drop_first(self, error: OSError, handlers: Handlers, condemn: Callable[[Any], None]) -> None:
        """The first packet cannot be sent, now or later."""
        tasks, message, _ = self.entries[0]
        entries, events = self.entries, handlers.events
        told: tuple[Any, ...] = ()
        if error.errno in _BROKEN:
            condemn(tasks)  # only the worker can have done that, we hold both ends; its end accounts for the packet
        else:
            told = ((handlers.on_unsendable, (_framing.unpack(message)[1], error)),)
        # commit
        events += told
        del entries[0]

    def drop(self, handle: WorkerHandle) -> None:
        """Drops what was to be sent to a worker that has ended."""
        for entry in [entry for entry in self.entries if entry[0] is handle.tasks]:
            self.entries.remove(entry)
