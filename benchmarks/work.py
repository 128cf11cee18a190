"""What workers are given to do: functions of a module, so that each pool can find them by name."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def increment(number: int) -> int:
    """Do next to nothing, so that what is measured is the pool."""
    return number + 1


def value_of(record: Mapping[str, Any]) -> int:
    """Look at a small dict."""
    value: int = record["value"]
    return value


def echo(payload: Any) -> Any:
    """Give back what came."""
    return payload


def ends(array: Any) -> float:
    """Look at a large array, but not for long."""
    return float(array[0] + array[-1])


def negative(array: Any) -> Any:
    """Make another array of the same size."""
    return -array


def read_through(array: Any, seconds: float) -> int:
    """Read all of an array, leave time for the other workers to do so too, and return who has read it."""
    array.sum()
    time.sleep(seconds)
    return os.getpid()


def element(array: Any, index: int) -> float:
    """Look at one element of a large array, which the pool has to bring here."""
    return float(array[index])


def compute(seconds: float) -> float:
    """Compute for so long, and return for how long it really was."""
    begun = time.perf_counter()
    while (taken := time.perf_counter() - begun) < seconds:
        pass
    return taken


def doze(seconds: float) -> None:
    """Take time without using the processor."""
    time.sleep(seconds)


def now() -> float:
    """Return the time, which is the same in all processes of a machine."""
    return time.perf_counter()


def block_until(path: str) -> None:
    """Keep a worker busy until there is such a file."""
    while not Path(path).exists():
        time.sleep(0.005)


def report_start(descriptor: int) -> None:
    """Tell, as an initializer, that a worker is up."""
    os.write(descriptor, b"!")
