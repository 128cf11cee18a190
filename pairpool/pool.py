"""The face of `multiprocessing.Pool`: the same calls, arguments and messages.

Every method says where it differs; README.md has the table.
"""

from __future__ import annotations

import multiprocessing.context
import multiprocessing.pool as stdlib
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import util
from types import EllipsisType
from typing import Any, Self, TypeVar

from pairpool import _arguments, _dispatch
from pairpool._tasks import PoolWithOptions, Tasks

T = TypeVar("T")

RUN, CLOSE, TERMINATE, INIT = stdlib.RUN, stdlib.CLOSE, stdlib.TERMINATE, stdlib.INIT


_StdlibPool = stdlib.Pool  # also when install() has put ours in its place


# The stubs say IMapIterator for `imap` also in chunks, where the stdlib returns a generator as we do, and let chunksize
# be None, which the stdlib does not take.
class Pool(Tasks, stdlib.Pool):  # type: ignore[misc]
    """A pool of worker processes: `multiprocessing.pool.Pool`, each worker on a private channel.

    Args:
        processes: number of workers; None: as many as CPUs this process may use (affinity and cgroup quota), and no
            more than ``PAIRPOOL_WORKERS``.
        initializer: called once in each worker before its first task.
        initargs: its arguments; with the start method fork they are inherited, never pickled.
        maxtasksperchild: chunks after which a worker is replaced; None: never.
        context: a context or name of a start method; None: this interpreter's default.
        retry: when items are run again; None: never. See `options`.
        time_limit: seconds that an item may take; None: as long as it likes. See `options`.
        soft_time_limit: seconds after which an item is told by an exception; None: never. See `options`.
        max_memory_per_worker: bytes of memory of its own that a worker may hold when it has ended an item; one that
            holds more is replaced, as with `maxtasksperchild`: what it has begun by then it finishes, and nothing is
            lost. Its own is what is resident and anonymous, less what was when it came up, before the initializer ran.
            A worker is not replaced before it has run something, so leave room for what the initializer loads. Why
            one is replaced is logged: see `multiprocessing.get_logger`, level INFO.
        memory_limit: bytes that a worker may ask for beyond what it came up with (RLIMIT_DATA). An item that asks for
            more gets a MemoryError, which is that item's error, and the worker lives on. Shared mappings and files do
            not count, and each child of a worker has the limit for itself. Where a library in C ends the process
            instead, the item ends in `WorkerLostError`, with SIGABRT or SIGSEGV and a stack.

    Raises:
        ValueError, TypeError: for arguments that the standard library's pool refuses, in its words; for sizes that are
            no numbers of bytes.
        UnsupportedPlatformError: where the system is not Linux.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        retry: _dispatch.Retry | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        max_memory_per_worker: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        if not _is_ours(self):
            _StdlibPool.__init__(self, processes, initializer, initargs, maxtasksperchild, context)
            return
        self._status: str = INIT
        if processes is None:
            processes = _dispatch.default_size()
        processes = _arguments.check_construction(processes, initializer, maxtasksperchild)
        self._budget = maxtasksperchild
        engine = self._make_engine(context)
        plan = _dispatch.WorkerPlan(
            initializer,
            tuple(initargs) if initializer is not None else (),
            _size("max_memory_per_worker", max_memory_per_worker, engine),
            _size("memory_limit", memory_limit, engine),
        )
        self._retry, self._time_limit, self._soft_time_limit = retry, time_limit, soft_time_limit
        self._terms = _terms(retry, time_limit, soft_time_limit, engine)
        self._dispatcher = _dispatch.Dispatcher(engine, plan, processes, maxtasksperchild)
        self._status = RUN
        # As in the stdlib: before the queues and connections of the user's (exitpriority 10) go.
        self._finalizer = util.Finalize(self, _end_forgotten, args=(self._dispatcher,), exitpriority=15)

    def _make_engine(self, context: Any) -> _dispatch.Engine:
        if isinstance(context, str):
            context = multiprocessing.get_context(context)
        self._ctx = context or multiprocessing.get_context()
        return _dispatch.load_engine("local", self._ctx)

    @property
    def _owner(self) -> object:
        return self

    def share(self, obj: Any) -> _dispatch.Shared:
        """Puts an object where all workers can reach it, and returns a handle that stands for it in tasks' arguments.

        Tasks get the object itself, which each worker unpickles once, when it is first sent something that needs it.
        What is large and goes out of band (PEP 574: arrays of numpy and their like) is in memory once for all of them,
        and can only be read. The handle may also be what is called: a large function, or one with large data.

        Returns:
            A handle (see `Shared`): ``pool.map(partial(f, handle), items)``. It is released by its `close`, at the end
            of a ``with`` block, or with its last reference.

        Raises:
            What pickling the object raises; ValueError for a pool of threads, which share everything anyway, and for a
            pool that is closed.
        """
        self._check_running()
        return self._dispatcher.share(obj)

    def empty(self, shape: Any, dtype: Any = float) -> _dispatch.Shared:
        """Makes an array of zeros in memory of which the caller and all workers have one and the same.

        What a task writes to it the caller sees in `value` of the handle, and nothing is copied; nor is anything kept
        apart, so give each task its own part, and do not run such tasks again after a failure without thought.

        Args:
            shape: as numpy's, a number or a tuple of numbers.
            dtype: as numpy's, but for objects.

        Returns:
            A handle, as of `share`.

        Raises:
            ImportError where there is no numpy; MemoryError; what numpy raises for such arguments; ValueError as
            `share`.
        """
        self._check_running()
        return self._dispatcher.empty(shape, dtype)

    def options(
        self,
        *,
        retry: _dispatch.Retry | EllipsisType | None = ...,
        time_limit: float | EllipsisType | None = ...,
        soft_time_limit: float | EllipsisType | None = ...,
        buffersize: int | None = None,
        bufferbytes: int | None = None,
    ) -> Tasks:
        """This pool for tasks with other options: ``pool.options(retry=Retry(2), time_limit=60).map(f, items)``.

        Args:
            retry: an item is run again, in any worker, after the death of its worker or an exception that this names;
                it starts anew from what was pickled for it. Where chunks are one thing (an explicit `chunksize`, a
                callable that carries state, as a partial does, `maxtasksperchild`) it is the chunk that is run again.
            time_limit: seconds that an item may take, the unpickling of its arguments and the pickling of its result
                included. One that takes longer ends in `TimeLimitError`, which has its stack at that moment, and its
                worker is killed with everything that it started. It is run again only if `retry` names that error.
            soft_time_limit: seconds after which `TimeLimitError` is raised in an item, which may catch it to tidy up
                or to return what it has. It comes while arguments are loaded or the item runs, not while its result
                is pickled. Code that does not return to Python is not reached by it, nor is a task that has its own
                handler for the signal (``SIGRTMAX-3``).

            buffersize: calls by `submit` and `apply_async` that may be pending at once, of those made with what this
                returns; with as many, who makes another one waits until one has ended. For `imap` and
                `imap_unordered` it is what they take by that name.
            bufferbytes: bytes, pickled, of such calls, or of such items and results.

        None for none, whatever the pool was made with; what is not given is as the pool was made with it.

        Raises:
            ValueError: for what is no duration, for a soft limit that is not less than the other, whichever of them is
                the pool's, and for any in a `ThreadPool`: threads cannot be ended.
        """
        if retry is ...:
            retry = self._retry
        if time_limit is ...:
            time_limit = self._time_limit
        if soft_time_limit is ...:
            soft_time_limit = self._soft_time_limit
        bound = _arguments.check_bound(buffersize, bufferbytes) if (buffersize, bufferbytes) != (None, None) else None
        return PoolWithOptions(self, _terms(retry, time_limit, soft_time_limit, self._dispatcher.engine), bound)

    # -- life ------------------------------------------------------------------------------------------------

    def resize(self, processes: int) -> None:
        """Changes the number of workers, also while they work.

        New workers are started at once. Of those to go the idle ones go first; a busy one ends after its task,
        and what was queued for it runs elsewhere.

        Raises:
            ValueError: for less than one worker, or where the pool does not run.
        """
        self._check_running()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        self._dispatcher.post(self._dispatcher.on_resize, operator.index(processes))

    def close(self) -> None:
        """Takes no more tasks; workers end when all are done."""
        util.debug("closing pool")
        dispatcher = self._dispatcher
        if self._status == RUN and not dispatcher.forked:
            events, closing = dispatcher.events, ((dispatcher.on_close, None),)
            # commit: who joins a pool that is closed waits for what follows from that
            self._status = CLOSE
            events += closing

            dispatcher.drain()

    def terminate(self) -> None:
        """Ends the workers at once. Results that are still pending fail with `PoolTerminatedError`.

        (With the standard library's pool they never come.) Waits until the workers have ended, but in a signal handler
        or finalizer that strikes in the pool's midst, where nothing could end before it returns.
        """
        util.debug("terminating pool")
        dispatcher = self._dispatcher
        events, terminating = dispatcher.events, ((dispatcher.on_terminate, dispatcher.terminated()),)
        # commit: as in `close`
        self._status = TERMINATE
        events += terminating

        self._finalizer.cancel()
        if not dispatcher.forked:
            dispatcher.drain()
            if not dispatcher.struck_here:
                dispatcher.join()

    def join(self) -> None:
        """Waits until the workers have ended, after `close` or `terminate`."""
        util.debug("joining pool")
        if self._status == RUN:
            raise ValueError("Pool is still running")
        if self._status not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        if not self._dispatcher.forked:
            self._dispatcher.join()
        self._finalizer.cancel()

    def _check_running(self) -> None:
        if self._status != RUN:
            raise ValueError("Pool not running")
        if self._dispatcher.forked:
            self._dispatcher.check_usable()

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        cls = self.__class__
        return f"<{cls.__module__}.{cls.__qualname__} state={self._status} pool_size={len(self._pool)}>"

    def __del__(self, _warn: Any = warnings.warn, RUN: str = RUN) -> None:
        if getattr(self, "_status", None) == RUN and not self._dispatcher.forked:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    # -- what programs look at in the stdlib's pool ----------------------------------------------------------

    @property
    def _state(self) -> str:
        return self._status

    @_state.setter
    def _state(self, state: str) -> None:
        self._status = state

    @property
    def _pool(self) -> list[Any]:
        """The live workers: pid, name, exitcode, is_alive(), terminate(), kill()."""
        return self._dispatcher.engine.workers() if self._status != INIT else []

    @property
    def _processes(self) -> int:
        return self._dispatcher.size

    @property
    def _cache(self) -> Sequence[None]:
        """As long as there are pending jobs."""
        return (None,) * self._dispatcher.pending()

    def _repopulate_pool(self) -> None:
        """Workers are replaced without this; it is there because tests of the stdlib's call it."""
        self._dispatcher.drain()


def _is_ours(pool: stdlib.Pool) -> bool:
    """False for the stdlib's own ThreadPool, which after install() calls our `__init__` by the global name `Pool`."""
    return isinstance(pool, Pool)


def _terms(
    retry: _dispatch.Retry | None,
    time_limit: float | None,
    soft_time_limit: float | None,
    engine: _dispatch.Engine,
) -> _dispatch.Terms | None:
    if retry is None and time_limit is None and soft_time_limit is None:
        return None
    if engine.processes is None and (time_limit is not None or soft_time_limit is not None):
        raise ValueError("threads cannot be ended or interrupted, so their items have no limits of time")
    return _dispatch.Terms(retry, time_limit, soft_time_limit, engine.encoder.definition)


def _size(option: str, size: int | None, engine: _dispatch.Engine) -> int | None:
    if size is not None and engine.processes is None:
        raise ValueError(f"threads share the memory of one process, so they have no {option}")
    return _arguments.check_size(option, size)


def _end_forgotten(dispatcher: _dispatch.Dispatcher) -> None:
    """A pool that nobody holds any more, or that is open when the interpreter exits."""
    if not dispatcher.forked:
        dispatcher.terminate()
        if util.is_exiting():
            dispatcher.join()


class ThreadPool(Pool, stdlib.ThreadPool):  # type: ignore[misc]  # as above
    """`multiprocessing.pool.ThreadPool`: the same face over threads; nothing is pickled."""

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        retry: _dispatch.Retry | None = None,
        time_limit: None = None,
        soft_time_limit: None = None,
        max_memory_per_worker: None = None,
        memory_limit: None = None,
    ) -> None:
        limits = {"time_limit": time_limit, "soft_time_limit": soft_time_limit}
        sizes = {"max_memory_per_worker": max_memory_per_worker, "memory_limit": memory_limit}
        Pool.__init__(self, processes, initializer, initargs, retry=retry, **limits, **sizes)

    def _make_engine(self, context: Any) -> _dispatch.Engine:
        return _dispatch.load_engine("threads", None)
