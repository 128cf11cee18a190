"""What a worker finds around itself."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import process
from pathlib import Path
from typing import Any

import pytest

import zygotes
from forks import run_in_child
from zygotes import Nest

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


class TestProcess:
    """How multiprocessing sees a worker."""

    def test_looks_as_in_the_stdlib(self, nest: Nest, start_method: str) -> None:
        """Class, name, identity, daemon, parent, authkey and start method are those of a pool's worker."""
        worker = nest.spawn()
        context: Any = multiprocessing.get_context(start_method)
        kind = context.Process.__name__

        me = worker.call(zygotes.who_am_i)

        assert me == {
            "class": kind,
            "base": kind,
            "name": f"{kind.replace('Process', 'PoolWorker')}-{worker.number}",
            "identity": (worker.number,),
            "daemon": True,
            "pid": worker.spawned().pid,
            "authkey": bytes(process.current_process().authkey),
            "start method": start_method,
            "parent": (process.current_process().name, os.getpid(), True),
        }

    def test_in_the_stdlibs_own_words(self, nest: Nest) -> None:
        """The repr of the current process is the usual one."""
        worker = nest.spawn()

        text = worker.call(repr_of_current_process)

        assert f" parent={os.getpid()} started daemon>" in text

    def test_may_have_children(self, nest: Nest) -> None:
        """A worker may start processes, which are numbered within it, and a zygote of its own."""
        worker = nest.spawn()

        assert worker.call(name_of_a_child).endswith(f"Process-{worker.number}:1")
        assert worker.call(name_of_a_nested_worker).endswith(f"PoolWorker-{worker.number}:2")
        assert worker.retire() == 0

    def test_parent_process_of_a_nested_worker(self, nest: Nest) -> None:
        """The parent of a nested worker is the worker that asked for it."""
        worker = nest.spawn()

        name, pid = worker.call(parent_of_a_nested_worker)

        assert (name, pid) == (worker.spawned().name, worker.spawned().pid)

    def test_daemon_can_be_set(self, nest: Nest) -> None:
        """Code that sets ``daemon`` reads what it has set."""
        worker = nest.spawn()
        worker.call(set_daemon, False)

        assert worker.call(zygotes.who_am_i)["daemon"] is False

    def test_after_fork_hooks(self, make_nest: MakeNest) -> None:
        """Functions registered with multiprocessing.util run in a forked worker, once."""
        thing = Thing()
        multiprocessing.util.register_after_fork(thing, Thing.on_fork)
        worker = make_nest("fork", Thing.remember, (thing,)).spawn()

        assert worker.call(Thing.count) == 1

    def test_has_one_thread(self, make_nest: MakeNest) -> None:
        """The caller's threads do not exist in a worker."""
        gate = threading.Event()
        thread = threading.Thread(target=gate.wait)
        thread.start()
        try:
            assert make_nest("fork").spawn().call(threading.active_count) == 1
        finally:
            gate.set()
            thread.join()

    def test_standard_input(self, nest: Nest) -> None:
        """A worker reads nothing from the caller's standard input."""
        assert nest.spawn().call(read_stdin) == ""


class TestInheritance:
    """What reaches the initializer."""

    def test_synchronization_in_initargs(self, make_nest: MakeNest, start_method: str) -> None:
        """Locks, events, values and queues travel in initargs, also to later workers, with every method."""
        context: Any = multiprocessing.get_context(start_method)
        parts = (
            context.Lock(),
            context.Event(),
            context.Value("i", 0),
            context.SimpleQueue(),
            context.Queue(),
        )
        nest = make_nest(start_method, remember, parts)
        _, event, value, simple, queue = parts
        del parts
        for number in (1, 2):
            worker = nest.spawn()
            worker.post(use_parts)

            assert simple.get() == queue.get() == worker.call(os.getpid)
            assert event.wait()
            assert value.value == number
            event.clear()
            assert worker.retire() == 0
        simple.close()
        queue.close()
        queue.join_thread()

    def test_globals_of_the_caller(self, make_nest: MakeNest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every worker of a forked zygote sees the caller's memory as it was when the zygote was made."""
        monkeypatch.setitem(globals(), "colour", "red")
        nest = make_nest("fork")
        monkeypatch.setitem(globals(), "colour", "green")

        assert [nest.spawn(slot).call(read_colour) for slot in range(2)] == ["red", "red"]

    @pytest.mark.parametrize("enabled", [True, False])
    def test_garbage_collection(self, make_nest: MakeNest, enabled: bool) -> None:
        """The collector is on or off as in the caller, and what was inherited is not its business."""
        frozen = gc.get_freeze_count()  # CPython 3.12 begins with some
        (gc.enable if enabled else gc.disable)()
        try:
            worker = make_nest("fork").spawn()
        finally:
            gc.enable()

        assert worker.call(gc.isenabled) is enabled
        assert worker.call(gc.get_freeze_count) > frozen + 1000
        assert gc.get_freeze_count() == frozen


class TestSignals:
    """What a worker does on signals."""

    def test_process_group(self, nest: Nest) -> None:
        """A worker leads a process group of its own."""
        worker = nest.spawn()

        assert worker.call(os.getpgrp) == worker.spawned().pid

    def test_sigint(self, nest: Nest) -> None:
        """SIGINT does nothing in a worker, and has its default effect in what the worker executes."""
        worker = nest.spawn()
        worker.call(signal.raise_signal, signal.SIGINT)

        assert worker.call(exit_code_of_child_interrupted) == -signal.SIGINT
        assert worker.retire() == 0

    def test_terminal(self, nest: Nest) -> None:
        """The signals that stop a background process at the terminal are ignored."""
        worker = nest.spawn()

        assert worker.call(zygotes.handler_of, signal.SIGTTOU) == "SIG_IGN"
        assert worker.call(zygotes.handler_of, signal.SIGTTIN) == "SIG_IGN"

    def test_others_are_the_callers(self, make_nest: MakeNest) -> None:
        """A forked worker has the caller's handlers and mask, but not its wakeup descriptor."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        before = signal.signal(signal.SIGTERM, a_handler)
        signal.set_wakeup_fd(ours.fileno())
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        try:
            worker = make_nest("fork").spawn()
        finally:
            mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, before)
            ours.close()
            theirs.close()

        assert mask == {signal.SIGUSR1}
        assert worker.call(zygotes.handler_of, signal.SIGTERM) == "a_handler"
        assert worker.call(zygotes.blocked_signals) == {signal.SIGUSR1}
        assert worker.call(signal.set_wakeup_fd, -1) == -1

    def test_a_handler_that_raises(self, make_nest: MakeNest) -> None:
        """A SIGTERM handler of the caller's runs in a worker, and its SystemExit is the exit code."""
        before = signal.signal(signal.SIGTERM, exit_with_seven)
        try:
            nest = make_nest("fork")
            worker = nest.spawn()
        finally:
            signal.signal(signal.SIGTERM, before)
        worker.spawned()
        worker.post(zygotes.run_on)  # who waits sleeps on where a signal comes just before that (see _pump.py)

        nest.zygote.signal(0, signal.SIGTERM)

        assert worker.exitcode() == 7

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_clean_start(self, make_nest: MakeNest, method: str) -> None:
        """A worker that is not forked from the caller has no signal blocked and the usual handlers."""
        worker = make_nest(method).spawn()

        assert worker.call(zygotes.blocked_signals) == set()
        assert worker.call(zygotes.handler_of, signal.SIGTERM) == "SIG_DFL"
        assert worker.call(zygotes.handler_of, signal.SIGUSR1) == "SIG_DFL"


class TestDescriptors:
    """What a worker holds."""

    def test_nothing_of_other_zygotes_and_workers(self, make_nest: MakeNest, start_method: str) -> None:
        """Of pairpool's descriptors a worker has those handed to it, its pipe, and the parent's pidfd."""
        caller_has = {target for target, _ in zygotes.descriptors().values()}
        other = make_nest("fork")
        other.spawn(0).call(os.getpid)
        nest = make_nest(start_method)
        nest.spawn(0).call(os.getpid)

        worker = nest.spawn(1)
        holds = worker.call(zygotes.descriptors)

        if start_method == "spawn":
            # And of multiprocessing's: its tracker's pipe, as a spawned process has it.
            assert sorted(kind_of(target) for target, closes in holds.values() if closes) == sorted(
                ["/dev/null", "pipe", "pidfd", "socket"]
            )
        elif start_method == "fork":
            new = [target for target, _ in holds.values() if target not in caller_has]
            assert sorted(map(kind_of, new)) == ["pidfd", "pipe", "socket"]
        else:
            # And of the fork server's: the tracker's pipe and its own, which it leaves to an exec.
            assert [kind_of(target) for target, closes in holds.values() if closes].count("socket") == 1

    def test_closed_by_exec(self, nest: Nest) -> None:
        """A program that a task executes gets none of them."""
        worker = nest.spawn()
        holds = worker.call(zygotes.descriptors)

        inherited = [kind_of(target) for target, closes in holds.values() if not closes]

        assert "socket" not in inherited
        assert "pidfd" not in inherited

    def test_closed_in_forks(self, nest: Nest) -> None:
        """A fork that a task makes gets neither the zygote's nor the worker's dead-man pipe."""
        nest.spawn(0).call(os.getpid)
        worker = nest.spawn(1)
        of_worker = worker.call(deadman_pipe)
        of_zygote = os.readlink(f"/proc/{os.getpid()}/fd/{nest.zygote._deadman._parent_end.fileno()}")

        in_a_fork = worker.call(pipes_in_a_fork)

        assert of_worker not in in_a_fork
        assert of_zygote not in in_a_fork

    def test_zygotes_come_and_go(self, make_nest: MakeNest, start_method: str) -> None:
        """Workers that come and go leave nothing open in the zygote."""
        nest = make_nest(start_method)
        counts = set()
        for _ in range(5):
            # What it held for the one before is closed before this one is told of.
            worker = nest.spawn()
            worker.spawned()
            counts.add(len(os.listdir(f"/proc/{nest.zygote.pid}/fd")))
            assert worker.retire() == 0

        assert len(counts) == 1


class TestStandardStreams:
    """What is printed."""

    def test_is_printed_once(self, start_method: str) -> None:
        """Text in a buffer of the caller's is not printed again by zygote or worker; a worker's own is."""
        program = Path(__file__).parent / "programs" / "zygote_prints.py"

        done = subprocess.run([sys.executable, program, start_method], stdout=subprocess.PIPE, text=True, check=True)

        assert done.stdout.split() == ["caller", "worker"]


class TestNamespaces:
    """Where pids mean something else."""

    def test_unshared_pid_namespace(self) -> None:
        """A caller whose children are in another pid namespace is left by its zygote, not kept waiting."""
        unshare = getattr(os, "unshare", None)
        if unshare is None or os.getuid() != 0:
            pytest.skip("takes os.unshare(), of Python 3.12, and root")

        def work() -> None:
            unshare(os.CLONE_NEWPID)  # type: ignore[attr-defined]
            nest = Nest("fork")
            with pytest.raises(EOFError):
                nest.spawn().spawned()
            nest.close()

        assert run_in_child(work) == 0


# -- What workers are asked to do -------------------------------------------------------------------

colour = "white"
_parts: tuple[Any, ...] = ()


class Thing:
    """Counts how often it was told of a fork."""

    kept: Thing | None = None
    forks = 0

    def on_fork(self) -> None:
        """Count."""
        self.forks += 1

    @classmethod
    def remember(cls, thing: Thing) -> None:
        """Keep one, in a worker."""
        cls.kept = thing

    @classmethod
    def count(cls) -> int:
        """Return how often the one kept was told."""
        assert cls.kept is not None
        return cls.kept.forks


def kind_of(target: str) -> str:
    """Return what kind of thing a descriptor leads to."""
    return target.removeprefix("anon_inode:").strip("[]").partition(":")[0]


def repr_of_current_process() -> str:
    """Return the repr of this process."""
    return repr(process.current_process())


def name_of_a_child() -> str:
    """Start a process that does nothing, and return its name."""
    child = multiprocessing.Process(target=int)
    child.start()
    child.join()
    assert child.exitcode == 0
    return child.name


def name_of_a_nested_worker() -> str:
    """Return the name of a worker of this worker's."""
    nest = Nest(multiprocessing.get_start_method())
    try:
        return nest.spawn().spawned().name
    finally:
        nest.close()


def parent_of_a_nested_worker() -> tuple[str, int]:
    """Return name and pid of the parent of a worker of this worker's."""
    nest = Nest(multiprocessing.get_start_method())
    try:
        name, pid, alive = nest.spawn().call(zygotes.who_am_i)["parent"]
        assert alive
        return name, pid
    finally:
        nest.close()


def set_daemon(value: bool) -> None:
    """Set the flag of this process."""
    process.current_process().daemon = value


def read_stdin() -> str:
    """Read all there is."""
    return sys.stdin.read()


def remember(*parts: Any) -> None:
    """Keep what an initializer was given."""
    global _parts
    _parts = parts


def use_parts() -> None:
    """Use a lock, an event, a value and two queues."""
    lock, event, value, simple, queue = _parts
    with lock:
        value.value += 1
    event.set()
    simple.put(os.getpid())
    queue.put(os.getpid())


def read_colour() -> str:
    """Return a global."""
    return colour


def exit_code_of_child_interrupted() -> int:
    """Interrupt a program that this process has executed."""
    child = subprocess.Popen(["sleep", "1000"])
    child.send_signal(signal.SIGINT)
    return child.wait()


def deadman_pipe() -> str:
    """Return the pipe that binds this worker to its parent."""
    current: Any = process.current_process()
    return os.readlink(f"/proc/self/fd/{current._handed[1]}")


def pipes_in_a_fork() -> set[str]:
    """Return what pipes a fork of this process has."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        pipes = {target for target, _ in zygotes.descriptors().values() if "pipe" in target}
        os.write(writing, " ".join(pipes).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="ascii") as file:
        pipes = set(file.read().split())
    os.waitpid(pid, 0)
    return pipes


def a_handler(signum: int, frame: object) -> None:
    """Do nothing."""


def exit_with_seven(signum: int, frame: object) -> None:
    """End this process."""
    raise SystemExit(7)
