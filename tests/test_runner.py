"""What runs packets in a worker, alone: what it sends for what it was given."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]  # typeshed has it not
from pathlib import Path
from typing import Any

import pytest

from interruptions import Interrupted, Interruption
from pairpool._codec import DefinitionKind, decode_result
from pairpool._objects import ObjectCodec
from pairpool._outbox import Outbox
from pairpool._packet import DEFINITION_HEAD, OUTCOMES_HEAD, TASKS_HEAD, Flag, Kind, Mode, OutcomeMode, Status
from pairpool._page import Page
from pairpool._runner import Gate, Runner
from pairpool._slab import Arena
from pairpool._worker import _PickleCodec
from pairpool.engines.threads import ThreadPage
from receiving import PATIENCE
from tasks import Odd

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
        if not self._units:
            return -1
        self.claimed = self._units.pop()
        return self.claimed


def run(
    function: Any, units: list[Any], claims: Claims, mode: int, flags: int, gate: Gate | None = None
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
def test_of_a_packet_taken_back_before_it_began_nothing_is_told(mode: int, flags: int) -> None:
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


def odd(_: object) -> Odd:
    """Return what cannot be pickled, as the library cannot."""
    return Odd()


def test_a_result_whose_class_has_no_hash_is_an_error_as_any_other(make_pool: MakePool) -> None:
    """In the library's words, and no worker dies of it."""
    pool = make_pool(1)
    pid = pool.apply(os.getpid)
    for get in (
        lambda: pool.apply(odd, (0,)),
        lambda: pool.map(odd, range(4), 1),
        lambda: list(pool.imap(odd, range(4))),
    ):
        with pytest.raises(MaybeEncodingError):
            get()
    assert pool.apply(os.getpid) == pid


# -- Signal handlers that strike anywhere ----------------------------------------------------------------

STRUCK = 5
WANTED = [0, 1, b"v" * 20_000, 3, 4]


def large_in_the_middle(number: int) -> object:
    """Return a number, but one has so much to say that it has a message of its own."""
    return WANTED[number]


UNITS: dict[str, tuple[int, list[Any]]] = {
    "one pickle": (Mode.SHARED, [[*range(STRUCK)]]),
    "a pickle each": (Mode.SEPARATE, [*range(STRUCK)]),
    "calls": (Mode.CALLS, [*[((number,), {}) for number in range(STRUCK)]]),
}


@pytest.mark.parametrize("flags", [0, Flag.VISIBLE], ids=["together", "visible"])
@pytest.mark.parametrize("how", UNITS)
@pytest.mark.parametrize("threads", [False, True], ids=["processes", "threads"])
def test_what_a_handler_raises_is_the_outcome_of_what_it_struck(how: str, flags: int, threads: bool) -> None:
    """Or of nothing, where that is no unit; and never of one that it did not strike."""
    mode, contents = UNITS[how]
    with ExitStack() as stack:
        outbox, page = stack.enter_context(closing(Outbox.create())), stack.enter_context(closing(Page.create()))
        for strike in count():
            sent: list[Sequence[Any]] = []
            runner = Runner(
                ObjectCodec() if threads else _PickleCodec(Arena()),
                ThreadPage() if threads else page,
                None if threads else outbox,
                lambda _kind, _ident, buffers, sent=sent: sent.append(buffers),  # type: ignore[misc]
            )
            runner._definitions[DEFINITION] = (0, large_in_the_middle if threads else b"", ())
            runner._functions[DEFINITION] = large_in_the_middle
            payloads = contents if threads else [pickle.dumps(each) for each in contents]
            if mode == Mode.CALLS:
                payloads = [struct.pack(f"<{STRUCK}Q", *[DEFINITION] * STRUCK), *payloads]
            head = TASKS_HEAD.pack(mode, flags, 0, STRUCK, 1, DEFINITION, 0)
            interruption = Interruption([strike])
            interruption.watch(partial(runner.run, strike + 1, [head, *payloads], ()))
            if not interruption.struck:
                break
            told = [each for buffers in sent for each in outcomes_in(buffers, threads)]
            assert [unit for unit, _ in told] == [*range(len(told))], interruption.struck
            assert len(told) <= STRUCK
            assert all(value in (WANTED[unit], Interrupted) for unit, value in told), interruption.struck


def outcomes_in(buffers: Sequence[Any], threads: bool) -> list[tuple[int, Any]]:
    """Return which units a message tells of, and the value of each, or `Interrupted`."""
    loads: Callable[[Any], Any] = (lambda value: value) if threads else decode_result
    mode, first, units, _ = OUTCOMES_HEAD.unpack(buffers[0])
    if mode == OutcomeMode.SHARED:
        values = loads(buffers[1])
    else:
        values = [
            Interrupted if status else loads(payload) for status, payload in zip(buffers[1], buffers[2:], strict=True)
        ]
    assert len(values) == units
    return [*enumerate(values, first)]
