"""Interrupts: whatever a signal handler strikes, nothing is lost and nothing happens twice."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

import pytest

from commits import Commit, all_commits, changes, commits_in, forbidden
from interruptions import Interrupted, Interruption, Point, Undisturbed
from pairpool import _core
from pairpool._codec import Definition, DefinitionKind
from pairpool._dispatch import BatchJob
from pairpool._future import Future
from pairpool._iterators import IMapIterator, IMapUnorderedIterator
from pairpool.results import MapResult
from scenarios import (
    SCENARIOS,
    Clock,
    NoThread,
    Scenario,
    Stage,
    carrying,
    deaths,
    deaths_in_vain,
    outcome,
    overruns,
    packed,
    retries,
)

pytestmark = pytest.mark.once

Played: TypeAlias = tuple[Any, list[Any], list[str]]
Play: TypeAlias = Callable[[Scenario, Interruption], Played]

# Points of a scenario that are struck one by one: a sample, or with this variable of the environment all of them.
SAMPLE = None if os.environ.get("PAIRPOOL_ALL_INTERRUPTS") else 12

# -- Byte code ------------------------------------------------------------------------------------


@pytest.mark.parametrize("commit", all_commits(), ids=str)
def test_a_commit_cannot_be_split(commit: Commit) -> None:
    """A commit changes something, by operators alone: it calls nothing, and no loop turns in it."""
    assert forbidden(commit) == []
    assert changes(commit) > 0


def test_every_file_that_must_commit_is_read() -> None:
    """The files in which half a change would lose or repeat something have commits."""
    files = {commit.path.name for commit in all_commits()}
    assert {"_scheduler.py", "_core.py", "_feeder.py", "_handle.py", "results.py", "threads.py"} <= files


@pytest.mark.parametrize("line", ["queue.append(1)", "done = [each for each in queue]", "for each in queue: done = 1"])
def test_what_could_be_split_is_found(tmp_path: Any, line: str) -> None:
    """A call, a comprehension and a loop are not taken for operators; what follows a blank line is not looked at."""
    source = tmp_path / "source.py"
    source.write_text(f"def f(queue):\n    # commit\n    {line}\n\n    queue.clear()\n")
    (commit,) = commits_in(source)
    assert forbidden(commit)
    assert not any("clear" in each for each in forbidden(commit))


# -- Interrupts ----------------------------------------------------------------------------------


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Play a scenario; return everything that could be lost or happen twice."""
    clock = Clock()
    monkeypatch.setattr(_core, "time", clock)

    def play(scenario: Scenario, interruption: Interruption) -> Played:
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Thread", NoThread)
            stage = Stage(interruption, clock)
        interruption.stage = stage
        gc.disable()  # it runs finalizers, whenever it likes, and a run has to pass the same points each time
        try:
            seen = scenario(stage)
            stage.close()
        finally:
            gc.enable()
        return seen, sorted(stage.ran), sorted(map(repr, stage.told))

    return play


def sample(passed: list[Point], seed: int) -> list[int]:
    """Choose points to strike: each place in the code once, and others at random."""
    if SAMPLE is None:
        return list(range(len(passed)))
    random = Random(seed)
    first = list({point: number for number, point in reversed(list(enumerate(passed)))}.values())
    random.shuffle(first)
    others = random.sample(range(len(passed)), min(len(passed), SAMPLE // 2))
    return sorted({*first[:SAMPLE], *others})


every_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)


@every_scenario
def test_an_interrupt_changes_nothing(play: Play, scenario: Scenario) -> None:
    """Interrupted anywhere and then gone on with, a pool delivers the same, and runs and tells the same once."""
    watching = Interruption()
    expected = play(scenario, watching)
    for number in sample(watching.passed, 1):
        interruption = Interruption([number])
        assert play(scenario, interruption) == expected, f"interrupted at {interruption.struck[0]}"


@every_scenario
def test_interrupt_upon_interrupt_changes_nothing(play: Play, scenario: Scenario) -> None:
    """A dozen interrupts in one run change no more than one does."""
    watching = Interruption()
    expected = play(scenario, watching)
    for seed in range(10):
        strikes = Random(seed).sample(range(len(watching.passed)), 12)
        interruption = Interruption(strikes)
        assert play(scenario, interruption) == expected, f"interrupted at {list(map(str, interruption.struck))}"


class Entry:
    """A signal handler or finalizer that uses the pool which it strikes."""

    ITEM = 1001

    def __init__(self, number: int, *, raises: bool) -> None:
        self.interruption = Interruption([number], self)
        self.raises = raises
        self.results: list[Any] = []

    def __call__(self) -> None:
        """Submit two calls, one of which is cancelled again, and change the size for a moment."""
        stage = self.interruption.stage
        dispatcher = stage.dispatcher
        cancelled: Future[Any] = Future(dispatcher, None)
        self.results += [stage.result(), cancelled]
        for result in self.results:
            dispatcher.call(carrying(result, packed((stage.double, (self.ITEM,), {}))))
        if not dispatcher.scheduler.packets:
            cancelled.cancel()
        for size in (dispatcher.size + 1, dispatcher.size):
            dispatcher.post(dispatcher.on_resize, size)
        if self.raises:
            raise Interrupted


# One more call in between would change what a worker dies with.
@pytest.mark.parametrize(
    "scenario",
    [each for each in SCENARIOS if each not in (deaths, deaths_in_vain, overruns, retries)],
    ids=lambda each: each.__name__,
)
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_a_handler_may_use_the_pool(play: Play, scenario: Scenario, raises: bool) -> None:
    """A handler that strikes anywhere may submit, cancel and resize: nothing blocks, and both its calls end."""
    watching = Interruption()
    seen, ran, told = play(scenario, watching)
    for number in sample(watching.passed, 2)[:: 1 if SAMPLE is None else 3]:
        entry = Entry(number, raises=raises)
        after = play(scenario, entry.interruption)
        where = f"entered at {entry.interruption.struck[0]}"
        assert (after[0], after[2]) == (seen, told), where
        assert [item for item in after[1] if item != Entry.ITEM] == ran, where
        assert all(result._raw is not None or result.done() for result in entry.results), where


@pytest.mark.parametrize("kind", [IMapIterator, IMapUnorderedIterator])
def test_an_interrupted_next_is_asked_again(play: Play, kind: type[IMapIterator[Any]]) -> None:
    """Where `next()` is interrupted its result comes with the following one: none is skipped, none comes twice."""

    def scenario(stage: Stage) -> Any:
        results = stage.batch(kind(stage.dispatcher, None), range(1, 12))
        stage.run()
        got: list[Any] = []
        while len(got) < 11:
            try:
                watching.watch(lambda: got.append(results.next(0)))
            except ValueError as error:
                got.append(repr(error))
        return got

    watching = Interruption()
    expected, *_ = play(scenario, Undisturbed())
    assert len(set(expected)) == 11
    for number in range(len(watching.passed)):
        watching = Interruption([number])
        assert play(scenario, Undisturbed())[0] == expected, f"interrupted at {watching.struck[0]}"


@pytest.mark.parametrize("enter", ["call", "batch", "resize"])
def test_what_is_interrupted_on_the_way_in_is_wanted_or_not(play: Play, enter: str) -> None:
    """A wish that is interrupted is either fulfilled later, once, or was never there."""

    def scenario(stage: Stage) -> Any:
        dispatcher = stage.dispatcher
        call = carrying(stage.result(), packed((stage.double, (1,), {})))
        sink = MapResult(dispatcher, None, None, None)
        made = Definition(1 << 60, DefinitionKind.NAMED, packed(stage.double))
        job = BatchJob(dispatcher.encoder, made, sink, items=[1], unit=1, chunk=1, star=False, visible=False)
        sink.job = job
        wishes: dict[str, Callable[[], None]] = {
            "call": lambda: dispatcher.call(call),
            "batch": lambda: dispatcher.add_batch(job, None),
            "resize": lambda: dispatcher.post(dispatcher.on_resize, 3),
        }
        watching.watch(wishes[enter])
        stage.run()
        return len(dispatcher.scheduler.slots)

    watching = Interruption()
    slots, ran, _ = play(scenario, Undisturbed())
    for number in range(len(watching.passed)):
        watching = Interruption([number])
        slots_then, ran_then, _ = play(scenario, Undisturbed())
        assert (slots_then, ran_then) in [(slots, ran), (2, [])]


# -- A fault of ours ------------------------------------------------------------------------------


def faulty(_: Any) -> None:
    """Handle an event as only a fault of ours would."""
    raise KeyError("a fault of ours")


def test_a_fault_ends_everything_pending(play: Play) -> None:
    """A fault in the core ends all that is pending with that fault, and all that comes later; nothing hangs."""

    def scenario(stage: Stage) -> Any:
        dispatcher = stage.dispatcher
        pending = [stage.call(stage.result(), 1), stage.map(range(1, 9)), stage.call(Future(dispatcher, None), 2)]
        dispatcher.events.append((faulty, None))
        with pytest.raises(KeyError) as fault:
            dispatcher.drain()
        dispatcher.collapse(fault.value)  # as the callback thread does, which met the same
        later = [stage.call(stage.result(), 3), stage.map(range(1, 9)), stage.call(Future(dispatcher, None), 4)]
        assert stage.engine.shut_down == [True]
        for worker in stage.workers:
            worker.end(-9)
        stage.enter()
        dispatcher.scheduler.packets.clear()
        dispatcher.scheduler.waiting.clear()
        for slot in dispatcher.scheduler.slots.values():
            slot.load = slot.size = 0
        return [outcome(each) for each in (*pending, *later)]

    seen, _, _ = play(scenario, Undisturbed())
    assert set(seen) == {repr(KeyError("a fault of ours"))}


def test_whoever_is_woken_may_leave_at_once(play: Play) -> None:
    """Waiters that take their signal away when it is set do not keep others from being woken."""

    class Leaving:
        def __init__(self, place: list[Any]) -> None:
            self.place = place
            place.append(self)

        def set(self) -> None:
            self.place.remove(self)

    def scenario(stage: Stage) -> Any:
        results = [stage.call(stage.result(), 1), stage.call(Future(stage.dispatcher, None), 1), stage.map([1])]
        results.append(stage.batch(IMapIterator(stage.dispatcher, None), [1]))
        places = [result.signals for result in results] + [stage.dispatcher.signals]
        for place in places:
            for _ in range(3):
                Leaving(place)
        stage.run()
        stage.dispatcher.engine_shut()
        return places

    seen, _, _ = play(scenario, Undisturbed())
    assert seen == [[], [], [], [], []]
