"""How a pool is made, what it is called and what it shows of itself (compat.md, H1, H2, H7, H21, H23-H26)."""

from __future__ import annotations

import concurrent.futures
import functools
import inspect
import multiprocessing
import multiprocessing.dummy
import multiprocessing.managers
import multiprocessing.pool
import os
import pickle
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pairpool
from tasks import Line, add, identity, tell_and_wait, worker_pid

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]


# -- H1: names, classes, positions ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pairpool.Pool, multiprocessing.pool.Pool),
        (pairpool.ThreadPool, multiprocessing.pool.ThreadPool),
    ],
)
def test_our_pools_are_pools_of_the_library_by_class(ours: type, theirs: type) -> None:
    """Code that asks ``isinstance(pool, multiprocessing.pool.Pool)`` takes ours for one."""
    assert issubclass(ours, theirs)
    assert issubclass(ours, multiprocessing.pool.Pool)


def test_arguments_stand_where_they_stand_in_the_library() -> None:
    """Each public method takes the library's arguments, by their names and at their positions."""
    names = ["__init__", *(name for name in vars(multiprocessing.pool.Pool) if not name.startswith("_"))]
    for name in set(names) - {"Process"}:
        theirs = inspect.signature(getattr(multiprocessing.pool.Pool, name)).parameters
        ours = inspect.signature(getattr(pairpool.Pool, name)).parameters

        expected = [(each.name, each.default) for each in theirs.values()]
        assert [(each.name, each.default) for each in ours.values()][: len(expected)] == expected, name


class Wrapping(pairpool.Pool):
    """A pool that does something about each call: a well-known recipe for logging the errors of tasks."""

    def apply_async(self, func: Any, args: Any = (), *more: Any, **named: Any) -> Any:
        """Call by way of another function."""
        return super().apply_async(wrapped, (func, args), *more, **named)


def wrapped(function: Callable[..., Any], arguments: Any) -> Any:
    """Call a function, and say so."""
    return "wrapped", function(*arguments)


def test_apply_calls_the_apply_async_of_a_subclass() -> None:
    """As in the library."""
    with Wrapping(1, context="fork") as pool:
        assert pool.apply(identity, (1,)) == ("wrapped", 1)


def test_a_pool_can_be_subclassed(make_pool: MakePool) -> None:
    """A subclass that adds to the constructor and overrides a method works as one of the library's."""

    class Doubling(pairpool.Pool):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.name = "doubling"

        def map(self, func: Any, iterable: Any, chunksize: int | None = None) -> list[Any]:
            return super().map(func, [*iterable] * 2, chunksize)

    pool = Doubling(1)
    with pool:
        assert (pool.name, pool.map(identity, [1, 2])) == ("doubling", [1, 2, 1, 2])
    pool.join()


# -- H1: install() --------------------------------------------------------------------------------


@pytest.fixture
def installed() -> Iterator[None]:
    """Have `multiprocessing.Pool` be ours during the test."""
    with pairpool.install():
        yield


WAYS_TO_A_POOL: dict[str, Callable[[], Any]] = {
    "multiprocessing.Pool": lambda: multiprocessing.Pool(1),
    "multiprocessing.pool.Pool": lambda: multiprocessing.pool.Pool(1),
    "get_context().Pool": lambda: multiprocessing.get_context().Pool(1),
    "get_context('spawn').Pool": lambda: multiprocessing.get_context("spawn").Pool(1),
}
WAYS_TO_A_THREAD_POOL: dict[str, Callable[[], Any]] = {
    "multiprocessing.pool.ThreadPool": lambda: multiprocessing.pool.ThreadPool(1),
    "multiprocessing.dummy.Pool": lambda: multiprocessing.dummy.Pool(1),
}


@pytest.mark.parametrize("way", [*WAYS_TO_A_POOL, *WAYS_TO_A_THREAD_POOL])
def test_while_installed_every_way_to_a_pool_leads_to_ours(installed: None, way: str) -> None:
    """`install()` covers each name under which the library gives out pools."""
    expected = pairpool.Pool if way in WAYS_TO_A_POOL else pairpool.ThreadPool
    with {**WAYS_TO_A_POOL, **WAYS_TO_A_THREAD_POOL}[way]() as pool:
        assert isinstance(pool, expected)
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()


def test_uninstall_gives_the_library_its_own_back() -> None:
    """After `uninstall()`, and after the context of `install()`, everything is as it was."""
    before = multiprocessing.pool.Pool, multiprocessing.pool.ThreadPool
    with pairpool.install():
        assert multiprocessing.pool.Pool is pairpool.Pool
    assert (multiprocessing.pool.Pool, multiprocessing.pool.ThreadPool) == before
    pairpool.install()
    pairpool.install()
    pairpool.uninstall()
    assert (multiprocessing.pool.Pool, multiprocessing.pool.ThreadPool) == before


class _EarlySubclass(multiprocessing.pool.Pool):
    """A subclass that somebody made before `install()`."""


TAKEN_EARLY = [multiprocessing.pool.Pool, multiprocessing.pool.ThreadPool, _EarlySubclass]


@pytest.mark.parametrize("early", TAKEN_EARLY)
def test_what_was_taken_before_install_still_works(installed: None, early: Any) -> None:
    """The library's own classes use each other by names that `install()` replaced; they go on working."""
    with early(1) as pool:
        assert not isinstance(pool, pairpool.Pool)
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_manager_makes_our_pools_while_installed(installed: None, method: str) -> None:
    """A manager starts, also where its registry of classes is pickled, and its pools are ours."""
    with multiprocessing.get_context(method).Manager() as manager:
        pool = manager.Pool(1)
        assert pool.apply(abs, (-1,)) == 1
        assert "pairpool" in str(pool)
        pool.terminate()
        pool.join()


# -- H2: messages ---------------------------------------------------------------------------------


def _closed(pool: Any) -> Any:
    pool.close()
    return pool


def _first(iterable: Any) -> Any:
    return next(iter(iterable))


WRONG_CONSTRUCTIONS: dict[str, Callable[[Any], Any]] = {
    "no workers": lambda make: make(0),
    "fewer than no workers": lambda make: make(-1),
    "workers by name": lambda make: make("2"),
    "no tasks per child": lambda make: make(1, maxtasksperchild=0),
    "fewer than no tasks per child": lambda make: make(1, maxtasksperchild=-1),
    "a share of a task per child": lambda make: make(1, maxtasksperchild=0.5),
    "tasks per child by name": lambda make: make(1, maxtasksperchild="12"),
    "an initializer that is none": lambda make: make(1, initializer=1),
}
WRONG_CALLS: dict[str, Callable[[Any], Any]] = {
    "apply on a closed pool": lambda pool: _closed(pool).apply(abs, (1,)),
    "apply_async on a closed pool": lambda pool: _closed(pool).apply_async(abs, (1,)),
    "map on a closed pool": lambda pool: _closed(pool).map(abs, [1]),
    "map_async on a closed pool": lambda pool: _closed(pool).map_async(abs, [1]),
    "starmap on a closed pool": lambda pool: _closed(pool).starmap(add, [(1, 2)]),
    "starmap_async on a closed pool": lambda pool: _closed(pool).starmap_async(add, [(1, 2)]),
    "imap on a closed pool": lambda pool: _closed(pool).imap(abs, [1]),
    "imap_unordered on a closed pool": lambda pool: _closed(pool).imap_unordered(abs, [1]),
    "imap on a closed pool, with a wrong chunksize": lambda pool: _closed(pool).imap(abs, [1], 0),
    "entering a closed pool": lambda pool: _closed(pool).__enter__(),
    "join before close": lambda pool: pool.join(),
    "imap in chunks of none": lambda pool: pool.imap(abs, [1], 0),
    "imap in chunks of fewer": lambda pool: pool.imap(abs, [1], -3),
    "imap_unordered in chunks of none": lambda pool: pool.imap_unordered(abs, [1], chunksize=0),
    "map without an iterable": lambda pool: pool.map(abs),
    "map over a number": lambda pool: pool.map(abs, 5),
    "starmap over a number": lambda pool: pool.starmap(add, 5),
    "map_async over a number": lambda pool: pool.map_async(abs, 5),
    "imap over a number": lambda pool: _first(pool.imap(abs, 5)),
    "imap in chunks over a number": lambda pool: _first(pool.imap(abs, 5, 2)),
    "imap_unordered over a number": lambda pool: _first(pool.imap_unordered(abs, 5)),
    "starmap over items that are no arguments": lambda pool: pool.starmap(add, [5]),
    "starmap with an argument too few": lambda pool: pool.starmap(add, [(1,)]),
    "apply with an argument too few": lambda pool: pool.apply(add, (1,)),
    "apply of what is not callable": lambda pool: pool.apply(5, (1,)),
    "apply with a number for arguments": lambda pool: pool.apply(add, 5),
    "apply with a number for a built-in's arguments": lambda pool: pool.apply(abs, 5),
    "apply with a number for a partial's arguments": lambda pool: pool.apply(functools.partial(add, 1), 5),
    "apply with pairs for keywords": lambda pool: pool.apply(add, (1,), [("right", 2)]),
    "apply with keywords that are none": lambda pool: pool.apply(add, (), {1: 2}),
    "map of what is not callable": lambda pool: pool.map(5, [1]),
    "imap of what is not callable": lambda pool: _first(pool.imap(5, [1])),
    "pickling": pickle.dumps,
    "sending the pool to a worker": lambda pool: pool.apply(identity, (pool,)),
}


def _complaint(call: Callable[[], Any]) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (which one is compared by the caller)
        call()
    return type(caught.value), re.sub(r"0x[0-9a-f]+", "0x", str(caught.value))


@pytest.mark.parametrize("mistake", WRONG_CONSTRUCTIONS)
def test_a_wrong_argument_of_the_constructor_is_refused_in_the_words_of_the_library(mistake: str) -> None:
    """Type and text of the error are those that the library of this interpreter gives."""
    attempt = WRONG_CONSTRUCTIONS[mistake]

    assert _complaint(lambda: attempt(pairpool.Pool)) == _complaint(lambda: attempt(multiprocessing.pool.Pool))


def test_arguments_of_an_initializer_do_not_matter_where_there_is_none(make_either_pool: MakePool) -> None:
    """The library never looks at them, and programs pass None."""
    assert make_either_pool(1, initargs=None).apply(identity, (1,)) == 1


def test_arguments_that_cannot_be_had_harm_only_their_own_result(make_either_pool: MakePool) -> None:
    """What is wrong with them comes out of `get()`, as what the task raises."""
    pool = make_either_pool(1)
    result = pool.apply_async(add, 5)
    with pytest.raises(TypeError, match="must be an iterable, not int"):
        result.get(60)
    assert pool.apply(add, (1, 2)) == 3


def test_an_unknown_start_method_is_refused_in_the_words_of_the_library() -> None:
    """`get_context()` raises what the library's raises."""
    assert _complaint(lambda: pairpool.get_context("thread")) == _complaint(
        lambda: multiprocessing.get_context("thread")
    )


@pytest.mark.parametrize("mistake", WRONG_CALLS)
def test_a_wrong_call_is_refused_in_the_words_of_the_library(make_pool: MakePool, mistake: str) -> None:
    """Type and text of the error are those that the library of this interpreter gives."""
    attempt = WRONG_CALLS[mistake]
    theirs = multiprocessing.get_context("fork").Pool(1)
    with theirs:
        expected = _complaint(lambda: attempt(theirs))
    theirs.join()

    assert _complaint(lambda: attempt(make_pool(1))) == expected


def test_what_is_not_ready_is_neither_successful_nor_to_be_had(make_either_pool: MakePool, make_line: MakeLine) -> None:
    """A pending result refuses `successful()`, times out in `get()`, and is ready once it is there."""
    inside, gate = make_line(), make_line()
    result = make_either_pool(1).apply_async(tell_and_wait, (inside, gate))
    inside.await_told()

    assert not result.ready()
    with pytest.raises(ValueError, match=r"<.*Result object at 0x[0-9a-f]+> not ready"):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0)
    gate.tell(b"g")
    result.wait()
    assert (result.ready(), result.successful()) == (True, True)


# -- H7, H21: what a pool shows of itself ---------------------------------------------------------


def test_worker_handles_tell_of_their_processes(make_either_pool: MakePool) -> None:
    """`_pool` lists the workers: their pids are those of the tasks, and they are alive."""
    pool = make_either_pool(2)
    pids = {worker.pid for worker in pool._pool}

    assert {pool.apply(worker_pid) for _ in range(8)} <= pids
    assert len(pids) == len(pool._pool) == pool._processes == 2
    assert all(worker.is_alive() and worker.exitcode is None for worker in pool._pool)
    assert all("PoolWorker-" in worker.name for worker in pool._pool)


@pytest.mark.parametrize("blow", ["terminate", "kill"])
def test_a_worker_that_is_ended_by_its_handle_is_replaced(make_pool: MakePool, blow: str) -> None:
    """`terminate()` and `kill()` of a worker's handle end that worker, and the pool works on.

    (In the library it may have held the lock that all workers share, and then nothing works.)
    """
    pool = make_pool(1)
    (worker,) = pool._pool
    getattr(worker, blow)()

    assert pool.apply(worker_pid) != worker.pid
    assert not worker.is_alive()
    assert worker.exitcode is not None


def test_the_cache_is_as_long_as_there_are_pending_results(make_either_pool: MakePool, make_line: MakeLine) -> None:
    """``len(pool._cache)`` counts what is pending, as loops that wait for a pool to drain expect."""
    inside, gate = make_line(), make_line()
    pool = make_either_pool(1)
    results = [pool.apply_async(tell_and_wait, (inside, gate)) for _ in range(3)]
    inside.await_told()

    assert len(pool._cache) == 3
    gate.tell(b"ggg")
    for result in results:
        result.get()
    pool.close()
    pool.join()
    assert len(pool._cache) == 0


def test_the_state_is_a_string_that_follows_the_life_of_the_pool(make_either_pool: MakePool) -> None:
    """`_state` is one of the library's constants, and the repr shows it with the size."""
    pool = make_either_pool(2)
    cls = type(pool)
    name = f"{cls.__module__}.{cls.__qualname__}"

    assert pool._state == multiprocessing.pool.RUN
    assert repr(pool) == f"<{name} state=RUN pool_size=2>"
    pool.close()
    assert pool._state == multiprocessing.pool.CLOSE
    pool.terminate()
    assert pool._state == multiprocessing.pool.TERMINATE


def test_a_pool_that_is_dropped_while_it_runs_warns() -> None:
    """A running pool that nobody holds any more says so with a ResourceWarning, and ends."""
    pool = pairpool.get_context("fork").Pool(1)
    shown = repr(pool)
    with pytest.warns(ResourceWarning, match=re.escape(f"unclosed running multiprocessing pool {shown}")):
        del pool


def test_a_pool_that_was_ended_is_dropped_in_silence() -> None:
    """A pool that was closed or terminated does not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for end in ("close", "terminate"):
            pool = pairpool.get_context("fork").Pool(1)
            getattr(pool, end)()
            pool.join()
            del pool


# -- H13: errors by more than one name ------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [multiprocessing.TimeoutError, concurrent.futures.TimeoutError, TimeoutError, pairpool.TimeoutError],
)
def test_a_timeout_is_caught_by_every_name_it_goes_by(
    make_pool: MakePool, make_line: MakeLine, name: type[Exception]
) -> None:
    """`except` clauses written for the library, for futures or for sockets all catch our timeout."""
    inside, gate = make_line(), make_line()
    result = make_pool(1).apply_async(tell_and_wait, (inside, gate))

    with pytest.raises(name):
        result.get(timeout=0.001)
    gate.tell(b"g")
    result.get()


# -- H23-H26: contexts, threads, size -------------------------------------------------------------


@pytest.fixture
def default_start_method() -> Iterator[Callable[[str], None]]:
    """Set the default start method; the test's end sets it back."""
    before = multiprocessing.get_start_method(allow_none=True)
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_start_method(before, force=True)


PREFIXES = {"fork": "ForkPoolWorker-", "spawn": "SpawnPoolWorker-", "forkserver": "ForkServerPoolWorker-"}


def worker_name() -> str:
    """Return the name of the worker's process."""
    return multiprocessing.current_process().name


def test_without_a_context_the_start_method_is_the_default(
    default_start_method: Callable[[str], None], start_method: str
) -> None:
    """`Pool()` starts its workers as `multiprocessing.Pool()` would: by the start method that is set."""
    default_start_method(start_method)
    with pairpool.Pool(1) as pool:
        assert pool.apply(worker_name).startswith(PREFIXES[start_method])
    pool.join()


def test_an_explicit_context_is_honoured(start_method: str) -> None:
    """A context given to the constructor decides, and so does `get_context()`."""
    context = multiprocessing.get_context(start_method)
    ways: list[Callable[[], Any]] = [
        lambda: pairpool.Pool(1, context=context),
        lambda: pairpool.get_context(start_method).Pool(1),
    ]
    for make in ways:
        with make() as pool:
            assert pool.apply(worker_name).startswith(PREFIXES[start_method])
        pool.join()


def test_a_pool_serves_many_threads_at_once(make_either_pool: MakePool) -> None:
    """Each of many threads gets its own results, and only those."""
    pool = make_either_pool(2)
    found: dict[int, bool] = {}

    def use(number: int) -> None:
        base = number * 1000
        found[number] = (
            pool.map(identity, range(base, base + 50)) == list(range(base, base + 50))
            and [pool.apply(identity, (base + i,)) for i in range(10)] == [base + i for i in range(10)]
            and list(pool.imap(identity, range(base, base + 20))) == list(range(base, base + 20))
        )

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), True)


def test_a_pool_may_be_made_in_any_thread_and_outlives_it(start_method: str) -> None:
    """A pool that a short-lived thread made works after the thread has ended."""
    pools: list[Any] = []
    thread = threading.Thread(target=lambda: pools.append(pairpool.get_context(start_method).Pool(1)))
    thread.start()
    thread.join()
    with pools.pop() as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    pool.join()


def test_a_thread_pool_runs_tasks_in_threads_of_the_caller() -> None:
    """ThreadPool has the same calls; arguments and results are the objects themselves."""
    prepared: list[int] = []
    box = object()
    with pairpool.ThreadPool(2, prepared.append, (1,)) as pool:
        assert pool.apply(os.getpid) == os.getpid()
        assert pool.apply(identity, (box,)) is box
        assert pool.map(lambda each: each, [box])[0] is box
        assert list(pool.imap(abs, [-1, -2])) == [1, 2]
    pool.join()
    assert prepared == [1, 1]


def test_a_thread_pool_raises_the_tasks_own_error() -> None:
    """The error of a task is the object that the task raised, not wrapped."""
    error = ValueError("mine")

    def complain() -> None:
        raise error

    with pairpool.ThreadPool(1) as pool, pytest.raises(ValueError, match="mine") as caught:
        pool.apply(complain)
    pool.join()
    assert caught.value is error
    assert caught.value.__cause__ is None


def test_the_default_size_fits_the_processors_we_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a number a pool has at most as many workers as the process may use processors."""
    with pairpool.get_context("fork").Pool() as pool:
        assert 1 <= pool._processes <= len(os.sched_getaffinity(0))
    pool.join()
    monkeypatch.setenv("PAIRPOOL_WORKERS", "1")
    with pairpool.get_context("fork").Pool() as pool:
        assert pool._processes == len(pool._pool) == 1
    pool.join()


def test_a_number_of_workers_is_an_integer(make_either_pool: MakePool) -> None:
    """Any other number is refused before anything is started, in Python's words."""
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        make_either_pool(2.5)


def test_a_pool_is_not_resized_to_what_is_no_number_of_workers(make_pool: MakePool) -> None:
    """Nothing changes, and the pool works."""
    pool = make_pool(1)
    for size, kind in ((2.5, TypeError), ("2", TypeError), (0, ValueError), (-1, ValueError)):
        with pytest.raises(kind):
            pool.resize(size)
    assert pool._processes == 1
    assert pool.map(abs, [-1]) == [1]


@pytest.mark.parametrize("face", ["map", "map_async", "starmap", "starmap_async", "imap", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [1.5, 2.0, "2"])
def test_a_chunksize_that_is_no_integer_harms_nothing(make_pool: MakePool, face: str, chunksize: Any) -> None:
    """The call that was given it raises, in words, and the pool works."""
    pool = make_pool(1)
    with pytest.raises((ValueError, TypeError), match=r"chunksize must be an integer|not supported between"):
        getattr(pool, face)(abs, [(1,), (2,)], chunksize)
    assert pool.map(abs, [-1]) == [1]
