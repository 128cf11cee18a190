"""What `submit` returns: a `concurrent.futures.Future` that costs a fifth of one while nobody waits through it."""

from __future__ import annotations

import concurrent.futures
import threading
from _thread import allocate_lock
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from pairpool import errors
from pairpool._dispatch import Call, wake_all
from pairpool.results import Awaited, Outcome, decode

if TYPE_CHECKING:
    from pairpool._dispatch import Dispatcher

T = TypeVar("T")

_TOLD = (0, b"")  # status and payload where what is in it is known already; not one of each future's own

_conditions = allocate_lock()  # guards the making of any future's Condition against its finishing without one


class _Condition(threading.Condition):
    """One whose lock is taken and left in C: what a signal handler raises in `Condition.__enter__` leaves it locked.

    Then the callback thread would wait for it for ever, and with it all that needs a callback.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class _ListOnDemand:
    """An attribute of the standard library's that is a list, made when it is first asked for; it hardly ever is."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> list[Any]:
        made: list[Any] = instance.__dict__.setdefault(self._name, [])  # one, also where two threads ask at once
        return made


class Future(Awaited, Call, concurrent.futures.Future[T]):
    """The result of one `submit` (`concurrent.futures.Future`).

    A Condition is made only when somebody waits for it through the standard library; without one a future costs
    a fifth. Once there is one, the standard library's own methods change the state.
    """

    _made: threading.Condition | None = None
    _exception: BaseException | None = None
    _waiters = _ListOnDemand()
    _done_callbacks = _ListOnDemand()

    def __init__(self, dispatcher: Dispatcher, pool: object) -> None:
        self._dispatcher = dispatcher
        self._pool: Any = pool
        self._state = "PENDING"
        self._raw: tuple[int, Any] | None = None
        self._decoded: Outcome | None = None
        self._result: T | None = None

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]  # there an attribute, made at once
        made = self._made
        if made is None:
            made = _Condition()
            with _conditions:  # operators only: no signal handler can enter again in between
                if self._made is None:
                    self._made = made
                made = self._made
        return made

    # -- the dispatcher's side -------------------------------------------------------------------------------

    def begin(self) -> bool:
        """From now on it cannot be cancelled; False where it was."""
        if self._state == "PENDING":
            self._state = "RUNNING"
        return self._state == "RUNNING"

    def settle(self, status: int, payload: Any, outcome: Outcome | None = None) -> None:
        raw = (status, payload) if outcome is None else _TOLD
        with _conditions:
            if self._raw is None:
                self._raw = raw
                self._decoded = outcome
            quiet = self._made is None
            if quiet and (self._state == "PENDING" or self._state == "RUNNING"):
                self._state = "FINISHED"
        if quiet:
            self._leave()
        elif self._state == "RUNNING" or self._state == "PENDING":
            # Somebody waits through its Condition, or left callbacks: both may take time and run the user's code.
            self._dispatcher.call_back(self._finish_aloud)

    def _finish_aloud(self) -> None:
        """On the callback thread."""
        try:
            succeeded, value = self._decode()
        except BaseException as error:  # of the user's unpickling: no signal comes to this thread
            succeeded, value = False, error
        try:
            if succeeded:
                self.set_result(value)
            else:
                self.set_exception(value)
        except concurrent.futures.InvalidStateError:
            pass  # cancelled, or told before
        finally:
            self._leave()  # also where a callback raises what is no Exception

    def _leave(self) -> None:
        """It is done: whoever waits for it looks again. Idempotent."""
        self._pool = None
        if self._signals:
            wake_all(self._signals)

    # -- the caller's side -----------------------------------------------------------------------------------

    def _decode(self) -> Outcome:
        known: Outcome | None = self._decoded
        if known is None:
            raw = self._raw
            assert raw is not None
            decoded = decode(self._dispatcher, *raw)
            # commit: operators only, so no other thread comes between
            if self._decoded is None:
                self._decoded = decoded

            known = self._decoded
            self._raw = raw[0], b""  # what it lay in is not needed any more
        return known

    def _load(self) -> None:
        """Unpickles what came, where that has not been done."""
        if self._raw is not None and self._result is None and self._exception is None:
            succeeded, value = self._decode()
            if succeeded:
                self._result = value
            else:
                self._exception = value

    def _invoke_callbacks(self) -> None:
        """The standard library's: when it is done. Whoever waits is woken first, for they run the user's code."""
        self._leave()
        super()._invoke_callbacks()  # type: ignore[misc]  # not in the stubs

    def cancel(self, *, running: bool = False) -> bool:
        """As the standard library's: True where the call has not been handed to a worker, and never will be.

        With `running` also one that has been: nobody waits for it any more, and if it has begun `TaskCancelledError`
        is raised in it. Where it does not end by that within a second its worker gets SIGTERM, and is killed after
        another, with everything that it started: so it is with code that does not return to Python, and with a task
        that has its own handler for the signal (``SIGRTMAX-3``). In a `ThreadPool` a call that runs cannot be ended.
        """
        dispatcher = self._dispatcher
        ends = running and dispatcher.processes is not None and not dispatcher.forked
        with self._condition:
            # Seen and changed by operators alone, as in `begin`: no other thread comes between.
            cancels = self._state == "PENDING" or (self._state == "RUNNING" and ends)
            if cancels:
                self._state = "CANCELLED"
                self._condition.notify_all()
                self.set_running_or_notify_cancel()
        if ends and self._raw is None and self.cancelled():
            # Also where it was cancelled before: that may have been interrupted on the way.
            dispatcher.events.append((dispatcher.on_cancel_call, self))
        if cancels:
            self._invoke_callbacks()
        if ends:
            dispatcher.drain()
        return self.cancelled()

    def result(self, timeout: float | None = None) -> T:
        self._await(timeout)
        if self._state == "FINISHED" and self._exception is None:
            return self._result  # type: ignore[return-value]  # there is one now
        try:
            return super().result(0)
        finally:
            self = None  # type: ignore[assignment]  # no cycle through the traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._await(timeout)
        return super().exception(0)

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        if self._state == "FINISHED":
            self._load()
        super().add_done_callback(fn)

    def _await(self, timeout: float | None) -> None:
        if not self.done():
            self._dispatcher.wait(self.done, self.signals, timeout)
            if not self.done():
                raise errors.TimeoutError
        self._load()

    def done(self) -> bool:
        return self._state in ("FINISHED", "CANCELLED", "CANCELLED_AND_NOTIFIED")
