"""Calls of the map family that a signal handler strikes: nothing stays behind that can never end."""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

import pairpool
from interruptions import Interrupted, Interruption
from pairpool._codec import Encoder
from pairpool._feeder import Feeder
from pairpool._prepared import Prepared
from pairpool._tasks import Tasks
from pairpool._waiting import Deadline
from pairpool.results import MapResult
from receiving import PATIENCE
from tasks import identity

FACES: dict[str, Callable[[Any], Any]] = {
    "map": lambda pool: pool.map(identity, range(3)),
    "map, fed": lambda pool: pool.map(identity, deque(range(3))),
    "starmap, fed": lambda pool: pool.starmap(identity, deque([(1,), (2,)])),
    "map_async": lambda pool: pool.map_async(identity, range(3)),
    "map_async, fed": lambda pool: pool.map_async(identity, deque(range(3))),
    "starmap_async, fed": lambda pool: pool.starmap_async(identity, deque([(1,), (2,)])),
    "imap": lambda pool: pool.imap(identity, range(3)),
    "imap, fed": lambda pool: pool.imap(identity, iter(range(3))),
    "imap in chunks, fed": lambda pool: pool.imap(identity, iter(range(3)), 2),
    "imap_unordered, fed": lambda pool: pool.imap_unordered(identity, iter(range(3))),
}
every_face = pytest.mark.parametrize("face", FACES)

# These only return what a function in Python has returned. No handler strikes in between; but what finds the points
# cannot tell that from the return of a function in C.
_HANDS_ON = {each.__code__ for each in (Tasks.map_async, Tasks.starmap_async, Tasks.imap, Tasks.imap_unordered)}


def ends(pool: Any) -> bool:
    """Close and join a pool; tell whether that comes to an end."""
    pool.close()
    joining = threading.Thread(target=pool.join, daemon=True)
    joining.start()
    joining.join(PATIENCE)
    return not joining.is_alive()


@pytest.fixture
def make_threads() -> Iterator[Callable[..., Any]]:
    """Make pools of one thread."""
    pools: list[Any] = []

    def make(*initializer: Any) -> Any:
        pools.append(pairpool.ThreadPool(1, *initializer))
        return pools[-1]

    yield make
    for pool in pools:
        pool.terminate()
        pool.join()


def strike(pool: Any, face: str, *strikes: int) -> Interruption:
    """Make a call, and strike at points of it."""
    pool._dispatcher.drain()  # waits for the thread that is at the rest of an earlier call
    interruption = Interruption(strikes)
    gc.disable()  # in a finalizer of another test's pool nobody would notice a strike
    try:
        was_struck = interruption.watch(partial(FACES[face], pool))
    finally:
        gc.enable()
    assert was_struck == bool(interruption.struck)
    return interruption


def check_what_is_left(pool: Any, interruption: Interruption) -> None:
    """Check that nothing of an interrupted call is left, and that the pool works."""
    where = f"struck at {', '.join(map(str, interruption.struck))}"
    (first, *others) = interruption.struck
    if not others and (first.code not in _HANDS_ON or first.offset == -1):
        assert pool._dispatcher.pending() == 0, where
    deadline = Deadline(PATIENCE)
    assert pool.apply_async(identity, (1,)).get(PATIENCE) == 1, where
    while pool._dispatcher.pending():
        assert not deadline.passed(), where
        pool._dispatcher.drain()


@every_face
@pytest.mark.parametrize("strikes", [1, 2])
def test_a_pool_can_end_wherever_a_call_was_struck(make_threads: Callable[..., Any], face: str, strikes: int) -> None:
    """Also where a second signal follows upon the first, as of who is impatient."""
    for number in count():
        pool = make_threads()
        interruption = strike(pool, face, *range(number, number + strikes))
        if not interruption.struck:
            break
        check_what_is_left(pool, interruption)
        assert ends(pool), f"struck at {', '.join(map(str, interruption.struck))}"
    assert number > 50


@every_face
def test_a_pool_of_processes_works_on_wherever_calls_were_struck(make_pool: Any, face: str) -> None:
    """One after another; and it can end."""
    pool = make_pool(1)
    for number in count():
        interruption = strike(pool, face, number)
        if not interruption.struck:
            break
        check_what_is_left(pool, interruption)
    assert number > 50
    assert ends(pool)


@every_face
def test_a_call_that_is_struck_when_all_is_arranged(make_pool: Any, face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on the pool's books, and nobody will ever see its results, or feed it."""
    pool = make_pool(1)
    add_batch = pool._dispatcher.add_batch

    def add_and_be_struck(*batch: Any) -> None:
        add_batch(*batch)
        raise Interrupted

    monkeypatch.setattr(pool._dispatcher, "add_batch", add_and_be_struck)
    with pytest.raises(Interrupted):
        FACES[face](pool)
    monkeypatch.undo()
    assert pool._dispatcher.pending() == 0
    assert pool.map(identity, deque([1, 2])) == [1, 2]
    assert ends(pool)


@pytest.mark.parametrize("ending", [pairpool.ThreadPool.close, pairpool.ThreadPool.terminate])
def test_a_pool_ends_wherever_its_ending_was_struck(
    make_threads: Callable[..., Any], ending: Callable[[Any], None]
) -> None:
    """It is closed and on its way to its end, or it is neither and can be closed."""
    for number in count():
        pool = make_threads()
        pool._dispatcher.drain()
        interruption = Interruption((number,))
        gc.disable()
        try:
            interruption.watch(partial(ending, pool))
        finally:
            gc.enable()
        if not interruption.struck:
            break
        assert ends(pool), f"struck at {interruption.struck[0]}"
    assert number > 10


# -- Feeders whose job is over -----------------------------------------------------------------------


def test_a_feeder_that_is_told_to_end_while_it_feeds_ends() -> None:
    """What it leaves after that does not make it go on."""

    def items() -> Iterator[int]:
        feeder.end()
        yield 1

    dispatcher: Any = SimpleNamespace(encoder=Encoder(), starving=False, drain=lambda: None)
    job: Any = SimpleNamespace(unit=1, prepared=Prepared())
    feeder = Feeder(dispatcher, job, items())
    feeder.feed()
    assert feeder._over


def take(result: Any) -> Any:
    """Return what comes first."""
    return result.get() if isinstance(result, MapResult) else next(result)


def never_works() -> None:
    """Be an initializer that fails."""
    raise OSError("no such device")


@pytest.mark.parametrize("face", [face for face in FACES if "fed" in face])
def test_a_broken_pool_feeds_nothing(make_threads: Callable[..., Any], face: str) -> None:
    """A job that cannot begin leaves no thread behind that waits until somebody wants its items."""
    pool = make_threads(never_works)
    with pytest.raises(pairpool.InitializerError):
        pool.apply(identity, (1,))
    with pytest.raises(pairpool.InitializerError):
        take(FACES[face](pool))
