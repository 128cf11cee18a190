"""The jobs of a pool as the dispatcher keeps them: where units come from and where their outcomes go.

Two kinds. The *calls* (apply, submit; _calls.py): one endless job a pool, to which each call adds one unit. A *batch*
(the map family): one job a call, whose units come either straight from a list or range of plain values, pickled
when a packet is built, or from a feeder, which runs the caller's iterable and reducers where that is allowed
(see _feeder.py) and leaves payloads here.

`build` and `digest` run with the dispatcher's lock held: no code of the user's runs in them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from pairpool import _states
from pairpool._body import Body, are_bytes, fitting, pack_body, riding, takes
from pairpool._codec import Definition, DefinitionKind, Need, Payload, Shared
from pairpool._pacing import MAX_UNITS
from pairpool._packet import Flag, Mode
from pairpool._prepared import Prepared
from pairpool._record import Record
from pairpool._refusals import fall_back_definitions, fallen_back
from pairpool._terms import Terms, Tries

numbers = itertools.count(1)  # of jobs
NO_DEFINITION = Definition(0, DefinitionKind.NAMED, Payload(b""))  # of a batch that is over, or cannot be sent


class Encoder(Protocol):
    """The caller's half of a codec (see _codec.py and _objects.py)."""

    @property
    def nothing(self) -> Payload | bytes:
        """The payload of a unit that is not to be run."""

    @property
    def trim_at(self) -> int | None:
        """When to `trim`, in ns of the monotonic clock; None where there is no need."""

    def trim(self) -> None:
        """Gives back memory that is kept for later and was not used."""

    def definition(self, function: Callable[..., Any]) -> Definition: ...
    def share(self, obj: Any) -> Shared: ...
    def empty(self, shape: Any, dtype: Any) -> Shared: ...
    def call(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Definition | None, Payload | bytes]: ...
    def definition_of_plain(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Definition | None:
        """Of a call whose arguments may be pickled later, with others'; None where one could tell."""

    def dumps_arguments(self, arguments: tuple[Any, ...]) -> bytes: ...
    def dumps_each(self, values: Any, payloads: list[Any]) -> None: ...
    def dumps_together(self, values: list[Any]) -> Any: ...
    def dumps_atoms(self, items: Sequence[Any]) -> Any: ...
    def is_atoms(self, items: Any) -> bool: ...
    def accept(self, needs: Any) -> None: ...
    def refuse(self, needs: Any) -> None: ...
    def dumps_needs(self, needs: Any) -> Any: ...
    def decode_value(self, data: Any) -> Any: ...
    def decode_plain(self, data: Any) -> Any: ...
    def decode_numbers(self, data: Any) -> Any: ...
    def are_plain(self, payloads: Any) -> bool: ...
    def size_of_large(self, payloads: Any) -> int: ...
    def decode_error(self, data: Any) -> BaseException: ...


class BatchSink(Protocol):
    """Takes the outcomes of a batch. No method runs code of the user's."""

    def take(self, record: Record, records: deque[Record]) -> int | None:
        """Takes a record, the first of `records`, and removes it there in its commit.

        Returns the unit of the first error in it.
        """

    def progress(self) -> None:
        """Wakes whoever waits. Idempotent."""

    def finish(self) -> None:
        """Every outcome is there. Idempotent."""

    def fail(self, error: BaseException) -> None:
        """No more outcomes will come. Idempotent."""


class BatchJob:
    """One call of the map family."""

    def __init__(
        self,
        encoder: Encoder,
        definition: Definition,
        sink: BatchSink,
        *,
        items: Sequence[Any] | None,
        unit: int,
        chunk: int,
        star: bool,
        visible: bool,
        terms: Terms | None = None,
    ) -> None:
        """`items`: a list, tuple or range of plain values, or None where a feeder brings payloads.

        `unit`: items a unit; `chunk`: items a chunk where units are single items, 1 = an error is only its own item's.
        """
        unit_ns = definition.item_ns * unit
        self.plan = _states.Job(next(numbers), visible=visible, unit_ns=unit_ns, grown=MAX_UNITS if unit_ns else 1)
        self.ident = self.plan.ident
        self.definition = definition
        self.sink = sink
        self.chunk = chunk
        self.unit = unit
        self.terms = terms
        self.tries = Tries()
        self.unreceived: dict[int, int] = {}  # units that a worker could not receive, and the packet
        self.items = items
        self.records: deque[Record] = deque()  # outcomes not yet handed to the sink
        self.prepared = Prepared()
        self.digesting = False  # what is under way cannot be told at the moment
        self._encoder = encoder
        self._definitions = [definition]
        self._limit_ns = 0 if terms is None else terms.first_limit_ns
        self._filters: list[int] = []
        if terms is not None and terms.filter is not None:
            self._definitions.append(terms.filter)
            self._filters.append(terms.filter.ident)
        self._flags = (Flag.STAR if star else 0) | (Flag.VISIBLE if visible else 0)
        if terms is not None and terms.soft_limit_ns:
            self._flags |= Flag.INTERRUPTED
        self._unit_bytes = 0  # of the latest packet
        self.length = -(-len(items) // unit) if items is not None else 0

    def build(self, first: int, limit: int, known: set[int], room: int) -> Body:
        failures = self.prepared.failures
        if failures:
            fails = first in failures
            limit = next((n for n in range(1, limit) if (first + n in failures) is not fails), limit)
            if fails:  # it goes without the function, which may be what cannot be sent
                return self._pack(self._own_mode, first, (), [self._encoder.nothing] * limit, None)
        definitions = riding(known, self._definitions, ())
        for definition in definitions:
            room -= takes(definition.payload)
        if self.items is None:
            return self._build_prepared(first, limit, definitions, known, room)
        if self._unit_bytes:
            limit = max(1, min(limit, room // self._unit_bytes))
        if self.unit == 1:
            mode = Mode.SHARED
            data = self._encoder.dumps_atoms(self.items[first : first + limit])
            if isinstance(data, bytes):
                self._unit_bytes = max(self._unit_bytes, -(-len(data) // limit))
                if len(data) > room and limit > 1:
                    limit = max(1, limit * room // len(data) // 2)
                    data = self._encoder.dumps_atoms(self.items[first : first + limit])
            payloads: list[Payload | bytes] = [Payload(data)]
        else:
            mode = Mode.CHUNKS
            payloads = []
            for number in range(first, first + limit):
                data = self._encoder.dumps_atoms(self.items[number * self.unit : (number + 1) * self.unit])
                room -= len(data) + 8 if isinstance(data, bytes) else 0
                if room < 0 and payloads:
                    limit = len(payloads)
                    break
                payloads.append(Payload(data))
        return self._pack(mode, first, definitions, payloads, limit)

    def _build_prepared(
        self, first: int, limit: int, definitions: Sequence[Definition], known: set[int], room: int
    ) -> Body:
        together, units = self.prepared.together(first, limit, room)
        if together:
            return self._pack(Mode.GROUPED, first, definitions, together, units)
        payloads = fitting(self.prepared.separate(first, limit, self._encoder.nothing), room, known)
        if not are_bytes(payloads):
            definitions = riding(known, definitions, payloads)
        return self._pack(self._own_mode, first, definitions, payloads, None)

    @property
    def _own_mode(self) -> int:
        """Of units each of which has a payload."""
        return Mode.SEPARATE if self.unit == 1 else Mode.CHUNKS

    def _pack(
        self,
        mode: int,
        first: int,
        definitions: Sequence[Definition],
        payloads: Sequence[Payload | bytes],
        units: int | None,
    ) -> Body:
        return pack_body(
            self._encoder,
            mode,
            self._flags,
            self.chunk,
            self.definition.ident,
            first,
            definitions,
            [],
            payloads,
            units,
            self._filters,
            self._limit_ns,
        )

    def digest(self) -> list[int]:
        """Hands the recorded outcomes to the sink; returns units that ended in an error."""
        failed = []
        self.digesting = True
        while self.records:
            record = self.records[0]
            self.prepared.settle(record.first, record.units)
            error = self.sink.take(record, self.records)
            if error is not None:
                failed.append(error)
        self.digesting = False
        return failed

    def fall_back(self, first: int, count: int, refused: Collection[Need]) -> None:
        """A worker refused these units: from now on they travel by value, or fail where they cannot."""
        problem = fall_back_definitions(self._definitions, refused)
        for unit in range(first, first + count):
            payload = self.prepared.payloads.get(unit)
            instead = problem or fallen_back(payload, refused)
            if isinstance(instead, Payload):
                instead = fall_back_definitions(instead.uses, refused) or instead
            if isinstance(instead, BaseException):
                self.prepared.fail(unit, instead)
            elif instead is not payload:
                self.prepared.replace(unit, instead)

    def terms_of(self, _: int) -> Terms | None:
        """What was agreed for a unit."""
        return self.terms

    def fails(self, unit: int, packet: int, *, died: bool) -> bool:
        """A unit failed, or killed its worker, with this packet; returns whether it is to run again."""
        return self.tries.fail(self.terms, unit, packet, died=died)

    def describe(self, unit: int) -> str:
        """What a unit runs, for people."""
        name, size = self.definition.name, self.unit
        return f"{name} for item {unit}" if size == 1 else f"{name} for items {unit * size} to {unit * size + size - 1}"

    def refuse(self, first: int, count: int, error: BaseException) -> None:
        """These units cannot be sent: they travel as nothing, and end with `error`."""
        for unit in range(first, first + count):
            self.prepared.fail(unit, error)

    def close(self) -> None:
        """Drops whatever has not been sent, and keeps in mind what an item takes."""
        if self.definition is not NO_DEFINITION:
            self.definition.item_ns = self.plan.unit_ns // self.unit or self.definition.item_ns
        self.prepared.clear()
        self._definitions, self.definition = [], NO_DEFINITION  # workers may forget them, though results hold the job
