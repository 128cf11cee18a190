"""Interrupts: whatever a signal handler strikes, nothing is lost and nothing happens twice."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from commits import Commit, all_commits, changes, commits_in, forbidden
from interruptions import Interrupted, Interruption, Point
from scripted import ScriptedEngine, ScriptedWorker

from pairpool import _dispatch, errors
from pairpool._codec import Definition, DefinitionKind, Payload
from pairpool._dispatch import BatchJob, Call, Dispatcher, Feeder, Status, WorkerPlan
from pairpool._feeder import CLOSED
from pairpool.results import AsyncResult, Future, IMapIterator, IMapUnorderedIterator, MapResult

# Points of a scenario that are struck one by one: a sample, or with this variable of the environment all of them.
SAMPLE = None if os.environ.get("PAIRPOOL_ALL_INTERRUPTS") else 120

# -- Byte code ------------------------------------------------------------------------------------


@pytest.mark.parametrize("commit", all_commits(), ids=str)
def test_a_commit_cannot_be_split(commit: Commit) -> None:
    """A commit changes something, by operators alone: it calls nothing, and no loop turns in it."""
    assert forbidden(commit) == []
    assert changes(commit) > 0


def test_every_file_that_must_commit_is_read() -> None:
    """The files in which half a change would lose or repeat something have commits."""
    files = {commit.path.name for commit in all_commits()}
    assert {"_scheduler.py", "_dispatch.py", "results.py", "local.py", "_feeder.py"} <= files


@pytest.mark.parametrize("line", ["queue.append(1)", "done = [unit for unit in queue]", "for unit in queue: done = unit"])
def test_what_could_be_split_is_found(tmp_path: Any, line: str) -> None:
    """A call, a comprehension and a loop are not taken for operators; what follows a blank line is not looked at."""
    source = tmp_path / "source.py"
    source.write_text(f"def f(queue):\n    # commit\n    {line}\n\n    queue.clear()\n")
    (commit,) = commits_in(source)
    assert forbidden(commit)
    assert not any("clear" in each for each in forbidden(commit))


# -- The stage ------------------------------------------------------------------------------------


class Clock:
    """The time of the dispatcher, which passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000_000_000  # ns

    def monotonic_ns(self) -> int:
        """Return the time."""
        return self.now


class Stage:
    """A dispatcher over scripted workers, entered under the eyes of an interruption."""

    def __init__(self, interruption: Interruption, clock: Clock, size: int = 2, budget: int | None = None) -> None:
        self.interruption = interruption
        self.clock = clock
        self.ran: list[Any] = []  # what tasks were called with
        self.told: list[Any] = []  # what callbacks were called with
        self.engine = ScriptedEngine()
        self.dispatcher = Dispatcher(self.engine, WorkerPlan(), size, budget)

    # -- entering -------------------------------------------------------------------------------

    def enter(self) -> None:
        """Have events digested; if that is interrupted the callback thread goes on with them."""
        dispatcher = self.dispatcher
        if self.interruption.watch(dispatcher.drain):
            woken = dispatcher._callback_signal._lock.acquire(blocking=False)
            assert woken or not (dispatcher.events or dispatcher.calls.incoming or dispatcher.scheduler.actions)
            dispatcher.drain()
        while dispatcher.callbacks:
            dispatcher.callbacks.popleft()()

    def post(self, handler: Callable[[Any], None], argument: Any) -> None:
        """Have an event digested."""
        self.dispatcher.events.append((handler, argument))
        self.enter()

    def run(self) -> None:
        """Let workers go on until there is nothing to do."""
        for _ in range(1000):
            moved = [worker.go_on() for worker in list(self.engine.by_slot.values())]
            self.enter()
            if not any(moved):
                return
        raise AssertionError("the pool never comes to rest")

    def pass_time(self, ns: int) -> None:
        """Let time pass."""
        self.clock.now += ns
        self.enter()

    @property
    def workers(self) -> list[ScriptedWorker]:
        return list(self.engine.by_slot.values())

    # -- tasks ----------------------------------------------------------------------------------

    def double(self, item: int) -> int:
        """Return twice the item; raise for multiples of ten."""
        self.ran.append(item)
        if item % 10 == 0:
            raise ValueError(item)
        return 2 * item

    def call(self, sink: Any, *arguments: Any, **payload: Any) -> Any:
        """Submit a call."""
        made = Payload((self.double, arguments, {}), **payload)
        self.dispatcher.calls.incoming.append(Call(None, made, sink))
        self.enter()
        return sink

    def result(self, *, callbacks: bool = False) -> AsyncResult:
        """Make the result of a call."""
        told = self.told.append if callbacks else None
        return AsyncResult(self.dispatcher, None, told, told)

    def batch(self, sink: Any, items: Any, *, unit: int = 1, chunk: int = 1, fed: bool = False) -> Any:
        """Submit a batch, of plain items or fed."""
        sink.job = job = BatchJob(
            self.dispatcher.encoder,
            Definition(next(_definitions), DefinitionKind.BY_VALUE, Payload(self.double)),
            sink,
            items=None if fed else items,
            unit=unit,
            chunk=chunk,
            star=False,
            visible=not isinstance(sink, MapResult),
        )
        feeder = Feeder(self.dispatcher, job, items) if fed else None
        self.dispatcher.events.append((self.dispatcher._on_batch, (job, feeder)))
        self.enter()
        if feeder is not None:
            for item in items:
                feeder.fresh.append(item if isinstance(item, BaseException) else Payload(item))
                self.enter()
            feeder.fresh.append(CLOSED)
            self.enter()
        return sink

    def map(self, items: Any, *, callbacks: bool = False, **how: Any) -> MapResult:
        """Submit a map."""
        told = self.told.append if callbacks else None
        result: MapResult = self.batch(MapResult(self.dispatcher, None, told, told), items, **how)
        return result

    def close(self) -> None:
        """Close the pool, and check that nothing of it is left."""
        dispatcher, scheduler = self.dispatcher, self.dispatcher.scheduler
        assert not dispatcher.pending()
        assert not scheduler.packets
        assert not scheduler.waiting
        assert all(slot.load == slot.size == 0 for slot in scheduler.slots.values())
        self.post(dispatcher.on_close, None)
        self.run()
        assert not scheduler.slots
        assert not dispatcher.events
        assert not scheduler.actions
        assert not self.engine.by_slot
        assert len(self.engine.shut_down) >= 1


_definitions = iter(range(1 << 40, 1 << 50))


def outcome(result: Any) -> Any:
    """Return what a caller sees, as plain data."""
    if isinstance(result, IMapIterator):
        results = []
        while True:
            try:
                results.append(result.next(0))
            except StopIteration:
                return results
            except Exception as error:
                results.append(repr(error))
                if isinstance(error, errors.TimeoutError):
                    return results
    try:
        return result.get(0) if isinstance(result, AsyncResult | MapResult) else result.result(0)
    except Exception as error:
        return repr(error)


# -- Scenarios: what is done, and what callers see of it ----------------------------------------------


def calls(stage: Stage) -> Any:
    """Calls, with and without callbacks, futures, a cancelled one, one that cannot be pickled."""
    results = [stage.call(stage.result(callbacks=bool(n % 2)), n) for n in range(1, 12)]
    futures = [stage.call(Future(stage.dispatcher, None), n) for n in (21, 30)]
    cancelled: Future[Any] = Future(stage.dispatcher, None)
    cancelled.cancel()
    stage.call(cancelled, 99)
    unpicklable = stage.result()
    stage.dispatcher.calls.incoming.append(Call(None, TypeError("cannot be pickled"), unpicklable))
    aloud: Future[Any] = Future(stage.dispatcher, None)
    aloud.add_done_callback(lambda future: stage.told.append(future.result()))
    stage.call(aloud, 41)
    stage.run()
    return [outcome(each) for each in [*results, *futures, unpicklable, aloud]]


def maps(stage: Stage) -> Any:
    """Maps in packets, in chunks, with errors and callbacks."""
    results = [
        stage.map(range(1, 10), callbacks=True),
        stage.map(range(1, 40), chunk=5),
        stage.map(list(range(1, 9)), unit=3, callbacks=True),
        stage.map(range(95, 105), unit=4),
    ]
    stage.run()
    return [outcome(each) for each in results]


def iterators(stage: Stage) -> Any:
    """Iterators over plain and fed items, one of which cannot be pickled."""
    unpicklable = TypeError("cannot be pickled")
    results = [
        stage.batch(IMapIterator(stage.dispatcher, None), range(1, 15)),
        stage.batch(IMapIterator(stage.dispatcher, None), [1, 2, unpicklable, 3], fed=True),
        stage.batch(IMapUnorderedIterator(stage.dispatcher, None), [5, 6, 7], fed=True),
    ]
    stage.run()
    return [outcome(each) for each in results[:2]] + [sorted(outcome(results[2]))]


def stealing(stage: Stage) -> Any:
    """One worker does nothing at first, and is relieved; then one is slow, and its tail is cut."""
    first, second = stage.workers
    result = stage.map(range(1, 400, 2))
    for _ in range(8):
        first.go_on()
        stage.enter()
    while second.go_on():
        stage.enter()
    for _ in range(6):
        stage.pass_time(20_000_000)
    stage.run()
    return outcome(result)


def refusals(stage: Stage) -> Any:
    """Workers have something else under a name: the fallback runs, or there is none."""
    need = (("name", b"digest"),)
    fallback = Payload((stage.double, (7,), {}))
    results = [
        stage.call(stage.result(), 1, needs=need, fallback=fallback),
        stage.call(stage.result(), 2, needs=need),
        stage.call(stage.result(), 3),
    ]
    stage.run()
    return [outcome(each) for each in results]


def deaths(stage: Stage) -> Any:
    """Workers die within a unit, between units, while idle, while starting."""
    calls = [stage.call(stage.result(), n) for n in range(1, 8)]
    iterator = stage.batch(IMapIterator(stage.dispatcher, None), range(1, 30))
    first, second = stage.workers
    for _ in range(4):
        first.go_on()
    first.end(-11)
    stage.enter()
    while not second._units:
        second.go_on()
        stage.enter()
    second.die_within_a_unit()
    stage.enter()
    stage.workers[0].end(3)
    stage.run()
    for worker in stage.workers:
        worker.end(0)
        stage.enter()
    again = stage.call(stage.result(), 8)
    stage.run()
    return [outcome(each) for each in [*calls, iterator, again]]


def resizes(stage: Stage) -> Any:
    """The pool grows and shrinks at work."""
    results = [stage.map(range(1, 99, 2)), *(stage.call(stage.result(), n) for n in range(1, 9))]
    for size in (4, 1, 3, 2):
        for worker in stage.workers:
            worker.go_on()
            stage.enter()
        stage.post(stage.dispatcher.on_resize, size)
    stage.run()
    assert len(stage.dispatcher.scheduler.slots) == 2
    return [outcome(each) for each in results]


def cancels(stage: Stage) -> Any:
    """A map is abandoned at work; what else there is goes on."""
    abandoned = stage.map(range(1, 100))
    kept = stage.map(range(1, 9))
    for worker in stage.workers:
        for _ in range(5):
            worker.go_on()
            stage.enter()
    stage.post(stage.dispatcher.on_cancel, abandoned.job)
    stage.run()
    stage.ran.clear()  # how far it came is not fixed
    return [outcome(abandoned), outcome(kept)]


def failing_initializers(stage: Stage) -> Any:
    """No worker comes up: everything pending ends with the reason, and so does what comes later."""
    call, batch = stage.call(stage.result(callbacks=True), 1), stage.map(range(1, 10), callbacks=True)
    for _ in range(10):
        for worker in stage.workers:
            worker.fail(OSError("no such device"))
            stage.enter()
    later = [stage.call(stage.result(), 2), stage.map(range(3))]
    stage.run()
    return [outcome(each).partition(":")[0] for each in (call, batch, *later)]


def termination(stage: Stage) -> Any:
    """The pool is terminated at work."""
    call, batch = stage.call(stage.result(callbacks=True), 1), stage.map(range(1, 100))
    stage.workers[0].go_on()
    stage.workers[0].go_on()
    stage.enter()
    stage.post(stage.dispatcher.on_terminate, errors.PoolTerminatedError("it is over"))
    for worker in stage.workers:
        worker.end(-15)
        stage.enter()
    stage.ran.clear()
    return [outcome(call), outcome(batch)]


def breakdown(stage: Stage) -> Any:
    """The engine breaks at work, and packets come back when nobody waits for them any more."""
    call, batch = [stage.call(stage.result(), n) for n in range(1, 9)], stage.map(range(1, 100))
    for worker in stage.workers:
        worker.go_on()
    stage.enter()
    stage.post(stage.dispatcher.on_broken, OSError("broken"))
    stage.run()
    return [outcome(each) for each in (*call, batch)]


SCENARIOS: tuple[Callable[[Stage], Any], ...] = (
    calls, maps, iterators, stealing, refusals, deaths, resizes, cancels, failing_initializers, termination, breakdown,
)  # fmt: skip


class NoThread:
    """A thread that is never run: the test does what it would do."""

    def __init__(self, **_: Any) -> None: ...

    def start(self) -> None:
        """Do nothing."""


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Any, ...]]]:
    """Play a scenario; return everything that could be lost or happen twice."""
    clock = Clock()
    monkeypatch.setattr(_dispatch, "time", clock)

    def play(scenario: Callable[[Stage], Any], interruption: Interruption) -> tuple[Any, ...]:
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Thread", NoThread)
            stage = Stage(interruption, clock)
        seen = scenario(stage)
        stage.close()
        return seen, sorted(stage.ran), sorted(map(repr, stage.told))

    return play


Play = Callable[[Callable[[Stage], Any], Interruption], tuple[Any, ...]]


def sample(passed: list[Point], seed: int) -> list[int]:
    """Choose points to strike: each place in the code once, and others at random."""
    if SAMPLE is None:
        return list(range(len(passed)))
    first = {point: number for number, point in reversed(list(enumerate(passed)))}
    chosen = list(first.values())
    random = Random(seed)
    random.shuffle(chosen)
    others = random.sample(range(len(passed)), min(len(passed), SAMPLE // 2))
    return sorted({*chosen[:SAMPLE], *others})


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_an_interrupt_changes_nothing(play: Play, scenario: Callable[[Stage], Any]) -> None:
    """Interrupted anywhere and then gone on with, a pool delivers the same, and runs and tells the same once."""
    watching = Interruption()
    expected = play(scenario, watching)
    for number in sample(watching.passed, 1):
        interruption = Interruption([number])
        assert play(scenario, interruption) == expected, f"interrupted at {interruption.struck}"
