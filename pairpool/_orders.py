"""What parent and zygote say to each other: fixed messages over one SEQPACKET socketpair.

Layout, little endian, the same in both directions::

    magic "PZ" | version u8 | kind u8 | number of descriptors u16 | length of text u16
    number of the worker i64 | value i64 | seconds f64 | text

The number is one that no other worker of the parent ever has. The text is UTF-8; only SPAWN_FAILED
has one. Besides come as many descriptors as are announced (SCM_RIGHTS), and the credentials of the
sender (SCM_CREDENTIALS), which the kernel fills in because both ends have SO_PASSCRED set before
the first message. (SO_PEERCRED would only ever name the maker of the socketpair.)

Each message is checked for everything a message can be wrong in. What came with one that is not
accepted is closed by `discard`.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from enum import IntEnum
from typing import Any, NamedTuple

from pairpool import _descriptors
from pairpool.errors import FramingError

_MAGIC = b"PZ"
_VERSION = 1
_HEADER = struct.Struct("<2sBBHHqqd")
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid

MAX_DESCRIPTORS = 16  # with one message; a worker is handed about half as many
MAX_TEXT = 1024  # bytes

_MESSAGE_ROOM = _HEADER.size + MAX_TEXT
_ANCILLARY_ROOM = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS) + socket.CMSG_SPACE(_CREDENTIALS.size)

# What socket.recvmsg returns.
Envelope = tuple[bytes, list[tuple[int, int, bytes]], int, Any]


class Kind(IntEnum):
    """What a message is about; in brackets what its value and seconds mean."""

    SPAWN = 1  # make a worker (its slot); descriptors: its dead-man pipe's end, then its own
    SIGNAL = 2  # send a signal to a worker (the signal)
    SIGNAL_GROUP = 3  # send a signal to a worker's process group (the signal)
    STOP = 4  # end all workers, then yourself (seconds between SIGTERM and SIGKILL)

    SPAWNED = 16  # a worker runs (its pid); descriptor: its pidfd
    EXITED = 17  # a worker ended and was reaped (its exit code)
    SPAWN_FAILED = 18  # there is no worker; the text says why


class Message(NamedTuple):
    """One message, checked."""

    kind: Kind
    number: int
    value: int
    seconds: float
    text: str
    descriptors: tuple[int, ...]
    whole: bool  # False: descriptors were lost because the receiver may hold no more of them
    uid: int  # the sender's


def socketpair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a channel for these messages."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ends


def pack(
    kind: Kind, number: int = 0, *, value: int = 0, seconds: float = 0.0, text: str = "", descriptors: int = 0
) -> bytes:
    """Return the bytes of a message which goes with so many descriptors."""
    tail = text.encode("utf-8", "replace")[:MAX_TEXT]
    return _HEADER.pack(_MAGIC, _VERSION, kind, descriptors, len(tail), number, value, seconds) + tail


def send_arguments(message: bytes, descriptors: tuple[int, ...]) -> tuple[Any, ...]:
    """Return the arguments for ``sendmsg`` that send this and never wait."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    return [message], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


# The arguments for ``recvmsg`` that receive one message and never wait.
RECEIVE_ARGUMENTS = (_MESSAGE_ROOM, _ANCILLARY_ROOM, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)


END: Envelope = (b"", [], 0, None)


def is_end(envelope: Envelope) -> bool:
    """Tell whether this is EOF: no message of ours is empty."""
    return not envelope[0] and not envelope[1]


def admit(envelope: Envelope, sender: int) -> Message | None:
    """Return the message if the process ``sender`` sent it, None if another one did.

    Raises FramingError for anything malformed. Unless it returns a message, `discard` has to follow.
    """
    data, ancillary, flags, _ = envelope
    descriptors, pid, uid = _open_ancillary(ancillary)
    return _parse(data, flags, descriptors, uid) if pid == sender else None


def discard(envelope: Envelope) -> None:
    """Close the descriptors that came with a message."""
    _descriptors.close_all(_open_ancillary(envelope[1])[0])


def _open_ancillary(ancillary: list[tuple[int, int, bytes]]) -> tuple[tuple[int, ...], int, int]:
    """Return descriptors, pid and uid of the sender; pid 0, which is nobody's, if the kernel named none."""
    descriptors = array.array("i")
    pid = uid = 0
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        elif kind == socket.SCM_CREDENTIALS and len(data) == _CREDENTIALS.size:
            pid, uid, _ = _CREDENTIALS.unpack(data)
    return tuple(descriptors), pid, uid


def _parse(data: bytes, flags: int, descriptors: tuple[int, ...], uid: int) -> Message:
    if flags & socket.MSG_TRUNC:
        raise FramingError("message to or from the zygote is too long")
    if len(data) < _HEADER.size:
        raise FramingError(f"message of {len(data)} bytes to or from the zygote is too short")
    magic, version, kind, count, length, number, value, seconds = _HEADER.unpack_from(data)
    if (magic, version) != (_MAGIC, _VERSION):
        raise FramingError(f"message to or from the zygote begins {magic!r}, version {version}")
    if kind not in _DESCRIPTORS:
        raise FramingError(f"message to or from the zygote is of unknown kind {kind}")
    if len(data) != _HEADER.size + length:
        raise FramingError(f"message to or from the zygote has {len(data)} bytes instead of {_HEADER.size + length}")
    whole = not flags & socket.MSG_CTRUNC
    if count not in _DESCRIPTORS[kind] or (whole and len(descriptors) != count):
        raise FramingError(f"message to or from the zygote came with {len(descriptors)} descriptors, announced {count}")
    text = data[_HEADER.size :].decode("utf-8", "replace")
    return Message(Kind(kind), number, value, seconds, text, descriptors, whole, uid)


# How many descriptors come with each kind of message.
_DESCRIPTORS = {
    Kind.SPAWN: range(1, MAX_DESCRIPTORS + 1),
    Kind.SIGNAL: range(1),
    Kind.SIGNAL_GROUP: range(1),
    Kind.STOP: range(1),
    Kind.SPAWNED: range(1, 2),
    Kind.EXITED: range(1),
    Kind.SPAWN_FAILED: range(1),
}


def describe(error: BaseException) -> str:
    """Return in words why something failed, for the text of a message."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)} ({type(error).__name__})"
    return f"{type(error).__name__}: {error}"
