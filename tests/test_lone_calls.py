"""A message and its answer in one step of the framing, by both twins."""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from socket import AF_UNIX, MSG_DONTWAIT, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket, socketpair
from struct import pack
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, strategies as st

import twins
from pairpool import _framing
from pairpool._packet import OUTCOMES_HEAD, Kind, OutcomeMode, Status
from twins import TWINS

twin = twins.twin  # the fixture

IDENT = 7
ARMED = select.EPOLLIN | select.EPOLLONESHOT


class Watched(socket):
    """A socket that notes, when something is sent by it, whether anybody is on watch over its answers."""

    outer: select.epoll | None = None
    on_watch: list[bool]

    def fileno(self) -> int:
        """Tell its number, for which the C twin asks."""
        number = super().fileno()
        self._note(number)
        return number

    def sendmsg(self, *args: Any) -> int:
        """Send, as the Python twin does."""
        self._note(super().fileno())
        return super().sendmsg(*args)

    def _note(self, number: int) -> None:
        if self.outer is not None and select.select([number], [], [], 0)[0]:
            self.on_watch.append(bool(self.outer.poll(0)))


class Line:
    """Both ends of a channel, and what is on watch over one of them."""

    def __init__(self, undo: ExitStack) -> None:
        """`undo`: closes it."""
        ours, self.theirs = map(undo.enter_context, socketpair(AF_UNIX, SOCK_SEQPACKET))
        self.ours = undo.enter_context(Watched(AF_UNIX, SOCK_SEQPACKET, fileno=ours.detach()))
        self.watched, self.outer = undo.enter_context(select.epoll()), undo.enter_context(select.epoll())
        self.watched.register(super(Watched, self.ours).fileno(), select.EPOLLIN)
        self.outer.register(self.watched, ARMED)
        self.arrivals: deque[Any] = deque()
        self.outgoing: deque[Any] = deque([(self.ours, b"a call", ())])
        self.note = ["note"]

    def exchange(self, twin: ModuleType, spin: float = 0.0) -> Any:
        """Send what is to be sent, and return the answer."""
        return twin.exchange(
            self.outer, self.watched, ARMED, self.outgoing, self.ours, self.arrivals, "tag", IDENT, self.note, spin
        )

    @property
    def is_armed(self) -> bool:
        """Whether the outer epoll is on watch: something has to be there to be told."""
        self.theirs.send(b"something")
        return bool(self.outer.poll(0))


@pytest.fixture
def line() -> Iterator[Line]:
    """A channel."""
    with ExitStack() as undo:
        yield Line(undo)


def outcome(
    status: bytes = bytes([Status.OK]),
    payload: bytes = b"payload",
    ident: int = IDENT,
    kind: int = Kind.OUTCOMES,
    head: tuple[int, ...] = (OutcomeMode.SEPARATE, 0, 1, 5000),
    more: tuple[bytes, ...] = (),
) -> bytes:
    """Return a message that is the answer, but for what is said otherwise."""
    return _framing.pack(kind, ident, [OUTCOMES_HEAD.pack(*head), status, payload, *more])


@pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
@pytest.mark.parametrize("payload", [b"", b"x", bytes(30_000)], ids=len)
def test_the_answer_is_returned(twin: ModuleType, line: Line, status: int, payload: bytes) -> None:
    """Its note is gone with it, and nothing is recorded; meanwhile nobody else is on watch."""
    line.theirs.send(outcome(bytes([status]), payload))
    line.ours.outer, line.ours.on_watch = line.outer, []
    assert line.exchange(twin) == (status, payload)
    assert (line.theirs.recv(100), line.outgoing, line.arrivals, line.note) == (b"a call", deque(), deque(), [])
    assert line.ours.on_watch
    assert not any(line.ours.on_watch)
    assert line.is_armed


@pytest.mark.parametrize(
    "message",
    [
        outcome(ident=IDENT + 1),
        outcome(kind=Kind.REFUSED),
        outcome(bytes([Status.SKIPPED])),
        outcome(bytes([Status.AGAIN])),
        outcome(bytes(2)),
        outcome(b""),
        outcome(more=(b"",)),
        outcome(head=(OutcomeMode.SHARED, 0, 1, 0)),
        outcome(head=(OutcomeMode.SEPARATE, 1, 1, 0)),
        outcome(head=(OutcomeMode.SEPARATE, 0, 2, 0)),
        _framing.pack(Kind.OUTCOMES, IDENT, []),
        _framing.pack(Kind.OUTCOMES, IDENT, [b"", b"\0", b""]),
        outcome()[:-1],
        outcome() + b"\0",
        b"x",
        outcome(payload=bytes(40_000)),
    ],
    ids=lambda message: message[:40].hex(),
)
def test_anything_else_is_recorded(twin: ModuleType, line: Line, message: bytes) -> None:
    """As `receive` records it."""
    line.theirs.send(message)
    assert line.exchange(twin) is None
    (tag, raw), _ = line.arrivals.popleft(), line.theirs.send(message)
    assert tag == "tag"
    twin.receive(line.ours, line.arrivals, tag, 1)
    assert line.arrivals == deque([(tag, raw)])
    assert (line.outgoing, line.note) == (deque(), ["note"])
    assert line.is_armed


def test_what_came_with_descriptors_is_recorded(twin: ModuleType, line: Line) -> None:
    """They are somebody's to close."""
    line.theirs.sendmsg([outcome()], [(SOL_SOCKET, SCM_RIGHTS, pack("i", 0))])
    assert line.exchange(twin) is None
    ((_, raw),) = line.arrivals
    (descriptor,) = _framing.admit(raw)[1]
    os.close(descriptor)
    assert line.note == ["note"]


def test_the_end_of_the_channel_is_recorded(twin: ModuleType, line: Line) -> None:
    """It is no answer."""
    line.outgoing.clear()
    line.theirs.close()
    assert line.exchange(twin) is None
    assert [raw[0] for _, raw in line.arrivals] == [b""]
    assert line.note == ["note"]


@pytest.mark.parametrize("spin", [0.0, 0.001])
def test_nothing_may_come(twin: ModuleType, line: Line, spin: float) -> None:
    """Then the message is sent all the same."""
    assert line.exchange(twin, spin) is None
    assert line.theirs.recv(100) == b"a call"
    assert (line.outgoing, line.arrivals, line.note) == (deque(), deque(), ["note"])
    assert line.is_armed


def test_what_cannot_be_sent_yet_stays(twin: ModuleType, line: Line) -> None:
    """And nothing is received, as it would be no answer."""
    with suppress(BlockingIOError):
        while line.ours.send(bytes(1000), MSG_DONTWAIT):
            pass
    line.theirs.send(outcome())
    assert line.exchange(twin) is None
    assert (len(line.outgoing), line.arrivals, line.note) == (1, deque(), ["note"])


def test_what_cannot_be_sent_at_all_is_told(twin: ModuleType, line: Line) -> None:
    """The other side is gone; who was on watch is again."""
    line.theirs.close()
    with pytest.raises(BrokenPipeError):
        line.exchange(twin)
    assert (len(line.outgoing), line.note) == (1, ["note"])
    assert line.outer.poll(0)


@given(st.data())
def test_twins_find_the_same_answers(data: st.DataObject) -> None:
    """However a message is damaged."""
    message = bytearray(outcome())
    for place in data.draw(st.lists(st.integers(0, len(message) - 1), max_size=3)):
        message[place] = data.draw(st.integers(0, 255))
    found = []
    for each in TWINS.values():
        with ExitStack() as undo:
            line = Line(undo)
            line.theirs.send(message)
            found.append((line.exchange(each), line.arrivals, line.note))
    assert found == found[:1] * len(found)


def test_no_reference_is_left(twin: ModuleType, line: Line) -> None:
    """Not even to what there is but one of."""
    before = sys.getrefcount(True), sys.getrefcount(False), sys.getrefcount(None)
    for _ in range(500):
        line.note.append("note")
        line.theirs.send(outcome())
        assert line.exchange(twin)
        assert line.exchange(twin) is None
    after = sys.getrefcount(True), sys.getrefcount(False), sys.getrefcount(None)
    assert all(abs(now - then) < 250 for now, then in zip(after, before, strict=True))
