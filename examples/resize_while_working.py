"""A pool that grows and shrinks while it works: no item is lost, and none is done twice.

Run it: ``python examples/resize_while_working.py``
"""

from __future__ import annotations

import os
from collections import Counter

from pairpool import Pool

ITEMS = 3000


def count_divisors(number: int) -> tuple[int, int, int]:
    """Return the number, how many divisors it has, and which process found out."""
    return number, sum(number % divisor == 0 for divisor in range(1, number + 1)), os.getpid()


def main() -> None:
    """Begin with one worker, go to four, and end with two."""
    plan = {ITEMS // 3: 4, 2 * ITEMS // 3: 2}
    sizes, seen, workers = [1], Counter[int](), set()
    with Pool(1) as pool:
        for done, (number, _, worker) in enumerate(pool.imap_unordered(count_divisors, range(ITEMS))):
            seen[number] += 1
            workers.add(worker)
            if done in plan:
                pool.resize(plan[done])
                sizes.append(pool._processes)
    pool.join()
    print("sizes of the pool:", *sizes)
    print("more than one worker took part:", len(workers) > 1)
    print(f"items done: {len(seen)} of {ITEMS}, each {'once' if set(seen.values()) == {1} else 'NOT once'}")


if __name__ == "__main__":
    main()
