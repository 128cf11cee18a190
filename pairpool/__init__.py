"""pairpool: a drop-in `multiprocessing.Pool` whose workers are each on a private socketpair.

    from pairpool import Pool

    with Pool() as pool:
        print(pool.map(abs, range(-3, 3)))

Names are resolved on first use: importing pairpool starts nothing and imports nothing that is not needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pairpool._context import get_context as get_context
    from pairpool._future import Future as Future
    from pairpool._install import install as install, uninstall as uninstall
    from pairpool._shared import Shared as Shared
    from pairpool._terms import Retry as Retry
    from pairpool.errors import (
        FramingError as FramingError,
        InitializerError as InitializerError,
        PairpoolError as PairpoolError,
        PoolTerminatedError as PoolTerminatedError,
        RefusedError as RefusedError,
        TaskCancelledError as TaskCancelledError,
        TimeLimitError as TimeLimitError,
        TimeoutError as TimeoutError,
        UnsupportedPlatformError as UnsupportedPlatformError,
        WorkerLostError as WorkerLostError,
    )
    from pairpool.pool import Pool as Pool, ThreadPool as ThreadPool
    from pairpool.results import AsyncResult as AsyncResult, MapResult as MapResult

__version__ = "0.1.0.dev0"

_HOMES = {
    "AsyncResult": "results",
    "FramingError": "errors",
    "Future": "_future",
    "InitializerError": "errors",
    "MapResult": "results",
    "PairpoolError": "errors",
    "Pool": "pool",
    "PoolTerminatedError": "errors",
    "RefusedError": "errors",
    "Retry": "_terms",
    "Shared": "_shared",
    "TaskCancelledError": "errors",
    "ThreadPool": "pool",
    "TimeLimitError": "errors",
    "TimeoutError": "errors",
    "UnsupportedPlatformError": "errors",
    "WorkerLostError": "errors",
    "get_context": "_context",
    "install": "_install",
    "uninstall": "_install",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
