"""The cells of the fault matrix: what is done at each place, and how it is seen whether all came as it should.

A place has one function here, which takes a bench and a cell, strikes, and checks what the table in
test_fault_matrix.py expects.
"""

from __future__ import annotations

import logging
import multiprocessing.forkserver
import operator
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pytest

import faults
from fault_bench import (
    Aside,
    Bench,
    Beside,
    Watched,
    await_idle,
    await_stopped,
    check_whole,
    is_stopped,
    is_terminated,
    iterated,
    midst,
    outcome,
    processes_of,
    until,
)
from fault_jobs import (
    LENGTH,
    PLACE,
    Cell,
    Face,
    by_apply,
    by_apply_async,
    by_calls_together,
    by_imap,
    by_map,
    by_submit,
    check_job,
    is_broken,
    is_failed_start,
    is_loss,
    is_struck,
    is_unsent,
)
from faults import EXIT_CODES, SURVIVOR, WORDS, Freed, Loaded, Sent, double, marked
from forks import exit_code, fork_child
from pairpool import _pacing
from receiving import PATIENCE

# -- An item that strikes ---------------------------------------------------------------------------------

TASKS: dict[str, tuple[Callable[[Any], Any], Callable[[str], Any]]] = {
    "pickling arguments": (double, Sent),
    "unpickling arguments": (double, Loaded),
    "running": (faults.strike_or_double, marked),
    "freeing arguments": (double, Freed),
    "pickling the result": (faults.return_sent, marked),
    "unpickling the result": (faults.return_loaded, marked),
    "amid a packet": (faults.strike_or_double, marked),
}
"""By place: the task, and the item that strikes there when it goes through that task."""


def observe_items(bench: Bench, cell: Cell) -> None:
    """Strike at one item of a job, by every face."""
    for face in (by_apply, by_apply_async, by_submit, by_imap, by_map):
        observe_job(bench, cell, face, LENGTH)


def observe_packet(bench: Bench, cell: Cell) -> None:
    """Strike at the third of ten items in one packet."""
    for face in (by_imap, by_map, by_calls_together):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_pacing, "units_at_once", lambda *_: 10)
            observe_job(bench, cell, face, 10)


def observe_job(bench: Bench, cell: Cell, face: Face, length: int) -> None:
    """Strike at one item of a job."""
    task, make = TASKS[cell.where]
    items: list[Any] = list(range(length))
    items[PLACE] = make(cell.how)
    pool = bench.pool()
    pids = processes_of(pool)
    job = face(pool, task, items)
    if cell.stops:
        end_stopped(bench, pool, cell, await_stopped(pids))
    beside = None if cell.expected == "ended" else Beside(pool)
    check_job(job(), face, cell, told_of(cell, pids, task, face), length)
    if beside is not None:
        beside.check_right()
        check_whole(pool)


def end_stopped(bench: Bench, pool: Any, cell: Cell, pid: int) -> None:
    """End one of two workers that is stopped, after it has been seen that the other one works."""
    Beside(pool).check_right()
    if cell.expected == "ended":
        bench.end(pool)
    else:
        os.kill(pid, signal.SIGKILL)


def told_of(cell: Cell, pids: list[int], task: Callable[[Any], Any], face: Face) -> Callable[[Any], bool]:
    """Return what tells whether an outcome is the one that is expected of a struck item."""
    match cell.expected:
        case "ended":
            return is_terminated
        case "ignored":
            return partial(operator.eq, double(SURVIVOR))
        case "unsent":
            return partial(is_unsent, how=cell.how)
        case "lost":
            name = task.__name__
            # Of a map whose results are pickled together the last item that ran is named, not the one pickled.
            item = f" for item {PLACE}" if face is by_imap else " for item " if face is by_map else ""
            name = f"{name}{item}" if item else f"a call of {name}"
            return partial(is_loss, how=cell.how, pids=pids, task=name)
    return partial(is_struck, how=cell.how)


# -- The caller ---------------------------------------------------------------------------------------------


def observe_iterable(bench: Bench, cell: Cell) -> None:
    """Strike whoever pulls the third item of an iterable."""
    for face in (by_imap, by_map):
        pool = bench.pool()
        job = face(pool, double, faults.pull(cell.how))
        beside = Beside(pool)
        check_job(job(), face, cell, partial(is_struck, how=cell.how), LENGTH)
        beside.check_right()
        check_whole(pool)


def observe_callbacks(bench: Bench, cell: Cell) -> None:
    """Strike in a callback of a call, of a call that fails, and of a map; callbacks of others are called."""
    pool = bench.pool()
    strike = partial(faults.call_back, cell.how)
    seen: list[Any] = []
    struck = [
        pool.apply_async(double, (1,), callback=strike),
        pool.apply_async(faults.fail, (1,), error_callback=strike),
        pool.map_async(double, range(LENGTH), callback=strike),
        pool.map_async(faults.fail, range(LENGTH), error_callback=strike),
    ]
    beside = Beside(pool)
    other = pool.apply_async(double, (4,), callback=seen.append)
    outcomes = [outcome(partial(each.get, PATIENCE)) for each in struck]
    assert all(is_struck(each, cell.how) for each in outcomes), f"there came {outcomes}"
    assert (other.get(PATIENCE), seen) == (8, [8])
    beside.check_right()
    check_whole(pool)


def observe_done_callbacks(bench: Bench, cell: Cell) -> None:
    """Strike in a done callback of a future; it is told, and nobody who waits for the future misses its end."""
    pool = bench.pool()
    told: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("concurrent.futures"), "exception", lambda *_: told.append(sys.exception()))
        patch.setattr(threading, "excepthook", lambda args: told.append(args.exc_value))
        with midst(pool):  # or it might be done before it has a callback
            future, seen = pool.submit(double, SURVIVOR), threading.Event()
            future.add_done_callback(partial(faults.call_back, cell.how))
        waiting = Aside(partial(future.result, PATIENCE))
        other = pool.submit(double, 1)
        other.add_done_callback(lambda _: seen.set())
        beside = Beside(pool)
        assert (waiting.outcome(), other.result(PATIENCE)) == (double(SURVIVOR), 2)
        assert seen.wait(PATIENCE), "the callback of another future is not called"
        through = threading.Event()  # the callback thread is, with the first, of whose end was told before it
        pool._dispatcher.call_back(through.set)
        assert through.wait(PATIENCE)
    assert [is_struck(each, cell.how) for each in told] == [True], f"told was {told}"
    beside.check_right()
    check_whole(pool)


def observe_caller(bench: Bench, cell: Cell) -> None:
    """Strike a process that has a pool, in its own code; nothing of the pool stays behind."""
    bench.close()  # a fork of a process without threads
    ours, callers = multiprocessing.Pipe()
    pid = fork_child(lambda: be_caller(bench.method, cell, ours, callers))
    caller = Watched([pid])
    reaped = False
    try:
        callers.close()
        assert ours.poll(PATIENCE), "the caller never began"
        processes = Watched(ours.recv())
        ours.send(None)
        if cell.stops:
            await_stopped([pid])
            os.kill(pid, signal.SIGCONT if cell.expected == "resumes" else signal.SIGKILL)
        caller.check_ended()
        reaped = True
        code = exit_code(pid)
        processes.check_ended()
        assert code == (0 if cell.expected == "resumes" else EXIT_CODES[cell.how]), f"it ended with {code}"
    finally:
        ours.close()
        if not reaped:
            os.kill(pid, signal.SIGKILL)
            exit_code(pid)


def be_caller(method: str, cell: Cell, theirs: Connection, line: Connection) -> None:
    """Be the process that is struck; return only where it goes on."""
    theirs.close()
    if method == "forkserver":
        server: Any = multiprocessing.forkserver._forkserver
        server._forkserver_pid = None  # no child of this process, which has to have one of its own
    bench = Bench(method)
    pool = bench.make(1)
    assert pool.apply(double, (1,)) == 2
    line.send(processes_of(pool))
    line.recv()
    came = STRIKES_OF_CALLERS[cell.where](pool, cell.how, partial(keep_busy, pool, cell))
    assert came == double(SURVIVOR), f"there came {came}"
    bench.close()


def keep_busy(pool: Any, cell: Cell) -> None:
    """Have the worker of a caller that will not return do something that never ends."""
    if cell.expected != "resumes":
        pool.apply_async(signal.pause)


def pickle_struck(pool: Any, how: str, busy: Callable[[], None]) -> Any:
    """Be struck when arguments are pickled."""
    busy()
    return pool.apply_async(double, (Sent(how),)).get(PATIENCE)


def unpickle_struck(pool: Any, how: str, busy: Callable[[], None]) -> Any:
    """Be struck when a result is unpickled."""
    result = pool.apply_async(faults.return_loaded, (marked(how),))
    busy()
    return double(result.get(PATIENCE))


def call_back_struck(pool: Any, how: str, busy: Callable[[], None]) -> Any:
    """Be struck in a callback."""
    result = pool.apply_async(double, (SURVIVOR,), callback=partial(faults.call_back, how))
    busy()
    return result.get(PATIENCE)


def finish_struck(pool: Any, how: str, busy: Callable[[], None]) -> Any:
    """Be struck in a done callback of a future."""
    future = pool.submit(double, SURVIVOR)
    future.add_done_callback(partial(faults.call_back, how))
    busy()
    return future.result(PATIENCE)


def pull_struck(pool: Any, how: str, busy: Callable[[], None]) -> Any:
    """Be struck when an item is pulled; not while the worker is busy, or none would be."""
    return iterated(pool.imap(double, faults.pull(how)))[PLACE]


STRIKES_OF_CALLERS: dict[str, Callable[[Any, str, Callable[[], None]], Any]] = {
    "pickling arguments": pickle_struck,
    "unpickling the result": unpickle_struck,
    "callback": call_back_struck,
    "done callback": finish_struck,
    "iterable": pull_struck,
}


# -- Workers that run nothing -------------------------------------------------------------------------------


def observe_idle(bench: Bench, cell: Cell) -> None:
    """Strike a worker that has nothing to do: by a handler of the user's, while it waits."""
    pool = bench.pool()
    worker = pool._pool[0]
    os.kill(worker.pid, faults.signal_for(cell.how))
    if cell.stops:
        await_stopped([worker.pid])
    beside = Beside(pool)  # some of which may be sent to the one that is stopped, or dead and not known to be
    if cell.expected == "ended":
        bench.end(pool)
        beside.check_ended()
        return
    if cell.stops:
        os.kill(worker.pid, signal.SIGKILL)
    beside.check_right()
    until(lambda: worker.exitcode is not None, "the end of a worker")
    assert worker.exitcode == EXIT_CODES.get(cell.how, 1)
    check_whole(pool)


def observe_initializer(bench: Bench, cell: Cell) -> None:
    """Strike in an initializer, once or always."""
    once = cell.where.endswith("once")
    strikes = multiprocessing.get_context(bench.method).Semaphore(1) if once else None
    pool = bench.make(1, faults.initialize, (cell.how, strikes))
    beside = Beside(pool)
    if cell.expected == "ended":
        await_any_stopped(pool)
        bench.end(pool)
        beside.check_failed(is_terminated)
    elif cell.expected == "retried":
        if cell.stops:
            os.kill(await_any_stopped(pool), signal.SIGKILL)
        beside.check_right()
        check_whole(pool)
        bench.end(pool)
    else:
        if cell.stops:
            kill_stopped(pool, beside)
        beside.check_failed(partial(is_failed_start, how=cell.how))
        Beside(pool).check_failed(partial(is_failed_start, how=cell.how))
        bench.end(pool)


def await_any_stopped(pool: Any) -> int:
    """Wait until a worker of a pool is stopped, and return its pid."""
    until(lambda: any(map(is_stopped, processes_of(pool))), "a worker that is stopped")
    return next(filter(is_stopped, processes_of(pool)))


def kill_stopped(pool: Any, beside: Beside) -> None:
    """Kill every worker of a pool that stops, until there come no more."""

    def kill_and_ask() -> bool:
        for pid in filter(is_stopped, processes_of(pool)):
            with suppress(ProcessLookupError):  # it was killed already
                os.kill(pid, signal.SIGKILL)
        return beside.is_over()

    until(kill_and_ask, "the end of a pool whose initializer stops")


# -- The zygote -----------------------------------------------------------------------------------------------


def observe_zygote(bench: Bench, cell: Cell) -> None:
    """Strike a zygote: while it makes a worker, or in what it does on any other order."""
    place = "fork" if cell.where == "zygote, forking" else "order"
    pool = bench.make_trapped(place, cell.how)
    await_idle(pool, 1)
    engine = pool._dispatcher.engine
    zygote, watched = engine._zygote.pid, Watched(processes_of(pool))
    if cell.expected == "retried":
        beside = Beside(pool)
        pool.resize(2)
        beside.check_right()
        check_whole(pool)
        bench.end(pool)
        watched.check_ended()
        return
    busy, beside = pool.apply_async(signal.pause), Beside(pool)
    if place == "fork":
        pool.resize(2)
    else:
        engine._leave(partial(engine._zygote.signal, 0, 0))  # an order to do nothing
    if cell.stops:
        await_stopped([zygote])
    if cell.expected == "ended":
        bench.end(pool)
        told = is_terminated
    else:
        if cell.stops:
            os.kill(zygote, signal.SIGKILL)
        told = is_broken
    beside.check_failed(told)
    assert told(outcome(partial(busy.get, PATIENCE)))
    if cell.expected == "broken":
        Beside(pool).check_failed(told)
        bench.end(pool)
    watched.check_ended()


PLACES: dict[str, Callable[[Bench, Cell], None]] = {
    "pickling arguments": observe_items,
    "unpickling arguments": observe_items,
    "running": observe_items,
    "amid a packet": observe_packet,
    "freeing arguments": observe_items,
    "pickling the result": observe_items,
    "unpickling the result": observe_items,
    "callback": observe_callbacks,
    "done callback": observe_done_callbacks,
    "iterable": observe_iterable,
    "initializer, once": observe_initializer,
    "initializer, always": observe_initializer,
    "idle": observe_idle,
    "zygote, forking": observe_zygote,
    "zygote": observe_zygote,
}


def observe(bench: Bench, cell: Cell) -> None:
    """Try a cell."""
    try:
        if cell.expected in ("dies", "resumes"):
            observe_caller(bench, cell)
        else:
            PLACES[cell.where](bench, cell)
    except BaseException as error:
        if error.args == (WORDS,):  # of any kind: a KeyboardInterrupt would end more than this test
            raise AssertionError("what was raised there came out where nobody asked for it") from error
        raise
