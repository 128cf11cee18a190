"""Slots that are threads of this process: nothing is pickled, an object is its own payload.

A slot's thread takes packets from a `SimpleQueue`, in order, runs them with the runner that worker processes use, and
drains the dispatcher itself after each answer. A packet in the queue is taken by exactly one `get`: the thread's, or
the dispatcher's in a recall. A unit is claimed by exactly one `popleft` or `pop` of a deque, each atomic. A None in the
queue only wakes the thread, which then sees whether it is to stop: none is ever missed, and one more does no harm.
What may block: a slot's thread in its queue and in the user's code.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import itemgetter
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from pairpool._masks import blocked_signals, let_in_signals, shut_out_signals
from pairpool._objects import ObjectCodec, ObjectEncoder
from pairpool._packet import OUTCOMES_HEAD, Kind, OutcomeMode, Status
from pairpool._runner import Runner
from pairpool._waiting import Signal
from pairpool.engines import Handlers, Outcomes, SlotEnd, WorkerPlan

if TYPE_CHECKING:
    from pairpool._body import Body
    from pairpool._jobs import Encoder
    from pairpool._waiting import Settable

NEVER = object()  # is in no queue


class Claims:
    """The units of one packet: each is claimed once, from the left by who runs it, from the right by the dispatcher."""

    def __init__(self, packet: int, count: int) -> None:
        self.packet = packet
        self.count = count
        self.units = deque(range(count))
        self.taken_back: deque[int] = deque()

    @property
    def begun(self) -> int:
        """Units that were claimed to run."""
        return self.count - len(self.units) - len(self.taken_back)

    def take_tail(self) -> int:
        """Claims back what is left; returns how many units run. Interrupted and done again it says the same."""
        rest = iter(self.units.pop, None)
        try:
            # commit: each unit is taken and noted in one step
            self.taken_back += rest
        except IndexError:
            pass
        return min(self.taken_back, default=self.count)


class ThreadPage:
    """Claims of the packet that a thread runs."""

    claimed = -1  # the unit that was claimed last

    def __init__(self) -> None:
        self.claims = Claims(0, 0)

    def begin(self, packet: int, count: int) -> None:
        self.claims = Claims(packet, count)
        self.claimed = -1

    def claim(self) -> int:
        try:
            self.claimed = unit = self.claims.units.popleft()
        except IndexError:
            return -1
        return unit

    def run(self, function: Callable[[Any], Any], items: Sequence[Any], values: list[Any]) -> tuple[Any] | None:
        """Runs units as `Page.run` does; values are not copied, so each may be what it will be."""
        unit = len(values)
        while unit >= 0:
            values.append(function(items[unit]))
            unit = self.claim()
        return None

    def running(self) -> None: ...
    def next_item(self) -> None: ...
    def done(self) -> None: ...


class _Slot:
    """One thread and its queue."""

    def __init__(self, engine: ThreadEngine, ident: int, number: int) -> None:
        self.ident = ident
        self.queue: SimpleQueue[tuple[int, Sequence[Any]] | None] = SimpleQueue()
        self.page = ThreadPage()
        self.begun = False
        self.stopping = False  # it ends with the next None in its queue
        self.runs = True  # the user's code, or is about to: False only while it waits for a packet
        self._engine = engine
        self._runner = Runner(ObjectCodec(), self.page, None, self._send)
        self.thread = threading.Thread(target=self._run, name=f"Thread-pairpool-{number}", daemon=True)

    # The surface of a worker handle that programs look at in `pool._pool`.
    pid = None
    exitcode = None

    @property
    def name(self) -> str:
        return self.thread.name

    def is_alive(self) -> bool:
        return self.thread.is_alive()

    def _send(self, kind: int, packet: int, buffers: Sequence[Any]) -> None:
        assert kind == Kind.OUTCOMES
        mode, offset, count, took = OUTCOMES_HEAD.unpack(buffers[0])
        handlers = self._engine.handlers
        again = mode == OutcomeMode.SEPARATE and Status.AGAIN in buffers[1]
        outcomes = Outcomes(self.ident, packet, mode, offset, count, took, buffers[1:], again)
        handlers.events.append((handlers.on_outcomes, outcomes))
        handlers.drain()

    def _run(self) -> None:
        if self.begun:
            return  # started twice: see ThreadEngine._start
        self.begun = True
        let_in_signals(self._engine.mask)  # a thread of ours may have started this one
        handlers, plan = self._engine.handlers, self._engine.plan
        try:
            if plan.initializer is not None:
                try:
                    plan.initializer(*plan.initargs)
                except BaseException as error:
                    handlers.events.append((handlers.on_failed, (self.ident, error)))
                    return
            handlers.events.append((handlers.on_up, self.ident))
            handlers.drain()
            while (packet := self._next_packet()) is not None:
                self._runner.run(*packet, ())
                del packet
        except BaseException as error:
            handlers.collapse(error)
        finally:
            self._engine.recall(self.ident)
            handlers.events.append((handlers.on_down, SlotEnd(self.ident, None, None, None, 0)))
            self._engine.left(self)
            handlers.drain()

    def _next_packet(self) -> tuple[int, Sequence[Any]] | None:
        self.runs = False
        while (packet := self.queue.get()) is None:
            if self.stopping:
                return None
        self.runs = True
        return packet


class ThreadEngine:
    """Offers threads as slots."""

    credit = 1 << 62  # nothing is copied, so nothing is counted
    packet_room = 0
    body_room = sure_room = 1 << 62
    processes = None

    def __init__(self) -> None:
        self.encoder: Encoder = ObjectEncoder()
        self.outbox: deque[tuple[int, int, Sequence[Any]]] = deque()
        self.plan = WorkerPlan()
        self._slots: dict[int, _Slot] = {}
        self._started = 0
        self._shut = False
        self._abandons = False
        self.is_shut = False
        self._watchman: threading.Thread | None = None
        self._watch_at: int | None = None
        self._watched_until: int | None = None  # it sleeps until then; None: for ever
        self._watch_signal = Signal()

    def start(self, handlers: Handlers, plan: WorkerPlan, slots: Sequence[int]) -> None:
        self.handlers = handlers
        self.plan = plan
        self.mask = blocked_signals()
        for slot in slots:
            self._start(slot)

    def open(self, slot: int) -> None:
        handlers = self.handlers
        handlers.events.append((handlers.on_open, slot))
        try:
            self._start(slot)
        except RuntimeError as error:  # there can be no more threads
            self._slots.pop(slot, None)
            refusal, end = (slot, f"a thread could not be started: {error}"), SlotEnd(slot, None, None, None, 0)
            handlers.events.extend(((handlers.on_unstarted, refusal), (handlers.on_down, end)))

    def _start(self, slot: int) -> None:
        at = self._slots.get(slot)
        if at is None:
            self._started += 1
            self._slots[slot] = at = _Slot(self, slot, self._started)
        if at.thread.ident is None:
            try:
                at.thread.start()
            except RuntimeError:
                if not at.begun:  # else it was started by a `start` that was interrupted
                    raise

    def entry(self, slot: int, packet: int, body: Body) -> tuple[Any, int]:
        return (slot, packet, body.buffers), 0

    def flush(self) -> None:
        outbox = self.outbox
        while outbox:
            slot, packet, buffers = outbox[0]
            at = self._slots.get(slot)
            # Nothing is sent to a slot that has ended: the word of that is on its way, and this is among what it held.
            sent = map(at.queue.put, ((packet, buffers),)) if at is not None else ()
            # commit: sent and removed in one step
            _sent = [*sent]
            del outbox[0]

    def recall(self, slot: int) -> None:
        at = self._slots.get(slot)
        if at is None:
            return
        packets = filter(None, iter(at.queue.get_nowait, NEVER))
        came_back = zip(repeat(self.handlers.on_came_back), map(itemgetter(0), packets), strict=False)
        try:
            # commit: each packet is taken and recorded in one step
            self.handlers.events += came_back
        except Empty:
            pass
        at.queue.put(None)  # it may have been waiting for one that was taken here

    def look(self, slot: int, packet: int, count: int, cut: bool) -> None:
        at = self._slots.get(slot)
        if cut and at is not None:
            claims = at.page.claims
            if claims.packet == packet:
                self.handlers.events.append((self._on_look, claims))

    def _on_look(self, claims: Claims) -> None:
        """Takes a tail back; as all handlers do it removes its event."""
        self.handlers.on_cut((claims.packet, claims.take_tail()))

    def join(self) -> None: ...  # who is in the user's code may never end

    def stop(self, slot: int) -> None:
        at = self._slots.get(slot)
        if at is not None:
            at.stopping = True
            at.queue.put(None)

    def shut(self, *, kill: bool) -> None:
        """With `kill`, threads that run the user's code are abandoned, since none can be killed.

        They end when that code does; nobody waits for them.
        """
        self._shut = True
        self._abandons = kill
        for slot in list(self._slots.values()):
            slot.stopping = True
            self.recall(slot.ident)
        self._finish_when_left()

    def left(self, slot: _Slot) -> None:
        """A slot's thread is about to end."""
        self._slots.pop(slot.ident, None)
        self._finish_when_left()

    def _finish_when_left(self) -> None:
        busy = [slot for slot in list(self._slots.values()) if not (self._abandons and slot.runs)]
        if self._shut and not busy and not self.is_shut:
            self.is_shut = True
            self._watch_signal.set()
            self.handlers.engine_shut()

    def pump(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None) -> bool:
        return False

    def condemn(self, slot: int) -> None:
        raise AssertionError(f"slot {slot}, which runs our own code alone, answered nonsense")

    def forget(self, slot: int, definition: int) -> None:
        pass  # every payload is an object of the caller's

    def watch_until(self, look_at: int | None) -> None:
        """A watchman thread drains at that moment; there is one only where a packet of several units runs."""
        self._watch_at = look_at
        if look_at is not None:
            if self._watchman is None:
                watchman = threading.Thread(target=self._watch, name="pairpool-watch", daemon=True)
                watchman.start()
                self._watchman = watchman
            until = self._watched_until
            if until is None or look_at < until:
                self._watch_signal.set()

    def _watch(self) -> None:
        shut_out_signals()
        while not self.is_shut:
            self._watched_until = None  # who wants it to look earlier from now on finds this, and wakes it
            self._watched_until = watch_at = self._watch_at
            self._watch_signal.wait(None if watch_at is None else max(0.0, (watch_at - time.monotonic_ns()) / 1e9))
            now = time.monotonic_ns()
            if self._watch_at is not None and self._watch_at <= now:
                self._watch_at = None  # whoever digests says when to look again, if at all
                self.handlers.drain()

    def work(self) -> bool:
        return False

    def workers(self) -> list[Any]:
        return list(self._slots.values())
