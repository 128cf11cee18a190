"""When what was shared is released, what becomes of it then, and where it cannot be used."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pairpool
from pairpool import _shared
from receiving import PATIENCE
from tasks import Line, identity
from test_shared import SIZE, is_gone, is_soon, look, numbers, pids, shared_by, slabs_open

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]


def wait_and_look(inside: Line, gate: Line, array: Any, item: int = 0) -> int:
    """Tell that the task has begun, wait, and return something of an array."""
    inside.tell(b"i")
    gate.await_told()
    return look(array, item)[0]


def fails_if_closed() -> Any:
    """Expect the error of a handle that was closed."""
    return pytest.raises(ValueError, match="the shared object was closed")


# -- What releases it --------------------------------------------------------------------------------


def test_close_releases_it(make_pool: MakePool) -> None:
    """The workers give up the memory, though nothing else is asked of them; twice does no harm."""
    pool = make_pool(2)
    handle = pool.share(numbers())
    pool.map(functools.partial(look, handle), range(20), 1)
    assert any(map(shared_by, pids(pool)))
    handle.close()
    handle.close()
    assert repr(handle) == "<Shared closed>"
    assert is_gone(pool)


def test_the_end_of_a_with_block_releases_it(make_pool: MakePool) -> None:
    """Also by an exception."""
    pool = make_pool(2)

    def use_it() -> None:
        with pool.share(numbers()) as handle:
            pool.map(functools.partial(look, handle), range(20), 1)
            assert any(map(shared_by, pids(pool)))
            raise KeyError

    with pytest.raises(KeyError):
        use_it()
    assert is_gone(pool)


def test_the_last_reference_releases_it(make_pool: MakePool) -> None:
    """Workers hear of it when something else happens."""
    pool = make_pool(2)
    handle = pool.share(numbers())
    task = functools.partial(look, handle)
    pool.map(task, range(20), 1)
    del handle
    assert pool.apply(task)[0] == SIZE - 1  # which has one
    assert any(map(shared_by, pids(pool)))
    del task
    gc.collect()
    pool.apply(abs, (-1,))
    assert is_gone(pool)


def test_the_caller_has_nothing_of_it_any_more(make_pool: MakePool) -> None:
    """Neither the descriptor nor the object."""
    pool = make_pool(1)
    handle = pool.share(numbers())
    pool.apply(look, (handle,))
    assert slabs_open() == 1
    assert handle.value is handle.value
    handle.close()
    assert is_soon(lambda: slabs_open() == 0)
    with fails_if_closed():
        _ = handle.value


# How a task is submitted while its pool's only worker is busy, and how its result is had afterwards.
LATER: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any], Any]]] = {
    "apply_async": (lambda pool, handle: pool.apply_async(look, (handle,)), lambda result: result.get(PATIENCE)),
    "submit": (lambda pool, handle: pool.submit(look, handle), lambda future: future.result(PATIENCE)),
    "map_async": (
        lambda pool, handle: pool.map_async(functools.partial(look, handle), range(8)),
        lambda result: result.get(PATIENCE)[3],
    ),
    "starmap_async": (
        lambda pool, handle: pool.starmap_async(look, [(handle, item) for item in range(8)]),
        lambda result: result.get(PATIENCE)[3],
    ),
    "imap": (lambda pool, handle: pool.imap(functools.partial(look, handle), range(8)), lambda results: [*results][3]),
    "imap from a generator": (
        lambda pool, handle: pool.imap(functools.partial(look, handle), iter(range(8))),
        lambda results: [*results][3],
    ),
    "the function": (
        lambda pool, handle: pool.submit(pool.share(functools.partial(look, handle))),
        lambda f: f.result(),
    ),
}


@pytest.mark.parametrize("result", ["is kept", "is dropped"])
@pytest.mark.parametrize("way", LATER)
def test_tasks_that_were_submitted_before_still_get_it(
    make_pool: MakePool, make_line: MakeLine, way: str, result: str
) -> None:
    """It is released when they have ended, and nobody need do anything for that, nor take their results."""
    inside, gate = make_line(), make_line()
    pool = make_pool(1)
    handle = pool.share(numbers())
    submit, take = LATER[way]
    first = pool.apply_async(wait_and_look, (inside, gate, handle))
    inside.await_told()
    later = submit(pool, handle)
    marker = pool.apply_async(abs, (-1,))
    handle.close()
    gate.tell(b"x")
    assert first.get(PATIENCE) == SIZE - 1
    if result == "is kept":
        assert marker.get(PATIENCE) == 1
        assert is_gone(pool)
        assert take(later)[:2] == (SIZE - 1, False)
    else:
        assert take(later)[:2] == (SIZE - 1, False)
        del later
    assert is_gone(pool)


CLOSED: dict[str, Callable[[Any, Any], Any]] = {
    "apply": lambda pool, handle: pool.apply(look, (handle,)),
    "apply_async": lambda pool, handle: pool.apply_async(look, (handle,)).get(PATIENCE),
    "submit": lambda pool, handle: pool.submit(look, handle).result(PATIENCE),
    "submit the function": lambda pool, handle: pool.submit(handle).result(PATIENCE),
    "map": lambda pool, handle: pool.map(functools.partial(look, handle), range(3)),
    "map the function": lambda pool, handle: pool.map(handle, range(3)),
    "map_async": lambda pool, handle: pool.map_async(functools.partial(look, handle), range(3)).get(PATIENCE),
    "map of handles": lambda pool, handle: pool.map(look, [numbers(), handle]),
    "starmap": lambda pool, handle: pool.starmap(look, [(handle, 1)]),
    "imap": lambda pool, handle: next(pool.imap(functools.partial(look, handle), range(3))),
    "imap of handles": lambda pool, handle: next(pool.imap(look, iter([handle]))),
    "imap_unordered": lambda pool, handle: next(pool.imap_unordered(handle, range(3))),
    "share": lambda pool, handle: pool.share([handle]),
    "call": lambda pool, handle: handle(1),
}


@pytest.mark.parametrize("way", CLOSED)
def test_tasks_that_come_later_are_told(make_pool: MakePool, way: str) -> None:
    """Where errors of pickling are told, in words; and the pool works on."""
    pool = make_pool(1)
    handle = pool.share(numbers())
    pool.apply(look, (handle,))
    handle.close()
    with fails_if_closed():
        CLOSED[way](pool, handle)
    assert pool.map(abs, [-1, -2]) == [1, 2]


def test_the_error_of_apply_async_is_its_result_s(make_pool: MakePool) -> None:
    """As any other of pickling: the call itself raises nothing, and callbacks are told."""
    told: list[BaseException] = []
    pool = make_pool(1)
    handle = pool.share(numbers())
    handle.close()
    result = pool.apply_async(look, (handle,), error_callback=told.append)
    with fails_if_closed():
        result.get(PATIENCE)
    assert [str(error) for error in told] == ["the shared object was closed"]


def test_others_are_not_released_with_it(make_pool: MakePool) -> None:
    """Nor is one that was made of the same object."""
    array = numbers()
    pool = make_pool(1)
    one, other = pool.share(array), pool.share(array)
    for handle in (one, other):
        pool.apply(look, (handle,))
    (pid,) = pids(pool)
    assert len(set(shared_by(pid))) == 2
    one.close()
    assert pool.apply(look, (other,))[0] == SIZE - 1
    other.close()
    assert is_gone(pool)


def keep(array: Any) -> int:
    """Keep what a task was given."""
    keep.__dict__["kept"] = array
    return len(array)


def drop() -> int:
    """Drop what was kept, and return something of it."""
    return int(keep.__dict__.pop("kept")[-1])


def test_what_a_task_keeps_it_has(make_pool: MakePool) -> None:
    """The memory is there for as long as somebody looks at it."""
    pool = make_pool(1)
    with pool.share(numbers()) as handle:
        pool.apply(keep, (handle,))
    assert pool.apply(identity, (5,)) == 5
    assert any(map(shared_by, pids(pool)))
    assert pool.apply(drop) == SIZE - 1
    assert is_gone(pool)


# -- Where it cannot be used -------------------------------------------------------------------------


def test_another_pool_does_not_have_it(make_pool: MakePool) -> None:
    """It says so, whatever it is used for, and both pools work on."""
    pool, other = make_pool(1), make_pool(1)
    handle = pool.share(numbers())
    words = pytest.raises(ValueError, match="only in tasks of the pool that it was made with")
    for use in (CLOSED["apply"], CLOSED["submit"], CLOSED["map"], CLOSED["map the function"], CLOSED["share"]):
        with words:
            use(other, handle)
    assert pool.apply(look, (handle,))[0] == SIZE - 1
    assert other.apply(abs, (-1,)) == 1


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_it_is_nothing_to_be_pickled(make_pool: MakePool, take: Callable[[Any], Any]) -> None:
    """Nor to be copied: it would be released twice."""
    handle = make_pool(1).share(numbers())
    with pytest.raises(pickle.PicklingError, match="only in tasks of the pool that it was made with"):
        take(handle)


def test_nothing_is_found_where_there_are_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever unpickles it there is told."""
    monkeypatch.setattr(_shared, "_find", None)
    with pytest.raises(pairpool.PairpoolError, match="only workers of its pool have it"):
        _shared.fetch(1)


@pytest.mark.parametrize("end", ["terminate", "close"])
def test_a_pool_that_has_ended_shares_nothing(make_pool: MakePool, end: str) -> None:
    """What was shared is the caller's still, and can be released."""
    array = numbers()
    pool = make_pool(1)
    handle = pool.share(array)
    pool.apply(look, (handle,))
    getattr(pool, end)()
    for way in ("apply", "submit", "map the function", "imap", "share"):
        with pytest.raises(ValueError, match="Pool not running"):
            CLOSED[way](pool, handle)
    with pytest.raises(ValueError, match="Pool not running"):
        pool.empty(5)
    pool.join()
    assert handle.value is array
    handle.close()
    with fails_if_closed():
        CLOSED["call"](pool, handle)


def test_a_pool_that_is_closed_ends_what_it_has(make_pool: MakePool, make_line: MakeLine) -> None:
    """Tasks that were submitted get what is shared."""
    inside, gate = make_line(), make_line()
    pool = make_pool(1)
    handle = pool.share(numbers())
    results = [pool.apply_async(wait_and_look, (inside, gate, handle)) for _ in range(3)]
    pool.close()
    handle.close()
    gate.tell(b"xxx")
    pool.join()
    assert [result.get(PATIENCE) for result in results] == [SIZE - 1] * 3


def test_threads_share_everything_anyway() -> None:
    """They are told to do so."""
    with pairpool.ThreadPool(1) as pool:
        with pytest.raises(ValueError, match="threads share every object of the caller's: pass the object itself"):
            pool.share(numbers())
        with pytest.raises(ValueError, match="threads share every object of the caller's: pass an array of your own"):
            pool.empty(5)
        assert pool.apply(abs, (-1,)) == 1


def test_what_tasks_return_of_it_is_the_caller_s_own(make_pool: MakePool) -> None:
    """A result is a copy, which lives on."""
    pool = make_pool(1)
    with pool.share(numbers()) as handle:
        found = pool.apply(identity, (handle,))
    assert isinstance(found, np.ndarray)
    assert is_gone(pool)
    assert found.tolist() == list(range(SIZE))
