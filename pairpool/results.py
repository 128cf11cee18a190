"""What callers hold: results of calls, of maps, iterators over results (futures: _future.py).

Each is a subclass of its counterpart in the standard library, so that ``isinstance`` holds, with the same methods and
messages. What a task returned is unpickled by whoever asks for it, on that thread: `ready()` and `successful()` need
no unpickling. A result keeps its pool alive while it is pending.
"""

from __future__ import annotations

import multiprocessing.pool as stdlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from pairpool import errors
from pairpool._dispatch import Arrived, Bound, Deadline, OutcomeMode, Status, size_of, transit_limit, wake_all
from pairpool._strikes import came_from_handler

if TYPE_CHECKING:
    from pairpool._dispatch import BatchJob, Dispatcher, Feeder, Record, Settable

T = TypeVar("T")

Outcome = tuple[bool, Any]  # succeeded, and the value or the exception


def decode(dispatcher: Dispatcher, status: int, payload: Any) -> Outcome:
    """The value that a worker returned, or the exception that the task ended in. Runs user code (unpickling)."""
    if status == Status.OK:
        return load(dispatcher.encoder.decode_value, payload)
    if isinstance(payload, BaseException) and status == Status.ERROR:
        return False, payload
    return False, dispatcher.encoder.decode_error(payload)


def load(loading: Callable[..., Any], *args: Any) -> Outcome:
    """What is unpickled, or what that raises. What a signal handler raises meanwhile is no outcome, and comes out."""
    try:
        return True, loading(*args)
    except BaseException as error:
        if came_from_handler(error):
            raise
        return False, error


def decode_all(dispatcher: Dispatcher, payloads: Sequence[Any]) -> list[Outcome] | None:
    """What values are whose loading nobody notices; None where somebody might."""
    encoder = dispatcher.encoder
    if not encoder.are_plain(payloads):
        return None
    try:
        return list(zip(repeat(True), map(encoder.decode_plain, payloads)))
    except BaseException as error:
        if came_from_handler(error):
            raise
        return None  # decoded one by one it is the outcome of one


class Awaited:
    """Something that others wait for."""

    _signals: list[Settable] | None = None

    @property
    def signals(self) -> list[Settable]:
        """Where whoever waits leaves a signal. Made on demand: most results are there before anybody waits."""
        if self._signals is None:
            self._signals = []  # no other thread comes between: operators only
        return self._signals


class _Result(Awaited):
    """Something that becomes ready once, after its callbacks have run."""

    _settled = False  # every outcome is there
    _done = False  # and callbacks have run
    _outcome: Outcome | None = None

    def __init__(self, dispatcher: Dispatcher, pool: object, callback: Any, error_callback: Any) -> None:
        self._dispatcher = dispatcher
        self._pool: Any = pool
        self._callback = callback
        self._error_callback = error_callback

    def _decode(self) -> Outcome:
        raise NotImplementedError

    def _succeeded(self) -> bool:
        raise NotImplementedError

    def _drop_payloads(self) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        """Every outcome is there. Idempotent; runs no code of the user's."""
        if self._callback is None and self._error_callback is None:
            self._finish()
            return
        if not self._settled:
            callbacks = self._dispatcher.callbacks
            run = self._run_callback
            # commit
            self._settled = True
            callbacks += (run,)
        self._dispatcher.wake_callbacks()

    def _run_callback(self) -> None:
        """On the callback thread: the callback comes before anyone's `get()` returns."""
        try:
            succeeded, value = self.outcome()
            callback = self._callback if succeeded else self._error_callback
            if callback is not None:
                callback(value)
        except BaseException as error:
            # As in the stdlib since 3.16 (gh-83371): the callback's error becomes the result's.
            self._outcome = (False, error)
        self._callback = self._error_callback = None
        self._finish()

    def _finish(self) -> None:
        self._settled = True
        self._done = True
        self._pool = None
        if self._signals:
            wake_all(self._signals)

    def outcome(self) -> Outcome:
        """Decodes on first use; always the same objects afterwards, also where two threads ask at once."""
        outcome = self._outcome
        if outcome is None:
            outcome = self._decode()
            # commit: operators only, so no other thread comes between
            if self._outcome is None:
                self._outcome = outcome

            outcome = self._outcome
            self._drop_payloads()
        return outcome

    def ready(self) -> bool:
        """Whether the result is there."""
        return self._done

    def successful(self) -> bool:
        """Whether it is a value; raises ValueError where it is not there yet."""
        if not self._done:
            raise ValueError(f"{self!r} not ready")
        return self._outcome[0] if self._outcome is not None else self._succeeded()

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until the result is there, or for `timeout` seconds."""
        self._dispatcher.wait(self.ready, self.signals, timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The value, or the exception of the task raised here.

        Raises `pairpool.TimeoutError` where it is not there after `timeout` seconds.
        """
        if not self._done:
            self.wait(timeout)
            if not self._done:
                raise errors.TimeoutError
        succeeded, value = self.outcome()
        if succeeded:
            return value
        try:
            raise value
        finally:
            del value, self  # no cycle through the traceback


class AsyncResult(_Result, stdlib.ApplyResult):  # type: ignore[type-arg]
    """The result of one call (`multiprocessing.pool.AsyncResult`)."""

    _raw: tuple[int, Any] | None = None

    def begin(self) -> bool:
        return True

    def settle(self, status: int, payload: Any) -> None:
        if self._raw is None:
            self._raw = (status, payload)
        self._settle()

    def _decode(self) -> Outcome:
        assert self._raw is not None
        return decode(self._dispatcher, *self._raw)

    def _succeeded(self) -> bool:
        return self._raw is not None and self._raw[0] == Status.OK

    def _drop_payloads(self) -> None:
        self._raw = (Status.OK, b"")


class MapResult(_Result, stdlib.MapResult):  # type: ignore[type-arg]
    """The results of one map (`multiprocessing.pool.MapResult`): all of them, or one error."""

    def __init__(self, dispatcher: Dispatcher, pool: object, callback: Any, error_callback: Any) -> None:
        super().__init__(dispatcher, pool, callback, error_callback)
        self._records: dict[int, Record] = {}  # by first unit
        self._error: tuple[int, Any] | None = None  # unit and payload: of the chunk whose error arrived first
        self.job: BatchJob | None = None
        self.feeder: Feeder | None = None

    def take(self, record: Record, records: deque[Record]) -> int | None:
        failed = None
        error = self._error
        if record.mode != OutcomeMode.SHARED:
            for unit, status, payload in record.outcomes():
                job = self.job
                assert job is not None
                if unit in job.failures and status == Status.SKIPPED:
                    status, payload = Status.ERROR, job.failures[unit]
                if status == Status.ERROR:
                    failed = unit if failed is None else failed
                    if error is None or (unit // job.chunk == error[0] // job.chunk and unit < error[0]):
                        error = (unit, payload)
        mine = self._records
        first = record.first
        # commit
        self._error = error
        mine[first] = record
        del records[0]
        return failed

    def finish_empty(self, values: list[Any]) -> None:
        """Nothing was to be done: ready at once, no callback (as in the stdlib)."""
        self._callback = self._error_callback = None
        self._outcome = (True, values)
        self._finish()

    def progress(self) -> None:
        pass  # a map is awaited as a whole

    def finish(self) -> None:
        self._settle()

    def fail(self, error: BaseException) -> None:
        if not self._settled:
            self._error = (0, error)
        self._settle()

    def _succeeded(self) -> bool:
        return self._error is None

    def _decode(self) -> Outcome:
        if self._error is not None:
            return decode(self._dispatcher, Status.ERROR, self._error[1])
        return load(self._values)

    def _values(self) -> list[Any]:
        job, records = self.job, self._records
        values: list[Any] = []
        decode_value = self._dispatcher.encoder.decode_value
        for first in sorted(records):
            record = records[first]
            if record.mode == OutcomeMode.SHARED:
                part = decode_value(record.buffers[0])
                if type(part) is not list or len(part) != record.units:
                    raise errors.PairpoolError(f"a worker did not answer {record.units} items with as many results")
            else:
                part = [decode_value(payload) for _, _, payload in record.outcomes()]
            if job is not None and job.unit > 1:
                for chunk in part:
                    values += chunk
            else:
                values += part
        return values

    def _drop_payloads(self) -> None:
        self._records = {}
        self.job = self.feeder = None

    def wait(self, timeout: float | None = None) -> None:
        feeder = self.feeder
        if feeder is not None and not feeder.threaded:
            feeder.feed_while_waiting(self.ready, self.signals)
        super().wait(timeout)


class IMapIterator(stdlib.IMapIterator, Generic[T]):  # type: ignore[type-arg]
    """Iterates over results in the order of the items (`multiprocessing.pool.IMapIterator`).

    Several threads may share one: each result goes to one of them.
    """

    _ordered = True

    def __init__(self, dispatcher: Dispatcher, pool: object, bound: Bound | None = None) -> None:
        """`bound`: of what may be under way and not taken from here; None: of bytes, by the memory there is."""
        self._dispatcher = dispatcher
        self._pool: Any = pool
        self._bound = bound or Bound(None, transit_limit())
        self.paced = bound is not None
        self._arrived_size = self._decoded_size = 0  # bytes of results; without a bound those in slabs only
        self._in_hand = 0  # units that were taken, and of which not all items were
        self.feeder: Feeder | None = None
        self._records: dict[int, Record] = {}  # not decoded yet, by the place of their first outcome
        self._arrived = 0  # outcomes
        self._place = 0  # of the record that is next
        self._at = 0  # its first outcome that is not decoded
        self._news: deque[Outcome] = deque()  # decoded
        self._length: int | None = None  # units in all, once known
        self._failed: BaseException | None = None
        self.signals: list[Settable] = []
        self.job: BatchJob | None = None

    def take(self, record: Record, records: deque[Record]) -> int | None:
        job = self.job
        assert job is not None
        if job.failures or record.mode != OutcomeMode.SEPARATE:
            record = record.separate(job.failures)
        mine, place, units = self._records, record.first if self._ordered else self._arrived, record.units
        size = self._size_of(record.buffers[1:])
        # commit
        mine[place] = record
        self._arrived += units
        self._arrived_size += size
        del records[0]
        return None

    def progress(self) -> None:
        wake_all(self.signals)

    def finish(self) -> None:
        assert self.job is not None
        self._length = self.job.plan.ready
        self._pool = None
        self.progress()

    def fail(self, error: BaseException) -> None:
        self._failed = error
        self._pool = None
        self.progress()

    def wants(self, fed: int, size: int) -> bool:
        """Whether another unit may be pulled: see `Feeder`."""
        size += self._arrived_size - self._decoded_size
        if not size and not self.paced:
            return True
        unit = 1 if self.job is None else self.job.unit
        taken = self._place + self._at - len(self._news) - self._in_hand
        return self._bound.leaves_room((fed - taken) * unit, size, unit)

    def _has_news(self) -> bool:
        place = self._place
        return bool(self._news) or place in self._records or place == self._length or self._failed is not None

    def next(self, timeout: float | None = None) -> T:
        """The next result; raises `pairpool.TimeoutError` where it is not there after `timeout` seconds.

        A task's StopIteration comes as a RuntimeError, as out of a generator (PEP 479).
        """
        news = self._news
        if not news:
            deadline = Deadline(timeout)
            while not news:
                self._look_for_news(deadline)
        # commit: operators only, so no other thread takes it, too, and no interrupt loses it
        outcome = news[0]
        del news[0]

        if self.paced:
            self._make_room()
        succeeded, value = outcome
        if succeeded:
            return value  # type: ignore[no-any-return]
        raise value

    def _size_of(self, payloads: Sequence[Any]) -> int:
        if self.feeder is None or not (self.paced or Arrived in map(type, payloads)):
            return 0
        return size_of(payloads)

    def _make_room(self) -> None:
        if self.feeder is not None:
            self.feeder.nudge()

    def _look_for_news(self, deadline: Deadline) -> None:
        """Decodes what is next, or waits for it. Another thread may be quicker.

        A record is decoded as a whole where nobody notices, and outcome by outcome where that is code of the user's.
        """
        place, at = self._place, self._at  # nobody comes between
        records, news, failed = self._records, self._news, self._failed
        record = records.get(place)
        if record is None:
            if news or place != self._place:
                return
            if place == self._length:
                raise StopIteration from None
            if failed is not None:
                raise failed
            if deadline.passed():
                raise errors.TimeoutError from None
            self._dispatcher.wait(self._has_news, self.signals, deadline.remaining())
            return
        statuses, *payloads = record.buffers
        decoded = None
        if at == 0 and not any(statuses):
            decoded = decode_all(self._dispatcher, payloads)
        if decoded is None:
            decoded = [self._decode(statuses[at], payloads[at])]
        after = at + len(decoded)
        whole = after == record.units
        size = self._size_of(payloads[at:after])
        # commit: nothing is lost where an interrupt strikes before, nor told twice where it strikes after
        if place in records and self._at == at:
            if whole:
                del records[place]
                self._place = place + after
                self._at = 0
            else:
                self._at = after
            self._decoded_size += size
            news += decoded

        self._make_room()

    def _decode(self, status: int, payload: Any) -> Outcome:
        succeeded, value = decode(self._dispatcher, status, payload)
        if not succeeded and isinstance(value, StopIteration):
            # As out of a generator (PEP 479): it would end the loop over the results, and those after it would be lost.
            stop, value = value, RuntimeError("a task raised StopIteration")
            value.__cause__ = stop
        return succeeded, value

    __next__ = next

    def __iter__(self) -> Self:
        return self

    def chained(self) -> Generator[Any, None, None]:
        """Item by item where a result is a chunk of them."""
        for chunk in self:
            self._in_hand = 1
            yield from chunk  # type: ignore[misc]
            self._in_hand = 0
            self._make_room()


class IMapUnorderedIterator(IMapIterator[T], stdlib.IMapUnorderedIterator):  # type: ignore[type-arg]
    """Iterates over results as they arrive (`multiprocessing.pool.IMapUnorderedIterator`)."""

    _ordered = False
