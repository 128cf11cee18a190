"""The zygote process itself: it forks the workers, watches over them, and ends with its parent.

Theory of operation
-------------------
One thread, one ``poll()``. It waits for orders from the parent, for the parent's end (a pidfd) and
for each worker's end (pidfds). It runs no code of the user's, has no signal handlers, takes no
lock, and never waits for anything else: replies that the parent does not read yet are queued.

A worker's life here::

    SPAWN ─► fork/spawn ─► SPAWNED ─ … ─► pidfd ready ─► [group killed] ─► reaped ─► EXITED
                 └─► SPAWN_FAILED

It is a fork of the caller (fork) or was started clean by ``multiprocessing.Process`` (forkserver,
spawn); it forks its workers (fork, forkserver) or starts a fresh interpreter for each (spawn).

Signals
-------
A zygote that forks has every signal blocked: it runs no handler that it inherited, nothing but
SIGKILL ends it, and its workers inherit the caller's dispositions untouched. One that spawns
gives signals a handler that does nothing, since a blocked mask outlives exec and would hold in
threads and subprocesses that the main module starts. Either way a ``pkill`` for the whole program
leaves the zygote serving a parent that means to finish its work. SIGCHLD is not used: a caller's
SIG_IGN for it, which would have the kernel reap and forget exit codes, is put back in workers.

Groups
------
Every worker leads a process group. It is killed whole, *before* the worker is reaped (the number
is nobody else's until then), if the worker died of a signal, if a signal for the group was
ordered, or if the zygote is stopping. A worker that ended of itself leaves its group alone: a task
may have started a daemon on purpose, as with the stdlib.

Ends
----
1. STOP: SIGTERM to all workers, after the grace SIGKILL to all groups; the rest is reaped, exit 0.
2. The channel at EOF: the parent closed it; as STOP with no grace.
3. The parent's pidfd: as 2.
4. The dead-man pipe of the zygote, SIGKILL by the kernel to it and to spawned workers still in its
   group. Each worker has a pipe of its own. These act also where zygote and workers are stopped;
   1 to 3 also where a stray fork of the parent still holds the pipes' ends.

Guarantees
----------
Each SPAWN is answered exactly once, by SPAWNED or SPAWN_FAILED, each SPAWNED followed by exactly
one EXITED, in this order, while parent and zygote live. A worker holds no descriptor of the
zygote's. On SPAWN_FAILED nothing of a worker is left.

What may block
--------------
``fork()``; with spawn also ``Process``'s writing of what it pickled, until the worker has read it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple, NoReturn

from pairpool import _deadman, _descriptors, _orders
from pairpool._orders import Envelope, Kind, Message
from pairpool._surroundings import (
    WORKER_PROCESSES,
    Caller,
    Surroundings,
    WorkerProcess,
    WorkerSetup,
    become,
)
from pairpool.errors import FramingError, PairpoolError

# How long to let a send rest that the kernel refuses for want of memory or because too many
# descriptors are in flight: nothing tells when that is over. A full channel is not meant by this.
_REFUSED_SEND_REST = 0.01  # seconds

_UNKNOWN_EXIT_CODE = 255  # what multiprocessing says of a process that somebody else reaped


def run(
    caller: Caller,
    setup: WorkerSetup,
    channel: socket.socket,
    deadman_end: int,
    parent_pidfd: int,
    mask: Collection[int] | None = None,
) -> NoReturn:
    """Be a zygote in the calling process, and end it.

    Its end of the channel and that of its dead-man pipe are registered to be closed in forks; the
    parent's pidfd is not, workers keep it. If signals are blocked for the start of this process,
    ``mask`` is what shall be blocked in workers.
    """
    code = 1
    try:
        os.setpgid(0, 0)
        _deadman.bind(deadman_end)
        if caller.method != "forkserver" and os.getppid() != caller.pid:
            # The pipe says that the caller lives, so its pid is of another namespace than ours.
            raise PairpoolError("a pool cannot be made by a process that unshared its pid namespace")
        setup.resolve_entry()
        surroundings = Surroundings.set_aside(caller.method, mask)
        Nursery(caller, setup, surroundings, channel, parent_pidfd).serve()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        # Never a return into frames or finalizers of the caller's that the fork copied. Nor is
        # stdout flushed: what is in its buffer is the caller's to write.
        os._exit(code)


class Worker:
    """What the zygote knows of one worker."""

    __slots__ = ("deadman_end", "dooms_group", "number", "pid", "pidfd")

    def __init__(self, number: int, pid: int, pidfd: int, deadman_end: int) -> None:
        self.number = number
        self.pid = pid
        self.pidfd = pidfd
        # The same open file as the worker's: the group stays bound if the worker closes its own.
        self.deadman_end = deadman_end
        self.dooms_group = False

    def send_signal(self, signum: int) -> None:
        """Send a signal to this worker alone."""
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            pass  # it ended, and will be reaped in a moment

    def send_signal_to_group(self, signum: int) -> None:
        """Send a signal to the worker's process group; to the worker if it has none yet.

        Only for a worker that is not reaped.
        """
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:
            self.send_signal(signum)  # spawned, and still starting
        except PermissionError:
            pass  # all that is left in the group runs as another user

    def unbind(self) -> None:
        """Leave what is left of the worker's group alone from now on."""
        _deadman.unbind(self.deadman_end)  # whoever else has a copy
        _descriptors.close(self.deadman_end)

    def release(self) -> None:
        """Close what the zygote holds for a worker that is gone."""
        _descriptors.close(self.pidfd)


class Reply(NamedTuple):
    """A message that the parent has still to be sent."""

    message: bytes
    pidfd: int | None = None
    farewell: Worker | None = None  # nothing more will be said of this worker

    def arguments(self) -> tuple[Any, ...]:
        """Return the arguments for ``sendmsg``."""
        return _orders.send_arguments(self.message, () if self.pidfd is None else (self.pidfd,))

    def release(self) -> None:
        """Close what was kept for this reply and those before it."""
        if self.farewell is not None:
            self.farewell.release()


class Nursery:
    """The zygote's loop, and its table of workers."""

    def __init__(
        self, caller: Caller, setup: WorkerSetup, surroundings: Surroundings, channel: socket.socket, parent_pidfd: int
    ) -> None:
        self._caller = caller
        self._setup = setup
        self._surroundings = surroundings
        self._channel = channel
        self._parent_pidfd = parent_pidfd
        self._launch = self._spawn if caller.method == "spawn" else self._fork
        self._workers: dict[int, Worker] = {}  # by number
        self._replies: deque[Reply] = deque()
        self._waits_for_room = False
        self._send_refused = False
        self._stopping = False
        self._kill_time: float | None = None  # when SIGKILL follows SIGTERM, on the monotonic clock
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._watch(channel.fileno(), self._on_order)
        self._watch(parent_pidfd, self._on_parent_end)

    def serve(self) -> None:
        """Serve until there is nobody left to serve."""
        while self._workers or not self._stopping:
            self._send_replies()
            for number, _ in self._poll.poll(self._patience()):
                # An earlier handler of this turn may have closed what this one is for.
                if handler := self._handlers.get(number):
                    handler()
            if self._kill_time is not None and time.monotonic() >= self._kill_time:
                self._kill_all()
        self._send_replies()

    # Waiting

    def _watch(self, number: int, handler: Callable[[], None]) -> None:
        self._handlers[number] = handler
        self._poll.register(number, select.POLLIN)

    def _unwatch(self, number: int) -> None:
        del self._handlers[number]
        self._poll.unregister(number)

    def _patience(self) -> float | None:
        """Return how long the loop may sleep, in milliseconds."""
        waits = []
        if self._kill_time is not None:
            waits.append(max(0.0, self._kill_time - time.monotonic()))
        if self._send_refused:
            waits.append(_REFUSED_SEND_REST)
        return min(waits) * 1000 + 1 if waits else None

    # Orders

    def _on_order(self) -> None:
        """Take one order from the channel; if there are more, the next turn comes at once."""
        try:
            envelope = self._channel.recvmsg(*_orders.RECEIVE_ARGUMENTS)
        except BlockingIOError:
            return  # it was writable that woke us
        except ConnectionResetError:
            self._on_hangup()  # the parent closed the channel with replies unread
            return
        if _orders.is_end(envelope):
            self._on_hangup()
        else:
            self._open(envelope)

    def _open(self, envelope: Envelope) -> None:
        try:
            order = _orders.admit(envelope, self._caller.pid)
        except FramingError:
            # The parent does not send such a thing. To go on could mean that it waits for ever.
            _orders.discard(envelope)
            raise
        if order is None:
            _orders.discard(envelope)  # from a fork of the parent's that should not have the channel
        else:
            self._obey(order)

    def _obey(self, order: Message) -> None:
        match order.kind:
            case Kind.SPAWN:
                self._on_spawn(order)
            case Kind.SIGNAL | Kind.SIGNAL_GROUP:
                self._on_signal(order)
            case Kind.STOP:
                self._stop(order.seconds)

    def _on_hangup(self) -> None:
        self._unwatch(self._channel.fileno())
        self._replies.clear()
        self._waits_for_room = False
        self._stop(0.0)

    def _on_parent_end(self) -> None:
        self._unwatch(self._parent_pidfd)
        self._stop(0.0)

    def _on_signal(self, order: Message) -> None:
        worker = self._workers.get(order.number)
        if worker is None:
            return  # it has ended
        if order.kind is Kind.SIGNAL:
            worker.send_signal(order.value)
        else:
            worker.dooms_group |= order.value in (signal.SIGTERM, signal.SIGKILL)
            worker.send_signal_to_group(order.value)

    # Workers come

    def _on_spawn(self, order: Message) -> None:
        pid = 0
        reason = self._refusal(order)
        if reason is None:
            try:
                pid = self._launch(order)
            except Exception as error:  # spawn pickles objects of the user's: anything may come
                reason = _orders.describe(error)
        # Closed first, which leaves room for the pidfd where descriptors are scarce.
        deadman_end, given = order.descriptors[:1], order.descriptors[1:]
        _descriptors.close_all(given)
        if reason is None:
            try:
                self._admit(order.number, pid, os.pidfd_open(pid), *deadman_end)
                return
            except OSError as error:
                reason = _orders.describe(error)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        _descriptors.close_all(deadman_end)
        self._replies.append(Reply(_orders.pack(Kind.SPAWN_FAILED, order.number, text=reason)))

    def _admit(self, number: int, pid: int, pidfd: int, deadman_end: int) -> None:
        _descriptors.register(pidfd, deadman_end)
        self._workers[number] = worker = Worker(number, pid, pidfd, deadman_end)
        self._watch(pidfd, partial(self._on_death, worker))
        message = _orders.pack(Kind.SPAWNED, number, value=pid, descriptors=1)
        self._replies.append(Reply(message, pidfd=pidfd))

    def _refusal(self, order: Message) -> str | None:
        """Return why there will be no worker, or None."""
        if not order.whole:
            return "the zygote may not open more descriptors (RLIMIT_NOFILE)"
        if order.uid != os.getuid():
            # Workers would run as the user that the parent gave up being.
            return f"the caller now runs as user {order.uid}, its workers would run as user {os.getuid()}"
        if self._stopping:
            return "the pool is stopping"
        if order.number in self._workers:
            return f"there is a worker {order.number}"
        return None

    def _fork(self, order: Message) -> int:
        worker = self._make_process(order)
        pid = os.fork()
        if pid == 0:
            become(worker)
        # Also done by the worker itself; here so that the group exists when SPAWNED is read.
        try:
            os.setpgid(pid, pid)
        except (PermissionError, ProcessLookupError):
            pass  # its initializer executed another program; it is gone
        return pid

    def _spawn(self, order: Message) -> int:
        worker = self._make_process(order)
        # Not start(): that would have multiprocessing watch over it too.
        popen = worker._Popen(worker)  # type: ignore[attr-defined]
        pid: int = popen.pid
        popen.close()
        return pid

    def _make_process(self, order: Message) -> WorkerProcess:
        deadman_end, *given = order.descriptors
        return WORKER_PROCESSES[self._caller.method](
            self._caller,
            self._setup,
            self._surroundings,
            number=order.number,
            slot=order.value,
            handed=(self._parent_pidfd, deadman_end, *given),
        )

    # Workers go

    def _on_death(self, worker: Worker) -> None:
        """Take leave of a worker that ended."""
        code = exit_code(worker.pidfd, os.WNOWAIT)
        if code is None:
            code = _UNKNOWN_EXIT_CODE
        if worker.dooms_group or self._stopping or code < 0:
            worker.send_signal_to_group(signal.SIGKILL)
        exit_code(worker.pidfd, 0)  # now it is reaped
        self._unwatch(worker.pidfd)
        del self._workers[worker.number]
        worker.unbind()
        # Its SPAWNED may still be unsent, and needs the pidfd until it is.
        self._replies.append(Reply(_orders.pack(Kind.EXITED, worker.number, value=code), farewell=worker))

    def _stop(self, grace: float) -> None:
        """Begin to end all workers, or shorten the grace they have."""
        if not self._stopping:
            self._stopping = True
            for worker in self._workers.values():
                worker.send_signal(signal.SIGTERM)
        kill_time = time.monotonic() + grace
        if self._kill_time is None or kill_time < self._kill_time:
            self._kill_time = kill_time
        if grace <= 0:
            self._kill_all()

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            worker.send_signal_to_group(signal.SIGKILL)
        self._kill_time = None

    # Replies

    def _send_replies(self) -> None:
        """Send what the parent has room for."""
        self._send_refused = False
        waits_for_room = False
        try:
            while self._replies:
                self._channel.sendmsg(*self._replies[0].arguments())
                self._replies.popleft().release()
        except BlockingIOError:
            waits_for_room = True
        except (BrokenPipeError, ConnectionResetError):
            self._replies.clear()  # there is nobody to read them; the loop is about to see why
        except OSError:
            self._send_refused = True  # ENOBUFS, ENOMEM, ETOOMANYREFS
        if waits_for_room != self._waits_for_room:
            self._waits_for_room = waits_for_room
            self._poll.modify(self._channel.fileno(), select.POLLIN | (waits_for_room and select.POLLOUT))


def exit_code(pidfd: int, flags: int) -> int | None:
    """Return the exit code of a process as multiprocessing gives it.

    None if it runs (with WNOHANG), or is no child of the caller's, or was reaped by somebody else.
    With WNOWAIT in the flags it stays unreaped.
    """
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | flags)
    except ChildProcessError:
        return None
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
