"""What happens to a pool, with the dispatcher's lock held: events in, packets and outcomes out.

`Core` has the state that the lock guards (scheduler, jobs, what workers know) and the steps that change it; those that
follow from what engines answer are in _answers.py. Who takes the lock, and when, is _dispatch.py's matter.

Interruption
============
A handler (`on_...`) may be interrupted by an exception anywhere and is then run again, since its event is still the
first: it computes, then commits with operators alone (see _scheduler.py). An action stays first in `actions` until it
is done, and doing it twice does no harm.

No code of the user's runs here, and nothing blocks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from operator import call
from typing import Any, cast

from pairpool import errors
from pairpool._calls import Call, CallJob
from pairpool._delivered import Delivered
from pairpool._feeder import CLOSED, Feeder
from pairpool._jobs import BatchJob
from pairpool._limits import Limits
from pairpool._respawn import Respawn
from pairpool._scheduler import Scheduler
from pairpool._states import Action, Job, Packet, Sent, Slot, SlotState
from pairpool._strikes import came_from_handler
from pairpool._terms import Terms
from pairpool._waiting import Settable, wake_all
from pairpool.engines import Engine, Event, Processes, WorkerPlan

SHORTAGE = 1_000_000_000  # ns for which the system may have no room for a packet before its call is told
RETRY = 5_000_000  # ns after which it is asked again: nothing tells when there is room

_call: Callable[[Callable[[], object]], object] = call  # its own type is too general for map()


class Core:
    """One pool's state, and the steps that change it."""

    def __init__(self, engine: Engine, plan: WorkerPlan, size: int, budget: int | None) -> None:
        self.engine = engine
        self.encoder = engine.encoder
        self.size = size
        self.events: deque[Event] = deque()
        self.callbacks: deque[Callable[[], None]] = deque()  # what runs without the lock, on the callback thread
        self.calls = CallJob(self.encoder)
        self.batches: dict[int, BatchJob] = {}
        self.feeders: dict[int, Feeder] = {}
        self.processes = engine.processes
        rouses = self.processes is not None
        self.scheduler = Scheduler(credit=engine.credit, packet_room=engine.packet_room, budget=budget, rouses=rouses)
        self.scheduler.backlog.add(self.calls.plan)
        self.closing = False
        self.over: BaseException | None = None  # why nothing more can end well
        self.signals: list[Settable] = []  # of those who wait for the pool to become quiet
        self.starving = False  # slots idle and no unit waits: feeders are to drain at once
        self.shutting = False  # the engine was told to end
        self.sent: list[Sent] = []  # a packet that is sent and not recorded yet (_exchange.py); one at most
        self.heard: deque[Event] = deque()  # what its worker said and is not digested yet; one at most
        self.at_rest = False  # nothing is waiting, in flight or ending: a call may be exchanged
        self.sated = False  # calls wait, and none is to be sent until something is answered
        # Only processes' units have any.
        self.limits = Limits(cast(Processes, self.processes), self._terms_of, self._close_slot)
        self._max_memory = plan.max_memory_per_worker
        self.delivered = Delivered()
        self._failed_starts: set[int] = set()
        self.respawn = Respawn()
        self._collapsed = False  # a fault of ours ended everything
        self._short_since: int | None = None  # the system has had no room for the next packet since then, in ns
        self._retry_at = 0  # when it is to be asked again
        while self.scheduler.roster.maintain(size):
            pass
        self.scheduler.actions.clear()  # the first workers are not opened one by one
        for slot in self.scheduler.slots.values():
            self.delivered.by_slot[slot.ident] = set()
            self.scheduler.roster.opened(slot, None)

    @property
    def look_at(self) -> int | None:
        """When to digest at the latest, in ns, though nothing has come; None: never."""
        asked = [self.scheduler.look_at, self.limits.look_at, self.respawn.at, self.encoder.trim_at]
        if self._short_since is not None:
            asked.append(self._retry_at)
        return min([moment for moment in asked if moment is not None], default=None)

    def digest(self) -> None:
        scheduler, events, actions = self.scheduler, self.events, self.scheduler.actions
        roster = scheduler.roster
        self.at_rest = False
        if self._collapsed:
            self._digest_ruins()
            return
        if self.sent:
            self.adopt_sent()
        while True:
            while events:
                handler, argument = events[0]
                handler(argument)
            if self.calls.incoming:
                self._take_calls()
            if self.feeders:
                self._take_fed()
            if self.delivered.gone:
                self.delivered.forget_gone(scheduler.packets.values(), self.engine.forget)
            while actions:
                self._act(actions)
            if self.calls.records:
                self.calls.digest()
            if scheduler.waiting:
                self._hand_out(self._now())
            else:
                self._short_since = None
            if scheduler.packets:
                if scheduler.look_at is not None:
                    scheduler.late(self._now())
                if self.limits.look_at is not None:
                    self.limits.look(scheduler.slots.values(), self._now())
                if scheduler.may_steal:
                    scheduler.steal()
            else:
                self.limits.clear()
            if actions or events or self.delivered.gone:
                continue
            if (self._restaffs or roster.staff != self.size) and self._restaff():
                continue
            if self.feeders:
                self.starving = scheduler.starving()
                if any(feeder.fresh for feeder in self.feeders.values()):
                    continue
            break
        if self.engine.outbox:
            self.engine.flush()
        look_at = self.look_at
        if look_at is not None:
            if look_at == self.encoder.trim_at and look_at <= self._now():
                self.encoder.trim()
            self.engine.watch_until(look_at)
        for feeder in self.feeders.values():
            feeder.nudge()
        self.sated = self.calls.ident in scheduler.waiting
        if self.closing:
            if not scheduler.slots and not self.pending():
                self._shut(kill=False)
        else:
            nothing_goes_on = not (scheduler.packets or scheduler.waiting or self.feeders or self.over)
            self.at_rest = nothing_goes_on and roster.budget is None

    def adopt_sent(self) -> None:
        """Records a packet that was sent, and has what its worker was heard to say digested like anything else."""
        heard = self.heard
        if heard:
            # Before whatever has come since. One C call for both, so that no signal handler strikes between them.
            steps: tuple[Callable[[], object], ...] = (partial(self.events.appendleft, heard[0]), heard.clear)
            deque(map(_call, steps), maxlen=0)
        self.scheduler.adopt(self.sent, self._now())

    def _hand_out(self, now: int) -> None:
        """Sends packets as long as units wait, slots have room for them, and the system has."""
        scheduler, engine = self.scheduler, self.engine
        refused: tuple[Job, int] | None = None
        room = engine.body_room if self._short_since is None else engine.sure_room
        while (choice := scheduler.choose()) is not None:
            slot, job, first, limit = choice
            if self._short_since is not None or scheduler.next_packet < slot.single_until:
                limit = 1  # so that no unit waits, or ends, because of another
            source = self.calls if job is self.calls.plan else self.batches[job.ident]
            most = engine.sure_room if slot.small_from <= scheduler.next_packet else room
            body = source.build(first, limit, self.delivered.by_slot[slot.ident], most)
            try:
                entry, size = engine.entry(slot.ident, scheduler.next_packet, body)
            except (OSError, MemoryError) as error:
                if came_from_handler(error):
                    raise
                if most > engine.sure_room:
                    room = engine.sure_room  # until another time; these units are put together anew, as far as they fit
                    continue
                if self._short_since is None:
                    self._short_since = now
                if now - self._short_since < SHORTAGE:
                    self._retry_at = now + RETRY
                    return
                self._refuse(job, first, body.units, error)
                refused = (job, first)
                continue
            self.limits.watch(body.limit, now)
            if refused != (job, first):  # else that there is room for nothing
                self._short_since = None
            scheduler.assign(choice, body, size, now, engine.outbox, entry)
            engine.flush()
        self._short_since = None

    def source_of(self, job: Job) -> CallJob | BatchJob | None:
        """Where the units of a job come from; None where it has ended."""
        return self.calls if job is self.calls.plan else self.batches.get(job.ident)

    def _terms_of(self, packet: Packet, unit: int) -> Terms | None:
        source = self.source_of(packet.job)
        return None if source is None else source.terms_of(unit)

    def _close_slot(self, slot: Slot) -> None:
        """Has nothing more begin at a slot."""
        looks = tuple([(Action.LOOK, slot.ident, packet, True) for packet in slot.packets])
        if slot.state is not SlotState.RETIRING:
            self.scheduler.roster.retire(slot, None)
        self.scheduler.actions += looks

    def _refuse(self, job: Job, first: int, count: int, error: BaseException) -> None:
        """Units cannot be sent, and end with that."""
        problem = errors.PairpoolError(f"a task could not be sent to a worker: {error!r}")
        problem.__cause__ = error
        source = self.source_of(job)
        if source is not None:
            source.refuse(first, count, problem)

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

    def _take_fed(self) -> None:
        """Takes what feeders have left."""
        for feeder in [each for each in self.feeders.values() if each.fresh]:
            fresh, job, start = feeder.fresh, feeder.job, feeder.job.plan.ready
            number = len(fresh)
            closed = fresh[number - 1] is CLOSED
            entries = fresh[: number - closed]
            ready = job.prepared.take(entries, start)
            self.scheduler.backlog.feed(job.plan, ready, closed, fresh, number)

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
        elif kind is Action.ROUSE:
            cast(Processes, self.processes).rouse(action[1])
        elif kind is Action.OPEN:
            self.delivered.by_slot.setdefault(action[1], set())
            self.engine.open(action[1])
        elif kind is Action.STOP:
            self.engine.stop(action[1])
        del actions[0]

    def _progress(self, batch: BatchJob) -> None:
        for failed in batch.digest():
            if batch.chunk > 1:
                # As in the stdlib's Pool the first error of a chunk is the end of it.
                stop = failed - failed % batch.chunk + batch.chunk
                self.scheduler.backlog.skip(batch.plan, failed + 1, stop)
        batch.sink.progress()

    def _finish(self, ident: int) -> None:
        batch = self.batches.get(ident)
        if batch is not None:
            batch.sink.finish()
            self._forget(batch)

    def _forget(self, batch: BatchJob) -> None:
        feeder = self.feeders.pop(batch.ident, None)
        if feeder is not None:
            feeder.end()
        self.scheduler.backlog.remove(batch.plan)
        batch.close()
        self.batches.pop(batch.ident, None)
        wake_all(self.signals)

    @property
    def _restaffs(self) -> bool:
        """Whether it is not enough to compare the number of slots with the pool's size."""
        return self.closing or self.over is not None or self.respawn.at is not None

    def _restaff(self) -> bool:
        """Takes one step towards the slots that are wanted; False where none is needed, or to be taken yet."""
        wanted = self._slots_wanted()
        if self.respawn.at is not None and self.respawn.waits(self._now()) and self.scheduler.roster.staff < wanted:
            return False
        return self.scheduler.roster.maintain(wanted)

    def _slots_wanted(self) -> int:
        if self.over is not None or (self.closing and not self.pending()):
            return 0
        return self.size

    def pending(self) -> int:
        """Jobs without all their outcomes."""
        return len(self.batches) + len(self.calls.calls) + len(self.calls.incoming)

    def _shut(self, *, kill: bool) -> None:
        if not self.shutting:
            self.engine.shut(kill=kill)
            self.shutting = True
            self.wake_callbacks()  # the engine may have been through before anybody could see that it shuts

    def wake_callbacks(self) -> None:
        """The callback thread is to look: there is something in `callbacks`, or everything may be over."""
        raise NotImplementedError

    def _now(self) -> int:
        return time.monotonic_ns()

    # -- handlers of what callers want (of what engines answer: _answers.py); each removes its event in its commit ---

    def on_batch(self, argument: tuple[BatchJob, Feeder | None]) -> None:
        job, feeder = argument
        events = self.events
        if self.over is not None:
            job.sink.fail(self.over)
            if feeder is not None:
                feeder.end()
            del events[0]
            return
        self.batches[job.ident] = job
        if feeder is not None:
            self.feeders[job.ident] = feeder
        self.scheduler.backlog.add(job.plan)
        self.scheduler.backlog.feed(job.plan, job.length, feeder is None)
        del events[0]

    def on_cancel(self, job: BatchJob) -> None:
        """Nobody waits for this batch any more: what has not begun is dropped."""
        if job.ident in self.batches:
            job.sink.fail(errors.PoolTerminatedError("the call was abandoned"))
            self._forget(job)
        del self.events[0]

    def on_cancel_call(self, call: Call) -> None:
        """Nobody waits for this call any more: it does not begin, or is ended."""
        actions, found = self.scheduler.actions, self._in_flight(call)
        recall: tuple[tuple[Any, ...], ...] = ()
        if found is not None:
            packet, offset = found
            self.limits.cancel(packet, offset, self._now())
            slot = packet.slot.ident
            recall = ((Action.RECALL, slot), (Action.LOOK, slot, packet.ident, True))
        # commit
        actions += recall
        del self.events[0]

    def _in_flight(self, call: Call) -> tuple[Packet, int] | None:
        """The packet in which a call is, and which of its units it is."""
        calls = self.calls
        mine = (packet for packet in self.scheduler.packets.values() if packet.job is calls.plan)
        places = ((packet, offset) for packet in mine for offset in range(packet.count))
        return next((place for place in places if calls.calls.get(place[0].first + place[1]) is call), None)

    def on_resize(self, size: int) -> None:
        events = self.events
        none_failed: set[int] = set()
        respawn = Respawn()
        # commit
        self.size = size
        self._failed_starts = none_failed  # the system may give now what it did not give then
        self.respawn = respawn
        del events[0]

    def on_close(self, _: None) -> None:
        events, respawn = self.events, Respawn()
        # commit
        self.closing = True
        self.respawn = respawn  # what is pending is not to wait for workers
        del events[0]

    def on_terminate(self, error: BaseException) -> None:
        self.closing = True
        self._give_up(error)
        self._shut(kill=True)
        del self.events[0]

    def _give_up(self, error: BaseException) -> None:
        """Everything pending ends with `error`, and so does what comes later."""
        if self.over is None:
            self.over = error
        for batch in list(self.batches.values()):
            batch.sink.fail(error)
            self._forget(batch)
        self.calls.fail(error)
        self.scheduler.backlog.remove(self.calls.plan)
        self.respawn = Respawn()  # last, since who judges by it may be interrupted before
