"""Tasks for the tests, and the line by which tasks and test tell each other how far they are.

Kept free of pytest: a worker of the spawn method imports this module before its first task.
"""

from __future__ import annotations

import os
from typing import Any


class Line:
    """A pipe between the test and the tasks of a forked pool, by which each tells the other.

    Tasks tell how far they have come, and wait until the test lets them go on, so that no test
    has to sleep or to measure time. Its ends are inherited by fork; it pickles as two numbers.
    """

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def tell(self, what: bytes) -> None:
        """Say something to whoever awaits it; one byte wakes one waiter."""
        os.write(self.writing, what)

    def await_told(self, length: int = 1) -> bytes:
        """Wait until `length` bytes were told and return them."""
        told = b""
        while len(told) < length:
            told += os.read(self.reading, length - len(told))
        return told

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reading)
        os.close(self.writing)


class Unhashable(type):
    """Makes classes that are in no set."""

    __hash__ = None  # type: ignore[assignment]


class Odd(metaclass=Unhashable):
    """One of these."""


# -- Tasks ----------------------------------------------------------------------------------------


def identity(value: Any) -> Any:
    """Return what was given."""
    return value


def add(left: int, right: int) -> int:
    """Return the sum."""
    return left + right


def fail(value: Any) -> Any:
    """Raise an error that names the value."""
    raise ValueError(f"fails at {value}")


def fail_at_zero(value: int) -> int:
    """Raise for 0 and return any other number."""
    if value == 0:
        raise ValueError("fails at 0")
    return value


def wait_for(line: Line) -> bytes:
    """Return what is told on a line, once it is."""
    return line.await_told()


def tell_and_wait(inside: Line, gate: Line) -> int:
    """Tell that the task runs, wait until it may end, and return the worker's pid."""
    inside.tell(b"i")
    gate.await_told()
    return os.getpid()


def worker_pid(_: Any = None) -> int:
    """Return the pid of the worker."""
    return os.getpid()
