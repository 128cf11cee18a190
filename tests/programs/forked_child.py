"""A child that the program forks ends in the ordinary way, and the pool it has a copy of works on."""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D103

import os
import sys

from pairpool import get_context


def main():
    with get_context(sys.argv[1]).Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
        child = os.fork()
        if child == 0:
            sys.exit(7)  # with all finalizers, and the pool going out of scope
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert pool.map(abs, range(-100, 0)) == list(range(100, 0, -1))
    pool.join()


if __name__ == "__main__":
    main()
    print("done")
