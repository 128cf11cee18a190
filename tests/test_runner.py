"""What runs packets in a worker, alone: what it sends for what it was given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]  # typeshed has it not
from pathlib import Path
from typing import Any

import pytest

from pairpool._codec import DefinitionKind
from pairpool._objects import ObjectCodec
from pairpool._packet import DEFINITION_HEAD, TASKS_HEAD, Flag, Kind, Mode, OutcomeMode, Status
from pairpool._runner import Gate, Runner
from pairpool.engines.threads import ThreadPage
from receiving import PATIENCE

MakePool = Callable[..., Any]

DEFINITION = 7


class Claims(ThreadPage):
    """A page that gives the worker some units, then none."""

    def __init__(self, *units: int) -> None:
        self._units = [*reversed(units)]

    def begin(self, packet: int, count: int) -> None:
        """Enter a packet: it has the units that were given."""

    def claim(self) -> int:
        """Return the next unit, -1 where the parent has taken the rest."""
        return self._units.pop() if self._units else -1


def run(
    function: Any, units: list[Any], claims: Claims, mode: Mode, flags: int, gate: Gate | None = None
) -> list[tuple[int, Any]]:
    """Run a packet; return what was sent, its head taken apart in no other way than its kind."""
    sent: list[tuple[int, Any]] = []
    runner = Runner(ObjectCodec(), claims, None, lambda kind, _, buffers: sent.append((kind, buffers)), gate)
    head = TASKS_HEAD.pack(mode, flags, 1, len(units), 1, DEFINITION, 0)
    carried = (DEFINITION_HEAD.pack(DEFINITION, DefinitionKind.NAMED), function)
    runner.run(1, [head, *carried, *([units] if mode == Mode.SHARED else units)], ())
    return sent


@pytest.mark.parametrize("flags", [0, Flag.VISIBLE], ids=["together", "visible"])
@pytest.mark.parametrize("mode", [Mode.SHARED, Mode.SEPARATE])
def test_of_a_packet_taken_back_before_it_began_nothing_is_told(mode: Mode, flags: int) -> None:
    """A packet of which the parent took every unit is answered by nothing: he knows."""
    assert run(abs, [1, 2], Claims(), mode, flags) == []


@pytest.mark.parametrize("star", [False, True])
def test_a_chunk_in_which_stop_iteration_is_raised_ends_in_it(star: bool) -> None:
    """It is an error as any other, and not the end of the chunk, as for `list(map(...))`."""

    def stop(item: int) -> Iterator[int]:
        raise StopIteration(item)

    items = [(1,), (2,)] if star else [1, 2]
    ((kind, buffers),) = run(stop, [items], Claims(0), Mode.CHUNKS, Flag.STAR if star else 0)
    head, statuses, error = buffers
    assert (kind, head[0], statuses) == (Kind.OUTCOMES, OutcomeMode.SEPARATE, bytes([Status.ERROR]))
    assert isinstance(error, StopIteration)
    assert error.value == 1


# -- Outcomes of every kind amid one another -----------------------------------------------------------

NUMBERS = range(300)


def any_outcome(item: Any) -> Any:
    """Return something that can share a payload, or cannot, or cannot be pickled; or raise."""
    number: int = item if isinstance(item, int) else item[0]
    kind = number % 11
    if kind == 5:
        return lambda: number
    if kind == 3 and number > 100:
        raise ArithmeticError(number)
    others = {7: [number], 8: str(number) * 5_000, 9: b"long" * 20_000} if number > 200 else {}
    return others.get(kind)


def shown(get: Callable[[], Any]) -> object:
    """Return a value, or what kind of error it is."""
    try:
        return get()
    except (ArithmeticError, MaybeEncodingError) as error:
        return type(error)


FACES: dict[str, Callable[[Any, Sequence[Any]], list[object]]] = {
    "imap": lambda pool, items: take_all(pool.imap(any_outcome, items)),
    "imap_unordered": lambda pool, items: take_all(pool.imap_unordered(any_outcome, items)),
    "apply_async": lambda pool, items: [
        shown(partial(result.get, PATIENCE)) for result in [pool.apply_async(any_outcome, (item,)) for item in items]
    ],
    "map": lambda pool, items: [
        shown(lambda result=result: result.get(PATIENCE)[0])  # type: ignore[misc]
        for result in [pool.map_async(any_outcome, [item], chunksize=1) for item in items]
    ],
}


def take_all(results: Any) -> list[object]:
    """Return what an iterator gives."""
    return [shown(partial(results.next, PATIENCE)) for _ in NUMBERS]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("alike", [True, False], ids=["one pickle", "a pickle each"])
def test_each_outcome_is_that_of_its_item(make_pool: MakePool, face: str, alike: bool) -> None:
    """Whatever those around it are."""
    items = [*NUMBERS] if alike else [[number] for number in NUMBERS]
    expected = [MaybeEncodingError if number % 11 == 5 else shown(partial(any_outcome, number)) for number in NUMBERS]
    got = FACES[face](make_pool(2), items)
    if face == "imap_unordered":
        got, expected = sorted(got, key=repr), sorted(expected, key=repr)
    assert got == expected


@pytest.mark.parametrize("face", ["map", "starmap"])
def test_after_an_error_those_of_other_chunks_have_run(make_pool: MakePool, tmp_path: Path, face: str) -> None:
    """And those after it in its own have not, as in the library."""
    items = [[number, str(tmp_path)] for number in range(100)]
    function = note_or_raise if face == "map" else note_or_raise_of
    result = getattr(make_pool(2), f"{face}_async")(function, items, chunksize=10)
    with pytest.raises(ArithmeticError, match="14"):
        result.get(PATIENCE)
    assert sorted(map(int, os.listdir(tmp_path))) == [number for number in range(100) if not 14 <= number < 20]


def note_or_raise(item: list[Any]) -> None:
    """Leave a note that it ran; but one item raises."""
    number, path = item
    if number == 14:
        raise ArithmeticError(number)
    Path(path, str(number)).touch()


def note_or_raise_of(number: int, path: str) -> None:
    """As `note_or_raise`."""
    note_or_raise([number, path])
