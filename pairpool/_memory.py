"""How much memory a worker holds, and the limit of what its units may ask for. Loaded only where either is asked for.

Own memory
==========
What is resident and anonymous now, less what was when the worker came up: a forked worker has its caller's pages from
the beginning, and one that it writes to takes the place of the one that it had. The kernel tells it in one system call
on a descriptor that is kept, as exactly as it counts itself (before Linux 6.16 up to some hundred KiB a processor may
be missing). Added is what it keeps of large arguments, which lie in memory that is mapped (_slab.py).

The limit
=========
RLIMIT_DATA: what may be mapped to be written to by this process alone, whether it is written to or not. It holds while
code of the user's runs, and is lifted for what the worker does on its own account: an argument that is larger than the
limit would otherwise kill one worker after another, since nothing of it has begun, and that there was no memory could
not be told for want of memory. That is why the soft limit alone is set: only root could lift the other again.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from pairpool import _descriptors
from pairpool._slab import held_bytes

P = ParamSpec("P")
T = TypeVar("T")

_PAGE: Final = resource.getpagesize()
_LONGEST: Final = 256  # bytes: statm is one line of seven numbers


class Gauge:
    """Tells when this process holds more than it may, beyond what it held when the gauge was made."""

    def __init__(self, most: int) -> None:
        """`most`: bytes of own memory that it may hold."""
        self._most = most
        self._statm = _descriptors.Descriptor.of(os.open, "/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        _descriptors.register(self._statm)  # in a child of a task it would tell of its parent
        self._at_first = self._pages()

    def excess(self) -> int:
        """Returns how many bytes of own memory there are where they are too many, and else 0."""
        used = (self._pages() - self._at_first) * _PAGE + held_bytes()
        return used if used > self._most else 0

    def _pages(self) -> int:
        _, resident, shared, _ = os.pread(self._statm.fileno(), _LONGEST, 0).split(b" ", 3)
        return int(resident) - int(shared)

    def close(self) -> None:
        """Closes the descriptor."""
        self._statm.close()


class Limit:
    """What this process may ask for beyond what it has when the limit is made, while the user's code runs."""

    def __init__(self, room: int) -> None:
        """`room`: bytes. A limit that is there already and lower stays what it is."""
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        there = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
        self._bounds = soft, min(_data_size() + room, sys.maxsize, *there)
        self._holds = False

    def holding(self, function: Callable[P, T]) -> Callable[P, T]:
        """Returns this function with the limit in force while it runs."""
        return self._while(function, holds=True)

    def lifting(self, function: Callable[P, T]) -> Callable[P, T]:
        """Returns this function without the limit while it runs."""
        return self._while(function, holds=False)

    def _while(self, function: Callable[P, T], *, holds: bool) -> Callable[P, T]:
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            before = self._holds
            self._set(holds)
            try:
                return function(*args, **kwargs)
            finally:
                self._set(before)

        return run

    def _set(self, holds: bool) -> None:
        self._holds = holds
        bound, (_, hard) = self._bounds[holds], resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY and not 0 <= bound <= hard:
            bound = hard  # a task has lowered it
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def _data_size() -> int:
    """What the kernel holds against RLIMIT_DATA, in bytes."""
    with open("/proc/self/status", "rb") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(b"VmData:"))
