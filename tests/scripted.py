"""An engine whose workers go on when the test says so, on the test's thread.

It runs what a dispatcher sends, so that jobs, results and callbacks can be followed from one end to the other
without a thread or a process. Everything that it does is one step for the dispatcher.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pairpool._body import Body
from pairpool._jobs import Encoder
from pairpool._objects import NOTHING, ObjectEncoder
from pairpool._packet import DEFINITION_HEAD, TASKS_HEAD, Flag, Mode, OutcomeMode, Reason, Status
from pairpool._waiting import Settable
from pairpool.engines import Event, Handlers, Outcomes, SlotEnd, WorkerPlan


class ScriptedWorker:
    """A worker that runs units when it is told to."""

    def __init__(self, engine: ScriptedEngine, slot: int) -> None:
        self.slot = slot
        self.queue: deque[tuple[int, Sequence[Any]]] = deque()
        self.stopping = False
        self.roused = False  # it is to say that it is up
        self._engine = engine
        self._up = False
        self._units: deque[int] = deque()  # of the packet taken, not yet claimed
        self._packet = self._count = 0  # the packet taken last
        self._busy = False  # with that packet
        self._outcomes: list[tuple[int, Any]] = []  # not yet told
        self._stuck = False  # in a unit that never ends

    def go_on(self) -> bool:
        """Come up, take a packet or run a unit; return whether there was anything to do."""
        if self._engine.by_slot.get(self.slot) is not self:
            return False  # it has ended
        if self._stuck:
            return False
        if not self._up:
            self._up = True
            self._tell(self._engine.handlers.on_up, self.slot)
        elif self._units:
            self._run_unit(self._units.popleft())
        elif self._busy:
            self._leave_packet()
        elif self.queue:
            self._take()
        elif self.roused:
            self.roused = False
            self._tell(self._engine.handlers.on_up, self.slot)
        elif self.stopping:
            self.end(0)
        else:
            return False
        return True

    def _take(self) -> None:
        ident, buffers = self.queue.popleft()
        self._mode, flags, n_definitions, count, _, definition, _ = TASKS_HEAD.unpack(buffers[0])
        at = 1
        if flags & Flag.NEEDS:
            self._tell(self._engine.handlers.on_refused, (self.slot, ident, tuple(range(len(buffers[at])))))
            return
        definitions = self._engine.definitions
        for _ in range(n_definitions):
            definitions[DEFINITION_HEAD.unpack(buffers[at])[0]] = buffers[at + 1]
            at += 2
        self._filters: Sequence[int] = ()
        if flags & Flag.RETRIES:
            self._filters = memoryview(buffers[at]).cast("Q")
            at += 1
        self._function = definitions.get(definition)
        self._payloads = buffers[at:]
        self._visible = bool(flags & Flag.VISIBLE)
        self._packet, self._count = ident, count
        self._units = deque(range(count))
        self._busy = True

    def _run_unit(self, unit: int) -> None:
        self._outcomes.append(self._outcome(unit))
        self._ended = unit + 1
        if self._visible:
            self._send(OutcomeMode.SEPARATE)

    def _leave_packet(self) -> None:
        if self._outcomes:
            failed = any(status for status, _ in self._outcomes)
            self._send(OutcomeMode.SEPARATE if failed else OutcomeMode.SHARED)
        self._busy = False

    def _send(self, mode: int) -> None:
        payloads: list[Any] = [payload for _, payload in self._outcomes]
        buffers: list[Any] = [payloads]
        if mode == OutcomeMode.SEPARATE:
            buffers = [bytes(status for status, _ in self._outcomes), *payloads]
        count = len(payloads)
        again = any(status == Status.AGAIN for status, _ in self._outcomes)
        outcomes = Outcomes(self.slot, self._packet, mode, self._ended - count, count, 1000 * count, buffers, again)
        self._tell(self._engine.handlers.on_outcomes, outcomes)
        self._outcomes = []

    def _outcome(self, unit: int) -> tuple[int, Any]:
        payload = self._payloads[0][unit] if self._mode == Mode.SHARED else self._payloads[unit]
        if self._mode == Mode.CALLS:
            payload = self._payloads[1 + unit]
        if payload is NOTHING:
            return Status.SKIPPED, b""
        try:
            return Status.OK, self._value(payload)
        except Exception as error:
            filters = self._filters
            ident = filters[unit if self._mode == Mode.CALLS else 0] if filters else 0
            again = ident and self._engine.definitions[ident](error)
            return Status.AGAIN if again else Status.ERROR, error

    def _value(self, payload: Any) -> Any:
        if self._mode == Mode.CALLS:
            function, arguments, keywords = payload
            return function(*arguments, **keywords)
        assert self._function is not None
        if self._mode == Mode.CHUNKS:
            return [self._function(item) for item in payload]
        return self._function(payload)

    def answer(self) -> Outcomes:
        """Run what is in the queue, and return the outcomes instead of telling them."""
        events = self._engine.handlers.events
        before = len(events)
        while len(events) == before:
            assert self.go_on()
        outcomes: Outcomes = events.pop()[1]
        self.go_on()  # leave the packet
        return outcomes

    def recall(self) -> None:
        """Give back what was not taken."""
        while self.queue:
            self._tell(self._engine.handlers.on_came_back, self.queue.popleft()[0])

    def look(self, packet: int, count: int, cut: bool) -> None:
        """Give back what was not claimed."""
        if cut:
            kept = count - len(self._units) if packet == self._packet else count
            self._units.clear()
            self._tell(self._engine.handlers.on_cut, (packet, kept))

    def end(self, exitcode: int) -> None:
        """End; what has begun of a packet and was not told is lost."""
        begun = self._count - len(self._units)
        at = self._packet if self._busy and begun else None
        if self._busy:
            self.look(self._packet, self._count, cut=True)
        self.recall()
        end = SlotEnd(self.slot, 1000 + self.slot, exitcode, at, begun - 1, in_vain=not self._packet)
        self._tell(self._engine.handlers.on_down, end)
        del self._engine.by_slot[self.slot]

    def get_stuck(self, now: int) -> None:
        """Claim a unit, and never end it."""
        self._units.popleft()
        self._stuck = True
        self._engine.marks[self.slot] = (self._packet, self._count - len(self._units) - 1, now)

    def die_within_a_unit(self) -> None:
        """Claim a unit, and end in the middle of it."""
        if not self._stuck:
            self._units.popleft()
        self.end(-9)

    def refuse(self, reason: str) -> None:
        """End because the system gives no worker."""
        self._tell(self._engine.handlers.on_unstarted, (self.slot, reason))
        self.recall()
        self._tell(self._engine.handlers.on_down, SlotEnd(self.slot, None, None, None, 0))
        del self._engine.by_slot[self.slot]

    def fail(self, error: BaseException) -> None:
        """End because the initializer raised."""
        self._tell(self._engine.handlers.on_failed, (self.slot, error))
        self.end(1)

    def _tell(self, handler: Callable[[Any], None], argument: Any) -> None:
        self._engine.handlers.events.append((handler, argument))


class ScriptedEngine:
    """Offers scripted workers as slots."""

    credit = 8
    packet_room = 1
    body_room = sure_room = 1 << 62
    prompt = True  # an idle worker answers before its caller would have slept

    def __init__(self) -> None:
        self.encoder: Encoder = ObjectEncoder()
        self.outbox: deque[Any] = deque()
        self.marks: dict[int, tuple[int, int, int]] = {}
        self.dumped: list[int] = []
        self.struck: list[tuple[int, tuple[int, int, int], Reason]] = []
        self.terminated: list[int] = []
        self.by_slot: dict[int, ScriptedWorker] = {}
        self.definitions: dict[int, Any] = {}
        self.shut_down: list[bool] = []  # each `kill` that it was shut with

    def start(self, handlers: Handlers, plan: WorkerPlan, slots: Sequence[int]) -> None:
        """Have a worker for each slot."""
        self.handlers = handlers
        for slot in slots:
            self.by_slot[slot] = ScriptedWorker(self, slot)

    def open(self, slot: int) -> None:
        """Have one more worker."""
        self.by_slot.setdefault(slot, ScriptedWorker(self, slot))
        self.handlers.events.append((self.handlers.on_open, slot))

    def entry(self, slot: int, packet: int, body: Body) -> tuple[Any, int]:
        """Return what goes into the outbox."""
        return (slot, packet, body.buffers), 1

    def flush(self) -> None:
        """Send what is in the outbox."""
        while self.outbox:
            slot, packet, buffers = self.outbox.popleft()
            if slot in self.by_slot:
                self.by_slot[slot].queue.append((packet, buffers))

    @property
    def processes(self) -> ScriptedEngine:
        """Itself: it can all that an engine of processes can."""
        return self

    def exchange(self, slot: int, packet: int, sent: list[Any], heard: deque[Event]) -> tuple[int, Any] | None:
        """Send a packet, and return what is answered."""
        self.flush()
        if not self.prompt or slot not in self.by_slot:
            return None
        outcomes = self.lie(self.by_slot[slot].answer())
        if outcomes.units != 1:
            heard.append((self.handlers.on_outcomes, outcomes))
            return None
        del sent[0]
        return outcomes.buffers[0][0], outcomes.buffers[1]

    def lie(self, outcomes: Outcomes) -> Outcomes:
        """Say instead of that."""
        return outcomes

    def recall(self, slot: int) -> None:
        """Take back what a worker has not taken."""
        if slot in self.by_slot:
            self.by_slot[slot].recall()

    def look(self, slot: int, packet: int, count: int, cut: bool) -> None:
        """Take back what a worker has not claimed."""
        if slot in self.by_slot:
            self.by_slot[slot].look(packet, count, cut)

    def stop(self, slot: int) -> None:
        """Have a worker end."""
        if slot in self.by_slot:
            self.by_slot[slot].stopping = True

    @property
    def receives_here(self) -> bool:
        """Nobody is interrupted as he receives."""
        return False

    def mark(self, slot: int) -> tuple[int, int, int] | None:
        """What a worker is at."""
        return self.marks.get(slot)

    def has_taken(self, slot: int, packet: int) -> bool:
        """Whether a worker has taken a packet."""
        return slot in self.by_slot and self.by_slot[slot]._packet == packet

    def rouse(self, slot: int) -> None:
        """Have a worker say that it is up."""
        if slot in self.by_slot:
            self.by_slot[slot].roused = True

    def dump(self, slot: int) -> None:
        """Note that a stack was asked for."""
        self.dumped.append(slot)

    def interrupt(self, slot: int, mark: tuple[int, int, int], reason: Reason) -> None:
        """Note what a unit was interrupted for."""
        self.struck.append((slot, mark, reason))

    def terminate(self, slot: int) -> None:
        """Note that a worker was asked to end."""
        self.terminated.append(slot)

    def kill(self, slot: int) -> None:
        """End a worker in the middle of what it is at."""
        if slot in self.by_slot:
            self.by_slot[slot].die_within_a_unit()

    def condemn(self, slot: int) -> None:
        """End a worker that answered nonsense."""
        if slot in self.by_slot:
            self.by_slot[slot].end(-9)

    def forget(self, slot: int, definition: int) -> None:
        """Keep definitions: they are objects of the test's."""

    def watch_until(self, look_at: int | None) -> None:
        """Time passes when the test says so."""

    def shut(self, *, kill: bool) -> None:
        """Note that it is over."""
        self.shut_down.append(kill)

    @property
    def is_shut(self) -> bool:
        """Whether it is over."""
        return bool(self.shut_down)

    def join(self) -> None:
        """Nothing is left to wait for: there is no thread."""

    def pump(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None) -> bool:
        """Nothing to receive."""
        return False

    def work(self) -> bool:
        """Nothing to run on the caller's thread."""
        return False

    def workers(self) -> list[Any]:
        """The workers."""
        return list(self.by_slot.values())
