"""A worker's outbox: what is committed there is told, unit by unit, wherever its worker is by then."""

from __future__ import annotations

import math
import operator
import pickle
import signal
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, strategies as st

import twins
from forks import run_in_child
from interruptions import Interrupted
from pairpool import _outbox, _page
from pairpool._framing_py import LONGEST_COMMIT
from pairpool._outbox import SIZE, Outbox
from pairpool._packet import COMMITTED_HEAD, Status
from pairpool._page import Page, Phase
from pairpool._record import read_committed
from tasks import Odd
from twins import TWINS, ticking

twin = twins.twin  # the fixture

TOO_LARGE = b"x" * (LONGEST_COMMIT + 1)
BIG = [3**9000, 7**5000]  # whose greatest common divisor takes a fraction of a millisecond to find
PACKET = 2**20 + 7  # of which the word has the lower bits


@pytest.fixture(autouse=True)
def shared_memory_of_the_twin(twin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each twin in turn do the work of pages and outboxes."""
    monkeypatch.setattr(_page, "_twin", twin)
    monkeypatch.setattr(_outbox, "_twin", twin)


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    """An outbox of which units are committed from the first on."""
    outbox = Outbox.create()
    outbox.begin(PACKET)
    yield outbox
    outbox.close()


@pytest.fixture
def page() -> Iterator[Page]:
    """A page with a packet of ten units, the first of which is claimed."""
    page = Page.create()
    page.begin(PACKET, 10)
    assert page.claim() == 0
    yield page
    page.close()


def told(outbox: Outbox) -> tuple[int, list[tuple[int, bytes]]]:
    """Return the first unit, and status and payload of each, as who reads the outbox finds them."""
    found = outbox.peek(PACKET)
    if found is None:
        return 0, []
    first, units, records = found
    statuses, payloads = read_committed(records, units)
    return first, [(status, bytes(payload)) for status, payload in zip(statuses, payloads, strict=True)]


def told_values(outbox: Outbox) -> list[Any]:
    """Return what was committed, unpickled."""
    return [pickle.loads(payload) for _, payload in told(outbox)[1]]


# -- Outcomes one by one -----------------------------------------------------------------------------


def test_what_is_committed_is_told(outbox: Outbox) -> None:
    """And it is what the worker takes, to send it."""
    assert told(outbox) == (0, [])
    outcomes = [(Status.OK, b"one"), (Status.ERROR, b""), (Status.OK, b"three"), (Status.AGAIN, b"4")]
    for number, (status, payload) in enumerate(outcomes, 1):
        assert outbox.append(status, payload)
        assert told(outbox) == (0, outcomes[:number])
    assert outbox.take() == (0, bytes([0, 1, 0, 3]), [payload for _, payload in outcomes])
    assert outbox.next_unit == 4


def test_what_was_sent_is_told_no_more(outbox: Outbox) -> None:
    """What follows begins with the unit after."""
    outbox.append(Status.ERROR, b"one")
    outbox.clear()
    assert told(outbox) == (0, [])
    outbox.append(Status.OK, b"two")
    assert told(outbox) == (1, [(Status.OK, b"two")])
    assert outbox.take() == (1, bytes([Status.OK]), [b"two"])
    outbox.begin(PACKET, 9)
    outbox.append(Status.OK, b"nine")
    assert told(outbox) == (9, [(Status.OK, b"nine")])
    outbox.begin(PACKET + 1)
    outbox.append(Status.OK, b"another's")
    assert told(outbox) == (0, [])


@pytest.mark.parametrize("payload", [b"x" * (LONGEST_COMMIT + 1), bytearray(b"x"), memoryview(b"x"), None], ids=type)
def test_what_is_not_to_lie_there_is_not_committed(outbox: Outbox, payload: Any) -> None:
    """It would be copied once more, or is more than bytes."""
    assert outbox.append(Status.OK, b"x" * LONGEST_COMMIT)
    assert not outbox.append(Status.ERROR, payload)
    assert outbox.append(Status.OK, b"y")
    assert outbox.take()[:2] == (0, bytes(2))
    assert len(told(outbox)[1]) == 2


def test_a_full_outbox_takes_what_has_room(outbox: Outbox) -> None:
    """To the last byte."""
    size = 10_000 + COMMITTED_HEAD.size
    full = (SIZE - 8) // size
    for number in range(full):
        assert outbox.append(Status.OK, bytes([number]) * 10_000)
    rest = SIZE - 8 - full * size - COMMITTED_HEAD.size
    assert not outbox.append(Status.OK, b"x" * (rest + 1))
    assert outbox.append(Status.OK, b"x" * rest)
    assert not outbox.append(Status.OK, b"")
    assert told(outbox)[1] == [*((0, bytes([number]) * 10_000) for number in range(full)), (0, b"x" * rest)]


@twins.needs_c
@pytest.mark.once
@given(outcomes=st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50)), max_size=20))
def test_both_twins_write_the_same(outcomes: list[tuple[int, bytes]]) -> None:
    """Byte for byte: who reads need not know who has written."""
    written = []
    for twin in TWINS.values():
        outbox, payloads = Outbox.create(), list[bytes]()
        answers = [twin.outbox_append(outbox.memory, *outcome, payloads) for outcome in outcomes]
        written.append((answers, outbox.memory[:2000], payloads))
        outbox.close()
    assert written[0] == written[1]
    assert written[0][0] == [True] * len(outcomes)


# -- Units that run and are committed in one call ----------------------------------------------------


def test_units_are_committed_before_the_next_is_claimed(page: Page, outbox: Outbox) -> None:
    """So who reads the outbox while one runs finds all before it."""

    def look(item: str) -> int:
        mark = page.read()
        assert (mark.packet, item, mark.phase) == (PACKET, f"item {mark.offset}", Phase.UNPICKLING)
        assert told_values(outbox) == [*range(mark.offset)]
        return mark.offset

    values: list[Any] = []
    assert outbox.run(page, look, [f"item {number}" for number in range(10)], values) is None
    assert values == told_values(outbox) == [*range(10)]
    assert outbox.take() == (0, bytes(10), [pickle.dumps(number) for number in range(10)])
    assert page.claim() == -1


@pytest.mark.parametrize("at", [0, 4, 9])
@pytest.mark.parametrize("other", [[], "x" * LONGEST_COMMIT, TOO_LARGE, Odd()], ids=type)
def test_a_value_that_is_not_committed_is_the_last(page: Page, outbox: Outbox, at: int, other: Any) -> None:
    """It may change, or is too large. Somebody sees to it, and those after it run then."""
    values: list[Any] = []
    items = [*range(at), other, *range(at + 1, 10)]
    left = outbox.run(page, lambda item: item, items, values)
    assert left is not None
    assert left[0] is other
    assert values == told_values(outbox) == [*range(at)]
    assert outbox.next_unit == at

    outbox.begin(PACKET, at + 1)  # it was sent
    values.clear()
    if page.claim() >= 0:
        assert outbox.run(page, lambda item: item, items, values) is None
    assert values == told_values(outbox) == [*range(at + 1, 10)]


@pytest.mark.parametrize("at", [0, 4, 9])
def test_what_a_unit_raises_comes_out(page: Page, outbox: Outbox, at: int) -> None:
    """It is the next that is to be committed; those after it can be run when that was done."""
    values: list[Any] = []
    with pytest.raises(IndexError):
        outbox.run(page, lambda item: [item][item == at], range(10), values)
    assert values == told_values(outbox) == [*range(at)]
    assert outbox.next_unit == at
    outbox.append(Status.ERROR, b"raised")
    if page.claim() >= 0:
        assert outbox.run(page, abs, range(10), values) is None
    assert values == [*range(at), *range(at + 1, 10)]
    assert outbox.take()[1] == bytes([*[Status.OK] * at, Status.ERROR, *[Status.OK] * (9 - at)])


def test_what_is_large_is_not_even_pickled(page: Page, outbox: Outbox, twin: ModuleType) -> None:
    """It would be twice, as it is to go by another way."""
    pickled: list[Any] = []

    def dumps(value: Any) -> bytes:
        pickled.append(value)
        return pickle.dumps(value)

    items = (1, "x" * (LONGEST_COMMIT + 1))
    run = partial(twin.page_run_committing, page.memory, outbox.memory)
    assert run(lambda item: item, items, dumps, [], []) == (items[1],)
    assert pickled == [1]


def test_what_the_parent_takes_is_not_run(page: Page, outbox: Outbox) -> None:
    """Also where it takes it while a unit runs."""
    values: list[Any] = []
    assert outbox.run(page, lambda item: page.take_tail(PACKET, 10) if item == 3 else 0, range(10), values) is None
    assert values == told_values(outbox) == [0, 0, 0, 4]


def test_a_unit_that_forks_leaves_nothing_in_its_child(page: Page, outbox: Outbox) -> None:
    """A child that it makes can unmap the outbox."""

    def look(_: int) -> None:
        assert outbox.memory.closed

    values: list[Any] = []
    assert outbox.run(page, lambda item: run_in_child(partial(look, item)), [1] * 10, values) is None
    assert values == [0] * 10


def test_a_handler_is_run_between_units(page: Page, outbox: Outbox) -> None:
    """What it raises is the outcome of the one that ran."""

    def raise_interrupted(*_: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, raise_interrupted)
    try:
        with pytest.raises(Interrupted):
            outbox.run(page, signal.raise_signal, [0, 0, signal.SIGUSR1, 0], [])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert told_values(outbox) == [None, None]
    assert outbox.next_unit == 2
    assert page.claim() == 3


def test_other_threads_run_meanwhile(outbox: Outbox, twin: ModuleType) -> None:
    """Also where the units' function is one in C, which lets nobody in."""
    if twin.PIPED_CLAIMS:
        pytest.skip("each claim gives the GIL away for a system call, and who waits for it is sometimes late for 300")
    values: list[Any] = []
    with closing(Page.create()) as page, ticking() as ticks:
        page.begin(PACKET, 300)
        page.claim()
        count, busy = partial(operator.getitem, ticks, 0), partial(math.gcd, *BIG)
        assert outbox.run(page, operator.call, [count, *[busy] * 298, count], values) is None
    assert values[-1] > values[0]
