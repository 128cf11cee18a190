"""How a zygote comes into being, with each of multiprocessing's start methods.

With ``fork`` it is a plain fork of the calling thread, all signals blocked from before the fork on,
so that no handler of the user's ever runs in it. With ``forkserver`` and ``spawn`` it is started by
``multiprocessing.Process``: the main module, sys.path, sys.argv, the working directory and the
pickling of locks and queues are the stdlib's own work.

Nothing is left of a start that fails: closing the dead-man pipe kills whatever was started. What multiprocessing
starts is started on a thread of its own, where no signal handler strikes: one that raises between the start of the
process and the moment when it has been sent what it is would leave a process that nobody knows, and that complains.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from itertools import starmap
from multiprocessing import popen_forkserver, popen_spawn_posix, resource_tracker, util
from multiprocessing.context import ForkServerProcess, SpawnProcess, set_spawning_popen
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final, NoReturn, cast

from pairpool import _descriptors, _nursery, _orders
from pairpool._deadman import Deadman
from pairpool._descriptors import Descriptor
from pairpool._masks import blocked_signals, let_in_signals, shut_out_interrupt, shut_out_signals
from pairpool._surroundings import Caller, Handed, UncountedProcess, WorkerSetup


class Birth:
    """What is made for one zygote, before, with and after its process."""

    def __init__(self, caller: Caller, setup: WorkerSetup) -> None:
        self.caller = caller
        self.setup = setup
        self.pids: list[int] = []  # of the zygote, once there is one
        with ExitStack() as undo:
            self.deadman = undo.enter_context(closing(Deadman()))
            self.parent_pidfd = undo.enter_context(closing(Descriptor.of(os.pidfd_open, caller.pid)))
            self.parent_end, self.zygote_end = map(undo.enter_context, _orders.socketpair())
            _descriptors.register(self.deadman, self.parent_pidfd, self.parent_end, self.zygote_end)
            undo.pop_all()

    def start(self) -> None:
        """Start the zygote."""
        _STARTERS[self.caller.method](self)
        self.pidfd = Descriptor.of(os.pidfd_open, self.pids[0])
        _descriptors.register(self.pidfd)

    def close_zygote_ends(self) -> None:
        """Close in the parent what only the zygote needs."""
        self.zygote_end.close()
        self.parent_pidfd.close()
        self.deadman.close_worker_end()

    def abandon(self) -> None:
        """Undo what was done, after an exception."""
        self.close_zygote_ends()
        self.parent_end.close()
        self.deadman.close()  # kills the zygote, if there is one
        if hasattr(self, "pidfd"):
            self.pidfd.close()
        if self.pids and self.caller.method != "forkserver":  # else it is another's to reap
            try:
                os.kill(self.pids[0], signal.SIGKILL)  # one that is still starting is not bound
                os.waitpid(self.pids[0], 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # a wait() of the user's has reaped it


def _start_by_fork(birth: Birth) -> None:
    """Fork the zygote from the caller."""
    util._flush_std_streams()  # type: ignore[attr-defined]
    mask = blocked_signals()
    try:
        # Else a handler of the user's could run in the zygote before it has shut signals out.
        shut_out_signals()
        with _descriptors.spare(birth.deadman, birth.parent_pidfd, birth.zygote_end):
            # Forked and recorded in one step, which no exception can split: another thread may
            # take a signal whose handler raises here.
            birth.pids += starmap(os.fork, ((),))
            if birth.pids[0] == 0:
                _be_forked(birth, mask)
    finally:
        if birth.pids == [0]:
            os._exit(1)  # the zygote failed before it began; never into the caller's frames
        let_in_signals(mask)


def _be_forked(birth: Birth, mask: Collection[int]) -> NoReturn:
    birth.deadman.close_parent_end()
    # The workers keep it, as the sentinel of their parent_process().
    _descriptors.unregister(birth.parent_pidfd)
    _nursery.run(
        birth.caller,
        birth.setup,
        birth.zygote_end,
        birth.deadman.worker_end,
        birth.parent_pidfd.fileno(),
        mask,
    )


class _ZygoteProcess(UncountedProcess):
    """A zygote that multiprocessing starts in a clean process."""

    def __init__(self, birth: Birth) -> None:
        caller = birth.caller
        super().__init__("PairpoolZygote", (), caller.config, caller.pid, caller.name)
        self._caller = caller
        self._setup = birth.setup
        self.mask: Collection[int] | None = None  # what was blocked before more was for its start
        self._handed = Handed((birth.zygote_end.fileno(), birth.deadman.worker_end, birth.parent_pidfd.fileno()))

    def run(self) -> None:
        """Be the zygote."""
        number, deadman_end, parent_pidfd = self._handed
        channel = socket.socket(fileno=number)
        _descriptors.register(channel, deadman_end)
        _nursery.run(self._caller, self._setup, channel, deadman_end, parent_pidfd, self.mask)


class _SpawnZygote(_ZygoteProcess, SpawnProcess): ...


class _ForkServerZygote(_ZygoteProcess, ForkServerProcess): ...


class _Pickled:
    """A process that is pickled already."""

    def __init__(self, process: _ZygoteProcess) -> None:
        self._name = process.name
        self._data = bytes(ForkingPickler.dumps(process))

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._data,)


class _StartedApart:
    """Mixed into a ``Popen`` of multiprocessing's: see the file's head. What is pickled is pickled where it is made."""

    pid: int
    _deaf = False  # SIGINT is blocked in what is started

    def __init__(self, birth: Birth, process: _ZygoteProcess) -> None:
        self._pids = birth.pids
        self._error: BaseException | None = None
        self._over = allocate_lock()  # released when all is done
        self._over.acquire()
        self._ended = False  # all is done; an interrupt may strike when the lock has just been acquired
        super().__init__(process)  # type: ignore[call-arg]

    def _launch(self, process: _ZygoteProcess) -> None:
        set_spawning_popen(cast(Any, self))
        try:
            pickled = _Pickled(process)
        finally:
            set_spawning_popen(None)
        begun: list[int] = []
        try:
            begun += starmap(start_new_thread, ((self._start, (pickled,)),))
            self._over.acquire()
        except BaseException:
            if begun and not self._ended:
                self._over.acquire(timeout=_PATIENCE)  # then it is known who is to be ended
            raise
        if self._error is not None:
            raise self._error

    def _start(self, pickled: _Pickled) -> None:
        try:
            if self._deaf:
                shut_out_interrupt()
            super()._launch(pickled)  # type: ignore[misc]
        except BaseException as error:
            self._error = error
        finally:
            self._pids += filter(None, (getattr(self, "pid", None),))
            try:
                self.close()  # type: ignore[attr-defined]
            finally:
                self._ended = True
                self._over.release()


class _SpawnPopen(_StartedApart, popen_spawn_posix.Popen):
    """The interpreter that it starts hears nothing of a Ctrl-C before it can ignore it, and leaves no traceback."""

    _deaf = True


class _ForkServerPopen(_StartedApart, popen_forkserver.Popen): ...


# Seconds that an interrupt waits for what is being started, which takes some milliseconds, before it comes out anyway.
_PATIENCE: Final = 5.0


def _start_by_spawn(birth: Birth) -> None:
    process = _SpawnZygote(birth)
    process.mask = mask = blocked_signals()  # where it begins there is one more
    try:
        # Here, or a handler that strikes amid this, and makes a pool, would wait for its own thread.
        resource_tracker.ensure_running()
    finally:
        let_in_signals(mask)  # it lets in some where it has to be started
    _SpawnPopen(birth, process)


def _start_by_fork_server(birth: Birth) -> None:
    _ForkServerPopen(birth, _ForkServerZygote(birth))


_STARTERS: dict[str, Callable[[Birth], None]] = {
    "fork": _start_by_fork,
    "spawn": _start_by_spawn,
    "forkserver": _start_by_fork_server,
}

START_METHODS = tuple(_STARTERS)
