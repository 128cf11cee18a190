"""The two channels between the parent and a worker, and messages larger than one packet of a socket may be.

Each channel is a SOCK_SEQPACKET socketpair: *tasks* carries packets down and outcomes up, *control* carries what is
no packet (forget, stop) down. The parent keeps `worker_end` of the tasks channel as well: a packet that lies in the
worker's queue is taken by exactly one `recv`, the worker's or the parent's own.

A message up to MESSAGE_LIMIT travels inline. A larger one is *spilled*: it lies in a slab (_slab.py), whose descriptor
travels in a message of its own kind.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

from pairpool import _framing, _slab
from pairpool._descriptors import Owner
from pairpool._slab import Put
from pairpool._strikes import came_from_handler
from pairpool.errors import FramingError

SPILLED: Final = 255  # kind of the message that says where another one lies; no _packet.Kind
BUFFER_SIZE: Final = 212_992  # bytes of SO_SNDBUF: what an unprivileged process gets on most machines
OVERHEAD: Final = 1024  # bytes that the kernel charges for a message besides its own, at most, for small ones

MOST_READ: Final = 1 << 17  # bytes of a spilled message up to which it is read and not mapped

_LENGTH: Final = struct.Struct("<Q")


def socketpair() -> tuple[socket.socket, socket.socket]:
    """A channel: the parent's end and the worker's. Both close on exec."""
    parent_end, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (parent_end, worker_end):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_SIZE // 2)  # the kernel doubles it
    return parent_end, worker_end


def credit(end: socket.socket) -> int:
    """Bytes, counted as `charge` counts them, that may be on their way from this end at once."""
    return end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def charge(length: int) -> int:
    """What the kernel takes of a channel's buffer for a message of so many bytes, and a little more."""
    # Measured: 768 bytes for an empty message, and about a page more than its length for a large one; the
    # allocation may be rounded up by a quarter.
    return length + length // 4 + OVERHEAD


def spill(message: bytes, ident: int, put: Put, head: bytes = b"") -> tuple[bytes, Owner]:
    """The message to send instead of one that is too large, and the descriptor of the slab that has to travel with it.

    `put`: has it in a slab; what that raises comes out. `head`: what the receiver learns in any case, also
    where no descriptor is free to receive the slab with.
    """
    slab = put((message,), (0,), len(message))
    return _framing.pack(SPILLED, ident, [_LENGTH.pack(len(message)), head]), slab


def head_of_spilled(message: Any) -> tuple[int, Any]:
    """Ident and head of a spilled message for whose slab no descriptor was free; an empty head where it is none.

    Raises FramingError for anything malformed.
    """
    kind, ident, buffers = _framing.unpack(message)
    return ident, buffers[1] if kind == SPILLED and len(buffers) == 2 else b""


def fetch(ident: int, buffers: Sequence[Any], descriptors: tuple[int, ...]) -> tuple[int, list[memoryview]]:
    """Kind and buffers of a spilled message, from `buffers` of the one that tells of it.

    The descriptor of its slab is the first of `descriptors`; it stays the caller's to close, and may be closed at once.
    Raises FramingError for anything malformed.
    """
    if not descriptors or not buffers or len(buffers[0]) != _LENGTH.size:
        raise FramingError("malformed message about a spilled one")
    (length,) = _LENGTH.unpack(buffers[0])
    try:
        _slab.check(descriptors[0], length)
        content = _content(descriptors[0], length)
    except (OSError, ValueError) as error:
        if came_from_handler(error):
            raise
        raise FramingError(f"a spilled message cannot be read: {error}") from error
    kind, spilled_ident, buffers = _framing.unpack(content)
    if spilled_ident != ident or kind == SPILLED:
        raise FramingError("a spilled message is not the one told")
    return kind, buffers


def _content(descriptor: int, length: int) -> Any:
    # What is in it may wait for long to be asked for: it should have no descriptor meanwhile.
    if length <= MOST_READ or _framing.MAPPINGS_KEEP_DESCRIPTORS:
        return _slab.copy(descriptor, length)
    return _slab.content(descriptor, length)
