"""Pulls the items of a batch and pickles them, where that runs the user's code.

A generator may block, may raise, may wait for results of this very pool; a reducer may do anything. So neither runs on
a thread that others depend on: the caller of `map` feeds his own job while he waits for it, every other job
has a feeder thread of its own. It keeps a little more ready than the slots can hold (`appetite`), so that an endless
input is read only as fast as the pool works.

Only one thread at a time feeds a job. It leaves payloads one by one in `fresh`, before it pulls the next item, since
that may block until the one before has been worked on. Whoever drains takes them; the feeder itself drains where
slots idle (`Dispatcher.starving` is set before `fresh` is looked at for the last time, so none is left lying).

Who feeds is woken when a quarter is left of what may be ready, or two thirds where that is counted in bytes. A caller
who feeds, and is interrupted by a signal handler that joins the pool, is relieved by a thread (`hand_over`).

Where a consumer has asked for a bound and is gone its job is cancelled, since nobody would make room any more. So the
feeder of such a one stays until the job has ended.
"""

from __future__ import annotations

import threading
import time
from _thread import get_ident
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from pairpool import errors
from pairpool._bounds import size_of
from pairpool._codec import Payload
from pairpool._pacing import DEPTH, MAX_UNITS, stretch
from pairpool._packet import GROUP
from pairpool._prepared import Group
from pairpool._size import transit_limit
from pairpool._strikes import came_from_handler
from pairpool._waiting import Bell, Settable, wake_all

if TYPE_CHECKING:
    from pairpool._dispatch import Dispatcher
    from pairpool._jobs import BatchJob

MUCH = 16 << 20  # bytes of large payloads under way, beyond which a job keeps ready what its slots can soon begin
HUGE = 1 << 21  # bytes of one, on average, above which it does so from the first on
LOW = 4  # of what may be ready a quarter is little: each wake-up takes the GIL from somebody
TINY = 10_000  # ns that an item takes for which it matters that it shares a pickle with others
LOOK = 2_000_000  # ns of feeding after which a caller who feeds takes in what has come
CLOSED = object()  # the last entry of `fresh`: there will be no more


class Consumer(Protocol):
    """Takes results one by one."""

    paced: bool  # it was asked to bound what is under way

    @property
    def gone(self) -> bool:
        """Whether nobody can take anything any more."""

    def call_when_gone(self, callback: Callable[[Any], object]) -> None:
        """Calls this with an object of no use, perhaps amid anything; not where it is gone already."""

    def wants(self, fed: int, size: int) -> bool:
        """Whether another unit may be pulled, where so many were, and these take so many bytes now.

        Those of large ones alone, where it is not `paced`.
        """


class Feeder:
    """Feeds one batch."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        job: BatchJob,
        items: Iterable[Any],
        refusal: BaseException | None = None,
        consumer: Consumer | None = None,
    ) -> None:
        """`refusal`: the function cannot be pickled, so every item fails with this.

        `consumer`: takes the results one by one, and bounds how much is under way.
        """
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._source = items
        self._items: Iterator[Any] | None = None
        self._refusal = refusal
        paced = consumer is not None and consumer.paced
        # Units; pulling an item of anything else may block.
        self._portion = GROUP if type(items) in (list, tuple) and not paced else 1
        self.threaded = False  # a thread of its own feeds, not a waiting caller
        self._caller = 0  # the thread of that caller
        self._feeding = False  # he pulls and pickles
        self._units: list[Any] = []  # pulled, and not pickled yet
        self._exhausted = False
        self._fed = 0  # units
        self._paced = job.prepared.paced = paced
        self._grouping = self._portion == GROUP and job.unit == 1 and refusal is None
        self._weight = 0  # bytes of the large ones among them, or of all
        self._over = False  # nothing more is to be pulled
        self._ended = False  # the job has
        self.job = job
        self.fresh: list[Any] = []  # payload, or what was raised instead of one, or CLOSED
        self.signals: list[Settable] = []

    def hungry(self) -> bool:
        """Whether another unit may be made ready."""
        return self._lacks(low=False)

    def is_low(self) -> bool:
        """Whether so little is left of what may be ready that whoever feeds is to be woken."""
        return self._lacks(low=not self._paced)

    def _lacks(self, *, low: bool) -> bool:
        """Whether another unit may be made ready; with `low` only where no more than a part is of what may be."""
        if self._over or self.job.digesting:
            return False  # who digests asks again when he has
        plan, slots = self.job.plan, max(1, len(self._dispatcher.scheduler.slots))
        if (LOW if low else 1) * (self._fed - plan.next) >= self._appetite(slots):
            return False
        weight = self._weight - self.job.prepared.settled_weight
        if self._consumer is not None and not self._dispatcher.joining and not self._consumer.wants(self._fed, weight):
            return False
        under_way, limit = self._fed - plan.settled, transit_limit()
        if under_way < 1:
            return True
        # Of this two thirds are little: until who feeds has the GIL the slots have need of that.
        if weight <= HUGE * under_way and (3 * weight // 2 if low else weight) <= min(MUCH, limit):
            return True
        # What is large is kept ready for each slot and no more, so that its slabs are soon used again; and where that
        # would take too much of the memory, less.
        most = slots if low else 2 * slots - 1
        return under_way <= most and weight // under_way * (under_way + 1) <= limit

    def _appetite(self, slots: int) -> int:
        """Units to keep ready: what all slots may hold, and as much again."""
        unit_ns = self.job.plan.unit_ns
        depth = stretch(self.job.plan) * DEPTH // unit_ns if unit_ns else 1
        return 2 * slots * max(1, min(depth, MAX_UNITS))

    def nudge(self) -> None:
        """Wakes who feeds where there is something to do, but not for each unit that is settled."""
        if self.signals and self.is_low():
            wake_all(self.signals)

    def end(self) -> None:
        """The job is over: no more is wanted."""
        self._over = self._ended = True
        wake_all(self.signals)

    def feed(self) -> None:
        """Pulls and pickles. What is no Exception comes out, and so does what a signal handler raises."""
        try:
            if self._items is None:
                self._items = iter(self._source)
            if not self._units:
                units = self._pull()
                exhausted = len(units) < self._portion
                # commit
                self._units = units
                self._exhausted = exhausted
        except Exception as error:
            if came_from_handler(error):
                raise
            # As in the stdlib's Pool: the item at this position raises, and it is the last one.
            self._leave([error, CLOSED])
            return
        entries: list[Any] = []
        try:
            self._pickle(entries)
        except BaseException:
            if entries:
                self._leave(entries)  # those before it come to their results
            raise
        if self._exhausted and _units_in(entries) == len(self._units):
            entries.append(CLOSED)
        self._leave(entries)

    def _pull(self) -> list[Any]:
        """The next units, items or lists of items; fewer than asked for where there are no more."""
        assert self._items is not None
        size, portion = self.job.unit, self._portion
        if size == 1:
            return list(islice(self._items, portion))
        return list(filter(None, [list(islice(self._items, size)) for _ in range(portion)]))

    def _pickle(self, entries: list[Any]) -> None:
        """Appends to `entries` what comes of each unit, up to one that is large: its payload, or the error."""
        units, refusal, dumps_each = self._units, self._refusal, self._dispatcher.encoder.dumps_each
        if units and self._grouping and not self._fed % GROUP and 0 < self.job.plan.unit_ns < TINY:
            data = self._dispatcher.encoder.dumps_together(units)
            if data is not None:
                entries.append(Group(data, len(units)))
                return
            self._grouping = False  # items of a list are often alike
        if refusal is not None:
            entries += [refusal] * len(units)
        while len(entries) < len(units):
            try:
                dumps_each(units[len(entries) :], entries)
            except Exception as error:
                if came_from_handler(error) or len(entries) == len(units):
                    raise  # no unit's
                entries.append(error)
            if type(entries[-1]) is Payload and entries[-1].large:
                return

    def _leave(self, entries: list[Any]) -> None:
        over = entries[-1] is CLOSED
        number = _units_in(entries) - over
        fed = self._fed + number
        weight = self._weight
        if self._paced:
            weight += size_of(entries[:number])
        elif number and type(entries[-1 - over]) is Payload and entries[-1 - over].large:
            weight += size_of((entries[-1 - over],))
        fresh, units = self.fresh, self._units
        # commit
        if over:  # else it may be over already, if the job is
            self._over = True
        self._fed = fed
        self._weight = weight
        del units[:number]
        fresh += entries

        if self._dispatcher.starving or self._over:
            self._dispatcher.drain()

    def start_thread(self) -> None:
        self.threaded = True
        threading.Thread(target=self._run, name="pairpool-feeder", daemon=True).start()

    def _run(self) -> None:
        bell, consumer, dispatcher = Bell(), self._consumer, self._dispatcher
        self.signals.append(bell)
        if consumer is not None:
            consumer.call_when_gone(bell.ring)
        while not (self._ended if consumer is not None and consumer.paced else self._over):
            if consumer is not None and consumer.gone:
                dispatcher.post(dispatcher.on_cancel, self.job)
                return
            if not self.hungry():
                bell.wait()
                continue
            try:
                self.feed()
            except BaseException as error:
                # The iterable or a reducer raised what is no Exception (SystemExit, say): the job ends with it.
                self._leave([error, CLOSED])

    def feed_while_waiting(self, ready: Callable[[], bool], signals: list[Settable]) -> None:
        """Feeds on this thread, in between waiting for `ready()`."""
        self._caller, look_at = get_ident(), 0
        while not ready():
            if self.threaded:  # it was handed over
                self._dispatcher.wait(ready, signals)
            elif self.hungry():
                self._feed_here()
                now = time.monotonic_ns()
                if now > look_at:
                    # Nobody else may come to see what workers answer before Python lets him, which takes 5 ms.
                    self._dispatcher.wait(ready, signals, 0.0)
                    look_at = now + LOOK
            else:
                self._dispatcher.wait(lambda: ready() or self.is_low(), _Both(signals, self.signals))

    def _feed_here(self) -> None:
        self._feeding = True
        try:
            self.feed()
        finally:
            self._feeding = False

    def hand_over(self) -> None:
        """Has another thread feed from now on, if it is this one: then a signal handler waits here for the job's end.

        Raises PairpoolError where it has struck while items are pulled and pickled: nobody else can go on with that.
        """
        if self.threaded or self._caller != get_ident():
            return
        if self._feeding:
            raise errors.PairpoolError(
                "a signal handler cannot wait for the end of a map whose items are just being pickled by the call that "
                "it interrupts; it may close and terminate the pool, and must leave the waiting to others"
            )
        self.start_thread()


def _units_in(entries: list[Any]) -> int:
    """How many units these are, and CLOSED for one. A group stands at the beginning."""
    return len(entries) + (entries[0].units - 1 if entries and type(entries[0]) is Group else 0)


class _Both(list[Any]):
    """Leaves a signal in two places at once."""

    def __init__(self, *places: list[Settable]) -> None:
        super().__init__()
        self._places = places

    def append(self, signal: Settable) -> None:
        for place in self._places:
            place.append(signal)

    def remove(self, signal: Settable) -> None:
        for place in self._places:
            place.remove(signal)
