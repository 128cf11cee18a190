"""Callables of every kind go to the workers: lambdas, closures, partials, methods, local classes."""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D101, D103

import functools
import operator
import sys

from pairpool import get_context


def add(left, right):
    return left + right


class Adder:
    def __init__(self, amount):
        self.amount = amount

    def method(self, value):
        return value + self.amount

    @classmethod
    def of_class(cls, value):
        return cls(1).method(value)

    @staticmethod
    def static(value):
        return value + 1

    def __call__(self, value):
        return value + self.amount

    def __eq__(self, other):
        return True

    __hash__ = None


def make_closure(amount):
    def enclosed(value):
        return value + amount

    return enclosed


def make_local_class():
    class Local:
        def __init__(self, value):
            self.value = value + 1

        def __eq__(self, other):
            return self.value == other.value

        __hash__ = None

    return Local


def recursive(depth):
    return 1 if depth == 0 else recursive(depth - 1)


def check(pool, function, expected):
    items = range(5)
    assert pool.map(function, items) == expected, function
    assert list(pool.imap(function, items, chunksize=2)) == expected, function
    assert [pool.apply(function, (item,)) for item in items] == expected, function
    assert [pool.submit(function, item).result() for item in items] == expected, function


def main():
    offset = 1
    one_more = [value + 1 for value in range(5)]
    local_class = make_local_class()
    with get_context(sys.argv[1]).Pool(2) as pool:
        check(pool, lambda value: value + 1, one_more)
        check(pool, lambda value: value + offset, one_more)
        check(pool, make_closure(1), one_more)
        check(pool, make_closure(2), [value + 2 for value in range(5)])
        check(pool, functools.partial(add, 1), one_more)
        check(pool, functools.partial(lambda left, right: left + right, 1), one_more)
        check(pool, Adder(1).method, one_more)
        check(pool, Adder(2).method, [value + 2 for value in range(5)])  # though it equals the one before
        check(pool, Adder(1), one_more)
        check(pool, Adder.of_class, one_more)
        check(pool, Adder.static, one_more)
        check(pool, operator.index, list(range(5)))
        check(pool, local_class, [local_class(value) for value in range(5)])
        check(pool, recursive, [1] * 5)
        check(pool, lambda value: make_closure(1)(value), one_more)  # noqa: PLW0108 (the lambda is the point)
    pool.join()


if __name__ == "__main__":
    main()
    print("done")
