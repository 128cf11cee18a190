"""Items that take longer than they may: when that is seen, and what becomes of them, of their workers and of others."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import pairpool
from interruptions import Interrupted
from pairpool import Retry, TimeLimitError
from pairpool._limits import GRACE, PAUSE, UNHURRIED, Limits
from pairpool._packet import Flag, Mode, Reason
from pairpool._states import Job, Packet, Slot, SlotState
from pairpool._terms import Terms
from receiving import PATIENCE
from scenarios import Stage
from tasks import Line, identity, wait_for, worker_pid
from test_runner import Claims, run
from test_waiting import strike_within_wait
from zygotes import has_ended, stop_process

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

LIMIT = 1000  # ns
BRIEF = 0.1  # seconds: more than a task here takes that is to stay within it


# -- When it is looked ------------------------------------------------------------------------------


class Watched:
    """A worker that is at something, and what is done to it."""

    def __init__(self) -> None:
        self.at: tuple[int, int, int] | None = None
        self.done: list[str] = []

    @property
    def receives_here(self) -> bool:
        """Nobody is interrupted as he receives."""
        return False

    def mark(self, _: int) -> tuple[int, int, int] | None:
        """What it is at."""
        return self.at

    def has_taken(self, _: int, packet: int) -> bool:
        """Nobody asks."""
        raise AssertionError

    def exchange(self, *_: Any) -> None:
        """Nothing is sent here."""
        raise AssertionError

    def interrupt(self, _: int, mark: tuple[int, int, int], reason: Reason) -> None:
        """Raise something in what it is at."""
        assert mark == self.at
        self.done.append(reason.name)

    def rouse(self, _: int) -> None:
        """Nobody is asleep here."""
        raise AssertionError

    def dump(self, _: int) -> None:
        """Ask for its stack."""
        self.done.append("dump")

    def terminate(self, _: int) -> None:
        """Ask it to end."""
        self.done.append("terminate")

    def kill(self, _: int) -> None:
        """End it."""
        self.done.append("kill")


def slot_with(*limits: int) -> Slot:
    """Make a slot with packets 1, 2 ... of ten units, each with a limit."""
    slot, job = Slot(7, None), Job(1, visible=True)
    for ident, limit in enumerate(limits, 1):
        slot.packets[ident] = Packet(
            ident, job, slot, 10 * ident, 10, 0, 0, frozenset(), (), retries=False, limit=limit
        )
    return slot


@pytest.fixture
def watched() -> Watched:
    """A worker."""
    return Watched()


SOFT: dict[int, int] = {3: LIMIT // 2}  # ns, by unit within its packet


@pytest.fixture
def limits(watched: Watched) -> Limits:
    """Limits that are those of the packets, and some that are soft."""

    def terms_of(packet: Packet, unit: int) -> Any:
        return SimpleNamespace(limit_ns=packet.limit, soft_limit_ns=SOFT.get(unit - packet.first, 0))

    return Limits(watched, terms_of, lambda _: watched.done.append("close"))


def test_nothing_is_looked_at_without_a_limit(limits: Limits) -> None:
    """What may take as long as it likes costs nothing."""
    limits.watch(0, 5)
    assert limits.look_at is None
    limits.watch(LIMIT, 5)
    limits.look([slot_with(0)], 5 + LIMIT)
    assert limits.look_at is None


def test_the_first_that_may_be_late_is_looked_at_first(limits: Limits) -> None:
    """And not before it may be."""
    limits.watch(LIMIT, 100)
    limits.watch(LIMIT, 50)
    limits.watch(LIMIT, 200)
    assert limits.look_at == 50 + LIMIT


def test_time_counts_from_where_a_unit_began(limits: Limits, watched: Watched) -> None:
    """One that began later is looked at when it may be late, to the nanosecond."""
    slot = slot_with(LIMIT)
    limits.watch(LIMIT, 0)
    watched.at = (1, 4, 700)
    limits.look([slot], LIMIT)
    assert limits.look_at == 700 + LIMIT
    assert watched.done == []


def test_a_limit_is_forgotten_with_the_last_that_has_one(stage: Stage) -> None:
    """Nobody looks, or wakes up, for what has ended."""
    stage.call(stage.result(), 1, terms=Terms(None, 1.0, None, stage.dispatcher.encoder.definition))
    assert stage.dispatcher.look_at is not None
    stage.run()
    assert stage.dispatcher.look_at is None


@pytest.mark.parametrize("at", [None, (2, 0, 0), (99, 0, 0)])
def test_what_has_no_limit_may_run_before(limits: Limits, watched: Watched, at: tuple[int, int, int] | None) -> None:
    """A unit behind it begins when that is over, and is not late a limit from now."""
    limits.watch(LIMIT, 0)
    watched.at = at
    limits.look([slot_with(LIMIT, 0)], 5 * LIMIT)
    assert limits.look_at == 5 * LIMIT + UNHURRIED  # not as often as so short a limit would have it
    limits.look([slot_with(2 * UNHURRIED, 0)], limits.look_at)
    assert limits.look_at == 5 * LIMIT + 3 * UNHURRIED
    assert watched.done == []


def test_an_overrun_costs_the_worker_after_its_stack(limits: Limits, watched: Watched) -> None:
    """It has a moment to write that down; what it is killed for is known afterwards, and forgotten with it."""
    slot = slot_with(LIMIT)
    limits.watch(LIMIT, 0)
    watched.at = (1, 4, 0)
    limits.look([slot], LIMIT)
    assert watched.done == ["dump", "close"]
    limits.look([slot], LIMIT + PAUSE - 1)
    assert watched.done == ["dump", "close"]
    limits.look([slot], LIMIT + PAUSE)
    assert watched.done == ["dump", "close", "kill"]
    assert limits.look_at is None
    assert limits.was_killed_for(7, 1, 4)
    assert not limits.was_killed_for(7, 1, 3)
    limits.forget(7)
    assert not limits.was_killed_for(7, 1, 4)


def test_a_kill_that_is_interrupted_is_done_again(
    limits: Limits, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whatever its worker ends of, it was for that."""
    slot = slot_with(LIMIT)
    limits.watch(LIMIT, 0)
    watched.at = (1, 4, 0)
    limits.look([slot], LIMIT)

    def strike(_: int) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(watched, "kill", strike)
        with pytest.raises(Interrupted):
            limits.look([slot], LIMIT + PAUSE)
    assert limits.was_killed_for(7, 1, 4)
    limits.look([slot], LIMIT + PAUSE)
    assert watched.done == ["dump", "close", "kill"]


def test_a_late_look_leaves_the_worker_its_moment(limits: Limits, watched: Watched) -> None:
    """Nobody looked for a long time: it has all of the pause after it was asked."""
    slot = slot_with(LIMIT)
    limits.watch(LIMIT, 0)
    watched.at = (1, 3, 0)
    late = LIMIT + 10 * PAUSE
    limits.look([slot], late)
    assert watched.done == ["SOFT_LIMIT", "dump", "close"]
    assert limits.look_at == late + PAUSE


def test_a_soft_limit_comes_before_the_other(limits: Limits, watched: Watched) -> None:
    """Once, and of the unit that has one."""
    slot = slot_with(LIMIT)
    limits.watch(LIMIT // 2, 0)
    watched.at = (1, 3, 0)
    for now in (LIMIT // 2 - 1, LIMIT // 2, LIMIT // 2 + 1):
        limits.look([slot], now)
    assert watched.done == ["SOFT_LIMIT"]
    assert limits.look_at == LIMIT
    watched.at = (1, 4, LIMIT)
    limits.look([slot], LIMIT)
    assert limits.look_at == 2 * LIMIT
    assert watched.done == ["SOFT_LIMIT"]


def test_a_cancelled_unit_is_asked_ever_more_firmly(limits: Limits, watched: Watched) -> None:
    """Its limits do not matter any more; before a signal nothing else can begin in its place."""
    slot = slot_with(LIMIT)
    watched.at = (1, 3, 5)
    limits.cancel(slot.packets[1], 3, 100)
    rungs = ["CANCELLED", "CANCELLED", "close", "terminate", "kill"]
    times = [100, 100 + PAUSE, 100 + GRACE, 100 + GRACE + PAUSE, 100 + 2 * GRACE + PAUSE]
    for number, now in enumerate(times):
        assert limits.look_at == now
        limits.look([slot], now - 1)
        limits.look([slot], now)
        assert watched.done == rungs[: number + 1]
    assert limits.look_at is None


def test_a_cancelled_unit_that_has_not_begun_is_waited_for(limits: Limits, watched: Watched) -> None:
    """It may begin before it is taken back; the one that runs is left alone, and so is one after it.

    Nothing is kept of what is over.
    """
    slot = slot_with(0)
    watched.at = (1, 2, 5)
    limits.cancel(slot.packets[1], 3, 100)
    limits.look([slot], 100)
    watched.at = (1, 3, 100)
    limits.look([slot], 99 + UNHURRIED)
    assert watched.done == []
    limits.look([slot], 100 + UNHURRIED)
    watched.at = (1, 4, 200 + UNHURRIED)
    limits.look([slot], 100 + UNHURRIED + GRACE)
    assert watched.done == ["CANCELLED"]
    assert limits._cancelled
    limits.look([slot_with()], 100 + 2 * UNHURRIED + GRACE)
    assert not limits._cancelled
    watched.at = (1, 3, 0)
    limits.watch(LIMIT, 0)
    limits.look([slot], 10 * GRACE)
    assert watched.done == ["CANCELLED"]


def test_a_unit_that_ends_while_its_stack_is_written_is_spared(limits: Limits, watched: Watched) -> None:
    """The next one has all its time."""
    slot = slot_with(LIMIT)
    limits.watch(LIMIT, 0)
    watched.at = (1, 3, 0)
    limits.look([slot], LIMIT)
    watched.at = (1, 4, PAUSE + 5)
    limits.look([slot], LIMIT + PAUSE)
    assert "kill" not in watched.done
    assert not limits.was_killed_for(7, 1, 3)


def test_the_time_of_each_item_of_a_chunk_is_its_own() -> None:
    """The page is told when the next begins."""
    begun: list[int] = []

    class Page(Claims):
        def next_item(self) -> None:
            begun.append(len(begun))

    run(identity, [[1, 2, 3]], Page(0), Mode.CHUNKS, Flag.LIMITED)
    assert begun == [0, 1, 2]


# -- What becomes of them ------------------------------------------------------------------------------


def sleep_on() -> None:
    """Do nothing for ever."""
    time.sleep(10_000)


class WaitsWhenPickled:
    """A result that takes for ever to be pickled."""

    def __reduce__(self) -> Any:
        sleep_on()


class WaitsWhenLoaded:
    """An argument that takes for ever to be loaded."""

    def __reduce__(self) -> Any:
        return sleep_on, ()


FACES: dict[str, Callable[[Any], Any]] = {
    "apply": lambda pool: pool.apply(sleep_on),
    "apply_async": lambda pool: pool.apply_async(sleep_on).get(PATIENCE),
    "submit": lambda pool: pool.submit(sleep_on).result(PATIENCE),
    "map": lambda pool: pool.map(time.sleep, [0, 0, 1000, 0]),
    "map in chunks": lambda pool: pool.map(time.sleep, [0, 0, 1000, 0], 4),
    "imap": lambda pool: list(pool.imap(time.sleep, [0, 0, 1000, 0])),
    "unpickling arguments": lambda pool: pool.apply(identity, (WaitsWhenLoaded(),)),
    "pickling the result": lambda pool: pool.apply(WaitsWhenPickled),
}


@pytest.mark.parametrize("face", FACES)
def test_an_item_that_overruns_ends_with_its_stack(make_pool: MakePool, face: str) -> None:
    """It is a TimeoutError that says what was going on; the pool works on."""
    pool = make_pool(2, time_limit=BRIEF)
    with pytest.raises(TimeLimitError, match=r"longer than its time limit of 0\.1 s") as overrun:
        FACES[face](pool)
    assert isinstance(overrun.value, TimeoutError)
    assert "_runner.py" in overrun.value.stack
    assert overrun.value.stack in str(overrun.value)
    assert pool.apply_async(identity, (1,)).get(PATIENCE) == 1


def test_it_is_the_same_with_every_start_method(make_pool: MakePool, start_method: str) -> None:
    """However the worker was started it can tell, and is killed."""
    pool = make_pool(1, start_method=start_method, time_limit=BRIEF)
    with pytest.raises(TimeLimitError) as overrun:
        pool.apply(sleep_on)
    assert "_runner.py" in overrun.value.stack


def test_others_have_their_results(make_pool: MakePool) -> None:
    """An iterator goes on after the item; what was queued behind it runs elsewhere."""
    pool = make_pool(2)
    results = pool.options(time_limit=BRIEF).imap(time.sleep, [0, 0, 1000, 0, 0, 0])
    ends: list[Any] = []
    for _ in range(6):
        try:
            ends.append(results.next(PATIENCE))
        except TimeLimitError:
            ends.append("over")
    assert ends == [None, None, "over", None, None, None]


def test_others_may_take_their_time(make_pool: MakePool, make_line: MakeLine) -> None:
    """The limit of one task is not that of another, in the same pool or behind it in a queue."""
    gate = make_line()
    pool = make_pool(1)
    patient = pool.apply_async(wait_for, (gate,))
    brief = pool.options(time_limit=BRIEF)
    waiting = [brief.submit(identity, item) for item in range(3)]
    patient.wait(5 * BRIEF)
    gate.tell(b"x")
    assert patient.get(PATIENCE) == b"x"
    assert [future.result(PATIENCE) for future in waiting] == [0, 1, 2]


def start_and_wait(line: Line) -> None:
    """Have a child, say its pid, and wait."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    line.tell(pid.to_bytes(4, "little"))
    sleep_on()


def test_what_an_item_has_started_goes_with_it(make_pool: MakePool, make_line: MakeLine) -> None:
    """Children of the worker are killed as well."""
    line = make_line()
    pool = make_pool(1)
    result = pool.options(time_limit=BRIEF).apply_async(start_and_wait, (line,))
    child = os.pidfd_open(int.from_bytes(line.await_told(4), "little"))
    with pytest.raises(TimeLimitError):
        result.get(PATIENCE)
    assert has_ended(child)
    os.close(child)


def stop_here() -> None:
    """Have the worker stopped."""
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_worker_that_is_stopped_is_ended_without_a_stack(make_pool: MakePool) -> None:
    """It cannot tell what it does, and need not."""
    pool = make_pool(1, time_limit=BRIEF)
    with pytest.raises(TimeLimitError) as overrun:
        pool.apply(stop_here)
    assert overrun.value.stack == ""
    assert pool.apply_async(identity, (1,)).get(PATIENCE) == 1


def test_what_an_idle_worker_that_is_stopped_was_sent_runs_elsewhere(make_pool: MakePool) -> None:
    """It had not begun."""
    pool = make_pool(1, time_limit=BRIEF)
    stopped = pool.apply(worker_pid)
    stop_process(stopped)
    assert pool.apply_async(worker_pid).get(PATIENCE) != stopped


def test_an_item_that_overruns_is_run_again_only_where_that_is_named(make_pool: MakePool) -> None:
    """For the death of a worker alone it is not."""
    pool = make_pool(1, time_limit=BRIEF)
    for retry, runs in ((Retry(2), 1), (Retry(2, (TimeoutError,)), 3)):
        before = int(pool._pool[0].name.rpartition("-")[2])
        with pytest.raises(TimeLimitError):
            pool.options(retry=retry).apply(sleep_on)
        assert pool.apply_async(identity, (1,)).get(PATIENCE) == 1
        assert int(pool._pool[0].name.rpartition("-")[2]) == before + runs  # each took a worker


def test_a_limit_may_be_lifted(make_pool: MakePool, make_line: MakeLine) -> None:
    """Options that are not given are the pool's; None lifts them."""
    gate = make_line()
    pool = make_pool(1, time_limit=BRIEF)
    with pytest.raises(TimeLimitError):
        pool.options(retry=Retry()).apply(sleep_on)
    lifted = pool.options(time_limit=None).apply_async(wait_for, (gate,))
    lifted.wait(5 * BRIEF)
    gate.tell(b"x")
    assert lifted.get(PATIENCE) == b"x"


@pytest.mark.parametrize("name", ["time_limit", "soft_time_limit"])
@pytest.mark.parametrize("wrong", [0, -1, float("inf"), float("nan"), "1"])
def test_what_is_no_duration_is_refused(make_pool: MakePool, name: str, wrong: Any) -> None:
    """Nothing is left of a pool that would have had it."""
    with pytest.raises(ValueError, match=f"^{name} must be a number of seconds, more than 0"):
        make_pool(1, **{name: wrong})
    with pytest.raises(ValueError, match=f"^{name} must be"):
        make_pool(1).options(**{name: wrong})


def test_a_soft_limit_that_comes_too_late_is_refused(make_pool: MakePool) -> None:
    """Nobody would ever see it."""
    pool = make_pool(1, time_limit=2)
    with pytest.raises(ValueError, match=r"soft_time_limit \(2\) must be less than time_limit \(2\)"):
        pool.options(soft_time_limit=2)
    assert pool.options(soft_time_limit=1.5).apply(identity, (1,)) == 1
    assert pool.options(soft_time_limit=3, time_limit=None).apply(identity, (1,)) == 1


def test_threads_have_no_limits() -> None:
    """They cannot be ended."""
    with pytest.raises(ValueError, match="threads cannot be ended or interrupted"):
        pairpool.ThreadPool(1, time_limit=1)  # type: ignore[arg-type]
    with pairpool.ThreadPool(1) as pool:
        limits: tuple[dict[str, Any], ...] = ({"time_limit": 1}, {"soft_time_limit": 1})
        for limit in limits:
            with pytest.raises(ValueError, match="threads cannot be ended or interrupted"):
                pool.options(**limit)


def test_a_limit_holds_while_another_thread_waits(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That thread sleeps without a limit of its own, and looks after everybody's."""
    gate, asleep = make_line(), threading.Event()
    pool = make_pool(2)
    while any(slot.state != SlotState.IDLE for slot in pool._dispatcher.scheduler.slots.values()):
        pool.apply(identity, (1,))  # what a worker says when it comes up would wake the thread
    patient = pool.apply_async(wait_for, (gate,))

    def tell_and_wait() -> None:
        strike_within_wait(monkeypatch, asleep.set)
        patient.wait()

    waiter = threading.Thread(target=tell_and_wait)
    waiter.start()
    assert asleep.wait(PATIENCE)
    over = threading.Event()
    pool.options(time_limit=BRIEF).apply_async(sleep_on, error_callback=lambda _: over.set())
    assert over.wait(PATIENCE)
    gate.tell(b"x")
    waiter.join(PATIENCE)
    assert patient.get(PATIENCE) == b"x"


@pytest.mark.parametrize(("pumpers", "waiters", "told"), [(0, 0, True), (1, 1, False), (2, 2, False), (1, 2, True)])
def test_the_engines_thread_looks_unless_all_who_wait_do(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, pumpers: int, waiters: int, told: bool
) -> None:
    """Who pumps may be held up in a signal handler, which waits for another thread."""
    engine = make_pool(1)._dispatcher.engine
    moments: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(engine._wake_kick, "look_by", moments.append)
        patch.setattr(engine._pump, "pumpers", pumpers)
        patch.setattr(engine.handlers, "waiters", waiters)
        engine.watch_until(5)
    assert moments == [5] * told


def test_who_is_struck_as_he_leaves_has_the_engines_thread_look(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not know that he looks no more."""
    engine = make_pool(1)._dispatcher.engine
    woken = threading.Event()

    def strike(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(engine, "watch_until", strike)
        patch.setattr(engine, "wake", woken.set)
        with pytest.raises(Interrupted):
            engine.pump(lambda: True, [], 0)
    assert woken.is_set()


def test_nobody_needs_to_wait_for_a_limit_to_hold(make_pool: MakePool) -> None:
    """The engine's thread looks where no caller does."""
    pool = make_pool(1, time_limit=BRIEF)
    over = threading.Event()
    pool.apply_async(sleep_on, error_callback=lambda _: over.set())
    assert over.wait(PATIENCE)
