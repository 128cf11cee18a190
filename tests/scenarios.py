"""Scenarios for a dispatcher: what is done with it, step by step, and what callers see of it.

Everything happens on the test's thread, over the workers of scripted.py, under the eyes of an `Interruption`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from interruptions import Interruption, Point
from pairpool import errors
from pairpool._codec import Definition, DefinitionKind, Payload
from pairpool._core import RETRY, SHORTAGE
from pairpool._dispatch import BatchJob, Dispatcher, Feeder, WorkerPlan
from pairpool._feeder import CLOSED
from pairpool._future import Future
from pairpool._iterators import IMapIterator, IMapUnorderedIterator
from pairpool._limits import PAUSE
from pairpool._pacing import ASLEEP
from pairpool._respawn import LONGEST_WAIT
from pairpool._terms import Retry, Terms
from pairpool.results import AsyncResult, MapResult
from scripted import ScriptedEngine, ScriptedWorker

Scenario: TypeAlias = "Callable[[Stage], Any]"


MOST = 1000  # bytes that a worker may hold


class Clock:
    """The time of the dispatcher, which passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000_000_000  # ns

    def monotonic_ns(self) -> int:
        """Return the time."""
        return self.now


class NoThread:
    """A thread that is never run: the test does what it would do."""

    def __init__(self, **_: Any) -> None: ...

    def start(self) -> None:
        """Do nothing."""


class Stage:
    """A dispatcher over scripted workers, entered under the eyes of an interruption."""

    def __init__(self, interruption: Interruption, clock: Clock, size: int = 2, budget: int | None = None) -> None:
        self.interruption = interruption
        self.clock = clock
        self.ran: list[Any] = []  # what tasks were called with
        self.flaky: list[int] = []  # items that fail, as often as they stand here
        self.told: list[Any] = []  # what callbacks were called with
        self.engine = ScriptedEngine()
        self.dispatcher = Dispatcher(self.engine, WorkerPlan(max_memory_per_worker=MOST), size, budget)

    # -- entering -------------------------------------------------------------------------------

    def enter(self) -> None:
        """Have events digested; if that is interrupted the callback thread goes on with them."""
        dispatcher = self.dispatcher
        if self.interruption.watch(dispatcher.drain):
            woken = dispatcher._callback_signal._lock.acquire(blocking=False)
            left = dispatcher.events or dispatcher.calls.incoming or dispatcher.scheduler.actions
            # Before its first instruction `drain` can do nothing: there its caller still has to.
            assert woken or not left or self.interruption.struck[-1] == Point(Dispatcher.drain.__code__, -1)
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
            self.enter()
            moved = [worker.go_on() for worker in self.workers]
            if not any(moved):
                return
        raise AssertionError("the pool never comes to rest")

    def pass_time(self, ns: int) -> None:
        """Let time pass."""
        self.clock.now += ns
        self.enter()

    @property
    def workers(self) -> list[ScriptedWorker]:
        """The workers, in the order in which they were asked for."""
        return list(self.engine.by_slot.values())

    # -- tasks ----------------------------------------------------------------------------------

    def double(self, item: int) -> int:
        """Return twice the item; raise for multiples of ten."""
        self.ran.append(item)
        if item in self.flaky:
            self.flaky.remove(item)
            raise OSError(item)
        if item % 10 == 0:
            raise ValueError(item)
        return 2 * item

    def call(self, sink: Any, *arguments: Any, terms: Terms | None = None, **payload: Any) -> Any:
        """Submit a call."""
        made = packed((self.double, arguments, {}), **payload)
        self.dispatcher.calls.incoming.append(carrying(sink, made, terms=terms))
        self.enter()
        return sink

    def result(self, *, callbacks: bool = False) -> AsyncResult:
        """Make the result of a call."""
        told = self.told.append if callbacks else None
        return AsyncResult(self.dispatcher, None, told, told)

    def retry(self, *how: Any) -> Terms:
        """Make a plan of when units are run again."""
        return Terms(Retry(*how), None, None, self.dispatcher.encoder.definition)

    def limits(self, soft: float, hard: float) -> Terms:
        """Make terms with limits of time, in seconds."""
        return Terms(None, hard, soft, self.dispatcher.encoder.definition)

    def batch(
        self,
        sink: Any,
        items: Any,
        *,
        unit: int = 1,
        chunk: int = 1,
        fed: bool = False,
        terms: Terms | None = None,
    ) -> Any:
        """Submit a batch, of plain items or fed."""
        sink.job = job = BatchJob(
            self.dispatcher.encoder,
            Definition(next(_definitions), DefinitionKind.BY_VALUE, packed(self.double)),
            sink,
            items=None if fed else items,
            unit=unit,
            chunk=chunk,
            star=False,
            visible=not isinstance(sink, MapResult),
            terms=terms,
        )
        feeder = Feeder(self.dispatcher, job, items) if fed else None
        self.dispatcher.events.append((self.dispatcher.on_batch, (job, feeder)))
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


def packed(thing: Any, **how: Any) -> Payload:
    """Make a payload as where nothing is pickled: of the thing itself."""
    return Payload(thing, **how)


def carrying(call: Any, payload: Any, definition: Definition | None = None, terms: Terms | None = None) -> Any:
    """Return a call of which that is sent."""
    call._carry(definition, payload, terms)
    return call


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
    stage.dispatcher.calls.incoming.append(carrying(unpicklable, TypeError("cannot be pickled")))
    aloud: Future[Any] = Future(stage.dispatcher, None)
    aloud.add_done_callback(lambda future: stage.told.append(future.result()))
    stage.call(aloud, 41)
    stage.run()
    return [outcome(each) for each in [*results, *futures, unpicklable, aloud]]


def maps(stage: Stage) -> Any:
    """Maps in packets, in chunks, with errors and callbacks."""
    results = [
        stage.map(range(1, 10), callbacks=True),
        stage.map(range(104, 118), chunk=4),
        stage.map(list(range(1, 9)), unit=3, callbacks=True),
        stage.map(range(95, 105), unit=4),
    ]
    stage.run()
    # What follows the error in its chunk may have run, and need not.
    stage.ran[:] = [item for item in stage.ran if item != 111]
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
    fallback = packed((stage.double, (7,), {}))
    results = [
        stage.call(stage.result(), 1, needs=need, fallback=fallback),
        stage.call(stage.result(), 2, needs=need),
        stage.call(stage.result(), 3),
    ]
    stage.run()
    return [outcome(each) for each in results]


def retries(stage: Stage) -> Any:
    """Items that fail once, twice and for ever, and workers that die of one, in every kind of job."""
    stage.flaky += [1, 3, 3, 5, 5, 5, 21, 21, 22, 41, 42, 42, 42, 61, 62, 63, 64]
    plan, patient = stage.retry(2, (OSError,)), stage.retry(3, (OSError, ValueError))
    results = [
        *(stage.call(stage.result(), n, terms=plan) for n in (1, 2, 3, 5, 10)),
        stage.map(range(21, 27), terms=plan),
        stage.map(range(41, 47), chunk=3, terms=plan),
        stage.map(range(61, 67), unit=3, terms=patient),
        stage.batch(IMapIterator(stage.dispatcher, None), [81, 90, 82], fed=True, terms=patient),
    ]
    for worker in 2 * stage.workers:  # they come up, and take what there is
        worker.go_on()
        stage.enter()
    next(worker for worker in stage.workers if worker._units).die_within_a_unit()
    stage.run()
    stage.ran.clear()  # what runs again with the one that failed or died depends on the packets
    return [outcome(each) for each in results]


def overruns(stage: Stage) -> Any:
    """A unit goes beyond its soft limit and its limit, another is cancelled while it runs; neither takes any notice."""
    late = stage.call(stage.result(), 1, terms=stage.limits(1, 2))
    cancelled = stage.call(stage.result(), 2)
    behind = stage.map(range(1, 9))
    dispatcher = stage.dispatcher
    for _ in range(10):
        for worker in stage.workers:
            packet = dispatcher.scheduler.packets.get(worker._packet)
            if packet is not None and worker._units and dispatcher.calls.calls.get(packet.first) in (late, cancelled):
                worker.get_stuck(stage.clock.now)
            worker.go_on()
        stage.enter()
    stage.post(dispatcher.on_cancel_call, cancelled)
    for _ in range(5):
        stage.pass_time(1_000_000_000)
        stage.pass_time(PAUSE)
    engine = stage.engine
    stage.run()
    return [
        *(str(outcome(each)).partition(";")[0] for each in (late, cancelled)),
        outcome(behind),
        sorted({reason.name for _, _, reason in engine.struck}),
        len(set(engine.dumped)),
        len(set(engine.terminated)),
    ]


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


def sleepers(stage: Stage) -> Any:
    """Workers leave what they were sent lying, one and then both, and wake up."""
    stage.run()
    results = [stage.call(stage.result(), 1)]
    asleep = next(worker for worker in stage.workers if worker.queue)
    stage.pass_time(ASLEEP)
    (awake,) = (worker for worker in stage.workers if worker is not asleep)
    while awake.go_on():
        stage.enter()
    results += [stage.call(stage.result(), 2), stage.map(range(3, 7))]
    for _ in range(3):
        stage.pass_time(2 * ASLEEP)
    stage.run()
    results.append(stage.call(stage.result(), 7))
    stage.run()
    return [outcome(each) for each in results]


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


def deaths_in_vain(stage: Stage) -> Any:
    """Workers die one after another before they begin anything: for a while, and then for good."""
    stage.run()

    def kill_all() -> None:
        for worker in stage.workers:
            if not worker._up:
                worker.go_on()
            worker.end(-9)
            stage.enter()
        stage.pass_time(LONGEST_WAIT)

    for _ in range(4):
        kill_all()
    well = stage.call(stage.result(), 1)
    stage.run()
    call, batch = stage.call(stage.result(callbacks=True), 2), stage.map(range(1, 10), callbacks=True)
    for _ in range(20):
        kill_all()
    later = stage.call(stage.result(), 3)
    stage.run()
    stage.told[:] = [str(error).partition(" in ")[0] for error in stage.told]
    return [outcome(well), *(outcome(each).partition(" in ")[0] for each in (call, batch, later))]


def refused_workers(stage: Stage) -> Any:
    """The pool is to grow, and the system lets it only a little."""
    results = [stage.map(range(1, 99, 2)), stage.call(stage.result(), 1)]
    up = stage.workers
    for worker in up:
        worker.go_on()
    stage.post(stage.dispatcher.on_resize, 5)
    for _ in range(20):
        for worker in stage.workers:
            if worker not in up:
                worker.refuse("no more")
                stage.enter()
    stage.run()
    return [outcome(each) for each in results]


class Named:
    """A worker whose pid is asked for when something is logged of it."""

    def __init__(self, stage: Stage) -> None:
        self._told = stage.told

    @property
    def pid(self) -> int:
        """Note that it was asked for."""
        self._told.append("logged")
        return 1


def too_much_memory(stage: Stage) -> Any:
    """Workers hold too much at work, twice, and while idle; they are replaced, and that is logged once for each."""
    results = [stage.map(range(1, 99, 2)), *(stage.call(stage.result(), n) for n in range(1, 9))]
    for _ in range(3):
        for worker in stage.workers:
            worker.go_on()
            stage.enter()
    first, second = stage.workers
    for worker in (first, second, first):
        stage.post(stage.dispatcher.on_full, (worker.slot, Named(stage), MOST + 1))
    stage.run()
    idle = stage.workers[0]
    stage.post(stage.dispatcher.on_full, (idle.slot, Named(stage), MOST + 1))
    results.append(stage.call(stage.result(), 9))
    stage.run()
    assert not {first, second, idle} & {*stage.workers}
    assert stage.told == 3 * ["logged"]
    return [outcome(each) for each in results]


def nonsense(stage: Stage) -> Any:
    """A worker says twice that it is up, and is replaced."""
    first = stage.workers[0]
    first.go_on()
    stage.enter()
    stage.post(stage.dispatcher.on_up, first.slot)
    assert first not in stage.workers
    results = [stage.call(stage.result(), n) for n in range(1, 6)]
    stage.run()
    return [outcome(each) for each in results]


def shortages(stage: Stage) -> Any:
    """There is no room for a call for a while, and never for another."""
    make, refused = stage.engine.entry, {1, 2}

    def entry(slot: int, packet: int, body: Any) -> Any:
        if any(payload[1][0] in refused for payload in body.buffers if type(payload) is tuple):
            raise OSError("no room")
        return make(slot, packet, body)

    stage.engine.entry = entry  # type: ignore[method-assign]
    results = [stage.call(stage.result(), n) for n in (1, 3, 2, 4)]
    stage.pass_time(RETRY)
    refused.remove(1)
    for _ in range(5):
        stage.pass_time(RETRY)
        stage.run()
    for _ in range(2):
        stage.pass_time(SHORTAGE)
        stage.run()
    return [outcome(each) for each in results]


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


SCENARIOS: tuple[Scenario, ...] = (
    calls, maps, iterators, stealing, refusals, retries, overruns, deaths, sleepers, resizes, cancels,
    failing_initializers, deaths_in_vain, refused_workers, too_much_memory, nonsense, shortages, termination, breakdown,
)  # fmt: skip
