"""Tasks for the tests, and the line by which tasks and test tell each other how far they are.

Kept free of pytest: a worker of the spawn method imports this module before its first task.
"""

from __future__ import annotations

import os

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
