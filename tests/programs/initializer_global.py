"""An initializer sets a global of the main module, and tasks of every kind see it."""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D101, D103

import functools
import sys

from pairpool import get_context

SETTING = None


def prepare(value):
    global SETTING
    SETTING = value


def scaled(value):
    return (SETTING, value)


class Scaler:
    def method(self, value):
        return (SETTING, value)


def main():
    with get_context(sys.argv[1]).Pool(2, prepare, ("set",)) as pool:
        expected = [("set", value) for value in range(10)]
        assert pool.map(scaled, range(10)) == expected
        assert list(pool.imap(scaled, range(10), chunksize=3)) == expected
        assert pool.map(lambda value: (SETTING, value), range(10)) == expected
        assert pool.map(Scaler().method, range(10)) == expected
        assert pool.map(functools.partial(scaled), range(10)) == expected
        assert [pool.apply(scaled, (value,)) for value in range(10)] == expected
        assert [pool.submit(scaled, value).result() for value in range(10)] == expected
        # What went by value has left what the initializer set as it was.
        assert pool.map(scaled, range(10)) == expected
    pool.join()
    assert SETTING is None


if __name__ == "__main__":
    main()
    print("done")
