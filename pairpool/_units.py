"""The units of one packet, as the runner in a worker runs them: what each is called with, and how it ends."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pairpool._packet import Flag, Mode, Status
from pairpool._strikes import came_from_handler

if TYPE_CHECKING:
    from pairpool._runner import Page, Runner


class Units:
    """The units of one packet."""

    __slots__ = ("_chunk", "_count", "_definition", "_first", "_flags", "_items", "_mode", "_payloads", "_runner",
                 "filters", "shares", "skip_to")  # fmt: skip

    def __init__(
        self, runner: Runner, mode: int, flags: int, count: int, chunk: int, definition: int, first: int, rest: Any
    ) -> None:
        self._runner = runner
        self._mode = mode
        self._flags = flags
        self._count = count
        self._chunk = chunk
        self._definition = definition
        self._first = first
        self._payloads = rest
        self._items: Any = None  # of Mode.SHARED, once loaded
        self.skip_to = 0  # units before this one are not run: an error came before them in their chunk
        self.filters: bytes = b""
        self.shares: list[tuple[int, ...]] | None = None

    @property
    def of_one_job(self) -> bool:
        """Whether one reader decodes all outcomes, so that they may share a payload."""
        return self._mode != Mode.CALLS

    def run_all(self, page: Page, values: list[Any], failures: dict[int, tuple[int, Any]]) -> None:
        """Appends one value for each unit that can be claimed; `failures` says which are none."""
        unit = page.claim()
        direct = self.direct() if unit >= 0 else None
        while unit >= 0:
            value = None
            if direct is not None and unit >= self.skip_to:
                try:
                    page.run(*direct, values)
                    return
                except BaseException as error:
                    unit = len(values)
                    if unit > page.claimed:
                        raise  # by a signal handler, between two units
                    failures[unit] = self.failure(unit, error)
            elif unit < self.skip_to or self._is_nothing(unit):
                failures[unit] = (Status.SKIPPED, b"")
            else:
                try:
                    value = self._guarded_value(unit)
                except BaseException as error:
                    failures[unit] = self.failure(unit, error)
            values.append(value)
            unit = page.claim()

    def direct(self) -> tuple[Callable[[Any], Any], Sequence[Any]] | None:
        """What is called for a unit, and with what; None where some units are not to be run."""
        runner, mode, payloads = self._runner, self._mode, self._payloads
        codec = runner.codec
        if mode != Mode.SHARED and codec.has_nothing(payloads):
            return None
        plain = mode in (Mode.SHARED, Mode.SEPARATE) and not self._flags & (Flag.STAR | Flag.INTERRUPTED)
        if plain and not self.shares:
            # Units so small and quick that one more call of Python for each would double their cost.
            try:
                if runner.keeps(self._definition):
                    items = codec.loads(payloads[0], ()) if mode == Mode.SHARED else codec.loading(payloads)
                    if type(items) is range:
                        items = [*items]  # to make one int after another takes longer
                    return runner.function(self._definition), items
            except BaseException as error:
                if came_from_handler(error):
                    raise  # it is no unit's
        return self._guarded_value, range(self._count)

    def outcome(self, unit: int) -> tuple[int, Any]:
        """Runs one unit and encodes how it ended."""
        if unit < self.skip_to or self._is_nothing(unit):
            return Status.SKIPPED, b""
        try:
            return Status.OK, self._runner.codec.encode_value(self._guarded_value(unit))
        except BaseException as error:
            return self.failure(unit, error)

    def failure(self, unit: int, error: BaseException) -> tuple[int, Any]:
        """How a unit ended that raised this."""
        payload = self._runner.codec.encode_error(error)
        if self.filters and self._is_worth_a_try(unit, error):
            return Status.AGAIN, payload
        # As in the stdlib's Pool the first error of a chunk is the end of it.
        if self._chunk > 1:
            position = self._first + unit
            self.skip_to = position - position % self._chunk + self._chunk - self._first
        return Status.ERROR, payload

    def _is_worth_a_try(self, unit: int, error: BaseException) -> bool:
        (ident,) = struct.unpack_from("<Q", self.filters, 8 * unit if self._mode == Mode.CALLS else 0)
        try:
            return bool(ident) and self._runner.function(ident)(error)
        except BaseException:
            return False  # the filter cannot be loaded here, or cannot tell

    def _guarded_value(self, unit: int) -> Any:
        """As `_value`; what a signal handler raises that interrupts the unit comes out."""
        gate = self._runner.gate
        try:
            gate.armed = True
            if gate.missed:
                gate.look()
            return self._value(unit)
        finally:
            gate.armed = False

    def _value(self, unit: int) -> Any:
        mode, runner = self._mode, self._runner
        codec = runner.codec
        if mode == Mode.SHARED:
            if self._items is None:
                self._items = codec.loads(self._payloads[0], ())
            item = self._items[unit]
            function = runner.function(self._definition)
            return function(*tuple(item)) if self._flags & Flag.STAR else function(item)
        offset = 1 if mode == Mode.CALLS else 0
        descriptors: tuple[int, ...] = ()
        if self.shares:
            descriptors, self.shares[unit] = self.shares[unit], ()
        data = codec.loads(self._payloads[unit + offset], descriptors)
        if mode == Mode.CALLS:
            (definition,) = struct.unpack_from("<Q", self._payloads[0], 8 * unit)
            function, arguments, keywords = (runner.function(definition), *data) if definition else data
            runner.page.running()
            return function(*arguments, **keywords)
        function = runner.function(self._definition)
        runner.page.running()
        if mode == Mode.CHUNKS:
            # Not list(map(...)): that takes a task's StopIteration for the end of the chunk, as the stdlib does.
            star, next_item = self._flags & Flag.STAR, runner.page.next_item
            if self._flags & Flag.LIMITED:
                return [(next_item(), function(*tuple(item)) if star else function(item))[1] for item in data]
            return [function(*tuple(item)) for item in data] if star else [function(item) for item in data]
        # tuple(): for an item that is no arguments the error is worded as itertools.starmap words it, as in the stdlib.
        return function(*tuple(data)) if self._flags & Flag.STAR else function(data)

    def _is_nothing(self, unit: int) -> bool:
        if self._mode == Mode.SHARED:
            return False
        offset = 1 if self._mode == Mode.CALLS else 0
        return self._runner.codec.is_nothing(self._payloads[unit + offset])
