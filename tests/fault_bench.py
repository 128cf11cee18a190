"""A bench on which pools are struck, other jobs beside the struck one, and waits for processes that stop or end.

No wait is without a bound, and nothing sleeps but to look again at what nothing tells of.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest

import faults
import pairpool
from faults import LARGE, double, enlarge
from pairpool.engines import local
from receiving import PATIENCE
from zygotes import has_ended

REST = 0.002  # seconds between two looks at what nothing tells of

# -- Waiting ----------------------------------------------------------------------------------------


class Aside:
    """Does something on a thread of its own, so that a hang is found, and not shared."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self._thread = threading.Thread(target=self._run, args=(action,), daemon=True)
        self._thread.start()

    def _run(self, action: Callable[[], Any]) -> None:
        self._outcome = outcome(action)

    def outcome(self) -> Any:
        """Wait for the end; return the value, or the error."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it never ended"
        return self._outcome


def outcome(action: Callable[[], Any]) -> Any:
    """Return what comes of something: a value, or the error."""
    try:
        return action()
    except BaseException as error:
        return error


def until(ready: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, f"it never came: {what}"
        time.sleep(REST)


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(") ")[2][0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_stopped(pids: list[int]) -> int:
    """Wait until one of these processes is stopped, and return which."""
    until(lambda: any(map(is_stopped, pids)), "a process that is stopped")
    return next(filter(is_stopped, pids))


class Watched:
    """Processes that are to end."""

    def __init__(self, pids: list[int]) -> None:
        self._pidfds = []
        for pid in pids:
            with suppress(ProcessLookupError):  # it has ended
                self._pidfds.append(os.pidfd_open(pid))

    def check_ended(self) -> None:
        """Wait until all have ended."""
        ended = [has_ended(pidfd, PATIENCE) for pidfd in self._pidfds]
        for pidfd in self._pidfds:
            os.close(pidfd)
        assert all(ended), "a process stays behind"


# -- A bench, on which cells are tried ----------------------------------------------------------------


class Bench:
    """A start method, and the pool of two workers that cells share as long as they leave it whole."""

    def __init__(self, method: str) -> None:
        self.method = method
        self._pools: list[Any] = []
        self._shared: Any = None

    def pool(self) -> Any:
        """Return the shared pool, whose workers are ready and have nothing to do."""
        if self._shared is None:
            self._shared = self.make(2, faults.be_ready)
        await_idle(self._shared, 2)
        return self._shared

    def make(self, *args: Any) -> Any:
        """Make a pool of a cell's own."""
        pool = pairpool.get_context(self.method).Pool(*args)
        self._pools.append(pool)
        return pool

    def make_trapped(self, place: str, how: str) -> Any:
        """Make a pool of one worker, whose zygote will be struck when it comes to this place once more."""
        if place == "fork" and self.method == "spawn":
            place = "spawn"
        spared = 0 if place == "order" else 1
        if self.method != "fork":
            return self.make(1, faults.be_ready, (faults.Trap(place, how, spared),))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*faults.TRAPS[place], getattr(*faults.TRAPS[place]))  # to be put back
            faults.lay_trap(place, how, spared + (place == "fork"))  # the zygote is forked as well
            return self.make(1, faults.be_ready)

    def end(self, pool: Any) -> None:
        """Terminate a pool, stopped processes and all; nothing may be left of it."""
        watched = Watched(processes_of(pool))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local, "GRACE", 0.0)
            patch.setattr(local, "STUCK", 0.1)
            assert Aside(pool.terminate).outcome() is None
        assert Aside(pool.join).outcome() is None
        watched.check_ended()
        self._pools.remove(pool)
        if pool is self._shared:
            self._shared = None

    def close(self) -> None:
        """Terminate all pools."""
        while self._pools:
            self.end(self._pools[-1])


def processes_of(pool: Any) -> list[int]:
    """Return the pids of a pool's processes that run."""
    zygote = pool._dispatcher.engine._zygote
    pids = [] if zygote.ended else [zygote.pid]
    return pids + [worker.known_pid for worker in pool._pool if worker.known_pid is not None]


def await_idle(pool: Any, workers: int) -> None:
    """Wait until so many workers are there, have told that they are, and have nothing to do."""
    slots = pool._dispatcher.scheduler.slots

    def are_idle() -> bool:
        states = [str(slot.state) for slot in list(slots.values())]
        # A worker may be up before the zygote has told of it.
        return states == ["idle"] * workers == [worker.known_pid and "idle" for worker in pool._pool]

    until(are_idle, f"a pool of {workers} idle workers")


@contextmanager
def midst(pool: Any) -> Iterator[None]:
    """Be in a pool's midst, as a signal handler may be: what is asked for there is done afterwards, and together."""
    dispatcher = pool._dispatcher
    with dispatcher._lock:
        dispatcher._holder = threading.get_ident()
        try:
            yield
        finally:
            dispatcher._holder = 0
    dispatcher.drain()


def iterated(iterator: Any) -> list[Any]:
    """Return the outcomes of an iterator; of an error that it repeats for ever only the first."""
    outcomes: list[Any] = []
    while True:
        try:
            outcomes.append(iterator.next(PATIENCE))
        except StopIteration:
            return outcomes
        except BaseException as error:
            if outcomes and outcomes[-1] is error:
                return outcomes
            outcomes.append(error)
            if isinstance(error, multiprocessing.TimeoutError):
                return outcomes


def is_terminated(error: Any) -> bool:
    """Tell whether an outcome is that of a result that was pending when its pool was terminated."""
    return isinstance(error, pairpool.PoolTerminatedError)


class Beside:
    """Jobs beside the one that is struck: calls, large and small, a map and an imap."""

    def __init__(self, pool: Any) -> None:
        calls = [pool.apply_async(double, (n,)) for n in range(3)]
        calls += [pool.apply_async(len, (LARGE,)) for _ in range(4)]
        calls += [pool.apply_async(enlarge, (n,)) for n in range(4)]
        self._results = [*calls, pool.map_async(double, range(20))]
        self._iterator = pool.imap(double, range(5))

    RIGHT = (0, 2, 4, *[len(LARGE)] * 4, *[LARGE] * 4, [2 * n for n in range(20)], 0, 2, 4, 6, 8)

    def is_over(self) -> bool:
        """Tell whether the calls and the map have come to an end."""
        return all(each.ready() for each in self._results)

    def outcomes(self) -> list[Any]:
        """Wait for them all."""
        return [*(outcome(partial(each.get, PATIENCE)) for each in self._results), *iterated(self._iterator)]

    def check_right(self) -> None:
        """All is as if nothing had happened."""
        outcomes = self.outcomes()
        assert outcomes == list(self.RIGHT), f"beside it {outcomes}"

    def check_ended(self) -> None:
        """Each has come, or the pool was terminated before it could."""
        outcomes = zip(self.outcomes(), self.RIGHT, strict=False)
        assert all(is_terminated(each) or each == right for each, right in outcomes), f"beside it {outcomes}"

    def check_failed(self, with_this: Callable[[Any], bool]) -> None:
        """Nothing had come of them, and each ends with this."""
        outcomes = self.outcomes()
        assert len(outcomes) == len(self._results) + 1, f"beside it {outcomes}"
        assert all(map(with_this, outcomes)), f"beside it {outcomes}"


def check_whole(pool: Any) -> None:
    """The pool has all its workers and works."""
    Beside(pool).check_right()
    await_idle(pool, pool._processes)
