"""Slots that are nothing but a turn: the thread that drains or waits runs their packets itself.

The reference for what the other engines do, and good for debugging: a task runs under its caller's debugger.

One packet runs at a time, whichever thread runs it: nothing of a pool runs beside anything else of it. (So a task that
waits for its own pool waits for ever, as with any pool of one worker.)

Who runs: `_busy` is taken and given back by operators alone, so neither another thread nor a signal handler comes
between. A thread that finds it taken leaves its packet to the one that has it, which looks again after it has given it
back.

Interruption: a packet is moved to `_taken` before it runs and leaves it when it has run. One that is found there
although nothing runs was interrupted between two units, by what a signal handler raised: then its slot has *died*, as a
worker would have. (What strikes a unit is the outcome of that unit.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import attrgetter, call
from typing import TYPE_CHECKING, Any, NamedTuple

from pairpool._objects import ObjectCodec, ObjectEncoder
from pairpool._packet import OUTCOMES_HEAD, Kind, OutcomeMode, Status
from pairpool._runner import Runner
from pairpool._strikes import came_from_handler
from pairpool._waiting import Deadline, Signal
from pairpool.engines import Handlers, Outcomes, SlotEnd, WorkerPlan
from pairpool.engines.threads import NEVER, Claims, ThreadPage

if TYPE_CHECKING:
    from pairpool._body import Body
    from pairpool._jobs import Encoder
    from pairpool._waiting import Settable


class _Packet(NamedTuple):
    slot: int
    ident: int
    buffers: Sequence[Any]


class InlineEngine:
    """Runs packets on the threads that drain."""

    credit = 1 << 62
    packet_room = 0
    body_room = sure_room = 1 << 62
    processes = None

    def __init__(self) -> None:
        self.encoder: Encoder = ObjectEncoder()
        self.outbox: deque[_Packet] = deque()
        self._queues: dict[int, deque[_Packet]] = {}  # by slot
        self._starting: deque[int] = deque()
        self._taken: list[_Packet] = []  # at most one
        self._busy = False
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
        claims = self._page.claims
        if cut and claims.packet == packet:
            self.handlers.events.append((self._on_look, claims))

    def _on_look(self, claims: Claims) -> None:
        """Takes a tail back; as all handlers do it removes its event."""
        self.handlers.on_cut((claims.packet, claims.take_tail()))

    def stop(self, slot: int) -> None:
        if slot in self._queues:
            self._end(slot, None, 0)

    def condemn(self, slot: int) -> None:
        raise AssertionError(f"slot {slot}, which runs our own code alone, answered nonsense")

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

    @property
    def is_shut(self) -> bool:
        return self._shut

    def join(self) -> None: ...

    def workers(self) -> list[Any]:
        return []

    def pump(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None) -> bool:
        deadline = Deadline(timeout)
        signal = Signal()
        places: tuple[list[Any], ...] = (watched, self._waiting)
        for place in places:
            place.append(signal)
        try:
            self._pump(ready, signal, deadline)
        finally:
            for place in places:
                place.remove(signal)
        return True

    def _pump(self, ready: Callable[[], bool], signal: Signal, deadline: Deadline) -> None:
        self.handlers.drain()
        while not ready() and not deadline.passed():
            signal.wait(deadline.remaining())
            self.handlers.drain()

    def work(self) -> bool:
        while self._taken or self._starting or any(self._queues.values()):
            if self._busy:
                return False
            self._busy = True
            try:
                if self._work():
                    return True
            finally:
                self._busy = False
        return False

    def _work(self) -> bool:
        if self._taken:
            self._bury(self._taken[0])
            return True
        if self._starting:
            self._start(self._starting[0])
            return True
        for queue in list(self._queues.values()):
            first = map(call, (queue.popleft,))
            try:
                # commit: taken out of one place and put into the other in one step
                self._taken += first
            except IndexError:
                continue
            _, ident, buffers = self._taken[0]
            self._runner.run(ident, buffers, ())
            self._taken.clear()
            return True
        return False

    def _start(self, slot: int) -> None:
        """Comes up. Where a signal handler strikes the initializer that has not failed, but its slot has died."""
        handlers, starting = self.handlers, self._starting
        try:
            if self._plan.initializer is not None and slot in self._queues:
                self._plan.initializer(*self._plan.initargs)
        except BaseException as error:
            was_struck = came_from_handler(error)
            if not was_struck:
                handlers.events.append((handlers.on_failed, (slot, error)))
            self._end(slot, None, 0)
            starting.remove(slot)
            if was_struck or not isinstance(error, Exception):
                raise  # that is the caller's
        else:
            events = handlers.events
            event = (handlers.on_up, slot)
            # commit
            events += (event,)
            del starting[0]

    def _bury(self, packet: _Packet) -> None:
        """A packet was interrupted between two units: what it has not begun runs elsewhere."""
        claims = self._page.claims
        begun = claims.begun if claims.packet == packet.ident else 0
        self._end(packet.slot, packet.ident if begun else None, begun - 1)
        self._taken.clear()

    def _send(self, kind: int, packet: int, buffers: Sequence[Any]) -> None:
        assert kind == Kind.OUTCOMES
        mode, offset, count, took = OUTCOMES_HEAD.unpack(buffers[0])
        again = mode == OutcomeMode.SEPARATE and Status.AGAIN in buffers[1]
        outcomes = Outcomes(self._taken[0].slot, packet, mode, offset, count, took, buffers[1:], again)
        self.handlers.events.append((self.handlers.on_outcomes, outcomes))
