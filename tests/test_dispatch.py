"""The dispatcher and what callers hold, step by step: the workers of scripted.py, on the test's thread."""

from __future__ import annotations

import enum
import functools
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

import tasks
from interruptions import Interrupted, Interruption
from pairpool import _iterators, results
from pairpool._codec import Definition, DefinitionKind, Encoder, Payload
from pairpool._feeder import CLOSED, Feeder
from pairpool._future import Future
from pairpool._iterators import IMapIterator, IMapUnorderedIterator
from pairpool._jobs import BatchJob
from pairpool._pacing import MAX_UNITS
from pairpool._prepared import Group, Prepared
from pairpool._states import SlotState
from pairpool._waiting import Signal
from scenarios import Stage, outcome

# -- Size ------------------------------------------------------------------------------------------


def test_a_pool_that_shrinks_and_grows_while_all_work_has_its_size_again(stage: Stage) -> None:
    """A worker that is to end after its task does not count: another is started for it."""
    result = stage.map([1, 2])
    for worker in stage.workers:
        worker.go_on()  # takes its packet
    stage.post(stage.dispatcher.on_resize, 1)
    stage.post(stage.dispatcher.on_resize, 2)
    states = [slot.state for slot in stage.dispatcher.scheduler.slots.values()]
    assert states.count(SlotState.RETIRING) == 1
    assert len(states) == 3
    stage.run()
    assert outcome(result) == [2, 4]
    assert len(stage.workers) == 2


# -- Iterators -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [IMapIterator, IMapUnorderedIterator])
def test_threads_that_share_an_iterator_share_its_results(
    stage: Stage, kind: type[IMapIterator[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another thread takes a result while one unpickles it, that one goes on to the next."""
    iterator = stage.batch(kind(stage.dispatcher, None), range(1, 6))
    stage.run()
    taken_by_another: list[Any] = []
    decode_all = results.decode_all

    def decode_while_another_takes(*raw: Any) -> Any:
        monkeypatch.setattr(_iterators, "decode_all", decode_all)
        taken_by_another.append(iterator.next(0))
        return decode_all(*raw)

    monkeypatch.setattr(_iterators, "decode_all", decode_while_another_takes)
    taken = [iterator.next(0)]
    assert sorted(taken_by_another + taken + list(iterator)) == [2, 4, 6, 8, 10]
    assert len(taken_by_another) == 1


_loaded: list[int] = []


def load_and_note(number: int) -> int:
    """Load a result, which somebody notices."""
    _loaded.append(number)
    return number


class Loaded:
    """A result that is loaded by a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = function, arguments

    def __reduce__(self) -> Any:
        return self._reduced


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_what_a_result_runs_when_it_is_loaded_runs_when_it_is_asked_for(make_pool: Any, method: str) -> None:
    """Not before, with those that came along with it: it may take long, or raise."""
    pool = make_pool(1)
    _loaded.clear()
    results = getattr(pool, method)(functools.partial(Loaded, load_and_note), range(50))
    for number in range(50):
        assert next(results) == number
        assert _loaded == list(range(number + 1))


def test_a_task_that_raises_stop_iteration_does_not_end_the_loop(stage: Stage) -> None:
    """Its error comes as a RuntimeError, and the results after it come, too."""

    def stop_at_two(item: int) -> int:
        if item == 2:
            raise StopIteration(item)
        return item

    stage.double = stop_at_two  # type: ignore[method-assign]
    iterator = stage.batch(IMapIterator(stage.dispatcher, None), [1, 2, 3])
    stage.run()
    assert iterator.next(0) == 1
    with pytest.raises(RuntimeError, match="a task raised StopIteration") as caught:
        iterator.next(0)
    assert isinstance(caught.value.__cause__, StopIteration)
    assert list(iterator) == [3]


# -- Definitions -----------------------------------------------------------------------------------


def test_no_interrupt_strikes_where_a_definition_is_dropped(stage: Stage) -> None:
    """Python would swallow it in a finalizer; and workers would not be told."""
    dispatcher = stage.dispatcher
    definitions = [Definition(1 << 60, DefinitionKind.BY_VALUE, Payload(b""))]
    dispatcher.delivered.watch(definitions[0])
    interruption = Interruption()
    interruption.watch(definitions.clear)
    assert interruption.passed == []
    assert [reference.key for reference in dispatcher.delivered.gone] == [1 << 60]


def test_what_an_item_took_is_known_to_the_next_job_of_its_function(stage: Stage) -> None:
    """So it need not find out again how many go into a packet."""
    definition = Definition(1 << 60, DefinitionKind.BY_VALUE, Payload(b""))

    def make(unit: int) -> BatchJob:
        sink: Any = None
        return BatchJob(
            stage.dispatcher.encoder, definition, sink, items=[], unit=unit, chunk=1, star=False, visible=True
        )

    first, never_ran = make(5), make(5)
    assert (first.plan.unit_ns, first.plan.grown) == (0, 1)
    first.plan.unit_ns = 5000
    first.close()
    never_ran.close()
    following = make(3)
    assert (following.plan.unit_ns, following.plan.grown) == (3000, MAX_UNITS)


# -- Waiting ---------------------------------------------------------------------------------------


class Leaving(Signal):
    """The signal of a waiter that is gone as soon as it is woken."""

    def __init__(self, signals: list[Any]) -> None:
        super().__init__()
        self._signals = signals
        self.was_set = False

    def set(self) -> None:
        self.was_set = True
        self._signals.remove(self)


@pytest.mark.parametrize("make", [Stage.result, lambda stage: Future(stage.dispatcher, None)], ids=["result", "future"])
def test_every_waiter_is_woken(stage: Stage, make: Any) -> None:
    """Of several threads that wait for one result each is woken, also where the first leaves meanwhile."""
    result = make(stage)
    waiters = [Leaving(result.signals) for _ in range(3)]
    result.signals.extend(waiters)
    stage.call(result, 1)
    stage.run()
    assert [waiter.was_set for waiter in waiters] == [True] * 3


def test_what_an_interrupted_waiter_received_is_digested_in_his_stead(
    make_pool: Any, make_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that raises between receiving and digesting wakes the I/O thread, which goes on with it."""
    line, told = make_line(), make_line()
    pool = make_pool(1)
    pool.apply(tasks.identity, (1,))
    dispatcher, engine = pool._dispatcher, pool._dispatcher.engine
    result = pool.apply_async(tasks.wait_for, (line,), callback=told.tell)
    receive = engine._pump.receive

    def receive_and_be_interrupted() -> None:
        monkeypatch.undo()
        line.tell(b"x")
        while not dispatcher.events:
            receive()
        raise Interrupted

    monkeypatch.setattr(engine._pump, "receive", receive_and_be_interrupted)
    with pytest.raises(Interrupted):
        result.wait(0)
    assert told.await_told() == b"x"  # nobody here waits for it any more


# -- Futures ---------------------------------------------------------------------------------------


def test_who_waits_for_a_future_learns_that_it_is_cancelled(make_pool: Any, make_line: Any) -> None:
    """`result()` raises CancelledError when another thread cancels, also where a third one receives for all."""
    gate = make_line()
    pool = make_pool(1)
    running = pool.submit(tasks.wait_for, gate)
    future = pool.submit(tasks.identity, 1)
    seen: list[BaseException | None] = []

    def wait() -> None:
        with suppress(CancelledError):
            future.result()
            return
        seen.append(None)

    threads = [threading.Thread(target=running.result), threading.Thread(target=wait)]
    for thread, awaited in zip(threads, (running, future), strict=True):
        thread.start()
        while not awaited.signals:
            time.sleep(0.001)
    assert future.cancel()
    threads[1].join(60)
    assert seen == [None]
    gate.tell(b"x")
    threads[0].join(60)


def test_two_threads_may_cancel_a_future(stage: Stage) -> None:
    """Each is told that it is cancelled, and callbacks run once."""
    told: list[Any] = []

    class Twice(Future[Any]):
        def set_running_or_notify_cancel(self) -> bool:
            told.append(self.cancel())  # as another thread would, at this moment
            return super().set_running_or_notify_cancel()

    future = Twice(stage.dispatcher, None)
    future.add_done_callback(told.append)
    assert future.cancel()
    assert told == [True, future]
    assert future.cancel()
    assert len(told) == 2
    stage.call(future, 1)
    stage.run()
    assert stage.ran == []


def exits_when_loaded_at_one(item: int) -> Any:
    """Return the item, or for 1 what raises SystemExit where it is unpickled."""
    return Loaded(sys.exit, 5) if item == 1 else item


def test_a_result_that_exits_when_it_is_loaded_ends_its_future(make_pool: Any) -> None:
    """Where a callback has it unpickled on our thread, the future ends with whatever that raises."""
    pool = make_pool(1)
    future = pool.submit(Loaded, sys.exit, 5)
    told = threading.Event()
    future.add_done_callback(lambda _: told.set())
    assert told.wait(60)
    assert isinstance(future.exception(60), SystemExit)
    assert pool.apply(abs, (-1,)) == 1


def test_an_iterator_gets_past_a_result_that_exits_when_it_is_loaded(make_pool: Any) -> None:
    """That is its outcome, as an error of the task is."""
    pool = make_pool(1)
    results = pool.imap(exits_when_loaded_at_one, range(3))
    assert results.next(60) == 0
    with pytest.raises(SystemExit):
        results.next(60)
    assert results.next(60) == 2
    with pytest.raises(StopIteration):
        results.next(60)


_strikes: list[int] = []  # signals that strike the main thread, at results that it loads


def load_and_be_struck(item: int) -> int:
    """Load a result; a signal handler strikes meanwhile."""
    if _strikes and threading.current_thread() is threading.main_thread():
        signal.raise_signal(_strikes.pop())
    return item


class Handler:
    """A signal handler that raises."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def __call__(self, *_: object) -> None:
        """Raise."""
        raise self._error

    handle = __call__


def function_that_raises(*_: object) -> None:
    """Raise, as a handler."""
    raise Interrupted


HANDLERS: dict[str, Any] = {
    "the default": (signal.default_int_handler, KeyboardInterrupt),
    "a function": (function_that_raises, Interrupted),
    "an object": (Handler(TimeoutError), TimeoutError),
    "a method": (Handler(SystemExit).handle, SystemExit),
    "a partial": (functools.partial(function_that_raises, 1), Interrupted),
}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("face", ["imap", "map_async", "apply_async", "submit"])
def test_what_a_handler_raises_is_no_outcome(make_pool: Any, face: str, handler: str) -> None:
    """It comes out of the call that it struck, however often, and the result is to be had afterwards."""
    pool = make_pool(1)
    make = functools.partial(Loaded, load_and_be_struck)
    get: Callable[[], Any]
    if face == "imap":
        get = pool.imap(make, [7]).__next__
    elif face == "submit":
        get = pool.submit(make, 7).result
    else:
        result = pool.map_async(make, [7]) if face == "map_async" else pool.apply_async(make, (7,))
        get = result.get
    function, error = HANDLERS[handler]
    before = signal.signal(signal.SIGINT, function)
    try:
        _strikes.extend([signal.SIGINT] * 3)
        for _ in range(3):
            with pytest.raises(error):
                get()
    finally:
        signal.signal(signal.SIGINT, before)
    assert get() == ([7] if face == "map_async" else 7)


class Colour(enum.Enum):
    """Something whose loading fails within a call of its class."""

    RED = 1


def test_what_loading_raises_is_an_outcome(make_pool: Any) -> None:
    """Also where it comes up in what a signal's number or default has something to do with."""
    results = make_pool(1).imap(call_it, [functools.partial(Loaded, Colour, 5), int])
    with pytest.raises(ValueError, match="5 is not a valid Colour"):
        results.next(60)
    assert results.next(60) == 0


_mine = threading.RLock()


def load_under_lock() -> None:
    """Take a lock that the caller's thread has, and fail: only that thread can find out."""
    with _mine:
        raise KeyboardInterrupt


def test_a_result_is_loaded_by_its_caller_and_nobody_else(make_pool: Any) -> None:
    """Others might wait for what he holds: locks, or modules that are being imported."""
    pool = make_pool(1)
    with _mine:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                pool.apply(Loaded, (load_under_lock,))
        results = pool.imap(call_it, [functools.partial(Loaded, load_under_lock), int])
        with pytest.raises(KeyboardInterrupt):
            results.next(60)
        assert results.next(60) == 0


def call_it(kind: Callable[[], Any]) -> Any:
    """Make one."""
    return kind()


def test_a_callback_that_exits_keeps_nobody_waiting(
    make_pool: Any, make_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for the future's result gets it."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    gate = make_line()
    pool = make_pool(1)
    future = pool.submit(tasks.wait_for, gate)
    future.add_done_callback(lambda _: sys.exit(3))
    got: list[bytes] = []
    waiter = threading.Thread(target=lambda: got.append(future.result(60)), daemon=True)
    waiter.start()
    while not pool._dispatcher.waiters:
        pass
    gate.tell(b"x")
    waiter.join(60)
    assert got == [b"x"]


class ExitsWhenPickled:
    """An item that raises SystemExit where it is pickled."""

    def __reduce__(self) -> Any:
        sys.exit(3)


@pytest.mark.parametrize("items", [[0, 1, ExitsWhenPickled(), 3], iter([0, 1, ExitsWhenPickled(), 3])])
def test_items_before_one_that_exits_have_their_results(make_pool: Any, items: Any) -> None:
    """The error comes in its own place, and is the last."""
    results = make_pool(1).imap(tasks.identity, items)
    assert [results.next(60), results.next(60)] == [0, 1]
    with pytest.raises(SystemExit):
        results.next(60)


# -- Feeders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit_ns", [0, 1], ids=["a pickle each", "in a group"])
@pytest.mark.parametrize("error", [Interrupted, OSError])
def test_a_handler_that_raises_while_a_feeder_pickles_makes_no_unit(error: type[BaseException], unit_ns: int) -> None:
    """It comes out wherever it strikes, and leaves only payloads of items, from the first."""

    def strike() -> None:
        raise error

    def feed() -> None:
        try:
            feeder.feed()
        except BaseException as struck:
            raised.append(type(struck))

    encoder, items = Encoder(), [[1], [2], [3]]
    expected = [Group(encoder.dumps_together(items), 3), CLOSED] if unit_ns else [*map(encoder.dumps, items), CLOSED]
    dispatcher: Any = SimpleNamespace(encoder=encoder, starving=False, drain=lambda: None)
    job: Any = SimpleNamespace(unit=1, prepared=Prepared(), plan=SimpleNamespace(unit_ns=unit_ns))
    interruption, number = Interruption(), 0
    while number == 0 or interruption.struck:
        raised: list[type[BaseException]] = []
        feeder = Feeder(dispatcher, job, items)
        interruption = Interruption([number], strike)
        interruption.watch(feed)
        number += 1
        assert raised == [error] * len(interruption.struck)
        assert feeder.fresh == expected[: len(feeder.fresh)]
    assert feeder.fresh == expected
    assert number > 20
