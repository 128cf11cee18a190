"""A program whose workers do not have what its tasks use: it is defined where only the caller comes.

Its argument is the start method. It prints one word when all of it arrived.
"""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D101, D103

import sys
from functools import partial

from pairpool import Retry, get_context


def add(thing, number=0):
    return thing.value + number


def add_in(things, number=0):
    return add(things["thing"], number)


if __name__ == "__main__":

    class Late:
        def __init__(self):
            self.value = 5

    class LateError(Exception):
        pass

    def late(number):
        return number * 7

    def fail(number):
        raise LateError(number)

    def fails_as_it_should(pool, number):
        try:
            pool.options(retry=Retry(1, on=(LateError,))).apply(fail, (number,))
        except LateError as error:
            return error.args == (number,)
        return False

    def main():
        with get_context(sys.argv[1]).Pool(1) as pool:
            thing = pool.share(Late())
            assert pool.starmap(add, [(thing, number) for number in range(3)], 1) == [5, 6, 7]
            assert pool.apply(add, (thing,)) == 5
        with get_context(sys.argv[1]).Pool(1) as pool:
            thing = pool.share(Late())
            assert pool.map(partial(add, thing), range(3)) == [5, 6, 7]
            assert pool.apply(add_in, (pool.share({"thing": thing}), 1)) == 6
        with get_context(sys.argv[1]).Pool(1) as pool:
            assert pool.map(pool.share(late), range(3)) == [0, 7, 14]
        with get_context(sys.argv[1]).Pool(1) as pool:
            assert fails_as_it_should(pool, 3)
            assert fails_as_it_should(pool, 4)
        print("done")

    main()
