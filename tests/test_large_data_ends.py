"""Large data when something ends: workers that are killed, calls that are interrupted, descriptors that run out.

Whatever happens, what comes is right, and in the end nothing is left: no memory, no mapping, no descriptor.
"""

from __future__ import annotations

import errno
import gc
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random, randrange
from typing import Any

import pytest

import chaos
import pairpool
from conftest import START_METHODS
from forks import run_in_child
from interruptions import Interrupted, Interruption
from large import (
    KIB,
    LARGE,
    MIB,
    MIDDLE,
    PATIENCE,
    Array,
    batches,
    comes_true,
    descriptors,
    fresh,
    is_all,
    mappings,
    memory_files,
    more_memory_files,
    numbers_in,
    scribble,
    shared_bytes,
)
from tasks import Line, identity, worker_pid

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

SEED = int(os.environ.get("PAIRPOOL_CHAOS_SEED") or randrange(1_000_000))
PROGRAM = Path(__file__).parent / "programs" / "few_descriptors.py"

FEW = 600  # descriptors, and mappings of memory, that suffice however much travels


# -- Workers that are killed ------------------------------------------------------------------------

ITEMS = 200


def size_of(item: int) -> int:
    """Return how many bytes an item's array has: from 256 KiB to 2 MiB."""
    return 256 * KIB + item * 7919 % 28 * 64 * KIB


def turn(work: tuple[int, Array]) -> tuple[int, Array]:
    """Say that an item has begun, write another number all over its array, and return both."""
    item, array = work
    if numbers_in(array) != [item] or array.nbytes != size_of(item):
        raise AssertionError(f"item {item} came with {numbers_in(array)} in {array.nbytes} bytes")
    array[...] = ITEMS + item
    chaos.begin(item)
    return item, array


def take_all(results: Any) -> tuple[list[int], int]:
    """Return the items whose results came, all of which must be right, and how many were lost."""
    came, lost = list[int](), 0
    while True:
        try:
            item, array = results.next(PATIENCE)
        except pairpool.WorkerLostError:
            lost += 1
        except StopIteration:
            return came, lost
        else:
            assert numbers_in(array) == [ITEMS + item]
            assert array.nbytes == size_of(item)
            came.append(item)


@pytest.mark.parametrize("face", ["imap", "imap_unordered"])
def test_workers_are_killed_while_much_travels(make_pool: MakePool, face: str, tmp_path: Path) -> None:
    """What comes is right, what is lost is told, and no memory stays when all is over."""
    before, journal, random = memory_files(), tmp_path / "begun", Random(SEED)
    pool = make_pool(2, chaos.open_journal, (str(journal),))
    work = ((item, fresh(item, size_of(item))) for item in range(1, ITEMS))
    try:
        with chaos.Killer(pool, journal, random, 0.02) as killer:
            came, lost = take_all(getattr(pool, face)(turn, work))
        assert len(came) == len({*came})
        assert len(came) + lost == ITEMS - 1
        assert 0 < lost <= killer.kills
        assert pool.apply(scribble, (fresh(1),)) == [1], "the pool still works"
    except BaseException as error:
        error.add_note(f"PAIRPOOL_CHAOS_SEED={SEED}")
        raise
    pool.close()
    pool.join()
    del pool, killer
    assert more_memory_files(before) == []


def die_holding(array: Array) -> None:
    """Be killed with an argument at hand."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_worker_held_is_free(make_pool: MakePool) -> None:
    """Its arguments, and results that nobody has asked for."""
    before = memory_files()
    pool = make_pool(1)
    for number in range(20):
        results = [pool.apply_async(fresh, (number, MIB)) for _ in range(3)]
        doomed = pool.apply_async(die_holding, (fresh(number, MIB),))
        with pytest.raises(pairpool.WorkerLostError):
            doomed.get(PATIENCE)
        assert [numbers_in(result.get(PATIENCE)) for result in results] == [[number]] * 3
    del results, doomed
    pool.close()
    pool.join()
    del pool
    assert more_memory_files(before) == []


# -- How much there is at a time --------------------------------------------------------------------


@contextmanager
def most_held() -> Iterator[list[int]]:
    """Look all the time how many descriptors and mapped memory files there are; give the most of each at the end."""
    most, over = [0, 0], threading.Event()

    def look() -> None:
        mapped = sum(path.startswith("/memfd:") for path in mappings())
        most[:] = max(most[0], len(descriptors())), max(most[1], mapped)

    def look_on() -> None:
        while not over.wait(0.001):
            look()

    thread = threading.Thread(target=look_on)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()
    look()


def _wait_for_all(results: list[Any]) -> Iterator[Array]:
    results.reverse()
    while results:
        yield results.pop().get(PATIENCE)


def _by_maps(pool: Any, arrays: Iterable[Array]) -> Iterator[Array]:
    every = list(arrays)
    for numbers in batches(len(every), 25):
        yield from pool.map(identity, [every[number] for number in numbers])


THROUGH: dict[str, Callable[[Any, Iterable[Array]], Iterable[Array]]] = {
    "map": _by_maps,
    "imap": lambda pool, arrays: pool.imap(identity, arrays),
    "imap_unordered": lambda pool, arrays: pool.imap_unordered(identity, arrays),
    "apply": lambda pool, arrays: (pool.apply(identity, (array,)) for array in arrays),
    "apply_async": lambda pool, arrays: _wait_for_all([pool.apply_async(identity, (array,)) for array in arrays]),
}


@pytest.mark.parametrize("face", THROUGH)
def test_few_descriptors_are_open_at_a_time(make_pool: MakePool, face: str) -> None:
    """However many items go there and back, and in the worker as well; afterwards there are as many as before."""
    before, files = len(descriptors()), memory_files()
    pool = make_pool(2)
    seen = []
    with most_held() as most:
        for result in THROUGH[face](pool, (fresh(number, 200 * KIB) for number in range(500))):
            seen += numbers_in(result)
            del result
    assert sorted(seen) == [*range(500)]
    assert max(most) <= FEW
    assert max(pool.map(count_descriptors, range(8), 1)) <= FEW
    pool.close()
    pool.join()
    del pool
    assert more_memory_files(files) == []
    assert len(descriptors()) <= before


def count_descriptors(_: Any = None) -> int:
    """Return how many this process has."""
    return len(descriptors())


def test_a_worker_has_few_descriptors_open(make_pool: MakePool) -> None:
    """As many after a thousand items as after ten."""
    pool = make_pool(1)
    counts = []
    for count in (10, 1000):
        assert [*pool.imap(scribble, (fresh(number) for number in range(count)))] == [[n] for n in range(count)]
        for number in range(count):
            assert is_all(pool.apply(fresh, (number,)), number)
        counts.append(pool.apply(count_descriptors))
    assert counts[1] <= counts[0] + 10


FEW_AND_WHO = [
    (64, 100, "fork", "anybody"),
    (64, 200, "fork", "anybody"),
    (160, 200, "fork", "ordinary"),
    *((160, 200, method, "anybody") for method in START_METHODS),
]


@pytest.mark.parametrize(("few", "size", "method", "who"), FEW_AND_WHO)
def test_a_program_with_few_descriptors_keeps_many_results(few: int, size: int, method: str, who: str) -> None:
    """The program says what it checks; it prints one word when all of it held."""
    if who == "ordinary" and os.getuid() != 0:
        pytest.skip("whoever runs this is an ordinary user already")
    command = [sys.executable, "-W", "error", str(PROGRAM), method, str(few), str(size), who]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


def result_or_errno(iterator: Iterator[Any]) -> list[int]:
    """Return which numbers are in the next result; the number of an error where that is what it is, below zero."""
    try:
        return numbers_in(next(iterator))
    except OSError as error:
        return [-(error.errno or 0)]


def of_size(size: int, number: int) -> Array:
    """Make an array of so many bytes, full of a number."""
    return fresh(number, size)


@pytest.mark.parametrize("size", [4 * KIB, MIDDLE, LARGE])
def test_where_no_descriptor_is_free_a_result_fails_alone(make_pool: MakePool, size: int) -> None:
    """Those of the caller are nearly all taken: no worker is blamed for that, and it passes."""
    make = partial(of_size, size)
    pool = make_pool(2)
    pids = sorted(worker.pid for worker in pool._pool)
    with few_descriptors_free():
        results = pool.imap(make, range(100))
        assert all(result_or_errno(results) in ([number], [-errno.EMFILE]) for number in range(100))
    assert sorted(worker.pid for worker in pool._pool) == pids
    assert [numbers_in(each) for each in pool.imap(make, range(100))] == [[number] for number in range(100)]


def test_where_no_descriptor_is_free_results_stop_to_need_them(make_pool: MakePool) -> None:
    """After the first that were lost for that."""
    pool, right = make_pool(2), [[number] for number in range(300)]
    make = partial(of_size, 4 * KIB)
    with few_descriptors_free():
        for _ in range(100):
            results = pool.imap(make, range(300))
            if [result_or_errno(results) for _ in right] != right:
                break
        else:
            pytest.skip("nothing was lost")
        for _ in range(5):
            assert [numbers_in(each) for each in pool.imap(make, range(300))] == right
            assert [numbers_in(each) for each in pool.map(make, range(300))] == right


@contextmanager
def few_descriptors_free() -> Iterator[None]:
    """Take nearly all the descriptors that the caller may have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 12, limits[1]))
        spare = highest + 12 - len(os.listdir("/proc/self/fd")) - 8
        taken += [os.open(os.devnull, os.O_RDONLY) for _ in range(spare)]
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


KEPT_OPEN: list[int] = []


def leave_free(number: int) -> None:
    """As an initializer: let the worker have so many descriptors more, of any number."""
    highest = max(map(int, os.listdir("/proc/self/fd"))) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
    with suppress(OSError):
        while True:
            KEPT_OPEN.append(os.dup(0))
    for descriptor in KEPT_OPEN[:number]:
        os.close(descriptor)


def write_nothing() -> None:
    """As an initializer, of a sandbox say: no file may have a byte, nor may memory that is one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


POOR: dict[str, tuple[Any, ...]] = {
    "no descriptor": (leave_free, (0,)),
    "few descriptors": (leave_free, (8,)),
    "no files": (write_nothing,),
}


@pytest.mark.parametrize("face", ["map", "imap", "apply_async"])
@pytest.mark.parametrize("why", POOR)
def test_small_items_need_nothing_that_a_worker_may_lack(make_pool: MakePool, why: str, face: str) -> None:
    """Nor do their results, however many of them go together elsewhere."""
    pool = make_pool(2, *POOR[why])
    pids = sorted(worker.pid for worker in pool._pool)
    for items in ([bytes([number % 256]) * 4000 for number in range(300)], list(range(5000))):
        if face == "map":
            assert pool.map_async(identity, items, chunksize=1).get(PATIENCE) == items
        elif face == "imap":
            results = pool.imap(identity, items)
            assert [results.next(PATIENCE) for _ in items] == items
        else:
            assert [result.get(PATIENCE) for result in [pool.apply_async(identity, (i,)) for i in items]] == items
    assert sorted(worker.pid for worker in pool._pool) == pids


@pytest.mark.parametrize(
    ("why", "receives", "sends"),
    [("no descriptor", False, False), ("few descriptors", True, True), ("no files", True, False)],
)
@pytest.mark.parametrize("size", [MIDDLE, LARGE])
def test_what_a_worker_lacks_the_means_for_fails_alone(
    make_pool: MakePool, why: str, receives: bool, sends: bool, size: int
) -> None:
    """What is large on its way there, or back. Others that go with it have their results."""
    pool = make_pool(1, *POOR[why])
    there = pool.apply_async(is_all, (fresh(1, size), 1))
    back = pool.apply_async(fresh, (2, size))
    others = [pool.apply_async(identity, (number,)) for number in range(50)]
    for result, right, can in ((there, True, receives), (back, [2], sends)):
        if can:
            value = result.get(PATIENCE)
            assert (value if result is there else numbers_in(value)) == right
        else:
            with pytest.raises(pairpool.PairpoolError, match="could not be sent"):
                result.get(PATIENCE)
    assert [other.get(PATIENCE) for other in others] == list(range(50))
    items = [fresh(number, size) if number % 40 == 0 else bytes(10) for number in range(200)]
    results = [pool.apply_async(len, (item,)) for item in items]
    for item, result in zip(items, results, strict=True):
        if receives or isinstance(item, bytes):
            assert result.get(PATIENCE) == len(item)
        else:
            with pytest.raises(pairpool.PairpoolError, match="could not be sent"):
                result.get(PATIENCE)


def use_little_memory() -> None:
    """Send what is large there and back, in a process that may have 400 MiB more than it has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 400 * MIB
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    with pairpool.get_context("fork").Pool(1) as pool:
        for number in range(5):
            assert is_all(pool.apply_async(identity, (fresh(number),)).get(PATIENCE), number)
    pool.join()


def test_what_is_read_takes_no_more_memory_than_it_is() -> None:
    """A limit of address space leaves room for what is large, and not for much more."""
    assert run_in_child(use_little_memory) == 0


# -- Rest -------------------------------------------------------------------------------------------


def held_in_slabs(pid: int) -> int:
    """Return how much a process holds of slabs: bytes that are mapped, and descriptors."""
    return shared_bytes(pid, "pairpool-slab") + len(memory_files(pid, "pairpool-slab"))


def hold_no_more(pids: Iterable[int], most: int) -> bool:
    """Tell whether none of some processes holds more than that."""
    return all(held_in_slabs(pid) <= most for pid in pids)


def test_a_pool_at_rest_holds_no_slabs(make_pool: MakePool, start_method: str) -> None:
    """When results are dropped and nothing is to do, caller and workers give back the memory that they would use again.

    (What the caller has from others its forked workers have, too.)
    Where large data travels by other ways there is nothing to give back.
    """
    before = held_in_slabs(os.getpid())
    pool = make_pool(2, start_method=start_method)
    for _ in range(2):
        for number, result in enumerate(pool.imap(identity, [fresh(number, MIB) for number in range(40)])):
            assert is_all(result, number)
        del result
        assert is_all(pool.apply(identity, (fresh(7, MIB),)), 7)
        pids = [os.getpid(), *(worker.pid for worker in pool._pool)]
        assert comes_true(partial(hold_no_more, pids, before), 10.0), [memory_files(pid) for pid in pids]


def test_what_is_kept_is_all_that_a_pool_at_rest_holds(make_pool: MakePool) -> None:
    """A result that is not dropped stays, and is as it was."""
    before = held_in_slabs(os.getpid())
    pool = make_pool(1)
    kept = [result for result in pool.imap(fresh, range(40)) if is_all(result, 7)]
    pids = [os.getpid(), *(worker.pid for worker in pool._pool)]
    most = before + 4 * LARGE  # sizes are rounded up, and what is mapped and what of it is resident are added
    assert comes_true(partial(hold_no_more, pids, most), 10.0), [memory_files(pid) for pid in pids]
    assert [numbers_in(each) for each in kept] == [[7]]


# -- Interrupts -------------------------------------------------------------------------------------


def wait_with(work: tuple[Line, Line, Array]) -> list[int]:
    """Say that an item runs, wait until it may go on, and return what is in its array."""
    inside, gate, array = work
    inside.tell(b"i")
    gate.await_told()
    return scribble(array)


def have_right_maps(pool: Any, count: int = 50) -> None:
    """Have maps of large arrays give right results, there and back."""
    for number in range(count):
        results = pool.map(identity, [fresh(10 * number + place, MIB) for place in range(4)])
        assert [numbers_in(each) for each in results] == [[10 * number + place] for place in range(4)]


@pytest.fixture
def strikes() -> Iterator[None]:
    """Have SIGUSR1 raise `Interrupted`."""

    def strike(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, strike)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("strikes")
def test_maps_after_one_that_was_interrupted(make_pool: MakePool, make_line: MakeLine) -> None:
    """What it left behind disturbs nobody: some of it runs on, the rest never begins."""
    inside, gate, pool = make_line(), make_line(), make_pool(2)

    def strike() -> None:
        inside.await_told(2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    striking = threading.Thread(target=strike)
    striking.start()
    with pytest.raises(Interrupted):
        pool.map(wait_with, [(inside, gate, fresh(number, MIB)) for number in range(8)], 1)
    striking.join()
    gate.tell(b"x" * 8)
    have_right_maps(pool)


class Alarm:
    """Raises `Interrupted` once in this thread, after a time, if it is still wanted then."""

    def __init__(self) -> None:
        self.wanted = False

    def ring(self, *_: object) -> None:
        """Be the handler."""
        if self.wanted:
            self.wanted = False
            raise Interrupted


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    """An alarm for SIGALRM; nothing is collected meanwhile, as what is raised in a finalizer would be lost."""
    alarm = Alarm()
    before = signal.signal(signal.SIGALRM, alarm.ring)
    gc.disable()
    yield alarm
    gc.enable()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


# What is struck, of calls that are made. (Where a call starts a thread, it is made before.)
STRUCK: dict[str, Callable[[Any, list[Array]], Callable[[], Any]]] = {
    "map": lambda pool, arrays: partial(pool.map, identity, arrays),
    "map_async": lambda pool, arrays: pool.map_async(identity, arrays).get,
    "imap": lambda pool, arrays: partial(list, pool.imap(identity, arrays)),
    "apply": lambda pool, arrays: partial(apply_to_each, pool, arrays),
    "submit": lambda pool, arrays: partial(submit_each, pool, arrays),
}


def apply_to_each(pool: Any, arrays: list[Array]) -> list[Array]:
    """Send some there and back, one after another."""
    return [pool.apply(identity, (array,)) for array in arrays]


def submit_each(pool: Any, arrays: list[Array]) -> list[Array]:
    """Send some there and back, together."""
    return [future.result() for future in [pool.submit(identity, array) for array in arrays]]


def nothing_pends(pool: Any) -> bool:
    """Tell whether all that was asked of a pool has ended."""
    return not pool._cache


@pytest.mark.parametrize("face", STRUCK)
# The library has its threads in a set with a finalizer in Python: what strikes there is printed and lost.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function WeakSet:pytest.PytestUnraisableExceptionWarning")
def test_calls_are_interrupted_at_any_moment(make_pool: MakePool, alarm: Alarm, face: str) -> None:
    """They raise that, or give what is right; nothing stays of those that were struck."""
    before = memory_files()
    pool, random = make_pool(2), Random(SEED)
    struck = 0
    for number in range(60):
        arrays = [fresh(10 * number + place, 512 * KIB) for place in range(4)]
        call = STRUCK[face](pool, arrays)
        alarm.wanted = True
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 6e-3))
            results = call()
            alarm.wanted = False
            assert [numbers_in(each) for each in results] == [[10 * number + place] for place in range(4)]
            del results
        except Interrupted:
            struck += 1
        del arrays, call
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert struck > 0
    have_right_maps(pool, 5)
    assert comes_true(partial(nothing_pends, pool), 5.0), "something is pending for ever"
    pool.close()
    pool.join()
    del pool
    # The feeder of a call that was struck may still be at an item.
    assert comes_true(lambda: more_memory_files(before) == [], 5.0)


def raise_an_error() -> None:
    """Do what handlers of alarms do; that is an OSError, as what the system raises."""
    raise TimeoutError("of the handler")


@pytest.mark.parametrize("face", STRUCK)
def test_what_a_handler_raises_is_no_shortage(make_pool: MakePool, face: str) -> None:
    """It comes out wherever it strikes; it does not make payloads go another way, nor their worker guilty."""
    pool, arrays = make_pool(1), [fresh(1, LARGE)]
    pids = set(pool.map(worker_pid, range(5)))

    def call() -> None:
        STRUCK[face](pool, arrays)()

    for _ in range(4):
        call()  # until there are slabs, and they are mapped
    for number in itertools.count():
        interruption, came_out = Interruption([number], raise_an_error), ""
        gc.disable()  # in a finalizer of another test's pool nobody would notice a strike
        try:
            interruption.watch(call)
        except TimeoutError as error:
            came_out = str(error)
        finally:
            gc.enable()
        if not interruption.struck:
            break
        assert came_out == "of the handler", interruption.struck
    assert number > 50
    assert set(pool.map(worker_pid, range(5))) == pids


# -- Cancelling -------------------------------------------------------------------------------------


def test_tasks_after_one_that_was_cancelled(make_pool: MakePool, make_line: MakeLine) -> None:
    """Its worker lives on, and what it was given is used by nobody who must not."""
    inside, gate, pool = make_line(), make_line(), make_pool(1)
    pid = pool.apply(worker_pid)
    for number in range(20):
        future = pool.submit(wait_with, (inside, gate, fresh(number, MIB)))
        inside.await_told()
        assert future.cancel(running=True)
        result = pool.apply(identity, (fresh(100 + number, MIB),))
        assert numbers_in(result) == [100 + number]
    have_right_maps(pool, 10)
    assert pool.apply(worker_pid) == pid


def test_calls_that_were_cancelled_before_they_began(make_pool: MakePool, make_line: MakeLine) -> None:
    """What they were to be given is dropped; those beside them have theirs."""
    before = memory_files()
    inside, gate, pool = make_line(), make_line(), make_pool(1)
    first = pool.submit(wait_with, (inside, gate, fresh(1)))
    inside.await_told()
    queued = [pool.submit(scribble, fresh(number)) for number in range(60)]
    assert all(future.cancel(running=True) for future in queued[::2])
    gate.tell(b"x")
    assert first.result(PATIENCE) == [1]
    assert [future.result(PATIENCE) for future in queued[1::2]] == [[number] for number in range(1, 60, 2)]
    del first, queued
    pool.close()
    pool.join()
    del pool
    assert more_memory_files(before) == []


def test_a_pool_that_is_terminated_with_much_under_way(make_pool: MakePool, make_line: MakeLine) -> None:
    """Results that have not come never do, those that have stay, and no memory is left."""
    before = memory_files()
    inside, gate, pool = make_line(), make_line(), make_pool(2)
    kept = pool.map(fresh, range(10))
    pending = pool.map_async(wait_with, [(inside, gate, fresh(number, MIB)) for number in range(20)], 1)
    inside.await_told(2)
    pool.terminate()
    with pytest.raises(pairpool.PoolTerminatedError):
        pending.get(PATIENCE)
    assert [numbers_in(each) for each in kept] == [[number] for number in range(10)]
    del pool, pending, kept
    deadline = time.monotonic() + PATIENCE
    while more_memory_files(before) and time.monotonic() < deadline:
        time.sleep(0.01)  # the thread that pickles items may be at one of them, and ends behind it
    assert more_memory_files(before) == []
