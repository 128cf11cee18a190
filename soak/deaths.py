"""Two thousand tasks of a millisecond, one worker killed at a random moment: 200 times, in one pool that lives on.

The loss of a worker that is killed is one task at most, so that 1 999 or 2 000 results come, all of them right; none
runs twice, and none hangs: a turn that does not end is ended by the watchdog.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from random import Random
from typing import Any, Self

from soak._journal import STEP, chaos, check_account, nap, open_journal
from soak._part import MINUTE, Course, Part, make_pool

REPETITIONS = 200
TASKS = 2_000


class Kill:
    """Kills one worker of a pool, once, at a random moment of the next so many seconds."""

    def __init__(self, pool: Any, random: Random, within: float) -> None:
        self.kills = 0
        self._pool = pool
        self._choose = random.choice
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(random.uniform(0, within),))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self, delay: float) -> None:
        if not self._over.wait(delay):
            self.kills = 1  # counted first: its task may be told as lost before this thread goes on
            os.kill(self._choose(self._pool._pool).pid, signal.SIGKILL)


def take_calls(pool: Any, items: range, account: Any) -> None:
    """Run every item by `apply_async`."""
    for result in [pool.apply_async(nap, (item,)) for item in items]:
        account.take(result.get)


def take_futures(pool: Any, items: range, account: Any) -> None:
    """Run every item by `submit`."""
    for future in [pool.submit(nap, item) for item in items]:
        account.take(future.result)


def take_imap(pool: Any, items: range, account: Any) -> None:
    """Run every item by `imap`."""
    account.take_all(pool.imap(nap, items))


def take_imap_unordered(pool: Any, items: range, account: Any) -> None:
    """Run every item by `imap_unordered`, from a generator."""
    account.take_all(pool.imap_unordered(nap, (item for item in items)))


FACES: tuple[Callable[[Any, range, Any], None], ...] = (take_calls, take_futures, take_imap, take_imap_unordered)


def work(course: Course) -> str:
    """Do it once in every turn; of the time that the tasks take, the kill comes at any moment."""
    repetitions = course.scaled(REPETITIONS, least=10)
    items = range(1, course.scaled(TASKS, least=100) + 1)
    kills = lost = 0
    with open_journal() as journal, make_pool(2, *journal.initializer) as pool:
        for number in range(repetitions):
            course.turn()
            account = chaos.Account()
            with Kill(pool, course.random, within=0.0005 * len(items)) as kill:
                FACES[number % len(FACES)](pool, items, account)
            check_account(account, journal.take(), [STEP * item for item in items], kill.kills)
            kills += kill.kills
            lost += account.lost
            course.read(workers=2)
    return f"{repetitions} times {len(items):,} tasks, {kills} kills, {lost} tasks lost"


PART = Part("deaths", work, deadline=20 * MINUTE)
