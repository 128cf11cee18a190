"""`buffersize` and `bufferbytes` of imap and imap_unordered: no more is pulled than its consumer makes room for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pairpool
from pairpool import _iterators
from pairpool._feeder import Feeder
from receiving import PATIENCE
from tasks import Line, identity

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

FACES = ("imap", "imap_unordered")
every_face = pytest.mark.parametrize("face", FACES)


class Source:
    """Numbers, and how many of them were pulled beyond those that its consumer has asked for."""

    def __init__(self, length: int | None = None, make: Callable[[int], Any] = identity) -> None:
        self.pulled = 0
        self.asked = 0  # by the consumer
        self.most = 0  # ever pulled beyond what was asked for
        self._length = length
        self._make = make
        self._changed = threading.Condition()

    def pull(self) -> None:
        """Note that another one was pulled."""
        with self._changed:
            self.pulled += 1
            self.most = max(self.most, self.pulled - self.asked)
            self._changed.notify_all()

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> Any:
        if self.pulled == self._length:
            raise StopIteration
        self.pull()
        return self._make(self.pulled - 1)

    def await_pulled(self, number: int) -> None:
        """Wait until so many were pulled."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.pulled >= number, PATIENCE)

    def take(self, results: Any) -> Any:
        """Take the next result."""
        self.asked += 1
        return next(results)


class Pulled:
    """An item of a list, which counts as pulled when it is pickled."""

    def __init__(self, source: Source, number: int) -> None:
        self.source = source
        self.number = number

    def __reduce__(self) -> Any:
        self.source.pull()
        return identity, (self.number,)


INPUTS: dict[str, Callable[[Source], Any]] = {
    "generator": lambda source: (item for item in source),
    "iterator": lambda source: source,
    "list": lambda source: [Pulled(source, number) for number in range(100)],
    "tuple": lambda source: tuple(Pulled(source, number) for number in range(100)),
}


def in_chunks(bound: int, chunk: int) -> int:
    """Return how many items are pulled at most."""
    return max(bound // chunk, 1) * chunk


# -- Items -------------------------------------------------------------------------------------------


@every_face
@pytest.mark.parametrize("items", INPUTS)
@pytest.mark.parametrize(
    ("bound", "chunk"), [(1, 1), (2, 1), (7, 1), (2, 2), (5, 2), (4, 4), (10, 4), (3, 5), (40, 10), (99, 7)]
)
def test_no_more_is_pulled_than_may_be(make_pool: MakePool, face: str, items: str, bound: int, chunk: int) -> None:
    """As many as may be are; a chunk is one thing, and taken when its last result is."""
    source, most = Source(100), in_chunks(bound, chunk)
    pool = make_pool(2)
    results = getattr(pool, face)(identity, INPUTS[items](source), chunk, buffersize=bound)
    source.await_pulled(most)
    found = []
    for number in range(100):
        found.append(source.take(results))
        source.await_pulled(min(100, number // chunk * chunk + most))
    with pytest.raises(StopIteration):
        source.take(results)
    assert sorted(found) == list(range(100))
    assert face == "imap_unordered" or found == sorted(found)
    assert source.most == most
    assert source.pulled == 100


@every_face
def test_room_is_made_by_the_last_of_a_chunk(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, face: str) -> None:
    """And not for a moment by the first: whoever makes room finds it taken at once here."""
    consumer, nudge = threading.current_thread(), Feeder.nudge

    def nudge_and_wait(feeder: Feeder) -> None:
        nudge(feeder)
        deadline = time.monotonic() + PATIENCE
        while threading.current_thread() is consumer and not pool._dispatcher.struck_here and feeder.hungry():
            assert time.monotonic() < deadline
            time.sleep(0)

    source = Source(40)
    pool = make_pool(2)
    monkeypatch.setattr(Feeder, "nudge", nudge_and_wait)
    results = getattr(pool, face)(identity, source, 4, buffersize=8)
    assert sorted(source.take(results) for _ in range(40)) == list(range(40))
    assert source.most <= 8


def tell(line: Line, item: int) -> int:
    """Tell that the item runs."""
    line.tell(b"x")
    return item


class Told:
    """A forked worker's line."""

    line: Line


def tell_there(item: int) -> int:
    """Tell on the line that a forked worker has; carry nothing."""
    return tell(Told.line, item)


RANGES: dict[str, Callable[[], Any]] = {
    "range": lambda: range(50),
    "list": lambda: list(range(50)),
    "tuple": lambda: tuple(range(50)),
    "set": lambda: set(range(50)),
}


@every_face
@pytest.mark.parametrize("items", RANGES)
def test_numbers_wait_like_anything_else(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch, face: str, items: str
) -> None:
    """Though they cost nothing, what is made of them may."""
    line = make_line()
    os.set_blocking(line.reading, False)
    monkeypatch.setattr(Told, "line", line, raising=False)
    pool = make_pool(2)
    results, begun = getattr(pool, face)(tell_there, RANGES[items](), buffersize=3), 0
    for asked in range(50):
        for item in range(4):
            assert pool.apply(identity, (item,)) == item  # what has been sent begins before this
        try:
            begun += len(os.read(line.reading, 100))
        except BlockingIOError:
            pass  # none has begun since
        assert begun <= asked + 3
        next(results)
    assert next(results, None) is None


@every_face
def test_an_endless_input_is_pulled_as_it_is_needed(make_pool: MakePool, face: str) -> None:
    """And whoever has enough drops the rest."""
    source = Source()
    pool = make_pool(2)
    results = getattr(pool, face)(identity, source, buffersize=10)
    source.await_pulled(10)
    found = [source.take(results) for _ in range(500)]
    assert len(set(found)) == 500
    assert source.most == 10
    assert face == "imap_unordered" or found == list(range(500))


def test_without_a_bound_an_endless_input_runs_ahead(make_pool: MakePool) -> None:
    """As far as the pool works it off: nothing has changed for who asks for nothing."""
    source = Source()
    pool = make_pool(1)
    results = pool.imap(identity, source)
    source.await_pulled(200)
    assert [next(results) for _ in range(5)] == list(range(5))


@every_face
def test_options_bound_iterators_too(make_pool: MakePool, face: str) -> None:
    """What is given with the call goes before."""
    pool = make_pool(1)
    view = pool.options(buffersize=4)
    for options, most in (({}, 4), ({"buffersize": 2}, 2)):
        source = Source(30)
        results = getattr(view, face)(identity, source, **options)
        assert sorted(source.take(results) for _ in range(30)) == list(range(30))
        assert source.most <= most


# -- Bytes -------------------------------------------------------------------------------------------

EACH = 20_000  # numbers in an array
BYTES = 8 * EACH


def of_small(_: int) -> bytes:
    """Make an item that needs no slab."""
    return b"x" * 20_000


def of_arrays(_: int) -> Any:
    """Make an item that lies in one."""
    return np.ones(EACH)


@every_face
@pytest.mark.parametrize(("make", "size"), [(of_arrays, BYTES), (of_small, 20_000)])
@pytest.mark.parametrize("chunk", [1, 3])
def test_no_more_bytes_are_pulled_than_may_be(
    make_pool: MakePool, face: str, make: Callable[[int], Any], size: int, chunk: int
) -> None:
    """Those of results count until these are taken; a few more there may be, as the one becomes the other."""
    source = Source(60, make)
    pool = make_pool(2)
    results = getattr(pool, face)(identity, source, chunk, bufferbytes=5 * size)
    source.await_pulled(5)
    found = [source.take(results) for _ in range(60)]
    with pytest.raises(StopIteration):
        source.take(results)
    assert all(bytes(each) == bytes(make(0)) for each in found)
    assert source.most <= 3 * 5


def of_middling(_: int) -> bytes:
    """Make an item that travels in a slab with others."""
    return bytes(100_000)


@every_face
@pytest.mark.parametrize(("make", "size"), [(of_arrays, BYTES), (of_middling, 100_000)])
def test_without_a_bound_there_is_one_for_what_is_large(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, face: str, make: Callable[[int], Any], size: int
) -> None:
    """As many bytes as memory allows, in items and results that nobody has taken yet."""
    monkeypatch.setattr(_iterators, "transit_limit", lambda: 5 * size)
    source = Source(200, make)
    pool = make_pool(2)
    results = getattr(pool, face)(identity, source)
    source.await_pulled(5)
    for item in range(100):
        assert pool.apply(identity, (item,)) == item
    assert source.pulled <= 3 * 5
    assert all(bytes(source.take(results)) == bytes(make(0)) for _ in range(200))
    assert source.most <= 3 * 5


def test_what_will_be_counts_as_well(make_pool: MakePool) -> None:
    """Items that are little and become much: as much as their results have been so far."""
    source = Source(400)
    pool = make_pool(2)
    results = pool.imap(np.ones, (EACH for _ in source), bufferbytes=5 * BYTES)
    source.await_pulled(5)
    for _ in range(100):
        for item in range(10):
            assert pool.apply(identity, (item,)) == item
        source.take(results)
    assert source.most <= 7
    assert sum(len(each) for each in results) == 300 * EACH


def test_one_that_is_too_large_runs_alone(make_pool: MakePool) -> None:
    """There may always be one, and another one as its result arrives."""
    source = Source(20, of_arrays)
    pool = make_pool(2)
    results = pool.imap(len, source, bufferbytes=1)
    source.await_pulled(1)
    assert [source.take(results) for _ in range(20)] == [EACH] * 20
    assert source.most <= 2


def test_both_bounds_hold(make_pool: MakePool) -> None:
    """Whichever is reached first."""
    pool = make_pool(2)
    for items, size, least, most in ((3, 1 << 40, 3, 3), (30, 1, 1, 2)):
        source = Source(20, of_arrays)
        results = pool.imap(identity, source, buffersize=items, bufferbytes=size)
        source.await_pulled(least)
        for _ in range(20):
            source.take(results)
        assert source.most <= most


# -- What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("face", [*FACES, "options"])
@pytest.mark.parametrize(
    ("bounds", "error", "words"),
    [
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": -1}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": 1.5}, TypeError, "buffersize must be an integer or None"),
        ({"buffersize": "2"}, TypeError, "buffersize must be an integer or None"),
        ({"bufferbytes": 0}, ValueError, "bufferbytes must be a number of bytes, more than 0"),
        ({"bufferbytes": 1e9}, TypeError, "bufferbytes must be a number of bytes as an int"),
        ({"bufferbytes": "1G"}, TypeError, "bufferbytes must be a number of bytes as an int"),
        ({"buffersize": 1, "bufferbytes": -5}, ValueError, "bufferbytes must be a number of bytes"),
    ],
)
def test_what_is_no_bound_is_refused(
    make_pool: MakePool, face: str, bounds: Any, error: type[Exception], words: str
) -> None:
    """Before anything is pulled."""
    source = Source()
    pool = make_pool(1)
    with pytest.raises(error, match=words):
        pool.options(**bounds) if face == "options" else getattr(pool, face)(identity, source, **bounds)
    assert source.pulled == 0


def test_bounds_may_be_any_integers(make_pool: MakePool) -> None:
    """Of numpy's, say, or very large ones; None is none."""
    pool = make_pool(1)
    for bounds in (
        {"buffersize": np.int64(2), "bufferbytes": np.int64(1000)},
        {"buffersize": 1 << 70, "bufferbytes": 1 << 70},
        {"buffersize": None, "bufferbytes": None},
    ):
        assert list(pool.imap(identity, range(10), **bounds)) == list(range(10))


def test_threads_have_bounds_too() -> None:
    """In items; what they hand over has no size."""
    source = Source(50)
    with pairpool.ThreadPool(2) as pool:
        results: Any = pool.imap(identity, source, buffersize=3, bufferbytes=1)
        source.await_pulled(3)
        assert [source.take(results) for _ in range(50)] == list(range(50))
    assert source.most == 3


class _Unhashable(type):  # noqa: PLW1641  (that is what it is for)
    """Has classes that cannot be looked for in a set."""

    def __eq__(cls, other: object) -> bool:
        return cls is other


class _Peculiar(metaclass=_Unhashable):
    """Whose size nobody is to ask for."""

    def __len__(self) -> int:
        raise SystemExit


def test_results_of_threads_are_let_alone() -> None:
    """Nobody looks at what they are: that would be code of the user's."""
    given = _Peculiar()
    with pairpool.ThreadPool(2) as pool:
        results = pool.imap(identity, (given for _ in range(20)))
        assert all(each is given for each in results)
