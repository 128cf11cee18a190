"""Receiving from the workers' channels of one pool: by a caller while he waits, by the I/O thread otherwise.

Theory of operation
===================
One epoll has every worker's tasks channel. It lies in the I/O thread's epoll (`outer`), armed with EPOLLONESHOT. A
caller who waits for a result *pumps*: he waits on those channels himself, and on a kick by which others wake him. The
I/O thread is off its watch over them meanwhile (he disarms them and arms them again when he leaves), so that no thread
has to be woken on his behalf. It stays on watch where further callers wait: he may be held up in a signal handler,
which may even wait for one of them.

Threads and locks
=================
- `receiving` (reentrant: a signal handler may pump inside a pump) makes receiving from a channel one thread's at a
  time, so that messages stay in order and nothing is under way when a worker's end is digested.
- `_pumper` is the one thread that pumps: two would take each other's kicks. It is looked at and set by operators with
  no call between them, where neither another thread nor a signal handler comes in. `pumpers` counts that thread's
  pumps, each but the first in a signal handler or finalizer that interrupted the one before. `_entered` counts who is
  in `pump` at all: the last one to leave closes what a pool that has ended leaves.
- Disarmed means: some caller is between disarming and the arming in his `finally`, which no exception can skip (one C
  call, straight after operators), and no other caller waited when he began. Armed too often costs a wake-up.
- Nobody waits for `receiving` who has the dispatcher's lock: who has `receiving` may be struck by a handler that wants
  the lock.

What may block: a pumping caller, in `caller`.

A signal interrupts a sleep, but not if it comes after Python looked for one and before the kernel has put the thread to
sleep: a microsecond, or much longer where the thread loses its processor just then. Most come when a wait has just
begun, so a caller who pumps first sleeps for `SETTLE` only. (The library's waits do not: Ctrl-C may be lost to them.)
"""

from __future__ import annotations

import os
import resource
import select
import threading
import time
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from pairpool import _descriptors, _framing
from pairpool._handle import WorkerHandle
from pairpool._strikes import came_from_handler
from pairpool._waiting import Deadline
from pairpool.engines import Event, Handlers

if TYPE_CHECKING:
    from pairpool._waiting import Settable

SPIN = 50e-6  # seconds a waiting caller keeps looking before he sleeps: less than a wake-up costs
SETTLE = 0.02  # seconds of the first sleep: a signal that comes just before a sleep does not end it (see below)
BATCH = 16  # messages taken before they are digested: until then each may hold a descriptor
FEW = 256  # descriptors: who may have no more takes one message at a time
ARMED = select.EPOLLIN | select.EPOLLONESHOT


class Kick:
    """Wakes the thread that waits on an epoll; like a signal, setting it twice does no harm.

    `awake` is a thread that does not wait at this moment and will look before it does: it need not kick itself. A
    signal handler that strikes that thread within its wait has to, so there it is 0.

    `sleeps_until` is when that thread looks by itself, in ns; None: never, or nobody knows. It is set to None before
    the thread looks how long it may sleep: who wants it to look earlier from then on finds that, and kicks.
    """

    def __init__(self) -> None:
        self.awake = 0
        self.sleeps_until: int | None = None
        self.descriptor = _descriptors.Descriptor(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        _descriptors.register(self.descriptor)

    def close(self) -> None:
        self.descriptor.close()

    def set(self) -> None:
        if self.awake == get_ident():
            return
        try:
            os.eventfd_write(self.descriptor.fileno(), 1)
        except (OSError, ValueError) as error:  # full: it is set already; closed (number -1): nobody waits any more
            if came_from_handler(error):
                raise

    def clear(self) -> None:
        try:
            os.eventfd_read(self.descriptor.fileno())
        except (OSError, ValueError) as error:  # not set, or closed
            if came_from_handler(error):
                raise

    def patience(self, wanted: Callable[[], int | None], deadline: Deadline) -> float | None:
        """Seconds that the thread may sleep now: until the deadline, or until somebody wants it to look.

        `wanted`: when that is, in ns. A moment for which it was woken stays, also when nobody wants it any more: the
        next call will want one that is hardly later, and need not wake the thread again.
        """
        until, now = self.sleeps_until, time.monotonic_ns()
        self.sleeps_until = None
        look_at = wanted()
        if until is None or until <= now or (look_at is not None and look_at < until):
            until = look_at
        self.sleeps_until = until
        seconds = deadline.remaining()
        if until is None:
            return seconds
        look = max(0.0, (until - now) / 1e9)
        return look if seconds is None else min(seconds, look)

    def look_by(self, look_at: int) -> None:
        """Has the thread look at that moment (ns), if it does not anyway."""
        until = self.sleeps_until
        if until is None or look_at < until:
            self.sleeps_until = look_at
            self.set()


class Pump:
    """Who receives, and how he is woken."""

    def __init__(self, handlers: Handlers, wake: Callable[[], None]) -> None:
        """`wake`: has the I/O thread digest what was received."""
        self.receiving = threading.RLock()
        self.pumpers = 0
        self._pumper = 0
        self._entered = 0
        self._handlers = handlers
        self._wake = wake
        self._by_descriptor: dict[int, WorkerHandle] = {}  # by the number of its tasks channel
        self._stopped = False
        self._released = False
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._batch = BATCH if soft == resource.RLIM_INFINITY or soft >= FEW else 1
        with ExitStack() as undo:
            self.channels = undo.enter_context(select.epoll())
            self.outer = undo.enter_context(select.epoll())  # the I/O thread's
            self._caller = undo.enter_context(select.epoll())
            self._kick = undo.enter_context(closing(Kick()))
            self._caller.register(self._kick.descriptor, select.EPOLLIN)
            self._caller.register(self.channels, select.EPOLLIN)
            self.outer.register(self.channels, ARMED)
            undo.pop_all()
        _descriptors.register(self)

    def watch(self, handle: WorkerHandle) -> None:
        """From now on what this worker says is received."""
        self.channels.register(handle.tasks, select.EPOLLIN)
        self._by_descriptor[handle.tasks.fileno()] = handle

    def unwatch(self, handle: WorkerHandle) -> None:
        """To be called before its channel is closed."""
        if self._by_descriptor.pop(handle.tasks.fileno(), None) is not None:
            self.channels.unregister(handle.tasks)

    def handle_at(self, descriptor: int) -> WorkerHandle | None:
        """Whose channel has that number."""
        return self._by_descriptor.get(descriptor)

    @property
    def receives_here(self) -> bool:
        """Whether this thread has `receiving`: a handler that waits for workers to end would wait for who wants it."""
        # Not public, but what threading.Condition asks; a note of our own could not be set in one step with the lock.
        owned: bool = self.receiving._is_owned()  # type: ignore[attr-defined]
        return owned

    def receive(self) -> None:
        """Receives what has come, or some of it."""
        events = self._handlers.events
        for descriptor in _framing.wait_ready(self.channels, 0.0, 0.0):
            if len(events) >= self._batch:
                return
            with self.receiving:
                handle = self._by_descriptor.get(descriptor)
                if handle is not None:  # else it was buried meanwhile
                    _framing.receive(handle.tasks, events, handle.on_message, self._batch)

    def receive_rest(self, handle: WorkerHandle) -> None:
        """Receives everything that a worker which has ended left."""
        with self.receiving:
            while _framing.receive(handle.tasks, self._handlers.events, handle.on_message, BATCH) == BATCH:
                pass

    def exchange(
        self, handle: WorkerHandle, packet: int, outbox: deque[Any], sent: list[Any], heard: deque[Event]
    ) -> tuple[int, bytes] | None:
        """Sends a packet to a worker, and looks for its answer for as long as the spin (see `_framing_py.exchange`).

        The I/O thread is off its watch meanwhile, or the answer would wake it. With the dispatcher's lock held, so not
        with `receiving`: whoever has that may be struck by a handler that wants the lock. It is not needed: no worker's
        end is digested meanwhile, and of a worker that was idle no two messages are under way whose order matters.
        """
        try:
            return _framing.exchange(
                self.outer, self.channels, ARMED, outbox, handle.tasks, heard, handle.on_message, packet, sent, SPIN
            )
        except OSError as error:
            if came_from_handler(error) or not sent:
                raise  # a handler raises in here even after the answer was received
            return None  # who sends or receives next meets it again

    def rearm(self) -> None:
        """The I/O thread has served the channels: it stays on watch unless a caller is."""
        if not self.looks_for_all:
            self.outer.modify(self.channels, ARMED)

    @property
    def looks_for_all(self) -> bool:
        """Whether a caller pumps and no other waits: then the I/O thread need not look as well."""
        return 0 < self.pumpers >= self._handlers.waiters

    def pump(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None) -> bool:
        """See `Engine.pump`."""
        channels, kick = self.channels, self._kick
        modify, me, deadline = self.outer.modify, get_ident(), Deadline(timeout)
        nested = False
        watched.append(kick)
        self._entered += 1
        try:
            if self._stopped or (self._pumper and self._pumper != me):
                self._watch_for_others()
                return False
            nested = self._pumper == me
            self._pumper = me
            self.pumpers += 1
            try:
                modify(channels, 0)
                self._watch_for_others()
                self._pump(ready, deadline)
            finally:
                # Operators and one C call: no exception can come between, so the I/O thread is on watch again.
                self.pumpers -= 1
                self._pumper = me if nested else 0
                kick.awake = 0
                modify(channels, ARMED)
        except BaseException:
            self._wake()  # a signal handler raised: what was received is digested by the I/O thread
            raise
        finally:
            self._entered -= 1
            watched.remove(kick)
            self._close_if_left()
            if nested:
                kick.set()  # the interrupted pump would go on waiting for what has come meanwhile
        return ready() or not self._stopped

    def _watch_for_others(self) -> None:
        """Has the I/O thread on watch where others wait besides who pumps."""
        if self._handlers.waiters > self.pumpers and not self._released:
            self.outer.modify(self.channels, ARMED)

    def _pump(self, ready: Callable[[], bool], deadline: Deadline) -> None:
        # In a function of its own: what a signal handler raises at a loop's end passes by a `finally` of the same
        # function (python/cpython#130279, 3.12 and 3.13).
        me, kick, kicked = get_ident(), self._kick, self._kick.descriptor.fileno()
        kick.awake = 0  # also where this is a handler's, and the pump that it interrupted was awake
        at_first: float | None = SETTLE
        while not ready() and not self._stopped:
            patience = kick.patience(self._look_at, deadline)
            if at_first is not None:
                patience = at_first if patience is None else min(patience, at_first)
            if kicked in _framing.wait_ready(self._caller, SPIN if patience != 0 else 0.0, patience):
                kick.clear()
            at_first = None
            kick.awake = me
            self.receive()
            self._handlers.drain()
            kick.awake = 0  # before it looks
            if deadline.passed():
                return

    def _look_at(self) -> int | None:
        return self._handlers.look_at

    def look_by(self, look_at: int) -> None:
        """Has who pumps look at that moment (ns)."""
        self._kick.look_by(look_at)

    def stop(self) -> None:
        """The workers end: callers wait for a signal from now on."""
        self._stopped = True
        self._kick.set()

    def release(self) -> None:
        """Closes everything, once nobody waits on it."""
        self._by_descriptor.clear()
        self._released = True
        self._close_if_left()

    def _close_if_left(self) -> None:
        """The last to leave closes. Twice does no harm."""
        if self._released and not self._entered:
            self.close()
            self._kick.close()

    def close(self) -> None:
        """Closes the epolls (of a forked child also: see _descriptors)."""
        for epoll in (self.outer, self._caller, self.channels):
            epoll.close()
