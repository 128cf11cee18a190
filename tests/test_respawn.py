"""Workers that die one after another without having begun anything: when they are replaced, and what waits for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from pairpool import InitializerError, PairpoolError, WorkerLostError, _respawn, _worker
from pairpool._answers import STARTS_THAT_MAY_FAIL
from pairpool._respawn import AT_ONCE, CALM, FIRST_WAIT, LONGEST_WAIT, Respawn
from receiving import PATIENCE
from scenarios import Stage, outcome
from scripted import ScriptedWorker
from tasks import Line, identity

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

# -- When one is replaced ---------------------------------------------------------------------------


def waits(respawn: Respawn, deaths: int, *, size: int = 1, each: int = 0) -> list[int | None]:
    """Tell of so many deaths in vain, `each` ns apart; return for how long the replacement waits after each."""
    found = []
    for slot in range(deaths):
        now = slot * each
        respawn.died_in_vain(slot, size, now, missed=False)
        found.append(None if respawn.at is None else respawn.at - now)
    return found


@pytest.mark.parametrize("size", [1, 2, 5])
def test_replacements_wait_longer_and_longer(size: int) -> None:
    """As many as the pool has workers are replaced at once, then each waits twice as long, up to a second."""
    at_once = max(AT_ONCE, size)
    expected = [None] * at_once + [FIRST_WAIT << doubling for doubling in range(7)]
    assert waits(Respawn(), at_once + 7, size=size) == expected
    assert waits(Respawn(), 2000, size=size)[-1] == LONGEST_WAIT


def test_deaths_that_are_far_apart_are_no_row() -> None:
    """Whatever ends a worker now and then is no storm."""
    assert waits(Respawn(), 50, each=CALM) == [None] * 50
    assert waits(Respawn(), 50, each=CALM - 1)[-1] == LONGEST_WAIT


def test_a_death_that_is_told_twice_counts_once() -> None:
    """Its handler may have been interrupted."""
    respawn = Respawn()
    for _ in range(20):
        respawn.died_in_vain(7, 1, 0, missed=True)
    assert (respawn.at, respawn.barren) == (None, 1)


# -- A pool of scripted workers -------------------------------------------------------------------------


def kill_worker(stage: Stage, worker: ScriptedWorker) -> None:
    """Have a worker come up, and die before it takes what it was sent."""
    if not worker._up:
        worker.go_on()
    worker.end(-9)
    stage.enter()


def looks(stage: Stage) -> bool:
    """Whether the dispatcher is to go on at some time though nothing comes."""
    return stage.dispatcher.look_at is not None


def wait_for_workers(stage: Stage) -> int:
    """Let time pass until workers are asked for; return how much."""
    look_at, now = stage.dispatcher.look_at, stage.clock.now
    assert look_at is not None
    stage.pass_time(look_at - now)
    return look_at - now


def kill_idle(stage: Stage) -> int:
    """Kill fresh workers until there are none; return how many were."""
    for kills in range(1000):
        if not stage.workers:
            return kills
        kill_worker(stage, stage.workers[0])
    raise AssertionError("they are replaced for ever")


def test_an_idle_pool_does_not_fork_for_ever(stage: Stage) -> None:
    """Where each worker dies as soon as it is up there is one a second at most, and the pool is well afterwards."""
    assert kill_idle(stage) == 4  # two, and two at once
    clock, dispatcher = stage.clock, stage.dispatcher
    began, killed = clock.now, 0
    assert wait_for_workers(stage) == FIRST_WAIT << 1
    killed += kill_idle(stage)
    while clock.now < began + 100 * LONGEST_WAIT:
        assert wait_for_workers(stage) > 0
        killed += kill_idle(stage)
    assert killed < 250  # two at a time
    assert not dispatcher.over
    stage.pass_time(LONGEST_WAIT)
    stage.run()
    assert len(stage.workers) == 2
    assert dispatcher.look_at is None
    result = stage.call(stage.result(), 1)
    stage.run()
    assert outcome(result) == 2


def test_a_pool_whose_workers_are_well_has_no_timer(stage: Stage) -> None:
    """A death or two cost nobody anything."""
    kill_worker(stage, stage.workers[0])
    stage.run()
    assert len(stage.workers) == 2
    assert stage.dispatcher.look_at is None


def test_a_worker_that_had_begun_something_is_replaced_at_once(stage: Stage) -> None:
    """And so are those after it: the row is over."""
    stage.post(stage.dispatcher.on_resize, 3)
    stage.run()
    others = stage.workers
    stage.call(stage.result(), 1)
    stage.run()
    at_work = next(worker for worker in stage.workers if worker._packet)
    others.remove(at_work)
    for worker in others:
        kill_worker(stage, worker)
    while len(stage.workers) > 1:
        kill_worker(stage, stage.workers[-1])
    assert looks(stage)
    at_work.end(-9)
    stage.enter()
    assert len(stage.workers) == 3
    assert not looks(stage)
    stage.run()


@pytest.mark.parametrize("wish", ["resize", "close"])
def test_who_wants_workers_has_them_at_once(stage: Stage, wish: str) -> None:
    """A new size asks anew, and what is pending when a pool is closed is not kept waiting."""
    kill_idle(stage)
    if wish == "close":
        result = stage.call(stage.result(), 1)
        stage.post(stage.dispatcher.on_close, None)
    else:
        stage.post(stage.dispatcher.on_resize, 2)
        result = stage.call(stage.result(), 1)
    assert len(stage.workers) == 2
    assert stage.dispatcher.look_at is None
    stage.run()
    assert outcome(result) == 2


def test_a_pool_that_waits_for_workers_can_end(stage: Stage) -> None:
    """Closed with nothing pending it wants none."""
    kill_idle(stage)
    stage.post(stage.dispatcher.on_close, None)
    assert stage.engine.shut_down == [False]
    assert stage.dispatcher.look_at is None


@pytest.mark.parametrize("queued", [False, True], ids=["waiting", "queued"])
def test_what_waits_for_workers_that_die_in_vain_ends(stage: Stage, queued: bool) -> None:
    """After a few attempts with the reason, whether it lay in their channels or nowhere."""
    if not queued:
        kill_idle(stage)
    results = [stage.call(stage.result(), 1), stage.map(range(1, 9))]
    attempts = 0
    while not stage.dispatcher.over:
        assert attempts < 100, "they wait for ever"
        while not stage.workers:
            wait_for_workers(stage)
        kill_worker(stage, stage.workers[0])
        attempts += 1
    assert attempts == STARTS_THAT_MAY_FAIL + 2
    for result in results:
        words = "PairpoolError('no worker lived to begin a task in 5 attempts: worker process 1"
        assert outcome(result).startswith(words)
        assert outcome(result).endswith("was killed by SIGKILL before it began a task')")
    assert stage.ran == []
    stage.run()


def test_a_worker_that_is_at_work_keeps_what_waits_alive(stage: Stage) -> None:
    """However many others die meanwhile: it will come to it."""
    results = [stage.call(stage.result(), number) for number in range(1, 9)]
    first, second = stage.workers
    first.go_on()  # takes one
    kill_worker(stage, second)
    for _ in range(50):
        for worker in stage.workers:
            if worker is not first:
                kill_worker(stage, worker)
        stage.pass_time(LONGEST_WAIT)
    stage.run()
    assert [outcome(result) for result in results] == [2 * number for number in range(1, 9)]


def test_an_outcome_says_that_workers_are_of_use(stage: Stage) -> None:
    """What waits is not given up as long as something ends now and then."""
    for number in range(1, 9):
        result = stage.call(stage.result(), number)
        for _ in range(STARTS_THAT_MAY_FAIL + 1):
            while not stage.workers:
                stage.pass_time(LONGEST_WAIT)
            kill_worker(stage, next((worker for worker in stage.workers if worker.queue), stage.workers[0]))
        stage.pass_time(LONGEST_WAIT)
        stage.run()
        assert outcome(result) == 2 * number


# -- Processes ------------------------------------------------------------------------------------------


def serve_nothing(worker: _worker.Worker) -> None:
    """Die as soon as the pool has been told that the worker is up."""
    os._exit(3)


def tell(line: Line) -> None:
    """Tell that a worker has begun."""
    line.tell(b"w")


def test_workers_that_die_when_they_are_up_are_not_forked_for_ever(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first few are replaced; a new size asks anew, and what is asked of the pool fails with the reason."""
    line = make_line()
    monkeypatch.setattr(_worker.Worker, "serve", serve_nothing)
    monkeypatch.setattr(_respawn, "FIRST_WAIT", LONGEST_WAIT)
    monkeypatch.setattr(_respawn, "LONGEST_WAIT", 1000 * LONGEST_WAIT)
    monkeypatch.setattr(_respawn, "CALM", 10_000 * LONGEST_WAIT)
    pool = make_pool(1, tell, (line,))
    for _ in range(2):
        line.await_told(1 + AT_ONCE)
        pool._dispatcher.wait(lambda: not pool._pool, [], PATIENCE)
        pool.resize(1)
    line.await_told(1 + AT_ONCE)
    pool.terminate()
    pool.join()
    os.set_blocking(line.reading, False)
    with pytest.raises(BlockingIOError):
        os.read(line.reading, 1)


def test_a_call_to_workers_that_die_when_they_are_up_fails(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for ever, nor does the pool fork for ever."""
    line = make_line()
    monkeypatch.setattr(_worker.Worker, "serve", serve_nothing)
    pool = make_pool(1, tell, (line,))
    with pytest.raises(PairpoolError, match="no worker lived to begin a task in 4 attempts") as failed:
        pool.apply_async(identity, (1,)).get(PATIENCE)
    assert not isinstance(failed.value, InitializerError)
    assert isinstance(failed.value.__cause__, WorkerLostError)
    assert "exited with status 3 before it began a task" in str(failed.value)
    pool.terminate()
    pool.join()
    assert len(os.read(line.reading, 1000)) <= 8
