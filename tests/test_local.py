"""The local engine in trouble: workers that lie, a zygote that dies, a system that has nothing left to give."""

from __future__ import annotations

import errno
import functools
import itertools
import multiprocessing
import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pairpool
from forks import open_descriptors
from holdings import Holdings, remains
from interruptions import Interrupted
from liars import LIES, lie, lie_of_a_map, lie_once, worker_here
from pairpool import _channel, _core, _framing, _pacing, _slab
from pairpool._body import Body
from pairpool._calls import CallJob
from pairpool._codec import Definition, DefinitionKind, Encoder, Payload
from pairpool._descriptors import OwnedDescriptors
from pairpool._handle import WorkerHandle
from pairpool._jobs import BatchJob
from pairpool._outgoing import Outgoing
from pairpool._slab import Arena
from pairpool._worker import Worker
from pairpool._zygote import Zygote
from pairpool.engines import local
from pairpool.engines.local import LocalEngine
from pairpool.results import AsyncResult
from receiving import PATIENCE, Carrier
from scenarios import carrying
from tasks import Line, identity, tell_and_wait, worker_pid
from zygotes import has_ended, stop_process

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

LARGE = bytes(200_000)  # so many have a slab of their own


def make_large(_: int) -> bytes:
    """Return something large."""
    return LARGE


def in_time(action: Callable[[], object]) -> None:
    """Do something that is to end; fail where it does not."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it never ended"


def until(pool: Any, ready: Callable[[], bool]) -> None:
    """Wait until something is so with a pool."""
    dispatcher = pool._dispatcher
    assert dispatcher.wait(ready, dispatcher.engine.signals, PATIENCE)


def fail(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, calls: Iterator[bool]) -> None:
    """Have a function fail with this error, in this process, at each call for which `calls` says so."""
    function, caller = getattr(owner, name), os.getpid()

    def fail_or_call(*args: Any, **kwargs: Any) -> Any:
        if os.getpid() == caller and next(calls, False):
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail_or_call)


def fail_forks(monkeypatch: pytest.MonkeyPatch, calls: Iterator[bool]) -> None:
    """Have the fork of a worker fail, in the zygote of a pool made next, at each call for which `calls` says so."""
    fork, caller = os.fork, os.getpid()

    def fail_or_fork() -> int:
        if os.getpid() != caller and next(calls, False):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", fail_or_fork)


# -- Workers that lie ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", LIES)
def test_a_worker_that_answers_nonsense_costs_itself_and_what_it_runs(make_pool: MakePool, how: str) -> None:
    """It is killed and replaced, the item that it ran is lost, and everything else has its result."""
    pool = make_pool(2)
    lost = pool.apply_async(lie, (how,))
    others = [pool.apply_async(identity, (number,)) for number in range(20)]
    mapped = pool.map_async(identity, range(1000))
    with pytest.raises(pairpool.WorkerLostError):
        lost.get(PATIENCE)
    assert [other.get(PATIENCE) for other in others] == list(range(20))
    assert mapped.get(PATIENCE) == list(range(1000))
    assert pool.map_async(identity, range(10)).get(PATIENCE) == list(range(10))
    until(pool, lambda: len(pool._pool) == 2)


@pytest.mark.parametrize("how", ["no message", "outcomes of a later unit"])
def test_nonsense_is_the_same_with_every_start_method(make_pool: MakePool, start_method: str, how: str) -> None:
    """The worker is killed by its zygote, however it was started."""
    pool = make_pool(1, start_method=start_method)
    lost = pool.apply_async(lie, (how,))
    other = pool.apply_async(identity, (1,))
    with pytest.raises(pairpool.WorkerLostError, match="SIGKILL"):
        lost.get(PATIENCE)
    assert other.get(PATIENCE) == 1


def test_children_go_with_a_worker_that_answers_nonsense(make_pool: MakePool, make_line: MakeLine) -> None:
    """It ends as one that was killed does: with its process group."""
    line = make_line()
    pool = make_pool(1)
    lost = pool.apply_async(_lie_with_a_child, (line,))
    child = os.pidfd_open(int(line.await_told(8)))
    try:
        with pytest.raises(pairpool.WorkerLostError):
            lost.get(PATIENCE)
        assert has_ended(child)
    finally:
        os.close(child)


def _lie_with_a_child(line: Line) -> None:
    child = os.fork()
    while child == 0:
        signal.pause()
    line.tell(b"%8d" % child)
    lie("no message")


def test_a_worker_may_answer_nonsense_before_it_is_known(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nonsense is digested before the zygote has told that there is a worker."""
    digested = threading.Event()
    take, digest = LocalEngine._take_replies, WorkerHandle.on_message

    def take_later(self: LocalEngine) -> None:
        if digested.is_set():
            take(self)

    def digest_and_tell(self: WorkerHandle, raw: Any) -> None:
        digest(self, raw)
        digested.set()

    monkeypatch.setattr(LocalEngine, "_take_replies", take_later)
    monkeypatch.setattr(WorkerHandle, "on_message", digest_and_tell)
    pool = make_pool(1, lie_once, (str(tmp_path / "lied"), "no message"))
    assert pool.apply_async(identity, (1,)).get(PATIENCE) == 1


def test_a_worker_that_cannot_be_sent_to_is_ended(make_line: MakeLine) -> None:
    """Where a worker shuts its channel, what is sent to it next fails, and costs that worker alone."""
    line = make_line()

    def send_one() -> None:
        carrier.send(0, identity, [(1,)])

    carrier = Carrier(LocalEngine(multiprocessing.get_context("fork")))
    carrier.start(2)
    try:
        carrier.send(0, _shut_channel, [(line,)])
        line.await_told()
        carrier.receiver.holding(send_one)
        assert carrier.until_down(0).exitcode == -signal.SIGKILL
        assert carrier.until_outcomes(carrier.send(1, identity, [(2,)]), 1)[0].value == 2
        assert not carrier.receiver.all_of("collapse")
    finally:
        carrier.shut(kill=True)


def _shut_channel(line: Line) -> None:
    worker_here()._tasks.shutdown(socket.SHUT_RD)
    line.tell(b"x")
    signal.pause()


def test_a_worker_is_up_after_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker says while its slot is still being opened is told after that."""
    carrier = Carrier(LocalEngine(multiprocessing.get_context("fork")))
    carrier.start(1)
    carrier.until_up(1)
    engine: Any = carrier.engine
    spawn = Zygote.spawn

    pump = engine._pump

    def receive() -> None:
        if pump.receiving.acquire(blocking=False):
            pump.receive()
            pump.receiving.release()
            carrier.receiver.drain()

    def spawn_and_hear(self: Zygote, slot: int, number: int, descriptors: tuple[int, ...]) -> None:
        spawn(self, slot, number, descriptors)
        assert select.select([engine._handles[slot].tasks], [], [], PATIENCE)[0]
        other = threading.Thread(target=receive)  # a caller who waits for a result
        other.start()
        other.join()

    monkeypatch.setattr(Zygote, "spawn", spawn_and_hear)
    try:
        engine.open(1)
        carrier.until_up(2)
        assert [told.kind for told in carrier.receiver.told if told.what == 1] == ["open", "up"]
    finally:
        carrier.shut(kill=True)


def test_a_worker_may_be_buried_while_somebody_receives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was told that a channel has something, and comes when it is closed, receives nothing."""
    carrier = Carrier(LocalEngine(multiprocessing.get_context("fork")))
    carrier.start(2)
    carrier.until_up(2)
    engine: Any = carrier.engine
    pump = engine._pump
    receiving, test, channel = pump.receiving, threading.get_ident(), engine._handles[0].tasks.fileno()
    wait_ready = _framing.wait_ready

    def tell_me_of_it(*args: Any) -> list[int]:
        return [channel] if threading.get_ident() == test else wait_ready(*args)

    class Late:
        """The lock of receiving; before the test first has it the worker is buried."""

        def __enter__(self) -> None:
            if threading.get_ident() == test and 0 in engine._handles:
                pump.receiving = receiving
                engine.stop(0)
                carrier.until_down(0)
                carrier.receiver.holding(lambda: None)  # whoever digests that has buried it
            receiving.acquire()

        def __exit__(self, *_: object) -> None:
            receiving.release()

    try:
        pump.receiving = Late()
        monkeypatch.setattr(_framing, "wait_ready", tell_me_of_it)
        pump.receive()
        assert 0 not in engine._handles
    finally:
        carrier.shut(kill=True)


def test_a_worker_waits_where_the_kernel_pushes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result for whose memfd the kernel has no room on its way is sent when it has."""
    parent_end, worker_end = _channel.socketpair()
    refusals = iter((errno.ETOOMANYREFS, errno.ENOBUFS))
    rests: list[float] = []

    class Refused:
        """A worker's end of a channel that is refused twice."""

        def sendmsg(self, *args: Any) -> int:
            """Send, the third time."""
            if number := next(refusals, None):
                raise OSError(number, os.strerror(number))
            return worker_end.sendmsg(*args)

    worker: Any = Worker.__new__(Worker)
    worker._tasks = Refused()
    worker._slabs = Arena()
    monkeypatch.setattr("pairpool._worker.time.sleep", rests.append)
    with parent_end, worker_end:
        worker.send(2, 1, [LARGE])
        _, descriptors, _, _ = socket.recv_fds(parent_end, 1000, 1)
        assert os.fstat(descriptors[0]).st_size > len(LARGE)
        os.close(descriptors[0])
        worker._slabs.trim()
    assert len(rests) == 2


# -- Workers whose outbox is full -------------------------------------------------------------------


def return_much(line: Line, number: int) -> bytes:
    """Return so much that an outbox has room for some thirty of them, but wait at one of the numbers."""
    if number == 50:
        line.await_told()
    return bytes([number]) * 4096


def test_results_before_one_that_hangs_come_though_the_outbox_was_full(
    make_pool: MakePool, make_line: Callable[[], Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some by message, and the rest are read from the outbox that was begun anew."""
    monkeypatch.setattr(_pacing, "units_at_once", lambda *_: 60)
    line = make_line()
    pool = make_pool(1)
    expected = [bytes([number]) * 4096 for number in range(60)]
    results = pool.imap(functools.partial(return_much, line), range(60))
    assert [results.next(PATIENCE) for _ in range(50)] == expected[:50]
    line.tell(b"x")
    assert list(results) == expected[50:]


# -- The zygote dies -------------------------------------------------------------------------------


def zygote_of(pool: Any) -> int:
    """Return the pid of a pool's zygote."""
    pid: int = pool._dispatcher.engine._zygote.pid
    return pid


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_the_death_of_the_zygote_ends_the_pool(make_pool: MakePool, start_method: str, end: str) -> None:
    """All that is pending fails with one error, so does what comes later, and no worker stays behind."""
    pool = make_pool(2, start_method=start_method)
    pids = set(pool.map_async(worker_pid, range(4)).get(PATIENCE)) | {worker.pid for worker in pool._pool}
    workers = [os.pidfd_open(pid) for pid in pids]
    handles = pool._pool
    pending = [pool.apply_async(signal.pause) for _ in range(5)]
    pending.append(pool.map_async(identity, range(100)))
    iterator = pool.imap(identity, range(3))
    try:
        os.kill(zygote_of(pool), signal.SIGKILL)
        for result in pending:
            with pytest.raises(pairpool.PairpoolError, match="zygote process ended"):
                result.get(PATIENCE)
        with pytest.raises(pairpool.PairpoolError, match="zygote process ended"):
            list(iter(lambda: iterator.next(PATIENCE), None))
        with pytest.raises(pairpool.PairpoolError, match="zygote process ended"):
            pool.apply_async(identity, (1,)).get(PATIENCE)
        in_time(getattr(pool, end))
        in_time(pool.join)
        assert [has_ended(worker) for worker in workers] == [True] * 2
        assert [handle.exitcode for handle in handles] == [255] * 2
        assert pool._pool == []
    finally:
        for worker in workers:
            os.close(worker)


def test_a_zygote_may_die_while_the_pool_is_terminated(
    make_pool: MakePool, start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zygote that is killed before it could end the workers leaves none, and `terminate` returns."""
    pool = make_pool(2, start_method=start_method)
    workers = [os.pidfd_open(worker.pid) for worker in pool._pool]
    stop = Zygote.stop

    def kill_first(self: Zygote, grace: float) -> None:
        monkeypatch.undo()
        stop_process(self.pid)
        stop(self, grace)
        os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(Zygote, "stop", kill_first)
    try:
        in_time(pool.terminate)
        assert [has_ended(worker) for worker in workers] == [True] * 2
    finally:
        for worker in workers:
            os.close(worker)


def test_a_zygote_may_die_while_a_worker_is_asked_for(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot whose worker is ordered of a zygote that has ended does not keep the pool from ending."""
    pool = make_pool(1)
    result = pool.apply_async(signal.pause)
    open_later = LocalEngine._open_later

    def open_too_late(self: LocalEngine, slot: int) -> None:
        monkeypatch.undo()
        os.kill(self._zygote.pid, signal.SIGKILL)
        assert has_ended(self._zygote.pidfd)
        self._take_replies()
        open_later(self, slot)

    monkeypatch.setattr(LocalEngine, "_open_later", open_too_late)
    pool.resize(2)
    with pytest.raises(pairpool.PairpoolError, match="zygote process ended"):
        result.get(PATIENCE)
    pool.close()
    in_time(pool.join)


def test_a_zygote_that_is_stopped_does_not_keep_a_pool_from_ending(
    make_pool: MakePool, start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the zygote does not end the workers in time, they are ended without it."""
    monkeypatch.setattr(local, "GRACE", 0.0)
    monkeypatch.setattr(local, "STUCK", 0.1)
    pool = make_pool(2, start_method=start_method)
    workers = [os.pidfd_open(worker.pid) for worker in pool._pool]
    try:
        stop_process(zygote_of(pool))
        in_time(pool.terminate)
        assert [has_ended(worker) for worker in workers] == [True] * 2
    finally:
        for worker in workers:
            os.close(worker)


# -- The system refuses to start workers ------------------------------------------------------------


def test_a_pool_without_a_worker_ends_what_is_pending(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every fork fails, that is told after a few attempts, in words, and nothing hangs."""
    fail_forks(monkeypatch, itertools.repeat(True))
    pool = make_pool(2)
    pending = [pool.apply_async(identity, (1,)), pool.map_async(identity, range(100))]
    for result in pending:
        with pytest.raises(pairpool.PairpoolError, match=r"no worker could be started in 5 .*unavailable") as caught:
            result.get(PATIENCE)
        assert not isinstance(caught.value, pairpool.InitializerError)
    until(pool, lambda: pool._pool == [])
    pool.close()
    in_time(pool.join)


def test_a_fork_that_fails_is_tried_again(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few failures cost nothing."""
    fail_forks(monkeypatch, iter([True] * 4))
    pool = make_pool(2)
    assert pool.map_async(identity, range(100)).get(PATIENCE) == list(range(100))


def test_a_pool_that_cannot_grow_works_on(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives no more workers, the pool goes on with those that it has, and may grow later."""
    inside, gate = make_line(), make_line()
    fail_forks(monkeypatch, itertools.chain([False] * 2, [True] * 12))
    pool = make_pool(2)
    both = [pool.apply_async(tell_and_wait, (inside, gate)) for _ in range(2)]
    inside.await_told(2)
    gate.tell(b"xx")
    pids = {result.get(PATIENCE) for result in both}
    pool.resize(6)
    until(pool, lambda: pool._processes == 2 and len(pool._pool) == 2)
    assert pool.map_async(identity, range(100)).get(PATIENCE) == list(range(100))
    assert {worker.pid for worker in pool._pool} == pids
    pool.resize(3)
    until(pool, lambda: len(pool._pool) == 3 and pool._pool[2].known_pid is not None)
    assert pool._processes == 3


def test_nobody_waits_for_the_pid_of_a_worker_that_never_was(
    make_pool: MakePool, make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for its pid, and waits, is told that it has none."""
    gate = make_line()
    fail_forks(monkeypatch, iter(lambda: bool(gate.await_told()), False))
    pool = make_pool(1)
    (handle,) = pool._pool
    wait = pool._dispatcher.wait
    asked = itertools.count()

    def wait_for_it(ready: Callable[[], bool], *args: Any) -> bool:
        def ready_and_watching() -> bool:
            if next(asked) == 1:  # the first is before it leaves its signal
                gate.tell(b"x" * 100)
            return ready()

        result: bool = wait(ready_and_watching, *args)
        return result

    monkeypatch.setattr(pool._dispatcher, "wait", wait_for_it)
    pids: list[int | None] = []
    in_time(lambda: pids.append(handle.pid))
    assert pids == [None]


STEPS = {
    "tasks": (socket, "socketpair", [True]),
    "control": (socket, "socketpair", [False, True]),
    "outbox": (os, "memfd_create", [True]),
    "page": (os, "memfd_create", [False, True]),
    "dead-man pipe": (os, "pipe2", [True]),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_that_lacks_something_is_asked_for_again(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Where the parent runs out of descriptors while it makes a worker's, all that it had is closed."""
    pool = make_pool(1)
    pool.apply_async(identity, (1,)).get(PATIENCE)
    owner, name, calls = STEPS[step]
    rest = iter(calls)
    fail(monkeypatch, owner, name, errno.EMFILE, rest)
    pool.resize(2)
    until(pool, lambda: len(pool._pool) == 2 and pool._pool[1].known_pid is not None)
    assert list(rest) == []


@contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """Let this process open so many descriptors more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = set(map(int, open_descriptors()))
    free = (number for number in itertools.count() if number not in used)
    least = next(itertools.islice(free, descriptors, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_for_which_there_is_no_room_leaves_nothing(method: str) -> None:
    """Wherever descriptors run out in `Pool()`, that is told at once, and everything is closed."""
    pairpool.get_context(method).Pool(1).terminate()  # the resource tracker, modules that are loaded
    before = Holdings.now()
    for room in itertools.count():
        pool = None
        with room_for(room), suppress(OSError):
            pool = pairpool.get_context(method).Pool(2)
        if pool is not None:
            in_time(pool.terminate)
            break
        assert remains(before) == []
    assert room > 20


# -- The system has no room for packets --------------------------------------------------------------


def _numbers(count: int) -> OwnedDescriptors:
    """Return numbers in the place of so many descriptors."""
    owners: Any = [SimpleNamespace(fileno=lambda number=number: number) for number in range(count)]
    return OwnedDescriptors(owners)


def _calls_with(descriptors: int) -> CallJob:
    """Return a job of calls that each have so many descriptors."""
    job = CallJob(Encoder())
    payload = Payload(b"", descriptors=_numbers(descriptors))
    job.calls = {number: carrying(AsyncResult(*[None] * 4), payload) for number in range(4000)}  # type: ignore[arg-type]
    return job


def _items_with(descriptors: int) -> BatchJob:
    """Return a job of items that each have so many descriptors."""
    function = Definition(1, DefinitionKind.NAMED, Payload(b""))
    sink: Any = None
    job = BatchJob(Encoder(), function, sink, items=None, unit=1, chunk=1, star=False, visible=True)
    job.prepared.payloads = dict.fromkeys(range(4000), Payload(b"", descriptors=_numbers(descriptors)))
    return job


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_packet_waits_for_room(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A packet whose memfd cannot be made now is sent a little later."""
    pool = make_pool(2)
    pool.apply_async(identity, (1,)).get(PATIENCE)
    calls = iter([True] * 5)
    fail(monkeypatch, os, "memfd_create", number, calls)
    assert pool.apply_async(len, (LARGE,)).get(PATIENCE) == len(LARGE)
    assert list(calls) == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_a_packet_for_which_there_is_never_room_fails_alone(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Its call ends with an error in words; all others have their results."""
    pool = make_pool(2)
    monkeypatch.setattr(_core, "SHORTAGE", 20_000_000)
    fail(monkeypatch, os, "memfd_create", number, itertools.repeat(True))
    large = [
        pool.apply_async(len, (LARGE,)),
        pool.map_async(len, [LARGE, b"small"], chunksize=1),
        pool.map_async(len, [LARGE] * 3),
    ]
    small = [pool.apply_async(identity, (number,)) for number in range(20)]
    for result in large:
        with pytest.raises(pairpool.PairpoolError, match="could not be sent") as caught:
            result.get(PATIENCE)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == number
    iterator = pool.imap(len, [b"small", LARGE, b"small"])
    assert iterator.next(PATIENCE) == 5
    with pytest.raises(pairpool.PairpoolError, match="could not be sent"):
        iterator.next(PATIENCE)
    assert iterator.next(PATIENCE) == 5
    with pytest.raises(pairpool.PairpoolError, match="could not be sent"):
        pool.map_async(functools.partial(_with_a_hold, LARGE), range(3)).get(PATIENCE)
    assert [result.get(PATIENCE) for result in small] == list(range(20))
    assert pool.map_async(identity, range(10)).get(PATIENCE) == list(range(10))


def _with_a_hold(held: bytes, _: Any) -> int:
    return len(held)


def test_a_call_with_more_descriptors_than_travel_fails_alone(make_pool: MakePool) -> None:
    """What the kernel does not carry ends the call that it is an argument of."""
    pool = make_pool(1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        many = [ours.dup() for _ in range(300)]
        try:
            call = pool.apply_async(len, (many,))
            others = [pool.apply_async(identity, (number,)) for number in range(20)]
            with pytest.raises(pairpool.PairpoolError, match="could not be sent"):
                call.get(PATIENCE)
        finally:
            for each in many:
                each.close()
    assert [other.get(PATIENCE) for other in others] == list(range(20))


@pytest.mark.parametrize("make", [_calls_with, _items_with])
def test_a_packet_has_no_more_descriptors_than_travel(make: Callable[[int], Any]) -> None:
    """However many units a packet could hold, what is beside it goes with one message."""
    engine = LocalEngine(multiprocessing.get_context("fork"))
    bodies = [make(each).build(0, 4000, set(), engine.body_room) for each in (1, 10, 200)]
    assert [150 < len(body.descriptors) <= 252 for body in bodies] == [True] * 3


def _pack(body: Body) -> tuple[bytes, OwnedDescriptors]:
    """Return the message that a packet is sent as, and the descriptors beside it."""
    handle: Any = SimpleNamespace(tasks=None)
    (_, message, descriptors), _ = Outgoing(Arena()).pack(handle, 1, body)
    return message, descriptors


@pytest.mark.parametrize("size", [100, 4_000, 30_000, 100_000])
def test_small_payloads_travel_together(size: int) -> None:
    """In one slab as many as belong into a packet; without one as many as a message carries, one in any case."""
    engine = LocalEngine(multiprocessing.get_context("fork"))
    payload = Encoder().dumps(bytes(size))
    job = _items_with(0)
    job.prepared.payloads = dict.fromkeys(range(4000), payload)
    body = job.build(0, 4000, set(), engine.body_room)
    message, descriptors = _pack(body)
    assert (body.units + 1) * (size + 100) > engine.body_room
    assert len(message) < 100
    assert len(descriptors) == 1
    body = job.build(0, 4000, set(), engine.sure_room)
    message, descriptors = _pack(body)
    assert (body.units + 1) * (size + 100) > engine.sure_room
    assert (len(message) < 100) is (len(descriptors) == 1) is (size == 100_000)


def test_only_what_cannot_go_by_itself_takes_descriptors_of_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where slabs have taken as many as they may a packet of several units is refused, and one of one unit is not."""
    monkeypatch.setattr(_slab, "HIGHEST", 3)
    monkeypatch.setattr(_slab, "LOWEST", 0)
    job = _items_with(0)
    job.prepared.payloads = dict.fromkeys(range(4000), bytes(4_000))
    with pytest.raises(OSError, match="as many descriptors as they may"):
        _pack(job.build(0, 4000, set(), 1 << 18))
    job.prepared.payloads[0] = bytes(100_000)
    message, descriptors = _pack(job.build(0, 1, set(), 1 << 18))
    assert len(message) < 100
    assert len(descriptors) == 1


@pytest.mark.parametrize("face", ["map", "imap", "apply_async"])
def test_small_payloads_need_no_descriptors(make_pool: MakePool, face: str) -> None:
    """Neither they nor their results, where there are none to be had."""
    pool = make_pool(2)
    items = [bytes([number % 256]) * 4_000 for number in range(1_000)]
    assert all(worker.pid for worker in pool._pool)  # the word of a worker's fork comes with a descriptor
    # From here on nothing is closed any more, as it would be where slabs had been used before.
    assert pool.map_async(identity, range(1_000), chunksize=1).get(PATIENCE) == [*range(1_000)]
    with room_for(0):
        if face == "apply_async":
            results = [pool.apply_async(identity, (item,)) for item in items]
            assert [result.get(PATIENCE) for result in results] == items
        elif face == "imap":
            iterator = pool.imap(identity, items)
            assert [iterator.next(PATIENCE) for _ in items] == items
        else:
            assert pool.map_async(identity, items, chunksize=1).get(PATIENCE) == items


def test_a_packet_is_recalled_though_its_descriptors_are_lost(make_pool: MakePool, make_line: MakeLine) -> None:
    """A packet that comes back to a parent without room for its descriptors runs elsewhere all the same."""
    inside, gate = make_line(), make_line()
    pool = make_pool(1)
    for _ in range(50):
        pool.apply_async(identity, (1,)).get(PATIENCE)
    running = pool.apply_async(tell_and_wait, (inside, gate))
    inside.await_told()
    queued = [pool.apply_async(len, (LARGE,)) for _ in range(3)]
    with room_for(0):
        pool._dispatcher.post(_recall_all, pool._dispatcher)
    gate.tell(b"x")
    running.get(PATIENCE)
    assert [result.get(PATIENCE) for result in queued] == [len(LARGE)] * 3


def _recall_all(dispatcher: Any) -> None:
    """Take back what is queued; as all handlers do it removes its event."""
    for slot in list(dispatcher.scheduler.slots):
        dispatcher.engine.recall(slot)
    del dispatcher.events[0]


# -- What a worker's children have of it ------------------------------------------------------------


@pytest.mark.parametrize("face", ["map", "apply_async"])
def test_results_that_wait_to_be_read_hold_no_descriptors(make_pool: MakePool, face: str) -> None:
    """There may be more large ones than a process may have descriptors."""
    pool = make_pool(2)
    pool.map(identity, range(10))
    few, most = 60 + len(open_descriptors()), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    try:
        if face == "map":
            results = pool.map(make_large, range(2 * few), 1)
        else:
            pending = [pool.apply_async(make_large, (item,)) for item in range(2 * few)]
            for result in pending:
                result.wait(PATIENCE)
            results = [result.get(PATIENCE) for result in pending]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert results == [LARGE] * (2 * few)


def test_what_a_task_forks_has_nothing_of_its_worker(make_pool: MakePool, start_method: str) -> None:
    """A child of a task has none of the worker's channels, outbox and page."""
    pool = make_pool(1, start_method=start_method)
    assert pool.apply_async(_held_by_a_child).get(PATIENCE) == []


def _held_by_a_child() -> list[str]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        held = [target for target in open_descriptors().values() if target.startswith(("socket:", "/memfd:"))]
        mapped = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:" in line]
        os.write(writing, "\n".join(held + mapped).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as told:
        found = told.read().splitlines()
    os.waitpid(child, 0)
    return found


def test_results_that_are_not_as_many_as_the_items_fail_the_map(make_pool: MakePool) -> None:
    """A worker that answers with too many results does not shift those of the others."""
    pool = make_pool(2)
    with pytest.raises(pairpool.PairpoolError, match="as many results"):
        pool.map_async(lie_of_a_map, [1]).get(PATIENCE)


def test_who_is_struck_while_the_thread_starts_leaves_it_to_end_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have begun already: then it must not find everything closed."""
    begun = threading.Thread.start
    zygotes: list[int] = []

    def begin_and_be_struck(thread: threading.Thread) -> None:
        begun(thread)
        if thread.name == "pairpool-io":
            zygotes.append(os.pidfd_open(thread._target.__self__._zygote.pid))  # type: ignore[attr-defined]
            raise Interrupted

    monkeypatch.setattr(threading.Thread, "start", begin_and_be_struck)
    before = Holdings.now()
    with pytest.raises(Interrupted):
        pairpool.Pool(1)
    (zygote,) = zygotes
    assert has_ended(zygote)
    os.close(zygote)
    monkeypatch.undo()
    assert not remains(before)
