"""The methods that take tasks: of a pool, and of a pool seen with other options."""

from __future__ import annotations

import concurrent.futures
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pairpool import _arguments, _dispatch
from pairpool._future import Future
from pairpool._iterators import IMapIterator, IMapUnorderedIterator, WeakConsumer
from pairpool._strikes import came_from_handler
from pairpool.results import AsyncResult, MapResult

T = TypeVar("T")


class Tasks:
    """Submits tasks to a dispatcher. Every method says where it differs from that of `multiprocessing.Pool`."""

    _dispatcher: _dispatch.Dispatcher
    _budget: int | None
    _terms: _dispatch.Terms | None
    _bound: _dispatch.Bound | None = None
    _pending: _dispatch.Pending | None = None

    @property
    def _owner(self) -> object:
        """The pool, which its pending results keep alive."""
        raise NotImplementedError

    def _check_running(self) -> None:
        raise NotImplementedError

    def apply(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
    ) -> T:
        """Calls ``func(*args, **kwds)`` in a worker and returns what it returns."""
        if type(self).apply_async is not Tasks.apply_async:
            result = self.apply_async(func, args, kwds)  # a subclass has its own, and expects it to be called
        else:
            self._check_running()
            result = AsyncResult(self._dispatcher, self, None, None)
            self._call(result, func, args, kwds, waits=True)
        value: T = result.get()
        return value

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
        self._check_running()
        result = AsyncResult(self._dispatcher, self._owner, callback, error_callback)
        self._call(result, func, args, kwds)
        return result

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Calls ``fn(*args, **kwargs)`` in a worker; a `concurrent.futures.Future` has the result."""
        self._check_running()
        future: Future[T] = Future(self._dispatcher, self._owner)
        self._call(future, fn, args, kwargs)
        return future

    def _call(
        self,
        call: _dispatch.Call,
        function: Callable[..., Any],
        args: Iterable[Any],
        kwargs: Mapping[str, Any],
        *,
        waits: bool = False,
    ) -> None:
        """`waits`: the caller waits for the result at once."""
        dispatcher, pending = self._dispatcher, self._pending
        if pending is not None:
            dispatcher.wait(pending.has_room, pending.signals)
            self._check_running()
        if type(args) is not tuple or type(kwargs) is not dict or kwargs:
            try:
                args, kwargs = _arguments.of_call(*args, **kwargs)
            except Exception as error:
                if came_from_handler(error):
                    raise
                call._carry(None, _arguments.error_of_call(function, error))
                dispatcher.call(call)
                return
        else:
            kwargs = {}  # the caller may change his own, and threads are given what there is
        try:
            encoder = dispatcher.encoder
            payload: Any = args
            # What may be bounded by bytes is measured, and who waits has nobody to share a pickle with.
            definition = encoder.definition_of_plain(function, args, kwargs) if pending is None and not waits else None
            if definition is None:
                definition, payload = encoder.call(function, args, kwargs)
        except Exception as error:
            if came_from_handler(error):
                raise
            call._carry(None, error)
        else:
            call._carry(definition, payload, self._terms, pending)
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
        return self._map_async(func, iterable, chunksize, callback, error_callback, star=False)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """Like `starmap`, but returns at once."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, star=True)

    def _map_here(
        self, func: Callable[..., T], iterable: Iterable[Any], chunksize: int | None, *, star: bool
    ) -> list[T]:
        values: list[T] = self._map_async(func, iterable, chunksize, None, None, star=star, here=True).get()
        return values

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Any,
        error_callback: Any,
        *,
        star: bool,
        here: bool = False,
    ) -> MapResult:
        """`here`: the caller waits, and feeds the job himself meanwhile."""
        self._check_running()
        dispatcher = self._dispatcher
        result = MapResult(dispatcher, self._owner, callback, error_callback)
        try:
            self._map(result, func, iterable, chunksize, star=star, here=here)
            if here:
                result.wait()
            return result
        except BaseException:
            job = result.job
            if job is not None:
                # commit: by operators alone, for who is impatient sends a second signal
                dispatcher.events += ((dispatcher.on_cancel, job),)

                dispatcher.drain()
            raise

    def _map(
        self,
        result: MapResult,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        *,
        star: bool,
        here: bool,
    ) -> None:
        """Begins a map; where this is interrupted its job is to be cancelled, if `result` has one."""
        dispatcher = self._dispatcher
        items: Any = iterable if hasattr(iterable, "__len__") else list(iterable)
        length = len(items)
        explicit = chunksize is not None
        chunksize = -(-length // (4 * dispatcher.size)) if chunksize is None else _arguments.check_chunksize(chunksize)
        if length == 0 or chunksize <= 0:
            result.finish_empty([None] * length)
            return
        try:
            definition = dispatcher.encoder.definition(func)
        except Exception as error:
            if came_from_handler(error):
                raise
            result.fail(error)
            return
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
            terms=self._terms,
        )
        result.job = job
        self._start(job, items, None, result, None, here=here)

    def _start(
        self,
        job: _dispatch.BatchJob,
        items: Iterable[Any],
        refusal: BaseException | None,
        result: MapResult | IMapIterator[Any],
        consumer: IMapIterator[Any] | WeakConsumer | None,
        *,
        here: bool,
    ) -> None:
        if job.items is not None:
            self._dispatcher.add_batch(job, None)
            return
        feeder = result.feeder = _dispatch.Feeder(self._dispatcher, job, items, refusal, consumer)
        self._dispatcher.add_batch(job, feeder)
        if not here:
            feeder.start_thread()  # last: a job that is cancelled ends the thread of a feeder that came with it

    def imap(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        bufferbytes: int | None = None,
    ) -> Iterator[T]:
        """Iterates over ``func(item)`` in the order of the items, which are pulled as the pool works.

        Args:
            func: what is called with each item.
            iterable: the items.
            chunksize: items that travel, and run, together.
            buffersize: items pulled whose results were not taken from the iterator yet, at most; None: as many as the
                pool can work off (`concurrent.futures.Executor.map` has it since 3.14).
            bufferbytes: bytes, pickled, of such items and results; None: a quarter of the memory, for those that are
                larger than 30 KiB, and where the items are not a list or range of numbers and the like. One item
                more may be under way, and what is in it is not known before it is pulled.

        An iterator with a bound that is dropped before its end, as by a `break`, cancels its job: no more is pulled,
        and what no worker was sent yet is not run. Without a bound all of it is run, as by the standard library.

        Raises:
            ValueError, TypeError: for bounds that are no such numbers.
        """
        return self._imap(IMapIterator, func, iterable, chunksize, buffersize, bufferbytes)

    def imap_unordered(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        bufferbytes: int | None = None,
    ) -> Iterator[T]:
        """Like `imap`, in the order in which results arrive."""
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize, buffersize, bufferbytes)

    def _imap(
        self,
        kind: type[IMapIterator[Any]],
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        bufferbytes: int | None,
    ) -> Iterator[Any]:
        self._check_running()
        bound = self._bound
        if buffersize is not None or bufferbytes is not None:
            bound = _arguments.check_bound(buffersize, bufferbytes)
        result = kind(self._dispatcher, self._owner, bound)
        consumer = result if bound is None else WeakConsumer(result)
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        chunksize = _arguments.check_chunksize(chunksize)
        dispatcher = self._dispatcher
        refusal = None
        try:
            definition = dispatcher.encoder.definition(func)
        except Exception as error:
            if came_from_handler(error):
                raise
            definition, refusal = _dispatch.NO_DEFINITION, error
        job = _dispatch.BatchJob(
            dispatcher.encoder,
            definition,
            consumer,
            items=dispatcher.plain_items(iterable) if refusal is None and bound is None else None,
            unit=chunksize,
            chunk=1,
            star=False,
            visible=True,
            terms=self._terms,
        )
        result.job = job
        try:
            self._start(job, iterable, refusal, result, consumer, here=False)
            shown: Iterator[Any] = result if chunksize == 1 else result.chained()
            return shown
        except BaseException:
            # commit: as in `_map_async`
            dispatcher.events += ((dispatcher.on_cancel, job),)

            dispatcher.drain()
            raise


for _method in filter(inspect.isfunction, vars(Tasks).values()):
    # What Python says of a call with wrong arguments names the method: as in the stdlib it is one of `Pool`.
    _method.__qualname__ = f"Pool.{_method.__name__}"


class PoolWithOptions(Tasks):
    """A pool as `Pool.options` shows it: the same workers, other options."""

    def __init__(self, pool: Tasks, terms: _dispatch.Terms | None, bound: _dispatch.Bound | None) -> None:
        self._pool = pool
        self._bound = bound
        self._pending = None if bound is None else _dispatch.Pending(bound)
        self._dispatcher = pool._dispatcher
        self._budget = pool._budget
        self._terms = terms

    @property
    def _owner(self) -> object:
        return self._pool

    def _check_running(self) -> None:
        self._pool._check_running()
