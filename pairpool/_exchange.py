"""A call into a pool at rest, sent and answered in one step.

Theory of operation
===================
Most of what a call costs is bookkeeping for what may become of it while others wait, workers die and pools shrink.
Where nothing waits or is in flight, and the caller waits for this one outcome, none of that is needed: the call goes
to an idle worker, and if the answer comes within microseconds there is nothing left to record. If it does not come,
the packet is recorded as if it had been scheduled, and everything takes its course.

All of it happens with the dispatcher's lock held, for as long as a waiting caller would have looked for the answer
anyway (the engine's spin). Whoever comes meanwhile waits for the lock, and then finds a pool that is not at rest.
Calls that take more than twice as long are not tried: nobody should look for nothing.

Interruption
============
A packet goes to the engine's outbox in one commit with a note of it in `sent`, which is removed in one step with the
receipt of its answer; any other message of its worker stays in `heard`. Where a signal handler raises in between, the
next digest finds the note and records the packet: its worker is busy, and its answer, or what was heard, is digested
as any other. An answer that was received is the interrupted caller's alone, and goes with him.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pairpool._answers import Answers
from pairpool._calls import Call
from pairpool._states import Sent
from pairpool._strikes import came_from_handler

SHORT = 100_000  # ns that calls may take, by our estimate, so that this is worth trying


_new_sent: Callable[[tuple[Any, ...]], Sent] = partial(tuple.__new__, Sent)
"""Makes one; its own `__new__` is Python, and takes half as long again."""


class Exchange(Answers):
    """A pool's core, with the short way for a single call."""

    def exchange(self, call: Call) -> bool:
        """Sends a call; it may be settled on return. False where it has to be scheduled: then nothing was sent."""
        scheduler, engine, calls = self.scheduler, self.engine, self.calls
        processes = self.processes
        if processes is None or not self.at_rest or self.events or calls.incoming or self.delivered.gone:
            return False
        if calls.plan.unit_ns > SHORT:
            return False
        if scheduler.changed:
            scheduler.roster.file()
        slot = scheduler.roster.warmest()
        if slot is None:
            return False
        body = calls.lone_body(call, self.delivered.by_slot[slot.ident], engine.body_room)
        if body is None:
            return False
        packet = scheduler.next_packet
        try:
            entry, size = engine.entry(slot.ident, packet, body)
        except (OSError, MemoryError) as error:
            if came_from_handler(error):
                raise
            return False
        sent, outbox, entries = self.sent, engine.outbox, (entry,)
        note = (_new_sent((packet, slot, calls.plan, body, size, calls.calls, call)),)
        # commit
        scheduler.next_packet = packet + 1
        self.at_rest = False
        sent += note
        outbox += entries

        answer = processes.exchange(slot.ident, packet, sent, self.heard)
        if answer is None:
            self.adopt_sent()
            return True
        self.at_rest = True
        call.settle(answer[0], answer[1])
        if body.descriptors:
            body.descriptors.close()
        return True
