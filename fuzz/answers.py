"""What arrives from a worker: `admit`, and how the parent digests an answer.

`admit` exists once, for both twins. So it is held against what its documentation says, written down here a second
time and as plainly as can be. What is made of a message runs with the `unpack` of each twin.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import EPOLLIN, epoll
from socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_EOR,
    MSG_TRUNC,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socketpair,
)
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, TypeAlias, cast
from unittest.mock import patch

from fuzz.memory import make_records
from fuzz.messages import ACCEPTED, agreed, outcome, require
from fuzz.source import ANY_BYTES, Source, build, damaged, message
from pairpool import _framing, _framing_c, _framing_py, _handle
from pairpool._handle import WorkerHandle
from pairpool._packet import OUTCOMES_HEAD, Kind, OutcomeMode, Status
from pairpool.engines import Handlers, Outcomes
from pairpool.errors import FramingError

CONDEMNED: Final = "the worker ends"

_closed: list[int] = []


@contextmanager
def descriptors_left_open() -> Iterator[None]:
    """Have descriptors that come with an arrival noted where they would be closed: they are numbers of the fuzzer's."""
    stand_in = SimpleNamespace(close=_closed.append)
    with patch.object(_framing, "os", stand_in), patch.object(_handle, "os", stand_in):
        yield


# --- admit --------------------------------------------------------------------------------------------------

Entry: TypeAlias = tuple[int, int, bytes]

_RIGHTS: Final = [SOL_SOCKET, SCM_RIGHTS]
_IDENTITY: Final = [SOL_SOCKET, SCM_CREDENTIALS]
_KINDS: Final = (*[_RIGHTS] * 6, *[_IDENTITY] * 4, [SOL_SOCKET, 29], [0, SCM_RIGHTS], [SOL_SOCKET, -1], [-1, 2**31 - 1])
_FLAGS: Final = [
    *[0, int(MSG_CMSG_CLOEXEC)] * 8, *map(int, (MSG_EOR, MSG_TRUNC, MSG_CTRUNC, MSG_TRUNC | MSG_CTRUNC)),
]  # fmt: skip
_SENDERS: Final = (None, None, 1, 4711)
_CREDENTIALS: Final = struct.Struct("3i")


class Envelope(NamedTuple):
    """What recvmsg() returned, and who must have sent it."""

    data: bytes
    ancillary: list[Entry]
    flags: int
    sender: int | None


def _make_entry(source: Source) -> Entry:
    level, kind = source.pick(_KINDS)
    if kind == SCM_CREDENTIALS:
        content = _CREDENTIALS.pack(source.pick((0, 1, 1, 4711, 4711, -1)), 0, 0)
    else:
        content = source.stuff(4 * source.pick((0, 1, 1, 2, 3, 16, 253)))
    if source.random() < 0.15:
        content = damaged(source, content, ANY_BYTES)
    return level, kind, content


def make_envelope(source: Source) -> Envelope:
    """Make an arrival with any ancillary data."""
    data = source.stuff(source.pick((0, 1, 20, 20, 20)))
    entries = [_make_entry(source) for _ in range(source.pick((0, 0, 1, 1, 1, 2, 2, 3)))]
    flags = source.pick(_FLAGS) if source.random() < 0.97 else source.getrandbits(32)
    return Envelope(data, entries, flags, source.pick(_SENDERS))


def _descriptors_in(ancillary: list[Entry]) -> list[int]:
    """Return every whole number of a descriptor in it."""
    found = array("i")
    for *kind, content in ancillary:
        if kind == _RIGHTS:
            found.frombytes(content[: len(content) // found.itemsize * found.itemsize])
    return [*found]


def _is_admissible(envelope: Envelope) -> bool:
    """Whether it is nothing but a message of this sender, with all of its descriptors."""
    data, ancillary, flags, sender = envelope
    pid = None
    for *kind, content in ancillary:
        if kind == _IDENTITY and len(content) == _CREDENTIALS.size:
            pid = _CREDENTIALS.unpack(content)[0]
        elif kind != _RIGHTS or len(content) % 4:
            return False
    complete = not flags & (MSG_TRUNC | MSG_CTRUNC)
    if not data:
        return complete and not _descriptors_in(ancillary)
    return complete and sender in (None, pid)


_NUMBER: Final = re.compile(r"-?\d+|None")


def check_envelope(envelope: Envelope) -> str:
    """Admit it: all its descriptors are returned, or all of them are closed, once."""
    data, ancillary, flags, sender = envelope
    descriptors = _descriptors_in(ancillary)
    given = [*ancillary]
    _closed.clear()
    admitted = outcome(_framing.admit, (data, given, flags, None), sender)
    if _is_admissible(envelope):
        require(admitted == (data, tuple(descriptors)), "it is admitted, with its descriptors", admitted)
        require(not _closed, "descriptors of what is admitted stay open", _closed)
        return ACCEPTED
    require(admitted[0] is FramingError, "admit raises FramingError", admitted)
    require(_closed == descriptors and not given, "descriptors of what is refused are closed, once", _closed)
    return _NUMBER.sub("N", admitted[1])


# --- Answers ------------------------------------------------------------------------------------------------


_MESSAGES: Final = [value for name, value in vars(Kind).items() if name.isupper()]


class Answer(NamedTuple):
    """What a worker sent, and the packet that it is asked about."""

    message: bytes
    ancillary: list[Entry]
    flags: int
    packet: int


def _make_outcomes(source: Source) -> list[bytes]:
    mode = source.pick((0, 1, 1, 2, 2, 3, 255))
    units = source.pick((0, 1, 1, 2, 3, 5))
    payloads = [source.stuff(source.size()) for _ in range(units)]
    if mode == OutcomeMode.SEPARATE:
        statuses = bytes(source.below(3 if source.random() < 0.98 else 256) for _ in range(units))
        payloads.insert(0, damaged(source, statuses, ANY_BYTES) if source.random() < 0.1 else statuses)
    elif mode == OutcomeMode.COMMITTED:
        data, units = make_records(source)
        payloads = [data]
    elif mode == OutcomeMode.SHARED and source.random() < 0.8:
        payloads = payloads[:1]
    told = units if source.random() < 0.9 else source.number(32, units)
    head = OUTCOMES_HEAD.pack(mode, source.number(32), told, source.number(64))
    return [damaged(source, head, ANY_BYTES) if source.random() < 0.1 else head, *payloads]


def make_answer(source: Source) -> Answer:
    """Make what a worker might send if its memory were overwritten; most of it outcomes."""
    packet = source.number(64)
    how = source.random()
    if how < 0.6:
        data = build(Kind.OUTCOMES, packet, _make_outcomes(source))
    elif how < 0.9:
        kind = source.pick((*_MESSAGES, *_MESSAGES, 0, 99, 255))
        buffers = [source.stuff(source.size()) for _ in range(source.pick((0, 1, 1, 2)))]
        data = build(kind, packet, buffers)
    else:
        data = message(source)
    if source.random() < 0.1:
        data = damaged(source, data, ANY_BYTES)
    hostile = source.random() < 0.15
    ancillary = [_make_entry(source) for _ in range(source.below(3))] if hostile else []
    return Answer(data, ancillary, source.pick(_FLAGS) if hostile else 0, packet)


_ARRIVED: Final = object()  # what stands in the queue of events for a message


class _Parent:
    """The parent's half of a worker that there is not, and what becomes of what that worker sends."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.events: deque[Any] = deque()
        self.handle = WorkerHandle.__new__(WorkerHandle)
        self.handle.slot = 1
        self.handle._handlers = cast(Handlers, self)
        self.handle._on_loss = lambda: None
        self.handle._condemn = lambda _: self.told.append((CONDEMNED, None))

    def _note(self, name: str, argument: Any) -> None:
        self.told.append((name, argument))
        del self.events[0]

    def on_outcomes(self, outcomes: Outcomes) -> None:
        self._note("outcomes", outcomes)

    def on_refused(self, refusal: tuple[int, int, tuple[int, ...]]) -> None:
        self._note("refused", refusal)

    def on_unreceived(self, told: tuple[int, int]) -> None:
        self._note("unreceived", told)

    def on_up(self, slot: int) -> None:
        self._note("up", slot)

    def on_failed(self, failure: tuple[int, BaseException]) -> None:
        self._note("failed", str(failure))

    def on_full(self, word: tuple[int, Any, int]) -> None:
        self._note("full", (word[0], word[2]))

    def digest(self, answer: Answer, unpack: Callable[[Any], Any]) -> tuple[list[tuple[str, Any]], list[int]]:
        """Read it; also return which descriptors were closed."""
        self.told.clear()
        self.events.clear()
        self.events.append(_ARRIVED)
        _closed.clear()
        with patch.object(_framing, "unpack", unpack):
            failure = outcome(self.handle.on_message, (answer.message, [*answer.ancillary], answer.flags, None))
        require(failure is None, "whatever arrives is digested", failure)
        if self.events:
            handler, argument = self.events[0]  # left for later, as descriptors had to be closed first
            handler(argument)
        require(not self.events and len(self.told) == 1, "one thing becomes of what arrives", self.told)
        return [*self.told], [*_closed]


def _exchanged(answer: Answer, exchange: Callable[..., Any]) -> Any:
    """Return what is found in the message where it is awaited, and whether its note is gone and it was recorded."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    with ours, theirs, epoll() as watched, epoll() as outer:
        watched.register(ours, EPOLLIN)
        outer.register(watched, 0)
        theirs.send(answer.message)
        arrivals, note = deque[Any](), [None]
        found = exchange(outer, watched, 0, deque(), ours, arrivals, None, answer.packet, note, 0.0)
        return found, len(note), len(arrivals)


def check_answer(answer: Answer) -> str:
    """Digest it with both twins; outcomes must be what outcomes can be."""
    parent = _Parent()
    told, closed = agreed(*[parent.digest(answer, twin.unpack) for twin in (_framing_py, _framing_c)])
    require(closed == _descriptors_in(answer.ancillary), "every descriptor is closed, once", closed)
    name, argument = told[0]
    if name == "outcomes":
        _require_outcomes(argument)
    if not answer.ancillary and not answer.flags:
        found = agreed(*[_exchanged(answer, twin.exchange) for twin in (_framing_py, _framing_c)])
        is_lone = name == "outcomes" and argument[1:5] == (answer.packet, OutcomeMode.SEPARATE, 0, 1)
        lone = (argument.buffers[0][0], bytes(argument.buffers[1])) if is_lone else None
        expected = (lone, 0, 0) if lone is not None and lone[0] <= Status.ERROR else (None, 1, 1)
        require(found == expected, "an answer that is awaited is the same as any message", found, told)
    return name if name == CONDEMNED else f"{ACCEPTED}: {name}"


def _require_outcomes(outcomes: Outcomes) -> None:
    units, mode, buffers = outcomes.units, outcomes.mode, outcomes.buffers
    if mode == OutcomeMode.SEPARATE:
        sound = len(buffers) == 1 + units and len(buffers[0]) == units and all(s <= Status.LAST for s in buffers[0])
    else:
        sound = mode == OutcomeMode.SHARED and len(buffers) == 1
    require(sound and units > 0, "outcomes that are accepted are sound", outcomes)
