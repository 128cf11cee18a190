"""Items that are interrupted where they run: by a soft time limit, and when their future is cancelled."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

import pairpool
from interruptions import Interrupted
from pairpool import Retry, TaskCancelledError, TimeLimitError
from pairpool._handle import WorkerHandle
from pairpool._interrupts import Interrupts
from pairpool._packet import OUTCOMES_HEAD, Flag, Mode, OutcomeMode, Reason, Status
from pairpool._page import INTERRUPT_SIGNAL, Page
from pairpool._runner import Gate
from receiving import PATIENCE
from tasks import Line, identity, wait_for, worker_pid
from test_runner import Claims, run

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

BRIEF = 0.1  # seconds


# -- Who is struck, and when ------------------------------------------------------------------------


@pytest.fixture
def page() -> Any:
    """A page, with unit 2 of packet 7 running."""
    page = Page.create()
    page.begin(7, 5)
    while page.claim() < 2:
        pass
    yield page
    page.close()


@pytest.fixture
def gate(page: Page) -> Interrupts:
    """The gate of its worker."""
    return Interrupts(page)


@pytest.mark.parametrize(
    ("reason", "kind"), [(Reason.SOFT_LIMIT, TimeLimitError), (Reason.CANCELLED, TaskCancelledError)]
)
def test_the_unit_that_is_meant_is_struck_once(
    page: Page, gate: Interrupts, reason: Reason, kind: type[BaseException]
) -> None:
    """A signal may come twice: what the unit does about the first is not disturbed."""
    gate.armed = True
    page.interrupt(7, 2, page.read().started_ns, reason)
    with pytest.raises(kind):
        gate.strike(INTERRUPT_SIGNAL, None)
    gate.strike(INTERRUPT_SIGNAL, None)


def test_a_unit_that_went_on_after_its_soft_limit_can_be_cancelled(page: Page, gate: Interrupts) -> None:
    """It has been told something else."""
    gate.armed = True
    for reason, kind in ((Reason.SOFT_LIMIT, TimeLimitError), (Reason.CANCELLED, TaskCancelledError)):
        page.interrupt(7, 2, page.read().started_ns, reason)
        with pytest.raises(kind):
            gate.strike(INTERRUPT_SIGNAL, None)


@pytest.mark.parametrize(("packet", "unit", "later"), [(8, 2, 0), (7, 1, 0), (7, 3, 0), (7, 2, 1)])
def test_no_other_unit_is_struck(page: Page, gate: Interrupts, packet: int, unit: int, later: int) -> None:
    """What was meant is over, or has begun anew as the next item of a chunk."""
    gate.armed = True
    page.interrupt(packet, unit, page.read().started_ns + later, Reason.CANCELLED)
    gate.strike(INTERRUPT_SIGNAL, None)
    assert gate.armed


def test_a_signal_that_comes_too_early_is_not_lost(page: Page, gate: Interrupts) -> None:
    """The unit is claimed, but what is raised would not be its outcome yet."""
    page.interrupt(7, 2, page.read().started_ns, Reason.CANCELLED)
    gate.strike(INTERRUPT_SIGNAL, None)
    assert gate.missed
    gate.armed = True
    with pytest.raises(TaskCancelledError):
        gate.look()
    assert not gate.missed


class Struck(Gate):
    """Strikes before each unit that it is told of."""

    def __init__(self, *units: int) -> None:
        self.units = units
        self.looked = 0
        self.missed = True

    def look(self) -> None:
        """Strike, or not."""
        self.looked += 1
        if self.looked - 1 in self.units:
            raise TimeLimitError("now")


@pytest.mark.parametrize(
    ("mode", "flags"),
    [
        (Mode.SHARED, Flag.INTERRUPTED),
        (Mode.SEPARATE, Flag.INTERRUPTED),
        (Mode.SEPARATE, Flag.VISIBLE),
    ],
)
def test_what_strikes_is_the_outcome_of_its_unit_alone(mode: int, flags: int) -> None:
    """Others of its packet are what they would be; between units the gate is shut."""
    gate = Struck(1)
    statuses, payloads = b"", []
    for _, (head, *rest) in run(identity, [10, 11, 12], Claims(0, 1, 2), mode, flags, gate):
        assert OUTCOMES_HEAD.unpack(head)[0] == OutcomeMode.SEPARATE
        statuses += rest[0]
        payloads += rest[1:]
    assert list(statuses) == [Status.OK, Status.ERROR, Status.OK]
    assert (payloads[0], payloads[2]) == (10, 12)
    assert not gate.armed


# -- Soft time limits -------------------------------------------------------------------------------


def sleep_on(_: Any = None) -> None:
    """Do nothing for ever."""
    time.sleep(10_000)


def tidy_up(_: Any = None) -> str:
    """Do nothing for ever, but return something when that takes too long."""
    try:
        time.sleep(10_000)
    except TimeLimitError as error:
        return str(error)
    return ""


def sleep_for(seconds: float) -> float:
    """Do nothing for so long."""
    time.sleep(seconds)
    return seconds


FACES: dict[str, Callable[[Any], Any]] = {
    "apply": lambda pool: pool.apply(tidy_up),
    "submit": lambda pool: pool.submit(tidy_up).result(PATIENCE),
    "map": lambda pool: pool.map(tidy_up, [1])[0],
    "starmap": lambda pool: pool.starmap(tidy_up, [(1,)])[0],
    "map in chunks": lambda pool: pool.map(tidy_up, [1, 2], 2)[1],
    "imap": lambda pool: next(pool.imap(tidy_up, [1, 2, 3])),
    "imap in chunks": lambda pool: list(pool.imap(tidy_up, [1, 2, 3], 3))[2],
}


@pytest.mark.parametrize("face", FACES)
def test_an_item_may_tidy_up_at_its_soft_limit(make_pool: MakePool, face: str) -> None:
    """It is told by an exception; what it returns is its result, and its worker lives on."""
    pool = make_pool(1, soft_time_limit=BRIEF)
    before = pool.apply(worker_pid)
    assert "longer than its soft time limit" in FACES[face](pool)
    assert pool.apply_async(worker_pid).get(PATIENCE) == before


def test_an_item_that_does_nothing_about_it_ends_with_it(make_pool: MakePool, start_method: str) -> None:
    """The error says where it was, as any error of a task does."""
    pool = make_pool(1, start_method=start_method)
    pool.apply(sleep_for, (0,))  # importing this module takes its time, too
    pool = pool.options(soft_time_limit=BRIEF)
    with pytest.raises(TimeLimitError) as overrun:
        pool.apply(sleep_on)
    assert isinstance(overrun.value, TimeoutError)
    assert "sleep_on" in str(overrun.value.__cause__)


def test_only_the_item_that_takes_long_is_told(make_pool: MakePool) -> None:
    """Those before and behind it, of its packet, are not; nor those of a chunk that all together take as long."""
    pool = make_pool(1, soft_time_limit=10 * BRIEF)
    results = pool.imap(sleep_for, [0, BRIEF, 10_000, 0, BRIEF])
    ends: list[Any] = []
    for _ in range(5):
        try:
            ends.append(results.next(PATIENCE))
        except TimeLimitError:
            ends.append("over")
    assert ends == [0, BRIEF, "over", 0, BRIEF]
    assert pool.map(sleep_for, [BRIEF] * 12, 12) == [BRIEF] * 12


def test_only_the_call_that_takes_long_is_told(make_pool: MakePool) -> None:
    """Also where others are in its packet, as they are where they were made while the worker was busy."""
    pool = make_pool(1, soft_time_limit=3 * BRIEF)
    calls = [pool.apply_async(sleep_for, (seconds,)) for seconds in (BRIEF, 0, 0, 0, 10_000, 0, 0, BRIEF)]
    assert [calls[number].get(PATIENCE) for number in (0, 1, 2, 3)] == [BRIEF, 0, 0, 0]
    with pytest.raises(TimeLimitError):
        calls[4].get(PATIENCE)
    assert [call.get(PATIENCE) for call in calls[5:]] == [0, 0, BRIEF]


def test_a_call_amid_others_may_be_cancelled_while_it_runs(make_pool: MakePool, make_line: MakeLine) -> None:
    """It is told by an exception, and its worker lives on."""
    inside = make_line()
    pool = make_pool(1)
    pid = pool.apply(worker_pid)
    calls = [pool.submit(sleep_for, BRIEF), *[pool.submit(identity, number) for number in range(5)]]
    doomed = pool.submit(tell_and_sleep, inside)
    calls += [pool.submit(identity, number) for number in range(5)]
    inside.await_told()
    doomed.cancel(running=True)
    assert inside.await_told() == b"t"
    with pytest.raises(CancelledError):
        doomed.result(PATIENCE)
    assert [call.result(PATIENCE) for call in calls] == [BRIEF, *range(5), *range(5)]
    assert pool.apply(worker_pid) == pid


def tell_and_sleep(line: Line) -> None:
    """Say that it runs, and go on for ever, or say that it was told not to."""
    try:
        line.tell(b"i")  # from here on it may be told
        time.sleep(10_000)
    except TaskCancelledError:
        line.tell(b"t")


def ignore_it(line: Line) -> bytes:
    """Take no notice of a soft limit."""
    try:
        time.sleep(10_000)
    except TimeLimitError:
        line.tell(b"told")
    time.sleep(10_000)
    return b""


def test_who_takes_no_notice_meets_the_hard_limit(make_pool: MakePool, make_line: MakeLine) -> None:
    """In its time."""
    line = make_line()
    pool = make_pool(1, soft_time_limit=BRIEF, time_limit=20 * BRIEF)
    with pytest.raises(TimeLimitError, match="longer than its time limit of 2 s; its worker was killed"):
        pool.apply(ignore_it, (line,))
    assert line.await_told(4) == b"told"


def say_and_sleep_on(line: Line) -> None:
    """Say that it runs, and do nothing for ever."""
    line.tell(b"x")
    sleep_on()


def test_it_may_be_run_again(make_pool: MakePool, make_line: MakeLine) -> None:
    """As after any exception that is named."""
    line = make_line()
    pool = make_pool(1, soft_time_limit=10 * BRIEF, retry=Retry(1, (TimeLimitError,)))
    with pytest.raises(TimeLimitError, match="soft"):
        pool.apply(say_and_sleep_on, (line,))
    assert line.await_told(2) == b"xx"


# -- Cancelling what runs ---------------------------------------------------------------------------


def say_and_wait(line: Line) -> None:
    """Say that it runs, and say how it ends."""
    try:
        line.tell(b"x")
        time.sleep(10_000)
    except TaskCancelledError:
        line.tell(b"cancelled")
        raise


def test_what_runs_can_be_cancelled(make_pool: MakePool, make_line: MakeLine) -> None:
    """Its future is at once; the task is told, and its worker lives on."""
    line = make_line()
    pool = make_pool(1)
    before = pool.apply(worker_pid)
    told: list[Any] = []
    future = pool.submit(say_and_wait, line)
    future.add_done_callback(told.append)
    assert line.await_told(1) == b"x"
    assert not future.cancel()
    assert future.cancel(running=True)
    assert future.cancelled()
    assert told == [future]
    with pytest.raises(CancelledError):
        future.result()
    assert line.await_told(9) == b"cancelled"
    assert pool.apply_async(worker_pid).get(PATIENCE) == before
    assert future.cancel(running=True)


def miss_the_first(line: Line) -> None:
    """Have the first signal lost on the way, as one that comes between Python's look and a call that blocks."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {INTERRUPT_SIGNAL})
    try:
        line.tell(b"x")
        signal.sigwait({INTERRUPT_SIGNAL})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {INTERRUPT_SIGNAL})
        time.sleep(10_000)
    except (TaskCancelledError, TimeLimitError):
        line.tell(b"told")
        raise


def test_a_signal_that_comes_as_a_call_begins_to_block_is_repeated(make_pool: MakePool, make_line: MakeLine) -> None:
    """Python looks for signals before it enters a call that blocks, and none may be lost in between."""
    line = make_line()
    pool = make_pool(1)
    before = pool.apply(worker_pid)
    future = pool.submit(miss_the_first, line)
    assert line.await_told(1) == b"x"
    assert future.cancel(running=True)
    limited = pool.options(soft_time_limit=BRIEF).submit(miss_the_first, line)
    with pytest.raises(TimeLimitError):
        limited.result(PATIENCE)
    assert line.await_told(9) == b"toldxtold"
    assert pool.apply(worker_pid) == before


def test_it_is_the_same_with_every_start_method(make_pool: MakePool, start_method: str) -> None:
    """The worker is free again."""
    pool = make_pool(1, start_method=start_method)
    pool.apply(sleep_for, (0,))
    before = pool.apply(worker_pid)
    future = pool.submit(sleep_on)
    assert future.running()
    assert future.cancel(running=True)
    assert pool.apply_async(worker_pid).get(PATIENCE) == before


def test_what_was_handed_out_and_has_not_begun_never_begins(make_pool: MakePool, make_line: MakeLine) -> None:
    """It is taken back from its worker's queue; its neighbours run."""
    gate, said = make_line(), make_line()
    pool = make_pool(1)
    list(pool.map(identity, range(100), 1))  # short ones are sent ahead
    first = pool.submit(wait_for, gate)
    queued = [pool.submit(said.tell, bytes([number])) for number in range(4)]
    assert queued[1].cancel(running=True)
    gate.tell(b"g")
    assert first.result(PATIENCE) == b"g"
    for number in (0, 2, 3):
        queued[number].result(PATIENCE)
    assert said.await_told(3) == b"\0\2\3"
    with pytest.raises(CancelledError):
        queued[1].result()


def test_a_worker_that_is_not_known_yet_is_told_when_it_is(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may run its first task before the zygote's word of it was read."""
    known, take = threading.Event(), WorkerHandle.spawned

    def wait_and_take(handle: WorkerHandle, reply: Any) -> None:
        assert known.wait(PATIENCE)
        take(handle, reply)

    monkeypatch.setattr(WorkerHandle, "spawned", wait_and_take)
    line = make_line()
    future = make_pool(1).submit(say_and_wait, line)
    assert line.await_told(1) == b"x"
    assert future.cancel(running=True)
    known.set()
    assert line.await_told(9) == b"cancelled"


def test_whoever_waits_is_woken_before_callbacks_run(make_pool: MakePool, make_line: MakeLine) -> None:
    """A callback may wait for those."""
    line = make_line()
    future = make_pool(1).submit(say_and_wait, line)
    assert line.await_told(1) == b"x"

    def wait_for_it() -> None:
        with pytest.raises(CancelledError):
            future.result()

    waiting = [threading.Thread(target=wait_for_it) for _ in range(2)]
    for thread in waiting:
        thread.start()
    left: list[bool] = []

    def join_all(_: object) -> None:
        for thread in waiting:
            thread.join(PATIENCE)
            left.append(thread.is_alive())

    future.add_done_callback(join_all)
    assert future.cancel(running=True)
    assert left == [False, False]


def refuse_to_end(line: Line) -> None:
    """Take no notice of anything but SIGTERM, and say that."""
    signal.signal(signal.SIGTERM, lambda *_: line.tell(b"term"))
    try:
        line.tell(b"x")
        time.sleep(10_000)
    except TaskCancelledError:
        line.tell(b"told")
    while True:
        time.sleep(10_000)


def test_who_takes_no_notice_is_terminated_and_killed(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rung by rung; what others have in the pool runs elsewhere."""
    monkeypatch.setattr("pairpool._limits.GRACE", 50_000_000)
    line = make_line()
    pool = make_pool(1)
    before = pool.apply(worker_pid)
    future = pool.submit(refuse_to_end, line)
    assert line.await_told(1) == b"x"
    behind = pool.submit(worker_pid)
    assert future.cancel(running=True)
    assert line.await_told(4) == b"told"
    assert line.await_told(4) == b"term"
    assert behind.result(PATIENCE) != before


def test_a_cancelled_call_is_not_run_again(make_pool: MakePool, make_line: MakeLine) -> None:
    """Whatever may be said of errors."""
    line = make_line()
    pool = make_pool(1, retry=Retry(5, (BaseException,)))
    future = pool.submit(say_and_wait, line)
    assert line.await_told(1) == b"x"
    assert future.cancel(running=True)
    assert line.await_told(9) == b"cancelled"
    assert pool.apply_async(identity, (1,)).get(PATIENCE) == 1
    line.tell(b"last")
    assert line.await_told(4) == b"last"


def test_a_cancellation_that_was_interrupted_can_be_asked_for_again(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The future is cancelled already, but nobody has ended its task."""
    line = make_line()
    pool = make_pool(1)
    future = pool.submit(say_and_wait, line)
    assert line.await_told(1) == b"x"

    def strike(_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(pairpool.Future, "_invoke_callbacks", strike)
        dispatcher = pool._dispatcher
        patch.setattr(dispatcher, "on_cancel_call", lambda _: dispatcher.events.popleft())
        with pytest.raises(Interrupted):
            future.cancel(running=True)
        dispatcher.drain()
    assert future.cancelled()
    assert future.cancel(running=True)
    assert line.await_told(9) == b"cancelled"


def test_what_is_over_cannot_be_cancelled(make_pool: MakePool) -> None:
    """Its result stays."""
    pool = make_pool(1)
    future = pool.submit(identity, 1)
    assert future.result(PATIENCE) == 1
    assert not future.cancel(running=True)
    assert future.result() == 1


def test_a_call_that_a_thread_runs_cannot_be_cancelled(make_line: MakeLine) -> None:
    """Nothing ends a thread."""
    gate, line = make_line(), make_line()

    def say_and_wait_for() -> bytes:
        line.tell(b"x")
        return wait_for(gate)

    with pairpool.ThreadPool(1) as pool:
        future: Any = pool.submit(say_and_wait_for)
        assert line.await_told(1) == b"x"
        assert not future.cancel(running=True)
        gate.tell(b"g")
        assert future.result(PATIENCE) == b"g"


def test_a_cancel_that_comes_too_late_harms_nobody(make_pool: MakePool) -> None:
    """Many that end at the very moment: every other result is right, and no worker is lost."""
    pool = make_pool(2)
    pids = {worker.pid for worker in pool._pool}
    for _ in range(200):
        futures = [pool.submit(os.getpid) for _ in range(4)]
        futures[0].cancel(running=True)
        assert {future.result(PATIENCE) for future in futures[1:]} <= pids
    assert {worker.pid for worker in pool._pool} == pids
