"""What is told of a worker that died: what it ran, for how long, how it ended, and whether memory was short."""

from __future__ import annotations

import os
import pickle
import re
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pairpool import WorkerLostError, _cgroup
from tasks import worker_pid


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
