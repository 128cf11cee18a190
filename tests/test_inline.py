"""The inline engine under a dispatcher: who runs what, and interrupts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import pytest

from interruptions import Interrupted, Interruption
from pairpool._dispatch import Call, Dispatcher, WorkerPlan
from pairpool.engines.inline import InlineEngine
from pairpool.errors import InitializerError, WorkerLostError
from pairpool.results import AsyncResult
from scenarios import NoThread

PATIENCE = 30.0  # seconds after which a result that does not come is a failure, not a wait


class InlinePool:
    """The least of a face over the inline engine."""

    def __init__(self, initializer: Callable[..., object] | None = None) -> None:
        self.dispatcher = Dispatcher(InlineEngine(), WorkerPlan(initializer), 1, None)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> AsyncResult:
        """Submit a call."""
        result = AsyncResult(self.dispatcher, None, None, None)
        self.dispatcher.call(self.made(result, function, *arguments))
        return result

    def made(self, result: AsyncResult, function: Callable[..., Any], *arguments: Any) -> Call:
        """Make a call."""
        result._carry(*self.dispatcher.encoder.call(function, arguments, {}))
        return result


@pytest.fixture
def pool() -> Iterator[InlinePool]:
    """A pool that ends with the test."""
    pool = InlinePool()
    yield pool
    pool.dispatcher.terminate()
    pool.dispatcher.join()


def test_a_task_runs_on_the_thread_that_submits_it(pool: InlinePool) -> None:
    """A task has run when `submit` returns, in the same thread."""
    result = pool.submit(threading.get_ident)
    assert result.ready()
    assert result.get() == threading.get_ident()


def test_a_task_may_submit_another(pool: InlinePool) -> None:
    """A task that a task submits runs after it."""
    order: list[str] = []

    def first() -> AsyncResult:
        inner = pool.submit(order.append, "second")
        order.append("first")
        return inner

    pool.submit(first).get(PATIENCE).get(PATIENCE)
    assert order == ["first", "second"]


def test_one_task_runs_at_a_time(pool: InlinePool) -> None:
    """A task that another thread submits meanwhile runs afterwards, and its result comes."""
    begun, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        begun.set()
        go_on.wait(PATIENCE)
        order.append("first")

    thread = threading.Thread(target=lambda: pool.submit(first).get(PATIENCE))
    thread.start()
    begun.wait(PATIENCE)
    second = pool.submit(order.append, "second")
    assert not second.ready()
    go_on.set()
    second.get(PATIENCE)
    thread.join()
    assert order == ["first", "second"]


def test_an_interrupted_pool_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a handler strikes, every call ends: with its value, or, where it was struck, with a reason."""
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", NoThread)  # the callback thread's: the test does what it would do
        pool = InlinePool()
    ran: list[int] = []

    def double(item: int) -> int:
        ran.append(item)
        return 2 * item

    lost = 0
    for number in count():
        ran.clear()
        results = [AsyncResult(pool.dispatcher, None, None, None) for _ in range(3)]
        calls = [pool.made(result, double, item) for item, result in enumerate(results)]
        pool.dispatcher.calls.incoming.extend(calls)
        interruption = Interruption([number])
        interruption.watch(pool.dispatcher.drain)
        pool.dispatcher.drain()
        for item, result in enumerate(results):
            try:
                assert result.get(0) == 2 * item
            except (WorkerLostError, Interrupted):
                lost += 1
        assert len(set(ran)) == len(ran)
        if not interruption.struck:
            break
    assert sorted(ran) == [0, 1, 2]
    assert 0 < lost < number
    assert len(pool.dispatcher.scheduler.slots) == 1
    pool.dispatcher.terminate()


def time_out(*_: object) -> None:
    """Handle a signal."""
    raise TimeoutError("of the handler")


HANDLERS: dict[Any, type[BaseException]] = {time_out: TimeoutError, signal.default_int_handler: KeyboardInterrupt}


@pytest.mark.parametrize("handler", HANDLERS)
def test_an_initializer_that_is_struck_has_not_failed(monkeypatch: pytest.MonkeyPatch, handler: Any) -> None:
    """What the handler raises is the caller's, each time; and the next one who wants something has it run again."""
    strikes = 10  # more than initializers may fail

    def initialize() -> None:
        nonlocal strikes
        if strikes:
            strikes -= 1
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Thread", NoThread)  # the callback thread's
            pool = InlinePool(initialize)
        result = AsyncResult(pool.dispatcher, None, None, None)
        pool.dispatcher.calls.incoming.append(pool.made(result, abs, -1))
        while strikes:
            with pytest.raises(HANDLERS[handler]):
                pool.dispatcher.drain()
        pool.dispatcher.drain()
        assert result.get(0) == 1
        pool.dispatcher.terminate()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_initializer_that_raises_has_failed() -> None:
    """It is not asked for ever."""
    pool = InlinePool(partial(time_out, 1))
    with pytest.raises(InitializerError, match="of the handler"):
        pool.submit(abs, -1).get(PATIENCE)
    pool.dispatcher.terminate()
    pool.dispatcher.join()
