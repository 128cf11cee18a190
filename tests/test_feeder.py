"""Who feeds a job whose items run code of the user's when they are pickled, and when."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

import pytest

import pairpool
from large import LARGE
from pairpool._feeder import Feeder
from receiving import PATIENCE
from tasks import Line, identity

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

FACES = ["imap", "imap_unordered"]


class Item:
    """Runs something when it is pickled, and arrives as its number."""

    def __init__(self, number: int, reducing: Callable[[], object]) -> None:
        self.number = number
        self.reducing = reducing

    def __reduce__(self) -> Any:
        self.reducing()
        return int, (self.number,)


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the thread of a feeder do nothing, for ever."""
    monkeypatch.setattr(Feeder, "start_thread", lambda feeder: setattr(feeder, "threaded", True))


def is_soon(condition: Callable[[], bool]) -> bool:
    """Tell whether this becomes true."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


@pytest.mark.usefixtures("no_thread")
@pytest.mark.parametrize("chunksize", [1, 7])
@pytest.mark.parametrize("face", FACES)
def test_who_waits_for_a_result_feeds_meanwhile(make_pool: MakePool, face: str, chunksize: int) -> None:
    """On his own thread."""
    threads: list[int] = []
    items = [Item(number, lambda: threads.append(threading.get_ident())) for number in range(1000)]
    results = getattr(make_pool(2), face)(identity, items, chunksize)
    assert sorted(results) == list(range(1000))
    assert {*threads} == {threading.get_ident()}


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("source", [list, iter])
def test_the_rest_is_fed_while_nobody_waits(make_pool: MakePool, face: str, source: Callable[..., Any]) -> None:
    """Whoever has taken one result, and does something else, finds the others there."""
    pickled: list[int] = []
    pool = make_pool(2)
    results = getattr(pool, face)(identity, source([Item(number, lambda: pickled.append(1)) for number in range(3000)]))
    found = [next(results)]
    assert is_soon(lambda: len(pickled) == 3000)
    assert sorted([*found, *results]) == list(range(3000))


@pytest.mark.parametrize("face", FACES)
def test_several_threads_take_and_feed(make_pool: MakePool, face: str) -> None:
    """Each item is pickled once, and each result goes to one of them."""
    pickled: list[int] = []
    items = [Item(number, lambda number=number: pickled.append(number)) for number in range(2000)]  # type: ignore[misc]
    results = getattr(make_pool(2), face)(identity, items)
    with ThreadPoolExecutor(4) as executor:
        parts = [future.result(PATIENCE) for future in [executor.submit(list, results) for _ in range(4)]]
    assert sorted(chain(*parts)) == sorted(pickled) == list(range(2000))


def meet(line: Line, size: int) -> int:
    """Wait for the other of two tasks."""
    line.tell(b"x") if size > LARGE else line.await_told()
    return size


class LargeItem(Item):
    """Has a message of its own, and arrives as the length of what it has."""

    def __reduce__(self) -> Any:
        self.reducing()
        return len, (bytes(LARGE + self.number),)


def test_the_thread_that_feeds_hands_over_to_who_comes_to_wait(make_pool: MakePool, make_line: MakeLine) -> None:
    """Else the second of two items that need each other would never be sent."""
    there: list[Any] = []
    begun = threading.Event()

    def wait_for_consumer() -> None:
        begun.wait(PATIENCE)
        assert is_soon(lambda: there[0].feeder._consumers > 0)

    items = [LargeItem(0, wait_for_consumer), LargeItem(1, int)]
    line = make_line()
    there.append(make_pool(2).imap(partial(meet, line), items))
    begun.set()
    assert [there[0].next(), there[0].next()] == [LARGE, LARGE + 1]


class PassingError(Exception):
    """Is raised by a handler."""


def strike() -> None:
    """Be struck by a handler that raises."""
    signal.raise_signal(signal.SIGUSR1)


@pytest.fixture
def raising() -> Iterator[None]:
    """Have a handler that raises."""

    def handler(*_: object) -> None:
        raise PassingError

    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("no_thread", "raising")
@pytest.mark.parametrize("face", FACES)
def test_a_handler_that_raises_while_a_consumer_feeds_loses_nothing(make_pool: MakePool, face: str) -> None:
    """It comes out of `next`, and is no item's error."""
    strikes = iter([strike])
    items = [Item(number, lambda number=number: number == 5 and next(strikes, int)()) for number in range(10)]  # type: ignore[misc]
    results = getattr(make_pool(1), face)(identity, items)
    found: list[int] = []
    raised = 0
    while len(found) < 10:
        try:
            found.append(next(results))
        except PassingError:
            raised += 1
    assert (sorted(found), raised) == (list(range(10)), 1)


def leave() -> None:
    """End the program, as far as Python is concerned."""
    raise SystemExit(3)


@pytest.mark.parametrize("face", [*FACES, "map"])
def test_a_reducer_that_ends_the_program_ends_the_job(make_pool: MakePool, face: str) -> None:
    """And not the thread that happens to pickle: the results before it are there, and then its error."""
    pool = make_pool(1)
    items = [Item(0, int), Item(1, int), Item(2, leave), Item(3, int)]
    with pytest.raises(SystemExit):
        print([*getattr(pool, face)(identity, items)])
    assert pool.apply(identity, (4,)) == 4


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("face", FACES)
def test_a_reducer_that_waits_for_what_cannot_come_is_told(
    make_pool: MakePool, face: str, timeout: float | None
) -> None:
    """Its own job's results, before there is any: by whoever feeds, a consumer or the thread."""
    there: list[Any] = []
    started = threading.Event()

    def wait_for_another() -> None:
        started.wait()
        next(there[0])

    there.append(getattr(make_pool(1), face)(identity, [Item(0, wait_for_another), Item(1, int)]))
    started.set()
    with pytest.raises(pairpool.PairpoolError, match="while its next item is being pickled"):
        there[0].next(timeout)
    assert list(there[0]) == [1]
