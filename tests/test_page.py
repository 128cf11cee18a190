"""A worker's page: its marks, and that each unit is claimed by the worker or taken by the parent."""

from __future__ import annotations

import gc
import math
import mmap
import operator
import os
import pickle
import random
import signal
import struct
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest

import twins
from forks import exit_code, fork_child, open_descriptors, run_in_child
from interruptions import Interrupted
from pairpool import _descriptors, _framing_py, _page
from pairpool._page import Page, Phase
from pairpool._sharing_py import LONGEST_KEPT
from tasks import Odd
from twins import TWINS, ticking

twin = twins.twin  # the fixture

LONGEST = _framing_py.UNIT_LIMIT


@pytest.fixture(autouse=True)
def pages_of_the_twin(twin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each twin in turn do the work of the pages."""
    monkeypatch.setattr(_page, "_twin", twin)


def both_sides() -> tuple[Page, Page]:
    """Return a new page as the parent has it, and as its worker has it."""
    parent = Page.create()
    worker = Page.attach([os.dup(descriptor) for descriptor in parent.descriptors])
    parent.drop_worker_ends()
    return parent, worker


@pytest.fixture
def sides() -> Iterator[tuple[Page, Page]]:
    """Both sides of a new page."""
    parent, worker = both_sides()
    yield parent, worker
    parent.close()
    worker.close()


@pytest.fixture
def parent(sides: tuple[Page, Page]) -> Page:
    """The parent's side of a new page."""
    return sides[0]


@pytest.fixture
def worker(sides: tuple[Page, Page]) -> Page:
    """The worker's side of the same page."""
    return sides[1]


@pytest.fixture
def new_page() -> Iterator[Page]:
    """A page that no worker has yet."""
    page = Page.create()
    yield page
    page.close()


def claims(worker: Page) -> list[int]:
    """Claim until nothing is left."""
    return list(iter(worker.claim, -1))


# --- One side after the other ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 100, LONGEST])
def test_units_are_claimed_in_order(worker: Page, count: int) -> None:
    """Every unit of a packet is claimed once, in order, and then there is none."""
    worker.begin(1, count)

    assert claims(worker) == list(range(count))
    assert worker.claim() == -1


# -- Running what is claimed -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 100, LONGEST])
def test_units_are_run_in_order(parent: Page, worker: Page, count: int) -> None:
    """Each with the item of its number, and marked while it runs."""
    worker.begin(7, count)
    assert worker.claim() == 0
    values: list[Any] = []
    items = [f"item {number}" for number in range(count)]
    assert worker.run(lambda item: f"{item} of {parent.read()[:3]}", items, values) is None

    assert values == [f"item {number} of {(7, number, Phase.UNPICKLING)}" for number in range(count)]
    assert worker.claim() == -1
    assert items == [None] * count


@pytest.mark.parametrize("at", [0, 1, 9])
@pytest.mark.parametrize("other", [[], "x" * LONGEST_KEPT, 1j, Odd()], ids=type)
def test_a_value_that_may_change_is_the_last(worker: Page, at: int, other: Any) -> None:
    """Somebody pickles it, and those after it run then."""
    worker.begin(7, 10)
    worker.claim()
    values: list[Any] = []
    left = worker.run(lambda number: other if number == at else number, range(10), values)
    assert left is not None
    assert left[0] is other
    assert values == [*range(at)]
    values.append("pickled")
    if worker.claim() >= 0:
        assert worker.run(abs, range(10), values) is None
    assert values == [*range(at), "pickled", *range(at + 1, 10)]


@pytest.mark.parametrize("at", [0, 1, 9])
def test_what_a_unit_raises_comes_out(worker: Page, at: int) -> None:
    """There is a value for each before it, and those after it can be run when somebody has seen to it."""
    worker.begin(7, 10)
    worker.claim()
    values: list[Any] = []
    with pytest.raises(IndexError):
        worker.run(lambda item: [item][item == at], range(10), values)
    assert values == list(range(at))
    values.append("raised")
    if worker.claim() >= 0:
        worker.run(abs, range(10), values)

    assert values == [*range(at), "raised", *range(at + 1, 10)]


def test_what_the_parent_takes_is_not_run(parent: Page, worker: Page) -> None:
    """Also where it takes it while a unit runs."""
    worker.begin(7, 10)
    worker.claim()
    values: list[Any] = []
    worker.run(lambda item: parent.take_tail(7, 10) if item == 3 else None, range(10), values)

    assert values == [None, None, None, 4]


def test_a_unit_that_forks_leaves_nothing_in_its_child(worker: Page) -> None:
    """A child that it makes can unmap the page."""

    def look(_: int) -> None:
        assert worker.memory.closed

    worker.begin(7, 1)
    worker.claim()
    values: list[Any] = []
    worker.run(lambda item: run_in_child(partial(look, item)), [1], values)

    assert values == [0]


def test_other_threads_run_meanwhile(worker: Page, twin: ModuleType) -> None:
    """Also where the units' function is one in C, which lets nobody in."""
    if twin.PIPED_CLAIMS:
        pytest.skip("each claim gives the GIL away for a system call, and who waits for it is sometimes late for 300")
    busy = partial(math.factorial, 3000)  # a fraction of a millisecond
    values: list[Any] = []
    with ticking() as ticks:
        worker.begin(7, 300)
        worker.claim()
        worker.run(operator.call, [ticks.copy, *[busy] * 298, ticks.copy], values)

    assert values[-1] > values[0]


def test_a_handler_is_run_between_units(worker: Page) -> None:
    """What it raises is the outcome of the one that ran."""

    def raise_interrupted(*_: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, raise_interrupted)
    values: list[Any] = []
    worker.begin(7, 10)
    worker.claim()
    try:
        with pytest.raises(Interrupted):
            worker.run(signal.raise_signal, [0, 0, signal.SIGUSR1, 0], values)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert values == [None, None]
    assert worker.claim() == 3


def test_nothing_can_be_claimed_before_a_packet(worker: Page) -> None:
    """A worker without a packet has no units."""
    assert worker.claim() == -1


@pytest.mark.parametrize("packet", [0, 1, 2**32, 2**48 - 1])
def test_packets_may_have_any_ident(parent: Page, worker: Page, packet: int) -> None:
    """Idents of up to 48 bits are marked, claimed for and taken from."""
    worker.begin(packet, 3)
    worker.claim()

    assert (parent.read().packet, parent.take_tail(packet, 3), worker.claim()) == (packet, 1, -1)


@pytest.mark.parametrize(
    ("packet", "count", "words"),
    [
        (-1, 1, "packet must be between 0 and 281474976710655"),
        (2**48, 1, "packet must be between 0 and 281474976710655"),
        (0, 0, "count must be between 1 and 4096"),
        (0, LONGEST + 1, "count must be between 1 and 4096"),
    ],
)
def test_impossible_packets_are_refused(worker: Page, packet: int, count: int, words: str) -> None:
    """A packet that the page cannot show is refused in the same words by both twins."""
    with pytest.raises(ValueError, match=words):
        worker.begin(packet, count)


@pytest.mark.parametrize("packet", [-1, 2**48])
def test_tails_of_impossible_packets_are_refused(parent: Page, packet: int) -> None:
    """No tail can be taken of a packet that there cannot be."""
    with pytest.raises(ValueError, match="packet must be between"):
        parent.take_tail(packet, 1)


@pytest.mark.parametrize("claimed", [0, 1, 7, 9])
def test_the_parent_takes_what_is_not_claimed(parent: Page, worker: Page, claimed: int) -> None:
    """The tail begins after the last claim, and the worker is given nothing of it."""
    worker.begin(5, 10)
    for _ in range(claimed):
        worker.claim()

    assert (parent.take_tail(5, 10), worker.claim()) == (claimed, -1)


def test_a_packet_all_claimed_has_no_tail(parent: Page, worker: Page) -> None:
    """Where every unit is claimed the tail begins at the end."""
    worker.begin(5, 3)
    claims(worker)

    assert parent.take_tail(5, 3) == 3


def test_the_same_tail_is_taken_again(parent: Page, worker: Page) -> None:
    """Asked again with the old count the answer is the same, also when the worker has moved on."""
    worker.begin(5, 10)
    worker.claim()
    first = parent.take_tail(5, 10)
    worker.claim()
    again = parent.take_tail(5, 10)
    worker.begin(6, 2)

    assert (first, again, parent.take_tail(5, 10)) == (1, 1, 1)
    assert claims(worker) == [0, 1]


def test_a_tail_is_taken_once_where_the_count_is_kept(parent: Page, worker: Page) -> None:
    """Asked with the count that is left, the parent is given nothing more."""
    worker.begin(5, 10)
    worker.claim()
    left = parent.take_tail(5, 10)

    assert parent.take_tail(5, left) == left


@pytest.mark.parametrize("packet", [4, 6, 5 + 2**32])
def test_a_packet_that_the_worker_is_not_with_has_no_tail(parent: Page, worker: Page, packet: int) -> None:
    """Asking for an earlier or later packet takes nothing of the present one."""
    worker.begin(4, 10)
    worker.begin(5, 10)

    if packet < 2**32:
        assert parent.take_tail(packet, 10) == 10
    assert claims(worker) == list(range(10))


def test_a_single_unit_is_claimed_or_taken(parent: Page, worker: Page) -> None:
    """The one unit of a packet is the worker's, unless the parent was told that it is its own."""
    worker.begin(5, 1)

    taken = parent.take_tail(5, 1)

    assert claims(worker) == ([] if taken == 0 else [0])


def test_an_abandoned_packet_leaves_nothing(parent: Page, worker: Page) -> None:
    """A packet entered after many that were not finished has its own units and no others."""
    for packet in range(20):
        worker.begin(packet, LONGEST)
        worker.claim()
    worker.begin(20, 1)
    single = claims(worker)
    worker.begin(21, LONGEST)
    worker.begin(22, 2)

    assert (single, parent.take_tail(21, LONGEST), claims(worker)) == ([0], LONGEST, [0, 1])


def test_marks_show_what_the_worker_is_at(parent: Page, worker: Page) -> None:
    """The parent reads packet, unit, phase and the time at which the unit was claimed."""
    idle = parent.read()
    worker.begin(5, 2)
    taken = parent.read()
    worker.claim()
    unpickling = parent.read()
    worker.running()
    running = parent.read()
    worker.done()
    done = parent.read()
    worker.claim()
    second = parent.read()

    assert idle == (0, 0, Phase.IDLE, 0)
    assert [mark[:3] for mark in (taken, unpickling, running, done, second)] == [
        (5, 0, Phase.TAKEN),
        (5, 0, Phase.UNPICKLING),
        (5, 0, Phase.RUNNING),
        (5, 0, Phase.DONE),
        (5, 1, Phase.UNPICKLING),
    ]
    assert 0 < taken.started_ns <= unpickling.started_ns == running.started_ns == done.started_ns
    assert done.started_ns <= second.started_ns
    assert [mark.begun for mark in (idle, taken, unpickling, running, done, second)] == [0, 0, 1, 1, 1, 2]


def test_a_single_unit_is_marked(parent: Page, worker: Page) -> None:
    """A packet of one unit is marked like any other."""
    worker.begin(5, 1)
    taken = parent.read()
    worker.claim()

    assert (taken[:3], parent.read()[:3]) == ((5, 0, Phase.TAKEN), (5, 0, Phase.UNPICKLING))


def test_a_failed_claim_leaves_the_mark(parent: Page, worker: Page) -> None:
    """Where nothing is left to claim the mark shows the last unit still."""
    worker.begin(5, 3)
    worker.claim()
    parent.take_tail(5, 3)
    worker.running()
    worker.claim()

    assert parent.read()[:3] == (5, 0, Phase.RUNNING)


def test_the_phases_of_the_primitives_are_those_of_the_page() -> None:
    """The numbers that the primitives write mean what the page says."""
    assert (_framing_py.TAKEN, _framing_py.UNPICKLING) == (Phase.TAKEN, Phase.UNPICKLING)


def test_garbage_in_the_page_raises_nothing(parent: Page, worker: Page) -> None:
    """Whatever a worker writes into its page, reading it and taking tails gives an answer in bounds."""
    noise = random.Random(1)
    for _ in range(300):
        words = [noise.getrandbits(64) for _ in range(4)]
        words[1] = words[1] & ~(0xFFFF << 32) if noise.random() < 0.5 else words[1]
        worker.memory[:32] = struct.pack("4Q", *words)
        packet = parent.read().packet

        assert 0 <= parent.take_tail(packet, 10) <= 10


def test_repr_says_what_the_worker_is_at(parent: Page, worker: Page) -> None:
    """A page shows its state in words."""
    worker.begin(7, 4)
    worker.claim()
    worker.claim()
    worker.running()
    shown = repr(parent)
    parent.close()

    assert (shown, repr(parent)) == ("<Page packet 7, unit 1: RUNNING>", "<Page closed>")


# --- Descriptors and memory --------------------------------------------------------------------------------


def test_a_closed_page_leaves_nothing() -> None:
    """A page holds no descriptor once it is closed, and may be closed again."""
    before = open_descriptors()
    for page in 2 * both_sides():
        page.close()

    assert open_descriptors() == before


def test_a_page_cannot_change_its_size(new_page: Page) -> None:
    """Nobody who holds the page can make the other side's access to it fail."""
    for size in (0, 2 * mmap.PAGESIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(new_page.descriptors[0], size)


def test_descriptors_of_another_twin_are_refused(twin: ModuleType) -> None:
    """A page made for the other twin is refused in words, and its descriptors are closed."""
    before = open_descriptors()
    descriptors = [os.dup(0) for _ in range(1 if twin.PIPED_CLAIMS else 3)]

    with pytest.raises(ValueError, match="the page of the other twin"):
        Page.attach(descriptors)
    assert open_descriptors() == before


def test_a_forked_child_has_no_page(new_page: Page) -> None:
    """A child forked by somebody else holds neither the descriptors nor the mapping."""
    before = open_descriptors()

    def look() -> None:
        assert repr(new_page) == "<Page closed>"
        assert len(open_descriptors()) < len(before)
        assert "pairpool-page" not in str(open_descriptors())

    assert run_in_child(look) == 0
    assert new_page.read().phase == Phase.IDLE


def test_a_page_in_use_can_be_closed_after_a_fork(new_page: Page) -> None:
    """A child forked while another thread was within a primitive closes the page without an error."""
    in_use = memoryview(new_page.memory)
    assert run_in_child(new_page.close) == 0
    in_use.release()


# --- Both sides at once ------------------------------------------------------------------------------------


def packet_size(packet: int) -> int:
    """Return how many units a packet has: few and many, the same for both sides."""
    return random.Random(packet).choice((1, 2, 3, 20, 64, 300))


def fork_worker(parent: Page, work: Callable[[Page], None]) -> int:
    """Fork a worker which does this with its page."""
    # Mapped before the fork and spared by the hook that closes pages. Under the zygote workers map it after.
    page = Page.attach([os.dup(descriptor) for descriptor in parent.descriptors])
    with _descriptors.spare(page):
        pid = fork_child(lambda: work(page))
    page.close()
    parent.drop_worker_ends()
    return pid


def test_each_unit_is_claimed_by_exactly_one(new_page: Page) -> None:
    """A worker that claims as fast as it can and a parent that takes tails at any moment share every unit.

    The worker claims packet after packet until the parent has cut enough of them. The parent asks for the
    packet that the worker is with, the one before, and the one after.
    """
    enough = mmap.mmap(-1, 1)
    reads, writes = os.pipe()

    def work(worker: Page) -> None:
        kept: list[int] = []
        while not enough[0]:
            worker.begin(len(kept), packet_size(len(kept)))
            units = claims(worker)
            assert units == list(range(len(units)))
            kept.append(len(units))
        with os.fdopen(writes, "wb") as results:
            pickle.dump(kept, results)

    parent = new_page
    pid = fork_worker(parent, work)
    os.close(writes)
    moments = random.Random(2)
    cut: dict[int, int] = {}
    while len(cut) < 300:
        packet = max(0, parent.read().packet + moments.choice((-1, 0, 0, 0, 1)))
        for _ in range(moments.randrange(60)):
            pass
        first = parent.take_tail(packet, packet_size(packet))
        if first < packet_size(packet):
            assert cut.setdefault(packet, first) == first
    enough[0] = 1
    with os.fdopen(reads, "rb") as results:
        kept = pickle.load(results)
    enough.close()

    assert exit_code(pid) == 0
    assert dict(enumerate(kept)) == {packet: packet_size(packet) for packet in range(len(kept))} | cut


def test_a_killed_worker_leaves_exact_accounts(twin: ModuleType) -> None:
    """Killed at any moment, the claims and the mark of a worker tell what had begun, to the unit."""
    moments = random.Random(3)
    for _ in range(100):
        parent = Page.create()
        seen = mmap.mmap(-1, 8)  # packet and number of claims that have returned, in one word

        def work(worker: Page, seen: memoryview = memoryview(seen).cast("Q")) -> None:  # noqa: B008
            packet = 0
            while True:
                packet += 1
                worker.begin(packet, packet_size(packet))
                number = 0
                while worker.claim() >= 0:
                    number += 1
                    seen[0] = packet << 16 | number

        pid = fork_worker(parent, work)
        while not parent.read().packet:
            os.sched_yield()
        for _ in range(moments.randrange(3000)):
            pass
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        packet, offset, phase, _ = mark = parent.read()
        size = packet_size(packet)
        last, returned = divmod(struct.unpack("Q", seen[:])[0], 2**16)
        first = parent.take_tail(packet, size)
        parent.close()

        assert last in (packet - 1, packet)
        assert mark.begun - (returned if last == packet else 0) in (0, 1)
        assert offset < size
        if phase == Phase.IDLE or (twin.PIPED_CLAIMS and size == 1):
            assert first == size
        else:
            # In C a unit may be claimed and not marked: it has not begun.
            assert first - mark.begun in ((0,) if twin.PIPED_CLAIMS else (0, 1))


# --- Interrupts --------------------------------------------------------------------------------------------

# In a child, because an interrupt would be swallowed where it strikes a plug-in of pytest's. And the loops
# stand in functions of their own: CPython 3.12 and 3.13 let an interrupt at the end of a loop's turn escape
# from a try statement that holds the loop itself (python/cpython#130279).


def interrupt_after(seconds: float) -> None:
    """Have KeyboardInterrupt raised once, so many seconds from now; after none at all, not any more."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # It looks for signals itself. The interpreter may have missed that one came, until it next takes the GIL.
    signal.pthread_sigmask(signal.SIG_BLOCK, ())


def run_interrupted(work: Callable[[], object]) -> int:
    """Do this in a child, where SIGALRM raises KeyboardInterrupt, and return its exit code."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def work_alone() -> None:
        gc.disable()  # nothing but the test is to be interrupted
        signal.signal(signal.SIGALRM, interrupt)
        work()

    return run_in_child(work_alone)


def take_often(parent: Page, packet: int, firsts: list[int]) -> None:
    """Take the same tail again and again, and keep what was answered."""
    for _ in range(1000):
        firsts += (parent.take_tail(packet, 8),)


def claim_the_rest(worker: Page, packet: int, units: list[int]) -> None:
    """Claim what is left of a packet of eight, which may be entered already."""
    mark = worker.read()
    if mark.packet != packet or mark.phase == Phase.IDLE:
        worker.begin(packet, 8)
    while (unit := worker.claim()) >= 0:
        units += (unit,)


def test_an_interrupted_parent_loses_no_tail() -> None:
    """A tail whose taking was interrupted is there when it is taken again, to the unit."""

    def take_interrupted() -> None:
        parent, worker = both_sides()
        delays = random.Random(4)
        interrupted = 0
        for packet in range(1, 2000):
            worker.begin(packet, 8)
            worker.claim()
            firsts: list[int] = []
            try:
                interrupt_after(delays.uniform(1e-6, 12e-6))
                take_often(parent, packet, firsts)
                interrupt_after(0)
            except KeyboardInterrupt:
                interrupted += not firsts
            assert (parent.take_tail(packet, 8), worker.claim(), {*firsts} | {1}) == (1, -1, {1})
        assert interrupted > 0

    assert run_interrupted(take_interrupted) == 0


def test_an_interrupted_worker_finds_its_place() -> None:
    """After an interrupt the page says whether the packet was entered and which unit was claimed last."""

    def claim_interrupted() -> None:
        _, worker = both_sides()
        delays = random.Random(5)
        interrupted = 0
        for packet in range(1, 1000):
            units: list[int] = []
            while len(units) < 8:
                try:
                    interrupt_after(delays.uniform(1e-6, 60e-6))
                    claim_the_rest(worker, packet, units)
                    interrupt_after(0)
                except KeyboardInterrupt:
                    interrupted += 1
                    mark = worker.read()
                    if mark.packet == packet and mark.begun > len(units):
                        units += (mark.offset,)
            assert (units, worker.claim()) == (list(range(8)), -1)
        assert interrupted > 0

    assert run_interrupted(claim_interrupted) == 0


def test_twins_are_both_here() -> None:
    """The pages of this module are made for both twins."""
    assert {twin.PIPED_CLAIMS for twin in TWINS.values()} == {True, *({False} if "c" in TWINS else ())}
