"""Iterators over results: what `imap` and `imap_unordered` return."""

from __future__ import annotations

import multiprocessing.pool as stdlib
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from pairpool import errors
from pairpool._dispatch import Bound, Deadline, OutcomeMode, size_of, transit_limit, wake_all
from pairpool.results import Outcome, decode, decode_all, decode_shared

if TYPE_CHECKING:
    from pairpool._dispatch import BatchJob, Dispatcher, Feeder, Record, Settable

T = TypeVar("T")


class IMapIterator(stdlib.IMapIterator, Generic[T]):  # type: ignore[type-arg]
    """Iterates over results in the order of the items (`multiprocessing.pool.IMapIterator`).

    Several threads may share one: each result goes to one of them.
    """

    _ordered = True
    gone = False

    def __init__(self, dispatcher: Dispatcher, pool: object, bound: Bound | None = None) -> None:
        """`bound`: of what may be under way and not taken from here; None: of bytes, by the memory there is."""
        self._dispatcher = dispatcher
        self._pool: Any = pool
        self._bound = bound or Bound(None, transit_limit())
        self.paced = bound is not None
        self._arrived_size = self._decoded_size = 0  # bytes of results; without a bound those of large ones
        self._chained = self._in_hand = 0  # units that are taken item by item; that were, and not to the last
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
        if record.mode != OutcomeMode.SHARED and (job.prepared.failures or record.mode != OutcomeMode.SEPARATE):
            record = record.separate(job.prepared.failures)
        mine, place, units = self._records, record.first if self._ordered else self._arrived, record.units
        size = self._size_of(record.payloads)
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
        arrived, arrived_size = self._arrived, self._arrived_size
        if not (size or arrived_size or self.paced):
            return True
        if arrived:
            size += (fed - arrived) * arrived_size // arrived  # as many results are to come, of that size or so
        elif self.paced and self._bound.size is not None and fed >= self._dispatcher.size:
            return False  # nobody knows how large they are
        unit = 1 if self.job is None else self.job.unit
        taken = self._place + self._at - len(self._news) - self._in_hand
        return self._bound.leaves_room((fed - taken) * unit, size + arrived_size - self._decoded_size, unit)

    def call_when_gone(self, callback: Callable[[Any], object]) -> None:
        pass  # its job keeps it, and runs to its end as the standard library's does

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
        self._in_hand = self._chained
        del news[0]

        if self.paced:
            _nudge(self.feeder)
        succeeded, value = outcome
        if succeeded:
            return value  # type: ignore[no-any-return]
        raise value

    def _size_of(self, payloads: Sequence[Any]) -> int:
        if self.feeder is None:
            return 0
        return size_of(payloads) if self.paced else self._dispatcher.encoder.size_of_large(payloads)

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
        payloads, decoded = record.payloads, None
        if record.mode == OutcomeMode.SHARED:
            decoded = decode_shared(self._dispatcher, record)
        elif at == 0 and not any(record.buffers[0]):
            decoded = decode_all(self._dispatcher, payloads)
        if decoded is None:
            decoded = [self._decode(record.buffers[0][at], payloads[at])]
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

        _nudge(self.feeder)

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
        self._chained = 1
        for chunk in self:
            yield from chunk  # type: ignore[misc]
            self._in_hand = 0
            _nudge(self.feeder)


def _nudge(feeder: Feeder | None) -> None:
    """There is room for more."""
    if feeder is not None:
        feeder.nudge()


class WeakConsumer:
    """An iterator with a bound as its job has it, which does not keep it: once that is dropped the job is cancelled."""

    paced = True

    def __init__(self, iterator: IMapIterator[Any]) -> None:
        self._iterator = weakref.ref(iterator)

    @property
    def gone(self) -> bool:
        return self._iterator() is None

    def call_when_gone(self, callback: Callable[[Any], object]) -> None:
        iterator = self._iterator()
        if iterator is not None:
            self._iterator = weakref.ref(iterator, callback)

    def wants(self, fed: int, size: int) -> bool:
        iterator = self._iterator()
        return iterator is not None and iterator.wants(fed, size)

    def take(self, record: Record, records: deque[Record]) -> int | None:
        iterator = self._iterator()
        if iterator is not None:
            return iterator.take(record, records)
        del records[0]
        return None

    def progress(self) -> None:
        iterator = self._iterator()
        if iterator is not None:
            iterator.progress()

    def finish(self) -> None:
        iterator = self._iterator()
        if iterator is not None:
            iterator.finish()

    def fail(self, error: BaseException) -> None:
        iterator = self._iterator()
        if iterator is not None:
            iterator.fail(error)


class IMapUnorderedIterator(IMapIterator[T], stdlib.IMapUnorderedIterator):  # type: ignore[type-arg]
    """Iterates over results as they arrive (`multiprocessing.pool.IMapUnorderedIterator`)."""

    _ordered = False
