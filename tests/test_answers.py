"""Answers that cannot be true, and what an engine is refused by the system: over the workers of scripted.py."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from pairpool import _calls, errors
from pairpool._answers import STARTS_THAT_MAY_FAIL
from pairpool._codec import Definition, DefinitionKind
from pairpool._core import RETRY, SHORTAGE
from pairpool._dispatch import BatchJob
from pairpool._iterators import IMapIterator
from pairpool._packet import COMMITTED_HEAD, OutcomeMode, Status
from pairpool._states import Packet
from pairpool.engines import Outcomes
from pairpool.results import MapResult
from scenarios import Stage, carrying, outcome, packed
from scripted import ScriptedWorker


def begin(stage: Stage, worker: ScriptedWorker) -> int:
    """Have a worker take the packet that lies in its queue; return its number."""
    packet = worker.queue[0][0]
    worker.go_on()
    worker._units.popleft()  # claimed, and not ended
    return packet


def busy_worker(stage: Stage) -> ScriptedWorker:
    """Return the first worker that was sent something."""
    return next(worker for worker in stage.workers if worker.queue)


def queued_packet(stage: Stage) -> tuple[ScriptedWorker, Packet]:
    """Go on until a packet of several units lies in a worker's queue; return both."""
    packets = stage.dispatcher.scheduler.packets
    for _ in range(100):
        for worker in stage.workers:
            for ident, _ in worker.queue:
                if packets[ident].count > 1:
                    return worker, packets[ident]
            worker.go_on()
        stage.enter()
    raise AssertionError("packets never grow")


def tell_first_unit(stage: Stage, worker: ScriptedWorker, packet: Packet) -> None:
    """Have a worker tell the outcome of the first unit of a packet."""
    told = Outcomes(worker.slot, packet.ident, OutcomeMode.SEPARATE, 0, 1, 0, [bytes(1), "told"])
    stage.post(stage.dispatcher.on_outcomes, told)


# -- Outcomes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "offset", "count"),
    [
        (OutcomeMode.SEPARATE, 0, 2),
        (OutcomeMode.SEPARATE, 0, 2**32 - 1),
        (OutcomeMode.SEPARATE, 1, 1),
        (OutcomeMode.SEPARATE, 2**32 - 1, 1),
        (OutcomeMode.COMMITTED, 1, 1),
        (OutcomeMode.SHARED, 0, 1),  # of a call: its outcome has a payload of its own
    ],
)
def test_outcomes_that_cannot_be_cost_the_worker_and_its_item(stage: Stage, mode: int, offset: int, count: int) -> None:
    """A worker that tells outcomes of units which it was not sent is ended; all else has its result."""
    lost = stage.call(stage.result(), 1)
    worker = busy_worker(stage)
    packet = begin(stage, worker)
    others = [stage.call(stage.result(), number) for number in range(2, 9)]
    dispatcher = stage.dispatcher
    stage.post(dispatcher.on_outcomes, Outcomes(worker.slot, packet, mode, offset, count, 0, [b"\0", None]))
    assert worker.slot not in stage.engine.by_slot
    stage.run()
    assert outcome(lost).startswith("WorkerLostError('worker process")
    assert [outcome(other) for other in others] == [2 * number for number in range(2, 9)]
    assert sorted(stage.ran) == list(range(2, 9))
    assert len(stage.workers) == 2


def test_outcomes_of_another_worker_s_packet_are_ignored(stage: Stage) -> None:
    """Only the worker that was sent a packet is believed what it tells of it."""
    result = stage.call(stage.result(), 1)
    worker = busy_worker(stage)
    (other,) = (each for each in stage.workers if each is not worker)
    packet = worker.queue[0][0]
    lie = Outcomes(other.slot, packet, OutcomeMode.SEPARATE, 0, 1, 0, [bytes([Status.OK]), "a lie"])
    stage.post(stage.dispatcher.on_outcomes, lie)
    stage.run()
    assert outcome(result) == 2


@pytest.mark.parametrize("iterates", [False, True], ids=["map", "imap"])
@pytest.mark.parametrize("short", [False, True])
def test_of_a_shared_payload_nothing_is_told_twice(stage: Stage, iterates: bool, short: bool) -> None:
    """Of units some of which were told before it has the others; where it has too few values all of those fail."""
    numbers = range(1, 100, 2)
    result = stage.batch(IMapIterator(stage.dispatcher, None), numbers) if iterates else stage.map(numbers)
    worker, packet = queued_packet(stage)
    first, count = packet.first, packet.count
    tell_first_unit(stage, worker, packet)
    values = [f"shared {unit}" for unit in range(count - short)]
    answer = Outcomes(worker.slot, packet.ident, OutcomeMode.SHARED, 0, count, 0, [values])
    stage.post(stage.dispatcher.on_outcomes, answer)
    stage.run()
    found = outcome(result)
    problem = f"PairpoolError('a worker did not answer {count - 1} items with as many results')"
    if short and not iterates:
        assert found == problem
        return
    assert found[first : first + count] == ["told", *([problem] * (count - 1) if short else values[1:])]
    expected = [2 * number for number in numbers]
    assert (found[:first], found[first + count :]) == (expected[:first], expected[first + count :])


def test_an_outbox_may_be_read_before_the_message_with_what_lay_there_first(stage: Stage) -> None:
    """A worker whose outbox is full sends what is in it and goes on: what is read there then is not a lie."""
    iterator = stage.batch(IMapIterator(stage.dispatcher, None), range(1, 100, 2))
    worker, packet = queued_packet(stage)
    record = COMMITTED_HEAD.pack(4, Status.OK) + b"late"
    read = Outcomes(worker.slot, packet.ident, OutcomeMode.COMMITTED, 1, 1, 0, [record])
    stage.post(stage.dispatcher.on_outcomes, read)
    assert worker in stage.workers
    assert packet.done == 0
    stage.run()
    assert list(iterator) == [2 * item for item in range(1, 100, 2)]


# -- Other answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [(), (0,), (65535,)])
def test_a_refusal_that_cannot_be_costs_the_worker(stage: Stage, places: tuple[int, ...]) -> None:
    """A packet that needs nothing is not refused for want of something."""
    lost = stage.call(stage.result(), 1)
    worker = busy_worker(stage)
    packet = begin(stage, worker)
    stage.post(stage.dispatcher.on_refused, (worker.slot, packet, places))
    stage.run()
    assert outcome(lost).startswith("WorkerLostError('worker process")
    assert stage.ran == []
    assert len(stage.workers) == 2


def unreceived(stage: Stage, worker: ScriptedWorker) -> int:
    """Have a worker say that it could not receive what it was sent; return how many units that had."""
    packet, _ = worker.queue.popleft()
    count = stage.dispatcher.scheduler.packets[packet].count
    stage.post(stage.dispatcher.on_unreceived, (worker.slot, packet))
    return count


def run_poor(stage: Stage, culprit: int | None) -> None:
    """Go on to the end with workers that can receive three units at a time, and one unit never."""
    packets, calls = stage.dispatcher.scheduler.packets, stage.dispatcher.calls.calls
    for _ in range(1000):
        stage.enter()
        if culprit in calls and isinstance(calls[culprit]._payload, Exception):
            culprit = None  # it is refused, and travels as nothing
        moved = []
        for worker in stage.workers:
            packet = packets[worker.queue[0][0]] if worker.queue else None
            if packet and (packet.count > 3 or culprit in range(packet.first, packet.first + packet.count)):
                moved.append(unreceived(stage, worker) > 0)
            else:
                moved.append(worker.go_on())
        if not any(moved):
            return
    raise AssertionError("the pool never comes to rest")


@pytest.mark.parametrize("culprit", [None, 0, 20, 52])
def test_what_cannot_be_received_fails_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, culprit: int | None
) -> None:
    """What is too large is sent in small packets; a unit that never can be two workers have tried."""
    monkeypatch.setattr(_calls, "takes", lambda _: 1)
    stage.engine.body_room, stage.engine.sure_room = 100, 3
    numbers = [number for number in range(1, 60) if number % 10]
    results = [stage.result() for _ in numbers]
    for number, result in zip(numbers, results, strict=True):
        stage.dispatcher.calls.incoming.append(carrying(result, packed((stage.double, (number,), {}))))
    before = stage.workers
    run_poor(stage, culprit)
    wrong = [place for place, result in enumerate(results) if outcome(result) != 2 * numbers[place]]
    assert wrong == ([] if culprit is None else [culprit])
    assert all("no descriptor free" in outcome(results[place]) for place in wrong)
    assert len({*before} - {*stage.workers}) == len(wrong)
    assert len(stage.workers) == 2
    assert not stage.dispatcher.calls.unreceived


def test_what_was_answered_was_received(stage: Stage) -> None:
    """Who says otherwise lies; of another worker's packet nobody is believed."""
    result = stage.map(range(1, 100, 2))
    worker, packet = queued_packet(stage)
    (other,) = (each for each in stage.workers if each is not worker)
    stage.post(stage.dispatcher.on_unreceived, (other.slot, packet.ident))
    tell_first_unit(stage, worker, packet)
    stage.post(stage.dispatcher.on_unreceived, (worker.slot, packet.ident))
    assert (worker in stage.workers, other in stage.workers) == (False, True)
    stage.run()
    assert len(outcome(result)) == 50


def test_a_refusal_of_another_worker_s_packet_is_ignored(stage: Stage) -> None:
    """Only the worker that was sent a packet can refuse it."""
    result = stage.call(stage.result(), 1, needs=(("name", b"digest"),))
    worker = busy_worker(stage)
    (other,) = (each for each in stage.workers if each is not worker)
    stage.post(stage.dispatcher.on_refused, (other.slot, worker.queue[0][0], (0,)))
    assert worker.queue
    stage.run()
    assert outcome(result).startswith("RefusedError")


def test_a_worker_that_is_up_again_is_ended(stage: Stage) -> None:
    """A worker comes up once."""
    (first, second) = stage.workers
    stage.post(stage.dispatcher.on_up, first.slot)
    stage.run()
    assert first not in stage.workers
    assert second in stage.workers
    assert len(stage.workers) == 2


def test_a_packet_that_has_outcomes_does_not_come_back(stage: Stage) -> None:
    """A worker that tells outcomes of a packet which it has not taken is ended, and no unit runs twice."""
    result = stage.map(range(1, 100, 2))
    worker, packet = queued_packet(stage)
    tell_first_unit(stage, worker, packet)
    stage.engine.recall(worker.slot)
    stage.enter()
    assert worker not in stage.workers
    stage.run()
    assert len(outcome(result)) == 50
    assert len(stage.ran) == len(set(stage.ran)) == 49


def test_a_tail_that_has_outcomes_is_not_taken_back(stage: Stage) -> None:
    """Where a page says that units never began which have outcomes, its worker is ended, and they do not run again."""
    lost = stage.call(stage.result(), 1)
    worker = busy_worker(stage)
    packet = begin(stage, worker)
    stage.dispatcher.scheduler.packets[packet].done = 1
    stage.post(stage.dispatcher.on_cut, (packet, 0))
    assert worker not in stage.workers
    stage.dispatcher.calls.fail(ValueError("told above by nobody"))
    assert outcome(lost) == "ValueError('told above by nobody')"


# -- No room ---------------------------------------------------------------------------------------


def looks(stage: Stage) -> bool:
    """Whether the dispatcher is to go on at some time though nothing comes."""
    return stage.dispatcher.look_at is not None


class Full:
    """The making of packets, in a system that has no room for those with the item 1."""

    def __init__(self, stage: Stage, error: Exception) -> None:
        self.is_full = True
        self.asked = 0
        self._make = stage.engine.entry
        self._error = error
        stage.engine.entry = self.entry  # type: ignore[method-assign]

    def entry(self, slot: int, packet: int, body: Any) -> Any:
        """Make a packet, where there is room for it."""
        self.asked += 1
        calls = [payload[1] for payload in body.buffers if type(payload) is tuple]
        if self.is_full and ((1,) in calls or [1] in body.buffers):
            raise self._error
        return self._make(slot, packet, body)


NO_ROOM = [OSError(errno.EMFILE, "Too many open files"), MemoryError()]


@pytest.mark.parametrize("error", NO_ROOM, ids=repr)
def test_a_packet_waits_until_there_is_room(stage: Stage, error: Exception) -> None:
    """It is tried again after a while, however often that takes, and then runs."""
    full = Full(stage, error)
    result = stage.call(stage.result(), 1)
    for asked in range(1, 10):
        assert stage.dispatcher.look_at == stage.clock.now + RETRY
        assert full.asked == asked
        stage.pass_time(RETRY)
    full.is_full = False
    stage.pass_time(RETRY)
    assert stage.dispatcher._short_since is None
    stage.run()
    assert outcome(result) == 2
    assert stage.dispatcher.look_at is None


@pytest.mark.parametrize("error", NO_ROOM, ids=repr)
def test_a_packet_for_which_there_is_no_room_ends_its_call(stage: Stage, error: Exception) -> None:
    """After a second its call ends with that; the others run, and nobody tries any more."""
    Full(stage, error)
    result = stage.call(stage.result(), 1)
    others = [stage.call(stage.result(), number) for number in range(2, 5)]
    stage.pass_time(SHORTAGE)
    stage.run()
    assert "a task could not be sent to a worker" in outcome(result)
    assert [outcome(other) for other in others] == [4, 6, 8]
    assert stage.dispatcher.look_at is None


def test_nobody_waits_for_room_for_what_is_not_wanted_any_more(stage: Stage) -> None:
    """A packet that is abandoned while it waits is not tried again."""
    full = Full(stage, NO_ROOM[0])
    abandoned = stage.map([1])
    assert looks(stage)
    stage.post(stage.dispatcher.on_cancel, abandoned.job)
    assert not looks(stage)
    assert full.asked == 1


@pytest.mark.parametrize("whole", [False, True], ids=["call", "map"])
def test_a_packet_that_cannot_be_sent_ends_its_call(stage: Stage, whole: bool) -> None:
    """What an engine could not send though its worker is well ends that call, and no other."""
    result = stage.map(range(1, 3)) if whole else stage.call(stage.result(), 1)
    worker = busy_worker(stage)
    packet, _ = worker.queue.popleft()
    other = stage.call(stage.result(), 2)
    stage.post(stage.dispatcher.on_unsendable, (packet, OSError(errno.EINVAL, "Invalid argument")))
    stage.run()
    assert "a task could not be sent to a worker" in outcome(result)
    assert outcome(other) == 4


@pytest.mark.parametrize("fed", [False, True], ids=["items", "fed"])
def test_items_for_which_there_is_no_room_end_alone(stage: Stage, fed: bool) -> None:
    """Of a map in parts the other items have their results; that there is no room is believed once for all of them."""
    made = stage.engine.entry

    def entry(slot: int, packet: int, body: Any) -> Any:
        items = body.buffers[-1] if type(body.buffers[-1]) in (list, range) else body.buffers
        if any(item in (3, 4, 7) for item in items):
            raise NO_ROOM[0]
        return made(slot, packet, body)

    stage.engine.entry = entry  # type: ignore[method-assign]
    iterator = stage.batch(IMapIterator(stage.dispatcher, None), range(1, 9), fed=fed)
    stage.run()
    for _ in range(2):
        stage.pass_time(SHORTAGE)
        stage.run()
    results = [result if type(result) is int else "could not be sent" in result for result in outcome(iterator)]
    assert results == [2, 4, True, True, 10, 12, True, 16]


def test_units_go_together_as_far_as_there_is_room(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no room for large packets there are smaller ones at once, and not such of one unit."""
    made, sent, refused = stage.engine.entry, list[int](), list[int]()

    def entry(slot: int, packet: int, body: Any) -> Any:
        (sent if body.units <= 3 else refused).append(body.units)
        if body.units > 3:
            raise NO_ROOM[0]
        return made(slot, packet, body)

    monkeypatch.setattr(_calls, "takes", lambda _: 1)
    stage.engine.body_room, stage.engine.sure_room = 100, 3
    stage.engine.entry = entry  # type: ignore[method-assign]
    numbers = [number for number in range(100) if number % 10]
    results = [stage.result() for _ in numbers]
    for number, result in zip(numbers, results, strict=True):
        stage.dispatcher.calls.incoming.append(carrying(result, packed((stage.double, (number,), {}))))
    stage.run()
    assert [outcome(result) for result in results] == [2 * number for number in numbers]
    assert refused
    assert sent.count(3) > len(sent) // 2


def test_a_function_that_can_travel_in_no_way_ends_its_call(stage: Stage) -> None:
    """A definition that workers refuse and that cannot go by value is not sent again and again."""
    result = MapResult(stage.dispatcher, None, None, None)
    function = Definition(1 << 39, DefinitionKind.BY_VALUE, packed(stage.double, needs=(("name", b"digest"),)))
    result.job = BatchJob(
        stage.dispatcher.encoder, function, result, items=[1, 2, 3], unit=1, chunk=1, star=False, visible=False
    )
    stage.post(stage.dispatcher.on_batch, (result.job, None))
    stage.run()
    assert outcome(result).startswith("RefusedError")
    assert stage.ran == []


# -- No workers ------------------------------------------------------------------------------------


def refuse_new(stage: Stage, up: int) -> int:
    """Refuse every worker but the first so many; return how many times that had to be done."""
    refused = 0
    while len(stage.workers) > up:
        assert refused < 1000
        stage.workers[-1].refuse("Resource temporarily unavailable")
        stage.enter()
        refused += 1
    return refused


def test_a_pool_grows_as_far_as_the_system_lets_it(stage: Stage) -> None:
    """Workers that are up go on, and the pool is as large as they are many."""
    kept = stage.workers
    stage.post(stage.dispatcher.on_resize, 6)
    assert refuse_new(stage, up=2) < 20
    assert stage.workers == kept
    assert stage.dispatcher.size == 2
    result = stage.map(range(1, 9))
    stage.run()
    assert outcome(result) == [2 * number for number in range(1, 9)]
    stage.post(stage.dispatcher.on_resize, 3)
    stage.run()
    assert len(stage.workers) == 3


def test_a_pool_whose_workers_are_all_refused_ends_what_is_pending(stage: Stage) -> None:
    """After a few attempts everything ends with the reason, and no more workers are asked for."""
    for worker in stage.workers:
        worker.end(-9)
    stage.enter()
    result = stage.call(stage.result(), 1)
    assert refuse_new(stage, up=0) <= STARTS_THAT_MAY_FAIL + 3
    assert outcome(result).startswith(
        "PairpoolError(\"no worker could be started in 5 attempts: PairpoolError('Resource"
    )
    assert not isinstance(stage.dispatcher.over, errors.InitializerError)


def test_a_refused_worker_is_asked_for_again(stage: Stage) -> None:
    """A refusal or two mean nothing."""
    for worker in stage.workers:
        worker.end(-9)
    stage.enter()
    for _ in range(STARTS_THAT_MAY_FAIL):
        stage.workers[0].refuse("Resource temporarily unavailable")
        stage.enter()
    result = stage.call(stage.result(), 1)
    stage.run()
    assert outcome(result) == 2
    assert len(stage.workers) == 2
