"""What becomes of bounded iterators where items fail, consumers come and go, and pools end."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pairpool
from large import comes_true
from receiving import PATIENCE
from tasks import Line, fail, fail_at_zero, identity
from test_bounds import Source, every_face

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]


# -- Failures ----------------------------------------------------------------------------------------


@every_face
def test_items_that_fail_make_room(make_pool: MakePool, face: str) -> None:
    """Each in its place."""
    source = Source(30)
    pool = make_pool(2)
    results = getattr(pool, face)(fail, source, buffersize=2)
    for _ in range(30):
        with pytest.raises(ValueError, match="fails at"):
            source.take(results)
    with pytest.raises(StopIteration):
        source.take(results)
    assert source.most <= 2


def die_at_three(item: int) -> int:
    """Kill the worker at 3."""
    if item == 3:
        os._exit(1)
    return item


class Unpicklable:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("is not to be pickled")


FAILURES: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any], type[Exception]]] = {
    "a task": (identity, fail_at_zero, ValueError),
    "pickling": (lambda item: item or Unpicklable(), identity, TypeError),
    "a death": (lambda item: item or 3, die_at_three, pairpool.WorkerLostError),
}


@every_face
@pytest.mark.parametrize("failure", FAILURES)
def test_all_others_have_their_results(make_pool: MakePool, face: str, failure: str) -> None:
    """Every fifth item fails, of whatever."""
    make, function, error = FAILURES[failure]
    source = Source(30, lambda item: make(item + 10 if item % 5 else 0))
    pool = make_pool(2)
    results, ends = getattr(pool, face)(function, source, buffersize=4), list[Any]()
    for _ in range(30):
        try:
            ends.append(source.take(results))
        except error:
            ends.append("failed")
    assert ends.count("failed") == 6
    assert {end for end in ends if end != "failed"} == {item + 10 for item in range(30) if item % 5}
    assert source.most <= 4


@every_face
def test_a_chunk_that_fails_ends_the_results(make_pool: MakePool, face: str) -> None:
    """As without a bound, and in the standard library: what it would have pulled does not keep the pool."""
    source = Source(40)
    pool = make_pool(1)
    results = getattr(pool, face)(fail, source, 4, buffersize=8)
    with pytest.raises(ValueError, match="fails at 0"):
        source.take(results)
    with pytest.raises(StopIteration):
        source.take(results)
    pool.close()
    pool.join()
    assert source.pulled == 40


@every_face
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_generator_that_fails_is_the_last_item(make_pool: MakePool, face: str, chunk: int) -> None:
    """Those before it have their results; it is told where it stands."""

    def generate() -> Iterator[int]:
        yield from range(12)
        raise LookupError("no more")

    pool = make_pool(2)
    results = getattr(pool, face)(identity, generate(), chunk, buffersize=3)
    if face == "imap":
        assert [next(results) for _ in range(12)] == list(range(12))
    with pytest.raises(LookupError, match="no more"):
        list(results)
    pool.close()
    pool.join()


def test_a_function_that_cannot_be_sent_fails_for_each(make_pool: MakePool) -> None:
    """It makes room as anything does."""
    source = Source(10)
    pool = make_pool(1)
    results = pool.imap(threading.Lock().acquire, source, buffersize=2)
    for _ in range(10):
        with pytest.raises(TypeError, match="cannot pickle"):
            source.take(results)
    assert source.most <= 2


# -- Consumers ---------------------------------------------------------------------------------------


@every_face
def test_consumers_may_be_other_threads(make_pool: MakePool, face: str) -> None:
    """Several, each of which makes room for the others."""
    source, found = Source(300), list[int]()
    pool = make_pool(2)
    results = getattr(pool, face)(identity, source, buffersize=3)

    def consume() -> None:
        found.extend(results)

    threads = [threading.Thread(target=consume) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(found) == list(range(300))


def test_nobody_waits_for_one_who_takes_nothing(make_pool: MakePool) -> None:
    """Other tasks of the pool run meanwhile, and other iterators."""
    source = Source()
    pool = make_pool(1)
    idle = pool.imap(identity, source, buffersize=5)
    source.await_pulled(5)
    assert pool.map(identity, range(100)) == list(range(100))
    assert list(pool.imap(identity, iter(range(100)), buffersize=2)) == list(range(100))
    assert source.pulled == 5
    assert next(idle) == 0


def test_results_can_be_waited_for(make_pool: MakePool, make_line: MakeLine) -> None:
    """For a time."""
    gate = make_line()
    pool = make_pool(1)
    results = pool.imap(Line.await_told, [gate, gate], buffersize=1)
    with pytest.raises(pairpool.TimeoutError):
        results.next(0.01)
    gate.tell(b"a")
    assert results.next(PATIENCE) == b"a"
    gate.tell(b"b")
    assert results.next(PATIENCE) == b"b"


# -- Iterators that are dropped -----------------------------------------------------------------------


def feeders() -> list[threading.Thread]:
    """Return the threads that pull items."""
    return [thread for thread in threading.enumerate() if thread.name == "pairpool-feeder"]


@every_face
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("taken", [0, 1, 7])
def test_an_iterator_that_is_dropped_cancels_its_job(make_pool: MakePool, face: str, chunk: int, taken: int) -> None:
    """Its input, which may be endless, is pulled no more, and is closed; no thread is left, and the pool can end."""
    closed = threading.Event()

    def generate() -> Iterator[int]:
        try:
            yield from source
        finally:
            closed.set()

    source = Source()
    pool = make_pool(2)
    results = getattr(pool, face)(identity, generate(), chunk, buffersize=6)
    for _ in range(taken):
        source.take(results)
    source.await_pulled(6)
    waiting = feeders()
    assert waiting != []
    del results
    for feeder in waiting:
        feeder.join(PATIENCE)
    assert feeders() == []
    assert closed.wait(PATIENCE)
    assert source.pulled <= taken + 2 * 6
    pulled = source.pulled
    assert comes_true(lambda: not pool._cache, PATIENCE)
    assert pool.map(identity, range(10), 1) == list(range(10))
    pool.close()
    pool.join()
    assert source.pulled == pulled


def test_one_that_is_dropped_while_an_item_is_pulled(make_pool: MakePool) -> None:
    """That item is the last."""
    pulling, gate, pulled = threading.Event(), threading.Event(), list[int]()

    def generate() -> Iterator[int]:
        for number in itertools.count():
            if number == 1:
                pulling.set()
                assert gate.wait(PATIENCE)
            pulled.append(number)
            yield number

    pool, others = make_pool(1), set(feeders())
    results = pool.imap(identity, generate(), buffersize=5)
    assert next(results) == 0
    assert pulling.wait(PATIENCE)
    (feeder,) = set(feeders()) - others
    del results
    gate.set()
    feeder.join(PATIENCE)
    assert not feeder.is_alive()
    assert pulled == [0, 1]


def test_one_that_is_still_in_use_is_not_dropped(make_pool: MakePool, make_line: MakeLine) -> None:
    """By whoever waits for its next result, or has chained it to another."""
    gate, found = make_line(), list[bytes]()
    pool = make_pool(1)
    rest = itertools.islice(itertools.chain([0], pool.imap(identity, itertools.count(1), buffersize=2)), 100)
    gc.collect()
    assert list(rest) == list(range(100))

    def wait_for_one() -> None:
        found.append(next(pool.imap(Line.await_told, itertools.repeat(gate), buffersize=1)))

    waiting = threading.Thread(target=wait_for_one)
    waiting.start()
    assert comes_true(lambda: pool._dispatcher.waiters > 0, PATIENCE)
    gc.collect()
    gate.tell(b"a")
    waiting.join(PATIENCE)
    assert found == [b"a"]


def tell_and_wait(lines: tuple[Line, Line]) -> None:
    """Say that it runs, and wait until it may end."""
    inside, gate = lines
    inside.tell(b"i")
    gate.await_told()


def test_what_was_pulled_and_not_sent_is_not_run(make_pool: MakePool, make_line: MakeLine) -> None:
    """Also where the input has come to its end."""
    inside, gate = make_line(), make_line()
    source = Source(2, lambda _: (inside, gate))
    pool = make_pool(1)
    results = pool.imap(tell_and_wait, source, buffersize=2)
    source.await_pulled(2)
    inside.await_told()
    del results
    assert comes_true(lambda: not pool._cache, PATIENCE)
    gate.tell(b"xx")
    pool.close()
    pool.join()
    inside.tell(b".")
    assert inside.await_told() == b"."


def test_without_a_bound_all_is_run(make_pool: MakePool) -> None:
    """As by the standard library: programs call `imap` for what its tasks do, and drop what it returns."""
    source = Source(500)
    pool = make_pool(2)
    pool.imap(identity, source)
    pool.close()
    pool.join()
    assert source.pulled == 500


def test_it_is_dropped_with_threads_too() -> None:
    """In whose pools results are no pickles."""
    source = Source()
    with pairpool.ThreadPool(2) as pool:
        for number in pool.imap(identity, source, buffersize=4):
            if number == 10:
                break
        del number
        assert comes_true(lambda: feeders() == [], PATIENCE)
        pool.close()
        pool.join()
    assert source.pulled <= 20


# -- The end of the pool -----------------------------------------------------------------------------


@every_face
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("bounds", [{"buffersize": 2}, {"bufferbytes": 10}], ids=["items", "bytes"])
def test_a_pool_that_is_joined_runs_what_is_left(make_pool: MakePool, face: str, chunk: int, bounds: Any) -> None:
    """Nobody need consume it for that; all results are there afterwards."""
    source = Source(50)
    pool = make_pool(2)
    results = getattr(pool, face)(identity, source, chunk, **bounds)
    first = source.take(results)
    pool.close()
    pool.join()
    assert source.pulled == 50
    assert sorted([first, *results]) == list(range(50))


@every_face
def test_a_pool_that_is_closed_waits_for_its_consumer(make_pool: MakePool, face: str) -> None:
    """Who takes results before anybody joins has the bound until then."""
    source = Source(50)
    pool = make_pool(2)
    results = getattr(pool, face)(identity, source, buffersize=2)
    source.await_pulled(2)
    pool.close()
    assert sorted(source.take(results) for _ in range(50)) == list(range(50))
    assert source.most == 2
    pool.join()


@every_face
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_pool_that_is_terminated_ends_it(make_pool: MakePool, face: str, chunk: int) -> None:
    """Also an endless one, and whoever waits for its results is told; no thread is left that would pull."""
    source = Source()
    pool = make_pool(2)
    results = getattr(pool, face)(identity, source, chunk, buffersize=6)
    for _ in range(4):
        source.take(results)
    source.await_pulled(9)
    pool.terminate()
    pool.join()
    with pytest.raises(pairpool.PoolTerminatedError):
        list(results)
    assert source.pulled <= 10


@every_face
@pytest.mark.parametrize("bounds", [{}, {"buffersize": 2}], ids=["unbounded", "bounded"])
def test_an_input_may_end_the_pool(make_pool: MakePool, face: str, bounds: Any) -> None:
    """While it is asked for the next item: it is asked for no other, and the thread that asks ends."""

    def generate() -> Iterator[int]:
        yield from range(10)
        pool.terminate()
        yield from itertools.count()

    pool = make_pool(1)
    results = getattr(pool, face)(identity, generate(), **bounds)
    with pytest.raises(pairpool.PoolTerminatedError):
        list(results)
