"""Workers that hold too much memory, and items that ask for too much: what becomes of them and of all others."""

from __future__ import annotations

import logging
import os
import pickle
import resource
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from multiprocessing import util
from typing import Any

import pytest

import pairpool
from forks import open_descriptors, run_in_child
from liars import worker_here
from pairpool import _channel, _framing
from pairpool._codec import DefinitionKind, MaybeEncodingError
from pairpool._memory import Gauge, Limit
from pairpool._objects import ObjectCodec
from pairpool._outbox import Outbox
from pairpool._packet import DEFINITION_HEAD, TASKS_HEAD, Flag, Kind, Mode
from pairpool._page import Page
from pairpool._runner import Runner
from pairpool._worker import Worker
from receiving import PATIENCE
from scenarios import Stage
from tasks import Line, identity, worker_pid
from test_runner import Claims
from zygotes import has_ended

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

MIB = 1 << 20
MOST = 32 * MIB  # that a worker may hold
MUCH = 40 * MIB  # more than that, and so much that the allocator gives it back at once

_kept: list[Any] = []


def hold(size: int) -> int:
    """Hold so many bytes more for ever; return the worker's pid."""
    _kept.append(b"x" * size)
    return os.getpid()


def use(size: int) -> int:
    """Hold so many bytes for a moment; return the worker's pid."""
    assert len(b"x" * size) == size
    return os.getpid()


def keep(array: Any) -> int:
    """Keep an argument for ever, without a look at what is in it; return the worker's pid."""
    _kept.append(array)
    return os.getpid()


def hold_and_tell(line: Line, size: int, item: int) -> tuple[int, int]:
    """Say that the item runs, hold so many bytes more, and return it with the worker's pid."""
    line.tell(item.to_bytes(2, "little"))
    return item, hold(size)


class Holding:
    """`hold_and_tell` as one that carries no state that is pickled with each chunk."""

    line: Line
    size: int


def hold_in_turn(item: int) -> tuple[int, int]:
    """Hold as it is said in `Holding`, which a forked worker has."""
    return hold_and_tell(Holding.line, Holding.size, item)


# -- The gauge ------------------------------------------------------------------------------------


def test_what_is_held_beyond_what_was_there_counts() -> None:
    """And only as long as it is held."""
    before = b"x" * MUCH
    gauge = Gauge(MOST)
    assert gauge.excess() == 0
    held = b"x" * MUCH
    assert MOST < gauge.excess() < 2 * MUCH
    del held
    assert gauge.excess() == 0
    del before
    assert gauge.excess() == 0  # what was given back is not counted as negative
    gauge.close()


def test_it_is_looked_after_each_unit_that_is_committed() -> None:
    """Not in a packet whose outcomes go together, where a look would cost more than a unit."""
    steps: list[Any] = []

    class Outbox:
        def begin(self, packet: int, first: int = 0) -> None: ...
        def clear(self) -> None: ...

        next_unit = 0

        def run(self, page: Any, function: Any, items: Any, values: list[Any]) -> tuple[Any]:
            raise AssertionError("more than one unit at a time")

        def append(self, status: int, data: Any) -> bool:
            steps.append(data)
            return True

        def take(self) -> tuple[int, bytes, list[Any]]:
            return 0, b"", []

    class Codec(ObjectCodec):
        def encode_value(self, value: Any) -> Any:
            return pickle.dumps(value)

    runner = Runner(Codec(), Claims(0, 1), Outbox(), lambda *_: None, look=lambda: steps.append("look"))
    for flags in (Flag.VISIBLE, 0):
        head = TASKS_HEAD.pack(Mode.SHARED, flags, 1, 2, 1, 7, 0)
        runner.page = Claims(0, 1)
        runner.run(1, [head, DEFINITION_HEAD.pack(7, DefinitionKind.NAMED), abs, [-1, -2]], ())
    assert steps == [pickle.dumps(1), "look", pickle.dumps(2), "look"]


class Overfull:
    """A gauge that always tells of too much."""

    def excess(self) -> int:
        """Return how much."""
        return 5

    def close(self) -> None: ...


def serve(function: Any, packets: int, make_worker: Callable[..., Worker]) -> list[tuple[int, Any]]:
    """Have a worker on this thread run packets of one item, and return what it says."""
    with ExitStack() as stack:
        tasks, tasks_end = map(stack.enter_context, _channel.socketpair())
        control, control_end = map(stack.enter_context, _channel.socketpair())
        outbox = stack.enter_context(closing(Outbox.create()))
        page = stack.enter_context(closing(Page.create()))
        head = TASKS_HEAD.pack(Mode.SHARED, 0, 1, 1, 1, 7, 0)
        carried = (DEFINITION_HEAD.pack(7, DefinitionKind.NAMED), pickle.dumps(function), pickle.dumps([-1]))
        for packet in range(1, packets + 1):
            tasks.send(_framing.pack(Kind.TASKS, packet, [head, *carried]))
        control.shutdown(socket.SHUT_WR)
        make_worker(tasks_end, control_end, outbox, page).serve()
        tasks_end.close()
        told = [_framing.unpack(message) for message in iter(lambda: tasks.recv(1000), b"")]
        return [(kind, [bytes(buffer) for buffer in buffers]) for kind, _, buffers in told]


@pytest.mark.parametrize("packets", [0, 2])
def test_a_worker_tells_once_and_not_before_it_has_run_something(packets: int) -> None:
    """Or an initializer that loads too much would have worker after worker replaced."""
    gauge: Any = Overfull()
    told = serve(abs, packets, partial(Worker, gauge=gauge))
    assert [kind for kind, _ in told] == ([Kind.OUTCOMES, Kind.FULL, Kind.OUTCOMES] if packets else [])
    assert [buffers for kind, buffers in told if kind == Kind.FULL] == packets // 2 * [[struct.pack("<Q", 5)]]


# -- Workers that hold too much -------------------------------------------------------------------

FACES: dict[str, Callable[[Any, int], list[tuple[int, int]]]] = {
    "apply": lambda pool, items: [pool.apply(hold_in_turn, (item,)) for item in range(items)],
    "submit": lambda pool, items: [
        future.result(PATIENCE) for future in [pool.submit(hold_in_turn, item) for item in range(items)]
    ],
    "map": lambda pool, items: pool.map(hold_in_turn, range(items)),
    "map one by one": lambda pool, items: pool.map(hold_in_turn, range(items), 1),
    "map in chunks": lambda pool, items: pool.map(hold_in_turn, range(items), 3),
    "imap": lambda pool, items: list(pool.imap(hold_in_turn, range(items))),
    "imap_unordered": lambda pool, items: sorted(pool.imap_unordered(hold_in_turn, range(items))),
}


@pytest.mark.parametrize(("items", "size"), [(30, MUCH), (3000, MIB // 16)], ids=["large", "tiny"])
@pytest.mark.parametrize("face", FACES)
def test_a_worker_that_holds_too_much_is_replaced_between_items(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch, face: str, items: int, size: int
) -> None:
    """Every item has run, once, and has its result."""
    line = make_line()
    monkeypatch.setattr(Holding, "line", line, raising=False)
    monkeypatch.setattr(Holding, "size", size, raising=False)
    pool = make_pool(2, max_memory_per_worker=MOST)
    results = FACES[face](pool, items)
    assert [item for item, _ in results] == list(range(items))
    assert len({pid for _, pid in results}) > 2
    ran = line.await_told(2 * items)
    assert sorted(int.from_bytes(ran[at : at + 2], "little") for at in range(0, 2 * items, 2)) == list(range(items))
    os.set_blocking(line.reading, False)
    with pytest.raises(BlockingIOError):
        line.await_told()


def test_it_is_the_same_with_every_start_method(make_pool: MakePool, start_method: str) -> None:
    """The worker that held too much ends; another is there."""
    pool = make_pool(1, start_method=start_method, max_memory_per_worker=MOST)
    first = pool.apply(worker_pid)
    pidfd = os.pidfd_open(first)
    assert pool.apply(hold, (MUCH,)) == first
    assert has_ended(pidfd)
    os.close(pidfd)
    assert pool.apply_async(worker_pid).get(PATIENCE) != first


def test_large_arguments_that_it_keeps_count(make_pool: MakePool) -> None:
    """Though they lie in memory that came from the caller, and of which it may have touched nothing."""
    import numpy as np  # not above: workers that are spawned have limits of memory here, and no use for it

    pool = make_pool(1, max_memory_per_worker=MOST)
    array = np.zeros(MUCH, np.uint8)

    first, second = (pool.apply_async(keep, (array,)).get(PATIENCE) for _ in range(2))

    assert first != second


def test_what_was_given_back_does_not_count(make_pool: MakePool) -> None:
    """Neither what an item has freed, nor what it was sent and what it returned."""
    pool = make_pool(1, max_memory_per_worker=MOST)
    first = pool.apply(worker_pid)
    for _ in range(3):
        assert pool.apply(use, (MUCH,)) == first
        assert pool.apply(len, (b"x" * MUCH,)) == MUCH
        assert len(pool.apply(bytes, (MUCH,))) == MUCH
        assert next(pool.imap(use, [MUCH])) == first
    assert pool.apply(worker_pid) == first


_ballast: list[Any] = []


def write_to_ballast() -> int:
    """Write to everything that was inherited."""
    for block in _ballast:
        block[:: resource.getpagesize()] = block[:: resource.getpagesize()]
    return os.getpid()


def test_what_the_caller_has_is_not_the_worker_s(make_pool: MakePool) -> None:
    """Nor is it when the worker writes to it. What it holds besides is."""
    _ballast.append(bytearray(200 * MIB))
    try:
        pool = make_pool(1, max_memory_per_worker=MOST)
        first = pool.apply(worker_pid)
        assert [pool.apply(write_to_ballast) for _ in range(3)] == 3 * [first]
        pidfd = os.pidfd_open(first)
        pool.apply(hold, (MUCH,))
        assert has_ended(pidfd)
        os.close(pidfd)
    finally:
        _ballast.clear()


def _number_of_worker(pool: Any) -> int:
    return max(int(worker.name.rpartition("-")[2]) for worker in pool._pool)


def test_what_the_initializer_loads_costs_a_worker_an_item_at_worst(make_pool: MakePool) -> None:
    """A worker that is over from the beginning is not replaced before it has run something."""
    pool = make_pool(1, hold, (MUCH,), max_memory_per_worker=MOST)
    before = _number_of_worker(pool)
    items = 5
    assert [pool.apply_async(identity, (item,)).get(PATIENCE) for item in range(items)] == list(range(items))
    assert _number_of_worker(pool) - before <= items
    assert pool.map(identity, range(100)) == list(range(100))


def test_why_a_worker_is_replaced_is_logged(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the standard library logs, once for each, and on the thread that runs the user's code."""
    logged: list[logging.LogRecord] = []
    told = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.INFO:
                logged.append(record)
                told.set()

    logger = logging.Logger("test", logging.INFO)  # noqa: LOG001  # nobody else is to have it
    logger.addHandler(Handler())
    monkeypatch.setattr(util, "_logger", logger)
    pool = make_pool(1, max_memory_per_worker=MOST)
    pid = pool.apply(hold, (MUCH,))
    assert told.wait(PATIENCE)
    pool.close()
    pool.join()
    (record,) = logged
    assert record.getMessage().startswith(f"worker process {pid} is replaced: it holds 4")
    assert record.getMessage().endswith(" MiB, over its limit of 32.0 MiB")
    assert record.threadName == "pairpool-callbacks"


def test_nothing_is_said_where_nobody_has_asked(stage: Stage) -> None:
    """What a worker says that is not up, or that holds no more than it may, is nonsense."""
    most = stage.dispatcher._max_memory
    assert most is not None
    idle, other = stage.workers
    stage.post(stage.dispatcher.on_full, (idle.slot, idle, most))
    assert idle not in stage.workers
    (starting,) = [worker for worker in stage.workers if worker is not other]
    stage.post(stage.dispatcher.on_full, (starting.slot, starting, most + 1))
    assert starting not in stage.workers
    assert other in stage.workers


def test_a_worker_that_is_gone_has_nothing_to_tell(stage: Stage) -> None:
    """Nor has one that leaves for another reason."""
    stage.post(stage.dispatcher.on_full, (99, None, 1 << 40))
    stage.post(stage.dispatcher.on_resize, 1)
    (leaving,) = [worker for worker in stage.workers if worker.stopping]
    stage.post(stage.dispatcher.on_full, (leaving.slot, None, 1 << 40))
    assert stage.dispatcher.scheduler.roster.staff == 1


def lie_about_memory(size: int) -> None:
    """Say that this worker holds so much, and wait for the end."""
    worker_here().send(Kind.FULL, 0, [size.to_bytes(8, "little")])
    threading.Event().wait()


@pytest.mark.parametrize("options", [{}, {"max_memory_per_worker": 1 << 41}], ids=["unasked", "less than it may"])
def test_a_worker_that_lies_about_its_memory_ends(make_pool: MakePool, options: Any) -> None:
    """With what it runs; everything else goes on."""
    pool = make_pool(1, **options)
    with pytest.raises(pairpool.WorkerLostError, match="cannot be true"):
        pool.apply_async(lie_about_memory, (1 << 40,)).get(PATIENCE)
    assert pool.apply_async(identity, (1,)).get(PATIENCE) == 1


def child_has_no_gauge() -> bool:
    """Look for the gauge's descriptor here and in a child."""
    assert any(to.endswith("/statm") for to in open_descriptors().values())

    def look() -> None:
        assert not any(to.endswith("/statm") for to in open_descriptors().values())

    return run_in_child(look) == 0


def test_a_child_of_a_task_does_not_have_the_gauge(make_pool: MakePool) -> None:
    """It would tell of the worker."""
    assert make_pool(1, max_memory_per_worker=MOST).apply(child_has_no_gauge)


# -- Items that ask for too much ------------------------------------------------------------------


def fill() -> None:
    """Hold small objects until there is no memory for another."""
    while True:
        _kept.append([object()])


class LargeWhenPickled:
    """A result that takes a lot to be pickled."""

    def __reduce__(self) -> Any:
        return use, (len(b"x" * MUCH),)


GREEDY: dict[str, Callable[[Any], Any]] = {
    "apply": lambda pool: pool.apply(use, (MUCH,)),
    "submit": lambda pool: pool.submit(use, MUCH).result(PATIENCE),
    "map": lambda pool: pool.map(use, [1, MUCH, 1]),
    "map in chunks": lambda pool: pool.map(use, [1, MUCH, 1], 3),
    "many small objects": lambda pool: pool.apply(fill),
    "unpickling arguments": lambda pool: pool.apply(len, (b"x" * MUCH,)),
}


@pytest.mark.parametrize("ask", GREEDY)
def test_an_item_that_asks_for_too_much_gets_a_memory_error(make_pool: MakePool, ask: str) -> None:
    """Its worker lives on, and runs others."""
    pool = make_pool(1, memory_limit=MOST)
    first = pool.apply(worker_pid)
    for _ in range(3):
        with pytest.raises(MemoryError):
            GREEDY[ask](pool)
        assert pool.apply_async(worker_pid).get(PATIENCE) == first
        assert pool.map(worker_pid, range(100)) == 100 * [first]


def test_a_result_that_takes_too_much_to_be_pickled_is_one_that_cannot_be(make_pool: MakePool) -> None:
    """In the words of the standard library, which say why."""
    pool = make_pool(1, memory_limit=MOST)
    with pytest.raises(MaybeEncodingError, match="MemoryError"):
        pool.apply(LargeWhenPickled)


class LargeError(Exception):
    """An error that takes a lot to be pickled."""

    def __reduce__(self) -> Any:
        return LargeError, (len(b"x" * MUCH),)


def fail_largely() -> None:
    """Raise it."""
    raise LargeError


def test_what_has_become_of_an_item_is_told_whatever_that_takes(make_pool: MakePool) -> None:
    """The limit is for what the item asks for."""
    pool = make_pool(1, memory_limit=MOST)
    first = pool.apply(worker_pid)
    with pytest.raises(LargeError):
        pool.apply(fail_largely)
    assert pool.apply_async(worker_pid).get(PATIENCE) == first


_held: list[tuple[str, bool]] = []
_limit: list[Limit] = []


def note(item: int) -> None:
    """Note whether the limit is in force."""
    _held.append(("item", _limit[0]._holds))


class Noting(Worker):
    """A worker that notes whether the limit is in force when it sends."""

    def send(self, *message: Any) -> None:
        """Note it, and send."""
        _held.append(("send", _limit[0]._holds))
        super().send(*message)


def test_the_limit_holds_for_items_and_not_for_what_is_told_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message may be as large again as what it carries."""
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    _limit[:] = [Limit(MOST)]
    _held.clear()
    serve(note, 2, partial(Noting, limit=_limit[0]))
    assert _held == 2 * [("item", True), ("send", False)]
    assert not _limit[0]._holds


def test_the_limit_is_the_same_with_every_start_method(make_pool: MakePool, start_method: str) -> None:
    """Whatever a worker has when it comes up is not counted."""
    pool = make_pool(1, start_method=start_method, memory_limit=MOST)
    first = pool.apply(worker_pid)
    with pytest.raises(MemoryError) as error:
        pool.apply(use, (MUCH,))
    assert "use" in str(error.value.__cause__)
    assert pool.apply(use, (MOST // 2,)) == first


def test_others_of_an_iterator_have_their_results(make_pool: MakePool) -> None:
    """The error is that of one item."""
    pool = make_pool(2, memory_limit=MOST)
    results = pool.imap(use, [1, MUCH, 1])
    assert results.next(PATIENCE) > 0
    with pytest.raises(MemoryError):
        results.next(PATIENCE)
    assert results.next(PATIENCE) > 0


def test_an_initializer_has_the_limit_too(make_pool: MakePool) -> None:
    """It fails as with any other error."""
    pool = make_pool(1, use, (MUCH,), memory_limit=MOST)
    with pytest.raises(pairpool.InitializerError, match="MemoryError"):
        pool.apply_async(worker_pid).get(PATIENCE)


def test_both_options_together_replace_a_worker_that_is_full(make_pool: MakePool) -> None:
    """One that kept too much would fail every item from then on."""
    pool = make_pool(1, max_memory_per_worker=MOST // 2, memory_limit=MOST)
    first = pool.apply(worker_pid)
    pidfd = os.pidfd_open(first)
    with pytest.raises(MemoryError):
        pool.apply(fill)
    assert has_ended(pidfd)
    os.close(pidfd)
    assert pool.apply_async(use, (MOST // 2,)).get(PATIENCE) != first


def test_a_limit_that_is_there_is_not_raised() -> None:
    """The lower one of the two holds."""

    def ask() -> tuple[int, int]:
        return resource.getrlimit(resource.RLIMIT_DATA)

    def check() -> None:
        low = (1 << 40, ask()[1])
        resource.setrlimit(resource.RLIMIT_DATA, low)
        assert Limit(1 << 41).holding(ask)() == low
        limit = Limit(MOST)
        assert limit.holding(ask)()[0] < low[0]
        assert limit.holding(limit.lifting(ask))() == low
        assert ask() == low

    assert run_in_child(check) == 0


# -- What is refused ------------------------------------------------------------------------------


def test_a_task_may_lower_the_hard_limit_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it may not raise again is not raised."""
    bounds = [(resource.RLIM_INFINITY, resource.RLIM_INFINITY)]

    def set_as_an_ordinary_user(_: int, wanted: tuple[int, int]) -> None:
        soft, hard = wanted
        assert hard == bounds[-1][1]
        assert hard == resource.RLIM_INFINITY or 0 <= soft <= hard
        bounds.append(wanted)

    monkeypatch.setattr(resource, "getrlimit", lambda _: bounds[-1])
    monkeypatch.setattr(resource, "setrlimit", set_as_an_ordinary_user)
    limit = Limit(MOST)

    def lower() -> None:
        bounds.append((MOST, MOST))

    limit.holding(lower)()
    assert bounds[-1] == (MOST, MOST)


OPTIONS = ("max_memory_per_worker", "memory_limit")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("wrong", [0, -1, True, 1e9, "1G"], ids=repr)
def test_what_is_no_number_of_bytes_is_refused(make_pool: MakePool, option: str, wrong: Any) -> None:
    """Nothing is left of a pool that would have had it."""
    with pytest.raises((ValueError, TypeError), match=f"{option} must be a number of bytes"):
        make_pool(1, **{option: wrong})


@pytest.mark.parametrize("option", OPTIONS)
def test_threads_have_no_memory_of_their_own(option: str) -> None:
    """They share what their process has."""
    with pytest.raises(ValueError, match=f"so they have no {option}"):
        pairpool.ThreadPool(1, **{option: MOST})  # type: ignore[arg-type]
