"""What a thread waits on that receives for a local engine: epolls, two of which have the third in them, and kicks."""

from __future__ import annotations

import os
import select
from _thread import get_ident

from pairpool import _descriptors


class Kick:
    """Wakes the thread that waits on an epoll; like a signal, setting it twice does no harm.

    `awake` is a thread that does not wait at this moment and will look before it does: it need not kick itself. A
    signal handler that strikes that thread within its wait has to, so there it is 0.
    """

    def __init__(self) -> None:
        self.awake = 0
        self.descriptor = _descriptors.Descriptor(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        _descriptors.register(self.descriptor)

    def close(self) -> None:
        self.descriptor.close()

    def set(self) -> None:
        if self.awake == get_ident():
            return
        try:
            os.eventfd_write(self.descriptor.fileno(), 1)
        except (OSError, ValueError):
            pass  # full: it is set already; closed (number -1): nobody waits any more

    def clear(self) -> None:
        try:
            os.eventfd_read(self.descriptor.fileno())
        except (OSError, ValueError):
            pass  # not set, or closed


class Watch:
    """The epolls: `channels` has the workers', and lies within `caller` and `outer`, one for each kind of thread."""

    def __init__(self) -> None:
        self.channels = select.epoll()
        self.caller = select.epoll()  # of one who waits for a result, with his kick
        self.outer = select.epoll()  # of the I/O thread, with all else that it waits for
        _descriptors.register(self)

    def close(self) -> None:
        for epoll in (self.outer, self.caller, self.channels):
            epoll.close()
