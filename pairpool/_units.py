"""The units of one packet, as the runner in a worker runs them: what each is called with, and how it ends."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pairpool._framing import NUMBERS
from pairpool._packet import GROUP, Flag, Mode, Status
from pairpool._strikes import came_from_handler

if TYPE_CHECKING:
    from pairpool._runner import Page, Runner


_IDENT: Final = struct.Struct("<Q")
_TOGETHER: Final = frozenset((Mode.SHARED, Mode.GROUPED, Mode.ALIKE))  # items share payloads
_OF_CALLS: Final = frozenset((Mode.CALLS, Mode.ALIKE))


class Units:
    """The units of one packet."""

    __slots__ = ("_before", "_chunk", "_count", "_definition", "_first", "_flags", "_items", "_mode", "_payloads",
                 "_runner", "_together", "filters", "shares", "skip_to")  # fmt: skip

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
        self._together = mode in _TOGETHER
        self._before = 1 if mode == Mode.CALLS else 0  # buffers before the first payload
        self._items: Any = None  # of these, once loaded
        self.skip_to = 0  # units before this one are not run: an error came before them in their chunk
        self.filters: bytes = b""
        self.shares: list[tuple[int, ...]] | None = None

    def may_share(self, values: list[Any]) -> bool:
        """Whether outcomes may share a payload: one reader decodes all, or they can be decoded before anybody asks."""
        return self._mode not in _OF_CALLS or (self._mode == Mode.ALIKE and NUMBERS.issuperset(map(type, values)))

    def run_all(self, page: Page, values: list[Any], apart: dict[int, tuple[int, Any]]) -> None:
        """Appends one value for each unit that can be claimed; `apart` has the outcomes of those that are none.

        A value that may change is encoded before the next unit runs, and is there, too.
        """
        runner = self._runner
        may_wait, encode = runner.codec.may_wait, runner.encode
        unit = page.claim()
        direct = self.direct() if unit >= 0 else None
        while unit >= 0:
            value = None
            if direct is not None and unit >= self.skip_to:
                try:
                    left = page.run(*direct, values)
                    if left is None:
                        return
                    unit = len(values)
                    apart[unit] = encode(*left)
                except BaseException as error:
                    unit = len(values)
                    if unit > page.claimed:
                        raise  # by a signal handler, between two units
                    apart[unit] = self.failure(unit, error)
                left = None  # nobody keeps it longer than a unit
            elif self._is_skipped(unit):
                apart[unit] = (Status.SKIPPED, b"")
            else:
                try:
                    value = self._guarded_value(unit)
                except BaseException as error:
                    apart[unit] = self.failure(unit, error)
                else:
                    if not may_wait(value):
                        apart[unit] = encode(value)
                        value = None
            values.append(value)
            unit = page.claim()

    def direct(self) -> tuple[Callable[[Any], Any], Sequence[Any]] | None:
        """What is called for a unit, and with what; None where some units are not to be run."""
        runner, together, payloads = self._runner, self._together, self._payloads
        codec = runner.codec
        if not together and codec.has_nothing(payloads):
            return None
        plain = (together or self._mode == Mode.SEPARATE) and not self._flags & Flag.INTERRUPTED
        if plain and not self.shares:
            # Units so small and quick that one more call of Python for each would double their cost.
            try:
                if runner.keeps(self._definition):
                    items = self._load_items() if together else codec.loading(payloads)
                    function = runner.function(self._definition)
                    return partial(_call_with, function) if self._flags & Flag.STAR else function, items
            except BaseException as error:
                if came_from_handler(error):
                    raise  # it is no unit's
        return self._guarded_value, range(self._count)

    def _load_items(self) -> Sequence[Any]:
        loads, payloads = self._runner.codec.loads, self._payloads
        if self._mode != Mode.GROUPED:
            items: Sequence[Any] = loads(payloads[0], ())
            return [*items] if type(items) is range else items  # to make one int after another takes longer
        skip = self._first % GROUP
        return [item for data in payloads for item in loads(data, ())][skip : skip + self._count]

    def outcome(self, unit: int) -> tuple[int, Any]:
        """Runs one unit and encodes how it ended."""
        if self._is_skipped(unit):
            return Status.SKIPPED, b""
        try:
            return Status.OK, self._runner.codec.encode_value(self._guarded_value(unit))
        except BaseException as error:
            return self.failure(unit, error)

    def _is_skipped(self, unit: int) -> bool:
        if self._together:
            return unit < self.skip_to
        return unit < self.skip_to or self._runner.codec.is_nothing(self._payloads[unit + self._before])

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
        (ident,) = _IDENT.unpack_from(self.filters, 8 * unit if self._mode == Mode.CALLS else 0)
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
        if self._together:
            if self._items is None:
                self._items = self._load_items()
            item = self._items[unit]
            if mode == Mode.GROUPED:
                self._items[unit] = None  # what the function adds to it goes with it
            function = runner.function(self._definition)
            return _call_with(function, item) if self._flags & Flag.STAR else function(item)
        descriptors: tuple[int, ...] = ()
        if self.shares:
            descriptors, self.shares[unit] = self.shares[unit], ()
        data = codec.loads(self._payloads[unit + self._before], descriptors)
        if mode == Mode.CALLS:
            (definition,) = _IDENT.unpack_from(self._payloads[0], 8 * unit)
            function, arguments, keywords = (runner.function(definition), *data) if definition else data
            runner.page.running()
            return function(*arguments, **keywords)
        function = runner.function(self._definition)
        runner.page.running()
        if mode == Mode.CHUNKS:
            # Not list(map(...)): that takes a task's StopIteration for the end of the chunk, as the stdlib does.
            star, next_item = self._flags & Flag.STAR, runner.page.next_item
            if self._flags & Flag.LIMITED:
                return [(next_item(), _call_with(function, item) if star else function(item))[1] for item in data]
            return [_call_with(function, item) for item in data] if star else [function(item) for item in data]
        return _call_with(function, data) if self._flags & Flag.STAR else function(data)


def _call_with(function: Callable[..., Any], item: Iterable[Any]) -> Any:
    # tuple(): for an item that is no arguments the error is worded as itertools.starmap words it, as in the stdlib.
    return function(*tuple(item))
