"""Whole programs run unchanged: each in tests/programs is run as a script, as a user would.

Only a script has a main module of its own, and it is the main module in which initializers set
their globals, functions are redefined, and spawned workers begin by importing it anew.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pairpool
import twins
from holdings import Holdings, remains
from tasks import identity
from twins import TWINS

StartAtTerminal = Callable[..., subprocess.Popen[str]]

twin = twins.twin  # the fixture

PROGRAMS = Path(__file__).parent / "programs"
ROUNDS = {"fork": 100, "forkserver": 25, "spawn": 5}  # as many pools as a second or two allow
PATIENCE = 120  # seconds until a program that hangs is a failure


def _run(name: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", PROGRAMS / name, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def run_program(name: str, *arguments: str, stdin: str = "") -> str:
    """Run a program to its end, which must be a good one and without complaints; return what it printed."""
    done = _run(name, *arguments, stdin=stdin)
    if done.stderr or done.returncode:
        pytest.fail(f"{name} ended with status {done.returncode}\n{done.stderr}")
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "initializer_global.py",
        "shared_initargs.py",
        "defined_later.py",
        "late_definitions.py",
        "barrier.py",
        "callables.py",
        "nested.py",
        "own_numbers.py",
        "forked_child.py",
    ],
)
def test_a_program_runs_unchanged(name: str, start_method: str) -> None:
    """The program says what it checks; it prints one word when all of it held."""
    assert run_program(name, start_method) == "done\n"


def test_workers_of_either_twin_end_without_a_complaint(
    twin: ModuleType, start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that ends has closed all that it was given: nothing warns of what is left open."""
    monkeypatch.setenv("PAIRPOOL_EXTENSION", "0" if twin is TWINS["python"] else "1")
    assert "finalizer" in run_program("streams.py", start_method, "pairpool").splitlines()


def test_a_forgotten_pool_ends_with_its_program(start_method: str) -> None:
    """A program that never closes its pool ends by itself, with one warning and no worker left behind."""
    done = _run("forgotten.py", start_method)
    workers = done.stdout.split()

    assert (done.returncode, len(workers)) == (0, 2), done.stderr
    assert [pid for pid in workers if os.path.exists(f"/proc/{pid}")] == []
    warnings = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert [line.partition(" <")[0] for line in warnings] == [
        "ResourceWarning: unclosed running multiprocessing pool"
    ], done.stderr


@pytest.fixture
def start_at_terminal() -> Iterator[StartAtTerminal]:
    """Start programs in sessions of their own, as at a terminal of theirs, and wait until they are ready."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(PROGRAMS / name), *arguments]
        pipe = subprocess.PIPE
        program = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        started.append(program)
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        return program

    yield start
    for program in started:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.communicate()


def interrupt(program: subprocess.Popen[str]) -> tuple[int, int]:
    """Press Ctrl-C, which all of the terminal's group hears; return its exit status and how many tracebacks it left."""
    os.killpg(program.pid, signal.SIGINT)
    _, said = program.communicate(timeout=PATIENCE)
    assert "\nKeyboardInterrupt\n" in said, said
    sys.stdout.write(said)  # for who finds more than he expects
    return program.returncode, said.count("Traceback (most recent call last)")


@pytest.mark.parametrize("way", ["apply", "map", "imap", "get", "result", "join", "nothing", "many"])
def test_a_program_that_is_interrupted_ends_with_one_traceback(
    start_at_terminal: StartAtTerminal, start_method: str, way: str
) -> None:
    """Wherever it waits: its own. Workers say nothing."""
    assert interrupt(start_at_terminal("ctrl_c.py", start_method, way)) == (-signal.SIGINT, 1)


def test_a_second_interrupt_ends_a_program_at_once(start_at_terminal: StartAtTerminal) -> None:
    """It would have waited for a worker that ignores SIGTERM."""
    program = start_at_terminal("ctrl_c.py", "fork", "SIGTERM ignored")
    assert program.stdout is not None
    assert program.stdout.readline() == "ignoring\n"
    os.killpg(program.pid, signal.SIGINT)
    assert program.stdout.readline() == "terminating\n"
    assert interrupt(program) == (-signal.SIGINT, 2)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_pool_that_is_interrupted_while_it_is_made_leaves_one_traceback(
    start_at_terminal: StartAtTerminal, start_method: str
) -> None:
    """At many moments. A fork server is not looked at: it is the library's, and hears of it when it is started."""
    for number in range(8):
        program = start_at_terminal("ctrl_c.py", start_method, "start")
        time.sleep(number / 200)  # any moment will do
        assert interrupt(program) == (-signal.SIGINT, 1), number


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_zygote_that_was_started_when_an_interrupt_strikes_says_nothing(start_method: str) -> None:
    """It ends, though it has not been told yet what it is."""
    assert run_program("interrupted_start.py", start_method) == "done\n"


def test_streams_and_exit_hooks_of_workers_are_those_of_the_library(start_method: str) -> None:
    """Stdin is empty, what was printed is flushed, and the same hooks run as in the library's workers."""
    ours, theirs = (
        run_program("streams.py", start_method, library, stdin="not for workers")
        for library in ("pairpool", "multiprocessing")
    )
    assert sorted(ours.splitlines()) == sorted(theirs.splitlines())
    assert "printed, and not flushed" in ours


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_many_pools_leave_nothing_behind(start_method: str, end: str) -> None:
    """Made, used and ended over and over, pools leave no descriptor, thread, process or mapping at once."""

    def use_a_pool() -> None:
        pool = pairpool.get_context(start_method).Pool(2)
        assert pool.map(identity, range(4)) == [0, 1, 2, 3]
        getattr(pool, end)()
        pool.join()

    use_a_pool()  # whatever the first one leaves for good: the fork server, modules that are loaded
    before = Holdings.now()
    for _ in range(ROUNDS[start_method]):
        use_a_pool()

    assert remains(before, grace=0) == []
