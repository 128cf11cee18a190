"""A call into a pool at rest, sent and answered in one step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import pairpool
from forks import open_descriptors
from interruptions import Interrupted, Interruption
from liars import LIES, lie
from pairpool import _exchange, _framing, _pump
from pairpool._handle import WorkerHandle
from pairpool._states import SlotState
from receiving import PATIENCE
from scenarios import Stage, carrying, outcome, packed
from tasks import Line, fail, identity, tell_and_wait, wait_for, worker_pid

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]


def ask(stage: Stage, item: int, **payload: Any) -> Any:
    """Make a call whose caller waits; return its result."""
    sink = stage.result()
    stage.dispatcher.call_and_wait(carrying(sink, packed((stage.double, (item,), {}), **payload)))
    return sink


def test_a_call_that_is_answered_at_once_is_recorded_nowhere(stage: Stage) -> None:
    """It is over when it would be scheduled."""
    result = ask(stage, 1)
    assert outcome(result) == 2
    assert not stage.dispatcher.calls.plan.ready
    assert all(slot.state is SlotState.IDLE for slot in stage.dispatcher.scheduler.slots.values())


def test_an_error_is_an_answer(stage: Stage) -> None:
    """It is told as it is when the call is scheduled."""
    scheduled = stage.call(stage.result(), 10)
    stage.run()
    assert outcome(ask(stage, 10)) == outcome(scheduled) == repr(ValueError(10))


def test_a_late_answer_comes_as_any_other(stage: Stage) -> None:
    """What was sent is recorded then, and takes its course."""
    stage.engine.prompt = False
    result = ask(stage, 1)
    assert not result.ready()
    assert len(stage.dispatcher.scheduler.packets) == 1
    stage.run()
    assert outcome(result) == 2
    assert stage.ran == [1]


@pytest.mark.parametrize("begun", [False, True])
def test_a_worker_may_die_instead_of_answering(stage: Stage, begun: bool) -> None:
    """What had begun is lost and says what it was; what had not runs elsewhere."""
    stage.engine.prompt = False
    result = ask(stage, 1)
    worker = next(worker for worker in stage.workers if worker.queue)
    if begun:
        worker.go_on()  # takes it
        worker.die_within_a_unit()
    else:
        worker.end(-9)
    stage.run()
    if begun:
        with pytest.raises(pairpool.WorkerLostError, match="while running a call"):
            result.get(0)
    else:
        assert outcome(result) == 2


def test_an_answer_to_something_else_is_digested_as_such(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that has outcomes of another shape than one call's is believed only as far as any other."""

    def exaggerate(outcomes: Any) -> Any:
        return outcomes._replace(units=2, buffers=[bytes(2), 7, 7])

    monkeypatch.setattr(stage.engine, "lie", exaggerate)
    result = ask(stage, 1)
    monkeypatch.undo()
    stage.run()
    assert outcome(result) != 7
    assert len(stage.workers) == 2  # the liar has ended, and another is there in its place


@pytest.mark.parametrize("prompt", [True, False])
def test_what_is_interrupted_on_the_way_runs_once_or_never(make_stage: Any, prompt: bool) -> None:
    """Nobody gets what was meant for the interrupted caller, and nothing of it is left."""
    number = 0
    while True:
        stage = make_stage()
        stage.engine.prompt = prompt
        watching = Interruption([number])
        call = carrying(stage.result(), packed((stage.double, (1,), {})))
        if not watching.watch(partial(stage.dispatcher.call_and_wait, call)):
            break
        stage.enter()
        stage.run()
        assert stage.ran in ([], [1]), f"interrupted at {watching.struck}"
        stage.engine.prompt = True
        assert outcome(ask(stage, 2)) == 4, f"interrupted at {watching.struck}"
        stage.run()
        assert not stage.dispatcher.scheduler.packets, f"interrupted at {watching.struck}"
        stage.close()
        number += 1
    assert number > 30


def test_a_call_that_is_struck_before_it_is_sent_is_sent_later(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is noted as sent by then, so nobody else would send it, and its worker would be waited for without end."""

    def be_struck(*_: Any) -> None:
        raise Interrupted

    monkeypatch.setattr(stage.engine, "exchange", be_struck)
    with pytest.raises(Interrupted):
        ask(stage, 1)
    monkeypatch.undo()
    assert outcome(ask(stage, 2)) in (4, repr(pairpool.TimeoutError()))
    stage.run()
    assert stage.ran == [2, 1] or stage.ran == [1, 2]
    assert not stage.dispatcher.scheduler.packets


def test_a_worker_that_has_a_call_of_an_interrupted_caller_is_busy(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else is made to wait behind it."""
    exchange = stage.engine.exchange
    stage.engine.prompt = False

    def send_and_be_struck(*args: Any) -> None:
        exchange(*args)
        raise Interrupted

    monkeypatch.setattr(stage.engine, "exchange", send_and_be_struck)
    with pytest.raises(Interrupted):
        ask(stage, 1)
    monkeypatch.undo()
    stage.enter()
    states = [slot.state for slot in stage.dispatcher.scheduler.slots.values()]
    assert sorted(states) == [SlotState.BUSY, SlotState.IDLE]
    other = ask(stage, 2)
    assert sorted(len(worker.queue) for worker in stage.workers) == [1, 1]
    stage.run()
    assert outcome(other) == 4
    assert sorted(stage.ran) == [1, 2]


def test_what_an_interrupted_caller_has_heard_is_not_lost(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptors are closed, as nobody waits for it any more, and its worker is free again."""
    pool = make_pool(1)
    pool.apply(identity, (1,))

    def hear_and_be_struck(*_: Any) -> None:
        monkeypatch.undo()
        raise Interrupted

    for _ in range(50):
        monkeypatch.setattr(WorkerHandle, "answer", hear_and_be_struck)
        try:
            assert len(pool.apply(bytes, (200_000,))) == 200_000  # it may have come too late to be heard
        except Interrupted:
            pass
        monkeypatch.undo()
    assert pool.apply(identity, (2,)) == 2
    assert sum("spill" in held for held in open_descriptors().values()) <= 1  # of the latest, where it is still mapped


@pytest.mark.parametrize("prompt", [True, False])
def test_a_handler_may_use_the_pool_within_an_exchange(make_stage: Any, prompt: bool) -> None:
    """What it wants is done as soon as the exchange is over."""
    number = 0
    while True:
        stage = make_stage()
        stage.engine.prompt = prompt
        submitted = stage.result()

        def handler(at: Stage = stage, sink: Any = submitted) -> None:
            at.dispatcher.call(carrying(sink, packed((at.double, (3,), {}))))
            at.dispatcher.post(at.dispatcher.on_resize, 3)

        watching = Interruption([number], handler)
        result = stage.result()
        call = carrying(result, packed((stage.double, (1,), {})))
        watching.watch(partial(stage.dispatcher.call_and_wait, call))
        if not watching.struck:
            break
        stage.run()
        assert (outcome(result), outcome(submitted)) == (2, 6), f"struck at {watching.struck}"
        assert len(stage.workers) == 3
        stage.close()
        number += 1
    assert number > 30


# -- What is scheduled instead ---------------------------------------------------------------------


def scheduled(stage: Stage, result: Any) -> bool:
    """Tell whether a call was scheduled; have it end."""
    was = not result.ready()
    stage.run()
    assert result.ready()
    return was


def test_a_pool_at_work_schedules(stage: Stage) -> None:
    """Others are in flight, and it is their turn."""
    busy = stage.map(range(1, 9))
    assert scheduled(stage, ask(stage, 1))
    assert outcome(busy)
    assert not scheduled(stage, ask(stage, 1))


def test_long_calls_are_scheduled(stage: Stage) -> None:
    """Looking for the answer would only take time; short ones are looked for again."""
    plan = stage.dispatcher.calls.plan
    plan.unit_ns = _exchange.SHORT + 1
    assert scheduled(stage, ask(stage, 1))
    assert plan.unit_ns <= _exchange.SHORT
    assert not scheduled(stage, ask(stage, 1))


def test_what_does_not_travel_alone_is_scheduled(stage: Stage) -> None:
    """Needs go by way of a packet that may be refused."""
    need = (("name", b"digest"),)
    fallback = packed((stage.double, (7,), {}))
    assert scheduled(stage, ask(stage, 1, needs=need, fallback=fallback))


def test_a_closed_pool_and_a_broken_one_schedule(stage: Stage) -> None:
    """There nothing is sent that is not accounted for."""
    stage.dispatcher.collapse(KeyError("a fault of ours"))
    assert outcome(ask(stage, 1)) == repr(KeyError("a fault of ours"))
    for worker in stage.workers:
        worker.end(-9)


def test_calls_that_were_only_noted_end_with_a_broken_pool(make_stage: Any) -> None:
    """So do those that come later: nothing is answered any more that would have them taken."""
    stage = make_stage()
    early: list[Any] = [stage.result() for _ in range(200)]
    for result in early:
        stage.dispatcher.call(carrying(result, packed((stage.double, (1,), {}))))
    assert stage.dispatcher.sated
    stage.dispatcher.collapse(KeyError("a fault of ours"))
    late = stage.result()
    stage.dispatcher.call(carrying(late, packed((stage.double, (1,), {}))))
    assert {outcome(result) for result in (*early, late)} == {repr(KeyError("a fault of ours"))}


def test_a_system_without_room_for_it_schedules(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """There it is tried again, and told in the end."""

    def refuse(*_: Any) -> Any:
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr(stage.engine, "entry", refuse)
    assert scheduled(stage, ask(stage, 1))


def test_a_pool_whose_workers_have_a_budget_schedules(make_pool: MakePool) -> None:
    """Every task is counted there."""
    pool = make_pool(1, maxtasksperchild=1)
    assert len({pool.apply(worker_pid) for _ in range(4)}) == 4


# -- Over processes ------------------------------------------------------------------------------------


def test_a_pool_at_rest_digests_nothing(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call after another costs no bookkeeping, where each is answered while its caller looks for that.

    The I/O thread has something to digest now and then, the zygote's word that a worker was forked for one, and some
    calls may come just then.
    """
    monkeypatch.setattr(_exchange, "SHORT", PATIENCE * 1_000_000_000)
    monkeypatch.setattr(_pump, "SPIN", PATIENCE)
    pool = make_pool(1)
    for item in range(100):
        assert pool.apply(identity, (item,)) == item
    digested: list[int] = []
    digest = pool._dispatcher.digest

    def note() -> None:
        digested.append(1)
        digest()

    monkeypatch.setattr(pool._dispatcher, "digest", note)
    counts = []
    for _ in range(5):
        digested.clear()
        for item in range(200):
            assert pool.apply(identity, (item,)) == item
        counts.append(len(digested))
    assert min(counts) == 0


def test_whatever_is_asked_comes_back(make_pool: MakePool, start_method: str) -> None:
    """Values and errors of every size, by every start method."""
    pool = make_pool(2, start_method=start_method)
    for _ in range(3):
        for item in (1, "two", [3], bytes(1000), bytes(100_000), bytes(200_000), None):
            assert pool.apply(identity, (item,)) == item
        for size in (100_000, 200_000):
            assert pool.apply(len, (bytes(size),)) == size
            assert len(pool.apply(bytes, (size,))) == size
        with pytest.raises(ValueError, match="fails at 5"):
            pool.apply(fail, (5,))
        assert pool.apply(lambda: 7) == 7


def test_an_answer_may_take_its_time(make_pool: MakePool, make_line: MakeLine) -> None:
    """The caller sleeps, and is woken."""
    inside, gate = make_line(), make_line()
    pool = make_pool(1)
    pool.apply(identity, (1,))
    got: list[Any] = []
    caller = threading.Thread(target=lambda: got.append(pool.apply(tell_and_wait, (inside, gate))), daemon=True)
    caller.start()
    inside.await_told()
    gate.tell(b"x")
    caller.join(PATIENCE)
    assert got == [pool.apply(worker_pid)]


def test_many_threads_may_ask_at_once(make_pool: MakePool) -> None:
    """Each gets its own answers."""
    pool = make_pool(2)
    wrong: list[Any] = []

    def ask_often(number: int) -> None:
        wrong.extend(item for item in range(number, 2000, 8) if pool.apply(identity, (item,)) != item)

    threads = [threading.Thread(target=ask_often, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive()
    assert wrong == []


@pytest.mark.parametrize("how", LIES)
def test_nonsense_costs_the_worker_that_answers_it(make_pool: MakePool, how: str) -> None:
    """Its caller gets one error, and the pool works on."""
    pool = make_pool(1)
    pool.apply(identity, (1,))
    with pytest.raises(pairpool.WorkerLostError):
        pool.apply(lie, (how,))
    assert pool.apply(identity, (2,)) == 2


def test_a_full_channel_is_waited_for(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel pushes back the call goes as soon as there is room."""
    pool = make_pool(1)
    pool.apply(identity, (1,))
    flush = _framing.flush
    pushes = iter(range(5))

    def push_back(outgoing: Any) -> bool:
        return flush(outgoing) if next(pushes, None) is None else False

    monkeypatch.setattr(_framing, "flush", push_back)
    assert pool.apply(identity, (2,)) == 2


def test_a_worker_that_was_stopped_answers_later(make_pool: MakePool, make_line: MakeLine) -> None:
    """A pool that closes after a late answer was asked for ends when it has come."""
    gate = make_line()
    pool = make_pool(1)
    pool.apply(identity, (1,))
    got: list[Any] = []
    caller = threading.Thread(target=lambda: got.append(pool.apply(wait_for, (gate,))), daemon=True)
    caller.start()
    while not pool._cache:
        pass
    pool.close()
    gate.tell(b"x")
    pool.join()
    caller.join(PATIENCE)
    assert got == [b"x"]


def test_threads_have_no_exchange() -> None:
    """A task's outcome is there without any message."""
    with pairpool.ThreadPool(1) as pool:
        assert pool.apply(identity, (1,)) == 1
