"""What functions see of the worker's main module: ``codec_globals.py METHOD INHERITED``.

Ends with an AssertionError where one sees the wrong thing. Everything under ``later`` in a name is
defined when the worker has long been running.
"""

from __future__ import annotations

import enum
import functools
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from codec_worker import Worker
from pairpool._codec import Encoder

MODEL: Any = None
LIMIT = 10
LOCK = threading.Lock()  # data which cannot be pickled


def initialize(model: str) -> None:
    """Set a global, as most initializers do."""
    global MODEL, LIMIT
    MODEL = model
    LIMIT = 99


def see_model() -> Any:
    """Return what the initializer set."""
    return MODEL, LIMIT


def set_model(model: str) -> None:
    """Set it anew in the worker."""
    global MODEL
    MODEL = model


def helper() -> str:
    """Help."""
    return "old helper"


def task() -> str:
    """Never change, but use a helper that does."""
    return "task, " + helper()


def hidden() -> str:
    """Is replaced by the initializer of another worker."""
    return "the caller's"


def use_hidden() -> str:
    """Use what may have been replaced."""
    return hidden()


def replace_hidden() -> None:
    """Replace a function in the worker alone."""
    global hidden
    hidden = lambda: "the worker's"  # noqa: E731


def twice(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate with a closure."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        return function(*arguments) * 2

    return run


@twice
def decorated(number: int) -> int:
    """Be found under the name of a closure."""
    return number + 1


@functools.lru_cache
def cached(number: int) -> int:
    """Be found under the name of an object of C."""
    return number * 10


class Point:
    """Has methods that change."""

    made = 0

    def __init__(self, x: int) -> None:
        self.x = x
        Point.made += 1

    def where(self) -> str:
        """Say where."""
        return f"old {self.x}"

    @classmethod
    def origin(cls) -> Point:
        """Make one."""
        return cls(0)


class Color(enum.Enum):
    """Has members."""

    RED = 1


def call_where(point: Any) -> Any:
    """Call a method of the argument."""
    return point.where()


def is_point(obj: Any) -> bool:
    """Know a class by its global name."""
    return isinstance(obj, Point)


def echo(obj: Any) -> Any:
    """Return the argument."""
    return obj


def check_globals_of_an_initializer(worker: Worker) -> None:
    """Functions by name and by value see what the initializer set, and none overwrites it."""
    assert worker.call(see_model) == ("set", 99)
    later = lambda: (MODEL, LIMIT, LOCK.locked())  # noqa: E731
    assert worker.call(later) == ("set", 99, False)
    assert worker.call(see_model) == ("set", 99)
    assert worker.map(lambda _: MODEL, [1, 2]) == ["set", "set"]
    worker.call(set_model, "set by a task")
    assert worker.call(later) == ("set by a task", 99, False)
    assert worker.call(see_model) == ("set by a task", 99)


def check_later_definitions(worker: Worker) -> None:
    """Functions and classes defined or redefined later run as they are now."""
    scope = globals()
    assert worker.call(task) == "task, old helper"
    exec("def later(x): return x, helper(), later_data", scope)
    scope["later_data"] = 5
    assert worker.call(scope["later"], 1) == (1, "old helper", 5)
    scope["later_data"] = 6
    assert worker.call(scope["later"], 1) == (1, "old helper", 6)
    exec("def later(x): return 'redefined', x", scope)
    assert worker.call(scope["later"], 1) == ("redefined", 1)
    exec("def helper(): return 'new helper'", scope)
    assert worker.call(task) == "task, new helper"
    assert worker.map(task_of_item, [1]) == ["task, new helper"]
    helper.__code__ = (lambda: "newest helper").__code__
    assert worker.call(task) == "task, newest helper"


def task_of_item(_: Any) -> str:
    """Reach the helper through another function."""
    return task()


def check_later_classes(worker: Worker) -> None:
    """Instances travel with the class they have in the caller."""
    scope = globals()
    assert worker.call(call_where, Point(1)) == "old 1"
    assert worker.call(is_point, Point(1))
    assert worker.map(call_where, [Point(2), Point(3)]) == ["old 2", "old 3"]
    exec(
        "class Later:\n  def __init__(self, x): self.x = x\n  def where(self): return 'later', self.x, task()",
        scope,
    )
    assert worker.call(call_where, scope["Later"](1)) == ("later", 1, task())
    returned = worker.call(echo, scope["Later"](2))
    assert type(returned) is scope["Later"]
    assert returned.x == 2
    Point.where = lambda self: f"patched {self.x}"  # type: ignore[method-assign]
    assert worker.call(call_where, Point(1)) == "patched 1"
    assert worker.call(is_point, Point(1))
    old = Point(7)
    exec("class Point:\n  def __init__(self, x): self.x = x\n  def where(self): return f'new {self.x}'", scope)
    assert worker.call(call_where, scope["Point"](1)) == "new 1"
    assert worker.call(call_where, old) == "patched 7"
    assert worker.call(is_point, scope["Point"](1))
    assert not worker.call(is_point, old)


def check_kinds(worker: Worker) -> None:
    """Every kind of callable arrives."""

    @dataclass
    class Local:
        x: int

        def add(self, y: int) -> int:
            return self.x + y

        def __call__(self, y: int) -> int:
            return self.x - y

    assert worker.call(decorated, 1) == 4
    assert worker.call(cached, 2) == 20
    assert worker.call(functools.lru_cache(lambda x: x + LIMIT), 1) == 100
    assert worker.call(functools.partial(call_where), Point(1)) == "old 1"
    assert worker.call(Point.origin).x == 0
    assert worker.call(Point(4).where) == "old 4"
    assert worker.call(Point, 5).x == 5
    assert worker.call(Point.where, Point(6)) == "old 6"
    assert worker.call(Local, 5) == Local(5)
    assert worker.call(Local(5).add, 1) == 6
    assert worker.map(Local(5), [1, 2]) == [4, 3]
    assert worker.call(echo, Color.RED) is Color.RED
    assert worker.call(len, [1, 2]) == 2
    assert worker.call("a-b".split, "-") == ["a", "b"]


def check_unchanged_goes_by_name(worker: Worker) -> None:
    """Nothing is refused, and nothing goes by value, as long as nothing has changed."""
    Point.made = 77  # state, not definition
    for _ in range(2):
        worker.call(task)
        worker.call(decorated, 1)
        worker.call(cached, 1)
        worker.call(call_where, Point(1))
        worker.call(echo, Color.RED)
        worker.call(echo, [Point, task, decorated])
    assert worker.refusals == []
    assert all(len(payload.data) < 150 for payload in worker.sent), [payload.data for payload in worker.sent]
    assert all(not payload.needs for payload in worker.sent[-6:])


def check_what_an_initializer_replaced(worker: Worker) -> None:
    """A function that the initializer replaced in the worker stays replaced."""
    assert worker.call(use_hidden) == "the worker's"
    assert worker.call(lambda: [hidden()]) == ["the worker's"]


def check_changes_that_are_undone(worker: Worker) -> None:
    """What a function finds is what the caller has, also after other functions brought other things."""
    scope = globals()
    scope["changing"] = lambda: "one"
    scope["changing_data"] = 1
    first = lambda: (changing(), changing_data)  # type: ignore[name-defined]  # noqa: E731, F821
    second = lambda: (changing(), changing_data, "second")  # type: ignore[name-defined]  # noqa: E731, F821
    exec("class Changing:\n  def where(self): return changing()", scope)
    original, early = scope["changing"], worker.encoder.definition(first)
    assert worker.call(first) == ("one", 1)
    assert worker.call(call_where, scope["Changing"]()) == "one"
    scope["changing"], scope["changing_data"] = lambda: "two", 2
    assert worker.call(second) == ("two", 2, "second")
    assert worker.call(call_where, scope["Changing"]()) == "two"
    scope["changing"], scope["changing_data"] = original, 1
    assert worker.call(call_where, scope["Changing"]()) == "one"
    assert worker.call(first) == ("one", 1)
    scope["changing"] = lambda: "three"
    assert worker.call(second) == ("three", 1, "second")
    # Made before the change and loaded after it: as in one process, the latest counts.
    worker.forget(early)
    assert worker.run(early) == ("three", 1)


def check_classes_are_sent_once(worker: Worker) -> None:
    """A class that goes by value is loaded once, and again when it has changed."""
    scope = globals()
    exec(
        "class Loaded:\n  x = 1\n  def __set_name__(self, *_): loads.append(1)\n  def where(self): return 1",
        scope,
    )
    exec("loads = []\nclass Outer:\n  x = 5\n  inner = None\n  def where(self): return self.x", scope)
    ids = {worker.call(class_id, scope["Outer"]()) for _ in range(3)}
    assert len(ids) == 1
    scope["Outer"].x = 6
    assert worker.call(call_where, scope["Outer"]()) == 6
    assert {worker.call(class_id, scope["Outer"]())} == ids


def class_id(obj: Any) -> int:
    """Tell classes apart; keep them."""
    KEPT.append(obj)
    return id(type(obj))


KEPT: list[Any] = []


def nest(method: str, inherited: bool) -> str:
    """Be the caller of another worker."""
    with Worker(method, Encoder(inherited=inherited), initialize, ("nested",)) as worker:
        assert worker.call(see_model) == ("nested", 99)
        assert worker.call(lambda: MODEL) == "nested"
        assert worker.call(call_where, Point(3)) == "old 3"
        original, Point.where = Point.where, lambda self: f"nested {self.x}"  # type: ignore[method-assign]
        assert worker.call(call_where, Point(3)) == "nested 3"
        Point.where = original  # type: ignore[method-assign]
    return "nested"


def check_nested(worker: Worker) -> None:
    """A worker may itself be a caller."""
    assert worker.call(nest, "fork", True) == "nested"
    assert worker.call(nest, "fork", False) == "nested"
    assert worker.call(nest, "spawn", False) == "nested"


CHECKS = (
    check_unchanged_goes_by_name,
    check_kinds,
    check_what_an_initializer_replaced,
    check_globals_of_an_initializer,
    check_nested,
    check_changes_that_are_undone,
    check_classes_are_sent_once,
    # These change what the others need, so they come last.
    check_later_definitions,
    check_later_classes,
)


def main() -> None:
    """Run each check with a worker of its own."""
    method, inherited = sys.argv[1], sys.argv[2] == "inherited"
    for check in CHECKS:
        replaces = check is check_what_an_initializer_replaced
        initializer, initargs = (replace_hidden, ()) if replaces else (initialize, ("set",))
        with Worker(method, Encoder(inherited=inherited), initializer, initargs) as worker:
            check(worker)


if __name__ == "__main__":
    main()
    print("all as it should be")
