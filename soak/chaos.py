"""The chaos of the tests for a minute: pool after pool, each resized a few times while its workers are killed."""

from __future__ import annotations

import tempfile
from itertools import count, cycle, product
from pathlib import Path
from typing import Any

from soak._part import MINUTE, Course, Part, borrow, make_pool

SECONDS = 60.0
ITEMS = 1_000

# How often workers are killed by start method, in seconds: as often as they come up.
PAUSES = {"fork": 0.01, "forkserver": 0.1, "spawn": 0.1}

chaos = borrow("chaos")
holdings = borrow("holdings")


def let_loose(start_method: str, face: str, items: int, seed: int) -> int:
    """Run one pool to its end, which must leave nothing; return the kills."""
    pools: list[Any] = []

    def make(*arguments: Any) -> Any:
        pools.append(make_pool(*arguments, start_method=start_method))
        return pools[-1]

    before = holdings.Holdings.now()
    with tempfile.TemporaryDirectory(prefix="pairpool-soak-") as folder:
        kills: int = chaos.run(make, face, items, seed, PAUSES[start_method], Path(folder) / "begun")
    while pools:
        pool = pools.pop()
        pool.terminate()
        pool.join()
        del pool
    left = holdings.remains(before)
    assert left == [], f"left behind: {', '.join(left)}"
    return kills


def work(course: Course) -> str:
    """Run pool after pool, of every start method and face, until the time is over."""
    seconds = SECONDS * course.options.scale
    items = course.scaled(ITEMS, least=100)
    kinds = cycle(product(PAUSES, chaos.FACES))
    kills = 0
    for runs, seed in enumerate(count(course.options.seed)):
        if course.taken > seconds and kills:
            return f"{runs} pools, {kills:,} kills"
        course.turn()
        start_method, face = next(kinds)
        try:
            kills += let_loose(start_method, face, items, seed)
        except Exception as error:
            error.add_note(f"{face}, {start_method}, seed {seed}")
            raise
    raise AssertionError("there is always another seed")


PART = Part("chaos", work, deadline=10 * MINUTE)
