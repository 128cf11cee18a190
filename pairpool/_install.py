"""Makes `multiprocessing.Pool` ours, for programs and libraries that nobody wants to edit; and undoes it.

One attribute of `multiprocessing.pool` is behind all the ways to a pool: ``multiprocessing.Pool``,
``get_context().Pool`` and ``multiprocessing.dummy.Pool`` look up the class there at each call. The trap: the stdlib's
own ThreadPool calls ``Pool.__init__`` by that global name, so that ours would be run on an object that is none of
ours. Ours hands such an object on to the original.

One more place keeps the class itself: the table of what a `multiprocessing.Manager` can make.
"""

from __future__ import annotations

import multiprocessing.pool as stdlib
import sys
from types import TracebackType
from typing import Any, Self

from pairpool.pool import Pool, ThreadPool

_originals: dict[str, Any] = {}


class Installation:
    """What `install` returns: a context manager that undoes it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        uninstall()

    def __repr__(self) -> str:
        return f"<pairpool {'installed' if _originals else 'not installed'}>"


def install() -> Installation:
    """Replaces the standard library's pools by pairpool's until `uninstall`; twice does no harm.

    A class that is defined meanwhile as a subclass of `multiprocessing.pool.Pool` stays one of pairpool's.
    """
    if not _originals:
        _originals.update(Pool=stdlib.Pool, ThreadPool=stdlib.ThreadPool)
        _put(Pool, ThreadPool)
    return Installation()


def uninstall() -> None:
    """Gives the standard library its own pools back."""
    if _originals:
        _put(_originals["Pool"], _originals["ThreadPool"])
        _originals.clear()


def _put(pool: Any, thread_pool: Any) -> None:
    stdlib.Pool = pool  # type: ignore[misc]
    stdlib.ThreadPool = thread_pool  # type: ignore[misc]
    # Where nobody has imported it yet it will find the class that is in place then.
    managers = sys.modules.get("multiprocessing.managers")
    if managers is not None:
        registry = managers.SyncManager._registry
        registry["Pool"] = (pool, *registry["Pool"][1:])
