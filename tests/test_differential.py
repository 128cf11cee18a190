"""Our pools against those of the standard library, call by call.

Each cell of the table (face, chunksize, kind of callable, kind of items, fault) is done with both,
and what the caller sees must be equal: values, their order, types and words of errors, causes,
callbacks. `DIFFERENCES` lists every kind of cell in which it is not, what we do instead, and why.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

import pairpool
from cells import (
    CHUNKSIZES,
    FACES,
    FAULTS,
    ITEMS,
    MAKE_CALLABLE,
    MAKE_ITEMS,
    Cell,
    Outcome,
    RefusalError,
    observe_cell,
)

WORKERS = 2

Reference = Callable[[Cell], Outcome]
"""Return what the standard library makes of a cell."""

BY_VALUE = {"lambda": "function", "closure": "function", "local class": "class"}
STATEFUL = ("partial", "bound method", "callable object")
LARGEST = max(size for size in CHUNKSIZES if size)
SHARED = ("one dict", "sharers")
MAPS = ("map", "map_async", "starmap", "starmap_async")


@dataclass(frozen=True)
class Difference:
    """A kind of cell in which we differ from the standard library, on purpose."""

    why: str
    covers: Callable[[Cell], bool]
    accepts: Callable[[Cell, Outcome, Reference], bool]
    example: Cell
    stdlib_hangs: bool = False


def _like_a_named_callable(cell: Cell, ours: Outcome, reference: Reference) -> bool:
    named = replace(cell, callable=BY_VALUE[cell.callable])
    return agrees(named, ours, reference)


def _like_any_error(cell: Cell, ours: Outcome, reference: Reference) -> bool:
    """Accept what the library does for an ordinary error, but for the words, which name this one."""
    ordinary = reference(replace(cell, fault="error within"))
    name = RefusalError.__name__ if cell.fault == "error that does not unpickle" else cell.fault
    return _reworded(ours, "") == _reworded(ordinary, "") and name in str(ours)


def _as_runtime_error(cell: Cell, ours: Outcome, reference: Reference) -> bool:
    """Accept what the library does for an ordinary error, but for its type."""
    ordinary = reference(replace(cell, fault="error within"))
    return _reworded(ours, "") == _reworded(ordinary, "") and "a task raised StopIteration" in str(ours)


def _naming_the_error(cell: Cell, ours: Outcome, reference: Reference) -> bool:
    return _reworded(ours, "cannot pickle") == _reworded(
        reference(cell), "cannot pickle"
    ) and "'ValueError(<unlocked _thread.lock object at 0x>)'" in _text(ours)


def _naming_the_item(cell: Cell, ours: Outcome, reference: Reference) -> bool:
    singly = reference(replace(cell, face="imap", chunksize=1))
    (error,) = (each for each in singly.results if "cannot pickle" in str(each))
    return _reworded(ours, "cannot pickle") == _reworded(reference(cell), "cannot pickle") and error[2] in _text(ours)


def _text(outcome: Outcome) -> str:
    return " ".join(str(word) for each in outcome.results if isinstance(each, tuple) for word in each)


def _in_parts_of_chunks(cell: Cell, ours: Outcome, reference: Reference) -> bool:
    """Accept that items of a default chunk were pickled apart."""
    whole = reference(cell).results[0]
    apart = reference(replace(cell, chunksize=1)).results[0]
    return all(own in (together, alone) for own, together, alone in zip(ours.results[0], whole, apart, strict=True))


def _reworded(outcome: Outcome, words: str) -> Outcome:
    """Return an outcome in which of each error only those words are left that are asked for."""

    def reword(each: Any) -> Any:
        if isinstance(each, tuple) and each[0] in ("call", "result", "error_callback"):
            return each[0], words if words in str(each) else each
        return each

    return Outcome([reword(each) for each in outcome.results], [reword(each) for each in outcome.callbacks])


DIFFERENCES = {
    "callables without a name": Difference(
        why="the library cannot pickle lambdas, closures and local classes; we send them by value, "
        "and they do what a function or class of a module does",
        covers=lambda cell: cell.callable in BY_VALUE and not cell.items.startswith("empty"),
        accepts=_like_a_named_callable,
        example=Cell("map", None, "lambda", "ints"),
    ),
    "SystemExit and KeyboardInterrupt in a task": Difference(
        why="the library loses the task with its worker and waits for ever; ours ends with the "
        "error, as with any other",
        covers=lambda cell: cell.fault in ("SystemExit", "KeyboardInterrupt"),
        accepts=_like_any_error,
        example=Cell("apply", None, "function", "ints", "SystemExit"),
        stdlib_hangs=True,
    ),
    "errors that do not unpickle": Difference(
        why="unpickling one kills the library's result thread, and everyone waits for ever; we try "
        "it in the worker, and send the name and the words of an error that does not survive",
        covers=lambda cell: cell.fault == "error that does not unpickle",
        accepts=_like_any_error,
        example=Cell("apply", None, "function", "ints", "error that does not unpickle"),
        stdlib_hangs=True,
    ),
    "errors that do not pickle": Difference(
        why="the library names a wrapper of its own that could not be sent; we name the error, and "
        "its cause shows the frames in the worker",
        covers=lambda cell: cell.fault == "error that does not pickle",
        accepts=_naming_the_error,
        example=Cell("apply", None, "function", "ints", "error that does not pickle"),
    ),
    "results of maps that do not pickle": Difference(
        why="the library names the list of a whole chunk that could not be sent, also where it has "
        "one item or nobody asked for chunks; we name the item",
        covers=lambda cell: (
            cell.fault == "result that does not pickle"
            and cell.face in MAPS
            and (cell.chunksize == 1 or (cell.chunksize is None and cell.callable not in STATEFUL))
            and cell.callable != "builtin"
        ),
        accepts=_naming_the_item,
        example=Cell("map", 1, "function", "ints", "result that does not pickle"),
    ),
    "sized iterables that fail": Difference(
        why="of an iterable with a length the library awaits as many chunks as the length promises, "
        "for ever if it fails before the last; ours ends with the error in whatever chunk it comes",
        covers=lambda cell: cell.fault == "sized iterable fails" and cell.face in MAPS and cell.chunksize != LARGEST,
        accepts=lambda cell, ours, reference: ours == reference(replace(cell, chunksize=LARGEST)),
        example=Cell("map", 1, "function", "ints", "sized iterable fails"),
        stdlib_hangs=True,
    ),
    "StopIteration in a task of a map": Difference(
        why="the library takes it for the end of the chunk and returns a shorter list, in which "
        "results stand at the places of others; ours ends with the error",
        covers=lambda cell: cell.fault == "StopIteration" and cell.face in MAPS,
        accepts=_like_any_error,
        example=Cell("map", 3, "function", "ints", "StopIteration"),
    ),
    "StopIteration in a task of an imap": Difference(
        why="raised by next() it would end the caller's loop as if that were all, and in a chunk of the library's "
        "it only shortens the results; ours comes as a RuntimeError, as out of a generator (PEP 479)",
        covers=lambda cell: cell.fault == "StopIteration" and cell.face.startswith("imap"),
        accepts=_as_runtime_error,
        example=Cell("imap", 1, "function", "ints", "StopIteration"),
    ),
    "default chunks in parts": Difference(
        why="a chunk that nobody asked for may be split to balance the work, unless the callable "
        "carries a state; its parts are pickled apart, so that its items may share nothing",
        covers=lambda cell: (
            cell.face in MAPS and cell.chunksize is None and cell.items in SHARED and cell.callable not in STATEFUL
        ),
        accepts=_in_parts_of_chunks,
        example=Cell("map", None, "function", "sharers"),
    ),
}


def agrees(cell: Cell, ours: Outcome, reference: Reference) -> bool:
    """Return whether our outcome of a cell is the library's, or differs as it is listed."""
    for difference in DIFFERENCES.values():
        if difference.covers(cell):
            return difference.accepts(cell, ours, reference)
    return ours == reference(cell)


def is_sensible(cell: Cell) -> bool:
    """Return whether a cell asks for something, and for something that has one answer."""
    if cell.face.startswith("apply"):
        # Arguments are single objects: there is no iterable that could fail.
        return cell.chunksize is None and "iterable" not in cell.fault
    if cell.fault == "two errors":
        # Of errors in different chunks the first to arrive is raised, whichever that is.
        return not (cell.face in MAPS and cell.chunksize == 1)
    return True


@contextmanager
def both_pools(start_method: str) -> Iterator[tuple[Any, Reference]]:
    """Make a pool of ours and one of the library's; the latter answers as a reference."""
    with ExitStack() as ends:
        theirs, ours = (
            ends.enter_context(library.get_context(start_method).Pool(WORKERS))
            for library in (multiprocessing, pairpool)
        )
        yield ours, lambda cell: observe_cell(theirs, cell)
    for pool in (ours, theirs):
        pool.join()


def expect_agreement(start_method: str, cells: list[Cell]) -> None:
    """Fail with every cell in which we differ from the library otherwise than listed."""
    found = []
    with both_pools(start_method) as (pool, reference):
        for cell in filter(is_sensible, cells):
            ours = observe_cell(pool, cell)
            if not agrees(cell, ours, reference):
                found.append(f"{cell}:\n    ours   {ours}\n    stdlib {_shown(cell, reference)}")
        assert pool.map(abs, range(-ITEMS, 0)) == list(range(ITEMS, 0, -1)), "the pool still works"
    assert not found, "\n".join(found)


def _shown(cell: Cell, reference: Reference) -> str:
    hangs = any(each.stdlib_hangs and each.covers(cell) for each in DIFFERENCES.values())
    return "waits for ever" if hangs else str(reference(cell))


@pytest.mark.parametrize("kind", MAKE_CALLABLE)
@pytest.mark.parametrize("face", FACES)
def test_every_callable_sees_every_kind_of_items_alike(face: str, kind: str) -> None:
    """Without faults, each callable gives on each kind of items what it gives in the library."""
    cells = [Cell(face, size, kind, items) for size in CHUNKSIZES for items in MAKE_ITEMS]

    expect_agreement("fork", cells)


@pytest.mark.parametrize("kind", MAKE_CALLABLE)
@pytest.mark.parametrize("face", FACES)
def test_every_fault_ends_alike(face: str, kind: str) -> None:
    """Each fault ends in the same results and errors as in the library, and harms nothing else."""
    cells = [Cell(face, size, kind, "ints", fault) for size in CHUNKSIZES for fault in FAULTS]

    expect_agreement("fork", cells)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("face", FACES)
def test_started_otherwise_the_outcome_is_the_same(face: str, method: str) -> None:
    """What holds for forked workers holds for those started afresh."""
    kinds = ("function", "callable object", "closure")
    contents = (
        ("ints", "none"),
        ("sharers", "none"),
        ("ints", "error within"),
        ("generator", "iterable fails within"),
    )
    cells = [
        Cell(face, size, kind, items, fault)
        for size, kind, (items, fault) in itertools.product((None, 3), kinds, contents)
    ]

    expect_agreement(method, cells)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_each_listed_difference_is_one(name: str) -> None:
    """No difference stays on the list after it has gone."""
    difference = DIFFERENCES[name]
    assert difference.covers(difference.example)
    if difference.stdlib_hangs:
        return
    with both_pools("fork") as (pool, reference):
        assert observe_cell(pool, difference.example) != reference(difference.example)
