"""What stands in the dispatcher's place above an engine, and tasks which tell a test how far they are.

Kept free of pytest: a worker of the spawn method imports this module before its first task.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from pairpool._jobs import BatchJob
from pairpool._packet import OutcomeMode, Status
from pairpool._record import Record
from pairpool._waiting import Deadline, Settable, Signal, wake_all
from pairpool.engines import Engine, Event, Outcomes, SlotEnd, WorkerPlan

PATIENCE = 30.0  # seconds after which something that does not come is a failure, not a wait

_idents = count(1)


class Told(NamedTuple):
    """One answer of an engine."""

    kind: str
    what: Any


class Receiver:
    """Digests events as the dispatcher does, but only notes what they say."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.events: deque[Event] = deque()
        self.forked = False
        self.waiters = 0
        self.look_at: int | None = None
        self.told: list[Told] = []
        self.signals: list[Settable] = []
        self._lock = allocate_lock()
        self._holder = 0

    def drain(self) -> None:
        """Digest what there is."""
        me = get_ident()
        while self._holder != me:
            with self._lock:
                self._holder = me
                while self.events:
                    handler, argument = self.events[0]
                    handler(argument)
                self._holder = 0
            if not self.engine.work() and not self.events:
                return

    def holding(self, action: Callable[[], None]) -> None:
        """Do something as the dispatcher does it: with the lock held."""
        with self._lock:
            self._holder = get_ident()
            try:
                action()
            finally:
                self._holder = 0

    def _note(self, kind: str, what: Any) -> None:
        assert self._holder == get_ident(), "an engine ran a handler itself"
        self.told.append(Told(kind, what))
        del self.events[0]
        self._wake()

    def _wake(self) -> None:
        wake_all(self.signals)

    def on_outcomes(self, outcomes: Outcomes) -> None:
        """Note it."""
        self._note("outcomes", outcomes)

    def on_refused(self, refusal: tuple[int, int, Any]) -> None:
        """Note it."""
        self._note("refused", refusal[1])

    def on_unreceived(self, told: tuple[int, int]) -> None:
        """Note it."""
        self._note("unreceived", told[1])

    def on_unsendable(self, failure: tuple[int, BaseException]) -> None:
        """Note it."""
        self._note("unsendable", failure[0])

    def on_came_back(self, packet: int) -> None:
        """Note it."""
        self._note("came back", packet)

    def on_cut(self, cut: tuple[int, int]) -> None:
        """Note it."""
        self._note("cut", cut)

    def on_open(self, slot: int) -> None:
        """Note it."""
        self._note("open", slot)

    def on_up(self, slot: int) -> None:
        """Note it."""
        self._note("up", slot)

    def on_full(self, word: tuple[int, Any, int]) -> None:
        """Note it."""
        self._note("full", word[0])

    def on_failed(self, failure: tuple[int, BaseException]) -> None:
        """Note it."""
        self._note("failed", failure[0])

    def on_unstarted(self, refusal: tuple[int, str]) -> None:
        """Note it."""
        self._note("unstarted", refusal[0])

    def on_down(self, end: SlotEnd) -> None:
        """Note it."""
        self._note("down", end)

    def on_broken(self, error: BaseException) -> None:
        """Note it."""
        self._note("broken", error)

    def engine_shut(self) -> None:
        """Note it; this is no event."""
        self.told.append(Told("shut", None))
        self._wake()

    def collapse(self, error: BaseException) -> None:
        """Note a fault; this is no event."""
        self.told.append(Told("collapse", error))
        self._wake()

    def wait(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None = None) -> bool:
        """Block until something is ready, as the dispatcher does."""
        if ready():
            return True
        self.waiters += 1
        if not self.engine.pump(ready, watched, timeout):
            deadline, signal = Deadline(timeout), Signal()
            watched.append(signal)
            while not ready() and not deadline.passed():
                signal.wait(deadline.remaining())
            watched.remove(signal)
        self.waiters -= 1
        return ready()

    def until(self, ready: Callable[[], bool]) -> None:
        """Digest until something is there."""
        self.drain()
        assert self.wait(ready, self.signals, PATIENCE), f"it never came; there was {self.told}"

    def all_of(self, kind: str) -> list[Any]:
        """Return everything told of one kind, in order."""
        return [told.what for told in self.told if told.kind == kind]


class Outcome(NamedTuple):
    """How a unit ended."""

    unit: int
    status: int
    value: Any


class Carrier:
    """An engine with a receiver above it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.receiver = Receiver(engine)

    def start(self, slots: int = 1, initializer: Callable[..., object] | None = None, *initargs: Any) -> None:
        """Start the engine, and wait until its workers are up."""
        self.engine.start(self.receiver, WorkerPlan(initializer, initargs), range(slots))

    def until_up(self, slots: int = 1) -> None:
        """Wait until so many workers are up."""
        self.receiver.until(lambda: len(self.receiver.all_of("up")) == slots)

    def send(
        self, slot: int, function: Callable[..., Any], items: list[Any], *, visible: bool = True, needs: Any = ()
    ) -> int:
        """Send a packet of one unit for each item, a tuple of arguments."""
        encoder = self.engine.encoder
        definition = encoder.definition(function)
        if needs:
            definition = replace(definition, payload=replace(definition.payload, needs=needs))
        sink: Any = None
        job = BatchJob(encoder, definition, sink, items=None, unit=1, chunk=1, star=True, visible=visible)
        payloads: list[Any] = []
        encoder.dumps_each(items, payloads)
        job.prepared.take(payloads, 0)
        body = job.build(0, len(items), set(), self.engine.body_room)
        assert body.units == len(items)
        packet = next(_idents)
        self.engine.outbox.append(self.engine.entry(slot, packet, body)[0])
        self.engine.flush()
        return packet

    def outcomes(self, packet: int) -> list[Outcome]:
        """Return what was told of a packet's units so far, in the order in which it was."""
        decode = self.engine.encoder.decode_value
        found = []
        for told in self.receiver.all_of("outcomes"):
            if told.packet == packet and told.mode == OutcomeMode.SHARED:
                values = decode(told.buffers[0])
                found += [Outcome(told.offset + n, Status.OK, value) for n, value in enumerate(values)]
            elif told.packet == packet:
                for unit, status, payload in Record(told.offset, told.units, told.mode, told.buffers).outcomes():
                    found.append(Outcome(unit, status, decode(payload) if status == Status.OK else None))
        return found

    def until_outcomes(self, packet: int, units: int) -> list[Outcome]:
        """Wait for the outcomes of so many units of a packet."""
        self.receiver.until(lambda: len(self.outcomes(packet)) >= units)
        return self.outcomes(packet)

    def until_down(self, slot: int) -> SlotEnd:
        """Wait until a slot has ended."""
        self.receiver.until(lambda: any(end.slot == slot for end in self.receiver.all_of("down")))
        end: SlotEnd = next(end for end in self.receiver.all_of("down") if end.slot == slot)
        return end

    def shut(self, *, kill: bool = False) -> None:
        """End the engine and wait until nothing of it is left."""
        if not self.receiver.all_of("shut"):
            self.engine.shut(kill=kill)
        self.receiver.until(lambda: bool(self.receiver.all_of("shut")))
        assert self.engine.is_shut


class Scene:
    """A directory by which tasks in whatever process or thread tell what they begin, and wait until they may go on."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self._log = directory / "log"
        self._log.touch()
        os.mkfifo(directory / "told")
        self._told = os.open(directory / "told", os.O_RDWR)
        self._gate = os.open(directory / "gate", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._gate, fcntl.LOCK_EX)

    def begun(self) -> list[int]:
        """Return the numbers of the tasks that have begun, in order."""
        return [int(line.split()[0]) for line in self._log.read_text().splitlines()]

    def threads(self) -> list[str]:
        """Return where each of them runs: process and thread."""
        return [line.partition(" ")[2] for line in self._log.read_text().splitlines()]

    def await_begun(self) -> int:
        """Wait until a task that waits has begun, and return its number."""
        (number,) = struct.unpack("i", os.read(self._told, 4))
        return int(number)

    def close_gate(self) -> None:
        """Have tasks that wait do so again."""
        fcntl.flock(self._gate, fcntl.LOCK_EX)

    def open_gate(self) -> None:
        """Let every task that waits go on."""
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close what is open, and let go what waits."""
        os.close(self._told)
        os.close(self._gate)


# -- Tasks ----------------------------------------------------------------------------------------


def note(directory: str, number: int) -> int:
    """Note that the task begins, and return twice its number; raise for negative ones."""
    with open(f"{directory}/log", "a") as log:
        log.write(f"{number} {os.getpid()} {threading.get_ident()}\n")
    if number < 0:
        raise ValueError(number)
    return 2 * number


def note_and_wait(directory: str, number: int) -> int:
    """Note that the task begins, tell it, and wait until the gate is open."""
    doubled = note(directory, number)
    told = os.open(f"{directory}/told", os.O_WRONLY)
    os.write(told, struct.pack("i", number))
    os.close(told)
    with open(f"{directory}/gate") as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)
    return doubled


def fail_to_start(directory: str, number: int) -> None:
    """Raise, as an initializer may."""
    note(directory, number)
    raise OSError("no such device")
