"""Waits that are interrupted by signal handlers and finalizers, and waits beside those of other threads.

What strikes is a plain call at the place where a signal handler may strike: where a thread begins to wait, or in the
midst of digesting.
"""

from __future__ import annotations

import select
import threading
from _thread import get_ident
from collections.abc import Callable
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any, cast

import pytest

import pairpool
from interruptions import Interrupted
from pairpool import _dispatch, _framing, _pump
from pairpool._waiting import Deadline
from receiving import PATIENCE
from tasks import Line, identity, wait_for

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]


def in_time(action: Callable[[], object]) -> None:
    """Do something that is to end; fail where it does not."""
    failed: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it never ended"
    if failed:
        raise failed[0]


def watch_for_sleep(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return what is set when a thread goes to sleep in a wait."""
    asleep = threading.Event()
    sleep = _dispatch._wait

    def tell_and_sleep(*args: Any) -> None:
        asleep.set()
        sleep(*args)

    monkeypatch.setattr(_dispatch, "_wait", tell_and_sleep)
    return asleep


def strike_within_wait(monkeypatch: pytest.MonkeyPatch, handler: Callable[[], object]) -> None:
    """Have something strike this thread when it next waits on channels."""
    wait_ready, struck = _framing.wait_ready, get_ident()
    handlers = [handler]

    def strike_and_wait(epoll: Any, spin: float, timeout: float | None) -> list[int]:
        if spin and handlers and get_ident() == struck:
            handlers.pop()()
        return wait_ready(epoll, spin, timeout)

    monkeypatch.setattr(_framing, "wait_ready", strike_and_wait)


def _apply(pool: Any) -> Any:
    return pool.apply(identity, (1,))


def _get_in_time(pool: Any) -> Any:
    return pool.apply_async(identity, (1,)).get(PATIENCE)


def _map(pool: Any) -> Any:
    return pool.map(identity, [1])[0]


def _imap(pool: Any) -> Any:
    return sum(pool.imap(identity, [1, 0, 0]))


def _submit(pool: Any) -> Any:
    return pool.submit(identity, 1).result()


@pytest.mark.parametrize("use", [_apply, _get_in_time, _map, _imap, _submit])
def test_a_handler_may_wait_again_and_again_for_the_pool_that_it_interrupts(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch, use: Callable[[Any], Any]
) -> None:
    """It receives for itself and for the wait that it interrupts; neither sleeps on what the other has taken."""
    gate = make_line()
    pool = make_pool(2)
    waited = pool.apply_async(wait_for, (gate,))
    got: list[int] = []

    def handler() -> None:
        got.extend((use(pool), use(pool)))
        gate.tell(b"x")
        while not waited.ready():
            got.append(use(pool))

    def wait() -> None:
        strike_within_wait(monkeypatch, handler)
        assert waited.get() == b"x"

    in_time(wait)
    assert set(got) == {1}


def test_a_handler_may_strike_within_the_wait_of_a_handler(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waits nest, and each is ended by its own result."""
    lines = [make_line() for _ in range(3)]
    pool = make_pool(3)
    waited = [pool.apply_async(wait_for, (line,)) for line in lines]
    got: list[bytes] = []

    def handle(depth: int) -> None:
        if depth == len(lines):
            for line in lines:
                line.tell(b"x")
            return
        strike_within_wait(monkeypatch, lambda: handle(depth + 1))
        got.append(waited[depth].get())

    in_time(lambda: handle(0))
    assert got == [b"x"] * 3


def test_a_handler_may_wait_for_a_thread_that_waits(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody receives for the others while the thread that did so is held up."""
    gate = make_line()
    pool = make_pool(2)
    waited = pool.apply_async(wait_for, (gate,))

    def handler() -> None:
        for _ in range(3):
            in_time(lambda: _apply(pool))
        gate.tell(b"x")
        in_time(waited.get)  # what ends this wait kicks the thread that is held up as well
        in_time(lambda: _apply(pool))

    def wait() -> None:
        strike_within_wait(monkeypatch, handler)
        assert waited.get() == b"x"

    in_time(wait)


def test_whoever_pumps_next_keeps_nobody_waiting_either(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who wait already are watched for, also when another thread begins to pump and is held up."""
    first, second, third = (make_line() for _ in range(3))
    pool = make_pool(3)
    waited = pool.apply_async(wait_for, (second,))
    asleep = watch_for_sleep(monkeypatch)
    pumping = threading.Event()
    sleeper = threading.Thread(target=waited.get, daemon=True)

    def pump_first() -> None:
        strike_within_wait(monkeypatch, pumping.set)
        pool.apply(wait_for, (first,))

    pumper = threading.Thread(target=pump_first, daemon=True)
    pumper.start()
    assert pumping.wait(PATIENCE)
    sleeper.start()
    assert asleep.wait(PATIENCE)
    first.tell(b"x")
    pumper.join(PATIENCE)

    def handler() -> None:
        second.tell(b"x")
        in_time(sleeper.join)
        third.tell(b"x")

    def wait() -> None:
        strike_within_wait(monkeypatch, handler)
        pool.apply(wait_for, (third,))

    in_time(wait)


def test_a_handler_may_cancel_what_it_keeps_waiting(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that it strikes has to be woken, though it is the one that cancels."""
    gate = make_line()
    pool = make_pool(1)
    running = pool.submit(wait_for, gate)
    future = [pool.submit(identity, item) for item in range(100)][-1]

    def wait() -> None:
        strike_within_wait(monkeypatch, future.cancel)
        with pytest.raises(CancelledError):
            future.result()

    in_time(wait)
    gate.tell(b"x")
    assert running.result(PATIENCE) == b"x"


def test_one_thread_pumps_at_a_time(make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would take each other's kicks. One that is overtaken while it enters is refused."""
    gate = make_line()
    pool = make_pool(1)
    engine = pool._dispatcher.engine
    pumping = threading.Event()
    threads: list[threading.Thread] = []

    def overtake() -> None:
        strike_within_wait(monkeypatch, pumping.set)
        pool.apply(wait_for, (gate,))

    class Late(Deadline):
        """Lets another thread pump before the one that makes the first of these."""

        def __init__(self, timeout: float | None) -> None:
            if not threads:
                threads.append(threading.Thread(target=overtake, daemon=True))
                threads[0].start()
                assert pumping.wait(PATIENCE)
            super().__init__(timeout)

    monkeypatch.setattr(_pump, "Deadline", Late)
    assert not engine.pump(lambda: False, [], 0)
    gate.tell(b"x")
    in_time(threads[0].join)


def test_a_handler_that_has_waited_keeps_nobody_else_waiting(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a wait of its own others are watched for as before."""
    gate, second = make_line(), make_line()
    pool = make_pool(2)
    waited, other = pool.apply_async(wait_for, (gate,)), pool.apply_async(wait_for, (second,))
    asleep = watch_for_sleep(monkeypatch)
    sleeper = threading.Thread(target=other.get, daemon=True)

    def handler() -> None:
        sleeper.start()
        assert asleep.wait(PATIENCE)
        waited.wait(0)
        second.tell(b"x")
        in_time(sleeper.join)
        gate.tell(b"x")

    def wait() -> None:
        strike_within_wait(monkeypatch, handler)
        assert waited.get() == b"x"

    in_time(wait)


def test_whoever_receives_may_be_struck_while_a_worker_is_buried(make_pool: MakePool) -> None:
    """A handler wants the lock of whoever buries, who therefore must not want to receive."""
    pool = make_pool(1)
    engine = pool._dispatcher.engine
    bury, buries, receives = engine._bury, threading.Event(), threading.Event()

    def bury_late(handle: Any) -> None:
        buries.set()
        assert receives.wait(PATIENCE)
        bury(handle)

    engine._bury = bury_late
    pool._pool[0].kill()
    assert buries.wait(PATIENCE)

    def receive_and_be_struck() -> None:
        with engine._pump.receiving:
            receives.set()
            pool.apply_async(identity, (1,))

    in_time(receive_and_be_struck)
    del engine._bury
    assert pool.apply(identity, (1,)) == 1


# -- In the midst of digesting -----------------------------------------------------------------------


@pytest.fixture(params=["processes", "threads"])
def pool(request: pytest.FixtureRequest, make_pool: MakePool) -> Any:
    """Make a pool of either kind."""
    return make_pool(1) if request.param == "processes" else pairpool.ThreadPool(1)


def strike_within_digest(pool: Any, monkeypatch: pytest.MonkeyPatch, handler: Callable[[], object]) -> None:
    """Have something strike this thread the next time that it digests."""
    dispatcher = pool._dispatcher
    choose, struck = dispatcher.scheduler.choose, get_ident()
    handlers = [handler]

    def strike_and_choose() -> Any:
        if handlers and get_ident() == struck:
            handlers.pop()()
        return choose()

    monkeypatch.setattr(dispatcher.scheduler, "choose", strike_and_choose)


def test_a_wait_that_could_not_end_is_refused(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever strikes a thread that holds the lock may ask for what he wants, and not wait for it."""
    asked = []

    def handler() -> None:
        asked.append(pool.apply_async(identity, (1,)))
        with pytest.raises(pairpool.PairpoolError, match="cannot wait for a pool in whose midst it strikes"):
            asked[0].get()

    def use() -> None:
        strike_within_digest(pool, monkeypatch, handler)
        assert pool.apply(identity, (2,)) == 2
        assert asked[0].get() == 1

    in_time(use)
    pool.close()
    pool.join()


def test_terminate_asks_for_the_end_where_it_cannot_await_it(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool ends as soon as the handler has returned."""

    def use() -> None:
        strike_within_digest(pool, monkeypatch, pool.terminate)
        with pytest.raises(pairpool.PoolTerminatedError):
            pool.apply(identity, (1,))
        pool.join()

    in_time(use)


def test_a_signal_that_is_too_early_for_a_sleep_is_seen_soon(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first sleep of a wait is short; the next is not."""
    gate = make_line()
    pool = make_pool(1)
    pool.apply(identity, (1,))
    result = pool.apply_async(wait_for, (gate,))
    wait_ready, sleeps = _framing.wait_ready, []

    def note_and_wait(epoll: Any, spin: float, timeout: float | None) -> list[int]:
        if spin:
            sleeps.append(timeout)
            if len(sleeps) == 2:
                gate.tell(b"x")
        return wait_ready(epoll, spin, timeout)

    monkeypatch.setattr(_framing, "wait_ready", note_and_wait)
    result.wait()
    assert sleeps[0] == _pump.SETTLE
    assert sleeps[1] is None or sleeps[1] > _pump.SETTLE


def test_who_only_looks_does_not_spin(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait without patience ends at once."""
    gate = make_line()
    pool = make_pool(1)
    result = pool.apply_async(wait_for, (gate,))
    wait_ready, spins = _framing.wait_ready, set[float]()

    def note_and_wait(epoll: Any, spin: float, timeout: float | None) -> list[int]:
        spins.add(spin)
        return wait_ready(epoll, spin, timeout)

    monkeypatch.setattr(_framing, "wait_ready", note_and_wait)
    result.wait(0)
    assert spins == {0.0}
    gate.tell(b"x")
    assert result.get(PATIENCE) == b"x"


def test_an_interrupt_comes_out_where_the_pool_ends_meanwhile() -> None:
    """The I/O thread may be through just as who pumped leaves, who then closes what they had in common."""
    pump = _pump.Pump(cast("Any", SimpleNamespace(waiters=1)), lambda: None)
    outer = pump.outer

    class Ending:
        """The I/O thread's epoll; when it is to look again that thread ends."""

        def modify(self, channels: select.epoll, events: int) -> None:
            if events:
                pump.stop()
                pump.release()
            outer.modify(channels, events)

        def close(self) -> None:
            outer.close()

    pump.outer = cast("Any", Ending())

    def interrupt_once() -> bool:
        if not outer.closed:
            raise Interrupted
        return True

    with pytest.raises(Interrupted):
        pump.pump(interrupt_once, [], None)
    assert outer.closed


def test_who_joins_is_woken_where_the_engine_ends_before_anybody_knows_that_it_shuts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """He was woken when it ended, looked, and went to sleep again before it was noted that it was told to."""
    pool = pairpool.ThreadPool(1)
    pool.apply(identity, (1,))
    dispatcher = pool._dispatcher
    shut, waits = dispatcher.engine.shut, threading.Event()

    def shut_and_end(*, kill: bool) -> None:
        monkeypatch.setattr(dispatcher, "engine_shut", lambda: None)  # whoever it wakes sleeps again
        shut(kill=kill)
        until_shut = threading.Event()
        while not dispatcher.engine.is_shut:
            until_shut.wait(0.001)

    def is_over() -> bool:
        waits.set()
        return bool(dispatcher.shutting and dispatcher.engine.is_shut)

    def join() -> None:
        dispatcher.wait(is_over, dispatcher.signals)

    monkeypatch.setattr(dispatcher.engine, "shut", shut_and_end)
    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    assert waits.wait(PATIENCE)
    pool.close()
    joining.join(PATIENCE)
    assert not joining.is_alive(), "it never ended"
    pool.join()
