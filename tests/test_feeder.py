"""Who feeds a job whose items run code of the user's when they are pickled, and when."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, count
from types import SimpleNamespace
from typing import Any, cast

import pytest

import pairpool
from large import LARGE, MIB
from pairpool import _feeder, _framing
from pairpool._dispatch import Dispatcher
from pairpool._packet import GROUP
from pairpool._payload import Payload
from pairpool._states import Job
from receiving import PATIENCE
from tasks import identity

MakePool = Callable[..., Any]

FACES = ["imap", "imap_unordered"]


class Item:
    """Runs something when it is pickled, and arrives as its number, or what it has instead."""

    def __init__(self, number: int, reducing: Callable[[], object], instead: Any = None) -> None:
        self.number = number
        self.reducing = reducing
        self.instead = instead

    def __reduce__(self) -> Any:
        self.reducing()
        return type(self.number if self.instead is None else self.instead), (self.instead or self.number,)


def is_soon(condition: Callable[[], bool]) -> bool:
    """Tell whether this becomes true."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


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


@pytest.mark.parametrize("pause", [0, _feeder.LOOK + 1])
def test_who_feeds_takes_in_what_has_come(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, pause: int) -> None:
    """Every now and then: workers that are idle again are to be given something."""
    pool = make_pool(2)
    wait, clock = Dispatcher.wait, count(10 * _feeder.LOOK, pause)
    timeouts, times = list[float | None](), list[int]()

    def tell_time() -> int:
        times.append(next(clock))
        return times[-1]

    def note_and_wait(self: Dispatcher, ready: Any, watched: Any, timeout: float | None = None) -> bool:
        timeouts.append(timeout)
        return wait(self, ready, watched, timeout)

    monkeypatch.setattr(Dispatcher, "wait", note_and_wait)
    monkeypatch.setattr(_feeder, "time", SimpleNamespace(monotonic_ns=tell_time))
    items = [[number] for number in range(9 * GROUP)]
    assert pool.map(identity, items, 1) == items
    assert timeouts.count(0.0) == len({*times}) > 0


@pytest.mark.parametrize("face", FACES)
def test_several_threads_take_results(make_pool: MakePool, face: str) -> None:
    """Each item is pickled once, and each result goes to one of them."""
    pickled: list[int] = []
    items = [Item(number, lambda number=number: pickled.append(number)) for number in range(2000)]  # type: ignore[misc]
    results = getattr(make_pool(2), face)(identity, items)
    with ThreadPoolExecutor(4) as executor:
        parts = [future.result(PATIENCE) for future in [executor.submit(list, results) for _ in range(4)]]
    assert sorted(chain(*parts)) == sorted(pickled) == list(range(2000))


@pytest.mark.parametrize(
    ("size", "slots", "memory", "most", "little"),
    [
        pytest.param(MIB // 4, 2, 100 * MIB, 65, 42, id="many that are not so large"),
        pytest.param(MIB, 2, 100 * MIB, 17, 10, id="fewer that are larger"),
        pytest.param(MIB, 64, 100 * MIB, 100, 64, id="one for each of many slots"),
        pytest.param(MIB // 4, 2, 4 * MIB, 17, 10, id="as much as memory allows"),
        pytest.param(8 * MIB, 2, 100 * MIB, 4, 2, id="two for each slot"),
        pytest.param(8 * MIB, 2, 20 * MIB, 2, 1, id="few"),
        pytest.param(80 * MIB, 2, 20 * MIB, 1, 0, id="one that is larger than all memory that there may be"),
    ],
)
def test_what_is_large_is_kept_ready_by_its_bytes(
    monkeypatch: pytest.MonkeyPatch, size: int, slots: int, memory: int, most: int, little: int
) -> None:
    """So much of it is under way, and who feeds is woken when so little is."""
    monkeypatch.setattr(_feeder, "transit_limit", lambda: memory)
    plan = Job(1, visible=True, unit_ns=1000)
    job = SimpleNamespace(plan=plan, unit=1, digesting=False, prepared=SimpleNamespace(settled_weight=0))
    dispatcher = SimpleNamespace(scheduler=SimpleNamespace(slots=range(slots)), joining=False, drain=int, starving=0)
    feeder = _feeder.Feeder(cast("Any", dispatcher), cast("Any", job), ())
    while feeder.hungry():
        feeder._units = [None]
        feeder._leave([Payload(b"", weight=size, large=True)])
        plan.next += 1
    assert plan.next == most
    assert not feeder.is_low()
    while not feeder.is_low():
        plan.settled += 1
        job.prepared.settled_weight += size
    assert plan.next - plan.settled == little


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


@pytest.mark.parametrize("face", FACES)
def test_reducers_may_wait_for_what_the_consumer_does(make_pool: MakePool, face: str) -> None:
    """They run on a thread of their own: here each of them needs room that a result makes."""
    room = threading.Semaphore(4)
    items = [Item(number, room.acquire, bytes(LARGE)) for number in range(50)]
    found = []
    for result in getattr(make_pool(2), face)(identity, items):
        room.release()
        found.append(result)
    assert found == [bytes(LARGE)] * 50


def strike_first(pid: int, number: int) -> int:
    """Send a signal to the caller, for the first item."""
    if number == 0:
        os.kill(pid, signal.SIGUSR1)
    return number


@pytest.fixture
def joining() -> Iterator[list[Any]]:
    """Have a handler close and join the pool that is put there; in the pool's midst it is told that it cannot."""
    pools: list[Any] = []

    def join(*_: object) -> None:
        pools[0].close()
        with contextlib.suppress(pairpool.PairpoolError):
            pools[0].join()

    before = signal.signal(signal.SIGUSR1, join)
    yield pools
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("source", [list, iter])
@pytest.mark.parametrize("face", [*FACES, "map"])
def test_a_handler_that_strikes_who_waits_may_join_the_pool(
    make_pool: MakePool, joining: list[Any], face: str, source: Callable[..., Any]
) -> None:
    """As one of SIGTERM that lets a program end in order: the rest is fed, though who waits is held up."""
    joining.append(make_pool(2))
    items = [Item(number, int) for number in range(500)]
    results = getattr(joining[0], face)(partial(strike_first, os.getpid()), source(items))
    assert sorted(results) == list(range(500))


@pytest.mark.parametrize("end", ["terminate", "join"])
def test_a_handler_that_strikes_who_receives_ends_the_pool(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The end of a worker waits for what it said to be received, so the handler does not wait for that end."""
    pool = make_pool(2)
    strikes = iter([None])
    receive = _framing.receive

    def receive_and_be_struck(*args: Any) -> int:
        received = receive(*args)
        if received and threading.current_thread() is threading.main_thread():
            for _ in strikes:
                pool.close() if end == "join" else pool.terminate()
                if end == "join":
                    with pytest.raises(pairpool.PairpoolError, match="in whose midst it strikes"):
                        pool.join()
        return received

    monkeypatch.setattr(_framing, "receive", receive_and_be_struck)
    results = pool.map_async(identity, [Item(number, int) for number in range(500)])
    if end == "join":
        assert results.get(PATIENCE) == list(range(500))
    else:
        with pytest.raises(pairpool.PoolTerminatedError):
            results.get(PATIENCE)
    pool.join()
    assert next(strikes, None) is None


def test_a_handler_that_strikes_who_pickles_cannot_join_the_pool(make_pool: MakePool) -> None:
    """Of a map: nobody else can go on with that, so it is told."""
    pool = make_pool(2)
    told: list[pairpool.PairpoolError] = []

    def join() -> None:
        pool.close()
        with pytest.raises(pairpool.PairpoolError, match="whose items are just being pickled") as error:
            pool.join()
        told.append(error.value)

    assert pool.map(identity, [Item(0, int), Item(1, join), Item(2, int)], 1) == [0, 1, 2]
    assert len(told) == 1


def test_a_handler_that_strikes_who_pickles_may_terminate_the_pool(make_pool: MakePool) -> None:
    """Nobody need go on with that."""
    pool = make_pool(2)
    with pytest.raises(pairpool.PoolTerminatedError):
        pool.map(identity, [Item(0, int), Item(1, pool.terminate), Item(2, int)], 1)
    pool.join()
