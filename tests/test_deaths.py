"""What is told of a worker that died: what it ran, for how long, how it ended, and whether memory was short."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from forks import run_in_child
from pairpool import WorkerLostError, _cgroup
from tasks import worker_pid

MakePool = Callable[..., Any]


def die_at(deadly: int, item: int) -> int:
    """Be killed at one item."""
    if item == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def die_at_three(item: int) -> int:
    """Be killed at the fourth item."""
    return die_at(3, item)


def leave(status: int) -> None:
    """End the worker."""
    os._exit(status)


def crash(_: Any = None) -> None:
    """Read where nothing is."""
    ctypes.string_at(0)


def crash_in_child(_: Any = None) -> int:
    """Have a child crash; return its exit code."""
    return run_in_child(crash)


def lost(action: Callable[[], object]) -> WorkerLostError:
    """Do something in which a worker is lost; return the error."""
    with pytest.raises(WorkerLostError) as caught:
        action()
    return caught.value


def test_what_the_worker_ran_is_told(make_pool: Any, start_method: str) -> None:
    """The error names the worker, how it ended, the function and the item, and for how long that had run."""
    pool = make_pool(1, start_method=start_method)
    pid = pool.apply(worker_pid)
    error = lost(lambda: pool.map(die_at_three, range(8)))
    assert (error.pid, error.exitcode, error.task) == (pid, -signal.SIGKILL, "die_at_three for item 3")
    assert error.seconds is not None
    assert 0 <= error.seconds < 60
    words = rf"worker process {pid} was killed by SIGKILL while running die_at_three for item 3, \S+ s after it began"
    assert re.match(words, str(error))
    assert pool.apply(abs, (-1,)) == 1


@pytest.mark.parametrize(
    ("start", "task"),
    [
        (lambda pool: pool.map(die_at_three, range(8), 3), "die_at_three for items 3 to 5"),
        (lambda pool: pool.apply(die_at_three, (3,)), "a call of die_at_three"),
        (lambda pool: list(pool.imap(die_at_three, iter([0, 1, 2, 3]))), "die_at_three for item 3"),
        (lambda pool: pool.starmap(die_at, [(3, 2), (3, 3)]), "die_at for item 1"),
        (lambda pool: pool.map(partial(die_at, 1), [1]), "partial(die_at) for item 0"),
        (
            lambda pool: pool.submit(lambda: os.kill(os.getpid(), signal.SIGKILL)).result(),
            "a call of <lambda>.<locals>.<lambda>",
        ),
    ],
)
def test_every_face_says_what_was_run(make_pool: Any, start: Callable[[Any], object], task: str) -> None:
    """Calls are named by their function, items of a map by their place in it."""
    assert lost(partial(start, make_pool(2))).task == task


@pytest.mark.parametrize("status", [0, 3, 255])
def test_an_exit_is_told_with_its_status(make_pool: Any, status: int) -> None:
    """A worker that a task ends is as lost as one that is killed."""
    error = lost(lambda: make_pool(1).apply(leave, (status,)))
    assert error.exitcode == status
    assert f"exited with status {status} while running a call of leave" in str(error)


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ((None, None), "(perhaps out of memory)"),
        ((4, 5), "(out of memory: the kernel counts one more process of this cgroup killed for that)"),
        ((4, 4), "(not out of memory, by the kernel's count)"),
    ],
)
def test_whether_memory_was_short_is_told(
    make_pool: Any, monkeypatch: pytest.MonkeyPatch, counts: tuple[int | None, ...], verdict: str
) -> None:
    """Of a worker killed by SIGKILL the kernel's count of such deaths says why, where there is one."""
    told = iter(counts)
    monkeypatch.setattr(_cgroup, "oom_kills", lambda: next(told))
    error = lost(lambda: make_pool(1).apply(die_at_three, (3,)))
    assert str(error).endswith(verdict)


def test_the_error_survives_pickling() -> None:
    """As results of pools inside workers do, it travels with all that it knows."""
    error = WorkerLostError.of(7, -9, "why", "a call of f", 1.5)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))
    assert str(error) == "worker process 7 was killed by SIGKILL while running a call of f, 1.5 s after it began (why)"


# -- Crashes --------------------------------------------------------------------------------------


@pytest.fixture
def no_faulthandler() -> Iterator[None]:
    """Have nobody enabled faulthandler, which the test runner does."""
    faulthandler.disable()
    yield
    faulthandler.enable(2)


@pytest.mark.usefixtures("no_faulthandler")
def test_a_crash_says_where(make_pool: MakePool, start_method: str) -> None:
    """The error of a worker that crashes has the stack; that of one that is killed, or that exits, has none."""
    pool = make_pool(1, start_method=start_method)
    with pytest.raises(WorkerLostError, match=r"killed by SIGSEGV(?s:.*)in string_at\n(?s:.*)in crash\n") as crashed:
        pool.apply(crash)
    assert crashed.value.stack in str(crashed.value)
    assert pickle.loads(pickle.dumps(crashed.value)).stack == crashed.value.stack
    for end in (partial(leave, 3), partial(die_at, 0, 0)):
        with pytest.raises(WorkerLostError) as ended:
            pool.apply(end)
        assert ended.value.stack == ""


@pytest.mark.usefixtures("no_faulthandler")
def test_a_crash_of_a_child_is_not_the_workers(make_pool: MakePool) -> None:
    """What a task forks tells nothing in the worker's name."""
    pool = make_pool(1)
    assert pool.apply(crash_in_child) == -signal.SIGSEGV
    with pytest.raises(WorkerLostError) as ended:
        pool.apply(die_at, (0, 0))
    assert ended.value.stack == ""


def test_a_crash_is_told_where_the_user_wants_it(make_pool: MakePool, tmp_path: Path) -> None:
    """Whoever has enabled faulthandler sees it there, as with the library's pool."""
    with open(tmp_path / "crash", "w") as file:
        faulthandler.enable(file)
        try:
            pool = make_pool(1)
            with pytest.raises(WorkerLostError) as crashed:
                pool.apply(crash)
        finally:
            faulthandler.enable(2)
    assert "in string_at" in (tmp_path / "crash").read_text()
    assert crashed.value.stack == ""
