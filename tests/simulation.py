"""Pools in virtual time: their users and their misfortunes, drawn from one seeded generator.

Things happen in the order of a virtual clock, after delays that the generator draws, so a run is a function of its
seed and takes no longer than its steps. The pool (simulated.py) and its workers (simulated_workers.py) check
themselves as they go.

Kept free of pytest: soak tests run simulations by number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

from simulated import SimulatedPool
from simulated_workers import MICROSECOND, SimulatedJob, SimulatedWorker

MILLISECOND = 1_000_000  # ns


class Simulation:
    """A pool, its users and its misfortunes, on one agenda."""

    STEPS = 200_000  # a run that takes more never ends
    LONGEST = 100_000 * MILLISECOND  # of a unit: each is looked after many times a second while others wait for it

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self._draw = random.random  # what is drawn at every step: `randrange` takes several times as long
        self.agenda: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self._digest_at: int | None = None
        self._stepping: set[SimulatedWorker] = set()
        self._lag = random.choice((0, 0, 20 * MICROSECOND, 5 * MILLISECOND))  # of a caller who computes
        self._startup = random.choice((300 * MICROSECOND, 100 * MILLISECOND))
        batches = random.choice((1, 4, 10_000))
        self.pool = SimulatedPool(
            random.randint(1, 5),
            budget=random.choice((None, None, 1, 2, 7)),
            depth=random.choice((1, 2, 8, 1000)),
            most_units=random.choice((1, 10, 4096)),
            batch=lambda: batches,
            wake=self._wake,
        )
        self._plan_users()
        self._misfortunes_left = random.choice((0, 0, 3, 12))
        self._sleeps_left = random.choice((0, 0, 1, 5))  # workers that are stopped for a while

    # -- what will happen --------------------------------------------------------------------------------------

    def _plan_users(self) -> None:
        random = self.random
        end = 0
        for _ in range(random.randint(1, 4)):
            end = max(end, self._plan_job(random.randrange(30 * MILLISECOND)))
        for _ in range(random.choice((0, 0, 2, 5))):
            self._at(random.randrange(60 * MILLISECOND), partial(self._resize, random.randint(1, 5)))
        self._at(random.choice((end, end + 50 * MILLISECOND)), self._close)
        self._digest_soon(random.randrange(MILLISECOND))

    def _plan_job(self, start: int) -> int:
        random = self.random
        units = random.choice((0, 1, 3, random.randint(1, 40), random.randint(1, 300)))
        chunk = random.choice((1, 1, 5))
        job = SimulatedJob(
            self._costs(units),
            visible=random.random() < 0.5,
            refused=random.random() < 0.2,
            chunk=chunk,
            errors=frozenset(random.sample(range(units), units // 20)) if chunk > 1 else frozenset(),
            flaky=set(random.sample(range(units), units // 10)) if random.random() < 0.3 else set(),
        )
        ready = random.choice((units, 0, units // 2))
        self._at(start, partial(self._submit, job, ready, closed=ready == units))
        while ready < units:
            start += random.randrange(4 * MILLISECOND)
            ready = min(units, ready + random.randint(1, 1 + units // 3))
            self._at(start, partial(self._feed, job, ready, closed=ready == units))
        if random.random() < 0.1:
            self._at(start + random.randrange(10 * MILLISECOND), partial(self._cancel, job))
        return start

    def _costs(self, units: int) -> list[int]:
        """Running times: all alike, or heavy-tailed, from a microsecond to `LONGEST`."""
        random = self.random
        usual = random.choice((MICROSECOND, 50 * MICROSECOND, 3 * MILLISECOND, 40 * MILLISECOND))
        tail = random.choice((0.0, 0.02, 0.3))
        costs = [int(usual * (random.paretovariate(0.7) if random.random() < tail else 1)) for _ in range(units)]
        return [min(cost, self.LONGEST) for cost in costs]

    # -- the agenda --------------------------------------------------------------------------------------------

    def _at(self, moment: int, happen: Callable[..., None], *arguments: Any) -> None:
        heappush(self.agenda, (moment, next(self._numbers), happen, arguments))

    def run(self) -> None:
        """Let everything happen, and check how it ends."""
        pool, agenda = self.pool, self.agenda
        for _ in range(self.STEPS):
            if not agenda:
                break
            pool.now, _, happen, arguments = heappop(agenda)
            happen(*arguments)
        else:
            raise AssertionError("the run never ends")
        assert all(job.over for job in self.pool.jobs.values()), "a job hangs"
        assert not self.pool.scheduler.slots, "workers stay after the end"

    def _digest_soon(self, lag: int | None = None) -> None:
        moment = self.pool.now + (int(self._draw() * self._lag) if lag is None else lag)
        if self._digest_at is None or moment < self._digest_at:
            self._digest_at = moment
            self._at(moment, self._digest, moment)

    def _digest(self, moment: int) -> None:
        if moment != self._digest_at:
            return  # it was needed earlier
        self._digest_at = None
        self.pool.digest()
        look_at = self.pool.scheduler.look_at
        if look_at is not None:
            self._digest_soon(max(0, look_at - self.pool.now))

    # -- users ----------------------------------------------------------------------------------------------

    def _submit(self, job: SimulatedJob, ready: int, *, closed: bool) -> None:
        self.pool.submit(job, ready, closed=closed)
        self._digest_soon()

    def _feed(self, job: SimulatedJob, ready: int, *, closed: bool) -> None:
        self.pool.feed(job, ready, closed=closed)
        self._digest_soon()

    def _cancel(self, job: SimulatedJob) -> None:
        self.pool.cancel(job)
        self._digest_soon()

    def _resize(self, size: int) -> None:
        self.pool.resize(size)
        self._digest_soon()

    def _close(self) -> None:
        self.pool.close()
        self._digest_soon()

    # -- workers ----------------------------------------------------------------------------------------------

    def _wake(self, worker: SimulatedWorker) -> None:
        if worker not in self._stepping and worker.alive:
            self._stepping.add(worker)
            delay = MICROSECOND if worker.up else self.random.randint(self._startup // 2, 2 * self._startup)
            self._at(self.pool.now + delay, self._step, worker)

    def _step(self, worker: SimulatedWorker) -> None:
        now, draw = self.pool.now, self._draw
        if self._misfortunes_left and draw() < 0.02:
            self._misfortunes_left -= 1
            worker.die()
        if self._sleeps_left and worker.up and draw() < 0.02:
            self._sleeps_left -= 1
            self._at(now + int(draw() * 5000 * MILLISECOND), self._step, worker)
            return
        sent = len(worker.channel)
        delay = worker.step() if worker.alive else None
        if len(worker.channel) > sent:  # those sent before are on their way
            self._at(now + int(draw() * 50 * MICROSECOND), self._receive, worker, len(worker.channel))
        if not worker.alive:
            self._at(now + int(draw() * MILLISECOND), self._bury, worker)
        elif delay is None:
            self._stepping.remove(worker)
        else:
            self._at(now + delay + int(draw() * 2 * MICROSECOND), self._step, worker)

    def _receive(self, worker: SimulatedWorker, messages: int) -> None:
        if worker.channel:  # they may have come already, with messages before or after them
            worker.receive(messages)
            self._digest_soon()

    def _bury(self, worker: SimulatedWorker) -> None:
        worker.bury()
        self._digest_soon()
