"""What an engine answers: whether it can be true, and what follows from it.

Workers run the user's code, so anything may come from them. What is not even well-formed an engine notices itself (see
_handle.py); here each answer is held against what was sent. One that cannot be true costs the worker that gave it, and
the unit that it runs: it is condemned, and the word of its end accounts for its packets.

What holds for the handlers of _core.py holds for these: each removes its event in its commit, and is run again where it
was interrupted.
"""

from __future__ import annotations

import errno
from functools import partial
from multiprocessing import util
from typing import Any

from pairpool import errors
from pairpool._core import Core
from pairpool._pacing import ASLEEP
from pairpool._packet import OutcomeMode, Status
from pairpool._ranges import Range
from pairpool._record import Record
from pairpool._respawn import Respawn
from pairpool._states import Packet, PacketEvent, Slot
from pairpool.engines import Outcomes, SlotEnd

STARTS_THAT_MAY_FAIL = 3  # consecutive ones, besides one a slot, before it is believed that no worker will come up


class Answers(Core):
    """A pool's core, and how it digests what an engine answers."""

    def on_outcomes(self, outcomes: Outcomes) -> None:
        slot, ident, mode, offset, count, ran_ns, buffers, again, _ = outcomes
        events = self.events
        packet = self.scheduler.packets.get(ident)
        if packet is None or packet.slot.ident != slot or offset + count <= packet.done:
            del events[0]
            return
        last = packet.first + offset + count - 1
        shared = mode == OutcomeMode.SHARED and packet.job is self.calls.plan and not self.calls.may_share(last)
        skips = offset > packet.done and mode != OutcomeMode.COMMITTED
        if skips or offset + count > packet.count or shared or (again and not packet.retries):
            self._condemn(slot)
            return
        if offset > packet.done:
            # Read from an outbox that was full: what lay there before is in a message that was not received yet.
            del events[0]
            return
        record = Record(packet.first + offset, count, mode, buffers)
        if offset < packet.done:
            # The first of them were told by a look at the outbox before.
            record = record.after(packet.first + packet.done)
        packet.slot.lain = 0
        if self.respawn.barren:
            self.respawn.barren = 0
        if packet.definitions:
            self.delivered.confirm(slot, packet.definitions)
        if packet.needs:
            self.encoder.accept(packet.needs)
        records, units = self._sort_out(packet, record) if again else ((record,), ())
        self.scheduler.result(packet, offset + count, ran_ns, records, self._now(), events, units)

    def _sort_out(self, packet: Packet, record: Record) -> tuple[tuple[Record, ...], tuple[Range, ...]]:
        """Outcomes, and the units that run again instead of having one."""
        source = self.source_of(packet.job)
        again: tuple[Range, ...] = ()
        records: tuple[Record, ...] = ()
        kept: list[tuple[int, int, Any]] = []
        for unit, status, payload in record.outcomes():
            if status != Status.AGAIN:
                kept.append((unit, status, payload))
            elif source is None or not source.fails(unit, packet.ident, died=False):
                kept.append((unit, Status.ERROR, payload))
            else:
                again += ((unit, unit + 1),)
                records += Record.of(kept)
                kept = []
        return records + Record.of(kept), again

    def on_refused(self, refusal: tuple[int, int, tuple[int, ...]]) -> None:
        slot, ident, places = refusal
        packet = self.scheduler.packets.get(ident)
        if packet is None or packet.slot.ident != slot:
            del self.events[0]
            return
        if packet.done or not places or max(places) >= len(packet.needs):
            self._condemn(slot)
            return
        refused = [packet.needs[place] for place in places]
        self.encoder.refuse(refused)
        source = self.source_of(packet.job)
        if source is not None:
            source.fall_back(packet.first, packet.count, refused)
        self.scheduler.came_back(packet, PacketEvent.REFUSE, self._now(), self.events)

    def on_unreceived(self, told: tuple[int, int]) -> None:
        """Small packets need no descriptors but for units that do: such a one is looked for, and two workers try it."""
        ident, number = told
        packet = self.scheduler.packets.get(number)
        if packet is None or packet.slot.ident != ident:
            del self.events[0]
            return
        if packet.done:
            self._condemn(ident)
            return
        slot, source, following = packet.slot, self.source_of(packet.job), self.scheduler.next_packet
        if packet.count > 1:
            if number >= slot.small_from:
                slot.single_until = following + packet.count
            slot.small_from = min(slot.small_from, following)
        elif source is not None and source.unreceived.setdefault(packet.first, number) == number:
            self._close_slot(slot)  # another worker takes its place: what it has run may have left descriptors open
        else:
            problem = OSError(errno.EMFILE, "the workers have no descriptor free to receive it with")
            self._refuse(packet.job, packet.first, 1, problem)
        self.scheduler.came_back(packet, PacketEvent.REFUSE, self._now(), self.events)

    def on_came_back(self, ident: int) -> None:
        packet = self.scheduler.packets.get(ident)
        if packet is None:
            del self.events[0]
            return
        if packet.done:
            self._condemn(packet.slot.ident)  # it told outcomes of what it never took
            return
        now, slots, processes = self._now(), self.scheduler.slots.values(), self.processes
        self.scheduler.roster.untaken(packet, now)
        terms = self._terms_of(packet, packet.first)
        has_limit = terms is not None and terms.limit_ns > 0
        if has_limit and processes is not None and all(slot.asleep for slot in slots):
            processes.kill(packet.slot.ident)  # what may take only so long does not wait for ever either
        self.scheduler.came_back(packet, PacketEvent.RECALL, now, self.events)

    def on_unsendable(self, failure: tuple[int, BaseException]) -> None:
        ident, error = failure
        packet = self.scheduler.packets.get(ident)
        if packet is None:
            del self.events[0]
            return
        self._refuse(packet.job, packet.first, packet.count, error)
        self.scheduler.came_back(packet, PacketEvent.RECALL, self._now(), self.events)

    def on_cut(self, cut: tuple[int, int]) -> None:
        ident, kept = cut
        packet = self.scheduler.packets.get(ident)
        if packet is None:
            del self.events[0]
            return
        if kept < packet.done:
            self._condemn(packet.slot.ident)
            return
        self.scheduler.cut(packet, kept, self._now(), self.events)

    def on_open(self, ident: int) -> None:
        slot = self.scheduler.slots.get(ident)
        if slot is None or slot.state not in ("asked", "retiring"):
            del self.events[0]
            return
        if slot.state == "retiring" and not slot.packets:
            self.engine.stop(ident)  # it was to stop before there was a way to tell it
        self.scheduler.roster.opened(slot, self.events)

    def on_up(self, ident: int) -> None:
        slot = self.scheduler.slots.get(ident)
        if slot is None:
            del self.events[0]
            return
        if slot.state not in ("starting", "retiring"):
            if slot.allowance <= ASLEEP:  # nobody has asked it
                self._condemn(ident)
                return
            self.scheduler.may_steal = True
            self.scheduler.roster.awoke(slot, self.events)
            return
        self._failed_starts.clear()
        self.scheduler.up(slot, self._now(), self.events)

    def on_full(self, word: tuple[int, Any, int]) -> None:
        """A worker holds more memory than it may: another takes its place when it has ended what it runs."""
        ident, worker, used = word
        slot, most = self.scheduler.slots.get(ident), self._max_memory
        if most is None or used <= most or (slot is not None and slot.state in ("asked", "starting")):
            self._condemn(ident)
            return
        events, callbacks = self.events, self.callbacks
        if slot is None or slot.state == "retiring":
            del events[0]
            return
        # Loggers are the user's code.
        words, following = (partial(_tell_full, worker, used, most),), (self._on_replaced, slot)
        # commit
        callbacks += words
        events[0] = following

        self.wake_callbacks()

    def _on_replaced(self, slot: Slot) -> None:
        self.scheduler.roster.retire(slot, self.events)

    def on_failed(self, failure: tuple[int, BaseException]) -> None:
        """An initializer raised; its worker ends."""
        self._start_failed(*failure, errors.InitializerError)
        del self.events[0]

    def on_unstarted(self, refusal: tuple[int, str]) -> None:
        """The system gives no worker: in the end the pool goes on with fewer, or ends where there is none."""
        ident, reason = refusal
        others = [slot.state for slot in self.scheduler.slots.values() if slot.ident != ident]
        if "idle" not in others and "busy" not in others:
            self._start_failed(ident, errors.PairpoolError(reason), errors.PairpoolError)
        elif self._is_believed(ident):
            self.size = min(self.size, sum(state != "retiring" for state in others))
        del self.events[0]

    def _is_believed(self, slot: int) -> bool:
        """Notes that a worker did not come up; whether so many did not that the next will not either."""
        self._failed_starts.add(slot)
        return len(self._failed_starts) >= STARTS_THAT_MAY_FAIL + self.size

    def _start_failed(self, slot: int, error: BaseException, kind: type[errors.PairpoolError]) -> None:
        if self._is_believed(slot):
            problem = kind(f"no worker could be started in {len(self._failed_starts)} attempts: {error!r}")
            problem.__cause__ = error
            self._give_up(problem)

    def on_down(self, end: SlotEnd) -> None:
        slot = self.scheduler.slots.get(end.slot)
        if slot is None:
            del self.events[0]
            return
        now = self._now()
        for packet in list(slot.packets.values()):
            running, count, lost = None, 0, None
            if packet.ident == end.packet and end.unit >= packet.done:
                running = min(end.unit, packet.count - 1)
                count = running + 1 - packet.done
                lost = self._lost(packet, packet.first + running, end, now)
                if lost is None:
                    running, count = None, 0
            record = Record(packet.first + packet.done, count, OutcomeMode.LOST, [lost])
            self.scheduler.lose(packet, running, record, now)
        if slot.state == "starting" and end.pid is not None:
            unready = errors.WorkerLostError.of(end.pid, end.exitcode, end.why, stack=end.stack)
            self._start_failed(end.slot, unready, errors.InitializerError)
        elif slot.state in ("idle", "busy"):
            self._replace(slot, end, now)
        self.delivered.by_slot.pop(end.slot, None)
        self.limits.forget(end.slot)
        self.scheduler.roster.down(slot, self.events)

    def _replace(self, slot: Slot, end: SlotEnd, now: int) -> None:
        """A worker that was up has died; judges when another takes its place, and whether that is of any use."""
        if not end.in_vain or slot.asleep:  # nobody sleeps as fast as a storm
            self.respawn = Respawn()
            return
        self.respawn.died_in_vain(slot.ident, self.size, now, missed=self._is_missed())
        attempts = self.respawn.barren
        if attempts >= STARTS_THAT_MAY_FAIL + self.size:
            lost = errors.WorkerLostError.of(end.pid, end.exitcode, end.why, stack=end.stack, never="began a task")
            problem = errors.PairpoolError(f"no worker lived to begin a task in {attempts} attempts: {lost}")
            problem.__cause__ = lost
            self._give_up(problem)

    def _is_missed(self) -> bool:
        """Whether units wait while no worker is at work, so that nothing but a new one would begin them."""
        processes, packets = self.processes, self.scheduler.packets.values()
        at_work = processes is not None and any(processes.has_taken(each.slot.ident, each.ident) for each in packets)
        return bool(self.scheduler.waiting) and not at_work

    def _lost(self, packet: Packet, unit: int, end: SlotEnd, now: int) -> errors.PairpoolError | None:
        """The error of a unit that its worker died of, or was killed for; None where it is to run again."""
        source, task, whys = self.source_of(packet.job), "a task", [end.why]
        terms = None if source is None else source.terms_of(unit)
        overran = self.limits.was_killed_for(end.slot, end.packet, end.unit)
        if source is not None:
            tries = not overran or (terms is not None and terms.tries_after_limit)
            if tries and source.fails(unit, packet.ident, died=not overran):
                return None
            task = source.describe(unit)
            whys.append(source.tries.in_words(unit))
        seconds = (now - end.since) / 1e9
        if overran:
            return errors.TimeLimitError.of(0 if terms is None else terms.limit_ns / 1e9, task, seconds, end.stack)
        why = "; ".join(filter(None, whys))
        return errors.WorkerLostError.of(end.pid, end.exitcode, why, task, seconds, end.stack)

    def on_broken(self, error: BaseException) -> None:
        self._give_up(error)
        del self.events[0]

    def _condemn(self, slot: int) -> None:
        """What the first event says cannot be true: the worker that said it is to end."""
        self.engine.condemn(slot)
        del self.events[0]


def _tell_full(worker: Any, used: int, most: int) -> None:
    """On the callback thread."""
    held, limit = (f"{size / 2**20:.1f} MiB" for size in (used, most))
    util.info(f"worker process {worker.pid} is replaced: it holds {held}, over its limit of {limit}")
