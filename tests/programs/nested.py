"""A pool inside a worker, and one inside a worker of that."""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D103

import sys

from pairpool import get_context


def inner(value):
    return value * 2


def outer(value):
    with get_context(sys.argv[1]).Pool(2) as pool:
        results = pool.map(inner, range(value))
    pool.join()
    return results


def outermost(value):
    with get_context(sys.argv[1]).Pool(1) as pool:
        results = pool.apply(outer, (value,))
    pool.join()
    return results


def main():
    with get_context(sys.argv[1]).Pool(2) as pool:
        assert pool.map(outer, [3, 4]) == [[0, 2, 4], [0, 2, 4, 6]]
        assert pool.apply(outermost, (3,)) == [0, 2, 4]
    pool.join()


if __name__ == "__main__":
    main()
    print("done")
