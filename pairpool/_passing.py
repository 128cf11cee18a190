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
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import context, reduction
from typing import Any, Final, Self, cast

Reducer = Callable[[Any], Any]

_NOTHING: Final[Iterator[None]] = iter(())


class OwnedDescriptors(tuple[int, ...]):  # noqa: SLOT001  (a tuple cannot have slots)
    """Duplicated descriptors, closed by `close()` or else with the last reference."""

    _closing: Iterator[None] = _NOTHING

    def __new__(cls, numbers: Iterable[int], closing: Iterator[None]) -> Self:
        """Own these. Each step of `closing` closes one, and each of them once, whoever drives it."""
        owned = super().__new__(cls, numbers)
        owned._closing = closing
        return owned

    def close(self) -> None:
        """Close them. A second call does nothing."""
        _exhaust(self._closing)

    def __del__(self) -> None:
        self.close()


def _exhaust(iterator: Iterator[None]) -> None:
    """Drive an iterator to its end in one step, which no signal handler can split."""
    deque(iterator, maxlen=0)


class Collector:
    """Takes duplicates of the descriptors in what is being pickled."""

    _closing: Iterator[None] = _NOTHING  # for __del__, should __init__ be interrupted

    def __init__(self) -> None:
        self._collected: list[int] = []
        self._closing = map(os.close, self._collected)

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
        # Until the last line both own them: an interrupt in between drops both, and that closes each once.
        owned = OwnedDescriptors(self._collected, self._closing)
        self._closing = _NOTHING
        return owned

    def close(self) -> None:
        """Close what was not taken."""
        _exhaust(self._closing)

    def __del__(self) -> None:
        self.close()

    # What `reduction.DupFd` calls.

    def duplicate_for_child(self, descriptor: int) -> int:
        # One operation: an interrupt cannot come between the duplicate and its record.
        self._collected += map(os.dup, (descriptor,))
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

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def detach(self) -> int:
        """Return the descriptor, which is the caller's from now on."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            raise RuntimeError("the descriptor was detached before")
        return descriptor

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


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
    _arrivals.waiting = tuple(map(ArrivedDescriptor, descriptors))
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
