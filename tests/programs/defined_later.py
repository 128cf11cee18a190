"""Functions and classes that are defined, or defined anew, after the pool was made."""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D101, D103

import sys

from pairpool import get_context


def helper(value):
    return f"old helper {value}"


def task(value):
    return f"task with {helper(value)}"


def redefined(value):
    return f"old {value}"


class Box:
    def open(self):
        return "old box"


def open_box(box):
    return box.open()


def main():
    global helper, redefined, later, Box, Later
    with get_context(sys.argv[1]).Pool(2) as pool:
        assert pool.apply(task, (1,)) == "task with old helper 1"
        assert pool.map(redefined, [1, 2]) == ["old 1", "old 2"]
        assert pool.apply(open_box, (Box(),)) == "old box"

        def later(value):
            return f"later {value} with {helper(value)}"

        later.__qualname__ = "later"
        assert pool.map(later, [1, 2]) == ["later 1 with old helper 1", "later 2 with old helper 2"]

        def helper(value):
            return f"new helper {value}"

        helper.__qualname__ = "helper"
        assert pool.map(task, [1, 2]) == ["task with new helper 1", "task with new helper 2"]
        assert pool.apply(task, (3,)) == "task with new helper 3"
        assert pool.map(later, [1]) == ["later 1 with new helper 1"]

        def redefined(value):
            return f"new {value}"

        redefined.__qualname__ = "redefined"
        assert pool.map(redefined, [1, 2]) == ["new 1", "new 2"]
        assert pool.submit(redefined, 3).result() == "new 3"
        assert list(pool.imap(redefined, [4])) == ["new 4"]

        class Later:
            def __init__(self, value):
                self.value = value

            def open(self):
                return f"later box {self.value}"

        Later.__qualname__ = "Later"
        assert pool.apply(open_box, (Later(1),)) == "later box 1"
        assert pool.map(open_box, [Later(1), Later(2)]) == ["later box 1", "later box 2"]

        class Box:
            def open(self):
                return "new box"

        Box.__qualname__ = "Box"
        assert pool.apply(open_box, (Box(),)) == "new box"
    pool.join()


if __name__ == "__main__":
    main()
    print("done")
