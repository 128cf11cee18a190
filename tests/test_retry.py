"""Items that are run again after an exception or the death of their worker, and those that are not."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pairpool
from pairpool import Retry
from receiving import PATIENCE
from tasks import Line

MakePool = Callable[..., Any]

_journal = ""  # in a worker: where tasks write down what they run


def open_journal(path: str) -> None:
    """Initialize a worker."""
    global _journal
    _journal = path


def runs(path: str) -> Counter[int]:
    """Count how often each item was begun."""
    with open(path) as journal:
        return Counter(map(int, journal.read().split()))


def begin(item: int) -> int:
    """Write an item down; return how often that was done."""
    with open(_journal, "a") as journal:
        journal.write(f"{item}\n")
    return runs(_journal)[item]


class FlakyError(Exception):
    """Raised by tasks that may succeed if tried again."""


def flaky(item: int) -> int:
    """Fail twice at every tenth item, and die once at those before them."""
    times = begin(item)
    if item % 10 == 0 and times <= 2:
        raise FlakyError(item)
    if item % 10 == 9 and times == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return -item


def always(item: int) -> int:
    """Fail at 3."""
    begin(item)
    if item == 3:
        raise FlakyError(item)
    return -item


def other(item: int) -> int:
    """Fail with another error."""
    begin(item)
    raise KeyError(item)


def poison(item: int) -> int:
    """Kill the worker at 3."""
    begin(item)
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return -item


Face = Callable[[Any, Callable[[int], int], range], list[int]]

FACES: dict[str, Face] = {
    "map": lambda pool, task, items: pool.map(task, items),
    "map in chunks": lambda pool, task, items: pool.map(task, items, 4),
    "map of objects": lambda pool, task, items: pool.starmap(task, [(item,) for item in items]),
    "imap": lambda pool, task, items: list(pool.imap(task, items)),
    "imap_unordered": lambda pool, task, items: sorted(pool.imap_unordered(task, items), reverse=True),
    "apply": lambda pool, task, items: [pool.apply(task, (item,)) for item in items],
    "apply_async": lambda pool, task, items: [
        result.get(PATIENCE) for result in [pool.apply_async(task, (item,)) for item in items]
    ],
    "submit": lambda pool, task, items: [
        future.result(PATIENCE) for future in [pool.submit(task, item) for item in items]
    ],
}

every_face = pytest.mark.parametrize("face", FACES)


@pytest.fixture
def journal(tmp_path: Path) -> str:
    """Name a file for the runs of tasks."""
    (tmp_path / "runs").touch()
    return str(tmp_path / "runs")


@every_face
def test_an_item_is_run_until_it_succeeds(make_pool: MakePool, journal: str, face: str) -> None:
    """Results are those of items that never failed, and each is run no more often than that takes."""
    pool = make_pool(2, open_journal, (journal,)).options(retry=Retry(4, (FlakyError,)))
    assert FACES[face](pool, flaky, range(30)) == [-item for item in range(30)]
    begun = runs(journal)
    assert all(begun[item] >= 3 for item in (0, 10, 20))
    assert all(begun[item] >= 2 for item in (9, 19, 29))
    if face in ("imap", "imap_unordered", "apply", "apply_async", "submit"):
        assert sum(begun.values()) == 30 + 3 * 2 + 3, "no other item was run again"


@pytest.mark.parametrize("face", ["map", "submit"])
def test_it_is_the_same_with_every_start_method(
    make_pool: MakePool, start_method: str, journal: str, face: str
) -> None:
    """Workers know the types of the errors that they are told of."""
    pool = make_pool(2, open_journal, (journal,), start_method=start_method).options(retry=Retry(4, (FlakyError,)))
    assert FACES[face](pool, flaky, range(30)) == [-item for item in range(30)]


@every_face
def test_the_last_error_is_the_items(make_pool: MakePool, journal: str, face: str) -> None:
    """An item that never succeeds ends in what it raised last."""
    pool = make_pool(1, open_journal, (journal,)).options(retry=Retry(2, (FlakyError,)))
    with pytest.raises(FlakyError):
        FACES[face](pool, always, range(5))
    assert runs(journal)[3] == 3


@every_face
def test_other_errors_are_final(make_pool: MakePool, journal: str, face: str) -> None:
    """Only the types that are named are worth another try."""
    pool = make_pool(1, open_journal, (journal,)).options(retry=Retry(2, (FlakyError, OSError)))
    with pytest.raises(KeyError):
        FACES[face](pool, other, range(1))
    assert runs(journal) == {0: 1}


@every_face
def test_an_item_that_kills_is_poison(make_pool: MakePool, journal: str, face: str) -> None:
    """It is blamed after so many workers, though it might be run more often; the pool works on."""
    pool = make_pool(2, open_journal, (journal,))
    with pytest.raises(pairpool.WorkerLostError, match="it has been run 2 times, and 2 workers died of it"):
        FACES[face](pool.options(retry=Retry(9, deaths=2)), poison, range(5))
    assert runs(journal)[3] == 2
    assert pool.apply(begin, (7,)) == 1


def test_nothing_is_run_again_unasked(make_pool: MakePool, journal: str) -> None:
    """A pool without the option runs each item once, also beside tasks of the same pool with it."""
    pool = make_pool(1, open_journal, (journal,))
    patient = pool.options(retry=Retry(1, (FlakyError,)))
    with pytest.raises(FlakyError):
        pool.apply(always, (3,))
    with pytest.raises(pairpool.WorkerLostError):
        pool.apply(poison, (3,))
    assert runs(journal) == {3: 2}
    with pytest.raises(FlakyError):
        patient.apply(always, (3,))
    assert runs(journal) == {3: 4}


def test_the_option_of_a_pool_holds_for_all_its_tasks(make_pool: MakePool, journal: str) -> None:
    """It may be taken back for some."""
    pool = make_pool(1, open_journal, (journal,), retry=Retry(1, (FlakyError,)))
    with pytest.raises(FlakyError):
        pool.apply(always, (3,))
    assert runs(journal) == {3: 2}
    with pytest.raises(FlakyError):
        pool.options(retry=None).apply(always, (3,))
    assert runs(journal) == {3: 3}


def test_threads_run_items_again(journal: str) -> None:
    """No worker dies there; exceptions are the same."""
    open_journal(journal)
    with pairpool.ThreadPool(2, retry=Retry(2, (FlakyError,))) as pool, pytest.raises(FlakyError):
        pool.map(always, range(5))
    assert runs(journal)[3] == 3


def test_only_the_failing_item_of_a_chunk_is_run_again(make_pool: MakePool, journal: str) -> None:
    """Default chunks are made of items; explicit ones are one thing, and run again as a whole."""
    pool = make_pool(1, open_journal, (journal,)).options(retry=Retry(3, (FlakyError,)))
    assert pool.map(flaky, range(8)) == [-item for item in range(8)]
    assert runs(journal) == {item: 3 if item == 0 else 1 for item in range(8)}
    os.truncate(journal, 0)
    assert pool.map(flaky, range(7, 11), 4) == [-7, -8, -9, -10]
    assert runs(journal) == {7: 4, 8: 4, 9: 4, 10: 3}


def read_twice(line: Line, sock: socket.socket) -> bytes:
    """Read from a socket; fail the first time."""
    line.tell(b"x")
    data = sock.recv(1)
    if data == b"1":
        raise FlakyError
    return data


def test_descriptors_in_arguments_are_sent_again(make_pool: MakePool, make_line: Callable[[], Line]) -> None:
    """Each try has its own."""
    line = make_line()
    pool = make_pool(1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"12")
        assert pool.options(retry=Retry(1, (FlakyError,))).apply(read_twice, (line, theirs)) == b"2"


def test_an_exception_of_the_users_own_may_be_local(make_pool: MakePool) -> None:
    """Its type travels as everything does that was defined after the pool was made."""

    class LocalError(Exception):
        pass

    left = 2

    def task(numbers: Iterator[int]) -> int:
        raise LocalError(next(numbers))

    pool = make_pool(1).options(retry=Retry(left, (LocalError,)))
    with pytest.raises(LocalError):
        pool.apply(task, (iter([1]),))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"times": -1}, "a number of times, not -1"),
        ({"times": 1.5}, "a number of times, not 1.5"),
        ({"deaths": 0}, "a number of workers, at least 1, not 0"),
        ({"on": OSError}, "a tuple of exception types"),
        ({"on": (OSError, 3)}, "a tuple of exception types"),
    ],
)
def test_a_wrong_number_or_type_is_refused(wrong: dict[str, Any], complaint: str) -> None:
    """It says what there should be."""
    with pytest.raises((ValueError, TypeError), match=complaint):
        Retry(**wrong)


def test_a_closed_pool_takes_nothing_by_any_way(make_pool: MakePool) -> None:
    """Options do not outlive their pool."""
    pool = make_pool(1)
    patient = pool.options(retry=Retry())
    pool.close()
    with pytest.raises(ValueError, match="Pool not running"):
        patient.apply(abs, (1,))
