"""One worker process as the parent has it: its channels, its page and outbox, and what its messages mean.

`on_message` and `on_recalled` are handlers of events: they run with the dispatcher's lock held, may be interrupted
anywhere and are then run again, and each removes its event (see _core.py).
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

from pairpool import _channel, _codec, _descriptors, _framing, _slab, errors
from pairpool._cgroup import OomWatch
from pairpool._outbox import Outbox
from pairpool._packet import COMMITTED_HEAD, OUTCOMES_HEAD, PLACED, Kind, OutcomeMode, Reason, Status
from pairpool._page import DUMP_SIGNAL, INTERRUPT_SIGNAL, Mark, Page, Phase
from pairpool._strikes import came_from_handler
from pairpool._zygote import Spawned
from pairpool.engines import NOTHING_KEPT, Event, Handlers, Kept, Outcomes, SlotEnd

_THE_ONE = (OutcomeMode.SEPARATE, 0, 1)  # mode, offset and number of outcomes that are one call's
_NO_STATUS = 256  # more than a byte can say
_CUT_OFF = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)  # plain: an `&` with the module's flags is a microsecond
_UNKNOWN_EXIT_CODE = 255  # what multiprocessing says of a process whose exit code nobody could learn

_new_outcomes: Callable[[tuple[Any, ...]], Outcomes] = partial(tuple.__new__, Outcomes)
"""Makes some; their own `__new__` is Python, and takes half as long again."""


class WorkerHandle:
    """One worker, and the surface that programs look at in `pool._pool`."""

    def __init__(
        self,
        handlers: Handlers,
        slot: int,
        number: int,
        name: str,
        await_spawned: Callable[[WorkerHandle], None],
        condemn: Callable[[int], None],
        on_loss: Callable[[], None],
    ) -> None:
        """`condemn`: has the worker of a slot end because it answers nonsense.

        `on_loss`: is told that outcomes were lost because no descriptor was free to receive them with.
        """
        self.slot = slot
        self.number = number
        self.name = name
        self.known_pid: int | None = None  # once the zygote has told
        self.exitcode: int | None = None
        self.condemned = False  # it answered nonsense, and is to end
        self._handlers = handlers
        self._await_spawned = await_spawned
        self._condemn = condemn
        self._on_loss = on_loss
        self.pidfd: _descriptors.Descriptor | None = None
        self._dumped = 0  # characters of last words that are about something else
        with ExitStack() as undo:  # descriptors or memory may run out at each of these
            self.tasks, self.tasks_worker_end = map(undo.enter_context, _channel.socketpair())
            self.control, self.control_worker_end = map(undo.enter_context, _channel.socketpair())
            self.outbox = undo.enter_context(closing(Outbox.create()))
            self.page = undo.enter_context(closing(Page.create()))
            _descriptors.register(self.tasks, self.tasks_worker_end, self.control, self.control_worker_end)
            undo.pop_all()

    def __repr__(self) -> str:
        state = "started" if self.exitcode is None else f"stopped exitcode={self.exitcode}"
        return f"<{type(self).__name__} name={self.name!r} pid={self.known_pid} {state} daemon>"

    daemon = True

    @property
    def pid(self) -> int | None:
        """Waits until the worker is forked, which takes a moment after `Pool()` has returned."""
        self._await_spawned(self)
        return self.known_pid

    def is_alive(self) -> bool:
        return self.exitcode is None

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self._send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._send_signal(signal.SIGKILL)

    def _send_signal(self, signum: int) -> None:
        self._await_spawned(self)
        self.signal(signum)

    def signal(self, signum: int) -> None:
        """Sends a signal, if there is a process by now, and still."""
        pidfd = self.pidfd
        if pidfd is not None and self.exitcode is None:
            try:
                signal.pidfd_send_signal(pidfd.fileno(), signum)
            except OSError as error:  # it has ended
                if came_from_handler(error):
                    raise

    def descriptors(self) -> tuple[int, ...]:
        """What the worker is given; see _worker.run."""
        ends = (self.tasks_worker_end.fileno(), self.control_worker_end.fileno(), self.outbox.descriptor)
        return (*ends, *self.page.descriptors)

    def spawned(self, reply: Spawned) -> None:
        self.known_pid = reply.pid
        self.pidfd = _descriptors.Descriptor(reply.pidfd)
        _descriptors.register(self.pidfd)
        self.control_worker_end.close()
        self.outbox.drop_descriptor()
        self.page.drop_worker_ends()
        if self.page.has_interrupt():
            self.signal(INTERRUPT_SIGNAL)  # when that was written there was nobody to be told

    def ended(self, exitcode: int | None) -> None:
        """The worker has ended, or never began."""
        self.exitcode = _UNKNOWN_EXIT_CODE if exitcode is None else exitcode

    def end(self, exitcode: int | None, mark: Mark, oom_watch: OomWatch) -> SlotEnd:
        """What there is to tell of its end. `mark`: what it was at."""
        why = ""
        if self.condemned:
            why = "it had answered what cannot be true"
        elif exitcode == -signal.SIGKILL:
            why = oom_watch.verdict()
        packet = mark.packet if mark.begun else None
        # Not of one that ends in any other way, though a signal may have been caught and survived.
        stack = self.page.dump()[self._dumped :].strip() if exitcode is not None and exitcode < 0 else ""
        begun, in_vain = mark.begun - 1, not mark.packet
        return SlotEnd(self.slot, self.known_pid, exitcode, packet, begun, mark.started_ns, why, stack, in_vain)

    def mark(self) -> tuple[int, int, int] | None:
        """The packet and unit that run, and since when in ns; None where none does."""
        mark = self.page.read()
        return (mark.packet, mark.offset, mark.started_ns) if Phase.TAKEN < mark.phase < Phase.DONE else None

    def dump_stack(self) -> None:
        """Has the worker write down what it is doing, if it can."""
        self._dumped = len(self.page.dump())
        self.signal(DUMP_SIGNAL)

    def interrupt(self, mark: tuple[int, int, int], reason: Reason) -> None:
        """Has an exception raised in the unit that `mark` told of, if it still runs."""
        self.page.interrupt(*mark, reason)
        self.signal(INTERRUPT_SIGNAL)

    def close(self) -> None:
        for end in (self.tasks, self.tasks_worker_end, self.control, self.control_worker_end):
            end.close()
        if self.pidfd is not None:
            self.pidfd.close()
        self.page.close()
        self.outbox.close()

    # -- beside packets (dispatcher's lock held) --------------------------------------------------------------

    def forget(self, definition: int) -> None:
        """Tells the worker that it need not keep a definition, where there is room to tell it."""
        self._tell(Kind.FORGET, [definition.to_bytes(8, "little")])

    def rouse(self) -> bool:
        """Has the worker say that it is up; False where there is no room to tell it."""
        return self._tell(Kind.ROUSE, [])

    def _tell(self, kind: int, buffers: Sequence[Any]) -> bool:
        message = _framing.pack(kind, self.slot, buffers)
        try:
            self.control.sendmsg([message], (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            if came_from_handler(error):
                raise
            return False  # the worker has ended, or has not read in a long time
        return True

    def stop(self) -> None:
        """Tells the worker to end when it has nothing to run: by the channel's end, for which there is always room."""
        try:
            self.control.shutdown(socket.SHUT_WR)
        except OSError as error:  # closed: the worker has ended
            if came_from_handler(error):
                raise

    def committed(self, packet: int) -> Outcomes | None:
        """The outcomes of a packet that lie in the outbox; None where there are none to be had."""
        found = self.outbox.peek(packet)
        if found is None:
            return None
        first, units, records = found
        highest = _highest_in_records(records, units)
        if highest > Status.LAST:
            self._condemn(self.slot)
            return None
        again = highest == Status.AGAIN
        return Outcomes(self.slot, packet, OutcomeMode.COMMITTED, first, units, 0, [records], again)

    # -- messages (digested with the dispatcher's lock held; each removes its event) --------------------------

    def answer(self, packet: int, sent: list[Any], heard: deque[Event]) -> tuple[int, Any] | None:
        """As `Processes.exchange`, of what was heard: it may be the outcome with slabs."""
        message, ancillary, flags, _ = heard[0][1]
        try:
            received = _framing.descriptors_of(ancillary)
            kind, ident, buffers = _framing.unpack(message)
            if not received or kind != Kind.OUTCOMES or ident != packet or flags & _CUT_OFF:
                return None
            outcomes = self._outcomes(ident, buffers, received)
        except (errors.FramingError, IndexError, struct.error) as error:
            if came_from_handler(error):
                raise
            return None  # `on_message` says what is wrong, and what follows from it
        descriptors, owners = outcomes.kept
        if outcomes[2:5] != _THE_ONE or len(descriptors) != len(received):
            return None
        owning = map(_descriptors.Owner.fromfd, descriptors)
        # commit
        del heard[0]
        del sent[0]
        owners += owning

        return outcomes.buffers[0][0], outcomes.buffers[1]

    def on_message(self, raw: Any) -> None:
        """Something came from the worker."""
        events = self._handlers.events
        received: tuple[int, ...] = ()
        event: Event | None = None
        try:
            message, received = _framing.admit(raw, some_lost=True)
            event = self._read(message, received, bool(raw[2] & _CUT_OFF))
        except (errors.FramingError, IndexError, struct.error) as error:
            if came_from_handler(error):
                raise
            # Whatever this worker is now, it is no worker of ours: it goes, and the unit that it runs with it.
            self._condemn(self.slot)
        if event is not None and not received:
            handler, argument = event
            handler(argument)
            return
        kept = event[1].kept if event is not None and isinstance(event[1], Outcomes) else NOTHING_KEPT
        closing_all = map(os.close, [each for each in received if each not in kept.descriptors])
        owning, owners = map(_descriptors.Owner.fromfd, kept.descriptors), kept.owners
        if event is None:
            # commit: what is received is closed once, also where this is interrupted and done again
            del events[0]
            _closed = [*closing_all]
        else:
            # commit
            events[0] = event
            owners += owning
            _closed = [*closing_all]

    def _read(self, message: bytes, received: tuple[int, ...], some_lost: bool) -> Event:
        """What a message says. Raises FramingError, IndexError or struct.error where that is nonsense.

        `some_lost`: descriptors that came with it, for want of free ones.
        """
        handlers = self._handlers
        if some_lost and not received:
            ident, head = _channel.head_of_spilled(message)
            if head:
                return handlers.on_outcomes, self._lost(ident, head)
        kind, ident, buffers = _framing.unpack(message)
        if kind == _channel.SPILLED:
            kind, buffers = _channel.fetch(ident, buffers, received)
            received = received[1:]
        if kind == Kind.OUTCOMES:
            return handlers.on_outcomes, self._outcomes(ident, buffers, received, some_lost)
        if kind == Kind.REFUSED:
            return handlers.on_refused, (self.slot, ident, struct.unpack(f"<{len(buffers[0]) // 2}H", buffers[0]))
        if kind == Kind.UNRECEIVED:
            return handlers.on_unreceived, (self.slot, ident)
        if kind == Kind.READY:
            return handlers.on_up, self.slot
        if kind == Kind.FULL:
            return handlers.on_full, (self.slot, self, *struct.unpack("<Q", buffers[0]))
        if kind == Kind.FAILED:
            return handlers.on_failed, (self.slot, _initializer_error(buffers[0]))
        raise errors.FramingError(f"a worker sent a message of kind {kind}")

    def _outcomes(
        self, packet: int, buffers: Sequence[Any], slabs: tuple[int, ...] = (), some_lost: bool = False
    ) -> Outcomes:
        """Reads and checks the outcomes of a packet."""
        mode, offset, units, took = OUTCOMES_HEAD.unpack(buffers[0])
        payloads, kept = buffers[1:], NOTHING_KEPT
        if slabs or some_lost:
            payloads, kept = _with_slabs(buffers[1:-1], buffers[-1], slabs, some_lost)
        highest: int = Status.OK
        if mode == OutcomeMode.SHARED:
            sound = len(payloads) == 1
        elif mode == OutcomeMode.SEPARATE:
            statuses = payloads[0]
            sound = len(payloads) == 1 + units and len(statuses) == units
            highest = statuses[0] if units == 1 else max(statuses, default=highest)
        else:
            sound = False
        if not sound or not units or highest > Status.LAST:
            raise errors.FramingError("malformed outcomes")
        return _new_outcomes((self.slot, packet, mode, offset, units, took, payloads, highest == Status.AGAIN, kept))

    def _lost(self, packet: int, head: Any) -> Outcomes:
        """Outcomes that came in a slab, for which no descriptor was free: those units alone fail."""
        _, offset, units, took = OUTCOMES_HEAD.unpack(head)
        if not units:
            raise errors.FramingError("malformed outcomes")
        self._on_loss()
        return Outcomes(
            self.slot, packet, OutcomeMode.LOST, offset, units, took, [_no_descriptor()], False, NOTHING_KEPT
        )

    def on_recalled(self, raw: Any) -> None:
        """A packet was taken back from the worker's queue."""
        events = self._handlers.events
        try:
            message, received = _framing.admit(raw)
        except errors.FramingError:
            # Descriptors that travelled with it were lost for want of room for them. It is ours all the same.
            message, received = raw[0], ()
        if not message:
            del events[0]  # the end of the channel, not a packet
            return
        _, ident, _ = _framing.unpack(message)
        closing_all = map(os.close, received)
        # commit
        events[0] = (self._handlers.on_came_back, ident)
        _closed = [*closing_all]


def _with_slabs(
    buffers: Sequence[Any], places: Any, slabs: tuple[int, ...], some_lost: bool
) -> tuple[Sequence[Any], Kept]:
    """Statuses and payloads, those with their slabs that came with one, and which descriptors they keep."""
    opened, kept = list(buffers), Kept([], _descriptors.Owners())
    _descriptors.register(kept.owners)
    try:
        rows = [*PLACED.iter_unpack(places)]
        lost = len(rows) - len(slabs)
        if lost < 0 or (lost and not some_lost):
            raise ValueError(f"{len(slabs)} slabs for {len(rows)} results")
        for descriptor, (place, size) in zip((*slabs, *[-1] * lost), rows, strict=True):
            if descriptor >= 0:
                _slab.check(descriptor, size)
            if opened[0][place] != Status.OK or type(opened[1 + place]) is _codec.Arrived:
                raise ValueError(f"nothing that is in a slab has place {place}")
            if descriptor < 0 or _slab.is_high(descriptor):
                arrived = _codec.Arrived(opened[1 + place], [_copied(descriptor, size)], 0, size)
            else:
                arrived = _codec.Arrived(opened[1 + place], kept.owners, len(kept.descriptors), size)
                kept.descriptors.append(descriptor)
            opened[1 + place] = arrived
    except (OSError, ValueError, IndexError, struct.error) as error:
        if came_from_handler(error):
            raise
        raise errors.FramingError(f"a result in a slab that is none: {error}") from error
    return opened, kept


def _copied(descriptor: int, size: int) -> bytearray | BaseException:
    """What is in a slab; why that cannot be had is the error of this result alone."""
    if descriptor < 0:
        return _no_descriptor()
    try:
        return _slab.copy(descriptor, size)
    except (OSError, MemoryError) as error:
        if came_from_handler(error):
            raise
        return error


def _no_descriptor() -> OSError:
    return OSError(errno.EMFILE, "no descriptor was free to receive a large result with")


def _highest_in_records(records: Any, units: int) -> int:
    """The highest status in an outbox's records; more than any where they are not as many as told or do not add up."""
    at, highest = 0, 0
    try:
        for _ in range(units):
            length, status = COMMITTED_HEAD.unpack_from(records, at)
            at += COMMITTED_HEAD.size + length
            highest = max(highest, status)
    except struct.error:  # cut off
        return _NO_STATUS
    return highest if at == len(records) else _NO_STATUS


def _initializer_error(text: Any) -> errors.InitializerError:
    return errors.InitializerError("the pool's initializer raised\n\n" + bytes(text).decode("utf-8", "replace"))
