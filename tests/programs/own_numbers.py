"""The workers of a program's first pool have the numbers 1 and 2, of its second 3 and 4."""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D103

import multiprocessing
import sys

from pairpool import get_context


def number(barrier_free):
    process = multiprocessing.current_process()
    return process._identity, process.name.rpartition("-")[2]


def main():
    for first in (1, 3):
        with get_context(sys.argv[1]).Pool(2) as pool:
            seen = set()
            while len(seen) < 2:
                seen |= set(pool.map(number, range(8), chunksize=1))
        pool.join()
        assert seen == {((first,), str(first)), ((first + 1,), str(first + 1))}, seen


if __name__ == "__main__":
    main()
    print("done")
