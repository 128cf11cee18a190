"""Descriptors in arguments: sockets, connections and whatever else is reduced by `reduction.DupFd`.

`multiprocessing` knows one way to ask who carries a descriptor to another process: a reducer calls
`reduction.DupFd`, which hands it to the process being spawned, where there is one, and else to a
thread that serves it on a socket in the file system. While a registered reducer runs (no longer,
or locks would think that they are being inherited) a `Collector` stands for that process, so that
descriptors travel beside the pickle.
"""

from __future__ import annotations

import os
import pickle
import select
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import context, reduction
from typing import Any, Self, cast

Reducer = Callable[[Any], Any]

# Owns a descriptor of whatever kind: of the types written in C the one that closes it without a word when it is
# collected. In a `__del__` of ours, which runs in the midst of a call, Python would swallow an interrupt.
_Owner = select.epoll


class OwnedDescriptors(tuple[int, ...]):  # noqa: SLOT001  (a tuple cannot have slots)
    """Duplicated descriptors, closed by `close()` or else with the last reference."""

    _owners: Sequence[_Owner] = ()

    def __new__(cls, owners: Sequence[_Owner]) -> Self:
        """Own the descriptors of these."""
        owned = super().__new__(cls, (owner.fileno() for owner in owners))
        owned._owners = owners
        return owned

    def close(self) -> None:
        """Close them. A second call does nothing."""
        _close_all(self._owners)


def _close_all(owners: Iterable[_Owner]) -> None:
    """Close descriptors in one step, which no signal handler can split."""
    deque(map(_Owner.close, owners), maxlen=0)


class Collector:
    """Takes duplicates of the descriptors in what is being pickled."""

    def __init__(self) -> None:
        self._collected: list[_Owner] = []

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

    def take(self) -> tuple[int, ...]:
        """Return the descriptors; they are the caller's from now on."""
        if not self._collected:
            return ()
        owned = OwnedDescriptors(self._collected)
        self._collected = []
        return owned

    def close(self) -> None:
        """Close what was not taken."""
        _close_all(self._collected)

    # What `reduction.DupFd` calls.

    def duplicate_for_child(self, descriptor: int) -> int:
        # One operation: an interrupt cannot come between the duplicate and its record.
        self._collected += map(_Owner.fromfd, map(os.dup, (descriptor,)))
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

    def __init__(self, owner: _Owner) -> None:
        self._owner = owner

    def detach(self) -> int:
        """Return a duplicate of the descriptor, which is the caller's from now on, and close this one."""
        if self._owner.closed:
            raise RuntimeError("the descriptor was detached before")
        duplicate = os.dup(self._owner.fileno())
        self._owner.close()
        return duplicate


class _Arrivals(threading.local):
    """Descriptors that came with the pickle which this thread is loading."""

    waiting: Sequence[ArrivedDescriptor] = ()


_arrivals = _Arrivals()


def claim(index: int) -> ArrivedDescriptor:
    """Return a descriptor of the pickle being loaded."""
    return _arrivals.waiting[index]


def loads(data: Any, descriptors: Sequence[int]) -> Any:
    """Unpickle. The descriptors are consumed, also where this fails."""
    if not descriptors:
        return pickle.loads(data)
    outer = _arrivals.waiting
    _arrivals.waiting = tuple(map(ArrivedDescriptor, map(_Owner.fromfd, descriptors)))
    try:
        return pickle.loads(data)
    finally:
        _arrivals.waiting = outer


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
