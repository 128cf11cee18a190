"""Every exception of pairpool's own, each with one sentence on when it is raised."""

from __future__ import annotations

import builtins
import multiprocessing
import signal


class PairpoolError(Exception):
    """Base class of pairpool's own errors."""


class FramingError(PairpoolError):
    """Raised when a message is not a well-formed pairpool frame."""


class UnsupportedPlatformError(PairpoolError, OSError):
    """Raised by ``Pool()`` where the system lacks what pairpool stands on (Linux 5.10 or newer)."""


class TimeoutError(multiprocessing.TimeoutError, builtins.TimeoutError):
    """Raised when a result did not arrive within the timeout the caller gave.

    It is caught by ``except multiprocessing.TimeoutError``, by
    ``except concurrent.futures.TimeoutError`` and by ``except TimeoutError`` alike.
    """


class PoolTerminatedError(PairpoolError):
    """Raised by a result that was still pending when its pool was terminated."""


class _EndedTaskError(PairpoolError):
    """Tells also where a worker was in what it ran."""

    def __init__(self, message: str, *details: object, task: str, seconds: float | None, stack: str) -> None:
        super().__init__(message, *details, task, seconds, stack)
        self.task = task
        self.seconds = seconds
        self.stack = stack

    def __str__(self) -> str:
        return f"{self.args[0]}\n\n{self.stack}" if self.stack else str(self.args[0])


class WorkerLostError(_EndedTaskError):
    """Raised by the one item whose worker died while running it.

    Args:
        message: what happened, in words.
        pid: process id of the worker that died, where it was known.
        exitcode: as in `multiprocessing.Process.exitcode`: negative is the number of a signal.
        task: what it ran, in words: the name of the function, and which item; empty where it had begun nothing.
        seconds: how long it had run that; None where it had begun nothing.
        stack: where it was in that when it crashed, as `faulthandler` writes it; empty where that is not known.
    """

    def __init__(
        self,
        message: str,
        pid: int | None = None,
        exitcode: int | None = None,
        task: str = "",
        seconds: float | None = None,
        stack: str = "",
    ) -> None:
        super().__init__(message, pid, exitcode, task=task, seconds=seconds, stack=stack)
        self.pid = pid
        self.exitcode = exitcode

    @classmethod
    def of(
        cls,
        pid: int | None,
        exitcode: int | None,
        why: str = "",
        task: str = "",
        seconds: float | None = None,
        stack: str = "",
        never: str = "was ready",
    ) -> WorkerLostError:
        """The error of an item whose worker ended so. `why`: what is known besides. `never`: what it never did."""
        words = f"worker process {pid} {end_in_words(exitcode)}"
        words += f" while running {task}" if task else f" before it {never}"
        if seconds is not None:
            words += f", {seconds:.3g} s after it began"
        return cls(words + (f" ({why})" if why else ""), pid, exitcode, task, seconds, stack)


def end_in_words(exitcode: int | None) -> str:
    """How a process ended; nothing more than that where it is not known."""
    if exitcode is None:
        return "ended"
    if exitcode >= 0:
        return f"exited with status {exitcode}"
    try:
        return f"was killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"was killed by signal {-exitcode}"


class TimeLimitError(_EndedTaskError, builtins.TimeoutError):
    """Raised in an item that takes longer than its soft time limit, and by one whose worker was killed for its limit.

    See ``Pool.options(soft_time_limit=..., time_limit=...)``. Of a worker that was killed it has:

    Args:
        message: what happened, in words.
        task: what it ran, in words.
        seconds: how long it had run when it was ended.
        stack: what it was doing at that moment, as `faulthandler` writes it; empty where the worker could not tell.
    """

    def __init__(self, message: str, task: str = "", seconds: float = 0.0, stack: str = "") -> None:
        super().__init__(message, task=task, seconds=seconds, stack=stack)

    @classmethod
    def of(cls, limit: float, task: str, seconds: float, stack: str) -> TimeLimitError:
        """The error of an item that was to take no longer than `limit` seconds."""
        words = f"{task} took longer than its time limit of {limit:g} s; its worker was killed after {seconds:.3g} s"
        return cls(words, task, seconds, stack)


class TaskCancelledError(BaseException):
    """Raised in a task that runs when ``cancel(running=True)`` is called on its future.

    Like `KeyboardInterrupt` no Exception, so that it passes by what a task does about errors.
    """


class InitializerError(PairpoolError):
    """Raised by pending items when workers cannot start because the pool's initializer keeps failing."""


class RefusedError(PairpoolError):
    """Raised by an item that names what the worker's ``__main__`` has otherwise and that cannot go by value."""
