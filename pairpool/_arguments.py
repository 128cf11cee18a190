"""Refuses arguments as the standard library's pool does, in its words.

Callers need not have types, so none is relied on where the standard library looks.
"""

from __future__ import annotations

import operator
from typing import Any

from pairpool._dispatch import Bound
from pairpool._strikes import came_from_handler


def check_construction(processes: int, initializer: object, maxtasksperchild: object) -> int:
    """Returns the number of workers as an int."""
    if processes < 1:
        raise ValueError("Number of processes must be at least 1")
    if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
        raise ValueError("maxtasksperchild must be a positive int or None")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    return operator.index(processes)


def check_size(option: str, size: Any) -> int | None:
    """Returns it as an int: bytes, or None."""
    if size is None:
        return None
    try:
        number = operator.index(size)
    except TypeError:
        number = None
    if number is None or isinstance(size, bool):
        raise TypeError(f"{option} must be a number of bytes as an int, 512 * 2**20 for 512 MiB, not {size!r}")
    if number < 1:
        raise ValueError(
            f"{option} must be a number of bytes, more than 0, or None for as many as there are; not {size!r}"
        )
    return number


def check_bound(buffersize: Any, bufferbytes: Any) -> Bound:
    """Returns them as one; in the words of the standard library's `Executor.map` where they are no such numbers."""
    if buffersize is not None:
        try:
            buffersize = operator.index(buffersize)
        except TypeError:
            raise TypeError("buffersize must be an integer or None") from None
        if buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
    return Bound(buffersize, check_size("bufferbytes", bufferbytes))


def check_chunksize(chunksize: int) -> int:
    """Returns it as an int. The stdlib's map waits for ever with any other number, its imap raises islice's words."""
    try:
        return operator.index(chunksize)
    except TypeError:
        raise ValueError(f"chunksize must be an integer, not {chunksize!r}") from None


def of_call(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """To be called as a task would be: raises TypeError for what is no arguments."""
    return args, kwargs


def error_of_call(function: Any, error: Exception) -> Exception:
    """What `of_call` raised, in the words in which a call of `function` does: they say what is called."""
    if not isinstance(error, TypeError):
        return error
    if hasattr(function, "__qualname__"):
        module = getattr(function, "__module__", None)
        called = ("" if module in (None, "builtins") else f"{module}.") + f"{function.__qualname__}()"
    else:
        try:
            called = str(function)
        except Exception as own:
            if came_from_handler(own):
                raise
            return own  # as in CPython's own call
    return TypeError(str(error).replace(f"{__name__}.{of_call.__qualname__}()", called))
