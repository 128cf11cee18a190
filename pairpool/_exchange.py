"""A call into a pool at rest, sent and answered in one step.

Theory of operation
===================
Most of what a call costs is bookkeeping for what may become of it while others wait, workers die and pools shrink.
Where nothing waits or is in flight, and the caller waits for this one outcome, none of that is needed: the call goes
to an idle worker, and if the answer comes within microseconds there is nothing left to record. If it does not come,
the packet is recorded as if it had been scheduled, and everything takes its course.

All of it happens with the dispatcher's lock held, for as long as a waiting caller would have looked for the answer
anyway (the engine's spin). Whoever comes meanwhile waits for the lock, and then finds a pool that is not at rest.
Calls that take longer than that are not tried.

Interruption
============
Before the packet is sent its number is used up. An exception that a signal handler raises between then and the record
leaves a packet that nobody knows of: it runs once, as any call whose caller was interrupted does, and what is answered
to a number that nobody knows is dropped.
"""

from __future__ import annotations

from pairpool._answers import Answers
from pairpool._jobs import Call
from pairpool._packet import OutcomeMode

THE_ONE = (OutcomeMode.SEPARATE, 0, 1)  # mode, offset and number of outcomes that are one call's
SHORT = 25_000  # ns that calls may take, by our estimate, so that this is worth trying


class Exchange(Answers):
    """A pool's core, with the short way for a single call."""

    def exchange(self, call: Call) -> bool:
        """Sends a call; it may be settled on return. False where it has to be scheduled: then nothing was sent."""
        scheduler, engine, calls = self.scheduler, self.engine, self.calls
        if not self.at_rest or self.events or calls.incoming or self._dropped or calls.plan.unit_ns > SHORT:
            return False
        if scheduler.changed:
            scheduler.roster.file()
        slot = scheduler.roster.warmest()
        if slot is None:
            return False
        body = calls.lone_body(call, self._known[slot.ident], engine.body_room)
        if body is None:
            return False
        packet = scheduler.next_packet
        try:
            entry, size = engine.entry(slot.ident, packet, body)
        except (OSError, MemoryError):
            return False
        scheduler.next_packet = packet + 1
        outcomes = engine.exchange(slot.ident, packet, entry)
        if outcomes is not None and outcomes[2:5] == THE_ONE:
            call.sink.settle(outcomes.buffers[0][0], outcomes.buffers[1])
            return True
        scheduler.adopt(packet, slot, calls.plan, body, size, self._now(), calls.calls, call)
        if outcomes is not None:
            self.events.append((self.on_outcomes, outcomes))
        return True
