"""What a thread waits on that receives for a local engine: two epolls, one within the other, and kicks."""

from __future__ import annotations

import os
import select
from _thread import get_ident

from pairpool import _descriptors


class Kick:
    """Wakes the thread that waits on an epoll; like a signal, setting it twice does no harm.

    `waiter` is that thread, where it is known: one that sets its own kick is awake.
    """

    def __init__(self) -> None:
        self.waiter = 0
        self.descriptor = _descriptors.Descriptor(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        _descriptors.register(self.descriptor)

    def close(self) -> None:
        self.descriptor.close()

    def set(self) -> None:
        if self.waiter == get_ident():
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
    """The two epolls: `inner` has the workers' channels, `outer` has `inner` and all else."""

    def __init__(self) -> None:
        self.inner = select.epoll()
        self.outer = select.epoll()
        _descriptors.register(self)

    def close(self) -> None:
        self.inner.close()
        self.outer.close()
