"""Descriptors in arguments: sockets, connections and whatever else is reduced by `reduction.DupFd`.

`multiprocessing` knows one way to ask who carries a descriptor to another process: a reducer calls
`reduction.DupFd`, which hands it to the process being spawned, where there is one, and else to a
thread that serves it on a socket in the file system. While a registered reducer runs (no longer,
or locks would think that they are being inherited) a `Collector` stands for that process, so that
descriptors travel beside the pickle.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import context, reduction
from typing import Any, cast

from pairpool import _slab
from pairpool._descriptors import NONE_OWNED, OwnedDescriptors, Owner, close_owners

Reducer = Callable[[Any], Any]
Slab = Owner | bytearray | BaseException
"""A descriptor by which a slab can be read; or what was in it; or why that cannot be told."""


class Collector:
    """Takes duplicates of the descriptors in what is being pickled."""

    def __init__(self) -> None:
        self._collected: list[Owner] = []

    def reduce(self, reducer: Reducer, obj: object) -> Any:
        """Run a registered reducer, so that the descriptors which it passes come here."""
        if _asks_for_spawning(reducer):
            return reducer(obj)
        outer = context.get_spawning_popen()
        context.set_spawning_popen(cast("Any", self))
        try:
            return reducer(obj)
        finally:
            context.set_spawning_popen(outer)

    def take(self) -> OwnedDescriptors:
        """Return the descriptors; they are the caller's from now on."""
        if not self._collected:
            return NONE_OWNED
        owned = OwnedDescriptors(self._collected)
        self._collected = []
        return owned

    def close(self) -> None:
        """Close what was not taken."""
        close_owners(self._collected)

    # What `reduction.DupFd` calls.

    def duplicate_for_child(self, descriptor: int) -> int:
        # One operation: an interrupt cannot come between the duplicate and its record.
        self._collected += map(Owner.fromfd, map(os.dup, (descriptor,)))
        return len(self._collected) - 1

    def DupFd(self, index: int) -> PassedDescriptor:  # noqa: N802  (the stdlib's name)
        return PassedDescriptor(index)


class PassedDescriptor:
    """A descriptor on its way, in the pickle: the number of its place beside it."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return claim, (self._index,)


class ArrivedDescriptor:
    """A descriptor that came with the pickle being loaded; closed where nobody detaches it."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def content(self, size: int) -> Any:
        """Return what is in the slab that the descriptor leads to, and close it."""
        content = _slab.content(self._owner.fileno(), size)
        self._owner.close()
        return content

    def detach(self) -> int:
        """Return a duplicate of the descriptor, which is the caller's from now on, and close this one."""
        if self._owner.closed:
            raise RuntimeError("the descriptor was detached before")
        duplicate = os.dup(self._owner.fileno())
        self._owner.close()
        return duplicate


class ArrivedSlab:
    """A slab that came with the pickle being loaded, which may be loaded again."""

    def __init__(self, slab: Slab) -> None:
        self._slab = slab

    def content(self, size: int) -> Any:
        """Return what is in it, for one who may write to it."""
        if isinstance(self._slab, BaseException):
            raise self._slab
        if isinstance(self._slab, bytearray):
            return self._slab[:size]
        return _slab.content(self._slab.fileno(), size)


class _Arrivals(threading.local):
    """Descriptors that came with the pickle which this thread is loading."""

    waiting: Sequence[ArrivedDescriptor | ArrivedSlab] = ()


_arrivals = _Arrivals()


def claim(index: int) -> Any:
    """Return a descriptor of the pickle being loaded."""
    return _arrivals.waiting[index]


def of_descriptors(descriptors: Sequence[int]) -> Sequence[ArrivedDescriptor]:
    """Own descriptors that have come, for `with_arrivals`."""
    return tuple(map(ArrivedDescriptor, map(Owner.fromfd, descriptors)))


def with_arrivals(waiting: Sequence[ArrivedDescriptor | ArrivedSlab], load: Callable[..., Any], *args: object) -> Any:
    """Call this; meanwhile `claim` on this thread gives what came with the pickle that it loads.

    No context manager: a signal handler that strikes its ``__exit__`` would leave them there for ever.
    """
    outer = _arrivals.waiting
    _arrivals.waiting = waiting
    try:
        loaded = load(*args)
    finally:
        _arrivals.waiting = outer
    return loaded


def extra_reducers() -> Mapping[type, Reducer]:
    """Return what anyone has registered with `multiprocessing.reduction`."""
    # Looked up each time: some libraries put a pickler of their own in its place.
    reducers: Mapping[type, Reducer] = vars(reduction.ForkingPickler)["_extra_reducers"]
    return reducers


def _asks_for_spawning(reducer: Reducer) -> bool:
    """Tell whether a reducer only works for a process that is being spawned.

    Shared ctypes are to be inherited; under a collector they would believe that they are.
    """
    return getattr(reducer, "__module__", None) == "multiprocessing.sharedctypes"
