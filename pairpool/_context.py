"""`get_context(method).Pool(...)`: the standard library's contexts with our pool in them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from typing import Any

from pairpool.pool import Pool


class Context:
    """A context of `multiprocessing` whose `Pool` is pairpool's; everything else is the context's own."""

    def __init__(self, method: str | None) -> None:
        self._context = multiprocessing.get_context(method)

    def Pool(  # noqa: N802 (the stdlib's name)
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **options: Any,
    ) -> Pool:
        """A pool whose workers are started by this context's method; `options` as `Pool` takes them by name."""
        return Pool(processes, initializer, initargs, maxtasksperchild, self._context, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def __repr__(self) -> str:
        return f"<pairpool context {self._context.get_start_method()}>"


def get_context(method: str | None = None) -> Context:
    """A context for "fork", "forkserver" or "spawn"; None: this interpreter's default.

    Raises:
        ValueError: for a method that the standard library does not know.
    """
    return Context(method)
