"""A hundred gigabytes of arrays through `imap`, and as many back: each is what it was, and nothing grows.

They come from a generator, which has none of them but the one that it is asked for. Slabs stay for a second after they
were last used, so each reading waits until there are none.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pairpool._slab import NAME
from soak._part import MINUTE, Course, Part, make_pool
from soak._readings import PATIENCE, PAUSE

ARRAYS = 12_500
SIZE = 1_000_000  # elements of 8 bytes

M_MMAP_THRESHOLD = -3  # bytes from which on what is freed is given back at once


def negative(array: Any) -> Any:
    """Return another array."""
    return -array


def arrays(numbers: range) -> Iterator[Any]:
    """Make them one by one, each full of its number."""
    import numpy as np

    return (np.full(SIZE, float(number)) for number in numbers)


def has_slabs() -> bool:
    """Tell whether this process has a slab open."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if NAME in entry.readlink().name:
                return True
        except FileNotFoundError:
            pass  # the one by which it is listed
    return False


def wait_until_slabs_are_gone() -> None:
    """They stay for a second after they were last used."""
    deadline = time.monotonic() + PATIENCE
    while has_slabs() and time.monotonic() < deadline:
        time.sleep(PAUSE)


def give_back_soon(size: int) -> None:
    """Have the C library give back at once what has so many bytes, or more (mallopt(3)).

    Else it keeps the memory of an array that a feeder's thread has freed, or not.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, size)


def work(course: Course) -> str:
    """Send a hundredth, look at what comes back, and wait until its memory has been given back."""
    give_back_soon(SIZE)
    count = course.scaled(ARRAYS)
    with make_pool(2) as pool:
        for numbers in course.turns(count):
            for number, array in zip(numbers, pool.imap(negative, arrays(numbers)), strict=True):
                assert array.shape == (SIZE,), f"array {number} came back as {array.shape}"
                assert array[0] == array[SIZE // 2] == array[-1] == -number, f"array {number} came back as another"
            array = None  # the last one is not kept
            wait_until_slabs_are_gone()
            course.read(workers=2)
    return f"{count * SIZE * 8 / 1e9:,.0f} GB of arrays"


PART = Part("arrays", work, deadline=15 * MINUTE)
