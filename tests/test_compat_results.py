"""Results, callbacks, iterators and errors, as programs depend on them (compat.md, H9 to H18)."""

from __future__ import annotations

import multiprocessing.pool
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pairpool
from tasks import Line, fail, fail_at_zero, identity, tell_and_wait, wait_for

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]


# -- H9: iterators --------------------------------------------------------------------------------


class Watched:
    """An iterable that notes who reads it and tells when it was begun."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.begun = threading.Event()
        self.reader: threading.Thread | None = None

    def __iter__(self) -> Iterator[Any]:
        self.reader = threading.current_thread()
        self.begun.set()
        yield from self.items


@pytest.mark.parametrize("face", ["imap", "imap_unordered"])
def test_the_iterable_is_read_from_the_call_on_by_another_thread(make_either_pool: MakePool, face: str) -> None:
    """Imap begins to read its iterable when it is called, and never on the caller's thread."""
    watched = Watched([1, 2, 3])
    iterator = getattr(make_either_pool(1), face)(identity, watched)

    watched.begun.wait()
    assert watched.reader is not threading.current_thread()
    assert sorted(iterator) == [1, 2, 3]


@pytest.mark.parametrize("face", ["imap", "imap_unordered"])
def test_iteration_goes_on_after_the_error_of_an_item(make_either_pool: MakePool, face: str) -> None:
    """With chunksize 1 an error takes the place of one result, and all others are still to be had."""
    iterator = getattr(make_either_pool(2), face)(fail_at_zero, [1, 0, 2, 0, 3])
    values, errors = [], 0
    while True:
        try:
            values.append(next(iterator))
        except ValueError:
            errors += 1
        except StopIteration:
            break
    assert (sorted(values), errors) == ([1, 2, 3], 2)
    with pytest.raises(StopIteration):
        next(iterator)


def test_next_takes_a_timeout_and_may_be_asked_again(make_either_pool: MakePool, make_line: MakeLine) -> None:
    """`next(timeout)` of an iterator raises TimeoutError while the result is not there, losing nothing."""
    line = make_line()
    iterator = make_either_pool(1).imap(wait_for, [line])

    for _ in range(3):
        with pytest.raises(multiprocessing.TimeoutError):
            iterator.next(timeout=0.001)
    line.tell(b"x")
    assert iterator.next(timeout=60) == b"x"
    with pytest.raises(StopIteration):
        iterator.next(timeout=60)


@pytest.mark.parametrize("face", ["imap", "imap_unordered"])
def test_in_chunks_the_iterator_is_a_plain_generator(make_either_pool: MakePool, face: str) -> None:
    """With a chunksize above 1 there is no `next(timeout)`, and the first error ends the iteration."""
    iterator = getattr(make_either_pool(1), face)(fail_at_zero, [1, 2, 3, 0, 4, 5], 2)

    assert not hasattr(iterator, "next")
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(ValueError, match="fails at 0"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


def test_unordered_results_come_as_they_are_ready(make_either_pool: MakePool, make_line: MakeLine) -> None:
    """imap_unordered gives a result that is there before one of an earlier item that is not."""
    slow, quick = make_line(), make_line()
    iterator = make_either_pool(2).imap_unordered(wait_for, [slow, quick])

    quick.tell(b"q")
    assert next(iterator) == b"q"
    slow.tell(b"s")
    assert next(iterator) == b"s"


def test_an_iterator_keeps_an_anonymous_pool_alive() -> None:
    """Nobody needs to hold the pool while its results are awaited."""
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        assert list(pairpool.get_context("fork").Pool(2).imap(abs, range(-50, 0))) == list(range(50, 0, -1))


# -- H10: maps ------------------------------------------------------------------------------------


def test_map_reads_an_unsized_iterable_before_it_returns(make_either_pool: MakePool) -> None:
    """map_async has read an iterable without a length to its end, on the caller's thread."""
    watched = Watched([1, 2, 3])
    result = make_either_pool(1).map_async(identity, watched)

    assert watched.reader is threading.current_thread()
    assert result.get() == [1, 2, 3]


_so_far: list[Any] = []  # of a worker


def gather(item: Any) -> list[Any]:
    """Return what this worker was given up to now, in a list that it goes on using."""
    _so_far.append(item)
    return _so_far


def gather_in_part(item: Any) -> tuple[list[Any], dict[str, list[Any]]]:
    """Return it within what is new each time."""
    return [], {"gathered": gather(item)}


_buffer = bytearray(4)


def fill_buffer(item: int) -> bytearray:
    """Return a buffer that is used for every item."""
    _buffer[:] = item.to_bytes(4, "big")
    return _buffer


def gather_pair(left: int, right: int) -> list[Any]:
    """Take a pair."""
    return gather((left, right))


@pytest.mark.parametrize("count", [4, 200])
@pytest.mark.parametrize("face", ["map", "imap"])
def test_a_result_is_what_it_was_when_its_item_ended(make_either_pool: MakePool, face: str, count: int) -> None:
    """With chunksize 1 the function may go on using what it returned, as a buffer or an accumulator."""
    pool = make_either_pool(1)
    numbers = [*range(count)]
    assert list(getattr(pool, face)(gather, numbers, 1)) == [numbers[: number + 1] for number in numbers]
    assert [*map(bytes, getattr(pool, face)(fill_buffer, numbers, 1))] == [
        number.to_bytes(4, "big") for number in numbers
    ]


@pytest.mark.parametrize("items", [list, dict.fromkeys], ids=["a list", "no list"])
@pytest.mark.parametrize("chunksize", [None, 1])
def test_so_it_is_with_few_items_and_default_chunks(
    make_either_pool: MakePool, items: Callable[[range], Any], chunksize: int | None
) -> None:
    """The default chunk of four items is one."""
    ends = make_either_pool(1).map(gather_in_part, items(range(4)), chunksize)
    assert ends == [([], {"gathered": [*range(number + 1)]}) for number in range(4)]


def test_results_of_a_chunk_are_as_it_ended(make_either_pool: MakePool) -> None:
    """A chunk's results travel in one pickle, made when it has ended and the next has not begun."""
    told = make_either_pool(1).map(gather, range(60), 3)
    assert [len(each) for each in told] == [number // 3 * 3 + 3 for number in range(60)]
    assert told[0] is told[2]


def test_so_it_is_with_several_arguments(make_either_pool: MakePool) -> None:
    """Starmap, as map."""
    told = make_either_pool(1).starmap(gather_pair, zip(range(60), range(60), strict=True), 1)
    assert [len(each) for each in told] == [*range(1, 61)]


def test_a_map_over_nothing_is_ready_at_once(make_either_pool: MakePool) -> None:
    """An empty input gives an empty list at once, and no callback is called."""
    called: list[Any] = []
    result = make_either_pool(1).map_async(identity, [], callback=called.append, error_callback=called.append)

    assert result.ready()
    assert result.get() == []
    assert called == []


def test_the_first_error_of_a_chunk_skips_its_rest(make_either_pool: MakePool, make_line: MakeLine) -> None:
    """Items behind a failed one of the same explicit chunk are not run; other chunks are."""
    line = make_line()
    with pytest.raises(ValueError, match="fails at 0"):
        make_either_pool(1).map(_TellThenFailAtZero(line), [1, 0, 2, 3, 4, 5], chunksize=3)

    line.tell(b".")
    assert sorted(line.await_told(6)) == sorted(b"\x01\x00\x03\x04\x05.")


class _TellThenFailAtZero:
    def __init__(self, line: Line) -> None:
        self.line = line

    def __call__(self, value: int) -> int:
        self.line.tell(bytes([value]))
        return fail_at_zero(value)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17])
def test_default_chunks_have_the_size_that_programs_compute(make_either_pool: MakePool, length: int) -> None:
    """The default chunksize is the length over four times the number of workers, rounded up."""
    chunk = -(-length // (2 * 4))
    pool = make_either_pool(2, maxtasksperchild=1)  # every chunk has a worker of its own
    workers = pool.map(_number_of_worker, range(length))

    runs = [workers[start : start + chunk] for start in range(0, length, chunk)]
    assert [len(set(run)) for run in runs] == [1] * len(runs)
    assert len(set(workers)) == len(runs)


def _number_of_worker(_: int) -> tuple[int, ...]:
    return multiprocessing.current_process()._identity


# -- H11: errors of maps --------------------------------------------------------------------------


def test_a_map_with_an_error_is_ready_only_when_all_its_chunks_are(
    make_either_pool: MakePool, make_line: MakeLine
) -> None:
    """The error of one chunk is raised after the last chunk has ended, and called back once."""
    inside, gate = make_line(), make_line()
    errors: list[BaseException] = []
    pool = make_either_pool(2)
    result = pool.starmap_async(
        _wait_or_fail, [(inside, gate), (None, None)], chunksize=1, error_callback=errors.append
    )
    inside.await_told()
    # The worker that failed is the only free one: when this is done, its error has arrived.
    assert pool.apply(identity, (1,)) == 1

    assert (result.ready(), errors) == (False, [])
    gate.tell(b"g")
    with pytest.raises(ValueError, match="fails at None"):
        result.get()
    assert [str(error) for error in errors] == ["fails at None"]


def _wait_or_fail(inside: Line | None, gate: Line | None) -> Any:
    if inside is None or gate is None:
        return fail(inside)
    return tell_and_wait(inside, gate)


# -- H12: callbacks -------------------------------------------------------------------------------


def test_callbacks_are_called_before_the_result_is_there(make_either_pool: MakePool) -> None:
    """Whoever returns from `get()` finds that the callback has been called, once, with the value."""
    pool = make_either_pool(2)
    called: list[Any] = []
    for value in range(20):
        assert pool.apply_async(identity, (value,), callback=called.append).get() == value
        assert called.pop() == value
    assert pool.map_async(identity, [1, 2, 3], callback=called.append).get() == [1, 2, 3]
    assert called == [[1, 2, 3]]


def test_callbacks_share_one_thread_which_is_not_the_callers(make_either_pool: MakePool) -> None:
    """All callbacks of all results run one after another in one thread."""
    pool = make_either_pool(2)
    threads: set[int] = set()
    running: list[bool] = []

    def note(_: Any) -> None:
        assert running == []
        running.append(True)
        threads.add(threading.get_ident())
        running.pop()

    results = [pool.apply_async(identity, (value,), callback=note) for value in range(20)]
    results += [pool.map_async(identity, [1, 2], callback=note) for _ in range(5)]
    for result in results:
        result.get()
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_callback_may_submit_more(make_either_pool: MakePool) -> None:
    """apply_async called in a callback is run, however deep."""
    pool = make_either_pool(1)
    done = threading.Event()
    seen: list[int] = []

    def again(value: int) -> None:
        seen.append(value)
        if value == 5:
            done.set()
        else:
            pool.apply_async(identity, (value + 1,), callback=again)

    pool.apply_async(identity, (0,), callback=again)
    done.wait()
    assert seen == [0, 1, 2, 3, 4, 5]


def test_callbacks_are_called_before_join_returns(make_either_pool: MakePool) -> None:
    """After `close()` and `join()` nothing is outstanding, callbacks included."""
    pool = make_either_pool(2)
    called: list[int] = []
    for value in range(20):
        pool.apply_async(identity, (value,), callback=called.append)
    pool.close()
    pool.join()
    assert sorted(called) == list(range(20))


def test_a_callback_that_raises_gives_its_error_to_the_result(make_pool: MakePool) -> None:
    """The error of a callback comes out of `get()`, as in the library from 3.16 on; the pool works on."""
    pool = make_pool(1)

    def complain(_: Any) -> None:
        raise KeyError("callback")

    with pytest.raises(KeyError, match="callback"):
        pool.apply_async(identity, (1,), callback=complain).get()
    with pytest.raises(KeyError, match="callback"):
        pool.apply_async(fail, (1,), error_callback=complain).get()
    assert pool.apply(identity, (2,)) == 2


# -- H13: the classes of results ------------------------------------------------------------------


def test_results_are_of_the_classes_of_the_library(make_either_pool: MakePool) -> None:
    """`isinstance` with the names in `multiprocessing.pool` holds for what each call returns."""
    pool = make_either_pool(1)
    assert isinstance(pool.apply_async(abs, (1,)), multiprocessing.pool.AsyncResult)
    assert isinstance(pool.map_async(abs, [1]), multiprocessing.pool.MapResult)
    assert isinstance(pool.imap(abs, [1]), multiprocessing.pool.IMapIterator)
    assert isinstance(pool.imap_unordered(abs, [1]), multiprocessing.pool.IMapUnorderedIterator)


def test_get_raises_the_same_error_each_time(make_either_pool: MakePool) -> None:
    """Asked twice a failed result raises one and the same object."""
    result = make_either_pool(1).apply_async(fail, (1,))
    caught = []
    for _ in range(2):
        with pytest.raises(ValueError, match="fails at 1") as each:
            result.get()
        caught.append(each.value)
    assert caught[0] is caught[1]
    assert result.successful() is False


def test_get_returns_the_same_value_each_time(make_either_pool: MakePool) -> None:
    """Asked twice a result returns one and the same object."""
    result = make_either_pool(1).apply_async(identity, ([1],))
    assert result.get() is result.get()


# -- H15, H16: what cannot be pickled -------------------------------------------------------------


class Unpicklable:
    """An argument that cannot be sent."""

    def __reduce__(self) -> Any:
        raise RuntimeError("this does not pickle")


def test_an_argument_that_does_not_pickle_harms_only_its_own_result(make_either_pool: MakePool) -> None:
    """The error comes out of `get()`, never out of the call, and the others are served."""
    pool = make_either_pool(1)
    results = [pool.apply_async(identity, (value,)) for value in (1, Unpicklable(), 2)]

    assert results[0].get() == 1
    with pytest.raises(RuntimeError, match="this does not pickle"):
        results[1].get()
    assert results[2].get() == 2


def test_an_argument_is_what_it_was_at_the_call(make_pool: MakePool, make_line: MakeLine) -> None:
    """A change that the caller makes after apply_async or submit is not seen by the task.

    (In the library it may be: arguments are pickled some time later, by a thread.)
    """
    inside, gate = make_line(), make_line()
    pool = make_pool(1)
    pool.apply_async(tell_and_wait, (inside, gate))
    inside.await_told()
    items = [1]
    result, future = pool.apply_async(identity, (items,)), pool.submit(identity, items)
    items.append(2)
    gate.tell(b"g")

    assert (result.get(), future.result()) == ([1], [1])


def _return_lock() -> Any:
    return threading.Lock()


def test_a_result_that_does_not_pickle_is_a_maybe_encoding_error(make_either_pool: MakePool) -> None:
    """The error has the reprs of the reason and of the value, and the library's words."""
    pool = make_either_pool(1)
    with pytest.raises(multiprocessing.pool.MaybeEncodingError) as caught:  # type: ignore[attr-defined]
        pool.apply(_return_lock)

    error = caught.value
    assert "cannot pickle '_thread.lock' object" in error.exc
    assert error.value.startswith("<unlocked _thread.lock object at 0x")
    assert str(error) == f"Error sending result: '{error.value}'. Reason: '{error.exc}'"
    assert repr(error) == f"<MaybeEncodingError: {error}>"
    assert pool.apply(identity, (1,)) == 1


# -- H17: errors from workers ---------------------------------------------------------------------


def _fail_with_a_cause() -> None:
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise ValueError("the error") from error


def test_an_error_shows_where_in_the_worker_it_was_raised(make_either_pool: MakePool) -> None:
    """The cause of a task's error is a RemoteTraceback whose text has the lines of the worker."""
    with pytest.raises(ValueError, match="the error") as caught:
        make_either_pool(1).apply(_fail_with_a_cause)

    cause = caught.value.__cause__
    assert isinstance(cause, multiprocessing.pool.RemoteTraceback)  # type: ignore[attr-defined]
    assert 'raise ValueError("the error") from error' in str(cause)
    assert "KeyError: 'the cause'" in str(cause)
    assert str(cause) == cause.tb
    assert "the cause" in "".join(traceback.format_exception(caught.value))


def test_an_error_keeps_the_frames_and_the_cause_that_it_had(make_pool: MakePool) -> None:
    """Behind the text stand the frames themselves, and the cause that the task gave."""
    with pytest.raises(ValueError, match="the error") as caught:
        make_pool(1).apply(_fail_with_a_cause)

    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "_fail_with_a_cause"
    assert caught.value.__cause__ is not None
    assert isinstance(caught.value.__cause__.__cause__, KeyError)


# -- H18: what never comes ------------------------------------------------------------------------


def test_leaving_the_context_terminates_and_fails_what_is_pending(make_pool: MakePool, make_line: MakeLine) -> None:
    """`with` ends in terminate(); results that were pending then raise, where the library's never come."""
    inside, gate = make_line(), make_line()
    errors: list[BaseException] = []
    with make_pool(1) as pool:
        running = pool.apply_async(tell_and_wait, (inside, gate), error_callback=errors.append)
        queued = pool.map_async(identity, range(10))
        iterator = pool.imap(identity, range(10))
        future = pool.submit(identity, 1)
        inside.await_told()
    for get in (running.get, queued.get, iterator.next, future.result):
        with pytest.raises(pairpool.PoolTerminatedError):
            get(timeout=60)
    assert pool._state == multiprocessing.pool.TERMINATE
    assert [type(error) for error in errors] == [pairpool.PoolTerminatedError]


class Liar:
    """A sized iterable that has fewer items than it says."""

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


@pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
def test_an_iterable_that_is_shorter_than_it_says_hangs_nobody(make_pool: MakePool, chunksize: int | None) -> None:
    """A map over it ends, with what there was or with an error, where the library's waits for ever."""
    result = make_pool(2).map_async(identity, Liar(), chunksize)
    result.wait(timeout=60)

    assert result.ready()
