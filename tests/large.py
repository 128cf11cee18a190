"""Large data for the tests: arrays that tell which they are, and what of shared memory a process holds.

Kept free of pytest: a worker of the spawn method imports this module before its first task.
"""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

KIB, MIB = 1 << 10, 1 << 20
LARGE = 200 * KIB  # bytes: so many have a slab of their own
MIDDLE = 100 * KIB  # bytes: more than a message has room for; they travel in a slab with others
PATIENCE = 30.0  # seconds after which something that does not come is a failure, not a wait

_ITEM = 4  # bytes of a number in these arrays


# -- Arrays that tell which they are ----------------------------------------------------------------


def fresh(number: int, size: int = LARGE) -> Array:
    """Make an array of so many bytes that has nothing but this number in it."""
    return np.full(size // _ITEM, number, "<u4")


def is_all(array: Any, number: int) -> bool:
    """Tell whether there is nothing but this number in an array, or in a part of one."""
    return bool((np.asarray(array) == number).all())


def numbers_in(array: Any) -> list[int]:
    """Return which numbers there are in an array, each once; more than one is a fault, so no more than ten."""
    found: list[int] = np.unique(np.asarray(array)).tolist()
    return found[:10]


# -- What a process holds ---------------------------------------------------------------------------


def descriptors(pid: int | str = "self") -> list[str]:
    """Return what each descriptor of a process leads to, as far as it is still there when it is looked at."""
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except FileNotFoundError:
            pass  # the descriptor of the listing itself, or one of another thread's
    return found


def mappings(pid: int | str = "self") -> list[str]:
    """Return the path of everything that a process has mapped and that has one."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [path[0] for line in lines if (path := line.split(maxsplit=5)[5:])]


def memory_files(pid: int | str = "self", name: str = "") -> list[str]:
    """Return each descriptor and each mapping of memory that has no file, of those whose name begins so."""
    beginning = f"/memfd:{name}"
    return [path for path in (*descriptors(pid), *mappings(pid)) if path.startswith(beginning)]


def more_memory_files(before: list[str]) -> list[str]:
    """Return those of this process beyond what there was before, once all that can be collected is."""
    gc.collect()
    return [*(Counter(memory_files()) - Counter(before)).elements()]


def shared_bytes(pid: int | str = "self", name: str = "") -> int:
    """Return how many bytes of memory that has no file a process has mapped, resident or not."""
    total, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            counts = rest[4:] != [] and rest[4].startswith(f"/memfd:{name}")
        elif counts and key in ("Size:", "Rss:"):
            total += int(rest[0]) * KIB
    return total


def comes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Look again and again whether something holds, until it does or its time is up."""
    deadline = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return held


# -- Tasks ------------------------------------------------------------------------------------------


def scribble(array: Array) -> list[int]:
    """Return what numbers there are in an array, then write all over it."""
    found = numbers_in(array)
    array[...] = 0xFFFF_FFFF
    return found


def batches(total: int, size: int) -> Iterator[range]:
    """Cut so many numbers into rows."""
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
