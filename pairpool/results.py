"""What callers hold: results of calls and of maps (futures: _future.py; iterators over results: _iterators.py).

Each is a subclass of its counterpart in the standard library, so that ``isinstance`` holds, with the same methods and
messages. What a task returned is unpickled by whoever asks for it, on that thread, where one could tell: `ready()` and
`successful()` need no unpickling. A result keeps its pool alive while it is pending.
"""

from __future__ import annotations

import multiprocessing.pool as stdlib
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeVar

from pairpool import errors
from pairpool._dispatch import Call, OutcomeMode, Status, wake_all
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


def decode_shared(dispatcher: Dispatcher, record: Record) -> list[Outcome]:
    """What values are that share one payload: only such do whose loading nobody notices."""
    succeeded, values = load(record.values, dispatcher.encoder.decode_value)
    return list(zip(repeat(True), values)) if succeeded else [(False, values)] * record.units


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

    def __init__(self, dispatcher: Dispatcher, pool: object, callback: Any, error_callback: Any) -> None:
        self._dispatcher = dispatcher
        self._pool: Any = pool
        self._callback = callback
        self._error_callback = error_callback
        self._settled = False  # every outcome is there
        self._done = False  # and callbacks have run
        self._outcome: Outcome | None = None

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


class AsyncResult(_Result, Call, stdlib.ApplyResult):  # type: ignore[type-arg]
    """The result of one call (`multiprocessing.pool.AsyncResult`)."""

    def __init__(self, dispatcher: Dispatcher, pool: object, callback: Any, error_callback: Any) -> None:
        _Result.__init__(self, dispatcher, pool, callback, error_callback)
        self._raw: tuple[int, Any] | None = None

    def begin(self) -> bool:
        return True

    def settle(self, status: int, payload: Any, outcome: Outcome | None = None) -> None:
        if self._raw is None and self._outcome is None:
            if outcome is None:
                self._raw = (status, payload)
            else:
                self._outcome = outcome
        self._settle()

    def _decode(self) -> Outcome:
        raw = self._raw
        assert raw is not None
        return decode(self._dispatcher, raw[0], raw[1])

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
                if unit in job.prepared.failures and status == Status.SKIPPED:
                    status, payload = Status.ERROR, job.prepared.failures[unit]
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
                part = record.values(decode_value)
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
