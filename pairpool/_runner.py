"""Runs the units of a packet, one after another, and says how each ended. The same on every engine.

Order of steps for a unit: it is *claimed* (from then on it is this worker's, and the page shows it), its
payload is loaded, it runs, its outcome is encoded, and, where outcomes are awaited one by one, *committed* to
the outbox, from which the parent can read it also when this worker hangs in the next unit or dies.

User code runs here and may raise anything: every BaseException becomes the outcome of its unit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pairpool import errors
from pairpool._packet import DEFINITION_HEAD, OUTCOMES_HEAD, TASKS_HEAD, Flag, Kind, OutcomeMode, Status, deal
from pairpool._units import Units

# How a definition is treated (values of _codec.DefinitionKind).
NAMED, BY_VALUE, STATEFUL = 0, 1, 2

_STATUSES = [bytes([status]) for status in range(Status.LAST + 1)]


class Codec(Protocol):
    """The worker's half of a codec."""

    def refused(self, needs: Any) -> Any:
        """Which of the needs this worker has otherwise; empty where all are there."""

    def loads(self, data: Any, descriptors: Sequence[int]) -> Any: ...
    def kept(self, data: Any) -> Any:
        """A payload that is to be kept, without the message that it came in, which may be large."""

    def is_nothing(self, data: Any) -> bool: ...
    def has_nothing(self, payloads: Sequence[Any]) -> bool: ...
    def loading(self, payloads: Sequence[Any]) -> Any:
        """What is in payloads without descriptors; each is loaded when it is asked for."""

    def may_wait(self, value: Any) -> bool:
        """Whether nobody can tell if it is encoded later, and with others."""

    def encode_values(self, values: list[Any]) -> Any:
        """All values that may wait, in one payload."""

    def encode_value(self, value: Any) -> Any: ...
    def encode_error(self, error: BaseException) -> Any: ...
    def portions(self, payloads: list[Any]) -> list[int]:
        """How many of what was encoded go into each message."""


class Page(Protocol):
    """Where a worker shows what it is doing (see _page.py)."""

    def begin(self, packet: int, count: int) -> None: ...
    def claim(self) -> int: ...
    @property
    def claimed(self) -> int:
        """The unit that was claimed last."""

    def run(self, function: Callable[[Any], Any], items: Sequence[Any], values: list[Any]) -> tuple[Any] | None:
        """Runs units; returns the value of one that is to be encoded before the next is claimed."""

    def running(self) -> None: ...
    def next_item(self) -> None: ...
    def done(self) -> None: ...


class Outbox(Protocol):
    """Where outcomes are committed (see _outbox.py)."""

    def begin(self, packet: int, first: int = 0) -> None: ...
    def append(self, status: int, data: Any) -> bool:
        """False where there is no room for it, or it is too large to be copied once more."""

    def run(self, page: Any, function: Any, items: Any, values: list[Any]) -> tuple[Any] | None:
        """Runs and commits units; returns the value of one that it does not commit."""

    @property
    def next_unit(self) -> int: ...

    def take(self) -> tuple[int, bytes, list[Any]]:
        """First unit, statuses and payloads of what is committed and not yet sent."""

    def clear(self) -> None: ...


class Gate:
    """Whether what a signal handler raises now becomes the outcome of the unit that runs."""

    armed = False
    missed = False  # a signal came while it was not

    def look(self) -> None:
        """Raises what was missed, if it is meant for the unit that runs."""


Send = Callable[[int, int, Sequence[Any]], None]


class Runner:
    """What one worker keeps between packets: the definitions that it was given."""

    def __init__(
        self,
        codec: Codec,
        page: Page,
        outbox: Outbox | None,
        send: Send,
        gate: Gate | None = None,
        look: Callable[[], None] | None = None,
    ) -> None:
        """`gate`: None where nothing is interrupted.

        `look`: called between the units of a packet whose outcomes are committed one by one.
        """
        self.gate = gate or Gate()
        self.codec = codec
        self.page = page
        self._outbox = outbox
        self._send = send
        self._look = look
        self._definitions: dict[int, tuple[int, Any, tuple[int, ...]]] = {}
        self._functions: dict[int, Callable[..., Any]] = {}  # loaded; never those that carry state

    def forget(self, idents: Sequence[int]) -> None:
        for ident in idents:
            _, _, descriptors = self._definitions.pop(ident, (0, b"", ()))
            _close(descriptors)
            self._functions.pop(ident, None)

    def run(self, ident: int, buffers: Sequence[Any], descriptors: tuple[int, ...]) -> None:
        """Runs one packet and sends its outcomes, or that it is refused."""
        mode, flags, n_definitions, count, chunk, definition, first = TASKS_HEAD.unpack(buffers[0])
        at = 1
        shares: list[tuple[int, ...]] | None = None
        if flags & Flag.DESCRIPTORS:
            shares = deal(descriptors, buffers[at])
            at += 1
        if flags & Flag.NEEDS:
            refused = self.codec.refused(buffers[at])
            at += 1
            if refused:
                _close(descriptors)
                self._send(Kind.REFUSED, ident, [refused])
                return
        for number in range(n_definitions):
            name, kind = DEFINITION_HEAD.unpack(buffers[at])
            share = shares[number] if shares else ()
            if name in self._definitions:
                _close(share)  # it rides on each packet until the first has been answered
            else:
                self._definitions[name] = (kind, self.codec.kept(buffers[at + 1]), share)
            at += 2
        filters = b""
        if flags & Flag.RETRIES:
            filters = buffers[at]
            at += 1
        packet = Units(self, mode, flags, count, chunk, definition, first, buffers[at:])
        packet.filters = filters
        if shares:
            packet.shares = shares[n_definitions:]
        started = time.monotonic_ns()
        self.page.begin(ident, count)
        if not flags & Flag.VISIBLE:
            self._run_collecting(ident, packet, started)
        elif self._outbox is None or count == 1:
            self._run_singly(ident, packet, started)
        else:
            self._run_committing(ident, packet, self._outbox, started)
        self.page.done()
        for share in packet.shares or ():
            _close(share)  # of units that were not run here

    def keeps(self, ident: int) -> bool:
        """Whether a definition is loaded once and for all."""
        return self._definitions[ident][0] != STATEFUL

    def function(self, ident: int) -> Callable[..., Any]:
        """The callable of a definition: the one kept, or loaded now; anew each time where it carries state."""
        try:
            return self._functions[ident]
        except KeyError:
            kind, data, descriptors = self._definitions[ident]
            # Loading takes them, and it may be loaded again: where it carries state, and where this fails.
            function: Callable[..., Any] = self.codec.loads(data, tuple(map(os.dup, descriptors)))
            if kind != STATEFUL:
                self._functions[ident] = function
                self._definitions[ident] = (kind, b"", ())
                _close(descriptors)
            return function

    def shared(self, ident: int) -> Any:
        """The shared object of a definition."""
        if ident not in self._definitions:
            raise errors.PairpoolError("a shared object was unpickled after it was closed")
        return self.function(ident)

    def _run_collecting(self, ident: int, packet: Units, started: int) -> None:
        """Runs all units that can be claimed, then sends all outcomes, in one message where they fit."""
        values: list[Any] = []
        apart: dict[int, tuple[int, Any]] = {}
        packet.run_all(self.page, values, apart)
        if not values:
            return  # the parent took all of it back before the first was claimed
        number = len(values)
        if not apart:
            shared = self.codec.encode_values(values)
            head = OUTCOMES_HEAD.pack(OutcomeMode.SHARED, 0, number, time.monotonic_ns() - started)
            self._send(Kind.OUTCOMES, ident, [head, shared])
            return
        statuses = bytearray(number)
        payloads: list[Any] = []
        for unit, value in enumerate(values):
            outcome = apart.get(unit)
            statuses[unit], payload = outcome if outcome is not None else self.encode(value)
            payloads.append(payload)
        took = time.monotonic_ns() - started
        first = 0
        for portion in self.codec.portions(payloads):
            after = first + portion
            head = OUTCOMES_HEAD.pack(OutcomeMode.SEPARATE, first, portion, took * portion // number)
            self._send(Kind.OUTCOMES, ident, [head, bytes(statuses[first:after]), *payloads[first:after]])
            first = after

    def _run_singly(self, ident: int, packet: Units, started: int) -> None:
        """Runs unit by unit and sends each outcome before the next is claimed."""
        claim = self.page.claim
        while (unit := claim()) >= 0:
            status, payload = packet.outcome(unit)
            now = time.monotonic_ns()
            head = OUTCOMES_HEAD.pack(OutcomeMode.SEPARATE, unit, 1, now - started)
            self._send(Kind.OUTCOMES, ident, [head, _STATUSES[status], payload])
            started = now

    def _run_committing(self, ident: int, packet: Units, outbox: Outbox, started: int) -> None:
        """Runs unit by unit and commits each outcome before the next is claimed."""
        outbox.begin(ident)
        page, look, codec = self.page, self._look, self.codec
        values: list[Any] = []  # of the committed outcomes, those that may share a payload
        unit = page.claim()
        direct = packet.direct() if unit >= 0 and look is None else None
        while unit >= 0:
            left: tuple[Any] | None = None
            if direct is None or unit < packet.skip_to:
                status, payload = packet.outcome(unit)
            else:
                try:
                    left = outbox.run(page, *direct, values)
                    if left is None:
                        break
                    status, payload = Status.OK, codec.encode_value(*left)
                except BaseException as error:
                    if outbox.next_unit > page.claimed:
                        raise  # by a signal handler, between two units
                    status, payload = packet.failure(outbox.next_unit, error)
            left = None  # whatever it is, nobody keeps it longer than a unit
            if not outbox.append(status, payload):
                started = self._send_apart(ident, packet, outbox, started, status, payload, values)
            if look is not None:
                del payload
                look()
            unit = page.claim()
        self._send_committed(ident, packet, outbox, time.monotonic_ns() - started, values)

    def _send_apart(
        self, ident: int, packet: Units, outbox: Outbox, started: int, status: int, payload: Any, values: list[Any]
    ) -> int:
        """Sends what is committed, and an outcome for which there was no room; returns when that was."""
        now = time.monotonic_ns()
        self._send_committed(ident, packet, outbox, now - started, values)
        if not outbox.append(status, payload):
            unit = outbox.next_unit
            head = OUTCOMES_HEAD.pack(OutcomeMode.SEPARATE, unit, 1, 0)
            self._send(Kind.OUTCOMES, ident, [head, _STATUSES[status], payload])
            outbox.begin(ident, unit + 1)
        return now

    def _send_committed(self, ident: int, packet: Units, outbox: Outbox, took: int, values: list[Any]) -> None:
        first, statuses, payloads = outbox.take()
        if payloads:
            if len(values) == len(payloads) and packet.may_share(values):
                # Who decodes them has a third of the work where they are one list.
                head = OUTCOMES_HEAD.pack(OutcomeMode.SHARED, first, len(payloads), took)
                self._send(Kind.OUTCOMES, ident, [head, self.codec.encode_values(values)])
            else:
                head = OUTCOMES_HEAD.pack(OutcomeMode.SEPARATE, first, len(payloads), took)
                self._send(Kind.OUTCOMES, ident, [head, statuses, *payloads])
            # Only now: had the worker died in between, the parent would know them from the outbox.
            outbox.clear()
            values.clear()

    def encode(self, value: Any) -> tuple[int, Any]:
        """Encodes a value; where that fails it ends in the error."""
        try:
            return Status.OK, self.codec.encode_value(value)
        except BaseException as error:
            return Status.ERROR, self.codec.encode_error(error)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
