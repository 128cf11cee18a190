"""The messages between parent and zygote, and all that can be wrong with one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pairpool import _orders
from pairpool._orders import Kind, Message
from pairpool.errors import FramingError

Ends = tuple[socket.socket, socket.socket]

# With how many descriptors each kind comes at least.
DESCRIPTORS = {kind: 1 if kind in (Kind.SPAWN, Kind.SPAWNED) else 0 for kind in Kind}


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends of a channel."""
    ends = _orders.socketpair()
    yield ends
    for end in ends:
        end.close()


def exchange(ends: Ends, message: bytes, descriptors: tuple[int, ...] = ()) -> Any:
    """Send a message, and return what is received."""
    ends[0].sendmsg(*_orders.send_arguments(message, descriptors))
    return ends[1].recvmsg(*_orders.RECEIVE_ARGUMENTS)


@pytest.mark.parametrize("kind", Kind)
def test_round_trip(ends: Ends, kind: Kind) -> None:
    """What is packed arrives, with descriptors that are closed on exec."""
    count = DESCRIPTORS[kind]
    packed = _orders.pack(kind, 2**40, value=-9, seconds=0.25, text="wörds", descriptors=count)

    message = _orders.admit(exchange(ends, packed, (0,) * count), os.getpid())

    assert message is not None
    assert Message(kind, 2**40, -9, 0.25, "wörds", message.descriptors, True, os.getuid()) == message
    assert len(message.descriptors) == count
    for number in message.descriptors:
        assert not os.get_inheritable(number)
        os.close(number)


def test_long_text(ends: Ends) -> None:
    """A text longer than there is room for is cut, also amid a character."""
    envelope = exchange(ends, _orders.pack(Kind.SPAWN_FAILED, text="a" + "ö" * 5000))

    message = _orders.admit(envelope, os.getpid())

    assert message is not None
    assert message.text.startswith("aö")
    assert len(message.text.encode()) <= _orders.MAX_TEXT + 2


def test_somebody_else(ends: Ends) -> None:
    """A message that another process sent is no message, and what came with it can be closed."""
    before = len(os.listdir("/proc/self/fd"))
    envelope = exchange(ends, _orders.pack(Kind.SPAWN, descriptors=2), (0, 0))

    assert _orders.admit(envelope, os.getpid() + 1) is None

    _orders.discard(envelope)
    assert before == len(os.listdir("/proc/self/fd"))


GOOD = _orders.pack(Kind.SPAWN, descriptors=1)


@pytest.mark.parametrize(
    ("message", "descriptors", "reason"),
    [
        (GOOD[:-1], 1, "too short"),
        (GOOD + b"x", 1, "instead of"),
        (b"XX" + GOOD[2:], 1, "begins"),
        (GOOD[:2] + b"\x63" + GOOD[3:], 1, "version 99"),
        (GOOD[:3] + b"\x63" + GOOD[4:], 1, "kind 99"),
        (GOOD, 0, "0 descriptors, announced 1"),
        (GOOD, 2, "2 descriptors, announced 1"),
        (_orders.pack(Kind.STOP, descriptors=1), 1, "1 descriptors"),
        (_orders.pack(Kind.SPAWN, descriptors=0), 0, "0 descriptors"),
        (GOOD + b"x" * 5000, 1, "too long"),
    ],
    ids=["short", "long", "magic", "version", "kind", "fewer", "more", "unasked", "none", "truncated"],
)
def test_malformed(ends: Ends, message: bytes, descriptors: int, reason: str) -> None:
    """Whatever is wrong with a message is said, and what came with it can be closed."""
    before = len(os.listdir("/proc/self/fd"))
    envelope = exchange(ends, message, (0,) * descriptors)

    with pytest.raises(FramingError, match=reason):
        _orders.admit(envelope, os.getpid())

    _orders.discard(envelope)
    assert before == len(os.listdir("/proc/self/fd"))


def test_more_descriptors_than_there_is_room_for(ends: Ends) -> None:
    """Descriptors beyond the limit are lost, the message says so, and the rest can be closed."""
    before = len(os.listdir("/proc/self/fd"))
    envelope = exchange(ends, _orders.pack(Kind.SPAWN, descriptors=16), (0,) * 40)

    message = _orders.admit(envelope, os.getpid())

    assert message is not None
    assert not message.whole
    _orders.discard(envelope)
    assert before == len(os.listdir("/proc/self/fd"))


@given(st.binary(max_size=60), st.sampled_from([b"", GOOD[:2], GOOD[:3], GOOD[:4], GOOD[:8]]))
def test_any_bytes(tail: bytes, head: bytes) -> None:
    """Whatever the bytes are, they are a message or a FramingError."""
    credentials = _orders._CREDENTIALS.pack(os.getpid(), os.getuid(), os.getgid())
    ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]

    try:
        message = _orders.admit((head + tail, ancillary, 0, None), os.getpid())
    except FramingError:
        return

    assert message is not None
    assert message.kind in Kind


def test_end(ends: Ends) -> None:
    """The end of the channel is told from a message."""
    envelope = exchange(ends, GOOD, (0,))
    assert not _orders.is_end(envelope)
    _orders.discard(envelope)

    ends[0].close()

    assert _orders.is_end(ends[1].recvmsg(*_orders.RECEIVE_ARGUMENTS))
    assert _orders.is_end(_orders.END)


def test_no_credentials() -> None:
    """A message of which the kernel does not name the sender is nobody's."""
    assert _orders.admit((_orders.pack(Kind.STOP), [], 0, None), os.getpid()) is None
