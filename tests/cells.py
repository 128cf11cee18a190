"""The cells of the differential test: what is called how, on which items, with which fault.

A cell is one combination of six choices, and `observe_cell` does what it says with a pool it is
given, whichever library the pool is of. What came of it is an `Outcome`: plain data, free of
addresses, so that two outcomes are the same if and only if they compare equal.

Kept free of pytest: a worker of the spawn method imports this module before its first task.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

ITEMS = 12  # with two workers the default chunks have two items
PATIENCE = 60.0  # seconds after which a result that does not come is a failure, not a wait


@dataclass(frozen=True)
class Cell:
    """One call of a pool, in all its choices."""

    face: str
    chunksize: int | None
    callable: str
    items: str
    fault: str = "none"

    def __str__(self) -> str:
        size = "" if self.face.startswith("apply") else f", chunksize={self.chunksize}"
        return f"{self.face}({self.callable}, {self.items}{size}) with fault: {self.fault}"


@dataclass
class Outcome:
    """What a caller sees of a call: values and errors in order, and the callbacks."""

    results: list[Any] = field(default_factory=list)
    callbacks: list[Any] = field(default_factory=list)

    def returned(self, value: Any) -> None:
        """Record a value."""
        self.results.append(plain(value))

    def raised(self, stage: str, error: BaseException) -> None:
        """Record an error and whether it came from the call itself or from its result."""
        self.results.append((stage, *words(error)))


def words(error: BaseException) -> tuple[str, str, str]:
    """Return type, message and type of the cause of an error, without addresses."""
    cause = type(error.__cause__).__qualname__
    return f"{type(error).__module__}.{type(error).__qualname__}", plain(str(error)), cause


def plain(value: Any) -> Any:
    """Return a value such that copies made by different pools compare equal."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, str):
        return re.sub(r"0x[0-9a-f]+", "0x", value)
    return value.seen if hasattr(value, "seen") else value


# -- Faults ---------------------------------------------------------------------------------------


class RefusalError(Exception):
    """An error that pickles but does not unpickle: its two arguments are not its ``args``."""

    def __init__(self, item: int, reason: str) -> None:
        super().__init__(f"item {item}: {reason}")


@dataclass
class Fault:
    """An item whose task fails in the way that is named."""

    how: str
    position: int

    def strike(self) -> Any:
        """Fail."""
        match self.how:
            case "error":
                raise ValueError(f"item {self.position}")
            case "error that does not pickle":
                raise ValueError(threading.Lock())
            case "error that does not unpickle":
                raise RefusalError(self.position, "refused")
            case "StopIteration":
                raise StopIteration(self.position)
            case "SystemExit":
                raise SystemExit(self.position)
            case "KeyboardInterrupt":
                raise KeyboardInterrupt(f"item {self.position}")
            case "result that does not pickle":
                return threading.Lock()
        raise AssertionError(f"no such fault: {self.how}")

    def __repr__(self) -> str:
        return str(self.strike())


class Unpicklable:
    """An item that cannot be sent."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("this item does not pickle")


# What happens, and at which positions. Two errors lie in one chunk of two, of three and of all.
TASK_FAULTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "error first": ("error", (0,)),
    "error within": ("error", (5,)),
    "error last": ("error", (11,)),
    "two errors": ("error", (4, 5)),
    "error that does not pickle": ("error that does not pickle", (5,)),
    "error that does not unpickle": ("error that does not unpickle", (5,)),
    "result that does not pickle": ("result that does not pickle", (5,)),
    "StopIteration": ("StopIteration", (5,)),
    "SystemExit": ("SystemExit", (5,)),
    "KeyboardInterrupt": ("KeyboardInterrupt", (5,)),
}
INPUT_FAULTS = {"iterable fails first": 0, "iterable fails within": 5, "sized iterable fails": 5}
FAULTS = ("none", *TASK_FAULTS, "item that does not pickle", *INPUT_FAULTS)


# -- Items ----------------------------------------------------------------------------------------


@dataclass
class Sharer:
    """An item that shares a list with all others, if it was sent together with them."""

    position: int
    shared: list[int]


class Unsized:
    """An iterable without a length."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Failing:
    """An iterable that raises at one position; with a length only if `length` is given."""

    def __init__(self, items: list[Any], position: int) -> None:
        self.items, self.position = items, position

    def __iter__(self) -> Iterator[Any]:
        yield from self.items[: self.position]
        raise LookupError(f"no item {self.position}")


class FailingSized(Failing):
    """A failing iterable that promises its full length."""

    def __len__(self) -> int:
        return len(self.items)


def _sharers() -> list[Sharer]:
    shared: list[int] = []
    return [Sharer(position, shared) for position in range(ITEMS)]


MAKE_ITEMS: dict[str, Callable[[], Any]] = {
    "ints": lambda: list(range(ITEMS)),
    "range": lambda: range(ITEMS),
    "generator": lambda: (item for item in range(ITEMS)),
    "unsized": lambda: Unsized(range(ITEMS)),
    "keys": lambda: dict.fromkeys(range(ITEMS)).keys(),
    "one dict": lambda: [{"calls": 0}] * ITEMS,
    "sharers": _sharers,
    "empty list": list,
    "empty generator": lambda: iter(()),
}


def make_input(cell: Cell) -> Any:
    """Return the iterable of a cell, with its fault built in."""
    starred = cell.face.startswith("starmap")
    kind = MAKE_ITEMS[cell.items]()
    if cell.fault == "none" and not starred:
        return kind
    items = list(kind)
    if cell.fault == "item that does not pickle":
        items[5] = Unpicklable()
    elif cell.fault in TASK_FAULTS:
        how, positions = TASK_FAULTS[cell.fault]
        for position in positions:
            items[position] = Fault(how, position)
    if starred:
        items = [(item,) for item in items]
    if cell.fault in INPUT_FAULTS:
        failing = FailingSized if cell.fault.startswith("sized") else Failing
        return failing(items, INPUT_FAULTS[cell.fault])
    if cell.items in ("generator", "empty generator"):
        return (item for item in items)
    return Unsized(items) if cell.items == "unsized" else items


# -- Callables ------------------------------------------------------------------------------------


def observe(item: Any) -> Any:
    """Return what a task can see of its item, and leave a mark on it that a later one would see."""
    if isinstance(item, Fault):
        return item.strike()
    if isinstance(item, dict):
        item["calls"] += 1
        return item["calls"]
    if isinstance(item, Sharer):
        item.shared.append(item.position)
        return list(item.shared)
    return ("seen", item)


class Tally:
    """A callable that counts its own calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, item: Any) -> tuple[int, Any]:
        """Count and observe."""
        self.calls += 1
        return self.calls, observe(item)

    def method(self, item: Any) -> tuple[int, Any]:
        """Count, as a bound method."""
        return self(item)


def call(function: Callable[[Any], Any], item: Any) -> Any:
    """Call a function: the body of the partial, which so carries a state."""
    return function(item)


class Seen:
    """A class as the callable: its instances are the results."""

    def __init__(self, item: Any) -> None:
        self.seen = observe(item)

    def __repr__(self) -> str:
        return f"Seen({self.seen!r})"


def _closure() -> Callable[[Any], Any]:
    inner = observe

    def enclosed(item: Any) -> Any:
        return inner(item)

    return enclosed


def _local_class() -> Callable[[Any], Any]:
    class Local:
        def __init__(self, item: Any) -> None:
            self.seen = observe(item)

        def __repr__(self) -> str:
            return f"Seen({self.seen!r})"

    return Local


MAKE_CALLABLE: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "function": lambda: observe,
    "builtin": lambda: repr,
    "class": lambda: Seen,
    "partial": lambda: functools.partial(call, Tally()),
    "bound method": lambda: Tally().method,
    "callable object": Tally,
    "lambda": lambda: lambda item: call(observe, item),
    "closure": _closure,
    "local class": _local_class,
}


# -- Faces ----------------------------------------------------------------------------------------

FACES = (
    "apply",
    "apply_async",
    "map",
    "map_async",
    "starmap",
    "starmap_async",
    "imap",
    "imap_unordered",
)
CHUNKSIZES = (None, 1, 3, 100)


def observe_cell(pool: Any, cell: Cell) -> Outcome:
    """Do with a pool what a cell says, and return what came of it."""
    function, items = MAKE_CALLABLE[cell.callable](), make_input(cell)
    outcome = Outcome()
    if cell.face.startswith("apply"):
        _observe_apply(pool, cell, function, items, outcome)
    elif cell.face.startswith("imap"):
        _observe_iterator(pool, cell, function, items, outcome)
    else:
        _observe_map(pool, cell, function, items, outcome)
    return outcome


def _chunks(cell: Cell) -> dict[str, int]:
    return {} if cell.chunksize is None else {"chunksize": cell.chunksize}


def _callbacks(outcome: Outcome) -> dict[str, Callable[[Any], None]]:
    return {
        "callback": lambda value: outcome.callbacks.append(("callback", plain(value))),
        "error_callback": lambda error: outcome.callbacks.append(("error_callback", words(error))),
    }


def _observe_apply(pool: Any, cell: Cell, function: Any, items: Any, outcome: Outcome) -> None:
    for item in items:
        try:
            if cell.face == "apply":
                outcome.returned(pool.apply(function, (item,)))
            else:
                result = pool.apply_async(function, (item,), **_callbacks(outcome))
                outcome.returned(result.get(PATIENCE))
        except BaseException as error:
            outcome.raised("result", error)


def _observe_map(pool: Any, cell: Cell, function: Any, items: Any, outcome: Outcome) -> None:
    start = getattr(pool, cell.face)
    if not cell.face.endswith("async"):
        try:
            outcome.returned(start(function, items, **_chunks(cell)))
        except BaseException as error:
            outcome.raised("result", error)
        return
    try:
        result = start(function, items, **_chunks(cell), **_callbacks(outcome))
    except BaseException as error:
        outcome.raised("call", error)
        return
    try:
        outcome.returned(result.get(PATIENCE))
    except BaseException as error:
        outcome.raised("result", error)


def _observe_iterator(pool: Any, cell: Cell, function: Any, items: Any, outcome: Outcome) -> None:
    try:
        iterator = getattr(pool, cell.face)(function, items, **_chunks(cell))
    except BaseException as error:
        outcome.raised("call", error)
        return
    ended = object()
    for _ in range(2 * ITEMS):  # an iterator that goes on after errors must still end
        try:
            value = next(iterator, ended)
        except BaseException as error:
            outcome.raised("result", error)
            continue
        if value is ended:
            break
        outcome.returned(value)
    if cell.face == "imap_unordered":
        outcome.results = _unordered(cell, outcome.results)


def _unordered(cell: Cell, results: list[Any]) -> list[Any]:
    """Return of results in order of arrival what does not depend on that order.

    In chunks the iterator ends with the first error, and what came before it is a matter of luck.
    """
    if cell.fault != "none" and cell.chunksize not in (None, 1):
        results = [each for each in results if isinstance(each, tuple) and each[0] == "result"]
    return sorted(results, key=repr)
