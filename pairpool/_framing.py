"""Messages between processes: their layout, and which twin packs, sends and receives them.

One message is one datagram of a SOCK_SEQPACKET socketpair, so the kernel keeps where it begins and ends. It
is little endian:

    offset  size  what
    0       4     magic, ``pair``
    4       1     version of this layout
    5       1     kind: what the message is (see `_packet`)
    6       2     flags: none is defined, all are zero
    8       8     ident: of what the message is about
    16      4     number of buffers
    20      8     length of a buffer, for each of them
    ...           the buffers, one after another, up to the end of the message

Descriptors travel beside it as SCM_RIGHTS. Anything else is no message, and `unpack` and `admit` raise
FramingError for it; they raise nothing else, whatever the other side has sent.

The functions exist twice, in Python (`_framing_py`, `_transfer_py` and `_sharing_py`: the specification, with the
documentation of each) and in C. PAIRPOOL_EXTENSION in the environment decides: ``0`` takes Python, ``1`` takes C and
fails where it is missing, unset (or empty) takes C if it is there. `TWIN` says which one runs.
"""

from __future__ import annotations

import os
import socket
import struct
from array import array
from collections import deque
from importlib import import_module
from typing import TYPE_CHECKING, Final

from pairpool import _sharing_py
from pairpool.errors import FramingError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from pairpool import _framing_py
    from pairpool._transfer_py import Raw


def _choose_twin(choice: str) -> ModuleType:
    if choice not in ("", "0", "1"):
        raise ImportError(f"PAIRPOOL_EXTENSION must be 0, 1 or unset, not {choice!r}")
    if choice != "0":
        try:
            return import_module("pairpool._framing_c")
        except ImportError:
            if choice == "1":
                raise
    return import_module("pairpool._framing_py")


if TYPE_CHECKING:
    twin = _framing_py  # where the types of both are
else:
    twin = _choose_twin(os.environ.get("PAIRPOOL_EXTENSION", ""))

TWIN: Final = "c" if twin.__name__ == "pairpool._framing_c" else "python"

MESSAGE_LIMIT: Final = twin.MESSAGE_LIMIT
UNIT_LIMIT: Final = twin.UNIT_LIMIT

pack = twin.pack
unpack = twin.unpack
flush = twin.flush
receive = twin.receive
await_message = twin.await_message
exchange = twin.exchange
wait_ready = twin.wait_ready

ATOMS: Final = _sharing_py.ATOMS
NUMBERS: Final = _sharing_py.NUMBERS
is_settled = _sharing_py.is_settled
share_nothing = twin.share_nothing

MAPPINGS_KEEP_DESCRIPTORS: Final = twin.MAPPINGS_KEEP_DESCRIPTORS
slab_copy = twin.slab_copy
slab_lend = twin.slab_lend
slab_is_free = twin.slab_is_free
slab_seals = twin.slab_seals
slab_map = twin.slab_map

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
# Plain numbers: an `&` with the socket module's flags is a microsecond of Python.
_TRUNCATED: Final = int(socket.MSG_TRUNC)
_INCOMPLETE: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)


def admit(raw: Raw, sender: int | None = None, *, some_lost: bool = False) -> tuple[bytes, tuple[int, ...]]:
    """Check what arrived (the value of socket.recvmsg) and return its bytes and descriptors.

    On FramingError its descriptors are closed. No bytes: the other side is gone.

    Args:
        raw: the message as `receive` recorded it.
        sender: process id that the kernel must have put on it (SO_PASSCRED is set on the socket).
        some_lost: there may be fewer descriptors than were sent, the first of them, because no more were free.
    """
    data, ancillary, flags, _ = raw
    if not ancillary and not flags & _INCOMPLETE and sender is None:
        return data, ()
    descriptors = array("i")
    pid: int | None = None
    fault = ""
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(content) - len(content) % descriptors.itemsize
            descriptors.frombytes(content[:whole])
            if whole != len(content):
                fault = "ancillary data of a wrong length"
        elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            if len(content) != _CREDENTIALS.size:
                fault = "ancillary data of a wrong length"
            else:
                pid = _CREDENTIALS.unpack(content)[0]
        else:
            fault = "ancillary data of an unknown kind"
    if flags & _TRUNCATED:
        fault = f"a message of more than {MESSAGE_LIMIT} bytes"
    elif flags & _INCOMPLETE and not some_lost:
        fault = "descriptors were lost, perhaps for want of free ones (RLIMIT_NOFILE)"
    elif descriptors and not data:
        fault = "descriptors without a message"
    elif sender is not None and data and pid != sender:
        fault = f"a message from process {pid} instead of {sender}"
    if fault:
        _discard(ancillary, descriptors)
        raise FramingError(fault)
    return data, tuple(descriptors)


def descriptors_of(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    """The descriptors that came with a message, where nothing else did: none where `admit` is to look at it."""
    if len(ancillary) != 1 or ancillary[0][:2] != (socket.SOL_SOCKET, socket.SCM_RIGHTS) or len(ancillary[0][2]) % 4:
        return ()
    return tuple(array("i", ancillary[0][2]))


def _discard(ancillary: list[tuple[int, int, bytes]], descriptors: Iterable[int]) -> None:
    closing = map(os.close, descriptors)
    # Should an interrupt have the same arrival admitted again, it finds no descriptor to close twice: no
    # signal handler can run between these two lines (see `_framing_py`).
    del ancillary[:]
    deque(closing, maxlen=0)
