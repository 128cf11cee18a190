"""Calls by submit and apply_async of which only so many may be pending at once: `Pool.options(buffersize=...)`."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import pairpool
from interruptions import Interruption
from receiving import PATIENCE
from tasks import Line, fail, identity, tell_and_wait

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]


class Doing:
    """A thread that does something which may have to wait."""

    def __init__(self, action: Callable[..., Any], *args: Any) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._action = functools.partial(action, *args)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._action()
        except BaseException as error:
            self.error = error

    def await_blocked(self, pool: Any) -> None:
        """Wait until it waits for the pool."""
        deadline = time.monotonic() + PATIENCE
        while not pool._dispatcher.waiters:
            assert self._thread.is_alive(), f"it did not wait: {self.result} {self.error}"
            assert time.monotonic() < deadline, "it never waited"
            time.sleep(0.001)

    def outcome(self) -> Any:
        """Wait until it has done that, and return what came of it."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it waits for ever"
        if self.error is not None:
            raise self.error
        return self.result


def promptly(action: Callable[..., Any], *args: Any) -> Any:
    """Do something that is not to wait for ever."""
    return Doing(action, *args).outcome()


def submit_all(view: Any, function: Any, items: Sequence[Any]) -> list[Any]:
    """Submit a call for each item."""
    return [view.submit(function, item) for item in items]


@pytest.fixture
def lines(make_line: MakeLine) -> Sequence[Line]:
    """Two lines, for `tell_and_wait`."""
    return make_line(), make_line()


SUBMIT: dict[str, Callable[..., Any]] = {
    "submit": lambda pool, function, *args: pool.submit(function, *args).result,
    "apply_async": lambda pool, function, *args: pool.apply_async(function, args).get,
}
every_way = pytest.mark.parametrize("way", SUBMIT)


@every_way
@pytest.mark.parametrize("bound", [1, 2, 3])
def test_who_makes_one_too_many_waits(make_pool: MakePool, lines: Sequence[Line], way: str, bound: int) -> None:
    """Until one has ended, whichever; running or not, each counts."""
    inside, gate = lines
    pool = make_pool(2)
    view, submit = pool.options(buffersize=bound), SUBMIT[way]
    pending = [promptly(submit, view, tell_and_wait, inside, gate) for _ in range(bound)]
    inside.await_told(min(2, bound))
    for _ in range(3):
        more = Doing(submit, view, tell_and_wait, inside, gate)
        more.await_blocked(pool)
        assert more.result is None
        gate.tell(b"x")
        pending.append(more.outcome())
    gate.tell(b"x" * bound)
    assert {get(PATIENCE) for get in pending} <= {worker.pid for worker in pool._pool}


def test_it_is_the_same_for_threads() -> None:
    """A pool of these has nothing else to bound."""
    inside, gate = threading.Semaphore(0), threading.Semaphore(0)

    def wait() -> None:
        inside.release()
        assert gate.acquire(timeout=PATIENCE)

    with pairpool.ThreadPool(1) as pool:
        view = pool.options(buffersize=2)
        futures = [view.submit(wait) for _ in range(2)]
        inside.acquire()
        more = Doing(view.submit, wait)
        more.await_blocked(pool)
        gate.release()
        futures.append(more.outcome())
        for _ in range(2):
            gate.release()
        for future in futures:
            future.result(PATIENCE)


def test_views_count_their_own(make_pool: MakePool, lines: Sequence[Line]) -> None:
    """One that is full does not hold up another, nor the pool itself; what is no call is not counted."""
    inside, gate = lines
    pool = make_pool(2)
    full, other = pool.options(buffersize=1), pool.options(buffersize=1)
    waiting = full.submit(tell_and_wait, inside, gate)
    inside.await_told()
    assert [promptly(other.submit, identity, item).result(PATIENCE) for item in range(3)] == [0, 1, 2]
    assert [future.result(PATIENCE) for future in promptly(submit_all, pool, identity, range(20))] == list(range(20))
    assert promptly(full.map, identity, range(50)) == list(range(50))
    assert promptly(lambda: list(full.imap(identity, range(50)))) == list(range(50))
    gate.tell(b"x")
    waiting.result(PATIENCE)


# -- What makes room ---------------------------------------------------------------------------------


class Unpicklable:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("is not to be pickled")


def die() -> None:
    """End the worker."""
    os._exit(3)


ENDS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], Any]] = {
    "a result": (identity, (5,), None),
    "a large result": (bytes, (200_000,), None),
    "an error": (fail, (5,), ValueError),
    "a death": (die, (), pairpool.WorkerLostError),
    "arguments that cannot be pickled": (identity, (Unpicklable(),), TypeError),
    "a result that cannot be pickled": (Unpicklable, (), Exception),
}


@every_way
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("bound", [{"buffersize": 1}, {"bufferbytes": 1}], ids=["items", "bytes"])
def test_every_end_makes_room(make_pool: MakePool, way: str, end: str, bound: Any) -> None:
    """However it came, and though nobody asks for it."""
    function, args, error = ENDS[end]
    pool = make_pool(1)
    view, kept = pool.options(**bound), []
    for _ in range(5):
        kept += [promptly(SUBMIT[way], view, function, *args)]
    for get in kept:
        if error is None:
            get(PATIENCE)
        else:
            with pytest.raises(error):
                get(PATIENCE)


def test_what_could_not_be_sent_does_not_count(make_pool: MakePool, lines: Sequence[Line]) -> None:
    """It has ended before it began."""
    inside, gate = lines
    pool = make_pool(1)
    view = pool.options(buffersize=2)
    first = view.submit(tell_and_wait, inside, gate)
    failed = promptly(submit_all, view, identity, [Unpicklable()] * 5)
    gate.tell(b"x")
    first.result(PATIENCE)
    assert [type(future.exception(PATIENCE)) for future in failed] == [TypeError] * 5


@pytest.mark.parametrize("running", [False, True])
def test_one_that_is_cancelled_makes_room(make_pool: MakePool, lines: Sequence[Line], running: bool) -> None:
    """At the latest when the worker comes by it."""
    inside, gate = lines
    pool = make_pool(1)
    view = pool.options(buffersize=8)
    first = view.submit(tell_and_wait, inside, gate)
    inside.await_told()
    others = promptly(submit_all, view, identity, range(7))
    assert sum(future.cancel(running=running) for future in others) >= (7 if running else 1)
    gate.tell(b"x")
    first.result(PATIENCE)
    more = promptly(submit_all, view, identity, range(20))
    assert [future.result(PATIENCE) for future in more] == list(range(20))


def test_one_that_runs_and_is_cancelled_makes_room(make_pool: MakePool, lines: Sequence[Line]) -> None:
    """It is ended for that."""
    inside, gate = lines
    pool = make_pool(1)
    view = pool.options(buffersize=1)
    for _ in range(3):
        future = promptly(view.submit, tell_and_wait, inside, gate)
        inside.await_told()
        assert future.cancel(running=True)
    assert promptly(lambda: view.submit(identity, 5).result(PATIENCE)) == 5


def test_calls_that_are_waited_for_make_room(make_pool: MakePool) -> None:
    """`apply` is a call as well, and goes a shorter way where the pool is at rest."""
    pool = make_pool(1)
    view = pool.options(buffersize=1)
    others: list[Any] = []

    def work() -> list[int]:
        found = []
        for item in range(30):
            found.append(view.apply(identity, (item,)))
            others.append(pool.apply_async(identity, (item,)))  # in the place of what is gone
            others[-1].wait(PATIENCE)
        return found

    assert promptly(work) == list(range(30))
    assert [promptly(view.submit, identity, item).result(PATIENCE) for item in range(3)] == [0, 1, 2]


def test_bytes_are_counted(make_pool: MakePool, lines: Sequence[Line]) -> None:
    """Of what is pickled, in a slab or not; one call there may be in any case, and one more than fits."""
    inside, gate = lines
    pool = make_pool(1)
    for size, count in ((20_000, 5), (200_000, 5), (10_000_000, 1)):
        view, data = pool.options(bufferbytes=count * size), b"x" * size
        first = pool.submit(tell_and_wait, inside, gate)
        inside.await_told()
        futures = promptly(submit_all, view, len, [data] * count)
        more = Doing(view.submit, len, data)
        more.await_blocked(pool)
        gate.tell(b"x")
        futures.append(more.outcome())
        assert [future.result(PATIENCE) for future in futures] == [size] * (count + 1)
        first.result(PATIENCE)


def test_callbacks_may_submit(make_pool: MakePool) -> None:
    """The call that has just ended makes room for theirs."""
    pool = make_pool(1)
    view, found, done = pool.options(buffersize=1), list[int](), threading.Event()

    def go_on(future: Any) -> None:
        found.append(future.result(0))
        if len(found) == 10:
            done.set()
        else:
            view.submit(identity, len(found)).add_done_callback(go_on)

    view.submit(identity, 0).add_done_callback(go_on)
    assert done.wait(PATIENCE)
    assert found == list(range(10))


# -- Threads, interrupts, the end --------------------------------------------------------------------


def test_many_may_submit_at_once(make_pool: MakePool) -> None:
    """Each call is made, and has its result."""
    pool = make_pool(2)
    view = pool.options(buffersize=3)
    doings = [
        Doing(lambda: [future.result(PATIENCE) for future in [view.submit(identity, item) for item in range(30)]])
        for _ in range(8)
    ]
    assert [doing.outcome() for doing in doings] == [list(range(30))] * 8


def test_an_interrupt_takes_no_room_for_ever(make_pool: MakePool) -> None:
    """Wherever it strikes who submits: the call is made or not, and there is room afterwards."""
    pool = make_pool(1)
    number = 0
    while True:
        view = pool.options(buffersize=1)
        interruption = Interruption([number])
        interruption.watch(functools.partial(view.submit, identity, [number]))
        if not interruption.struck:
            break
        assert promptly(view.submit, identity, 5).result(PATIENCE) == 5, interruption.struck[0]
        number += 1
    assert number > 50


@pytest.mark.parametrize("end", ["terminate", "close"])
def test_the_end_of_the_pool_frees_who_waits(make_pool: MakePool, lines: Sequence[Line], end: str) -> None:
    """They are told that it does not run any more."""
    inside, gate = lines
    pool = make_pool(1)
    view = pool.options(buffersize=2)
    futures = [view.submit(tell_and_wait, inside, gate) for _ in range(2)]
    inside.await_told()
    more = Doing(view.submit, identity, 5)
    more.await_blocked(pool)
    getattr(pool, end)()
    gate.tell(b"xx")
    with pytest.raises(ValueError, match="Pool not running"):
        more.outcome()
    pool.join()
    for future in futures:
        if end == "close":
            future.result(PATIENCE)
        else:
            with pytest.raises(pairpool.PoolTerminatedError):
                future.result(PATIENCE)
