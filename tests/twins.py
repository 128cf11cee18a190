"""The twins of the framing, side by side; a test asks for `twin` and runs over each.

The C twin must be there unless PAIRPOOL_EXTENSION=0 says that it is not wanted: a build that silently failed
must not leave the suite green.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from types import ModuleType

import pytest

import pairpool._framing_py

TWINS: dict[str, ModuleType] = {"python": pairpool._framing_py}

if os.environ.get("PAIRPOOL_EXTENSION") != "0":
    import pairpool._framing_c

    TWINS["c"] = pairpool._framing_c

# Who writes and who reads: what one twin sends must be what the other would have sent.
PAIRS = [pytest.param(TWINS[a], TWINS[b], id=f"{a}-{b}") for a, b in product(TWINS, repeat=2)]

needs_c = pytest.mark.skipif("c" not in TWINS, reason="PAIRPOOL_EXTENSION=0 leaves the C twin out")


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> ModuleType:
    """Each twin in turn."""
    return TWINS[request.param]


@contextmanager
def ticking() -> Iterator[list[int]]:
    """Have another thread count for as long as it is let run; its count is the list's only entry."""
    ticks, over = [0], threading.Event()

    def tick() -> None:
        while not over.is_set():
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield ticks
    finally:
        over.set()
        thread.join()
