"""A journal of what workers began, which tells whether anything ran twice, and a task that writes to it and sleeps.

The journal is that of tests/chaos.py: workers append to one file, each entry in one system call, so what is written
stays, whatever becomes of them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from soak._part import borrow

chaos = borrow("chaos")

STEP = 8  # `chaos.begin` works for item % 8 quarters of a millisecond, so not at all on multiples of this


def nap(item: int) -> int:
    """Tell that an item has begun, sleep for a millisecond, and return what tells of the item alone."""
    told: int = chaos.begin(item * STEP)
    time.sleep(0.001)
    return told


class Journal:
    """The file, and what is done with it here."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def initializer(self) -> tuple[Any, tuple[str]]:
        """What workers call first, and its arguments."""
        return chaos.open_journal, (str(self.path),)

    def take(self) -> Counter[int]:
        """Return how often each item began since the last time. No worker may be at work."""
        begun = Counter(item for _, item in chaos.entries(self.path))
        if begun:
            os.truncate(self.path, 0)  # workers append: they go on at the new end
        return begun


@contextmanager
def open_journal() -> Iterator[Journal]:
    """Make a journal, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="pairpool-soak-") as folder:
        yield Journal(Path(folder) / "begun")


def check_account(account: Any, begun: Counter[int], items: Iterable[int], kills: int) -> None:
    """Each item came or was lost, none came or ran twice, and no more was lost than workers were killed."""
    assert account.lost <= kills, f"{account.lost} items were lost with {kills} workers killed"
    assert begun.keys() >= account.delivered.keys(), "a result came of what never began"
    assert begun.keys() <= set(items), "something ran that nobody asked for"
    assert max(begun.values(), default=1) == 1, f"items ran twice: {_more_than_once(begun)}"
    assert max(account.delivered.values(), default=1) == 1, f"came twice: {_more_than_once(account.delivered)}"
    wanted = len(set(items))
    came = len(account.delivered)
    assert came + account.lost == wanted, f"of {wanted} items {came} came and {account.lost} were lost"


def _more_than_once(counts: Counter[int]) -> list[int]:
    return [item for item, count in counts.items() if count > 1]
