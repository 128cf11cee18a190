"""One worker process as the parent has it: its channels, its page and outbox, and what its messages mean.

`on_message` and `on_recalled` are handlers of events: they run with the dispatcher's lock held, may be interrupted
anywhere and are then run again, and each removes its event (see _core.py).
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Sequence
from typing import Any

from pairpool import _channel, _descriptors, _framing, errors
from pairpool._outbox import Outbox
from pairpool._packet import COMMITTED_HEAD, OUTCOMES_HEAD, Kind, OutcomeMode
from pairpool._page import Page
from pairpool._zygote import Spawned
from pairpool.engines import Handlers, Outcomes


class WorkerHandle:
    """One worker, and the surface that programs look at in `pool._pool`."""

    def __init__(
        self, handlers: Handlers, slot: int, number: int, name: str, await_spawned: Callable[[WorkerHandle], None]
    ) -> None:
        self.slot = slot
        self.number = number
        self.name = name
        self.known_pid: int | None = None  # once the zygote has told
        self.exitcode: int | None = None
        self._handlers = handlers
        self._await_spawned = await_spawned
        self.pidfd: _descriptors.Descriptor | None = None
        self.tasks, self.tasks_worker_end = _channel.socketpair()
        self.control, self.control_worker_end = _channel.socketpair()
        self.outbox = Outbox.create()
        self.page = Page.create()
        _descriptors.register(self.tasks, self.tasks_worker_end, self.control, self.control_worker_end)

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
        pidfd = self.pidfd
        if pidfd is not None and self.exitcode is None:
            try:
                signal.pidfd_send_signal(pidfd.fileno(), signum)
            except (ProcessLookupError, OSError):
                pass  # it has ended

    def descriptors(self) -> tuple[int, ...]:
        """What the worker is given; see _worker.run."""
        ends = (self.tasks_worker_end.fileno(), self.control_worker_end.fileno(), self.outbox.descriptor)
        return (*ends, *self.page.descriptors)

    def spawned(self, reply: Spawned) -> None:
        self.known_pid = reply.pid
        self.pidfd = _descriptors.Descriptor(reply.pidfd)
        _descriptors.register(self.pidfd)
        self.control_worker_end.close()
        self.page.drop_worker_ends()

    def close(self) -> None:
        for end in (self.tasks, self.tasks_worker_end, self.control, self.control_worker_end):
            end.close()
        if self.pidfd is not None:
            self.pidfd.close()
        self.page.close()
        self.outbox.close()

    # -- messages (digested with the dispatcher's lock held; each removes its event) --------------------------

    def on_message(self, raw: Any) -> None:
        """Something came from the worker."""
        handlers = self._handlers
        events = handlers.events
        try:
            message, received = _framing.admit(raw)
            kind, ident, buffers, _ = _channel.decode(message, received)
            argument: Any
            if kind == Kind.OUTCOMES:
                handler, argument = handlers.on_outcomes, self._outcomes(ident, buffers)
            elif kind == Kind.REFUSED:
                handler, argument = handlers.on_refused, (ident, buffers[0])
            elif kind == Kind.READY:
                handler, argument = handlers.on_up, self.slot
            elif kind == Kind.FAILED:
                handler, argument = handlers.on_failed, (self.slot, _initializer_error(buffers[0]))
            else:
                raise errors.FramingError(f"a worker sent a message of kind {kind}")
        except (errors.FramingError, IndexError):
            # Whatever this worker is now, it is no worker of ours: it goes, and the unit that it runs with it.
            self.kill()
            del events[0]
            return
        if received:
            closing = map(os.close, received)
            # commit: what is received is closed once, also where this is interrupted and done again
            events[0] = (handler, argument)
            _closed = [*closing]
            return
        handler(argument)

    def _outcomes(self, packet: int, buffers: Sequence[Any]) -> Outcomes:
        """Reads and checks the outcomes of a packet."""
        try:
            mode, offset, count, took = OUTCOMES_HEAD.unpack(buffers[0])
            payloads = buffers[1:]
            if mode == OutcomeMode.SHARED:
                sound = len(payloads) == 1
            elif mode == OutcomeMode.SEPARATE:
                sound = len(payloads) == 1 + count and len(payloads[0]) == count
            else:
                sound = mode == OutcomeMode.COMMITTED and len(payloads) == 1 and _records_are_sound(payloads[0], count)
        except (struct.error, IndexError) as error:
            raise errors.FramingError(f"malformed outcomes: {error}") from None
        if not sound or not count:
            raise errors.FramingError("malformed outcomes")
        return Outcomes(self.slot, packet, mode, offset, count, took, payloads)

    def on_recalled(self, raw: Any) -> None:
        """A packet was taken back from the worker's queue."""
        events = self._handlers.events
        message, received = _framing.admit(raw)
        if not message:
            del events[0]  # the end of the channel, not a packet
            return
        _, ident, _ = _framing.unpack(message)
        closing = map(os.close, received)
        # commit
        events[0] = (self._handlers.on_came_back, ident)
        _closed = [*closing]


def _records_are_sound(records: Any, count: int) -> bool:
    """Whether an outbox's records are as many as told and add up to what there is."""
    at = 0
    for _ in range(count):
        length, _ = COMMITTED_HEAD.unpack_from(records, at)
        at += COMMITTED_HEAD.size + length
    return at == len(records)


def _initializer_error(text: Any) -> errors.InitializerError:
    return errors.InitializerError("the pool's initializer raised\n\n" + bytes(text).decode("utf-8", "replace"))
