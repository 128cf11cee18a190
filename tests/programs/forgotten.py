"""A program that forgets its pool: it ends by itself, and its workers with it."""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D103

import sys

from pairpool import get_context


def main():
    global pool
    pool = get_context(sys.argv[1]).Pool(2)
    # Numbers: no thread pickles them, which at the interpreter's end would stop where it is, and keep the pool.
    pool.map_async(abs, range(10))
    print(*(worker.pid for worker in pool._pool))


if __name__ == "__main__":
    main()
