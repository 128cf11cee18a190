"""The zygote, asked by its parent: workers come, are signalled, go, and fail to come."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import zygotes
from forks import exit_code, run_in_child
from pairpool import _orders
from pairpool._orders import Kind
from pairpool._zygote import Exited, Spawned, SpawnFailed, WorkerSetup, Zygote
from zygotes import Nest, has_ended, next_number, stop_process

MakeNest = Callable[..., Nest]


@pytest.fixture
def make_nest() -> Iterator[MakeNest]:
    """Make nests that are closed when the test ends."""
    nests: list[Nest] = []

    def make(*args: Any) -> Nest:
        nests.append(Nest(*args))
        return nests[-1]

    yield make
    for nest in nests:
        nest.close()


@pytest.fixture
def nest(make_nest: MakeNest, start_method: str) -> Nest:
    """A nest of each start method in turn."""
    return make_nest(start_method)


def descriptors_of(pid: int) -> set[str]:
    """Return what a process's descriptors lead to."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def said_by(pid: int, message: bytes) -> _orders.Envelope:
    """Return a message as it is received from a process."""
    credentials = struct.pack("iII", pid, os.getuid(), os.getgid())
    return message, [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)], 0, None


class TestSpawn:
    """Workers come."""

    def test_tells_pid_name_and_a_pidfd(self, nest: Nest, start_method: str) -> None:
        """A worker that runs is told of with its pid, its name and a pidfd of its own."""
        worker = nest.spawn(7)

        spawned = worker.spawned()

        prefix = {"fork": "Fork", "forkserver": "ForkServer", "spawn": "Spawn"}[start_method]
        assert f"{prefix}PoolWorker-{worker.number}" == spawned.name
        assert worker.call(os.getpid) == spawned.pid
        with open(f"/proc/self/fdinfo/{spawned.pidfd}", encoding="ascii") as file:
            assert f"Pid:\t{spawned.pid}\n" in file.read()

    def test_many_at_once(self, nest: Nest) -> None:
        """Orders may be given faster than they are obeyed; each slot has its own worker."""
        workers = [nest.spawn(slot) for slot in range(5)]

        pids = [worker.call(os.getpid) for worker in workers]

        assert [worker.spawned().pid for worker in workers] == pids
        assert [worker.retire() for worker in workers] == [0] * 5

    def test_takes_no_number_and_is_no_child_of_multiprocessing(self, nest: Nest, start_method: str) -> None:
        """The zygote is not in active_children(), and leaves the count of processes to the workers."""
        before = next_number()
        other = Zygote.start(multiprocessing.get_context(start_method), WorkerSetup())
        after = next_number()
        other.close()

        assert before + 1 == after
        assert multiprocessing.active_children() == []

    def test_a_slot_is_free_after_its_worker(self, nest: Nest) -> None:
        """A slot whose worker has ended can have another."""
        assert nest.spawn(3).retire() == 0

        again = nest.spawn(3)

        assert again.call(os.getpid) == again.spawned().pid

    def test_a_slot_is_taken_while_its_worker_lives(self, nest: Nest) -> None:
        """A second worker for a slot is refused at the call."""
        nest.spawn(3)

        with pytest.raises(ValueError, match="slot 3 has a worker"):
            nest.zygote.spawn(3, next_number(), ())

    def test_from_another_thread(self, make_nest: MakeNest, start_method: str) -> None:
        """A zygote made by a thread of the caller serves after that thread has ended."""
        nests: list[Nest] = []
        thread = threading.Thread(target=lambda: nests.append(make_nest(start_method)))
        thread.start()
        thread.join()

        worker = nests[0].spawn()

        assert worker.call(threading.active_count) == 1
        assert worker.retire() == 0

    def test_unknown_start_method(self) -> None:
        """A context with a start method of its own is refused."""

        class Context(multiprocessing.context.BaseContext):
            def get_start_method(self, allow_none: bool = False) -> str:
                return "loky"

        with pytest.raises(ValueError, match="'loky'"):
            Zygote.start(Context(), WorkerSetup())

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_unpicklable_setup(self, method: str) -> None:
        """What cannot be pickled raises in the caller where it has to be, and leaves nothing behind."""
        setup = WorkerSetup(lambda: None)

        with pytest.raises((pickle.PicklingError, AttributeError)):
            Zygote.start(multiprocessing.get_context(method), setup)

    def test_cannot_fork(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A caller that may not fork is told so, and nothing is left behind."""

        def fail() -> int:
            raise OSError(errno.EAGAIN, "meant to fail")

        monkeypatch.setattr(os, "fork", fail)

        with pytest.raises(BlockingIOError, match="meant to fail"):
            Zygote.start(multiprocessing.get_context("fork"), WorkerSetup())

    def test_start_fails_afterwards(self, start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A zygote that runs when something fails in the caller is ended and reaped."""
        pidfd_open = os.pidfd_open

        def fail(pid: int) -> int:
            if pid == os.getpid():
                return pidfd_open(pid)
            raise OSError(errno.EMFILE, "meant to fail")

        monkeypatch.setattr(os, "pidfd_open", fail)

        with pytest.raises(OSError, match="meant to fail"):
            Zygote.start(multiprocessing.get_context(start_method), WorkerSetup())

    def test_fork_pickles_nothing(self, make_nest: MakeNest) -> None:
        """With fork the initializer may be a lambda and its arguments anything."""
        nest = make_nest("fork", lambda lock: lock.acquire(), (threading.Lock(),))

        assert nest.spawn().call(os.getppid) == nest.zygote.pid


class TestExitCodes:
    """Workers go."""

    @pytest.mark.parametrize(
        ("function", "args", "code"),
        [
            (zygotes.leave, (None,), 0),
            (zygotes.leave, (3,), 3),
            (zygotes.leave, ("meant to be said",), 1),
            (zygotes.fail, (), 1),
            (os._exit, (9,), 9),
            (signal.raise_signal, (signal.SIGUSR1,), -signal.SIGUSR1),
            (signal.raise_signal, (signal.SIGKILL,), -signal.SIGKILL),
        ],
        ids=[
            "SystemExit()",
            "SystemExit(3)",
            "SystemExit(str)",
            "exception",
            "os._exit",
            "SIGUSR1",
            "SIGKILL",
        ],
    )
    def test_are_those_of_the_stdlib(
        self, nest: Nest, start_method: str, function: Callable[..., Any], args: tuple[Any, ...], code: int
    ) -> None:
        """However a worker ends, its exit code is that of a Process which ended so."""
        context: Any = multiprocessing.get_context(start_method)
        process = context.Process(target=function, args=args)
        process.start()
        worker = nest.spawn()
        worker.post(function, *args)

        process.join()

        assert worker.exitcode() == process.exitcode == code

    def test_ignored_children(self, make_nest: MakeNest) -> None:
        """A caller that ignores SIGCHLD learns exit codes, and its workers ignore it too."""
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            worker = make_nest("fork").spawn()

            assert worker.call(zygotes.handler_of, signal.SIGCHLD) == "SIG_IGN"
            worker.post(os._exit, 9)
            assert worker.exitcode() == 9
        finally:
            signal.signal(signal.SIGCHLD, before)


class TestSpawnFailed:
    """Workers fail to come."""

    @pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
    def test_fork_fails(self, make_nest: MakeNest, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        """A fork that fails is told with its reason, costs nothing, and may succeed the next time."""
        fork, caller, forks = os.fork, os.getpid(), iter(range(3))

        def fail_once() -> int:
            if os.getpid() != caller and next(forks) == 1:
                raise OSError(number, "")
            return fork()

        monkeypatch.setattr(os, "fork", fail_once)
        nest = make_nest("fork")
        assert nest.spawn(4).retire() == 0
        before = descriptors_of(nest.zygote.pid)
        nest.spawn(4)

        failed = nest.await_reply(SpawnFailed, 4)

        assert os.strerror(number) in failed.reason
        assert before == descriptors_of(nest.zygote.pid)
        assert nest.spawn(4).retire() == 0

    def test_too_many_processes(self) -> None:
        """An ordinary user at his limit of processes (RLIMIT_NPROC) is told so."""

        def work() -> None:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(64321)
                os.setuid(64321)  # nobody else's, so that the processes can be counted
            else:
                pytest.skip("only root can be a user without processes")
            resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))  # this process and the zygote
            nest = Nest("fork")
            nest.spawn()
            failed = nest.await_reply(SpawnFailed)
            nest.close()
            assert os.strerror(errno.EAGAIN) in failed.reason, failed

        assert run_in_child(work) == 0

    def test_zygote_out_of_descriptors(self, nest: Nest) -> None:
        """A zygote that may open no more descriptors says so, and serves again when it may."""
        nest.spawn(0).spawned()
        limits = resource.prlimit(nest.zygote.pid, resource.RLIMIT_NOFILE)
        before = descriptors_of(nest.zygote.pid)
        resource.prlimit(nest.zygote.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        nest.spawn(1)

        failed = nest.await_reply(SpawnFailed, 1)

        assert "RLIMIT_NOFILE" in failed.reason
        assert before == descriptors_of(nest.zygote.pid)
        resource.prlimit(nest.zygote.pid, resource.RLIMIT_NOFILE, limits)
        assert nest.spawn(1).retire() == 0

    def test_caller_out_of_descriptors(self, make_nest: MakeNest) -> None:
        """A worker whose pidfd the caller has no room for is killed and told of as failed."""
        nest = make_nest("fork")
        nest.spawn(1)
        select.select([nest.zygote.channel], [], [])  # SPAWNED is there
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            replies = nest.zygote.replies()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

        assert [SpawnFailed(1, "the caller may not open more descriptors (RLIMIT_NOFILE)")] == replies
        # The end of the one before is not taken for that of the next.
        again = nest.spawn(1)
        assert again.call(os.getpid) == again.spawned().pid
        assert again.retire() == 0

    def test_after_stop(self, nest: Nest) -> None:
        """A zygote that is stopping makes no workers."""
        worker = nest.spawn(0)
        worker.call(zygotes.ignore, signal.SIGTERM)
        nest.zygote.stop(1000.0)
        nest.spawn(1)

        assert nest.await_reply(SpawnFailed, 1).reason == "the pool is stopping"

    def test_caller_gave_up_its_user(self) -> None:
        """A caller that is another user by now gets no workers that run as the one it was."""

        def work() -> None:
            nest = Nest("fork")
            os.setuid(64321)
            nest.spawn()
            failed = nest.await_reply(SpawnFailed)
            nest.close()
            assert "user 64321" in failed.reason, failed

        if os.getuid() != 0:
            pytest.skip("only root can become another user")
        assert run_in_child(work) == 0


class TestSignals:
    """Workers are signalled."""

    def test_one_worker(self, nest: Nest) -> None:
        """A signal for a worker ends it, and no other."""
        workers = [nest.spawn(slot) for slot in range(2)]
        for worker in workers:
            worker.call(os.getpid)

        nest.zygote.signal(0, signal.SIGTERM)

        assert workers[0].exitcode() == -signal.SIGTERM
        assert workers[1].retire() == 0

    def test_nobody(self, nest: Nest) -> None:
        """A signal for a slot whose worker has ended goes nowhere."""
        assert nest.spawn(0).retire() == 0

        nest.zygote.signal(0, signal.SIGKILL, group=True)

        assert nest.spawn(0).retire() == 0

    def test_group(self, nest: Nest) -> None:
        """A signal for a group reaches the children of the worker too."""
        worker = nest.spawn()
        child = os.pidfd_open(worker.call(zygotes.start_child))

        nest.zygote.signal(0, signal.SIGTERM, group=True)

        assert worker.exitcode() == -signal.SIGTERM
        assert has_ended(child)
        os.close(child)

    def test_sigkill_for_the_group_needs_no_zygote(self, nest: Nest) -> None:
        """A worker is killed with its children while the zygote is stopped."""
        worker = nest.spawn()
        spawned = worker.spawned()
        child = os.pidfd_open(worker.call(zygotes.start_child))
        stop_process(nest.zygote.pid)

        nest.zygote.signal(0, signal.SIGKILL, group=True)

        assert has_ended(spawned.pidfd)
        assert has_ended(child)
        os.close(child)
        os.kill(nest.zygote.pid, signal.SIGCONT)
        assert worker.exitcode() == -signal.SIGKILL

    def test_zygote_is_deaf(self, nest: Nest) -> None:
        """Signals meant for the whole program leave the zygote at its work."""
        assert nest.spawn().retire() == 0  # it is up
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM):
            os.kill(nest.zygote.pid, number)

        assert nest.spawn().retire() == 0


class TestGroups:
    """What becomes of the children of workers."""

    @pytest.mark.parametrize("child", [zygotes.start_child, zygotes.fork_child])
    def test_killed_worker(self, nest: Nest, child: Callable[[], int]) -> None:
        """The children of a worker that died of a signal are killed."""
        worker = nest.spawn()
        pidfd = os.pidfd_open(worker.call(child))

        worker.post(signal.raise_signal, signal.SIGKILL)

        assert worker.exitcode() == -signal.SIGKILL
        assert has_ended(pidfd)
        os.close(pidfd)

    @pytest.mark.parametrize("child", [zygotes.start_child, zygotes.fork_child, zygotes.stray_fork])
    def test_retired_worker(self, nest: Nest, child: Callable[[], int]) -> None:
        """The children of a worker that ended of itself live on, as with the stdlib, past the pool too."""
        worker = nest.spawn()
        pid = worker.call(child)
        pidfd = os.pidfd_open(pid)

        worker.post(os._exit, 0)

        assert worker.exitcode() == 0
        nest.close()
        assert not has_ended(pidfd, 0.0)
        os.kill(pid, signal.SIGKILL)
        os.close(pidfd)


class TestStop:
    """The zygote ends when it is told to."""

    def test_sigterm_first(self, nest: Nest) -> None:
        """Workers that heed SIGTERM end by it, however long the grace, and the zygote after them."""
        workers = [nest.spawn(slot) for slot in range(2)]
        for worker in workers:
            worker.call(os.getpid)

        nest.zygote.stop(1000.0)

        assert [worker.exitcode() for worker in workers] == [-signal.SIGTERM] * 2
        assert has_ended(nest.zygote.pidfd)

    def test_sigkill_later(self, nest: Nest) -> None:
        """Workers that ignore SIGTERM, or are stopped, are killed with their groups after the grace."""
        deaf, stopped = nest.spawn(0), nest.spawn(1)
        deaf.call(zygotes.ignore, signal.SIGTERM)
        child = os.pidfd_open(deaf.call(zygotes.start_child))
        stop_process(stopped.call(os.getpid))

        nest.zygote.stop(0.01)

        assert deaf.exitcode() == -signal.SIGKILL
        assert stopped.exitcode() == -signal.SIGKILL
        assert has_ended(child)
        assert has_ended(nest.zygote.pidfd)
        os.close(child)

    def test_again_with_less_grace(self, nest: Nest) -> None:
        """A second stop shortens the grace of the first."""
        worker = nest.spawn()
        worker.call(zygotes.ignore, signal.SIGTERM)
        nest.zygote.stop(1000.0)

        nest.zygote.stop(0.0)

        assert worker.exitcode() == -signal.SIGKILL

    def test_group_of_a_worker_that_obeys(self, nest: Nest) -> None:
        """The children of a worker that ends of itself while the zygote stops are killed."""
        worker = nest.spawn()
        worker.call(zygotes.ignore, signal.SIGTERM)
        child = os.pidfd_open(worker.call(zygotes.start_child))
        nest.zygote.stop(1000.0)
        worker.post(os._exit, 0)

        assert worker.exitcode() == 0
        assert has_ended(child)
        os.close(child)

    def test_with_no_workers(self, nest: Nest) -> None:
        """A zygote without workers ends at once."""
        assert nest.spawn().retire() == 0

        nest.zygote.stop(1000.0)

        assert has_ended(nest.zygote.pidfd)


class TestClose:
    """Everything goes at once."""

    def test_kills_and_may_be_repeated(self, nest: Nest, start_method: str) -> None:
        """Closing ends workers with their children, reaps the zygote, and does no harm a second time."""
        worker = nest.spawn()
        worker.call(zygotes.ignore, signal.SIGTERM)
        spawned = worker.spawned()
        child = os.pidfd_open(worker.call(zygotes.start_child))

        nest.zygote.close()
        nest.zygote.close()

        assert has_ended(spawned.pidfd, 0.0)
        assert has_ended(child)
        assert nest.zygote.exitcode == (None if start_method == "forkserver" else 0)
        assert f"<Zygote {start_method} pid={nest.zygote.pid} ended [0 workers]>" == repr(nest.zygote)
        os.close(child)

    def test_at_once_after_start(self, nest: Nest) -> None:
        """A zygote may be closed before it has come up."""
        nest.close()

    def test_stopped_zygote(self, nest: Nest) -> None:
        """A zygote that is stopped is closed like any other."""
        spawned = nest.spawn().spawned()
        stop_process(nest.zygote.pid)

        nest.zygote.close()

        assert has_ended(spawned.pidfd)

    def test_afterwards(self, nest: Nest) -> None:
        """Orders to a closed zygote do nothing, and a worker asked of it fails to come."""
        nest.zygote.close()
        nest.zygote.signal(0, signal.SIGTERM)
        nest.zygote.stop(0.0)
        nest.zygote.spawn(0, next_number(), ())

        assert [SpawnFailed] == [type(reply) for reply in nest.zygote.replies()]

    def test_forgotten(self) -> None:
        """A zygote that nobody holds any more ends with all its workers; a warning says so."""
        zygote = Zygote.start(multiprocessing.get_context("fork"), WorkerSetup())
        pid = zygote.pid

        with pytest.warns(ResourceWarning):
            del zygote

        assert exit_code(pid) in (0, -signal.SIGKILL)  # whichever of its ends came first

    def test_in_a_fork(self, make_nest: MakeNest) -> None:
        """Closing does nothing in a fork of the parent."""
        nest = make_nest("fork")

        assert run_in_child(nest.zygote.close) == 0

        assert nest.spawn().retire() == 0


class TestZygoteEnds:
    """The zygote dies, and the parent lives."""

    def test_workers_go_on(self, nest: Nest) -> None:
        """The parent learns of it by the pidfd, workers go on, orders fail in words."""
        worker = nest.spawn(0)
        spawned = worker.spawned()
        worker.call(os.getpid)

        os.kill(nest.zygote.pid, signal.SIGKILL)

        assert has_ended(nest.zygote.pidfd)
        nest.spawn(1)
        assert nest.await_reply(SpawnFailed, 1).reason.startswith("the zygote ")
        assert nest.zygote.ended
        assert worker.call(os.getpid) == spawned.pid

    def test_parent_still_kills_groups(self, nest: Nest) -> None:
        """One worker can be killed with its children, and closing does so for all others."""
        workers = [nest.spawn(slot) for slot in range(2)]
        pidfds = [worker.spawned().pidfd for worker in workers]
        children = [os.pidfd_open(worker.call(zygotes.start_child)) for worker in workers]
        os.kill(nest.zygote.pid, signal.SIGKILL)
        assert has_ended(nest.zygote.pidfd)

        nest.zygote.signal(0, signal.SIGKILL, group=True)

        assert has_ended(pidfds[0])
        assert has_ended(children[0])
        workers[1].call(os.getpid)

        nest.zygote.close()

        assert has_ended(pidfds[1])
        assert has_ended(children[1])
        for child in children:
            os.close(child)

    def test_orders_under_way(self, make_nest: MakeNest) -> None:
        """Each order that a zygote took with it is told of as failed, and how the zygote ended is known."""
        nest = make_nest("fork")
        stop_process(nest.zygote.pid)
        nest.spawn(0)
        nest.spawn(1)
        os.kill(nest.zygote.pid, signal.SIGKILL)

        assert has_ended(nest.zygote.pidfd)
        reasons = [nest.await_reply(SpawnFailed, slot).reason for slot in range(2)]

        assert reasons == ["the zygote was killed by SIGKILL"] * 2
        assert nest.zygote.exitcode == -signal.SIGKILL


class TestInterrupts:
    """A signal handler of the user's raises."""

    def test_nothing_is_lost(self) -> None:
        """Interrupts at any moment leave no process and no descriptor, and each worker is told of once."""
        program = Path(__file__).parent / "programs" / "zygote_interrupted.py"

        done = subprocess.run([sys.executable, program, "fork"], stdout=subprocess.PIPE, check=True)

        assert int(done.stdout) > 50


class TestMessages:
    """Who may say what, and how much of it."""

    def test_stranger(self, nest: Nest) -> None:
        """An order from any process but the parent is not obeyed, and what came with it is closed."""
        worker = nest.spawn()
        worker.call(os.getpid)
        before = descriptors_of(nest.zygote.pid)
        order = _orders.pack(Kind.STOP)
        program = (
            "import socket, sys; channel = socket.socket(fileno=int(sys.argv[1]));"
            "socket.send_fds(channel, [bytes.fromhex(sys.argv[2])], [0, 0])"
        )
        number = nest.zygote.channel.fileno()
        subprocess.run([sys.executable, "-c", program, str(number), order.hex()], pass_fds=[number], check=True)

        assert nest.spawn(1).retire() == 0
        assert worker.retire() == 0
        assert before >= descriptors_of(nest.zygote.pid)

    def test_garbage(self, nest: Nest, start_method: str) -> None:
        """A parent that sends garbage loses its zygote, and no worker."""
        worker = nest.spawn()
        worker.call(os.getpid)

        nest.zygote.channel.send(b"garbage")

        assert has_ended(nest.zygote.pidfd)
        assert nest.zygote.exitcode == (None if start_method == "forkserver" else 1)
        assert worker.call(len, "abc") == 3

    def test_nonsense_from_the_zygote(self, nest: Nest) -> None:
        """What a zygote has no reason to say is ignored, by whomever it is said."""
        worker = nest.spawn()
        worker.spawned()
        for kind, number in ((Kind.STOP, worker.number), (Kind.EXITED, 10**9)):
            for pid in (nest.zygote.pid, os.getpid()):
                nest.zygote._arrivals.append(said_by(pid, _orders.pack(kind, number)))

        assert nest.zygote.replies() == []
        assert worker.retire() == 0

    def test_garbage_from_the_zygote(self, nest: Nest) -> None:
        """A zygote that sends garbage is killed, the parent goes on, and so do workers."""
        worker = nest.spawn()
        worker.spawned()
        nest.zygote._arrivals.append(said_by(nest.zygote.pid, b"garbage"))

        assert nest.zygote.replies() == []
        assert has_ended(nest.zygote.pidfd)
        assert worker.call(len, "abc") == 3

    def test_full_channel(self, nest: Nest) -> None:
        """Orders that the channel has no room for wait, and are obeyed in order."""
        worker = nest.spawn()
        worker.call(os.getpid)
        stop_process(nest.zygote.pid)
        while not nest.zygote.pending:
            nest.zygote.signal(0, signal.SIGCONT)
        nest.zygote.signal(0, signal.SIGTERM)
        assert not nest.zygote.flush()
        assert "orders waiting" in repr(nest.zygote)

        os.kill(nest.zygote.pid, signal.SIGCONT)
        while not nest.zygote.flush():
            select.select([], [nest.zygote.channel], [])

        assert worker.exitcode() == -signal.SIGTERM

    def test_unread_replies(self, make_nest: MakeNest) -> None:
        """Replies that the parent does not read wait in the zygote, pidfds and all, and none is lost."""
        nest = make_nest("fork")
        nest.zygote.channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        pids = [worker.call(os.getpid) for worker in map(nest.spawn, range(8))]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

        spawned = [nest.await_reply(Spawned, slot) for slot in range(8)]

        assert pids == [reply.pid for reply in spawned]
        assert [has_ended(reply.pidfd) for reply in spawned] == [True] * 8
        assert [nest.await_reply(Exited, slot).exitcode for slot in range(8)] == [-signal.SIGKILL] * 8
