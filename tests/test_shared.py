"""`Pool.share`: how tasks get the object, that it is in memory once, and what releases it."""

from __future__ import annotations

import errno
import functools
import gc
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forks import open_descriptors
from holdings import Holdings, remains
from pairpool import Retry
from pairpool._slab import NAME
from receiving import PATIENCE
from tasks import Line, identity, worker_pid

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

SIZE = 200_000  # numbers: what is mapped, and not copied


def numbers() -> Any:
    """Make an array that is worth sharing."""
    return np.arange(SIZE)


def look(array: Any, item: int = 0) -> tuple[int, bool, int, int]:
    """Return what a task sees of an array: type and content, whether it may write, its item, its worker."""
    assert type(array) is np.ndarray
    return int(array[-1]), bool(array.flags.writeable), item, os.getpid()


def look_into(things: Any, item: int = 0) -> Any:
    """As `look`, of an array in a list in a dict."""
    return look(things["here"][1], item)


def look_at_both(one: Any, other: Any) -> tuple[int, int, bool]:
    """Return something of each, and whether they are the same object."""
    return int(one[-1]), int(other[-1]), one is other


def shared_by(pid: int) -> list[int]:
    """Return the inodes of the memory of slabs that a process has mapped, one for each mapping."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [int(line.split()[4]) for line in lines if f"/memfd:{NAME}" in line]


def slabs_open() -> int:
    """Return how many descriptors of slabs this process has."""
    return sum(NAME in target for target in open_descriptors().values())


def pids(pool: Any) -> list[int]:
    """Return the workers' pids."""
    return [worker.pid for worker in pool._pool]


def is_soon(what: Callable[[], bool]) -> bool:
    """Wait until something is so; False where it never is."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def is_gone(pool: Any) -> bool:
    """Wait until no worker has anything of what was shared."""
    return is_soon(lambda: not any(map(shared_by, pids(pool))))


def on_every_worker(pool: Any, lines: Sequence[Line], task: Any) -> list[Any]:
    """Have every worker run a task, each while the others do."""
    (inside, gate), count = lines, len(pool._pool)
    results = [pool.apply_async(meet, (inside, gate, task)) for _ in range(count)]
    inside.await_told(count)
    gate.tell(b"x" * count)
    return [result.get(PATIENCE) for result in results]


def meet(inside: Line, gate: Line, task: Any) -> Any:
    """Tell that the task is there, wait for all others, and run it."""
    inside.tell(b"i")
    gate.await_told()
    return task()


@pytest.fixture
def lines(make_line: MakeLine) -> Sequence[Line]:
    """Two lines, for `on_every_worker`."""
    return make_line(), make_line()


# -- How tasks get it --------------------------------------------------------------------------------

FACES: dict[str, Callable[[Any, Any], list[Any]]] = {
    "apply": lambda pool, handle: [pool.apply(look, (handle, item)) for item in range(3)],
    "apply with keywords": lambda pool, handle: [pool.apply(look, (), {"array": handle, "item": i}) for i in range(3)],
    "apply_async": lambda pool, handle: [pool.apply_async(look, (handle, item)).get(PATIENCE) for item in range(3)],
    "submit": lambda pool, handle: [pool.submit(look, handle, item=item).result(PATIENCE) for item in range(3)],
    "map": lambda pool, handle: pool.map(functools.partial(look, handle), range(3)),
    "map in chunks": lambda pool, handle: pool.map(functools.partial(look, handle), range(3), 2),
    "map of handles": lambda pool, handle: [
        (*seen[:2], item, seen[3]) for item, seen in enumerate(pool.map(look, [handle] * 3))
    ],
    "map_async": lambda pool, handle: (
        pool.map_async(functools.partial(look, array=handle, item=0), []).get(PATIENCE)
        or pool.map_async(functools.partial(look, handle), range(3)).get(PATIENCE)
    ),
    "starmap": lambda pool, handle: pool.starmap(look, [(handle, item) for item in range(3)]),
    "imap": lambda pool, handle: list(pool.imap(functools.partial(look, handle), range(3))),
    "imap in chunks": lambda pool, handle: list(pool.imap(functools.partial(look, handle), range(3), 2)),
    "imap_unordered": lambda pool, handle: sorted(pool.imap_unordered(functools.partial(look, handle), iter(range(3)))),
    "nested": lambda pool, handle: pool.starmap(look_into, [({"here": [None, handle]}, item) for item in range(3)]),
    "nested in a partial": lambda pool, handle: pool.map(functools.partial(look_into, {"here": (5, handle)}), range(3)),
    "in a closure": lambda pool, handle: pool.map(lambda item: look(handle, item), range(3)),
    "with options": lambda pool, handle: pool.options(retry=Retry(1)).starmap(look, [(handle, i) for i in range(3)]),
}


@pytest.mark.parametrize("face", FACES)
def test_tasks_get_the_object_itself(make_pool: MakePool, face: str) -> None:
    """They can only read it; and a second time it is no different."""
    pool = make_pool(2)
    with pool.share(numbers()) as handle:
        for _ in range(2):
            seen = FACES[face](pool, handle)
            assert [each[:3] for each in seen] == [(SIZE - 1, False, item) for item in range(3)]
            assert {each[3] for each in seen} <= set(pids(pool))


def test_it_is_the_same_with_every_start_method(make_pool: MakePool, start_method: str) -> None:
    """However the workers came to be, they have the same memory."""
    pool = make_pool(2, start_method=start_method)
    handle = pool.share(numbers())
    seen = pool.map(functools.partial(look, handle), range(20), 1)
    assert [each[:3] for each in seen] == [(SIZE - 1, False, item) for item in range(20)]
    inodes = {inode for pid in {each[3] for each in seen} for inode in shared_by(pid)}
    assert len(inodes) == 1


def test_the_memory_is_there_once(make_pool: MakePool, lines: Sequence[Line]) -> None:
    """Every worker has it mapped, once, and nothing else of the kind; those too that come later."""
    pool = make_pool(2)
    handle = pool.share([numbers(), numbers() + 1])
    assert on_every_worker(pool, lines, functools.partial(len, handle)) == [2, 2]
    first, *others = map(shared_by, pids(pool))
    assert len(first) == 1
    assert others == [first]
    pool.resize(4)
    assert is_soon(lambda: len(pool._pool) == 4)
    assert on_every_worker(pool, lines, functools.partial(len, handle)) == [2] * 4
    assert list(map(shared_by, pids(pool))) == [first] * 4
    killed = pool._pool[0]
    killed.kill()
    assert is_soon(lambda: killed not in pool._pool and len(pool._pool) == 4)
    assert on_every_worker(pool, lines, functools.partial(len, handle)) == [2] * 4
    assert list(map(shared_by, pids(pool))) == [first] * 4


class Noting:
    """Writes down where it is loaded."""

    def __init__(self, journal: str, array: Any) -> None:
        self.journal = journal
        self.array = array

    def __call__(self, item: int) -> int:
        """Be a task."""
        return int(self.array[item])

    def __setstate__(self, state: Any) -> None:
        vars(self).update(state)
        with open(self.journal, "a") as journal:
            journal.write(f"{os.getpid()}\n")


@pytest.mark.parametrize("way", ["argument", "function"])
def test_each_worker_loads_it_once(make_pool: MakePool, tmp_path: Path, lines: Sequence[Line], way: str) -> None:
    """However many tasks it runs with it, by whatever methods, one by one or in packets."""
    journal = tmp_path / "journal"
    pool = make_pool(2)
    handle = pool.share(Noting(str(journal), numbers()))
    task = functools.partial(getattr, handle, "journal") if way == "argument" else functools.partial(handle, 7)
    assert on_every_worker(pool, lines, task) == 2 * [str(journal) if way == "argument" else 7]
    assert pool.map(handle, range(100)) == list(range(100))
    assert list(pool.imap(handle, range(10))) == list(range(10))
    assert [pool.submit(handle, item).result(PATIENCE) for item in range(5)] == list(range(5))
    assert pool.starmap(getattr, [(handle, "journal")] * 5) == [str(journal)] * 5
    assert Counter(map(int, journal.read_text().split())) == Counter(pids(pool))


def test_it_is_loaded_when_it_is_needed_and_not_before(make_pool: MakePool, tmp_path: Path) -> None:
    """One that nobody uses costs the workers nothing."""
    journal = tmp_path / "journal"
    journal.touch()
    pool = make_pool(2)
    handle = pool.share(Noting(str(journal), numbers()))
    assert pool.map(identity, range(100)) == list(range(100))
    assert journal.read_text() == ""
    assert not any(map(shared_by, pids(pool)))
    assert repr(handle) == "<Shared Noting>"


class LoadsLater:
    """Cannot be loaded the first time."""

    def __init__(self, array: Any, flag: str) -> None:
        self.state = array, flag

    def __reduce__(self) -> Any:
        return load_later, self.state


def load_later(array: Any, flag: str) -> Any:
    """Fail once."""
    if not os.path.exists(flag):
        with open(flag, "w"):
            raise OSError("not yet")
    return array


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_error_of_loading_is_the_task_s(make_pool: MakePool, tmp_path: Path, method: str) -> None:
    """Others try again, in the same worker, and the object is still there."""
    pool = make_pool(1, start_method=method)
    handle = pool.share(LoadsLater(numbers(), str(tmp_path / "flag")))
    with pytest.raises(OSError, match="not yet"):
        pool.apply(look, (handle,))
    assert pool.apply(look, (handle,))[:2] == (SIZE - 1, False)
    assert pool.map(functools.partial(look, handle), range(2))[1][:3] == (SIZE - 1, False, 1)


# -- What can be shared ------------------------------------------------------------------------------


def call(function: Any, *args: Any) -> Any:
    """Call what was given."""
    return function(*args)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_function_may_be_shared(make_pool: MakePool, method: str) -> None:
    """A lambda, or one that closes over much data, which is in memory once."""
    table = numbers()
    pool = make_pool(2, start_method=method)
    plain, closure = pool.share(lambda item: item + 1), pool.share(lambda item: int(table[item]))
    for handle, more in ((plain, 1), (closure, 0)):
        expected = [item + more for item in range(20)]
        assert pool.map(handle, range(20)) == expected
        assert pool.map(handle, range(20), 3) == expected
        assert list(pool.imap(handle, range(20))) == expected
        assert list(pool.imap(handle, iter(range(20)), 3)) == expected
        assert pool.starmap(handle, [(item,) for item in range(20)]) == expected
        assert [pool.apply(handle, (item,)) for item in range(3)] == expected[:3]
        assert [pool.submit(handle, item).result(PATIENCE) for item in range(3)] == expected[:3]
        assert pool.starmap(call, [(handle, item) for item in range(20)]) == expected
        assert handle(5) == 5 + more  # here it is called here
    assert max(map(len, map(shared_by, pids(pool)))) == 1


def test_an_item_may_have_several(make_pool: MakePool) -> None:
    """Each is what it is, and the same one is one object."""
    pool = make_pool(2)
    one, other = pool.share(numbers()), pool.share(numbers() * 2)
    assert pool.apply(look_at_both, (one, other)) == (SIZE - 1, 2 * SIZE - 2, False)
    assert pool.starmap(look_at_both, [(one, other), (other, one), (one, one)]) == [
        (SIZE - 1, 2 * SIZE - 2, False),
        (2 * SIZE - 2, SIZE - 1, False),
        (SIZE - 1, SIZE - 1, True),
    ]


NESTED: dict[str, Callable[[Any, Any], Any]] = {
    "a partial": lambda pool, inner: pool.share(functools.partial(look, inner)),
    "a closure": lambda pool, inner: pool.share(lambda item: look(inner, item)),
    "twice": lambda pool, inner: pool.share(functools.partial(call, pool.share(functools.partial(look, inner)))),
    "with another": lambda pool, inner: pool.share(functools.partial(call, pool.share(look), inner)),
}


@pytest.mark.parametrize("face", ["map", "apply", "argument", "item", "of a partial"])
@pytest.mark.parametrize("nested", NESTED)
def test_one_may_be_within_another(make_pool: MakePool, nested: str, face: str) -> None:
    """Whichever comes first to a worker: it has both; and the outer one keeps the inner one."""
    pool = make_pool(1)
    inner = pool.share(numbers())
    outer = NESTED[nested](pool, inner)
    inner.close()
    del inner
    gc.collect()
    faces: dict[str, Callable[[], Any]] = {
        "map": lambda: pool.map(outer, [7])[0],
        "apply": lambda: pool.apply(outer, (7,)),
        "argument": lambda: pool.apply(call, (outer, 7)),
        "item": lambda: pool.starmap(call, [(outer, 7)])[0],
        "of a partial": lambda: next(pool.imap(functools.partial(call, outer), [7])),
    }
    assert faces[face]()[:3] == (SIZE - 1, False, 7)


class CountsUp:
    """Has a state, which a worker keeps."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _: int) -> int:
        """Count."""
        self.count += 1
        return self.count


def test_small_objects_may_be_shared(make_pool: MakePool) -> None:
    """A worker keeps what it has loaded, also where tasks change it, which nobody else sees."""
    pool = make_pool(1)
    counter = CountsUp()
    handle = pool.share(counter)
    assert pool.map(handle, range(5)) == [1, 2, 3, 4, 5]
    assert pool.apply(handle, (0,)) == 6
    assert handle.value is counter
    assert counter.count == 0


def test_what_cannot_be_pickled_is_told_at_once(make_pool: MakePool) -> None:
    """Nothing is left of it, and the pool works on."""
    pool = make_pool(1)
    with pytest.raises(TypeError, match="cannot pickle"):
        pool.share([numbers(), threading.Lock()])
    assert slabs_open() == 0
    assert pool.apply(abs, (-1,)) == 1


def test_without_room_for_a_slab_it_travels_all_the_same(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then each worker has its own."""

    def fail(*_: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    pool = make_pool(2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", fail)
        handle = pool.share(numbers())
    assert [seen[0] for seen in pool.map(functools.partial(look, handle), range(9), 1)] == [SIZE - 1] * 9


def die_once(array: Any, journal: str) -> int:
    """Kill the worker the first time."""
    with open(journal, "a") as file:
        file.write("x")
    if os.path.getsize(journal) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(array[-1])


def test_an_item_that_is_run_again_gets_it_again(make_pool: MakePool, tmp_path: Path) -> None:
    """Also in a worker that came up for that."""
    pool = make_pool(1, retry=Retry(1))
    handle = pool.share(numbers())
    before = pool.apply(worker_pid)
    assert pool.apply(die_once, (handle, str(tmp_path / "call"))) == SIZE - 1
    assert pool.map(functools.partial(die_once, handle), [str(tmp_path / "item")]) == [SIZE - 1]
    assert pool.apply(worker_pid) != before


def test_a_large_one_is_no_leftover(make_pool: MakePool) -> None:
    """The caller has no mapping of it, and nothing after the pool though the handle is still there."""
    before = Holdings.now()
    pool = make_pool(2)
    handle = pool.share(numbers())
    assert pool.map(functools.partial(look, handle), range(4))[0][:2] == (SIZE - 1, False)
    assert shared_by(os.getpid()) == []
    pool.terminate()
    handle.close()
    assert remains(before) == []
