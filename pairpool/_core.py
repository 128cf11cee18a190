"""What happens to a pool, with the dispatcher's lock held: events in, packets and outcomes out.

`Core` has the state that the lock guards (scheduler, jobs, what workers know) and every step that changes it. Who takes
the lock, and when, is _dispatch.py's matter.

Interruption
============
A handler (`on_...`) may be interrupted by an exception anywhere and is then run again, since its event is still the
first: it computes, then commits with operators alone (see _scheduler.py). An action stays first in `actions` until it
is done, and doing it twice does no harm.

No code of the user's runs here, and nothing blocks.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from typing import Any

from pairpool import errors
from pairpool._codec import Definition
from pairpool._feeder import CLOSED, Feeder
from pairpool._jobs import BatchJob, CallJob, Record
from pairpool._packet import OutcomeMode
from pairpool._scheduler import Action, Scheduler
from pairpool._states import PacketEvent
from pairpool._waiting import Settable
from pairpool.engines import Engine, Event, Outcomes, SlotEnd

STARTS_THAT_MAY_FAIL = 3  # consecutive failures of the initializer, besides one a slot, before it is believed


class Core:
    """One pool's state, and the steps that change it."""

    def __init__(self, engine: Engine, size: int, budget: int | None) -> None:
        self.engine = engine
        self.encoder = engine.encoder
        self.size = size
        self.events: deque[Event] = deque()
        self.calls = CallJob(self.encoder)
        self.batches: dict[int, BatchJob] = {}
        self.feeders: dict[int, Feeder] = {}
        self.scheduler = Scheduler(credit=engine.credit, packet_room=engine.packet_room, budget=budget)
        self.scheduler.add(self.calls.plan)
        self.closing = False
        self.over: BaseException | None = None  # why nothing more can end well
        self.signals: list[Settable] = []  # of those who wait for the pool to become quiet
        self.starving = False  # slots idle and no unit waits: feeders are to drain at once
        self.look_at: int | None = None
        self.shutting = False  # the engine was told to end
        self._known: dict[int, set[int]] = {}  # by slot: definitions that its worker has confirmed
        self._carried: dict[int, weakref.ref[Definition]] = {}  # definitions that workers may have
        self._dropped: deque[int] = deque()  # those that are gone
        self._failed_starts: set[int] = set()
        self._collapsed = False  # a fault of ours ended everything
        while self.scheduler.maintain(size):
            pass
        self.scheduler.actions.clear()  # the first workers are not opened one by one
        for slot in self.scheduler.slots.values():
            self._known[slot.ident] = set()
            self.scheduler.opened(slot, None)

    def digest(self) -> None:
        scheduler, events, actions = self.scheduler, self.events, self.scheduler.actions
        if self._collapsed:
            self._digest_ruins()
            return
        while True:
            while events:
                handler, argument = events[0]
                handler(argument)
            if self.calls.incoming:
                self._take_calls()
            if self.feeders:
                self._take_fed()
            if self._dropped:
                self._forget_definitions()
            while actions:
                self._act(actions)
            if self.calls.records:
                self.calls.digest()
            now = time.monotonic_ns()
            while (choice := scheduler.choose()) is not None:
                slot, job, first, limit = choice
                source = self.calls if job is self.calls.plan else self.batches[job.ident]
                body = source.build(first, limit, self._known[slot.ident], self.engine.body_room)
                entry, size = self.engine.entry(slot.ident, scheduler.next_packet, body)
                scheduler.assign(choice, body, size, now, self.engine.outbox, entry)
                self.engine.flush()
            if self.look_at is not None and now >= self.look_at:
                scheduler.late(now)
            if (scheduler.packets and scheduler.steal()) or actions or events:
                continue
            if (self._restaffs or scheduler.staff() != self.size) and scheduler.maintain(self._slots_wanted()):
                continue
            if self.feeders:
                self.starving = scheduler.starving()
                if any(feeder.fresh for feeder in self.feeders.values()):
                    continue
            break
        if self.engine.outbox:
            self.engine.flush()
        self.look_at = scheduler.deadline() if scheduler.packets else None
        if self.look_at is not None:
            self.engine.watch_until(self.look_at)
        for feeder in self.feeders.values():
            feeder.nudge()
        if self.closing:
            self._shut_when_quiet()

    def _digest_ruins(self) -> None:
        """After a fault of ours: nothing is decided any more, but workers and engine still end."""
        events = self.events
        while events:
            event = events[0]
            try:
                event[0](event[1])
            except Exception:
                pass  # the fault with which everything ended, or one that follows from it
            if events and events[0] is event:
                del events[0]
        self.scheduler.actions.clear()
        self._take_calls()

    def _take_calls(self) -> None:
        """Numbers the calls that were made since."""
        if self.over is not None:
            self.calls.fail(self.over)
            return
        incoming, calls, plan = self.calls.incoming, self.calls.calls, self.calls.plan
        number = len(incoming)
        ready = plan.ready + number
        numbered = dict(zip(range(plan.ready, ready), incoming, strict=False))
        waiting = self.scheduler.waiting
        ident = plan.ident
        # commit
        calls |= numbered
        plan.ready = ready
        waiting[ident] = plan
        del incoming[:number]

    def _forget_definitions(self) -> None:
        """Tells workers of definitions that are gone for good: no packet will name them again."""
        dropped = self._dropped
        while dropped:
            ident = dropped[0]
            for slot, known in self._known.items():
                if ident in known:
                    self.engine.forget(slot, ident)
                    known.discard(ident)
            self._carried.pop(ident, None)
            del dropped[0]

    def _take_fed(self) -> None:
        """Takes what feeders have left."""
        for feeder in self.feeders.values():
            fresh, job = feeder.fresh, feeder.job
            number = len(fresh)
            if not number:
                continue
            closed = fresh[number - 1] is CLOSED
            start = job.plan.ready
            numbered = dict(enumerate(fresh[: number - closed], start))
            failures = {unit: entry for unit, entry in numbered.items() if isinstance(entry, BaseException)}
            payloads = {unit: entry for unit, entry in numbered.items() if unit not in failures}
            job.prepared |= payloads
            job.failures |= failures
            self.scheduler.feed(job.plan, start + len(numbered), closed, fresh, number)

    def _act(self, actions: deque[tuple[Any, ...]]) -> None:
        """Does the first action and removes it; done twice, each does no harm."""
        action = actions[0]
        kind = action[0]
        if kind is Action.DELIVER:
            if action[1] == self.calls.ident:
                records = self.calls.records
                record = action[2]
                # commit
                records += (record,)
                del actions[0]
                return
            batch = self.batches.get(action[1])
            if batch is not None:
                records = batch.records
                record = action[2]
                following = (Action.PROGRESS, action[1])
                # commit
                records += (record,)
                actions[0] = following
                return
        elif kind is Action.PROGRESS:
            batch = self.batches.get(action[1])
            if batch is not None:
                self._progress(batch)
        elif kind is Action.FINISH:
            self._finish(action[1])
        elif kind is Action.RECALL:
            self.engine.recall(action[1])
        elif kind is Action.LOOK:
            packet = self.scheduler.packets.get(action[2])
            if packet is not None:
                self.engine.look(action[1], packet.ident, packet.count, action[3])
        elif kind is Action.OPEN:
            self._known.setdefault(action[1], set())
            self.engine.open(action[1])
        elif kind is Action.STOP:
            self.engine.stop(action[1])
        del actions[0]

    def _progress(self, batch: BatchJob) -> None:
        for failed in batch.digest():
            if batch.chunk > 1:
                # As in the stdlib's Pool the first error of a chunk is the end of it.
                stop = failed - failed % batch.chunk + batch.chunk
                self.scheduler.skip(batch.plan, failed + 1, stop)
        batch.sink.progress()

    def _finish(self, ident: int) -> None:
        batch = self.batches.get(ident)
        if batch is None:
            return
        batch.sink.finish()
        self._forget(batch)

    def _forget(self, batch: BatchJob) -> None:
        feeder = self.feeders.pop(batch.ident, None)
        if feeder is not None:
            feeder.end()
        self.scheduler.remove(batch.plan)
        batch.close()
        self.batches.pop(batch.ident, None)
        for signal in self.signals[:]:
            signal.set()

    @property
    def _restaffs(self) -> bool:
        """Whether slots come and go although there are as many as the pool's size."""
        return self.closing or self.over is not None or self.scheduler.budget is not None

    def _slots_wanted(self) -> int:
        if self.over is not None or (self.closing and not self.pending()):
            return 0
        return self.size

    def pending(self) -> int:
        """Jobs without all their outcomes."""
        return len(self.batches) + len(self.calls.calls) + len(self.calls.incoming)

    def _shut_when_quiet(self) -> None:
        if not self.shutting and not self.scheduler.slots and not self.pending():
            self.engine.shut(kill=False)
            self.shutting = True

    # -- handlers: each removes its event in its commit -------------------------------------------------------

    def on_batch(self, argument: tuple[BatchJob, Feeder | None]) -> None:
        job, feeder = argument
        events = self.events
        if self.over is not None:
            job.sink.fail(self.over)
            del events[0]
            return
        self.batches[job.ident] = job
        if feeder is not None:
            self.feeders[job.ident] = feeder
        self.scheduler.add(job.plan)
        self.scheduler.feed(job.plan, job.length, feeder is None)
        del events[0]

    def on_cancel(self, job: BatchJob) -> None:
        """Nobody waits for this batch any more: what has not begun is dropped."""
        if job.ident in self.batches:
            job.sink.fail(errors.PoolTerminatedError("the call was abandoned"))
            self._forget(job)
        del self.events[0]

    def on_outcomes(self, outcomes: Outcomes) -> None:
        slot, ident, mode, offset, count, ran_ns, buffers = outcomes
        events = self.events
        packet = self.scheduler.packets.get(ident)
        if packet is None or packet.slot.ident != slot or offset + count <= packet.done:
            del events[0]
            return
        if offset > packet.done or offset + count > packet.count:
            self.engine.condemn(slot)
            del events[0]
            return
        record = Record(packet.first + offset, count, mode, buffers)
        if offset < packet.done:
            # The first of them were told by a look at the outbox before.
            record = record.after(packet.first + packet.done)
        known = self._known[slot]
        if packet.definitions:
            known |= packet.definitions
        if packet.needs:
            self.encoder.accept(packet.needs)
        self.scheduler.result(packet, offset + count, ran_ns, record, time.monotonic_ns(), events)

    def on_refused(self, refusal: tuple[int, Any]) -> None:
        ident, needs = refusal
        packet = self.scheduler.packets.get(ident)
        if packet is None:
            del self.events[0]
            return
        needs = self.encoder.loads_needs(needs)
        self.encoder.refuse(needs)
        source = self.calls if packet.job is self.calls.plan else self.batches.get(packet.job.ident)
        if source is not None:
            source.fall_back(packet.first, packet.count)
        self.scheduler.came_back(packet, PacketEvent.REFUSE, time.monotonic_ns(), self.events)

    def on_came_back(self, ident: int) -> None:
        packet = self.scheduler.packets.get(ident)
        if packet is None:
            del self.events[0]
            return
        self.scheduler.came_back(packet, PacketEvent.RECALL, time.monotonic_ns(), self.events)

    def on_cut(self, cut: tuple[int, int]) -> None:
        ident, kept = cut
        packet = self.scheduler.packets.get(ident)
        if packet is None:
            del self.events[0]
            return
        self.scheduler.cut(packet, kept, time.monotonic_ns(), self.events)

    def on_open(self, ident: int) -> None:
        slot = self.scheduler.slots.get(ident)
        if slot is None or slot.state not in ("asked", "retiring"):
            del self.events[0]
            return
        if slot.state == "retiring" and not slot.packets:
            self.engine.stop(ident)  # it was to stop before there was a way to tell it
        self.scheduler.opened(slot, self.events)

    def on_up(self, ident: int) -> None:
        slot = self.scheduler.slots.get(ident)
        if slot is None:
            del self.events[0]
            return
        self._failed_starts.clear()
        self.scheduler.up(slot, time.monotonic_ns(), self.events)

    def on_failed(self, failure: tuple[int, BaseException]) -> None:
        """An initializer raised; its worker ends."""
        self._start_failed(*failure)
        del self.events[0]

    def _start_failed(self, slot: int, error: BaseException) -> None:
        self._failed_starts.add(slot)
        if len(self._failed_starts) >= STARTS_THAT_MAY_FAIL + self.size:
            problem = errors.InitializerError(
                f"no worker could be started in {len(self._failed_starts)} attempts: {error!r}"
            )
            problem.__cause__ = error
            self._give_up(problem)

    def on_down(self, end: SlotEnd) -> None:
        slot = self.scheduler.slots.get(end.slot)
        if slot is None:
            del self.events[0]
            return
        for packet in list(slot.packets.values()):
            running = None
            if packet.ident == end.packet and end.unit >= packet.done:
                running = min(end.unit, packet.count - 1)
            count = 0 if running is None else running + 1 - packet.done
            record = Record(
                packet.first + packet.done, count, OutcomeMode.LOST, [errors.WorkerLostError.of(end.pid, end.exitcode)]
            )
            self.scheduler.lose(packet, running, record, time.monotonic_ns())
        if slot.state == "starting":
            self._start_failed(end.slot, errors.WorkerLostError.of(end.pid, end.exitcode))
        self._known.pop(end.slot, None)
        self.scheduler.down(slot, self.events)

    def on_broken(self, error: BaseException) -> None:
        self._give_up(error)
        del self.events[0]

    def on_resize(self, size: int) -> None:
        events = self.events
        # commit
        self.size = size
        del events[0]

    def on_close(self, _: None) -> None:
        events = self.events
        # commit
        self.closing = True
        del events[0]

    def on_terminate(self, error: BaseException) -> None:
        self.closing = True
        self._give_up(error)
        if not self.shutting:
            self.engine.shut(kill=True)
            self.shutting = True
        del self.events[0]

    def _give_up(self, error: BaseException) -> None:
        """Everything pending ends with `error`, and so does what comes later."""
        if self.over is None:
            self.over = error
        for batch in list(self.batches.values()):
            batch.sink.fail(error)
            self._forget(batch)
        self.calls.fail(error)
        self.scheduler.remove(self.calls.plan)
