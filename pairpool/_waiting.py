"""How a thread waits for something that another thread, a worker or the kernel brings about.

A waiting thread leaves a `Signal` with what it waits for and blocks on it; whoever changes that thing sets every
signal left there. Setting is idempotent and never blocks, so it may happen twice, from a signal handler and from
a finalizer; waiting may end early, so a waiter looks again. No signal is lost: it is left first, looked at second.
"""

from __future__ import annotations

import time
from _thread import allocate_lock
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Protocol

# The longest a lock can be waited for in one go; `threading.TIMEOUT_MAX` without importing threading for it.
_LONGEST: Final = 4_000_000.0  # seconds


class Settable(Protocol):
    def set(self) -> None: ...


class Signal:
    """Wakes one waiting thread; set before the wait, it ends the wait at once (and once)."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def set(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # set already and not yet waited for

    def wait(self, timeout: float | None = None) -> None:
        """Returns once set, or after `timeout` seconds."""
        self._lock.acquire(True, -1 if timeout is None else min(max(timeout, 0), _LONGEST))


class Bell:
    """A `Signal` that a weak reference sets, too, by having `ring` for its callback.

    That is a function in C which finalizers may call: in one of ours an interrupt would be swallowed.
    """

    __slots__ = ("_rung", "ring")

    def __init__(self) -> None:
        self._rung: SimpleQueue[object] = SimpleQueue()
        self.ring: Callable[[object], None] = self._rung.put

    def set(self) -> None:
        if self._rung.empty():
            self.ring(None)

    def wait(self) -> None:
        """Returns once set."""
        self._rung.get()


def wake_all(signals: list[Settable]) -> None:
    """Wakes every thread that left a signal there."""
    for signal in signals[:]:  # whoever wakes takes his out
        signal.set()


class Deadline:
    """A moment after which a wait is over."""

    __slots__ = ("_at",)

    def __init__(self, timeout: float | None) -> None:
        self._at = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Seconds left, at least 0; None where there is no limit."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def passed(self) -> bool:
        return self._at is not None and time.monotonic() >= self._at
