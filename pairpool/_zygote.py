"""The zygote, seen from the parent: a process that forks the workers on request.

Theory of operation
-------------------
`Zygote.start` makes one single-threaded process from the caller, at a moment when the caller is as
its author expects workers to find it. From then on every worker, the first as the hundredth, comes
from there (`_nursery` is the process itself): growing, shrinking and replacing never fork a parent
that has threads by now, and no worker inherits what was made for another.

::

    parent                                       zygote                         worker
      │  SPAWN slot, number   (descriptors) ──►    │  ── fork ──►                 │
      │  ◄── SPAWNED slot, pid      (pidfd)        │                              │
      │  ◄── EXITED slot, exit code                │  ◄── pidfd, reaped ──────────┘
      └──── dead-man pipes: one to the zygote, one to each worker, held here ─────┘

With ``fork`` the zygote is a fork of the caller: what is in `WorkerSetup` is inherited, never
pickled. With ``forkserver`` and ``spawn`` it is started by ``multiprocessing.Process``, so that the
main module, sys.path, locks and queues are prepared as the stdlib does, and the result is forked,
respectively does the same again for each worker.

The process is nobody's business but ours: it is not in ``multiprocessing.active_children()``, and
the end of the interpreter does not wait for it. Who starts a zygote has to close it.

Who holds what: the parent has its end of the channel, the zygote's pidfd, and the parent's ends
of the dead-man pipes (the zygote's; each worker's from its SPAWN to its end). All of them are
registered with `_descriptors`.

Guarantees
----------
- No method waits, but `close` (about a second at most), `start`, and nothing raises because the
  zygote is gone: each `spawn` is answered by `SpawnFailed` then.
- A worker's group can be killed without the zygote: `signal` with SIGKILL and ``group`` closes
  the worker's dead-man pipe, too. Closing the zygote does so for all.
- Everything received is recorded in the step that received it, and every order is sent once,
  wherever an exception from a signal handler strikes. After one, orders may be `pending`, and
  `replies` may have something to return though nothing came.

Assumptions
-----------
One thread at a time uses a zygote (the engine's lock). Descriptors given to `spawn` stay open
until the slot is `Spawned` or `SpawnFailed`. A slot is free again after `Exited` or `SpawnFailed`.
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from dataclasses import dataclass
from itertools import starmap
from multiprocessing.context import BaseContext

from pairpool import _descriptors, _nursery, _orders
from pairpool._birth import START_METHODS, Birth
from pairpool._deadman import Deadman
from pairpool._orders import Kind, Message
from pairpool._strikes import came_from_handler
from pairpool._surroundings import Caller, WorkerSetup
from pairpool.errors import FramingError, end_in_words

__all__ = ["Exited", "SpawnFailed", "Spawned", "WorkerSetup", "Zygote"]

# How long `close` lets the zygote kill and reap its workers before the kernel does it: enough for
# a busy machine, short for a zygote that is stopped.
_CLOSE_PATIENCE = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker runs. The pidfd is the receiver's to register and to close."""

    slot: int
    pid: int
    pidfd: int
    name: str


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker ended and was reaped; the exit code is as ``multiprocessing.Process.exitcode``."""

    slot: int
    exitcode: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """There is no worker in the slot, and no `Exited` will follow.

    Where a worker had been made before something failed, it was killed: it may have begun to read
    its descriptors.
    """

    slot: int
    reason: str


Reply = Spawned | Exited | SpawnFailed


class _Worker:
    """What the parent knows of one worker, from its SPAWN to its end."""

    __slots__ = ("deadman", "disowned", "number", "slot", "spawned")

    def __init__(self, slot: int, number: int) -> None:
        self.slot = slot
        self.number = number
        self.deadman = Deadman()
        self.spawned = False
        self.disowned = False  # reported as failed: its EXITED concerns nobody
        _descriptors.register(self.deadman)


class Zygote:
    """The parent's handle of its zygote."""

    def __init__(self, birth: Birth) -> None:
        self.pid = birth.pids[0]
        self._pidfd = birth.pidfd
        self.channel = birth.parent_end
        self._caller = birth.caller
        # Kept alive: a spawned worker finds semaphores in initargs by names that go with them.
        self._setup: WorkerSetup | None = birth.setup
        self._deadman = birth.deadman
        self._outgoing: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._arrivals: deque[_orders.Envelope] = deque()
        self._workers: dict[int, _Worker] = {}  # by number
        self._slots: dict[int, _Worker] = {}  # those of them that were not disowned, by slot
        self._replies: list[Reply] = []
        self._stopping = False
        self._ended = False
        self._exitcode: int | None = None

    @classmethod
    def start(cls, context: BaseContext, setup: WorkerSetup) -> Zygote:
        """Make a zygote of the calling process as it is now; workers come by `spawn`."""
        method = context.get_start_method()
        if method not in START_METHODS:
            raise ValueError(f"cannot find context for {method!r}")
        setup.resolve_entry()
        birth = Birth(Caller.here(method), setup)
        try:
            birth.start()
            zygote = cls(birth)
            birth.close_zygote_ends()
            # Nothing is called from here on until the caller has it: no interrupt can lose it.
            return zygote
        except BaseException:
            birth.abandon()
            raise

    def __repr__(self) -> str:
        state = "ended" if self._ended else "stopping" if self._stopping else "running"
        waiting = f", {len(self._outgoing)} orders waiting" if self._outgoing else ""
        return f"<Zygote {self._caller.method} pid={self.pid} {state} [{len(self._slots)} workers{waiting}]>"

    @property
    def pidfd(self) -> int:
        """The zygote's pidfd, ready once the zygote has ended; -1 after `close`."""
        return self._pidfd.fileno()

    @property
    def exitcode(self) -> int | None:
        """The zygote's exit code as multiprocessing gives it.

        None while it runs, and where it is not known: the child of a forkserver, or reaped by
        somebody else.
        """
        if self._exitcode is None and self.pidfd >= 0:
            self._exitcode = _nursery.exit_code(self.pidfd, os.WNOHANG | os.WNOWAIT)
        return self._exitcode

    @property
    def ended(self) -> bool:
        """Whether the channel was read to its end: the zygote will say nothing more."""
        return self._ended

    @property
    def pending(self) -> bool:
        """Whether orders wait because the kernel pushed back; `flush` and `replies` try again."""
        return bool(self._outgoing)

    def worker_name(self, number: int) -> str:
        """Return the name that the worker with this number has."""
        return self._caller.worker_name(number)

    def spawn(self, slot: int, number: int, descriptors: tuple[int, ...]) -> None:
        """Have a worker made.

        Its number is from the caller's count of processes: name and ``_identity`` end in it. Its
        entry is given the descriptors, in this order.
        """
        if slot in self._slots:
            raise ValueError(f"slot {slot} has a worker")
        if number in self._workers:
            raise ValueError(f"there is a worker {number}")
        worker = _Worker(slot, number)
        given = (worker.deadman.worker_end, *descriptors)
        order = (_orders.pack(Kind.SPAWN, number, value=slot, descriptors=len(given)), given)
        # Operators only: no exception comes between these three.
        self._workers[number] = worker
        self._slots[slot] = worker
        self._outgoing += (order,)
        self.flush()

    def signal(self, slot: int, signum: int, group: bool = False) -> None:
        """Send a signal to the worker in a slot, or to its whole process group.

        To nobody if the worker has ended. Without the zygote only SIGKILL to the group is sent.
        """
        worker = self._slots.get(slot)
        if worker is None:
            return
        kind = Kind.SIGNAL_GROUP if group else Kind.SIGNAL
        self._order(_orders.pack(kind, worker.number, value=signum))
        if group and signum == signal.SIGKILL and worker.spawned:
            # This needs no zygote, which may be stopped, or gone. The order, given as well,
            # reaches a worker that has closed all its descriptors.
            worker.deadman.close()

    def stop(self, grace: float) -> None:
        """Have SIGTERM sent to all workers, and SIGKILL to their groups after so many seconds.

        The zygote ends when they have. Repeated, it can shorten the grace.
        """
        self._stopping = True
        self._order(_orders.pack(Kind.STOP, seconds=grace))

    def flush(self) -> bool:
        """Send the orders that wait, as far as the kernel takes them; True if none is left."""
        sent: list[int] = []
        try:
            while self._outgoing:
                # Sent and removed with nothing but operators after the system call: an exception
                # from a signal handler never has an order sent twice.
                sent += starmap(self.channel.sendmsg, (_orders.send_arguments(*self._outgoing[0]),))
                del self._outgoing[0]
        except (BrokenPipeError, ConnectionResetError):
            self._outgoing.clear()  # `replies` will come upon the end of the channel
        except OSError as error:
            if came_from_handler(error):
                raise
            return False  # EAGAIN, ENOBUFS, ENOMEM, ETOOMANYREFS: the kernel pushes back
        return True

    def replies(self) -> list[Reply]:
        """Return what the zygote has said since the last time, without waiting."""
        over = not self._ended and self._wait_end(0.0)
        self._receive()
        # A zygote that was over before all was received will say no more, even if a stray copy of
        # its end keeps the channel from ending.
        self._ended |= over
        while self._arrivals:
            self._take(self._arrivals[0])
        if self._ended:
            self._fail_unanswered()
        self.flush()  # a zygote that replied has made room
        replies = self._replies
        self._replies = []
        return replies

    def close(self) -> None:
        """End the zygote and all workers that are left, at once, and release everything.

        Waits for the zygote's end: for some milliseconds, and not much over a second where it is
        stopped. In a fork of the parent it does nothing. May be called again, also after an
        exception interrupted it.
        """
        if os.getpid() != self._caller.pid or self.pidfd < 0:
            return
        self._signal_zygote(signal.SIGCONT)  # one that is stopped could not obey
        self.stop(0.0)
        self.channel.close()
        if not self._wait_end(_CLOSE_PATIENCE):
            for worker in [*self._workers.values()]:
                worker.deadman.close()
            self._deadman.close()
            self._signal_zygote(signal.SIGKILL)
            self._wait_end(None)
        for worker in [*self._workers.values()]:
            worker.deadman.close()
        self._deadman.close()
        self._exitcode = _nursery.exit_code(self.pidfd, 0)
        self._workers.clear()
        self._slots.clear()
        self._setup = None
        self._ended = True
        self._pidfd.close()

    def _order(self, message: bytes) -> None:
        self._outgoing += ((message, ()),)
        self.flush()

    def _signal_zygote(self, signum: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            pass  # it was reaped, by a wait() of the user's or by its forkserver

    def _wait_end(self, seconds: float | None) -> bool:
        """Wait until the zygote has ended; False if it did not in time."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    # Replies

    def _receive(self) -> None:
        """Receive all there is. Each message is received and recorded in one step."""
        arrivals = self._arrivals
        try:
            while not self._ended and not (arrivals and _orders.is_end(arrivals[-1])):
                arrivals += starmap(self.channel.recvmsg, (_orders.RECEIVE_ARGUMENTS,))
        except BlockingIOError:
            pass
        except ConnectionResetError:
            arrivals += (_orders.END,)  # the zygote ended with orders unread

    def _take(self, envelope: _orders.Envelope) -> None:
        """Deal with the oldest message and remove it.

        An exception from a signal handler leaves it either untouched or dealt with.
        """
        if _orders.is_end(envelope):
            self._ended = True
            del self._arrivals[0]
            return
        try:
            message = _orders.admit(envelope, self.pid)
        except FramingError:
            message = None
            self._signal_zygote(signal.SIGKILL)  # whatever it is, it does not do its work
        worker = self._workers.get(message.number) if message else None
        if message and worker and message.kind is Kind.SPAWNED:
            self._take_spawned(message, worker)
        elif message and worker and message.kind is Kind.EXITED:
            self._take_end(worker, Exited(worker.slot, message.value))
        elif message and worker and message.kind is Kind.SPAWN_FAILED:
            self._take_end(worker, SpawnFailed(worker.slot, message.text))
        else:
            del self._arrivals[0]
            _orders.discard(envelope)

    def _take_spawned(self, message: Message, worker: _Worker) -> None:
        if message.whole:
            name = self._caller.worker_name(worker.number)
            reply: Reply = Spawned(worker.slot, message.value, message.descriptors[0], name)
            self._replies += (reply,)
            worker.spawned = True
            del self._arrivals[0]
            worker.deadman.close_worker_end()
        else:
            # A worker that cannot be watched. Its end will be told, to nobody.
            worker.deadman.close()
            reply = SpawnFailed(worker.slot, "the caller may not open more descriptors (RLIMIT_NOFILE)")
            self._replies += (reply,)
            worker.disowned = True
            del self._slots[worker.slot]
            del self._arrivals[0]

    def _take_end(self, worker: _Worker, reply: Exited | SpawnFailed) -> None:
        if not worker.disowned:
            self._replies += (reply,)
            del self._slots[worker.slot]
        del self._workers[worker.number]
        del self._arrivals[0]
        worker.deadman.close()

    def _fail_unanswered(self) -> None:
        """Report workers that a zygote which ended did not answer for, and kill them if they exist."""
        for worker in [*self._slots.values()]:
            if not worker.spawned:
                reply = SpawnFailed(worker.slot, f"the zygote {end_in_words(self.exitcode)}")
                self._replies += (reply,)
                del self._slots[worker.slot]
                del self._workers[worker.number]
                worker.deadman.close()
