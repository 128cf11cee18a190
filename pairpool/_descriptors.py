"""pairpool's own descriptors, and what becomes of them when somebody forks.

Theory of operation
-------------------
A descriptor of ours that survives in a process which was not meant to have it does harm: a socket
keeps its peer from seeing EOF, the write end of a dead-man pipe (`_deadman`) keeps dead a parent's
workers alive. exec is no concern, every descriptor of ours is CLOEXEC. A plain ``os.fork()``, the
user's or that of another pool's zygote, copies them all. So each is registered here, and one hook
closes them in every forked child.

- The hook is registered when the first descriptor is, not on import.
- It calls ``close()`` and nothing else: ``shutdown()`` or ``epoll_ctl()`` would reach through the
  shared open file into the parent.
- It takes no lock: whoever held one in the parent is not there in the child to release it.

Owners
------
What is registered should be an *owner*: an object whose ``close()`` may be called twice, such as a
socket or a `Descriptor`. Owners are held weakly, so that the registry keeps nothing alive, and one
closed by its user is harmless here. A bare number may be registered too; it must be closed through
`close` here, because a number that was closed behind our back may by now be a file of the user's.

Guarantees
----------
After a fork, in the child: every registered descriptor that the forking thread did not `spare` is
closed, then every callback of `call_after_fork_in_child` has run, before ``os.fork()`` returns.

Assumptions
-----------
A descriptor is registered a few instructions after the system call that made it. A fork by another
thread between the two copies it for good; what is built on this registry has to bear that (the
zygote does: `_nursery`, "Ends").
"""

from __future__ import annotations

import os
import select
import sys
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from itertools import starmap
from typing import Any, Final, Protocol, Self, TypeAlias


class Closable(Protocol):
    """Whatever owns descriptors: closing it twice does no harm."""

    def close(self) -> None: ...


Owner: TypeAlias = select.epoll
"""Owns one descriptor, of whatever kind, and closes it without a word when it is collected.

Of the types written in C the one that does: in a ``__del__`` of ours, which runs in the midst of a call, Python would
swallow an interrupt.
"""


def own(function: Callable[..., int], *args: object) -> Owner:
    """Own the descriptor that this function opens, in one step which no signal handler can split."""
    (owner,) = map(Owner.fromfd, starmap(function, (args,)))
    return owner


class Descriptor:
    """Owns one descriptor, and closes it at the latest when it is collected, with a ResourceWarning.

    No ``__del__`` does that, but a `FileIO`: an interrupt that strikes in a ``__del__``, where Python
    looks for signals first thing, is swallowed, and what was to be done is not done.
    """

    __slots__ = ("__weakref__", "_file")

    def __init__(self, number: int) -> None:
        self._file = FileIO(number)

    @classmethod
    def of(cls, function: Callable[..., int], *args: object) -> Descriptor:
        """Own the descriptor that this function opens, in one step, as `own` does."""
        self = cls.__new__(cls)
        (self._file,) = map(FileIO, starmap(function, (args,)))
        return self

    def fileno(self) -> int:
        """Return the number of the descriptor; -1 once it is closed, as a socket does."""
        return -1 if self._file.closed else self._file.fileno()

    def close(self) -> None:
        """Close the descriptor, once."""
        self._file.close()

    def __repr__(self) -> str:
        return "<Descriptor closed>" if self._file.closed else f"<Descriptor {self.fileno()}>"


class OwnedDescriptors(tuple[int, ...]):  # noqa: SLOT001  (a tuple cannot have slots)
    """Duplicated descriptors, closed by `close()` or else with the last reference."""

    _owners: Sequence[Owner] = ()

    def __new__(cls, owners: Sequence[Owner]) -> Self:
        """Own the descriptors of these."""
        owned = super().__new__(cls, [owner.fileno() for owner in owners])
        owned._owners = owners
        return owned

    def and_that_of(self, owner: Owner) -> OwnedDescriptors:
        """Return these and another, which is the last; whoever has them keeps them open."""
        return OwnedDescriptors([*self._owners, owner])

    def close(self) -> None:
        """Close them. A second call does nothing."""
        close_owners(self._owners)

    def and_those_of(self, others: Iterable[OwnedDescriptors]) -> OwnedDescriptors:
        """Return these and others, one after another; whoever has them keeps them open."""
        return OwnedDescriptors([*self._owners, *[owner for other in others for owner in other._owners]])


class Owners(list[Owner]):
    """Owners of descriptors that come one after another."""

    __slots__ = ("__weakref__",)
    __eq__ = object.__eq__  # each is itself, so that it can be registered
    __hash__ = object.__hash__  # type: ignore[assignment]

    def close(self) -> None:
        """Close what they own. A second call does nothing."""
        close_owners(self)


NONE_OWNED: Final = OwnedDescriptors(())


def close_owners(owners: Iterable[Owner]) -> None:
    """Close descriptors in one step, which no signal handler can split."""
    deque(map(Owner.close, owners), maxlen=0)


_numbers: set[int] = set()
# Not a WeakSet: removing itself from a set is one step in C for a reference, and the hook, which
# each fork of a worker runs, copies fewer pages.
_owners: set[weakref.ref[Closable]] = set()
_callbacks: list[weakref.ref[Callable[[], object]]] = []

# What the fork that a thread is about to make leaves open, by that thread's identity (which the
# child's only thread keeps).
_spared: dict[int, tuple[int | Closable, ...]] = {}

_hooked = False


def register(*items: int | Closable) -> None:
    """Have these descriptors closed in every forked child."""
    _hook_forks()
    for item in items:
        if isinstance(item, int):
            _numbers.add(item)
        else:
            _owners.add(weakref.ref(item, _owners.discard))


def unregister(*items: int | Closable) -> None:
    """Leave these descriptors alone from now on; those that are not registered are ignored."""
    for item in items:
        if isinstance(item, int):
            _numbers.discard(item)
        else:
            _owners.discard(weakref.ref(item))


def close(*items: int | Closable) -> None:
    """Unregister and close these descriptors, in this order."""
    for item in items:
        unregister(item)
        if isinstance(item, int):
            os.close(item)
        else:
            item.close()


def close_all(numbers: Iterable[int]) -> None:
    """Close descriptors that were never registered, such as those just received."""
    for number in numbers:
        os.close(number)


@contextmanager
def spare(*items: int | Closable) -> Iterator[None]:
    """Leave these descriptors open, and registered, in a child that this thread forks meanwhile."""
    ident = threading.get_ident()
    _spared[ident] = items
    try:
        yield
    finally:
        _spared.pop(ident, None)


def call_after_fork_in_child(callback: Callable[[], object]) -> None:
    """Call this in every forked child once the descriptors are closed, if it still exists by then.

    A bound method is held by its object: the way for a pool to mark itself inert. The callback
    must take no lock, because whoever held it in the parent does not exist in the child.
    """
    _hook_forks()
    hold: Any = weakref.WeakMethod if hasattr(callback, "__self__") else weakref.ref
    # A new list, so that a fork in the midst of this sees the old or the new one.
    global _callbacks
    _callbacks = [known for known in _callbacks if known() is not None] + [hold(callback)]


def _hook_forks() -> None:
    global _hooked
    if not _hooked:
        # Two threads may both come here; running the hook twice changes nothing.
        _hooked = True
        os.register_at_fork(after_in_child=_after_fork_in_child)


def _after_fork_in_child() -> None:
    spared = _spared.pop(threading.get_ident(), ())
    _spared.clear()
    items: list[int | Closable | None] = [*_numbers, *[reference() for reference in _owners]]
    for item in items:
        if item is None or item in spared:
            continue
        try:
            close(item)
        except OSError:
            pass  # EBADF: somebody closed the number behind our back, as os.closerange() does
    for reference in _callbacks:
        callback = reference()
        try:
            if callback is not None:
                callback()
        except Exception:
            # One bad callback must not keep the others from running.
            traceback.print_exc(file=sys.__stderr__)
