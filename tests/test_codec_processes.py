from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import pytest

from codec_worker import Worker
from pairpool._codec import Encoder

PROGRAMS = Path(__file__).parent / "programs"


class LaterError(Exception):
    """Takes other arguments than its base."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)
        self.second = second


def fail(error: BaseException) -> None:
    """Raise."""
    raise error  # some comment


def fail_later() -> None:
    """Raise what the stdlib would hang on."""
    raise LaterError(1, 2)  # some comment


def say(connection: Connection) -> str:
    """Use a connection that was passed."""
    connection.send(os.getpid())
    return connection.recv()  # type: ignore[no-any-return]


def raise_when_loaded(error: BaseException) -> Any:
    """Return something that raises where it is unpickled."""
    return Raising(error)


class Raising:
    """Raises where it is unpickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return fail, (self.error,)


@pytest.fixture
def worker() -> Any:
    """A forked worker."""
    with Worker("fork", Encoder(inherited=True)) as found:
        yield found


@pytest.mark.parametrize(
    "arguments",
    [("fork", "inherited"), ("fork", "verified"), ("forkserver", "verified"), ("spawn", "verified")],
    ids=" ".join,
)
def test_main_module(arguments: tuple[str, str]) -> None:
    """Under each start method functions and classes of the main module are what they are in the caller."""
    path = os.pathsep.join([str(PROGRAMS.parent), *sys.path])
    command = [sys.executable, "-W", "error", str(PROGRAMS / "codec_globals.py"), *arguments]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, text=True, capture_output=True, check=False)

    assert (done.stdout, done.stderr) == ("all as it should be\n", "")


def test_interactive_main_module() -> None:
    """Where workers cannot run the main module again everything of it goes by value."""
    program = (
        "from codec_worker import Worker\n"
        "from pairpool._codec import Encoder\n"
        "import math\n"
        "scale = [10]\n"
        "def helper(x): return x * scale[0] + math.floor(1.5)\n"
        "def task(x): return helper(x)\n"
        "class Point:\n"
        "  def where(self): return helper(2)\n"
        "with Worker('spawn', Encoder()) as worker:\n"
        "  print(worker.call(task, 1), worker.map(Point.where, [Point()]), worker.map(task, [3]))\n"
    )
    path = os.pathsep.join([str(PROGRAMS.parent), *sys.path])
    command = [sys.executable, "-c", program]

    assert subprocess.check_output(command, env={**os.environ, "PYTHONPATH": path}, text=True) == "11 [21] [31]\n"


def test_errors(worker: Worker) -> None:
    """An error of a task arrives with its type, its attributes and the worker's text."""
    with pytest.raises(LaterError) as found:
        worker.call(fail_later)

    assert found.value.second == 2
    assert type(found.value.__cause__) is RemoteTraceback
    assert "raise LaterError(1, 2)  # some comment" in str(found.value.__cause__)
    assert "codec_worker.py" in str(found.value.__cause__)
    assert found.traceback[-1].name == "fail_later"


@pytest.mark.parametrize("error", [KeyboardInterrupt("x"), SystemExit("x")])
def test_fatal_errors(worker: Worker, error: BaseException) -> None:
    """What is no Exception arrives, too."""
    with pytest.raises(type(error), match="x"):
        worker.call(fail, error)
    with pytest.raises(type(error), match="x"):
        worker.call(say, Raising(error))
    with pytest.raises(type(error), match="x"):
        worker.call(raise_when_loaded, error)


def test_results_that_cannot_travel(worker: Worker) -> None:
    """A result that cannot be pickled is a MaybeEncodingError, with no traceback for a cause."""
    with pytest.raises(MaybeEncodingError) as found:
        worker.call(threading.Lock)

    assert found.value.exc == """TypeError("cannot pickle '_thread.lock' object")"""
    assert found.value.__cause__ is None


def test_connections(worker: Worker) -> None:
    """A live connection can be passed to a worker inside a call."""
    ours, theirs = multiprocessing.Pipe()
    ours.send("hello")

    assert worker.call(say, theirs) == "hello"
    assert ours.recv() != os.getpid()
    ours.close()
    theirs.close()


def test_pickling_with_signals() -> None:
    """Interrupts between any two steps leave no descriptor behind, and the encoder as it was."""
    program = str(PROGRAMS / "codec_interrupts.py")
    path = os.pathsep.join([str(PROGRAMS.parent), *sys.path])

    assert subprocess.check_output(
        [sys.executable, program], env={**os.environ, "PYTHONPATH": path}, text=True
    ).endswith("none left\n")
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
