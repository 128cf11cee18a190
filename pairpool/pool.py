"""The face of `multiprocessing.Pool`: the same calls, arguments and messages.

Every method says where it differs; README.md has the table.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing.context
import multiprocessing.pool as stdlib
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import util
from typing import Any, Self, TypeVar

from pairpool import _arguments, _dispatch
from pairpool._future import Future
from pairpool.results import AsyncResult, IMapIterator, IMapUnorderedIterator, MapResult

T = TypeVar("T")

RUN, CLOSE, TERMINATE, INIT = stdlib.RUN, stdlib.CLOSE, stdlib.TERMINATE, stdlib.INIT


_StdlibPool = stdlib.Pool  # also when install() has put ours in its place


class Pool(stdlib.Pool):
    """A pool of worker processes: `multiprocessing.pool.Pool`, each worker on a private channel.

    Args:
        processes: number of workers; None: as many as CPUs this process may use (affinity and cgroup quota), and no
            more than ``PAIRPOOL_WORKERS``.
        initializer: called once in each worker before its first task.
        initargs: its arguments; with the start method fork they are inherited, never pickled.
        maxtasksperchild: chunks after which a worker is replaced; None: never.
        context: a context or name of a start method; None: this interpreter's default.

    Raises:
        ValueError, TypeError: for arguments that the standard library's pool refuses, in its words.
        UnsupportedPlatformError: where the system is not Linux.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        if not _is_ours(self):
            _StdlibPool.__init__(self, processes, initializer, initargs, maxtasksperchild, context)
            return
        self._status: str = INIT
        if processes is None:
            processes = _dispatch.default_size()
        processes = _arguments.check_construction(processes, initializer, maxtasksperchild)
        self._budget = maxtasksperchild
        plan = _dispatch.WorkerPlan(initializer, tuple(initargs) if initializer is not None else ())
        self._dispatcher = _dispatch.Dispatcher(self._make_engine(context), plan, processes, maxtasksperchild)
        self._status = RUN
        # As in the stdlib: before the queues and connections of the user's (exitpriority 10) go.
        self._finalizer = util.Finalize(self, _end_forgotten, args=(self._dispatcher,), exitpriority=15)

    def _make_engine(self, context: Any) -> _dispatch.Engine:
        if isinstance(context, str):
            context = multiprocessing.get_context(context)
        self._ctx = context or multiprocessing.get_context()
        return _dispatch.load_engine("local", self._ctx)

    # -- tasks -----------------------------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
    ) -> T:
        """Calls ``func(*args, **kwds)`` in a worker and returns what it returns."""
        result: T = self._apply(func, args, kwds, None, None, waits=True).get()
        return result

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """Like `apply`, but returns at once.

        Arguments are pickled here and now, so a later change to them is not seen by the task; an error in that comes
        out of the result's `get()`. Callbacks run in one thread, in the order of results, before `get()` returns.
        """
        return self._apply(func, args, kwds, callback, error_callback, waits=False)

    def _apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any],
        kwds: Mapping[str, Any],
        callback: Any,
        error_callback: Any,
        *,
        waits: bool,
    ) -> AsyncResult:
        """`waits`: the caller waits for the result at once."""
        self._check_running()
        result = AsyncResult(self._dispatcher, self, callback, error_callback)
        try:
            call = _arguments.of_call(*args, **kwds)
        except Exception as error:
            self._dispatcher.call(_dispatch.Call(None, _arguments.error_of_call(func, error), result))
        else:
            self._call(func, *call, result, waits=waits)
        return result

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Calls ``fn(*args, **kwargs)`` in a worker; a `concurrent.futures.Future` has the result."""
        self._check_running()
        future: Future[T] = Future(self._dispatcher, self)
        self._call(fn, args, kwargs, future, waits=False)
        return future

    def _call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], sink: Any, *, waits: bool
    ) -> None:
        dispatcher = self._dispatcher
        try:
            definition, payload = dispatcher.encoder.call(function, args, kwargs)
        except Exception as error:
            dispatcher.call(_dispatch.Call(None, error, sink))
            return
        call = _dispatch.Call(definition, payload, sink)
        if waits:
            dispatcher.call_and_wait(call)
        else:
            dispatcher.call(call)

    def map(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None) -> list[T]:
        """``[func(item) for item in iterable]``, in the workers.

        An explicit `chunksize` makes chunks that run in one worker, in order, over at the first error. Without one
        items travel as it suits them, and errors are those that the default chunks would give.
        """
        return self._map_here(func, iterable, chunksize, star=False)

    def starmap(
        self, func: Callable[..., T], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[T]:
        """``[func(*item) for item in iterable]``, in the workers."""
        return self._map_here(func, iterable, chunksize, star=True)

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """Like `map`, but returns at once."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, star=False, here=False)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """Like `starmap`, but returns at once."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, star=True, here=False)

    def _map_here(
        self, func: Callable[..., T], iterable: Iterable[Any], chunksize: int | None, *, star: bool
    ) -> list[T]:
        result = self._map_async(func, iterable, chunksize, None, None, star=star, here=True)
        try:
            values: list[T] = result.get()
            return values
        except BaseException:
            if not result.ready() and result.job is not None:
                # Interrupted: nobody will ever see the results, so what has not begun does not begin.
                self._dispatcher.post(self._dispatcher.on_cancel, result.job)
            raise

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Any,
        error_callback: Any,
        *,
        star: bool,
        here: bool,
    ) -> MapResult:
        """`here`: the caller waits, and feeds the job himself meanwhile."""
        self._check_running()
        dispatcher = self._dispatcher
        items: Any = iterable if hasattr(iterable, "__len__") else list(iterable)
        length = len(items)
        explicit = chunksize is not None
        chunksize = -(-length // (4 * dispatcher.size)) if chunksize is None else _arguments.check_chunksize(chunksize)
        result = MapResult(dispatcher, self, callback, error_callback)
        if length == 0 or chunksize <= 0:
            result.finish_empty([None] * length)
            return result
        try:
            definition = dispatcher.encoder.definition(func)
        except Exception as error:
            result.fail(error)
            return result
        # A chunk of the caller's is atomic; so is one that a worker's lifetime is counted in, and one in which the
        # state that a callable carries may be seen to last.
        atomic = explicit or self._budget is not None or definition.kind == _dispatch.DefinitionKind.STATEFUL
        job = _dispatch.BatchJob(
            dispatcher.encoder,
            definition,
            result,
            items=dispatcher.plain_items(items),
            unit=chunksize if atomic else 1,
            chunk=1 if atomic else chunksize,
            star=star,
            visible=False,
        )
        result.job = job
        self._start(job, items, None, result, here=here)
        return result

    def _start(
        self,
        job: _dispatch.BatchJob,
        items: Iterable[Any],
        refusal: BaseException | None,
        result: MapResult | None,
        *,
        here: bool,
    ) -> None:
        if job.items is not None:
            self._dispatcher.add_batch(job, None)
            return
        feeder = _dispatch.Feeder(self._dispatcher, job, items, refusal)
        if result is not None:
            result.feeder = feeder
        if not here:
            feeder.start_thread()
        self._dispatcher.add_batch(job, feeder)

    # The stubs say IMapIterator also for chunks, where the stdlib returns a generator as we do, and let chunksize be
    # None, which the stdlib does not take.
    def imap(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1) -> Iterator[T]:  # type: ignore[override]
        """Iterates over ``func(item)`` in the order of the items, which are pulled as the pool works."""
        return self._imap(IMapIterator(self._dispatcher, self), func, iterable, chunksize)

    def imap_unordered(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1) -> Iterator[T]:  # type: ignore[override]
        """Like `imap`, in the order in which results arrive."""
        return self._imap(IMapUnorderedIterator(self._dispatcher, self), func, iterable, chunksize)

    def _imap(
        self, result: IMapIterator[Any], func: Callable[..., Any], iterable: Iterable[Any], chunksize: int
    ) -> Iterator[Any]:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        chunksize = _arguments.check_chunksize(chunksize)
        dispatcher = self._dispatcher
        refusal = None
        try:
            definition = dispatcher.encoder.definition(func)
        except Exception as error:
            definition, refusal = _dispatch.NO_DEFINITION, error
        job = _dispatch.BatchJob(
            dispatcher.encoder,
            definition,
            result,
            items=dispatcher.plain_items(iterable) if refusal is None else None,
            unit=chunksize,
            chunk=1,
            star=False,
            visible=True,
        )
        result.job = job
        self._start(job, iterable, refusal, None, here=False)
        return result if chunksize == 1 else result.chained()

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
        if self._status == RUN and not self._dispatcher.forked:
            self._status = CLOSE
            self._dispatcher.post(self._dispatcher.on_close, None)

    def terminate(self) -> None:
        """Ends the workers at once. Results that are still pending fail with `PoolTerminatedError`.

        (With the standard library's pool they never come.) Waits until the workers have ended, but in a signal handler
        or finalizer that strikes in the pool's midst, where nothing could end before it returns.
        """
        util.debug("terminating pool")
        self._status = TERMINATE
        self._finalizer.cancel()
        if not self._dispatcher.forked:
            self._dispatcher.terminate()
            if not self._dispatcher.digesting_here:
                self._dispatcher.join()

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


def _end_forgotten(dispatcher: _dispatch.Dispatcher) -> None:
    """A pool that nobody holds any more, or that is open when the interpreter exits."""
    if not dispatcher.forked:
        dispatcher.terminate()
        if util.is_exiting():
            dispatcher.join()


class ThreadPool(Pool, stdlib.ThreadPool):
    """`multiprocessing.pool.ThreadPool`: the same face over threads; nothing is pickled."""

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        Pool.__init__(self, processes, initializer, initargs)

    def _make_engine(self, context: Any) -> _dispatch.Engine:
        return _dispatch.load_engine("threads", None)
