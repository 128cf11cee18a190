"""The one lock: jobs, outcomes and callbacks between the faces, the scheduler and an engine.

Theory of operation
===================
Everything that happens to a pool is an *event* in one queue, `events`: any thread appends (engines when something
arrives, faces when something is wanted), and whoever then calls `drain` takes the lock and digests what is there:
event -> scheduler -> actions -> packets -> engine. There is no thread that must do it, so a caller who waits does
it himself and no hand-over costs time.

Threads
-------
- Callers, from any thread, also from signal handlers and finalizers.
- The engine's own (engines/local.py has one I/O thread).
- One *callback thread* a pool, which runs the user's callbacks in order, and drains where a caller was
  interrupted in the middle.
- A feeder thread for each job whose iterable or reducers are the user's code (_feeder.py).

The lock
--------
`_lock` guards what is in _core.py and _answers.py, and the engine's bookkeeping. It is held in `drain`, and for one
exchange (_exchange.py). No code of the user's runs under it, and nothing that blocks. `_holder` is the thread that
holds it: a signal handler or finalizer that strikes that thread and enters again finds itself there and leaves its
event to the drain that it interrupted. It is set by operators alone once the lock is taken, or a handler could wait
for a lock that its own thread has.

Interruption
------------
An exception that a signal handler raises in the middle leaves everything so that the next drain goes on from there (see
_core.py). The interrupted caller gets his exception; the callback thread drains in his stead.

What may block: nothing in `drain`. `wait` blocks, without the lock, on sockets or on a signal.
"""

from __future__ import annotations

import sys
import threading
from _thread import allocate_lock, get_ident
from collections.abc import Callable
from typing import Any

from pairpool import errors
from pairpool._bounds import Bound, Pending, size_of
from pairpool._calls import Call
from pairpool._codec import DefinitionKind, Shared
from pairpool._exchange import Exchange
from pairpool._feeder import Feeder
from pairpool._jobs import NO_DEFINITION, BatchJob
from pairpool._masks import blocked_signals, let_in_signals, shut_out_signals
from pairpool._packet import OutcomeMode, Status
from pairpool._record import Record
from pairpool._size import default_size, transit_limit
from pairpool._terms import Retry, Terms
from pairpool._waiting import Deadline, Settable, Signal, wake_all
from pairpool.engines import Engine, WorkerPlan, load_engine

__all__ = [
    "NO_DEFINITION",
    "BatchJob",
    "Bound",
    "Call",
    "Deadline",
    "DefinitionKind",
    "Dispatcher",
    "Engine",
    "Feeder",
    "OutcomeMode",
    "Pending",
    "Record",
    "Retry",
    "Terms",
    "Settable",
    "Shared",
    "Status",
    "WorkerPlan",
    "default_size",
    "load_engine",
    "size_of",
    "transit_limit",
    "wake_all",
]

_NAMED = DefinitionKind.NAMED  # 3.11 takes its time to find a member of an enum


class Dispatcher(Exchange):
    """One pool's core, its lock, and the callback thread."""

    def __init__(self, engine: Engine, plan: WorkerPlan, size: int, budget: int | None) -> None:
        super().__init__(engine, plan, size, budget)
        self.forked = False  # this is a forked child's copy
        self.waiters = 0
        self.joining = False  # nobody consumes what iterators have any more
        self._lock = allocate_lock()
        self._holder = 0
        self._callback_signal = Signal()
        engine.start(self, plan, tuple(self.scheduler.slots))
        self._callback_thread = threading.Thread(target=self._run_callbacks, name="pairpool-callbacks", daemon=True)
        self._callback_thread.start()

    # -- entering --------------------------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raises where this copy of the pool cannot work: it was inherited by a fork."""
        if self.forked:
            raise errors.PairpoolError(
                "this pool belongs to the process that made it; a forked child must make a pool of its own"
            )

    def call(self, call: Call) -> None:
        """Adds one call."""
        definition = call._definition
        if definition is not None and definition.kind is not _NAMED:
            self.delivered.watch(definition)
        self.calls.incoming.append(call)
        # Where it is: who digests the next answer takes it, or who is at it now, and looks again before he leaves.
        if not self.sated:
            self.drain()

    def call_and_wait(self, call: Call) -> None:
        """Adds one call whose caller waits: it may be settled on return."""
        if self.at_rest and not self._holder and not self.waiters:
            me = get_ident()
            try:
                with self._lock:
                    try:
                        self._holder = me
                        sent = self.exchange(call)
                    finally:
                        self._holder = 0
            except BaseException:
                self._callback_signal.set()  # as in `drain`
                raise
            if sent:
                if self.events or self.calls.incoming:
                    self.drain()
                return
        self.call(call)

    def share(self, obj: Any) -> Shared:
        """Returns a handle of an object for all workers."""
        return self._watched(self.encoder.share(obj))

    def empty(self, shape: Any, dtype: Any) -> Shared:
        """Returns a handle of an array in memory that all workers write to."""
        return self._watched(self.encoder.empty(shape, dtype))

    def _watched(self, shared: Shared) -> Shared:
        self.delivered.watch(shared.definition)
        shared.on_close = self._forget_now
        return shared

    def _forget_now(self) -> None:
        if not self.forked:
            self.drain()

    def add_batch(self, job: BatchJob, feeder: Feeder | None) -> None:
        if job.definition.kind is not _NAMED:
            self.delivered.watch(job.definition)
        self.events.append((self.on_batch, (job, feeder)))
        self.drain()

    def plain_items(self, items: Any) -> Any | None:
        """A list, tuple or range that can be pickled without running code of the user's; None for anything else."""
        if type(items) is range:
            return items
        if type(items) is list:
            items = items[:]  # the caller may change his own
        elif type(items) is not tuple:
            return None
        return items if self.encoder.is_atoms(items) else None

    def post(self, handler: Callable[[Any], None], argument: Any) -> None:
        self.events.append((handler, argument))
        self.drain()

    def drain(self) -> None:
        """Digests every event there is, unless the thread that holds the lock will do so."""
        try:
            me = get_ident()
            while self._holder != me:
                with self._lock:
                    try:
                        self._holder = me
                        self.digest()
                    finally:
                        self._holder = 0
                if not (self.engine.work() or self.events or self.calls.incoming):
                    return
        except BaseException:
            # A signal handler raised (or there is a fault, which the callback thread will then meet as well).
            self._callback_signal.set()
            raise

    def terminate(self) -> None:
        """Ends everything at once; does not wait."""
        self.post(self.on_terminate, self.terminated())

    @staticmethod
    def terminated() -> BaseException:
        """Why what is pending ends when a pool is terminated."""
        return errors.PoolTerminatedError("the pool was terminated before the result was there")

    def collapse(self, error: BaseException) -> None:
        """A thread of ours meets a fault: nothing is certain any more, so everything pending ends with it."""
        me = get_ident()
        with self._lock:
            try:
                self._holder = me
                self._collapsed = True
                self.at_rest = self.sated = False
                self._give_up(error)
                self._shut(kill=True)
            finally:
                self._holder = 0

    # -- waiting (lock not held) -----------------------------------------------------------------------------

    @property
    def struck_here(self) -> bool:
        """Whether the calling thread is in the pool's midst: a signal handler or finalizer struck it there.

        It digests, or receives; nothing that takes either can happen before the handler returns.
        """
        processes = self.processes
        return self._holder == get_ident() or (processes is not None and processes.receives_here)

    def wait(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None = None) -> bool:
        """Blocks until `ready()`, or for `timeout` seconds; returns `ready()`.

        `watched`: where to leave a signal that is set when what `ready` looks at has changed.
        """
        if ready():
            return True
        self.check_usable()
        if self.struck_here:
            raise errors.PairpoolError(
                "a signal handler or finalizer cannot wait for a pool in whose midst it strikes: nothing can happen "
                "there until it returns; it may submit, close and terminate, and must leave the waiting to others"
            )
        deadline = Deadline(timeout)
        self.waiters += 1
        try:
            if not self.engine.pump(ready, watched, timeout):
                _wait(ready, watched, deadline)
        finally:
            self.waiters -= 1
        return ready()

    # -- the callback thread ---------------------------------------------------------------------------------

    def wake_callbacks(self) -> None:
        self._callback_signal.set()

    def call_back(self, callback: Callable[[], None]) -> None:
        """Has the callback thread run this, in order."""
        self.callbacks.append(callback)
        self._callback_signal.set()

    def _run_callbacks(self) -> None:
        mask = blocked_signals()
        shut_out_signals()
        while not (self.shutting and self.engine.is_shut and not self.callbacks):
            self._callback_signal.wait()
            try:
                self.drain()
            except BaseException as error:
                self.collapse(error)
            if not self.callbacks:
                continue
            let_in_signals(mask)  # the user's code may start processes
            while self.callbacks:
                callback = self.callbacks.popleft()
                try:
                    callback()
                except BaseException:
                    # What a future's done callback raises that is no Exception ends no other's.
                    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self._callback_thread)))
                del callback
            shut_out_signals()
        wake_all(self.signals)  # of those who wait in join(), whom the engine may have woken too early

    def engine_shut(self) -> None:
        """The engine has nothing left: whoever waits for that looks again, and the callback thread may end."""
        self._callback_signal.set()
        wake_all(self.signals)

    def join(self) -> None:
        """Waits until workers and threads have ended."""
        self.joining = True
        self.drain()
        for feeder in [*self.feeders.values()]:
            feeder.hand_over()
        self.wait(lambda: self.shutting and self.engine.is_shut, self.signals)
        self._callback_signal.set()
        # Their last frames, too, have this pool: as daemons they would keep it where the interpreter ends just then.
        self.engine.join()
        if threading.current_thread() is not self._callback_thread:
            self._callback_thread.join()


def _wait(ready: Callable[[], bool], watched: list[Settable], deadline: Deadline) -> None:
    signal = Signal()
    watched.append(signal)
    try:
        _wait_for(signal, ready, deadline)
    finally:
        watched.remove(signal)


def _wait_for(signal: Signal, ready: Callable[[], bool], deadline: Deadline) -> None:
    # In a function of its own: what a signal handler raises at a loop's end passes by a `finally` of the same function
    # (python/cpython#130279, 3.12 and 3.13).
    while not ready() and not deadline.passed():
        signal.wait(deadline.remaining())
