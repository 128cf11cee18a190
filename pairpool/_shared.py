"""Objects that all workers of a pool have in common: what `Pool.share` and `Pool.empty` return, and how it arrives.

A shared object is a definition, as a function is: it rides on packets until a worker is known to have it, is loaded
there once, and forgotten when the caller has dropped it. What names it in a pickle is its number.
"""

from __future__ import annotations

import mmap
import os
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from pairpool import _passing
from pairpool._descriptors import OwnedDescriptors, own
from pairpool._envelope import PROTOCOL
from pairpool._strikes import came_from_handler
from pairpool.errors import PairpoolError

if TYPE_CHECKING:
    from pairpool._ledger import Ledger
    from pairpool._payload import Definition


class Shared:
    """An object that the workers of a pool have in common: pass it in tasks' arguments, and they get the object.

    `close` releases it, and so does, with the next thing that the pool does, the garbage collector; tasks that were
    submitted before still get it. It can also be used in a ``with`` statement. What workers hold of it is gone when
    they have ended what they run.
    """

    on_close: Callable[[], None] | None = None  # tells workers of what was released; else they hear of it in time

    def __init__(self, definition: Definition, ledger: Ledger, value: Any) -> None:
        self._definition: Definition | None = definition
        self._ledger = ledger
        self._value = value

    @property
    def value(self) -> Any:
        """The object as the caller has it. Raises ValueError where it was closed."""
        if self._definition is None:
            raise ValueError("the shared object was closed")
        return self._value

    def close(self) -> None:
        """Releases it. A second call does nothing."""
        self._definition = self._value = None
        if self.on_close is not None:
            self.on_close()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the object here. Passed as a task's function it is the object that a worker calls."""
        return self.value(*args, **kwargs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<Shared closed>" if self._definition is None else f"<Shared {type(self._value).__name__}>"

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("a shared object travels only in tasks of the pool that it was made with")

    def reduce(self, ledger: Ledger) -> tuple[Definition, Any]:
        """What a pickle of the pool with that ledger needs, and what stands in it. Raises as `value`, or ValueError."""
        definition = self.definition
        if ledger is not self._ledger:
            raise ValueError("a shared object travels only in tasks of the pool that it was made with")
        return definition, (fetch, (definition.ident,))

    @property
    def definition(self) -> Definition:
        """Raises ValueError where it was closed."""
        if self._definition is None:
            raise ValueError("the shared object was closed")
        return self._definition


_find: Callable[[int], Any] | None = None


def find_with(find: Callable[[int], Any]) -> None:
    """In a worker: from now on this is how shared objects are found, by the numbers of their definitions."""
    global _find
    _find = find


def fetch(ident: int) -> Any:
    """Return a shared object."""
    if _find is None:
        raise PairpoolError("a shared object was unpickled where there is none: only workers of its pool have it")
    return _passing.with_arrivals((), _find, ident)  # what came with the pickle being loaded is not its


def make_array(shape: Any, dtype: Any) -> tuple[Any, bytes, OwnedDescriptors]:
    """A new array of zeros that others can map and write to, the pickle of it, and the descriptor that goes with that.

    Raises ImportError where there is no numpy, what that raises for such arguments, and MemoryError.
    """
    import numpy as np

    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise ValueError(f"an array of Python objects cannot be shared: {dtype}")
    # It says what is wrong with them, and that there can never be so much memory: asked for ours, the kernel would take
    # page after page, and in the end kill somebody.
    like = np.empty(shape, dtype)
    shape, dtype, size = like.shape, like.dtype, max(1, like.nbytes)
    del like
    owner = own(os.memfd_create, "pairpool-array", os.MFD_CLOEXEC)
    try:
        # Now, and not when somebody touches it: then he would get a SIGBUS.
        os.posix_fallocate(owner.fileno(), 0, size)
    except OSError as error:
        if came_from_handler(error):
            raise
        raise MemoryError(f"no memory for an array of {size} bytes: {error}") from error
    array = np.ndarray(shape, dtype, mmap.mmap(owner.fileno(), size))
    return array, pickle.dumps(_Array(shape, dtype, size), PROTOCOL), OwnedDescriptors([owner])


class _Array:
    def __init__(self, shape: tuple[int, ...], dtype: Any, size: int) -> None:
        self._arguments = shape, dtype, size

    def __reduce__(self) -> tuple[Any, ...]:
        return open_array, self._arguments


def open_array(shape: tuple[int, ...], dtype: Any, size: int) -> Any:
    """Return an array in the memory that came along."""
    import numpy as np

    descriptor = _passing.claim(0).detach()
    try:
        return np.ndarray(shape, dtype, mmap.mmap(descriptor, size))
    finally:
        os.close(descriptor)
