"""Items of a list that share a pickle in groups: nobody can tell."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]  # typeshed has it not
from typing import Any, ClassVar

import pytest
from hypothesis import given, strategies as st

from pairpool import Retry, WorkerLostError, _feeder, _framing
from pairpool._packet import GROUP
from pairpool._payload import Payload
from pairpool._prepared import Group, Prepared
from receiving import PATIENCE
from tasks import Line

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

COUNT = 5 * GROUP + 7


# -- What is ready -----------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, GROUP), max_size=5),
    grouped=st.lists(st.booleans(), min_size=5, max_size=5),
    spans=st.lists(st.tuples(st.integers(0, 5 * GROUP), st.integers(1, 3 * GROUP)), max_size=12),
)
def test_every_unit_is_in_its_place_until_it_is_settled(
    sizes: list[int], grouped: list[bool], spans: list[tuple[int, int]]
) -> None:
    """Alone or in its group, whatever was settled before; and then nothing is kept."""
    prepared, units = Prepared(), list[int]()
    sizes = [GROUP] * (len(sizes) - 1) + sizes[-1:]  # all but the last are full
    for size, together in zip(sizes, grouped, strict=False):
        numbers = [*range(len(units), len(units) + size)]
        entries: list[Any] = [Group(b"".join(map(named, numbers)), size)] if together else [*map(named, numbers)]
        assert prepared.take(entries, len(units)) == len(units) + size
        units += numbers
    pending = set(units)
    for first, count in spans:
        span = range(first, min(first + count, len(units)))
        if not span or not pending.issuperset(span):
            continue
        found = list[int]()
        while len(found) < len(span):
            first = span[len(found)]
            payloads, number = prepared.together(first, len(span) - len(found), 1 << 20)
            if number:
                told = [int(each) for data in payloads for each in data.split()]
                skip = first % GROUP
                assert len(told) >= skip + number
                found += told[skip : skip + number]
            else:
                alone = prepared.separate(first, len(span) - len(found), b"nothing")
                found += map(int, alone)  # type: ignore[arg-type]
        assert found == [*span]
        for _ in range(2):  # what is interrupted is done again
            prepared.settle(span.start, len(span))
        pending -= {*span}
    for unit in pending:
        prepared.settle(unit, 1)
    assert not prepared.payloads
    assert not prepared._groups


def named(unit: int) -> bytes:
    """Return a payload that tells which it is."""
    return b"%d " % unit


def test_groups_go_as_far_as_there_is_room() -> None:
    """One in any case."""
    prepared = Prepared()
    for number in range(4):
        prepared.take([Group(bytes(1000), GROUP)], number * GROUP)
    assert [prepared.together(5, 1000, room)[1] for room in (0, 1500, 2500, 10_000)] == [
        GROUP - 5,
        GROUP - 5,
        2 * GROUP - 5,
        4 * GROUP - 5,
    ]
    assert prepared.together(5, 3, 10_000)[1] == 3


def test_what_could_not_be_pickled_has_no_payload() -> None:
    """It stands among those that could."""
    prepared, error = Prepared(), ValueError()
    assert prepared.take([b"0", error, Payload(b"2")], 7) == 10
    assert prepared.failures == {8: error}
    assert [*prepared.payloads] == [7, 9]


# -- From call to result ----------------------------------------------------------------------------------------------


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Have all items share a pickle that may, if it is known at all how long they take; see how many do."""
    sizes: list[int] = []
    take = Prepared.take

    def note(prepared: Prepared, entries: Sequence[Any], ready: int) -> int:
        sizes.extend(each.units for each in entries if type(each) is Group)
        return take(prepared, entries, ready)

    monkeypatch.setattr(_feeder, "TINY", 1 << 60)
    monkeypatch.setattr(Prepared, "take", note)
    yield sizes
    assert sizes


def records(count: int = COUNT) -> list[dict[str, Any]]:
    """Return what is alike, and not the same."""
    return [{"number": number, "name": f"item {number}", "ratio": number / 7} for number in range(count)]


def change(record: dict[str, Any]) -> dict[str, Any]:
    """Change an item, and return what else it is."""
    before = dict(record)
    record.clear()
    return before


def number_of(record: dict[str, Any]) -> int:
    """Fail for some, and return what others have."""
    number: int = record.pop("number")
    if number % 100 == 99:
        raise ValueError(number)
    return number


def warm(pool: Any, function: Callable[..., Any]) -> Any:
    """Have a pool know how long a function takes."""
    pool.map_async(function, records(40), 1, error_callback=lambda _: None).wait(PATIENCE)
    return pool


@pytest.mark.parametrize("face", ["map", "imap", "imap_unordered", "map_async"])
def test_each_item_arrives_as_it_was(make_pool: MakePool, groups: list[int], face: str) -> None:
    """And what its function does to it nobody sees."""
    items = records()
    told = getattr(warm(make_pool(2), change), face)(change, items)
    found = told.get(PATIENCE) if face == "map_async" else [*told]
    assert sorted(found, key=lambda record: record["number"]) == records()
    assert items == records()
    assert sum(groups) > GROUP


def test_what_shares_something_has_pickles_of_its_own(make_pool: MakePool, groups: list[int]) -> None:
    """One and the same item given many times arrives anew each time; and so does what is no plain value."""
    pool = warm(make_pool(1), change)
    pool.map(change, records(), 1)
    same: dict[str, Any] = {"number": 1}
    assert pool.map(change, [same] * COUNT, 1) == [same] * COUNT
    mixed: list[Any] = [*records(2 * GROUP), *[{"number": 1j}] * GROUP, *records(GROUP)]
    assert pool.map(change, mixed, 1) == mixed
    named: list[Any] = [*records(2 * GROUP), {"number": change}]
    assert pool.map(change, named, 1) == named


def test_an_item_that_is_changed_meanwhile_is_pickled_by_itself(
    make_pool: MakePool, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, between the look at it and the pickling."""
    pool, share_nothing = warm(make_pool(1), change), _framing.share_nothing

    def look_and_change(values: list[Any]) -> bool:
        told = share_nothing(values)
        if len(values) < GROUP:
            values[3]["number"] = lambda: 1
        return told

    monkeypatch.setattr(_framing, "share_nothing", look_and_change)
    results = pool.imap(change, records(GROUP + 5))
    assert [results.next(PATIENCE)["number"] for _ in range(GROUP + 3)] == [*range(GROUP + 3)]
    with pytest.raises(MaybeEncodingError):
        results.next(PATIENCE)
    assert results.next(PATIENCE)["number"] == GROUP + 4


def test_an_error_is_its_own_items(make_pool: MakePool, groups: list[int]) -> None:
    """The others have their results."""
    results = warm(make_pool(2), number_of).imap(number_of, records())
    for number in range(COUNT):
        if number % 100 == 99:
            with pytest.raises(ValueError, match=str(number)):
                results.next(PATIENCE)
        else:
            assert results.next(PATIENCE) == number


def multiply(left: int, right: int) -> int:
    """Take two."""
    return left * right


def test_pairs_are_arguments(make_pool: MakePool, groups: list[int]) -> None:
    """And what is none gets the error that it gets elsewhere."""
    pool = make_pool(2)
    pairs = [(number, number + 1) for number in range(COUNT)]
    for _ in range(2):
        assert pool.starmap(multiply, pairs, 1) == [left * right for left, right in pairs]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'right'"):
        pool.starmap(multiply, [*pairs, (1,)], 1)
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        pool.starmap(multiply, [*pairs, 1], 1)


class Counted:
    """Is counted while it is there."""

    alive: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.alive.append(1)

    def __del__(self) -> None:
        self.alive.pop()


def add_to(record: dict[str, Any]) -> int:
    """Put something into an item that takes much memory, and tell how often that is there."""
    record["much"] = Counted()
    return len(Counted.alive)


@pytest.mark.parametrize("options", [{}, {"soft_time_limit": PATIENCE}], ids=["direct", "guarded"])
@pytest.mark.parametrize("face", ["map", "imap"])
def test_what_a_function_adds_goes_with_its_item(
    make_pool: MakePool, groups: list[int], face: str, options: dict[str, Any]
) -> None:
    """Not with the last of its packet."""
    pool = warm(make_pool(1), add_to).options(**options)
    assert [*getattr(pool, face)(add_to, records(), chunksize=1)] == [1] * COUNT


def end_at(record: dict[str, Any]) -> int:
    """Kill the worker at one item."""
    number: int = record["number"]
    if number == GROUP + 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_costs_one_item(make_pool: MakePool, groups: list[int]) -> None:
    """Others of its group run elsewhere."""
    results = warm(make_pool(2), end_at).imap(end_at, records())
    for number in range(COUNT):
        if number == GROUP + 5:
            with pytest.raises(WorkerLostError):
                results.next(PATIENCE)
        else:
            assert results.next(PATIENCE) == number


def fail_first(record: dict[str, Any]) -> int:
    """Fail at some items in the first worker that meets them, and change the item before."""
    number: int = record.pop("number")
    if number % 70 == 69 and not _met.count(number):
        _met.append(number)
        raise ValueError(number)
    return number


_met: list[int] = []


def test_an_item_that_runs_again_is_as_it_was(make_pool: MakePool, groups: list[int]) -> None:
    """Its group is still there."""
    pool = warm(make_pool(1), fail_first).options(retry=Retry(1, (ValueError,)))
    assert pool.map(fail_first, records(), 1) == [*range(COUNT)]
    assert [*warm(make_pool(1), fail_first).options(retry=Retry(1, (ValueError,))).imap(fail_first, records())] == [
        *range(COUNT)
    ]


def hold(item: list[Any]) -> Any:
    """Wait at an item that names a pipe."""
    number, reading = item
    return os.read(reading, 1) if reading else number


def test_the_rest_of_a_group_runs_elsewhere(make_pool: MakePool, make_line: MakeLine, groups: list[int]) -> None:
    """Where one of its items takes long."""
    line = make_line()
    pool = make_pool(2)
    pool.map(hold, [[number, 0] for number in range(40)], 1)
    items = [[number, line.reading * (number == GROUP + 3)] for number in range(COUNT)]
    results = pool.imap_unordered(hold, items)
    others = {*range(COUNT)} - {GROUP + 3}
    assert {results.next(PATIENCE) for _ in others} == others
    line.tell(b"x")
    assert results.next(PATIENCE) == b"x"


def test_any_list_may_be_given(make_pool: MakePool, groups: list[int]) -> None:
    """Whatever is in it, where, and however often."""
    pool = warm(make_pool(2), repr)
    course = random.Random(7)
    kinds: list[Callable[[], Any]] = [dict, list, lambda: [1, [2]], lambda: (3, {}), lambda: {4}, lambda: 5 + 1j]
    for _ in range(60):
        some = kinds[: course.randint(1, len(kinds))]
        items = [course.choice(some)() for _ in range(course.randint(1, 4 * GROUP))]
        if course.random() < 0.5:
            items += course.choices(items, k=5)
        assert pool.map(repr, items, 1) == [*pool.imap(repr, items)] == [*map(repr, items)]
