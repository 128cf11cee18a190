"""What a worker process finds around itself: its place in multiprocessing, its group, its signals.

A worker should look as a worker of the stdlib's Pool does, although it was forked by a zygote and
not by the caller: `Caller` is what has to be carried over for that, `WorkerProcess` is the
``multiprocessing.Process`` it runs under, `Surroundings` what the process itself is given before
any code of the user's runs in it.
"""

from __future__ import annotations

# The C functions behind those of the signal module: see _masks.py.
import _signal  # type: ignore[import-not-found]
import atexit
import gc
import multiprocessing.context
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from multiprocessing import process, reduction, util
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn

from pairpool import _deadman, _descriptors
from pairpool._masks import FAULTS, blocked_signals, let_in_signals, shut_out_signals

Entry = Callable[["WorkerSetup", int, tuple[int, ...]], object]


@dataclass
class WorkerSetup:
    """What all workers of a pool share.

    With the fork start method it is inherited and may hold anything; otherwise it is pickled by
    ``multiprocessing.Process``, so that locks and queues may travel in it.

    Args:
        entry: what a worker runs, with this, its slot and its descriptors; None is
            ``pairpool._worker.run``.
        max_memory_per_worker, memory_limit: bytes; see ``pairpool.engines.WorkerPlan``.
    """

    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    entry: Entry | None = None
    max_memory_per_worker: int | None = None
    memory_limit: int | None = None

    def resolve_entry(self) -> Entry:
        """Return what a worker runs."""
        # Imported by whoever forks, before the fork: in a fork of a threaded process an
        # import may wait for ever for a module that another thread was just importing.
        if self.max_memory_per_worker is not None or self.memory_limit is not None:
            from pairpool import _memory  # noqa: F401  # for the worker, which has it then
        if self.entry is None:
            from pairpool import _worker

            self.entry = _worker.run
        return self.entry


@dataclass(frozen=True)
class Caller:
    """The process that made the pool, as its workers know it."""

    method: str
    pid: int
    name: str
    identity: tuple[int, ...]
    config: dict[str, Any] = field(repr=False)  # multiprocessing's: the authkey among others

    @classmethod
    def here(cls, method: str) -> Caller:
        """Describe the calling process."""
        current = process.current_process()
        config: dict[str, Any] = current._config.copy()  # type: ignore[attr-defined]
        return cls(method, os.getpid(), current.name, current._identity, config)

    def worker_identity(self, number: int) -> tuple[int, ...]:
        """Return the ``_identity`` of the caller's worker with this number."""
        return (*self.identity, number)

    def worker_name(self, number: int) -> str:
        """Return the name that the stdlib's Pool would give to this worker."""
        kind = WORKER_PROCESSES[self.method].__name__.replace("Process", "PoolWorker")
        return f"{kind}-{':'.join(map(str, self.worker_identity(number)))}"


class Handed(tuple[int, ...]):
    """Descriptors that are inherited by a fork, and travel with a process that is started clean."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, tuple(map(reduction.DupFd, self))


def _receive(*parcels: Any) -> Handed:
    numbers = Handed(parcel.detach() for parcel in parcels)
    for number in numbers:
        os.set_inheritable(number, False)  # they came through an exec
    return numbers


class UncountedProcess(BaseProcess):
    """A ``Process`` that is told who it is.

    ``BaseProcess.__init__`` would take a number from the caller's count, and read name and
    identity of its maker from the process that it runs in, which here is not the caller.
    """

    def __init__(
        self, name: str, identity: tuple[int, ...], config: dict[str, Any], parent_pid: int, parent_name: str
    ) -> None:
        # All attributes that BaseProcess.__init__ sets (CPython 3.11 to 3.14).
        self._identity = identity
        self._config = dict(config)
        self._parent_pid = parent_pid
        self._parent_name = parent_name
        self._popen = None
        self._closed = False
        self._target = None
        self._args = ()
        self._kwargs: dict[str, Any] = {}
        self._name = name


class WorkerProcess(UncountedProcess):
    """What ``multiprocessing.current_process()`` is in a worker."""

    def __init__(
        self,
        caller: Caller,
        setup: WorkerSetup,
        surroundings: Surroundings,
        number: int,
        slot: int,
        handed: tuple[int, ...],
    ) -> None:
        config = {key: value for key, value in caller.config.items() if key != "daemon"}
        super().__init__(caller.worker_name(number), caller.worker_identity(number), config, caller.pid, caller.name)
        self._reads_daemonic = True
        self._setup = setup
        self._surroundings = surroundings
        self._slot = slot
        # The caller's pidfd, the worker's end of its dead-man pipe, and what is meant for `entry`.
        self._handed = Handed(handed)

    @property
    def daemon(self) -> bool:
        """True as in the stdlib, where libraries read it to find that they are in a pool's worker.

        The entry in ``_config``, which would forbid the worker to have children, is not set.
        """
        return self._reads_daemonic

    @daemon.setter
    def daemon(self, daemonic: bool) -> None:
        self._reads_daemonic = daemonic

    def run(self) -> None:
        """Do a worker's work."""
        # Only here, where an exception from a handler of the user's becomes an exit code.
        self._surroundings.let_in_signals()
        self._setup.resolve_entry()(self._setup, self._slot, self._handed[2:])

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        if parent_sentinel is not None:
            os.close(parent_sentinel)  # a spawned worker's; it tells of the zygote
        parent_pidfd, deadman_end = self._handed[:2]
        self._surroundings.enter(deadman_end)
        # A pidfd is a good sentinel: it is ready when the process has ended.
        code: int = super()._bootstrap(parent_sentinel=parent_pidfd)  # type: ignore[misc]
        return code


class ForkProcess(WorkerProcess, multiprocessing.context.ForkProcess):
    """A worker of a pool with the fork start method."""


class SpawnProcess(WorkerProcess, multiprocessing.context.SpawnProcess):
    """A worker of a pool with the spawn start method."""


class ForkServerProcess(WorkerProcess, multiprocessing.context.ForkServerProcess):
    """A worker of a pool with the forkserver start method."""


WORKER_PROCESSES: dict[str, type[WorkerProcess]] = {
    "fork": ForkProcess,
    "spawn": SpawnProcess,
    "forkserver": ForkServerProcess,
}


def become(worker: WorkerProcess) -> NoReturn:
    """Run a worker in the process just forked, with the exit codes of the stdlib, and end it."""
    code = 1
    try:
        if _RUNS_ATEXIT:
            atexit._clear()
            atexit.register(util._exit_function)  # type: ignore[attr-defined]
        code = worker._bootstrap()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            if _RUNS_ATEXIT:
                atexit._run_exitfuncs()
        finally:
            os._exit(code)


# From 3.13 on the functions that a process registered run at its end whatever started it, and
# multiprocessing's own is one of them; before, _bootstrap() runs that one itself.
_RUNS_ATEXIT = sys.version_info >= (3, 13)


@dataclass(frozen=True)
class Surroundings:
    """What the caller had and the zygote changed in itself, for each worker to have again."""

    collects_garbage: bool
    ignores_children: bool  # SIGCHLD was SIG_IGN, which would hide exit codes from the zygote
    mask: Collection[int] | None  # blocked signals; None: as they are

    @classmethod
    def set_aside(cls, method: str, mask: Collection[int] | None) -> Surroundings:
        """Make the calling process, a zygote, a quiet one; return what workers are to have instead.

        If signals are blocked for its start, ``mask`` is what was blocked before.
        """
        signal.set_wakeup_fd(-1)  # it may be a socket of the caller's event loop
        if method == "spawn":
            defuse_signals()
            if mask is not None:
                let_in_signals(mask)
                mask = None
        elif mask is None:
            mask = blocked_signals()
            shut_out_signals()
        ignores_children = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
        if ignores_children:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        collects_garbage = gc.isenabled()
        if method != "spawn":
            # No collection here: it could run finalizers of the user's. And what was inherited is put
            # out of the collector's reach for good, so that the first full collection in each worker
            # does not write to, and thereby copy, every page of it (half a second and 127 MB for 500 000
            # small dicts, against 0.1 ms and nothing). The price: cycles of inherited
            # objects that become garbage in a worker are not collected there.
            gc.disable()
            gc.freeze()
        return cls(collects_garbage, ignores_children, mask)

    def enter(self, deadman_end: int) -> None:
        """Turn the calling process, just forked or spawned, into a worker's.

        A group of its own, so that its children can be ended with it; bound to the parent's life.
        In a forked worker signals stay blocked until `let_in_signals`.
        """
        os.setpgid(0, 0)
        _deadman.bind(deadman_end)
        # A fork that the user makes is not bound: a daemon started by a task may outlive it.
        _descriptors.register(deadman_end)
        self._set_signals()
        if self.collects_garbage:
            gc.enable()

    def _set_signals(self) -> None:
        # Not SIG_IGN: subprocesses of a task would inherit that, but not a handler. In a group of
        # its own a worker hears nothing of the terminal's Ctrl-C; this is for a kill -INT.
        _signal.signal(_signal.SIGINT, _ignore_signal)
        # In a background group tcsetattr() (getpass, pdb) stops the process otherwise. These two
        # are to be inherited, a subprocess is in the same background group.
        _signal.signal(_signal.SIGTTOU, _signal.SIG_IGN)
        _signal.signal(_signal.SIGTTIN, _signal.SIG_IGN)
        if self.ignores_children:
            _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)

    def let_in_signals(self) -> None:
        """Have signals delivered again; what arrived meanwhile is."""
        if self.mask is not None:
            let_in_signals(self.mask)


# Left alone by `defuse_signals`: those that cannot be caught, those that tell of a fault (returning
# from their handler repeats it), and SIGCONT.
_UNTOUCHED_SIGNALS = FAULTS | {signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGPIPE}


def defuse_signals() -> None:
    """Have signals do nothing in the calling process, and be as they were in what it executes.

    For a zygote that starts fresh interpreters. Unlike a blocked or an ignored signal, a handler
    ends with exec.
    """
    for number in signal.valid_signals() - _UNTOUCHED_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ignore_signal)


def _ignore_signal(signum: int, frame: FrameType | None) -> None:
    """Do nothing."""
