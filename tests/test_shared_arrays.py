"""`Pool.empty`: arrays in memory that the caller and all workers write to."""

from __future__ import annotations

import errno
import functools
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import test_shared
from forks import open_descriptors
from holdings import Holdings, remains
from pairpool import Retry, WorkerLostError
from receiving import PATIENCE
from tasks import Line, worker_pid
from test_shared import is_soon, on_every_worker, pids

MakePool = Callable[..., Any]

lines = test_shared.lines


def fill(array: Any, item: int) -> int:
    """Write an item's part, and return the worker's pid."""
    array[item] = item + 1
    return os.getpid()


def describe(array: Any) -> tuple[Any, ...]:
    """Return what a worker sees."""
    return array.shape, array.dtype, bool(array.flags.writeable), array.tobytes()


def memory_of(pid: int) -> list[int]:
    """Return the inodes of the arrays that a process has mapped, one for each mapping."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [int(line.split()[4]) for line in lines if "/memfd:pairpool-array" in line]


def arrays_open() -> int:
    """Return how many descriptors of arrays this process has."""
    return sum("pairpool-array" in target for target in open_descriptors().values())


def test_what_tasks_write_is_seen_by_the_caller(make_pool: MakePool, start_method: str) -> None:
    """And the other way round; nothing is sent."""
    pool = make_pool(2, start_method=start_method)
    with pool.empty(100, "i8") as handle:
        assert handle.value.tolist() == [0] * 100
        pool.map(functools.partial(fill, handle), range(50), 1)
        assert handle.value.tolist() == [*range(1, 51), *[0] * 50]
        handle.value[99] = 77
        assert pool.apply(describe, (handle,)) == ((100,), np.dtype("i8"), True, handle.value.tobytes())


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (5, float),
        (5, "i2"),
        (np.int64(5), np.uint8),
        ((), "f4"),
        (0, "f8"),
        ((3, 0, 2), "f8"),
        ((2, 3), "c16"),
        ([2, 3], np.bool_),
        (np.array([2, 3]), "M8[s]"),
        ((2,), [("name", "U5"), ("x", "f4", (2, 3))]),
        (7, "S9"),
        (3, ">i4"),
    ],
    ids=str,
)
def test_it_has_the_shape_and_type_that_was_asked_for(make_pool: MakePool, shape: Any, dtype: Any) -> None:
    """As an array of numpy's, and there is nothing in it."""
    like = np.zeros(shape, dtype)
    pool = make_pool(1)
    with pool.empty(shape, dtype) as handle:
        mine = handle.value
        assert type(mine) is np.ndarray
        assert describe(mine) == describe(like)
        assert pool.apply(describe, (handle,)) == describe(like)


def test_numbers_are_floats_unless_told(make_pool: MakePool) -> None:
    """As numpy has it."""
    assert make_pool(1).empty((2, 2)).value.dtype == np.empty((2, 2)).dtype


def test_all_have_the_same_memory(make_pool: MakePool, lines: Sequence[Line]) -> None:
    """Workers present and to come, each mapped once, and the caller."""
    pool = make_pool(2)
    handle = pool.empty(1000, "i4")
    task = functools.partial(fill, handle, 3)
    assert sorted(on_every_worker(pool, lines, task)) == sorted(pids(pool))
    (inode,) = memory_of(os.getpid())
    assert [memory_of(pid) for pid in pids(pool)] == [[inode]] * 2
    pool.resize(3)
    killed = pool._pool[0]
    killed.kill()
    assert is_soon(lambda: killed not in pool._pool and len(pool._pool) == 3)
    handle.value[3] = 0
    assert sorted(on_every_worker(pool, lines, task)) == sorted(pids(pool))
    assert [memory_of(pid) for pid in pids(pool)] == [[inode]] * 3
    assert handle.value[3] == 4
    handle.close()
    assert is_soon(lambda: not any(map(memory_of, pids(pool))))


def fill_and_die(array: Any, item: int) -> int:
    """Write, and kill the worker the first time."""
    array[item] += 1
    if array[item] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_what_a_worker_has_written_survives_it(make_pool: MakePool) -> None:
    """Whoever runs the item again finds it."""
    pool = make_pool(1)
    handle = pool.empty(2, int)
    before = pool.apply(worker_pid)
    with pytest.raises(WorkerLostError):
        pool.apply(fill_and_die, (handle, 0))
    assert handle.value.tolist() == [1, 0]
    assert pool.options(retry=Retry(1)).apply(fill_and_die, (handle, 1)) != before
    assert handle.value.tolist() == [1, 2]


def test_several_in_one_item(make_pool: MakePool) -> None:
    """Beside what is shared otherwise: from one into the other."""
    pool = make_pool(2)
    source, target = pool.share(np.arange(200_000)), pool.empty(200_000, int)
    parts = [(target, source, slice(start, start + 50_000)) for start in range(0, 200_000, 50_000)]
    assert pool.starmap(copy_part, parts) == [None] * 4
    assert target.value.tolist() == list(range(200_000))


def copy_part(target: Any, source: Any, part: slice) -> None:
    """Copy a part."""
    target[part] = source[part]


def test_the_caller_s_array_lives_on(make_pool: MakePool) -> None:
    """After the handle, and after the pool; the handle says that it was closed."""
    pool = make_pool(1)
    handle = pool.empty(5, int)
    pool.map(functools.partial(fill, handle), range(5))
    mine = handle.value
    assert handle.value is mine
    handle.close()
    with pytest.raises(ValueError, match="the shared object was closed"):
        _ = handle.value
    with pytest.raises(ValueError, match="the shared object was closed"):
        pool.apply(fill, (handle, 0))
    mine[0] = 50
    pool.terminate()
    pool.join()
    del handle, pool
    mine[1] = 60
    assert mine.tolist() == [50, 60, 3, 4, 5]
    assert len(memory_of(os.getpid())) == 1


def test_nothing_is_left_of_it(make_pool: MakePool) -> None:
    """Not in the caller, whose last view of it is gone, and not in the workers."""
    before = Holdings.now()
    pool = make_pool(1)
    handle = pool.empty(1000)
    pool.apply_async(fill, (handle, 0)).get(PATIENCE)
    del handle
    pool.apply(abs, (-1,))
    assert is_soon(lambda: not any(map(memory_of, [os.getpid(), *pids(pool)])))
    pool.terminate()
    assert remains(before) == []


# -- What is refused ---------------------------------------------------------------------------------

REFUSED: list[tuple[Any, Any, type[Exception], str]] = [
    (5, object, ValueError, "array of Python objects cannot be shared"),
    (5, [("a", "i4"), ("b", "O")], ValueError, "array of Python objects cannot be shared"),
    (-1, float, ValueError, "negative dimensions"),
    ((2, -3), float, ValueError, "negative dimensions"),
    ((-2, -3), float, ValueError, "negative dimensions"),
    ((0, -1), float, ValueError, "negative dimensions"),
    (2.5, float, TypeError, "integer"),
    ("5", float, TypeError, "integer"),
    (5, "nonsense", TypeError, "nonsense"),
    ((1 << 40, 1 << 40), float, ValueError, "too big"),
    (1 << 46, float, MemoryError, "allocate"),
]


@pytest.mark.parametrize(("shape", "dtype", "error", "words"), REFUSED, ids=str)
def test_what_cannot_be_is_refused(
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    shape: Any,
    dtype: Any,
    error: type[Exception],
    words: str,
) -> None:
    """As numpy refuses it; nothing is left, and the pool works on."""

    def take(_: int, __: int, size: int) -> None:
        raise AssertionError(f"the kernel would be asked for {size} bytes, and kill whoever is in its way")

    monkeypatch.setattr(os, "posix_fallocate", take)
    pool = make_pool(1)
    with pytest.raises(error, match=words):
        pool.empty(shape, dtype)
    assert arrays_open() == 0
    assert memory_of(os.getpid()) == []
    assert pool.apply(abs, (-1,)) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EFBIG])
def test_where_there_is_no_memory_it_is_said_at_once(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """And not by a signal that kills whoever is the first to write there."""

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    pool = make_pool(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(MemoryError, match="no memory for an array of 8000 bytes"):
            pool.empty(1000)
    assert arrays_open() == 0
    with pool.empty(1000) as handle:
        assert os.fstat(handle.definition.payload.descriptors[0]).st_blocks * 512 >= 8000
