"""Zygotes under test, and workers that do what a test tells them.

A worker here runs `serve`: it is sent functions and sends back what they return. So a test looks
at a worker from within, and decides what it does and when.

Kept free of pytest: a worker of the spawn method imports this module.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import context, process
from typing import Any, TypeVar

from pairpool import _descriptors
from pairpool._zygote import Exited, Reply, Spawned, SpawnFailed, WorkerSetup, Zygote

R = TypeVar("R", Spawned, Exited, SpawnFailed)

_REQUEST_LIMIT = 100_000  # bytes


def serve(setup: WorkerSetup, slot: int, descriptors: tuple[int, ...]) -> None:
    """Run the initializer, then answer requests until there are no more."""
    line = socket.socket(fileno=descriptors[0])
    _descriptors.register(line)
    if setup.initializer is not None:
        setup.initializer(*setup.initargs)
    while request := line.recv(_REQUEST_LIMIT):
        function, args, answers = pickle.loads(request)
        value = function(*args)
        if answers:
            line.send(pickle.dumps(value))


def next_number() -> int:
    """Return the number that the next process of this one is to have."""
    return next(process._process_counter)  # type: ignore[attr-defined, no-any-return]


def has_ended(pidfd: int, seconds: float = 30.0) -> bool:
    """Wait until a process has ended; False if it is not going to."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class Remote:
    """The test's view of one worker."""

    def __init__(self, nest: Nest, slot: int, number: int, line: socket.socket) -> None:
        self.nest = nest
        self.slot = slot
        self.number = number
        self.line = line
        self._spawned: Spawned | None = None

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have the worker call this, and return what it returned."""
        self.line.send(pickle.dumps((function, args, True)))
        answer = self.line.recv(_REQUEST_LIMIT)
        if not answer:
            raise EOFError("the worker ended")
        return pickle.loads(answer)

    def post(self, function: Callable[..., Any], *args: Any) -> None:
        """Have the worker call this, and do not wait."""
        self.line.send(pickle.dumps((function, args, False)))

    def spawned(self) -> Spawned:
        """Wait until the zygote has told of the worker."""
        if self._spawned is None:
            self._spawned = self.nest.await_reply(Spawned, self.slot)
        return self._spawned

    def retire(self) -> int:
        """Have the worker return, and return its exit code."""
        self.line.close()
        return self.exitcode()

    def exitcode(self) -> int:
        """Wait until the zygote has told of the worker's end."""
        return self.nest.await_reply(Exited, self.slot).exitcode


class Nest:
    """A zygote, what it has said, and all that has to be closed in the end."""

    def __init__(
        self,
        method: str = "fork",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        setup = WorkerSetup(initializer, initargs, serve)
        self.zygote = Zygote.start(multiprocessing.get_context(method), setup)
        self.said: list[Reply] = []
        self._lines: list[socket.socket] = []
        self._pidfds: list[int] = []

    def spawn(self, slot: int = 0) -> Remote:
        """Order a worker."""
        test_end, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _descriptors.register(test_end, worker_end)
        self._lines.append(test_end)
        number = next_number()
        # The zygote's alone now: nothing else would tell the test that a worker is gone.
        with worker_end:
            self.zygote.spawn(slot, number, (worker_end.fileno(),))
            while self.zygote.pending:
                self.listen()
        return Remote(self, slot, number, test_end)

    def listen(self) -> None:
        """Take what the zygote says next."""
        select.select([self.zygote.channel.fileno(), self.zygote.pidfd], [], [])
        self.take()

    def take(self) -> None:
        """Take what the zygote has said."""
        replies = self.zygote.replies()
        self.said += replies
        self._pidfds += [reply.pidfd for reply in replies if isinstance(reply, Spawned)]

    def await_reply(self, kind: type[R], slot: int = 0) -> R:
        """Wait until the zygote has said this of a slot, and forget it and what it said before."""
        while True:
            for at, reply in enumerate(self.said):
                if isinstance(reply, kind) and reply.slot == slot:
                    self.said[: at + 1] = [other for other in self.said[:at] if other.slot != slot]
                    return reply
            if self.zygote.ended:
                raise EOFError(f"the zygote ended, and had said {self.said}")
            self.listen()

    def close(self) -> None:
        """Close everything."""
        self.zygote.close()
        for line in self._lines:
            line.close()
        for pidfd in self._pidfds:
            os.close(pidfd)
        self._pidfds.clear()


def stop_process(pid: int) -> None:
    """Stop a process, and wait until it is stopped: a signal sent next finds it so."""
    os.kill(pid, signal.SIGSTOP)
    while True:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            if file.read().rpartition(") ")[2][0] == "T":
                return
        os.sched_yield()


# -- What workers are asked to do -------------------------------------------------------------------


def start_child() -> int:
    """Start a program that outlives everything, and return its pid."""
    return subprocess.Popen(["sleep", "1000"]).pid


def fork_child() -> int:
    """Fork a child that waits for ever, and return its pid."""
    pid = os.fork()
    while pid == 0:
        signal.pause()
    return pid


def stray_fork() -> int:
    """Fork as a C library does, with no hook run: the child keeps every descriptor of this process."""
    pid: int = ctypes.PyDLL(None).fork()
    while pid == 0:
        signal.pause()
    return pid


def leave(code: object) -> None:
    """Raise SystemExit."""
    sys.exit(code)  # type: ignore[arg-type]


def fail() -> None:
    """Raise an error that nobody catches."""
    raise ValueError("meant to fail")


def run_on() -> None:
    """Run until a signal handler raises."""
    while True:
        pass


def handler_of(signum: int) -> str:
    """Return in words what this process does on a signal."""
    handler = signal.getsignal(signum)
    return handler.name if isinstance(handler, signal.Handlers) else getattr(handler, "__name__", "?")


def ignore(signum: int) -> None:
    """Have this process ignore a signal."""
    signal.signal(signum, signal.SIG_IGN)


def blocked_signals() -> set[int]:
    """Return the blocked signals of this process."""
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def who_am_i() -> dict[str, Any]:
    """Return how multiprocessing sees this process."""
    current = process.current_process()
    parent = multiprocessing.parent_process()
    assert parent is not None
    return {
        "class": type(current).__name__,
        "base": next(cls.__name__ for cls in type(current).__mro__ if cls.__module__ == context.__name__),
        "name": current.name,
        "identity": current._identity,
        "daemon": current.daemon,
        "pid": current.pid,
        "authkey": bytes(current.authkey),
        "start method": multiprocessing.get_start_method(),
        "parent": (parent.name, parent.pid, parent.is_alive()),
    }


def descriptors() -> dict[int, tuple[str, bool]]:
    """Return what each descriptor of this process leads to, and whether an exec closes it."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            found[int(name)] = (target, not os.get_inheritable(int(name)))
        except OSError:
            pass  # that of the listing itself
    return found
