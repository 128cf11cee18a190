"""The rules of the engine protocol, held by every engine (see ``pairpool/engines/__init__.py``)."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from interruptions import Interruption
from pairpool._packet import Status
from pairpool.engines import load_engine
from receiving import Carrier, Outcome, Scene, fail_to_start, note, note_and_wait

LOCAL = ("fork", "forkserver", "spawn")


@pytest.fixture(params=["inline", "threads", *LOCAL])
def kind(request: pytest.FixtureRequest) -> str:
    """Each engine in turn; a start method stands for the local engine."""
    return str(request.param)


# Rules about what happens while a unit runs say nothing of inline: there the caller himself runs it.
concurrent = pytest.mark.parametrize("kind", ["threads", *LOCAL], indirect=True)
# Threads cannot be killed, and nothing goes by name where nothing is pickled.
processes = pytest.mark.parametrize("kind", LOCAL, indirect=True)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Where tasks tell what they begin."""
    scene = Scene(tmp_path)
    yield scene
    scene.close()


@pytest.fixture
def carrier(kind: str, scene: Scene) -> Iterator[Carrier]:
    """An engine, not yet started, and a receiver of its answers."""
    context = multiprocessing.get_context(kind if kind in LOCAL else None)
    carrier = Carrier(load_engine("local" if kind in LOCAL else kind, context))
    yield carrier
    scene.open_gate()
    carrier.shut(kill=True)
    assert carrier.receiver.all_of("collapse") == []


# -- 1: every unit of a packet is accounted for ---------------------------------------------------


@pytest.mark.parametrize("visible", [True, False])
def test_outcomes_cover_every_unit_in_order(carrier: Carrier, scene: Scene, visible: bool) -> None:
    """Each unit of a packet is answered once, in order, with its value or its error."""
    carrier.start()
    packet = carrier.send(0, note, [(scene.directory, number) for number in (1, -1, 2)], visible=visible)
    assert carrier.until_outcomes(packet, 3) == [
        Outcome(0, Status.OK, 2),
        Outcome(1, Status.ERROR, None),
        Outcome(2, Status.OK, 4),
    ]
    assert scene.begun() == [1, -1, 2]


def test_outcomes_of_a_map_come_together(carrier: Carrier, scene: Scene) -> None:
    """Outcomes that are not awaited one by one come in one answer."""
    carrier.start()
    packet = carrier.send(0, note, [(scene.directory, number) for number in range(100)], visible=False)
    assert [outcome.value for outcome in carrier.until_outcomes(packet, 100)] == [2 * number for number in range(100)]
    assert len(carrier.receiver.all_of("outcomes")) == 1


@concurrent
def test_what_was_not_taken_comes_back_whole(carrier: Carrier, scene: Scene) -> None:
    """A recall brings back every packet that the worker has not taken, and none of their units ever begins."""
    carrier.start()
    running = carrier.send(0, note_and_wait, [(scene.directory, 0)])
    scene.await_begun()
    queued = [carrier.send(0, note, [(scene.directory, 1), (scene.directory, 2)]) for _ in range(3)]
    carrier.engine.recall(0)
    carrier.receiver.drain()
    assert carrier.receiver.all_of("came back") == queued
    scene.open_gate()
    carrier.until_outcomes(running, 1)
    last = carrier.send(0, note, [(scene.directory, 9)])
    carrier.until_outcomes(last, 1)
    assert scene.begun() == [0, 9]


def test_what_is_recalled_before_it_begins_comes_back(carrier: Carrier, scene: Scene) -> None:
    """A packet is answered by its outcomes or comes back, not both, whenever it is recalled."""
    carrier.start()
    packets = [carrier.send(0, note, [(scene.directory, number)]) for number in range(10)]
    carrier.engine.recall(0)
    carrier.receiver.until(
        lambda: len(carrier.receiver.all_of("outcomes")) + len(carrier.receiver.all_of("came back")) == 10
    )
    answered = [told.packet for told in carrier.receiver.all_of("outcomes")]
    assert sorted(answered + carrier.receiver.all_of("came back")) == packets
    assert len(scene.begun()) == len(answered)


@concurrent
def test_the_tail_that_is_cut_never_begins(carrier: Carrier, scene: Scene) -> None:
    """A cut takes every unit that has not begun; the worker keeps, and answers, the others."""
    carrier.start()
    packet = carrier.send(0, note_and_wait, [(scene.directory, number) for number in range(5)])
    scene.await_begun()
    carrier.engine.look(0, packet, 5, cut=True)
    carrier.receiver.drain()
    assert carrier.receiver.all_of("cut") == [(packet, 1)]
    scene.open_gate()
    assert carrier.until_outcomes(packet, 1) == [Outcome(0, Status.OK, 0)]
    last = carrier.send(0, note, [(scene.directory, 9)])
    carrier.until_outcomes(last, 1)
    assert scene.begun() == [0, 9]
    assert len(carrier.outcomes(packet)) == 1


@concurrent
def test_a_cut_of_another_packet_takes_nothing(carrier: Carrier, scene: Scene) -> None:
    """A cut of a packet that the worker is not with leaves the one that it runs as it is."""
    carrier.start()
    packet = carrier.send(0, note_and_wait, [(scene.directory, number) for number in range(3)])
    scene.await_begun()
    carrier.engine.look(0, packet + 1, 3, cut=True)
    scene.open_gate()
    assert len(carrier.until_outcomes(packet, 3)) == 3
    assert all(kept == 3 for _, kept in carrier.receiver.all_of("cut"))


@concurrent
def test_a_look_brings_what_is_committed(carrier: Carrier, scene: Scene) -> None:
    """While a unit runs, the outcomes of those before it can be had."""
    carrier.start()
    first = carrier.send(0, note, [(scene.directory, number) for number in range(3)])
    carrier.until_outcomes(first, 3)
    packet = carrier.send(0, waiting_at_three, [(scene.directory, number) for number in range(5)])
    assert scene.await_begun() == 3
    carrier.engine.look(0, packet, 5, cut=False)
    known = {outcome.unit for outcome in carrier.until_outcomes(packet, 3)}
    assert known == {0, 1, 2}
    scene.open_gate()
    carrier.receiver.until(lambda: {outcome.unit for outcome in carrier.outcomes(packet)} == {0, 1, 2, 3, 4})


def waiting_at_three(directory: str, number: int) -> int:
    """Wait where the number is 3."""
    return (note_and_wait if number == 3 else note)(directory, number)


@processes
def test_a_refused_packet_never_begins(carrier: Carrier, scene: Scene) -> None:
    """A worker that has something else under a name answers so, and begins nothing of the packet."""
    carrier.start()
    needs = (("no_such_name", b"\1" * 16),)
    packet = carrier.send(0, note, [(scene.directory, 1)], needs=needs)
    carrier.receiver.until(lambda: carrier.receiver.all_of("refused") == [packet])
    last = carrier.send(0, note, [(scene.directory, 9)])
    carrier.until_outcomes(last, 1)
    assert scene.begun() == [9]


# -- 2: order -------------------------------------------------------------------------------------


def test_packets_begin_in_the_order_in_which_they_were_sent(carrier: Carrier, scene: Scene) -> None:
    """The packets of a slot begin one after another, as they were sent, each unit once."""
    carrier.start()
    numbers = range(60)
    packets = [carrier.send(0, note, [(scene.directory, n), (scene.directory, n + 1)]) for n in numbers[::2]]
    carrier.until_outcomes(packets[-1], 2)
    assert scene.begun() == list(numbers)


# -- 3: answers are events ------------------------------------------------------------------------


def test_an_engine_runs_no_handler_itself(carrier: Carrier, scene: Scene) -> None:
    """What happens waits in `events` until it is drained (the receiver asserts who runs its handlers)."""
    carrier.start()
    carrier.until_up()
    before = len(carrier.receiver.told)
    carrier.receiver.holding(lambda: carrier.engine.open(1))
    assert len(carrier.receiver.told) == before
    carrier.until_up(2)


# -- 4: nothing blocks, nothing raises --------------------------------------------------------------


@concurrent
def test_nothing_blocks_while_a_unit_runs(carrier: Carrier, scene: Scene) -> None:
    """Whatever is asked of an engine is asked without waiting for the units that run."""
    carrier.start(2)
    carrier.until_up(2)
    packet = carrier.send(0, note_and_wait, [(scene.directory, number) for number in range(3)])
    scene.await_begun()
    carrier.engine.recall(0)
    carrier.engine.look(0, packet, 3, cut=True)
    carrier.engine.forget(0, 1)
    carrier.engine.watch_until(None)
    carrier.engine.open(2)
    carrier.engine.stop(1)
    carrier.engine.flush()
    carrier.until_down(1)
    assert not carrier.outcomes(packet)


def test_what_is_asked_of_a_slot_that_is_gone_does_no_harm(carrier: Carrier, scene: Scene) -> None:
    """A slot may have ended when something is asked of it: that is no error."""
    carrier.start(2)
    carrier.until_up(2)
    carrier.engine.stop(0)
    carrier.until_down(0)
    for slot in (0, 77):
        carrier.engine.recall(slot)
        carrier.engine.look(slot, 1, 5, cut=True)
        carrier.engine.look(slot, 1, 5, cut=False)
        carrier.engine.forget(slot, 1)
        carrier.engine.stop(slot)
    packet = carrier.send(1, note, [(scene.directory, 1)])
    assert len(carrier.until_outcomes(packet, 1)) == 1


def test_what_is_asked_twice_is_done_once(carrier: Carrier, scene: Scene) -> None:
    """An action that was interrupted is done again: one worker is opened, one ends."""
    carrier.start(1)
    for _ in range(2):
        carrier.engine.open(1)
    carrier.until_up(2)
    for _ in range(2):
        carrier.engine.stop(1)
    carrier.until_down(1)
    packet = carrier.send(0, note, [(scene.directory, 1)])
    carrier.until_outcomes(packet, 1)
    assert sorted(carrier.receiver.all_of("up")) == [0, 1]
    assert [end.slot for end in carrier.receiver.all_of("down")] == [1]


@concurrent
def test_an_interrupted_recall_loses_nothing(carrier: Carrier, scene: Scene) -> None:
    """A recall that is interrupted anywhere and done again brings back each packet once."""
    carrier.start()
    carrier.send(0, note_and_wait, [(scene.directory, 0)])
    scene.await_begun()
    for number in count():
        queued = [carrier.send(0, note, [(scene.directory, 1)]) for _ in range(3)]
        before = len(carrier.receiver.all_of("came back"))
        interruption = Interruption([number])
        if interruption.watch(lambda: carrier.receiver.holding(lambda: carrier.engine.recall(0))):
            carrier.engine.recall(0)
        carrier.receiver.drain()
        assert carrier.receiver.all_of("came back")[before:] == queued, f"interrupted at {interruption.struck}"
        if not interruption.struck:
            break
    assert scene.begun() == [0]


@concurrent
@pytest.mark.parametrize("moves_on", [False, True], ids=["waits", "moves on"])
def test_an_interrupted_look_loses_nothing(carrier: Carrier, scene: Scene, moves_on: bool) -> None:
    """A cut that is interrupted anywhere and done again, soon or late, accounts for each unit once."""
    carrier.start()
    for number in count():
        scene.close_gate()
        packet = carrier.send(0, waiting_at_three, [(scene.directory, unit) for unit in (3, 4, 5, 6)])
        following = carrier.send(0, waiting_at_three, [(scene.directory, 3), (scene.directory, 9)])
        scene.await_begun()
        interruption = Interruption([number])
        look = partial(carrier.engine.look, 0, packet, 4, cut=True)
        interrupted = interruption.watch(partial(carrier.receiver.holding, look))
        if moves_on:
            scene.open_gate()
            scene.await_begun()
        if interrupted:
            look()
        scene.open_gate()
        carrier.until_outcomes(following, 2)
        ran = {outcome.unit for outcome in carrier.outcomes(packet)}
        kept = [kept for cut, kept in carrier.receiver.all_of("cut") if cut == packet]
        assert ran == set(range(min(kept, default=4))), f"interrupted at {interruption.struck}"
        if not moves_on:
            scene.await_begun()
        if not interruption.struck:
            break


# -- 5: the end of a slot -----------------------------------------------------------------------------


@processes
def test_a_death_comes_after_everything_else(carrier: Carrier, scene: Scene) -> None:
    """When a worker dies all that it answered, and all that it never began, is told before its end."""
    carrier.start()
    done = carrier.send(0, note, [(scene.directory, 1), (scene.directory, 2)])
    running = carrier.send(0, waiting_at_three, [(scene.directory, number) for number in range(2, 6)])
    assert scene.await_begun() == 3
    queued = carrier.send(0, note, [(scene.directory, 8)])
    os.kill(carrier.engine.workers()[0].pid, signal.SIGKILL)
    end = carrier.until_down(0)
    assert (end.packet, end.unit, end.exitcode) == (running, 1, -signal.SIGKILL)
    assert len(carrier.outcomes(done)) == 2
    assert carrier.outcomes(running) == [Outcome(0, Status.OK, 4)]
    assert carrier.receiver.all_of("came back") == [queued]
    assert carrier.receiver.told[-1].kind == "down"
    assert scene.begun() == [1, 2, 2, 3]


@processes
def test_an_idle_worker_dies_alone(carrier: Carrier, scene: Scene) -> None:
    """The end of a worker that had nothing to do names no packet."""
    carrier.start(2)
    carrier.until_up(2)
    os.kill(carrier.engine.workers()[0].pid, signal.SIGKILL)
    assert carrier.until_down(0).packet is None
    carrier.until_outcomes(carrier.send(1, note, [(scene.directory, 2)]), 1)


def test_a_worker_whose_initializer_fails_never_began_anything(carrier: Carrier, scene: Scene) -> None:
    """Where an initializer raises that is told, then the end of the slot; what was sent is not begun by anyone."""
    carrier.start(1, fail_to_start, scene.directory, 7)
    packet = carrier.send(0, note, [(scene.directory, 1)])
    end = carrier.until_down(0)
    assert end.packet is None
    kinds = [told.kind for told in carrier.receiver.told if told.kind != "open"]
    assert kinds in (["failed", "came back", "down"], ["failed", "down"])
    carrier.receiver.drain()
    assert scene.begun() == [7]
    assert carrier.outcomes(packet) == []


# -- 6: stopping ------------------------------------------------------------------------------------


def test_a_stopped_worker_ends_by_itself(carrier: Carrier, scene: Scene) -> None:
    """A worker that is told to stop ends, others stay."""
    carrier.start(2)
    carrier.until_up(2)
    carrier.engine.stop(0)
    end = carrier.until_down(0)
    assert (end.packet, end.exitcode) in [(None, None), (None, 0)]
    carrier.until_outcomes(carrier.send(1, note, [(scene.directory, 1)]), 1)


@concurrent
def test_a_worker_that_was_told_much_is_stopped_all_the_same(carrier: Carrier, scene: Scene) -> None:
    """However much a worker has not read yet, it learns that it is to end."""
    carrier.start()
    packet = carrier.send(0, note_and_wait, [(scene.directory, 1)])
    scene.await_begun()
    for definition in range(2000):
        carrier.engine.forget(0, definition)
    carrier.engine.stop(0)
    scene.open_gate()
    carrier.until_outcomes(packet, 1)
    assert carrier.until_down(0).exitcode in (None, 0)


@pytest.mark.parametrize("kill", [False, True])
def test_after_the_end_nothing_is_left(carrier: Carrier, scene: Scene, kill: bool) -> None:
    """An engine that is shut ends its workers, and says so once; it may be asked to twice."""
    carrier.start(3)
    carrier.until_up(3)
    carrier.until_outcomes(carrier.send(2, note, [(scene.directory, 1)]), 1)
    if not kill:
        for slot in range(3):
            carrier.engine.stop(slot)
            carrier.until_down(slot)
    carrier.shut(kill=kill)
    carrier.engine.shut(kill=kill)
    assert carrier.engine.workers() == []
    assert len(carrier.receiver.all_of("shut")) == 1


def test_an_engine_that_never_worked_can_be_shut(carrier: Carrier) -> None:
    """An engine may be shut before its workers are up."""
    carrier.start(2)
    carrier.shut(kill=True)


# -- 7: the initializer -------------------------------------------------------------------------------


def test_the_initializer_runs_once_where_the_units_run(kind: str, carrier: Carrier, scene: Scene) -> None:
    """Each worker runs the initializer once, before its first unit, in the thread that runs its units."""
    carrier.start(2, note, scene.directory, 7)
    for slot in (0, 1):
        packets = [carrier.send(slot, note, [(scene.directory, 1)]) for _ in range(2)]
        carrier.until_outcomes(packets[-1], 1)
    ran: dict[str, list[int]] = {}
    for number, thread in zip(scene.begun(), scene.threads(), strict=True):
        ran.setdefault(thread, []).append(number)
    expected = [[7, 7, 1, 1, 1, 1]] if kind == "inline" else [[7, 1, 1], [7, 1, 1]]
    assert list(ran.values()) == expected


def test_a_slot_opened_later_is_like_the_others(carrier: Carrier, scene: Scene) -> None:
    """A worker that is added runs the initializer and takes packets."""
    carrier.start(1, note, scene.directory, 7)
    carrier.until_up()
    carrier.engine.open(5)
    carrier.receiver.until(lambda: carrier.receiver.all_of("open") == [5])
    packet = carrier.send(5, note, [(scene.directory, 1)])
    assert len(carrier.until_outcomes(packet, 1)) == 1
    assert scene.begun() == [7, 7, 1]
