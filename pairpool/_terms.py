"""What a caller may ask for his items beyond running them once: to run them again, or to end them after a while.

A worker is told which exceptions are worth another try, and marks an outcome with them (`Status.AGAIN`); a death the
dispatcher sees itself. Either way the unit goes back among those that wait, and runs anew from what was pickled for it,
in any worker. Tries are counted by the packets they were made with, so that a step which is interrupted and done again
counts none twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pairpool.errors import TimeLimitError

if TYPE_CHECKING:
    from pairpool._codec import Definition


@dataclass(frozen=True)
class Retry:
    """When an item is run again. Items are never run twice unless this says so.

    Args:
        times: how often an item may be run again in all.
        on: types of exceptions after which it is; the death of its worker always counts.
        deaths: workers that an item may kill; with the last of them it is taken for poison, whatever `times` says.
            The default is that of dask.distributed (``allowed-failures``).

    Raises:
        ValueError, TypeError: for numbers that are no counts and types that are no exceptions.
    """

    times: int = 1
    on: tuple[type[BaseException], ...] = ()
    deaths: int = 3

    def __post_init__(self) -> None:
        if not _is_count(self.times, 0):
            raise ValueError(f"Retry(times=...) must be a number of times, not {self.times!r}")
        if not _is_count(self.deaths, 1):
            raise ValueError(f"Retry(deaths=...) must be a number of workers, at least 1, not {self.deaths!r}")
        if not _are_exceptions(self.on):
            raise TypeError(f"Retry(on=...) must be a tuple of exception types, not {self.on!r}")


def _is_duration(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _ns(name: str, seconds: float | None) -> int:
    if seconds is None:
        return 0
    if not _is_duration(seconds):
        raise ValueError(f"{name} must be a number of seconds, more than 0, not {seconds!r}")
    return max(1, round(seconds * 1e9))


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and value >= least


def _are_exceptions(kinds: object) -> bool:
    return isinstance(kinds, tuple) and all(
        isinstance(each, type) and issubclass(each, BaseException) for each in kinds
    )


class WorthATry:
    """In the worker: tells errors after which an item is to be run again."""

    def __init__(self, kinds: tuple[type[BaseException], ...]) -> None:
        self._kinds = kinds

    def __call__(self, error: BaseException) -> bool:
        return isinstance(error, self._kinds)


class Terms:
    """What was agreed for the units of a job: whether they run again, and how long one may take."""

    def __init__(
        self,
        retry: Retry | None,
        time_limit: float | None,
        soft_time_limit: float | None,
        define: Callable[[Any], Definition],
    ) -> None:
        """The limits are in seconds. Raises what pickling the types of exceptions raises."""
        self.retry = retry
        self.limit_ns = _ns("time_limit", time_limit)  # 0: none
        self.soft_limit_ns = _ns("soft_time_limit", soft_time_limit)
        if 0 < self.limit_ns <= self.soft_limit_ns:
            raise ValueError(f"soft_time_limit ({soft_time_limit!r}) must be less than time_limit ({time_limit!r})")
        self.first_limit_ns = min(self.soft_limit_ns, self.limit_ns) or self.soft_limit_ns or self.limit_ns
        kinds = () if retry is None else retry.on
        self.filter = define(WorthATry(kinds)) if kinds else None
        self.tries_after_limit = bool(kinds) and issubclass(TimeLimitError, kinds)


class Tries:
    """How the units of a job have failed so far."""

    def __init__(self) -> None:
        self._failures: dict[int, frozenset[int]] = {}  # by unit: the packets
        self._deaths: dict[int, frozenset[int]] = {}

    def fail(self, terms: Terms | None, unit: int, packet: int, *, died: bool) -> bool:
        """Notes that a unit failed, or killed its worker, with a packet; returns whether it is run again."""
        if terms is None or terms.retry is None:
            return False
        failures = self._failures.get(unit, frozenset()) | {packet}
        deaths = self._deaths.get(unit, frozenset())
        if died:
            deaths |= {packet}
        self._failures[unit] = failures
        self._deaths[unit] = deaths
        return len(failures) <= terms.retry.times and len(deaths) < terms.retry.deaths

    def in_words(self, unit: int) -> str:
        """What there is to say of a unit that is not run again."""
        times, deaths = len(self._failures.get(unit, ())), len(self._deaths.get(unit, ()))
        if times < 2:
            return ""
        return f"it has been run {times} times" + (f", and {deaths} workers died of it" if deaths > 1 else "")

    def forget(self, unit: int) -> None:
        """It has its outcome."""
        self._failures.pop(unit, None)
        self._deaths.pop(unit, None)
