"""Slots that are nothing but a turn: the thread that drains or waits runs their packets itself.

The reference for what the other engines do, and good for debugging: a task runs under its caller's debugger.

One packet runs at a time, whichever thread runs it, unless a task waits for the same pool: then the waiting thread
runs what it waits for, within. So nothing of a pool runs beside anything else of it.

Who runs: `_runner_thread` is taken and given back by operators alone, so neither another thread nor a signal handler
comes between. A thread that finds it taken leaves its packet to the one that has it, which looks again after it has
given it back.

Interruption: a packet is moved to `_taken` before it runs and leaves it when it has run. One that is found there
although nothing runs was interrupted between two units, by what a signal handler raised: then its slot has *died*, as a
worker would have. (What strikes a unit is the outcome of that unit.)
"""

from __future__ import annotations

from _thread import get_ident
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter, call
from typing import TYPE_CHECKING, Any

from pairpool._objects import ObjectCodec, ObjectEncoder
from pairpool._packet import OUTCOMES_HEAD, Kind
from pairpool._runner import Runner
from pairpool._waiting import Deadline, Signal
from pairpool.engines import Handlers, Outcomes, SlotEnd, WorkerPlan
from pairpool.engines.threads import NEVER, Claims, ThreadPage

if TYPE_CHECKING:
    from pairpool._jobs import Body, Encoder
    from pairpool._waiting import Settable

_NOTHING = Claims(0, 0)


@dataclass(eq=False)
class _Packet:
    """A packet on its way, and the claims of its units once it runs."""

    slot: int
    ident: int
    buffers: Sequence[Any]
    claims: Claims = _NOTHING


class InlineEngine:
    """Runs packets on the threads that drain."""

    credit = 1 << 62
    packet_room = 0
    body_room = 1 << 62

    def __init__(self) -> None:
        self.encoder: Encoder = ObjectEncoder()
        self.outbox: deque[_Packet] = deque()
        self._queues: dict[int, deque[_Packet]] = {}  # by slot
        self._starting: deque[int] = deque()
        self._taken: list[_Packet] = []  # the innermost last
        self._running = 0  # of those
        self._runner_thread = 0
        self._page = ThreadPage()
        self._runner = Runner(ObjectCodec(), self._page, None, self._send)
        self._waiting: list[Signal] = []  # of threads that could run a packet
        self._shut = False

    # -- the protocol (dispatcher's lock held) ----------------------------------------------------------------

    def start(self, handlers: Handlers, plan: WorkerPlan, slots: Sequence[int]) -> None:
        self.handlers = handlers
        self._plan = plan
        for slot in slots:
            self._open(slot)

    def open(self, slot: int) -> None:
        if slot not in self._queues:
            self._open(slot)
        self.handlers.events.append((self.handlers.on_open, slot))

    def _open(self, slot: int) -> None:
        queues, starting = self._queues, self._starting
        queue: deque[_Packet] = deque()
        # commit
        queues[slot] = queue
        starting += (slot,)

    def entry(self, slot: int, packet: int, body: Body) -> tuple[Any, int]:
        return _Packet(slot, packet, body.buffers), 0

    def flush(self) -> None:
        outbox = self.outbox
        while outbox:
            packet = outbox[0]
            queue = self._queues.get(packet.slot)
            if queue is None:
                queue = deque()  # the word of its slot's end is on its way, and this is among what it held
            # commit
            queue += (packet,)
            del outbox[0]
        for signal in self._waiting[:]:
            signal.set()

    def recall(self, slot: int) -> None:
        queue = self._queues.get(slot, ())
        if queue:
            packets = map(attrgetter("ident"), iter(queue.popleft, NEVER))
            came_back = zip(repeat(self.handlers.on_came_back), packets, strict=False)
            try:
                # commit: each packet is taken and recorded in one step
                self.handlers.events += came_back
            except IndexError:
                pass  # that was the last

    def look(self, slot: int, packet: int, count: int, cut: bool) -> None:
        for taken in self._taken:
            if cut and taken.ident == packet:
                self.handlers.events.append((self._on_look, taken.claims))

    def _on_look(self, claims: Claims) -> None:
        """Takes a tail back; as all handlers do it removes its event."""
        self.handlers.on_cut((claims.packet, claims.take_tail()))

    def stop(self, slot: int) -> None:
        if slot in self._queues:
            self._end(slot, None, 0)

    def forget(self, slot: int, definition: int) -> None:
        pass  # every payload is an object of the caller's

    def watch_until(self, look_at: int | None) -> None:
        pass  # what is late is running on the very thread that would look

    def shut(self, *, kill: bool) -> None:
        """Ends all slots; what runs ends by itself."""
        for slot in list(self._queues):
            self._end(slot, None, 0)
        if not self._shut:
            self._shut = True
            self.handlers.engine_shut()

    def _end(self, slot: int, packet: int | None, unit: int) -> None:
        self.recall(slot)
        self.handlers.events.append((self.handlers.on_down, SlotEnd(slot, None, None, packet, unit)))
        self._queues.pop(slot, None)

    # -- any thread -------------------------------------------------------------------------------------------

    def wait_shut(self, timeout: float | None = None) -> bool:
        return self._shut

    def workers(self) -> list[Any]:
        return []

    def pump(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None) -> bool:
        deadline = Deadline(timeout)
        signal = Signal()
        places: tuple[list[Any], ...] = (watched, self._waiting)
        for place in places:
            place.append(signal)
        try:
            self.handlers.drain()
            while not ready() and not deadline.passed():
                signal.wait(deadline.remaining())
                self.handlers.drain()
        finally:
            for place in places:
                place.remove(signal)
        return True

    def work(self) -> bool:
        me = get_ident()
        before = self._runner_thread
        if before not in (0, me):
            return False
        self._runner_thread = me
        try:
            return self._work()
        finally:
            self._runner_thread = before

    def _work(self) -> bool:
        if len(self._taken) > self._running:
            self._bury(self._taken[-1])
            return True
        if self._starting:
            self._start(self._starting[0])
            return True
        for queue in list(self._queues.values()):
            try:
                # commit: taken out of one place and put into the other in one step
                self._taken += map(call, (queue.popleft,))
            except IndexError:
                continue
            self._run(self._taken[-1])
            return True
        return False

    def _start(self, slot: int) -> None:
        """Comes up. Where that is interrupted the initializer has failed."""
        handlers, starting = self.handlers, self._starting
        try:
            if self._plan.initializer is not None:
                self._plan.initializer(*self._plan.initargs)
            event = (handlers.on_up, slot)
            # commit
            handlers.events += (event,)
            del starting[0]
        except BaseException as error:
            if slot in starting:
                handlers.events.append((handlers.on_failed, (slot, error)))
                self._end(slot, None, 0)
                starting.remove(slot)

    def _run(self, packet: _Packet) -> None:
        page, taken = self._page, self._taken
        outer = page.claims
        self._running += 1
        try:
            self._runner.run(packet.ident, packet.buffers, ())
            # commit
            del taken[-1]
        finally:
            packet.claims = page.claims
            page.claims = outer
            self._running -= 1

    def _bury(self, packet: _Packet) -> None:
        """A packet was interrupted between two units: what it has not begun runs elsewhere."""
        claims, taken = packet.claims, self._taken
        begun = 0
        if claims.packet == packet.ident:
            begun = claims.begun
            self.handlers.events.append((self._on_look, claims))
        self._end(packet.slot, packet.ident if begun else None, begun - 1)
        # commit
        del taken[-1]

    def _send(self, kind: int, packet: int, buffers: Sequence[Any]) -> None:
        assert kind == Kind.OUTCOMES
        mode, offset, count, took = OUTCOMES_HEAD.unpack(buffers[0])
        outcomes = Outcomes(self._taken[-1].slot, packet, mode, offset, count, took, buffers[1:])
        self.handlers.events.append((self.handlers.on_outcomes, outcomes))
