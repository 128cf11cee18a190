"""Workers: what they inherit, their names, how they come and go (compat.md: H4-H8, H14, H18-H22, H27)."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import util
from typing import Any

import pytest

import pairpool
from forks import run_in_child
from tasks import Line, add, identity, tell_and_wait, wait_for, worker_pid

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]


# -- H4, H5, H22: what forked workers inherit -----------------------------------------------------

_prepared: list[Any] = []


def _prepare(*args: Any) -> None:
    _prepared[:] = args


def _use_prepared() -> tuple[int, bytes, int]:
    function, ours, array, lock = _prepared
    with lock:
        ours.sendall(b"from the worker")
        return function(1), bytes(array[:3]), len(array)


def test_a_forked_worker_inherits_what_cannot_be_pickled(make_either_pool: MakePool) -> None:
    """With fork initargs are not pickled: lambdas, sockets, locks and huge arrays simply are there."""
    ours, theirs = socket.socketpair()
    array = bytearray(b"abc") + bytearray(50_000_000)
    with ours, theirs:
        pool = make_either_pool(1, _prepare, (lambda value: value + 1, ours, array, multiprocessing.Lock()))

        assert pool.apply(_use_prepared) == (2, b"abc", 50_000_003)
        assert theirs.recv(100) == b"from the worker"


_generation = "when the pool was made"


def _seen_generation() -> tuple[str, int]:
    return _generation, os.getpid()


def test_a_later_worker_sees_the_memory_of_when_the_pool_was_made(make_pool: MakePool) -> None:
    """A replacement sees globals as they were at `Pool()`, where the library's sees those of the present."""
    global _generation
    pool = make_pool(1, maxtasksperchild=1)
    first = pool.apply(_seen_generation)
    _generation = "later"
    try:
        second = pool.apply(_seen_generation)
    finally:
        _generation = first[0]

    assert first[0] == second[0] == "when the pool was made"
    assert first[1] != second[1]


def test_a_forked_worker_inherits_the_surroundings(
    make_either_pool: MakePool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environment, directory, path of imports and the state of the random generator are the caller's."""
    monkeypatch.setenv("PAIRPOOL_TEST", "here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("/somewhere/else")
    pool = make_either_pool(1)

    assert pool.apply(_surroundings) == _surroundings()


_generator = random.Random(4711)  # the module's own generator is seeded anew in every forked child


def _surroundings() -> tuple[str, str, str, float]:
    return os.environ["PAIRPOOL_TEST"], os.getcwd(), sys.path[0], _generator.random()


# -- H6: names and identities ---------------------------------------------------------------------


def _who() -> tuple[str, tuple[int, ...], bool, int | None]:
    process, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    assert parent is not None
    return process.name, process._identity, process.daemon, parent.pid


PREFIXES = {"fork": "ForkPoolWorker", "spawn": "SpawnPoolWorker", "forkserver": "ForkServerPoolWorker"}


def test_a_worker_is_called_and_numbered_as_in_the_library(make_either_pool: MakePool, start_method: str) -> None:
    """Name, identity, daemon flag and parent of a worker are those that programs read GPU numbers from."""
    pool = make_either_pool(1, start_method=start_method)
    name, numbers, daemon, parent = pool.apply(_who)

    assert name == f"{PREFIXES[start_method]}-{numbers[-1]}"
    assert numbers[:-1] == multiprocessing.current_process()._identity
    assert daemon
    assert parent == os.getpid()


def test_numbers_go_on_from_pool_to_pool(make_either_pool: MakePool, start_method: str) -> None:
    """Workers are numbered without gaps, and the first of a second pool follows the last of the first."""
    numbers: set[int] = set()
    for size in (2, 1):
        pool = make_either_pool(size, start_method=start_method)
        numbers |= {int(worker.name.rpartition("-")[2]) for worker in pool._pool}

    assert len(numbers) == 3
    assert max(numbers) - min(numbers) == 2


def test_no_child_is_active_after_join(make_either_pool: MakePool, start_method: str) -> None:
    """`active_children()` is empty once the pool was joined, as test suites assert."""
    pool = make_either_pool(2, start_method=start_method)
    pool.map(identity, range(10))
    pool.close()
    pool.join()
    assert multiprocessing.active_children() == []


def _children_of_a_worker() -> tuple[bool, int, int]:
    child = multiprocessing.get_context("fork").Process(target=os._exit, args=(7,))
    child.start()
    child.join()
    with pairpool.get_context("fork").Pool(1) as pool:
        total = pool.apply(add, (1, 2))
    pool.join()
    return multiprocessing.current_process().daemon, child.exitcode or 0, total


def test_a_worker_may_have_children_though_it_reads_daemon(make_pool: MakePool) -> None:
    """A task may start processes and pools of its own, which the library forbids."""
    assert make_pool(1).apply(_children_of_a_worker) == (True, 7, 3)


# -- H8: the worker's end -------------------------------------------------------------------------


def _tell_at_exit(line: Line) -> None:
    util.Finalize(None, line.tell, args=(b"f",), exitpriority=1)


def test_finalizers_of_a_worker_run_when_it_ends(make_either_pool: MakePool, make_line: MakeLine) -> None:
    """`multiprocessing.util.Finalize` objects of each worker are called after close()."""
    line = make_line()
    pool = make_either_pool(2, _tell_at_exit, (line,))
    pool.map(identity, range(4))
    pool.close()
    pool.join()
    assert line.await_told(2) == b"ff"


# -- H14: lifetimes -------------------------------------------------------------------------------


def test_maxtasksperchild_counts_chunks(make_either_pool: MakePool) -> None:
    """A worker leaves after so many chunks, however many items these have."""
    workers = make_either_pool(1, maxtasksperchild=2).map(worker_pid, range(12), chunksize=3)

    assert [len(set(workers[start : start + 6])) for start in (0, 6)] == [1, 1]
    assert len(set(workers)) == 2


def test_a_replacement_runs_the_initializer(make_either_pool: MakePool, make_line: MakeLine) -> None:
    """Every worker is initialized, the later ones too."""
    line = make_line()
    pool = make_either_pool(1, line.tell, (b"i",), maxtasksperchild=1)
    assert len({pool.apply(worker_pid) for _ in range(4)}) == 4
    assert line.await_told(4) == b"iiii"


# -- H18, H19: close and terminate ----------------------------------------------------------------


def test_close_lets_workers_be_replaced_until_all_is_done(make_either_pool: MakePool) -> None:
    """All that was submitted before close() is done, though workers reach the end of their life."""
    pool = make_either_pool(2, maxtasksperchild=1)
    results = [pool.apply_async(identity, (value,)) for value in range(12)]
    pool.close()
    pool.join()
    assert [result.get(timeout=0) for result in results] == list(range(12))


def _catch_terminate(line: Line) -> None:
    def tidy_up(*_: object) -> None:
        line.tell(b"t")
        os._exit(0)

    signal.signal(signal.SIGTERM, tidy_up)


def test_terminate_reaches_the_handlers_of_busy_workers(make_either_pool: MakePool, make_line: MakeLine) -> None:
    """A busy worker is sent SIGTERM, so that a handler of the program's own can tidy up."""
    inside, gate, told = make_line(), make_line(), make_line()
    pool = make_either_pool(1, _catch_terminate, (told,))
    pool.apply_async(tell_and_wait, (inside, gate))
    inside.await_told()
    pool.terminate()
    pool.join()
    assert told.await_told() == b"t"


def test_a_pool_may_be_ended_twice(make_either_pool: MakePool) -> None:
    """close, terminate and join may each be called again, in this order or that."""
    pool = make_either_pool(1)
    for end in ("close", "close", "join", "terminate", "join", "terminate", "close", "join"):
        getattr(pool, end)()
    assert repr(pool).split()[1] == "state=TERMINATE"


# -- H20: a fork of the user's --------------------------------------------------------------------


def _wait_for_future(pool: Any, gate: Line) -> Any:
    return pool.submit(wait_for, gate).result


def _get(pool: Any, gate: Line) -> Any:
    return pool.apply_async(wait_for, (gate,)).get


def _get_in_time(pool: Any, gate: Line) -> Any:
    return partial(pool.map_async(wait_for, [gate]).get, 60)


def _next(pool: Any, gate: Line) -> Any:
    return pool.imap(wait_for, [gate]).__next__


def _submit(pool: Any, _: Line) -> Any:
    return partial(pool.submit, identity, 1)


@pytest.mark.parametrize("prepare", [_submit, _get, _get_in_time, _next, _wait_for_future])
def test_a_forked_child_has_a_pool_that_is_inert(
    make_pool: MakePool, make_line: MakeLine, prepare: Callable[..., Any]
) -> None:
    """In a child that the user forked calls and results are refused in words; the parent's are untouched by it."""
    gate = make_line()
    pool = make_pool(1)
    use = prepare(pool, gate)

    def use_in_vain() -> None:
        with pytest.raises(pairpool.PairpoolError, match="a forked child must make a pool of its own"):
            use()

    assert run_in_child(use_in_vain) == 0
    gate.tell(b"x")
    use()
    assert pool.apply(identity, (2,)) == 2


# -- H27: who gets the next task ------------------------------------------------------------------


@pytest.mark.parametrize("face", ["imap_unordered", "apply_async", "map_async"])
def test_a_slow_task_strands_nobody(make_either_pool: MakePool, make_line: MakeLine, face: str) -> None:
    """While one worker is busy for long, the other does all the rest."""
    inside, gate, rest = make_line(), make_line(), make_line()
    pool = make_either_pool(2)
    work: list[Any] = [_Wait(inside, gate), *(_Tell(rest) for _ in range(100))]
    if face == "apply_async":
        results = [pool.apply_async(each) for each in work]
    else:
        result = getattr(pool, face)(_call, work, chunksize=1)

    inside.await_told()
    assert rest.await_told(100) == b"r" * 100  # all the others have run, and the slow one has not ended
    gate.tell(b"g")
    if face == "apply_async":
        for each in results:
            each.get()
    elif face == "map_async":
        result.get()
    else:
        assert len(list(result)) == 101


class _Wait:
    def __init__(self, inside: Line, gate: Line) -> None:
        self.inside, self.gate = inside, gate

    def __call__(self) -> None:
        tell_and_wait(self.inside, self.gate)


class _Tell:
    def __init__(self, line: Line) -> None:
        self.line = line

    def __call__(self) -> None:
        self.line.tell(b"r")


def _call(task: Callable[[], None]) -> None:
    task()
