"""One slot: the thread that waits. The reference for what the other engines do; good for debugging.

A packet runs when somebody drains, on that thread, after the lock is released. Nothing runs at the same time as anything
else of the same pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pairpool._objects import ObjectCodec, ObjectEncoder
from pairpool._packet import OUTCOMES_HEAD, Kind
from pairpool._runner import Runner
from pairpool.engines import Handlers, Outcomes, SlotEnd, WorkerPlan
from pairpool.engines.threads import ThreadPage

if TYPE_CHECKING:
    from pairpool._jobs import Body, Encoder
    from pairpool._waiting import Settable


class InlineEngine:
    """Runs packets on the threads that drain."""

    credit = 1 << 62
    packet_room = 0
    body_room = 1 << 62

    def __init__(self) -> None:
        self.encoder: Encoder = ObjectEncoder()
        self.outbox: deque[tuple[int, int, Sequence[Any]]] = deque()
        self._queue: deque[tuple[int, int, Sequence[Any]]] = deque()
        self._page = ThreadPage()
        self._runner = Runner(ObjectCodec(), self._page, None, self._send)
        self._starting: deque[int] = deque()
        self._slot = 0
        self._shut = False

    def start(self, handlers: Handlers, plan: WorkerPlan, slots: Sequence[int]) -> None:
        self.handlers = handlers
        self._plan = plan
        self._starting.extend(slots)

    def open(self, slot: int) -> None:
        self.handlers.events.append((self.handlers.on_open, slot))
        self._starting.append(slot)

    def entry(self, slot: int, packet: int, body: Body) -> tuple[Any, int]:
        return (slot, packet, body.buffers), 0

    def flush(self) -> None:
        queue, outbox = self._queue, self.outbox
        while outbox:
            entry = outbox[0]
            # commit
            queue += (entry,)
            del outbox[0]

    def forget(self, slot: int, definition: int) -> None:
        pass  # every payload is an object of the caller's

    def watch_until(self, look_at: int | None) -> None:
        pass  # nothing runs beside the thread that drains, so nothing can be late

    def work(self) -> bool:
        while self._starting:
            self._start(self._starting.popleft())
        try:
            slot, packet, buffers = self._queue.popleft()
        except IndexError:
            return False
        self._slot = slot
        self._runner.run(packet, buffers, ())
        return True

    def _start(self, slot: int) -> None:
        handlers = self.handlers
        try:
            if self._plan.initializer is not None:
                self._plan.initializer(*self._plan.initargs)
        except BaseException as error:
            handlers.events.append((handlers.on_failed, (slot, error)))
            handlers.events.append((handlers.on_down, SlotEnd(slot, None, None, None, 0)))
        else:
            handlers.events.append((handlers.on_up, slot))

    def _send(self, kind: int, packet: int, buffers: Sequence[Any]) -> None:
        assert kind == Kind.OUTCOMES
        mode, offset, count, took = OUTCOMES_HEAD.unpack(buffers[0])
        outcomes = Outcomes(self._slot, packet, mode, offset, count, took, buffers[1:])
        self.handlers.events.append((self.handlers.on_outcomes, outcomes))

    def recall(self, slot: int) -> None:
        while self._queue:
            _, packet, _ = self._queue.popleft()
            self.handlers.events.append((self.handlers.on_came_back, packet))

    def look(self, slot: int, packet: int, count: int, cut: bool) -> None:
        if cut:
            kept = self._page.take_tail(packet, count)
            self.handlers.events.append((self.handlers.on_cut, (packet, kept)))

    def stop(self, slot: int) -> None:
        self.handlers.events.append((self.handlers.on_down, SlotEnd(slot, None, None, None, 0)))

    def shut(self, *, kill: bool) -> None:
        self.recall(0)
        self._shut = True
        self.handlers.engine_shut()

    def wait_shut(self, timeout: float | None = None) -> bool:
        return self._shut

    def pump(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None) -> bool:
        return False

    def workers(self) -> list[Any]:
        return []
