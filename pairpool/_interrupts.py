"""In a worker: what the parent wants to be raised in the unit that runs, by a signal.

The parent writes into the page which unit it means, and why, and sends a signal; whatever it is about may be over by
the time that the signal arrives, and another unit may run. So the handler raises only where the page still shows that
unit, and only while what is raised becomes its outcome (`Gate.armed`): between two units nobody would catch it.

Only the main thread runs units and handlers. The handler comes in where a function is entered, a loop turns or a C
function has returned, and the runner opens and shuts its gate by operators.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from pairpool._packet import Reason
from pairpool._page import INTERRUPT_SIGNAL
from pairpool._runner import Gate
from pairpool.errors import TaskCancelledError, TimeLimitError

if TYPE_CHECKING:
    from types import FrameType

    from pairpool._page import Page


class Interrupts(Gate):
    """A worker's gate."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._struck = (Reason.NONE.value, 0)  # why, and since when the item ran that was interrupted last

    def install(self) -> None:
        """From now on the parent may send its signal."""
        signal.signal(INTERRUPT_SIGNAL, self.strike)

    def strike(self, number: int, frame: FrameType | None) -> None:
        if self.armed:
            self.look()
        else:
            self.missed = True

    def look(self) -> None:
        self.missed = False
        word = reason, since = self._page.read_interrupt()
        if reason == Reason.NONE or word == self._struck:
            return  # meant for another, or told already
        self._struck = word
        if reason == Reason.CANCELLED:
            raise TaskCancelledError("the task was cancelled while it ran")
        seconds = (time.monotonic_ns() - since) / 1e9
        raise TimeLimitError(f"the task takes longer than its soft time limit: {seconds:.3g} s so far", seconds=seconds)
