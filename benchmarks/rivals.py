"""The pools that take part, and how each is asked for the same thing. A further one is an entry of `RIVALS`.

Cases speak to an `Adapter`; where a pool has other names for a call, or none, its adapter says so. Workers are
forked wherever a pool offers that.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Never

Function = Callable[..., Any]

OURS = "pairpool"
IN_PYTHON = "pairpool, framing in Python"
STDLIB = "multiprocessing.Pool"
EXECUTOR = "ProcessPoolExecutor"
NO_SUCH_CALL = "has no such call"


class LeftOut(Exception):  # noqa: N818  # it is no error: the table has it
    """A rival does not take part in a case, for the reason given."""


def _no_such_call() -> Never:
    raise LeftOut(NO_SUCH_CALL)


class Adapter:
    """What cases ask of a pool. It has no such call unless its adapter says how it is made."""

    default_chunks = True
    """False where `map` without a chunksize sends items one by one."""

    grows = False
    """Whether it can have more workers while it works."""

    shares = False
    """Whether it can bring an object to all workers once, for many tasks."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def map(self, function: Function, items: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """Return the results in order; None for the pool's own chunks."""
        _no_such_call()

    def map_async(self, function: Function, items: Iterable[Any]) -> Callable[[], list[Any]]:
        """Begin a map in the pool's own chunks, and return what waits for its results."""
        _no_such_call()

    def imap_unordered(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        """Return an iterator over results as they come, items sent one by one."""
        _no_such_call()

    def imap(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        """Return an iterator over results in order, items sent one by one; what it has given it does not keep."""
        _no_such_call()

    def apply(self, function: Function, *arguments: Any) -> Any:
        """Make a call and wait for its result."""
        _no_such_call()

    def apply_async(self, function: Function, *arguments: Any) -> Callable[[], Any]:
        """Make a call, and return what waits for its result."""
        _no_such_call()

    def submit(self, function: Function, *arguments: Any) -> Callable[[], Any]:
        """Make a call that gives a future, and return what waits for its result."""
        _no_such_call()

    def call_later(self, function: Function, *arguments: Any) -> Callable[[], Any]:
        """Make a call in whichever of the two ways above the pool has."""
        return self.apply_async(function, *arguments)

    def grow(self, workers: int, by: int) -> None:
        """Add so many workers to those that there are."""
        _no_such_call()

    def share(self, value: Any) -> Any:
        """Bring an object to all workers, and return what stands for it in arguments; `close` gives it up."""
        _no_such_call()

    def close(self) -> None:
        """End the workers, and wait until they have ended."""
        self.pool.terminate()
        self.pool.join()


class PoolAdapter(Adapter):
    """A pool with the calls of `multiprocessing.Pool`."""

    def map(self, function: Function, items: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        results: list[Any] = self.pool.map(function, items, chunksize=chunksize)
        return results

    def map_async(self, function: Function, items: Iterable[Any]) -> Callable[[], list[Any]]:
        wait: Callable[[], list[Any]] = self.pool.map_async(function, items).get
        return wait

    def imap_unordered(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        return iter(self.pool.imap_unordered(function, items, chunksize=1))

    def imap(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        return iter(self.pool.imap(function, items, chunksize=1))

    def apply(self, function: Function, *arguments: Any) -> Any:
        return self.pool.apply(function, arguments)

    def apply_async(self, function: Function, *arguments: Any) -> Callable[[], Any]:
        wait: Callable[[], Any] = self.pool.apply_async(function, arguments).get
        return wait


class Pairpool(PoolAdapter):
    """Ours: futures, other sizes and shared objects, besides."""

    grows = True
    shares = True

    def submit(self, function: Function, *arguments: Any) -> Callable[[], Any]:
        wait: Callable[[], Any] = self.pool.submit(function, *arguments).result
        return wait

    def grow(self, workers: int, by: int) -> None:
        self.pool.resize(workers + by)

    def share(self, value: Any) -> Any:
        if not hasattr(self.pool, "share"):  # an earlier version
            _no_such_call()
        return self.pool.share(value)


class Billiard(PoolAdapter):
    """Celery's fork of the standard library's pool, which can grow."""

    grows = True

    def grow(self, workers: int, by: int) -> None:
        self.pool.grow(by)


class Ray(PoolAdapter):
    """Ray's pool over a cluster of this machine alone, which is started and ended with it."""

    def __init__(self, workers: int) -> None:
        import ray
        from ray.util.multiprocessing import Pool

        self._files = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=self._files.name,
        )
        super().__init__(Pool(workers))

    def close(self) -> None:
        import ray

        super().close()
        ray.shutdown()
        self._files.cleanup()


class Executor(Adapter):
    """An executor with the calls of `concurrent.futures`."""

    default_chunks = False

    def map(self, function: Function, items: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        return list(self.pool.map(function, items, chunksize=chunksize or 1))

    def imap(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        return iter(self.pool.map(function, items, chunksize=1))

    def apply(self, function: Function, *arguments: Any) -> Any:
        return self.pool.submit(function, *arguments).result()

    def submit(self, function: Function, *arguments: Any) -> Callable[[], Any]:
        wait: Callable[[], Any] = self.pool.submit(function, *arguments).result
        return wait

    def call_later(self, function: Function, *arguments: Any) -> Callable[[], Any]:
        return self.submit(function, *arguments)

    def close(self) -> None:
        self.pool.shutdown()


class Mpire(PoolAdapter):
    """mpire's pool, kept alive between calls; an item that is a dict would become arguments, so all are wrapped."""

    def map(self, function: Function, items: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        results: list[Any] = self.pool.map(function, self._wrapped(items), chunk_size=chunksize)
        return results

    def map_async(self, function: Function, items: Iterable[Any]) -> Callable[[], list[Any]]:
        _no_such_call()

    def imap_unordered(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        return iter(self.pool.imap_unordered(function, self._wrapped(items), chunk_size=1))

    def imap(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        # Not all at once: the items may be more than there is memory for.
        return iter(self.pool.imap(function, ((item,) for item in items), chunk_size=1))

    def close(self) -> None:
        self.pool.terminate()  # which joins, too

    @staticmethod
    def _wrapped(items: Iterable[Any]) -> list[tuple[Any]]:
        return [(item,) for item in items]


class Pebble(Adapter):
    """pebble's pool, whose calls all give futures."""

    default_chunks = False

    def map(self, function: Function, items: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        return list(self.pool.map(function, items, chunksize=chunksize or 1).result())

    def imap(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        return iter(self.pool.map(function, items, chunksize=1).result())

    def apply(self, function: Function, *arguments: Any) -> Any:
        return self.pool.schedule(function, arguments).result()

    def submit(self, function: Function, *arguments: Any) -> Callable[[], Any]:
        wait: Callable[[], Any] = self.pool.schedule(function, arguments).result
        return wait

    def call_later(self, function: Function, *arguments: Any) -> Callable[[], Any]:
        return self.submit(function, *arguments)

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class Joblib(Adapter):
    """joblib's `Parallel` with its default backend; the workers live from call to call, as they do by default."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def map(self, function: Function, items: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        return list(self._run(function, items, batch_size=chunksize or "auto"))

    def imap_unordered(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        return iter(self._run(function, items, batch_size=1, return_as="generator_unordered"))

    def imap(self, function: Function, items: Iterable[Any]) -> Iterator[Any]:
        return iter(self._run(function, items, batch_size=1, return_as="generator"))

    def _run(self, function: Function, items: Iterable[Any], **options: Any) -> Iterable[Any]:
        from joblib import Parallel, delayed

        task = delayed(function)
        results: Iterable[Any] = Parallel(n_jobs=self._workers, **options)(task(item) for item in items)
        return results

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown()


def _open_pairpool(workers: int, *at_start: Any) -> Adapter:
    import pairpool

    return Pairpool(pairpool.get_context("fork").Pool(workers, *at_start))


def _open_stdlib(workers: int, *at_start: Any) -> Adapter:
    return PoolAdapter(multiprocessing.get_context("fork").Pool(workers, *at_start))


def _open_executor(workers: int, *at_start: Any) -> Adapter:
    context = multiprocessing.get_context("fork")
    return Executor(ProcessPoolExecutor(workers, context, *at_start))


def _open_loky(workers: int, *_: Any) -> Adapter:
    from loky import ProcessPoolExecutor as LokyExecutor

    return Executor(LokyExecutor(workers))


def _open_mpire(workers: int, *_: Any) -> Adapter:
    from mpire import WorkerPool

    return Mpire(WorkerPool(workers, start_method="fork", keep_alive=True))


def _open_pebble(workers: int, *_: Any) -> Adapter:
    from pebble import ProcessPool

    return Pebble(ProcessPool(workers, context=multiprocessing.get_context("fork")))


def _open_billiard(workers: int, *at_start: Any) -> Adapter:
    import billiard

    return Billiard(billiard.get_context("fork").Pool(workers, *at_start))


@dataclass(frozen=True)
class Rival:
    """A pool that takes part."""

    name: str
    open: Callable[..., Adapter]
    """Make a pool of so many workers; after their number an initializer and its arguments, if any."""

    package: str | None = None
    """What has to be installed for it; its module has the same name."""

    turns: int | None = 2
    """In how many rounds it takes part in cases whose targets do not speak of it; None: in all."""

    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def installed(self) -> bool:
        """Whether it can take part here."""
        return self.package is None or importlib.util.find_spec(self.package) is not None

    @property
    def version(self) -> str | None:
        """The version of what has to be installed for it; None for what is ours or comes with Python."""
        return metadata.version(self.package) if self.package and self.installed else None


RIVALS = {
    rival.name: rival
    for rival in (
        Rival(OURS, _open_pairpool, turns=None),
        Rival(IN_PYTHON, _open_pairpool, environment={"PAIRPOOL_EXTENSION": "0"}),
        Rival(STDLIB, _open_stdlib, turns=None),
        Rival(EXECUTOR, _open_executor),
        Rival("loky", _open_loky, "loky"),
        Rival("mpire", _open_mpire, "mpire"),
        Rival("pebble", _open_pebble, "pebble"),
        Rival("billiard", _open_billiard, "billiard"),
        Rival("joblib", lambda workers, *_: Joblib(workers), "joblib"),
        # It takes seconds to start. Without the variable it would report to its makers that it is used.
        Rival("ray", lambda workers, *_: Ray(workers), "ray", turns=1, environment={"RAY_USAGE_STATS_ENABLED": "0"}),
    )
}
