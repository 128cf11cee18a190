"""Workers that leave what they are sent lying, since somebody has stopped them: it runs elsewhere, and they wake."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

import pairpool
from bench import Bench
from pairpool._handle import WorkerHandle
from pairpool._pacing import ASLEEP, SLOWEST
from pairpool._states import Packet, PacketEvent, SlotState
from receiving import PATIENCE
from scenarios import Stage, outcome
from scripted import ScriptedWorker
from tasks import Line, tell_and_wait, wait_for, worker_pid
from zygotes import stop_process

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]


def sleeper(stage: Stage) -> ScriptedWorker:
    """Return the worker that has something in its queue."""
    (worker,) = (worker for worker in stage.workers if worker.queue)
    return worker


# -- What is decided ---------------------------------------------------------------------------------


def test_what_a_worker_leaves_lying_runs_elsewhere(stage: Stage) -> None:
    """After a second; and what comes later is not sent there."""
    results = [stage.call(stage.result(), 1)]
    asleep = sleeper(stage)
    assert stage.dispatcher.look_at == stage.clock.now + ASLEEP
    stage.pass_time(ASLEEP - 1)
    assert asleep.queue
    stage.pass_time(1)
    awake = sleeper(stage)
    assert awake is not asleep
    for number in range(2, 8):
        while awake.go_on():
            stage.enter()
        results.append(stage.call(stage.result(), number))
        assert not asleep.queue
    while awake.go_on():
        stage.enter()
    assert [outcome(result) for result in results] == [2 * number for number in range(1, 8)]
    stage.run()


def test_a_worker_that_wakes_is_given_work_again(stage: Stage) -> None:
    """It was asked to tell; nobody looks at it meanwhile."""
    result = stage.call(stage.result(), 1)
    asleep = sleeper(stage)
    stage.pass_time(ASLEEP)
    awake = sleeper(stage)
    while awake.go_on():
        stage.enter()
    assert outcome(result) == 2
    assert stage.dispatcher.look_at is None
    assert asleep.go_on()
    stage.enter()
    results = [stage.call(stage.result(), number) for number in (1, 2)]
    assert asleep.queue
    assert awake.queue
    stage.run()
    assert [outcome(each) for each in results] == [2, 4]


def test_a_worker_that_is_at_work_is_looked_at_once(stage: Stage) -> None:
    """A long call wakes nobody up again and again, and is not taken back."""
    result = stage.call(stage.result(), 1)
    worker = sleeper(stage)
    worker.go_on()  # it has taken it
    stage.pass_time(ASLEEP)
    assert stage.dispatcher.look_at is None
    assert not any(each.queue for each in stage.workers)
    stage.run()
    assert outcome(result) == 2


def test_where_all_sleep_nothing_is_lost(stage: Stage) -> None:
    """It waits for whichever wakes first, and nobody looks meanwhile."""
    results = [stage.call(stage.result(), 1), stage.map(range(2, 9))]
    for _ in range(5):
        stage.pass_time(ASLEEP)
    assert not any(worker.queue for worker in stage.workers)
    assert stage.dispatcher.look_at is None
    worker = stage.workers[0]
    for _ in range(100):
        worker.go_on()
        stage.enter()
    assert outcome(results[0]) == 2
    assert outcome(results[1]) == [2 * number for number in range(2, 9)]
    stage.run()


def test_a_word_more_of_a_worker_that_was_roused_does_no_harm(stage: Stage) -> None:
    """It may have been asked twice; of one that never was it would be nonsense."""
    result = stage.call(stage.result(), 1)
    asleep = sleeper(stage)
    stage.pass_time(ASLEEP)
    for _ in range(2):
        stage.post(stage.dispatcher.on_up, asleep.slot)
    assert asleep in stage.workers
    stage.run()
    assert outcome(result) == 2


def test_a_worker_that_sleeps_may_die_or_be_retired(stage: Stage) -> None:
    """As any other."""
    result = stage.call(stage.result(), 1)
    asleep = sleeper(stage)
    stage.pass_time(ASLEEP)
    stage.post(stage.dispatcher.on_resize, 1)
    stage.run()
    assert asleep not in stage.workers
    assert outcome(result) == 2
    asleep = stage.workers[0]
    result = stage.call(stage.result(), 2)
    stage.pass_time(ASLEEP)
    asleep.end(-9)
    stage.run()
    assert outcome(result) == 4


def take_back(bench: Bench, packet: Packet) -> None:
    """Have a packet come back that was recalled."""
    bench.scheduler.roster.untaken(packet, bench.now)
    bench.scheduler.came_back(packet, PacketEvent.RECALL, bench.now, None)


def test_a_pool_that_shrinks_keeps_those_that_are_awake() -> None:
    """Whatever else there is to say for the others."""
    bench = Bench(3, rouses=True)
    sleeper = bench.slots[0]
    sleeper.asleep = True
    bench.scheduler.changed[sleeper.ident] = sleeper
    while bench.scheduler.roster.maintain(1):
        pass
    assert [slot.state for slot in bench.slots] == [SlotState.RETIRING, SlotState.IDLE, SlotState.RETIRING]


def test_one_that_is_no_more_than_slow_is_given_longer_each_time() -> None:
    """So that on a machine where all are it still comes to something."""
    bench = Bench(1, rouses=True)
    (slot,) = bench.slots
    bench.now = 1
    bench.job(1, 1, unit_ns=1000)
    allowances = []
    for _ in range(9):
        (packet,) = bench.send()
        assert bench.looks() == [bench.now + slot.allowance]
        allowances.append(slot.allowance)
        bench.now += slot.allowance
        take_back(bench, packet)
        assert (slot.state, slot.asleep) == (SlotState.IDLE, True)
        assert bench.send() == []
        assert [action[0] for action in bench.taken()] == ["recall", "rouse"]
        bench.scheduler.roster.awoke(slot, deque(["its event"]))
    assert allowances == [min(ASLEEP << number, SLOWEST) for number in range(9)]


def test_what_was_taken_back_soon_tells_nothing_of_its_worker() -> None:
    """It was recalled for another's sake."""
    bench = Bench(1, rouses=True)
    bench.job(1, 1, unit_ns=1000)
    (packet,) = bench.send()
    bench.now += ASLEEP - 1
    take_back(bench, packet)
    assert not bench.slots[0].asleep
    assert len(bench.send()) == 1


def test_a_worker_that_is_relieved_again_and_again_is_found_out() -> None:
    """What is recalled from it for another's sake before the second is over does not hide that it takes nothing."""
    bench = Bench(1, rouses=True)
    bench.now = 1
    bench.job(1, 1, unit_ns=1000)
    for _ in range(11):
        (packet,) = bench.send()
        bench.now += ASLEEP // 10
        take_back(bench, packet)
        if bench.slots[0].asleep:
            break
    assert bench.now == 1 + ASLEEP


def test_what_cannot_be_asked_is_not_watched() -> None:
    """Threads are not stopped, and a pool of them has no timer."""
    bench = Bench(1)
    bench.job(1, 1, unit_ns=1000)
    bench.send()
    assert bench.looks() == []


# -- Processes ---------------------------------------------------------------------------------------


FACES: dict[str, Callable[[Any], Any]] = {
    "apply": lambda pool: [pool.apply(worker_pid) for _ in range(10)],
    "apply_async": lambda pool: [pool.apply_async(worker_pid).get(PATIENCE) for _ in range(10)],
    "submit": lambda pool: [each.result(PATIENCE) for each in [pool.submit(worker_pid) for _ in range(10)]],
    "map": lambda pool: pool.map_async(worker_pid, range(100)).get(PATIENCE),
    "imap": lambda pool: list(pool.imap(worker_pid, range(100))),
}


@pytest.mark.parametrize("face", FACES)
def test_an_idle_worker_that_is_stopped_keeps_nothing(make_pool: MakePool, face: str) -> None:
    """The others run it all; continued, it works again."""
    pool = make_pool(2)
    stopped = pool.apply(worker_pid)
    stop_process(stopped)
    assert stopped not in FACES[face](pool)
    os.kill(stopped, signal.SIGCONT)
    while stopped not in pool.map(worker_pid, range(8), 1):
        pass


def test_calls_wait_for_workers_that_are_all_stopped(make_pool: MakePool) -> None:
    """And go on with the first that is continued."""
    pool = make_pool(1)
    stopped = pool.apply(worker_pid)
    stop_process(stopped)
    results = [pool.submit(worker_pid) for _ in range(3)]
    slots = pool._dispatcher.scheduler.slots.values()
    pool._dispatcher.wait(lambda: any(slot.asleep for slot in slots), [], PATIENCE)
    assert not any(result.done() for result in results)
    os.kill(stopped, signal.SIGCONT)
    assert [result.result(PATIENCE) for result in results] == 3 * [stopped]


@pytest.mark.parametrize("limit", [0.1, 1000])
@pytest.mark.parametrize("calls", [1, 5])
def test_what_has_a_time_limit_has_sleepers_killed(make_pool: MakePool, limit: float, calls: int) -> None:
    """Where no other worker is awake; it has not begun, so it is run by the next."""
    pool = make_pool(1, time_limit=limit)
    stopped = pool.apply(worker_pid)
    stop_process(stopped)
    results = [pool.submit(worker_pid) for _ in range(calls)]
    assert stopped not in [result.result(PATIENCE) for result in results]


def test_what_a_worker_does_for_long_is_not_taken_from_it(make_pool: MakePool, make_line: MakeLine) -> None:
    """It runs once, where it was begun."""
    inside, gate = make_line(), make_line()
    pool = make_pool(2)
    result = pool.apply_async(tell_and_wait, (inside, gate))
    inside.await_told()
    result.wait(1.2 * ASLEEP / 1e9)
    assert pool._dispatcher.look_at is None
    gate.tell(b"x")
    assert result.get(PATIENCE) in [worker.pid for worker in pool._pool]


def test_a_worker_that_cannot_be_asked_is_tried_again(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has not read for so long that there is no room."""
    monkeypatch.setattr(WorkerHandle, "rouse", lambda handle: False)
    pool = make_pool(2)
    stopped = pool.apply(worker_pid)
    stop_process(stopped)
    assert pool.apply(worker_pid) != stopped
    os.kill(stopped, signal.SIGCONT)
    while stopped not in pool.map(worker_pid, range(8), 1):
        pass


def test_threads_have_no_timer(make_line: MakeLine) -> None:
    """A call that takes long wakes nobody."""
    gate = make_line()
    with pairpool.ThreadPool(1) as pool:
        result = pool.apply_async(wait_for, (gate,))
        assert pool._dispatcher.look_at is None
        gate.tell(b"x")
        assert result.get(PATIENCE) == b"x"
