"""Calls of one function with numbers as arguments, which share a pickle: nobody can tell."""

from __future__ import annotations

import copyreg
import gc
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any, cast

import pytest

import pairpool
from forks import open_descriptors
from pairpool import PairpoolError, Retry, TaskCancelledError, WorkerLostError, _calls
from pairpool._codec import Encoder, Payload
from pairpool._descriptors import OwnedDescriptors, Owner
from pairpool._packet import Mode, OutcomeMode
from pairpool._plain import load_numbers
from pairpool._record import Record
from pairpool.results import AsyncResult
from receiving import PATIENCE
from scenarios import carrying
from tasks import Line, add, fail_at_zero, identity, wait_for

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

MANY = 300


def unsettled() -> Any:
    """Make the result of a call of no pool."""
    return AsyncResult(cast("Any", None), None, None, None)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """See how many calls share a pickle; some do."""
    counts: list[int] = []
    pack: Any = _calls.pack_body  # type: ignore[attr-defined]

    def note(encoder: Any, mode: int, *arguments: Any, **options: Any) -> Any:
        body = pack(encoder, mode, *arguments, **options)
        if mode == Mode.ALIKE:
            counts.append(body.units)
        return body

    monkeypatch.setattr(_calls, "pack_body", note)
    yield counts
    assert counts
    assert min(counts) > 1


def behind(pool: Any, gate: Line) -> Any:
    """Have the only worker of a pool wait, and know that calls are short; return what it waits for."""
    for _ in range(3):
        assert [result.get(PATIENCE) for result in [pool.apply_async(add, (n, n)) for n in range(50)]][-1] == 98
    return pool.submit(wait_for, gate)


@pytest.mark.parametrize("workers", [1, 3])
def test_each_call_has_its_result(make_pool: MakePool, together: list[int], workers: int) -> None:
    """Whatever else is called in between, and with what."""
    pool = make_pool(workers)
    for _ in range(3):
        futures = [pool.submit(add, number, 0.5) for number in range(MANY)]
        others = [
            [
                pool.submit(identity, number),
                pool.apply_async(identity, (str(number),)),
                pool.submit(add, number, right=1),
            ]
            for number in range(50)
        ]
        assert [future.result(PATIENCE) for future in futures] == [number + 0.5 for number in range(MANY)]
        for number, (plain, text, named) in enumerate(others):
            assert (plain.result(PATIENCE), text.get(PATIENCE), named.result(PATIENCE)) == (
                number,
                str(number),
                number + 1,
            )
    assert pool.submit(add, True, 10**5000).result(PATIENCE) == 10**5000 + 1


def test_an_error_is_its_own_calls(make_pool: MakePool, together: list[int]) -> None:
    """Also one of calling."""
    pool = make_pool(2)
    for _ in range(3):
        results = [pool.apply_async(fail_at_zero, (number % 5,)) for number in range(MANY)]
        wrong = [pool.apply_async(fail_at_zero, (number, number)) for number in range(20)]
        for number, result in enumerate(results):
            if number % 5:
                assert result.get(PATIENCE) == number % 5
            else:
                with pytest.raises(ValueError, match="fails at 0"):
                    result.get(PATIENCE)
        for result in wrong:
            with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
                result.get(PATIENCE)


def test_what_is_cancelled_is_not_run(make_pool: MakePool, make_line: MakeLine, together: list[int]) -> None:
    """Its neighbours are."""
    gate = make_line()
    pool = make_pool(1)
    held = behind(pool, gate)
    futures = [pool.submit(add, number, 1) for number in range(MANY)]
    cancelled = {number for number, future in enumerate(futures) if number % 7 == 3 and future.cancel()}
    assert cancelled
    gate.tell(b"g")
    assert held.result(PATIENCE) == b"g"
    for number, future in enumerate(futures):
        if number in cancelled:
            assert future.cancelled()
        else:
            assert future.result(PATIENCE) == number + 1


def write_and_sleep(writing: int, seconds: int) -> None:
    """Say that it runs, or how it ends."""
    try:
        os.write(writing, b"x")
        time.sleep(seconds)
    except TaskCancelledError:
        os.write(writing, b"cancelled")
        raise


def test_one_that_runs_can_be_cancelled(make_pool: MakePool, make_line: MakeLine, together: list[int]) -> None:
    """It is told by an exception, and those behind it run in the same worker."""
    gate, said = make_line(), make_line()
    pool = make_pool(1)
    worker = pool.apply(os.getpid)
    pool.submit(write_and_sleep, said.writing, 0).result(PATIENCE)
    held = behind(pool, gate)
    futures = [pool.submit(write_and_sleep, said.writing, 1000 * (number == 2)) for number in range(6)]
    gate.tell(b"g")
    held.result(PATIENCE)
    assert said.await_told(4) == b"xxxx"
    assert futures[2].cancel(running=True)
    assert said.await_told(12) == b"cancelledxxx"
    for number in (0, 1, 3, 4, 5):
        assert futures[number].result(PATIENCE) is None
    with pytest.raises(CancelledError):
        futures[2].result()
    assert pool.apply(os.getpid) == worker


def end_at(number: int, at: int) -> int:
    """Kill the worker at one number."""
    if number == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_costs_one_call(make_pool: MakePool, together: list[int]) -> None:
    """The others have run, or run elsewhere; and that one too, where it may."""
    pool = make_pool(2)
    for _ in range(3):
        assert [pool.submit(end_at, number, -1).result(PATIENCE) for number in range(5)] == [*range(5)]
    futures = [pool.submit(end_at, number, 77) for number in range(MANY)]
    for number, future in enumerate(futures):
        if number == 77:
            with pytest.raises(WorkerLostError):
                future.result(PATIENCE)
        else:
            assert future.result(PATIENCE) == number
    retried = pool.options(retry=Retry(1)).submit(end_at, 1, 1)
    with pytest.raises(WorkerLostError):
        retried.result(PATIENCE)


def test_where_there_is_little_room_fewer_go_together(
    make_pool: MakePool, make_line: MakeLine, together: list[int]
) -> None:
    """Numbers may have many digits."""
    gate = make_line()
    pool = make_pool(1)
    held = behind(pool, gate)
    large = [pow(10, 20_000 + number) for number in range(100)]
    futures = [pool.submit(add, number, 1) for number in large]
    gate.tell(b"g")
    assert held.result(PATIENCE) == b"g"
    assert [future.result(PATIENCE) - 1 for future in futures] == large


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """See how outcomes of calls came."""
    modes: list[int] = []
    read = _calls.CallJob._outcomes

    def note(self: Any, record: Record) -> Any:
        modes.append(record.mode)
        return read(self, record)

    monkeypatch.setattr(_calls.CallJob, "_outcomes", note)
    return modes


def at(number: int) -> Any:
    """Return a number, or the like."""
    return (number, number / 7, number % 2 == 0, None, -(10**number))[number % 5]


def test_results_that_are_numbers_come_together(make_pool: MakePool, together: list[int], modes: list[int]) -> None:
    """Each call has its own, of whatever type; callbacks, too."""
    pool = make_pool(2)
    called_back: list[Any] = []
    for _ in range(3):
        futures = [pool.submit(at, number) for number in range(MANY)]
        results = [pool.apply_async(at, (number,), callback=called_back.append) for number in range(MANY)]
        for number in range(MANY):
            for value in (futures[number].result(PATIENCE), results[number].get(PATIENCE)):
                assert (type(value), value) == (type(at(number)), at(number))
            assert results[number].successful()
    assert called_back.count(None) == 3 * MANY // 5
    assert OutcomeMode.SHARED in modes


def listed(number: int) -> list[int]:
    """Return what may be changed."""
    return [number]


def test_other_results_come_apart(make_pool: MakePool, together: list[int], modes: list[int]) -> None:
    """Each is loaded by who asks for it, and is his alone."""
    pool = make_pool(2)
    for _ in range(3):
        results = [pool.apply_async(listed, (number,)) for number in range(MANY)]
        for number, result in enumerate(results):
            assert result.get(PATIENCE) == [number]
    assert OutcomeMode.SHARED not in modes


LOADED: list[str] = []


class Loud:
    """Is heard when it is loaded."""

    def __reduce__(self) -> Any:
        return LOADED.append, ("loaded",)


@pytest.mark.parametrize(
    ("values", "skip", "told"),
    [
        ([5, 6, 7], 0, [5, 6, 7]),
        ([4, 5, 6, 7], 1, [5, 6, 7]),
        ([5, 6], 0, "as many results"),
        ((5, 6, 7), 0, "no list of numbers"),
        ([5, Loud(), 7], 0, "is no number"),
        ([5, "6", 7], 0, "no list of numbers"),
    ],
)
def test_what_comes_together_is_checked(values: Any, skip: int, told: Any) -> None:
    """A worker could answer anything; with the lock held nothing of it runs."""
    job = _calls.CallJob(Encoder())
    sinks = [unsettled() for _ in range(3)]
    job.calls = {unit: carrying(sink, (unit,)) for unit, sink in enumerate(sinks, 10)}
    job.records.append(Record(10, 3, OutcomeMode.SHARED, [pickle.dumps(values)], skip))
    job.digest()
    assert not job.calls
    assert not job.records
    assert LOADED == []
    if isinstance(told, list):
        assert [sink.get(0) for sink in sinks] == told
        return
    for sink in sinks:
        assert not sink.successful()
        with pytest.raises((PairpoolError, pickle.UnpicklingError), match=told):
            sink.get(0)


def shout() -> int:
    """Be heard."""
    LOADED.append("shouted")
    return 6


class Extended:
    """Shouts when it is loaded."""

    def __reduce__(self) -> Any:
        return shout, ()


def test_what_a_program_has_numbered_runs_no_code_either() -> None:
    """By `copyreg.add_extension`: what was loaded once the library takes from a cache, and asks nobody."""
    copyreg.add_extension(__name__, "shout", 240)
    try:
        pickled = pickle.dumps([5, Extended()], 5)
        assert pickle.loads(pickled) == [5, 6]
        LOADED.clear()
        with pytest.raises(pickle.UnpicklingError, match="extension 240 is no number"):
            load_numbers(pickled)
        assert load_numbers(pickle.dumps([5, None], 5)) == [5, None]
    finally:
        copyreg.remove_extension(__name__, "shout", 240)
    assert LOADED == []


@pytest.mark.parametrize("error", [RecursionError, MemoryError])
def test_that_there_is_no_room_to_load_is_nobodys_outcome(error: type[Exception]) -> None:
    """It comes out, and the outcomes are there when somebody else digests."""
    encoder: Any = Encoder()
    job = _calls.CallJob(encoder)
    sink = unsettled()
    job.calls = {0: carrying(sink, (0,))}
    job.records.append(Record(0, 1, OutcomeMode.SHARED, [pickle.dumps([5])]))

    def run_out(_: Any) -> Any:
        raise error

    encoder.decode_numbers = run_out
    with pytest.raises(error):
        job.digest()
    del encoder.decode_numbers
    job.digest()
    assert sink.get(0) == 5


def test_few_that_are_alike_go_with_the_others() -> None:
    """A packet for each two or three would cost more than what is saved."""
    encoder = Encoder()
    job = _calls.CallJob(encoder)
    functions = [encoder.definition(add)] * 3 + [encoder.definition(identity)] * 3
    job.calls = {unit: carrying(unsettled(), (unit, 1), functions[unit % 6]) for unit in range(60)}
    assert job.build(0, 60, set(), 1 << 18).units == 60
    assert job.build(0, 6, set(), 1 << 18).units == 3


@pytest.mark.parametrize("method", ["apply_async", "submit"])
def test_results_have_no_dictionary_each(make_pool: MakePool, method: str) -> None:
    """Python makes one for an object that gets more attributes than those before it had when it was made.

    With as many results as calls that would be what they cost most, and what the garbage collector looks at.
    """
    pool = make_pool(1)
    items = [*range(100), *map(str, range(100))]
    if method == "submit":
        many = [pool.submit(identity, item) for item in items]
        assert [future.result() for future in many] == items
    else:
        many = [pool.apply_async(identity, (item,)) for item in items]
        assert [result.get() for result in many] == items
    assert not [result for result in many[50:] if dict in map(type, gc.get_referents(result))]


def test_an_error_about_arguments_does_not_keep_its_result(make_pool: MakePool) -> None:
    """It has no traceback of where it was found, whose frames would have the result."""
    pool, errors = make_pool(1), []
    gc.disable()
    try:
        result = pool.apply_async(identity, 5)
        gone = weakref.ref(result)
        try:
            result.get()
        except TypeError as error:
            errors.append(error)
        del result
        assert (len(errors), gone()) == (1, None)
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ["apply_async", "submit"])
def test_a_result_that_is_kept_keeps_nothing_that_was_sent(make_pool: MakePool, method: str) -> None:
    """A function that goes by value has a pickle, and that a descriptor; workers have it for as long as the caller."""
    pool = make_pool(1)

    def call_one(number: int) -> Any:
        data = bytes([number]) * 200_000
        result = getattr(pool, method)(lambda: data[0])
        assert (result.get() if method == "apply_async" else result.result()) == number
        return result

    kept = [call_one(0)]
    before = len(open_descriptors())
    kept += [call_one(number) for number in range(50)]
    assert len(open_descriptors()) < before + 10
    assert len(pool._dispatcher.delivered.by_slot[0]) < 10
    assert len(kept) == 51


def test_a_future_is_locked_in_one_step(make_pool: MakePool) -> None:
    """No function written in Python is entered or left with the lock, in which a signal handler may raise."""
    condition = make_pool(1).submit(identity, 1)._condition
    entered: list[str] = []
    sys.setprofile(lambda frame, event, _: entered.append(f"{event} {frame.f_code.co_name}"))
    try:
        with condition:
            pass
    finally:
        sys.setprofile(None)
    assert not [each for each in entered if not each.startswith("c_") and "test_a_future" not in each]


def test_keywords_may_change_once_a_call_is_made() -> None:
    """Also where threads are given what there is, and nothing is pickled."""
    with pairpool.ThreadPool(1) as pool:
        gate = threading.Event()
        pool.apply_async(gate.wait)
        keywords: dict[str, Any] = {}
        result = pool.apply_async(dict, (), keywords)
        keywords["late"] = 1
        gate.set()
        assert result.get(PATIENCE) == {}


def test_what_is_still_to_be_sent_stays_open_when_its_call_ends() -> None:
    """The numbers of descriptors in the outbox would be another's."""
    owned = OwnedDescriptors([Owner.fromfd(os.dup(0))])
    job, result = _calls.CallJob(Encoder()), unsettled()
    job.calls = {0: carrying(result, Payload(b"", descriptors=owned))}
    job.fail(PairpoolError("the pool was terminated"))
    assert result.ready()
    os.fstat(owned[0])
    owned.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(owned[0])
