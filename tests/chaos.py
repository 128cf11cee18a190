"""Chaos: workers are killed at random moments while a pool works, and every item is accounted for.

Each task first appends its number to a journal, which tells what was begun, and how often, whatever became of workers.
Kept free of pytest: soaks run it for longer.
"""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Self

from pairpool import WorkerLostError

PATIENCE = 60.0  # seconds after which a result that does not come is a failure, not a wait

_ENTRY = struct.Struct("<II")  # pid of the worker, item

_journal = -1  # in a worker: its descriptor


def open_journal(path: str) -> None:
    """Be the initializer of workers that tell what they begin."""
    global _journal
    _journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def begin(item: int) -> int:
    """Tell that an item has begun, work on it for up to `item` % 8 times a quarter of a millisecond, return -item."""
    os.write(_journal, _ENTRY.pack(os.getpid(), item))
    end = time.monotonic() + item % 8 * 0.00025
    while time.monotonic() < end:
        pass
    return -item


class Killer:
    """Kills workers of a pool at random moments, from a thread of its own.

    Never two in a row that had begun nothing: a pool whose workers keep dying before they are up gives up, rightly.
    """

    def __init__(self, pool: Any, journal: Path, random: Random, pause: float) -> None:
        """`pause`: seconds between two kills, on average."""
        self.kills = 0
        self._journal = journal
        self._last_had_begun = True
        self._pool = pool
        self._random = random
        self._pause = pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._random.expovariate(1 / self._pause)):
            pids = [worker.pid for worker in self._pool._pool]
            at_work = {pid for pid, _ in entries(self._journal)}.intersection(pids)
            choice = [pid for pid in pids if pid and (self._last_had_begun or pid in at_work)]
            if choice:
                self._kill(self._random.choice(choice), at_work)

    def _kill(self, pid: int, at_work: set[int]) -> None:
        # Counted first: its item may be told as lost before this thread goes on.
        self.kills += 1
        try:
            os.kill(pid, signal.SIGKILL)
            self._last_had_begun = pid in at_work
        except ProcessLookupError:
            self.kills -= 1  # it was gone


def entries(journal: Path) -> list[tuple[int, int]]:
    """Return what is written in a journal: pid and item, in the order in which items began."""
    written = journal.read_bytes() if journal.exists() else b""
    return list(_ENTRY.iter_unpack(written))


class Account:
    """What came of some items."""

    def __init__(self) -> None:
        self.delivered: Counter[int] = Counter()
        self.lost = 0

    def take(self, get: Callable[[], int]) -> None:
        """Take one result, or that it was lost."""
        try:
            self.delivered[-get()] += 1
        except WorkerLostError:
            self.lost += 1

    def take_all(self, results: Any) -> None:
        """Take what an iterator has, errors included."""
        over = False

        def following() -> int:
            nonlocal over
            try:
                value: int = results.next(PATIENCE)
            except StopIteration:
                over = True
                return 0
            return value

        while not over:
            self.take(following)
        del self.delivered[0]  # of the end; items begin at 1


def by_calls(pool: Any, items: Iterable[int], account: Account) -> None:
    """Run every item by `apply_async`."""
    for result in [pool.apply_async(begin, (item,)) for item in items]:
        account.take(partial(result.get, PATIENCE))


def by_waiting(pool: Any, items: Iterable[int], account: Account) -> None:
    """Run every item by `apply`, one after another."""
    for item in items:
        account.take(partial(pool.apply, begin, (item,)))


def by_futures(pool: Any, items: Iterable[int], account: Account) -> None:
    """Run every item by `submit`."""
    for future in [pool.submit(begin, item) for item in items]:
        account.take(partial(future.result, PATIENCE))


def by_imap(pool: Any, items: Iterable[int], account: Account) -> None:
    """Run every item by `imap`."""
    account.take_all(pool.imap(begin, items))


def by_imap_unordered(pool: Any, items: Iterable[int], account: Account) -> None:
    """Run every item by `imap_unordered`, from a generator."""
    account.take_all(pool.imap_unordered(begin, (item for item in items)))


def by_maps(pool: Any, items: Iterable[int], account: Account) -> None:
    """Run the items in many maps, each of which ends in a list or is lost as a whole."""
    every = list(items)
    maps = [every[start : start + 40] for start in range(0, len(every), 40)]
    for number, result in enumerate([pool.map_async(begin, part, (None, 1, 7)[n % 3]) for n, part in enumerate(maps)]):
        try:
            values = result.get(PATIENCE)
        except WorkerLostError:
            account.lost += 1
            continue
        assert values == [-item for item in maps[number]]
        account.delivered.update(maps[number])


FACES = {
    face.__name__.removeprefix("by_"): face
    for face in (by_calls, by_waiting, by_futures, by_imap, by_imap_unordered, by_maps)
}


def run(make_pool: Callable[..., Any], face: str, items: int, seed: int, pause: float, journal: Path) -> int:
    """Run so many items while workers are killed; check the account against the journal; return the kills."""
    random = Random(seed)
    pool = make_pool(2, open_journal, (str(journal),))
    account = Account()
    with Killer(pool, journal, random, pause) as killer:
        for start in range(1, items, 500):
            pool.resize(random.randint(1, 3))
            FACES[face](pool, range(start, min(start + 500, items + 1)), account)
    begun = Counter(item for _, item in entries(journal))
    assert max(begun.values()) == 1, "an item was begun twice"
    assert max(account.delivered.values(), default=1) == 1, "a result came twice"
    assert account.delivered.keys() <= begun.keys()
    assert account.lost <= killer.kills, "more was lost than workers died"
    if face != "maps":
        assert len(account.delivered) + account.lost == items
    assert pool.map(abs, range(-3, 1)) == [3, 2, 1, 0], "the pool still works"
    return killer.kills
