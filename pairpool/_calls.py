"""The calls of a pool (apply, submit) as the dispatcher keeps them: one endless job, to which each adds a unit.

`build` and `digest` run with the dispatcher's lock held: no code of the user's runs in them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

from pairpool import _states
from pairpool._body import Body, pack_body, riding, table, takes
from pairpool._bounds import Pending
from pairpool._codec import Definition, Need, Payload
from pairpool._descriptors import NONE_OWNED
from pairpool._jobs import numbers
from pairpool._packet import TASKS_HEAD, Flag, Mode, OutcomeMode, Status
from pairpool._record import Record
from pairpool._refusals import fall_back_definitions, fallen_back
from pairpool._strikes import came_from_handler
from pairpool._terms import Terms, Tries

if TYPE_CHECKING:
    from pairpool._jobs import Encoder

_NONE_RIDE: frozenset[int] = frozenset()
_NAMELESS = bytes(8)
# Calls are in no chunk, so nobody asks for the number of the first.
_LONE_HEAD = TASKS_HEAD.pack(Mode.CALLS, Flag.VISIBLE, 0, 1, 0, 0, 0)
_LONE_HEAD_WITH_DESCRIPTORS = TASKS_HEAD.pack(Mode.CALLS, Flag.VISIBLE | Flag.DESCRIPTORS, 0, 1, 0, 0, 0)

_new_body: Callable[[tuple[Any, ...]], Body] = partial(tuple.__new__, Body)
"""Makes one; its own `__new__` is Python, and takes half as long again."""


class Call:
    """One call: what is sent for it, and whoever takes its outcome (what callers hold: see results.py).

    One object and not two, since who has many calls under way pays for each object, and the garbage collector too.
    """

    _definition: Definition | None = None
    # Pickled; or the arguments, where nobody can tell when they are; or why they could not be.
    _payload: Payload | bytes | tuple[Any, ...] | BaseException = b""
    _terms: Terms | None = None
    _pending: Pending | None = None  # which counts it

    def _carry(
        self,
        definition: Definition | None,
        payload: Payload | bytes | tuple[Any, ...] | BaseException,
        terms: Terms | None = None,
        pending: Pending | None = None,
    ) -> None:
        """Says what is sent for it."""
        self._definition = definition
        self._payload = payload
        self._terms = terms
        if pending is not None:
            self._pending = pending
            pending.add(self, payload)

    def begin(self) -> bool:
        """False where the call was cancelled: it is not to be run."""
        raise NotImplementedError

    def settle(self, status: int, payload: Any, outcome: tuple[bool, Any] | None = None) -> None:
        """Idempotent; runs no code of the user's. `outcome`: what is in the payload, where that is known already."""
        raise NotImplementedError

    def _release(self) -> None:
        """What was sent for it is not needed any more. Idempotent.

        It is not closed: a packet that is still to be sent may have it, too.
        """
        self._definition = self._terms = None
        self._payload = b""
        if self._pending is not None:
            self._pending.remove(self)


class CallJob:
    """All calls of a pool, in the order in which they were made."""

    def __init__(self, encoder: Encoder) -> None:
        self.plan = _states.Job(next(numbers), visible=True, calls=True)
        self.ident = self.plan.ident
        self._encoder = encoder
        self.incoming: list[Call] = []  # made, not yet numbered; any thread appends
        self.calls: dict[int, Call] = {}  # by unit, until settled
        self.unreceived: dict[int, int] = {}  # units that a worker could not receive, and the packet
        self.records: deque[Record] = deque()  # outcomes not yet handed to their calls
        self.tries = Tries()

    def build(self, first: int, limit: int, known: set[int], room: int) -> Body:
        alike = self._build_alike(first, limit, known, room)
        if alike is not None:
            return alike
        definitions: dict[int, Definition] = {}
        names: list[int] = []
        filters: list[int] = []
        limit_ns = 0
        payloads: list[Payload | bytes] = []
        usual: Definition | None = None  # the latest, of which there is nothing more to be seen to
        for unit in range(first, first + limit):
            call = self.calls[unit]
            definition, payload, terms = call._definition, call._payload, call._terms
            if isinstance(payload, BaseException) or not call.begin():
                names.append(0)
                filters.append(0)
                payloads.append(self._encoder.nothing)
                continue
            if isinstance(payload, tuple):
                payload = self._encoder.dumps_arguments(payload)
            room -= takes(payload)
            fresh = {}
            filter_ = None if terms is None else terms.filter
            if definition is not usual or filter_ is not None or (isinstance(payload, Payload) and payload.uses):
                named = [each for each in (definition, filter_) if each is not None]
                for carried in riding(known, named, (payload,)):
                    if carried.ident not in definitions:
                        fresh[carried.ident] = carried
                        room -= takes(carried.payload)
            if room < 0 and payloads:
                break
            if fresh:
                definitions |= fresh
            usual = definition
            names.append(0 if definition is None else definition.ident)
            filters.append(0 if filter_ is None else filter_.ident)
            if terms is not None and terms.first_limit_ns:
                limit_ns = min(limit_ns or terms.first_limit_ns, terms.first_limit_ns)
            payloads.append(payload)
        return pack_body(
            self._encoder,
            Mode.CALLS,
            Flag.VISIBLE,
            0,
            0,
            first,
            definitions.values(),
            [table(names)],
            payloads,
            filters=filters,
            limit_ns=limit_ns,
        )

    def _build_alike(self, first: int, limit: int, known: set[int], room: int) -> Body | None:
        """Calls from `first` on that are of one function and can share a pickle; None where less than half of them can.

        Each packet costs more than what it saves to have one for few.
        """
        calls = list(map(self.calls.__getitem__, range(first, first + limit)))
        definition = calls[0]._definition
        alike = [
            call._definition is definition and type(call._payload) is tuple and call._terms is None for call in calls
        ]
        if False in alike:
            del calls[alike.index(False) :]
        if definition is None or len(calls) < 2 or 2 * len(calls) < limit:
            return None
        carried = riding(known, (definition,), ())
        data = self._encoder.dumps_atoms([call._payload for call in calls])
        if len(data) + sum([takes(each.payload) for each in carried]) > room:
            return self._build_alike(first, len(calls) // 2, known, room)
        begun = [call.begin() for call in calls]
        if not all(begun):
            return None  # some were cancelled
        flags = Flag.VISIBLE | Flag.STAR | Flag.INTERRUPTED
        return pack_body(self._encoder, Mode.ALIKE, flags, 0, definition.ident, first, carried, [], [data], len(calls))

    def may_share(self, unit: int) -> bool:
        """Whether the outcome of a unit may be in one payload with others."""
        call = self.calls.get(unit)
        return call is None or type(call._payload) is tuple

    def lone_body(self, call: Call, known: set[int], room: int) -> Body | None:
        """What a packet has that carries the call next to be numbered; None where more goes with it than arguments."""
        definition, payload, descriptors = call._definition, call._payload, NONE_OWNED
        if isinstance(payload, Payload):
            if payload.needs or payload.uses:
                return None
            payload, descriptors = payload.data, payload.descriptors
        elif type(payload) is not bytes:
            return None
        if len(payload) > room or call._terms is not None or call._pending is not None:
            return None
        if definition is not None and definition.ident not in known:
            return None
        name = _NAMELESS if definition is None else definition.ident.to_bytes(8, "little")
        buffers = [_LONE_HEAD, name, payload]
        if descriptors:
            buffers[:1] = _LONE_HEAD_WITH_DESCRIPTORS, len(descriptors).to_bytes(2, "little")
        return _new_body((1, buffers, descriptors, _NONE_RIDE, (), False, 0))

    def digest(self) -> None:
        """Hands the recorded outcomes to their calls."""
        records, calls = self.records, self.calls
        while records:
            for unit, status, payload, outcome in self._outcomes(records[0]):
                call = calls.get(unit)
                if call is None:
                    continue  # settled when this was interrupted
                sent, terms = call._payload, call._terms
                if isinstance(sent, BaseException):
                    call.settle(Status.ERROR, sent)
                else:
                    call.settle(status, payload, outcome)
                    if type(sent) is Payload:
                        sent.close()
                if terms is not None:
                    self.tries.forget(unit)
                call._release()
                calls.pop(unit, None)
                if self.unreceived:
                    self.unreceived.pop(unit, None)
            del records[0]

    def _outcomes(self, record: Record) -> Iterable[tuple[int, int, Any, tuple[bool, Any] | None]]:
        """Unit, status and payload of each; and those that share one payload, which are numbers, as they are."""
        units = range(record.first, record.first + record.units)
        if record.mode != OutcomeMode.SHARED:
            return zip(units, *record.parts(), repeat(None))
        try:
            values = record.values(self._encoder.decode_numbers)
        except (RecursionError, MemoryError):
            raise  # it is theirs who digest, and it is done again
        except Exception as error:
            if came_from_handler(error):
                raise
            return zip(units, repeat(Status.ERROR), repeat(error), repeat(None))
        return zip(units, repeat(Status.OK), repeat(b""), zip(repeat(True), values))

    def fall_back(self, first: int, count: int, refused: Collection[Need]) -> None:
        """A worker refused these units: from now on they travel by value, or fail where they cannot."""
        for unit in range(first, first + count):
            call = self.calls.get(unit)
            if call is None:
                continue  # it has ended with the pool
            payload = fallen_back(call._payload, refused)
            uses = payload.uses if isinstance(payload, Payload) else ()
            filter_ = None if call._terms is None else call._terms.filter
            problem = fall_back_definitions((call._definition, filter_, *uses), refused)
            call._payload = problem or payload

    def terms_of(self, unit: int) -> Terms | None:
        """What was agreed for a unit."""
        call = self.calls.get(unit)
        return None if call is None else call._terms

    def fails(self, unit: int, packet: int, *, died: bool) -> bool:
        """A unit failed, or killed its worker, with this packet; returns whether it is to run again."""
        call = self.calls.get(unit)
        return call is not None and self.tries.fail(call._terms, unit, packet, died=died)

    def describe(self, unit: int) -> str:
        """What a unit runs, for people."""
        call = self.calls.get(unit)
        return "a call" if call is None or call._definition is None else f"a call of {call._definition.name}"

    def refuse(self, first: int, count: int, error: BaseException) -> None:
        """These units cannot be sent: they travel as nothing, and end with `error`."""
        for unit in range(first, first + count):
            call = self.calls.get(unit)
            if call is not None:
                call._payload = error

    def fail(self, error: BaseException) -> None:
        """Every pending call ends with `error`."""
        made = self.incoming[:]  # others may make more meanwhile
        for call in [*self.calls.values(), *made]:
            call.settle(Status.ERROR, error)
            call._release()
        self.calls.clear()
        del self.incoming[: len(made)]
