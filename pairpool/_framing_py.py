"""The framing in Python: the specification that its twin in C is held to. `_framing` documents the layout.

What sends and receives is in _transfer_py.py, what tells whether values can share a pickle in _sharing_py.py.

How a step is made uninterruptible: a signal handler written in Python can raise in the main thread when a
function is entered, at a backward jump, and after a call of a C function has returned; never between two
plain operators, and never within a C function (one that the system interrupts with EINTR has done nothing
yet). So "received and recorded", or "sent and removed", is *one* call of a C function which drives an iterator
made of other C functions, and nothing written in Python runs in between. The same holds for the primitives of the page.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from fcntl import F_GET_SEALS, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, fcntl, flock, lockf
from mmap import MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap
from operator import index
from socket import MSG_CTRUNC, MSG_TRUNC
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

from pairpool._packet import COMMITTED_HEAD, OUTCOMES_HEAD, Kind, OutcomeMode, Status
from pairpool._sharing_py import is_settled, share_nothing as share_nothing
from pairpool._strikes import came_from_handler
from pairpool._transfer_py import (
    MESSAGE_LIMIT as MESSAGE_LIMIT,
    READY_LIMIT as READY_LIMIT,
    await_message as await_message,
    flush as flush,
    receive as receive,
    wait_ready as wait_ready,
)
from pairpool.errors import FramingError

if TYPE_CHECKING:
    import select
    import socket
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Buffer

    from pairpool._descriptors import Owner
    from pairpool._transfer_py import Arrivals, Outgoing, Raw

# --- Messages -----------------------------------------------------------------------------------------------

MAGIC: Final = b"pair"
VERSION: Final = 1
_CUT_OFF: Final = int(MSG_TRUNC | MSG_CTRUNC)
HEADER: Final = struct.Struct("<4sBBHQI")  # magic, version, kind, flags, ident, number of buffers


def pack(kind: int, ident: int, buffers: Iterable[Buffer], /) -> bytes:
    """Return the message that carries these buffers.

    Any object with the buffer protocol will do if its memory is C-contiguous. How long a message may be is
    for the caller to see to (MESSAGE_LIMIT).
    """
    kind = _within("kind", kind, 0, 0xFF)
    ident = _within("ident", ident, 0, 0xFFFF_FFFF_FFFF_FFFF)
    views = []
    for buffer in tuple(buffers):
        view = memoryview(buffer)
        if view.nbytes and not view.c_contiguous:
            raise BufferError("a buffer of a message must be C-contiguous")
        views.append(view)
    number = _within("number of buffers", len(views), 0, 0xFFFF_FFFF)
    header = HEADER.pack(MAGIC, VERSION, kind, 0, ident, number)
    lengths = struct.pack(f"<{number}Q", *[view.nbytes for view in views])
    return b"".join([header, lengths, *[view for view in views if view.nbytes]])


def unpack(message: Buffer, /) -> tuple[int, int, list[memoryview]]:
    """Return the kind, the ident and the buffers (views into it) of a message.

    FramingError if it is not a well-formed one.
    """
    view = memoryview(message).cast("B")
    if len(view) < HEADER.size:
        raise _malformed(view, "shorter than a header")
    magic, version, kind, flags, ident, number = HEADER.unpack_from(view)
    if magic != MAGIC:
        raise _malformed(view, "wrong magic")
    if version != VERSION:
        raise _malformed(view, "unknown version")
    if flags:
        raise _malformed(view, "unknown flags")
    start = HEADER.size + 8 * number
    if start > len(view):
        raise _malformed(view, "lengths cut off")
    lengths = struct.unpack_from(f"<{number}Q", view, HEADER.size)
    if start + sum(lengths) != len(view):
        raise _malformed(view, "lengths do not add up")
    buffers = []
    for length in lengths:
        buffers.append(view[start : start + length])
        start += length
    return kind, ident, buffers


def _malformed(message: memoryview, reason: str) -> FramingError:
    return FramingError(f"malformed message of {len(message)} bytes: {reason}")


def _within(name: str, value: int, least: int, most: int) -> int:
    number = index(value)
    if not least <= number <= most:
        raise ValueError(f"{name} must be between {least} and {most}")
    return number


# --- A call and its answer ----------------------------------------------------------------------------------


def exchange(
    epoll: select.epoll,
    watched: select.epoll,
    armed: int,
    outgoing: Outgoing,
    sock: socket.socket,
    arrivals: Arrivals,
    tag: object,
    ident: int,
    note: list[Any],
    spin: float,
    /,
) -> tuple[int, bytes] | None:
    """Send what is to be sent, and return the answer to the message `ident`: status and payload of its one unit.

    The answer is looked for, as by `await_message`, where all could be sent; meanwhile `epoll` is not on watch over
    `watched`. With the answer the first entry of `note` is removed. None where there is no such answer: a message
    that is anything else is appended to the arrivals, as by `receive`. Raises what `flush` raises.
    """
    try:
        epoll.modify(watched, 0)
        if not flush(outgoing) or not await_message(sock, arrivals, tag, spin):
            return None
    finally:
        epoll.modify(watched, armed)
    answer = _lone_outcome_in(arrivals[-1][1], ident)
    if answer is not None:
        # commit
        del arrivals[-1]
        del note[0]
    return answer


def _lone_outcome_in(raw: Raw, ident: int) -> tuple[int, bytes] | None:
    message, ancillary, flags, _ = raw
    if ancillary or flags & _CUT_OFF:
        return None
    try:
        kind, told, buffers = unpack(message)
    except FramingError:
        return None
    if (kind, told, [*map(len, buffers[:2])], len(buffers)) != (Kind.OUTCOMES, ident, [OUTCOMES_HEAD.size, 1], 3):
        return None
    mode, offset, units, _ = OUTCOMES_HEAD.unpack(buffers[0])
    status = buffers[1][0]
    if (mode, offset, units) != (OutcomeMode.SEPARATE, 0, 1) or status > Status.ERROR:
        return None
    return status, bytes(buffers[2])


# --- A worker's page ----------------------------------------------------------------------------------------

# `_page` explains the words and the theory; here and in C stands how each is written.
CLAIM, MARK, START, TAIL = range(4)
TAKEN, UNPICKLING = 1, 2  # of _page.Phase: the two that the primitives write

UNIT_LIMIT: Final = 4096  # units of a packet: an offset has 12 bits of MARK
PACKET_LIMIT: Final = 2**48  # idents of packets: MARK has 48 bits for one

PIPED_CLAIMS: Final = True  # units are claimed through a pipe; in the C twin by compare-and-swap on CLAIM

# A token per unit: what the low half-word of MARK becomes once that unit is claimed.
_TOKENS = memoryview(array("H", (offset << 4 | UNPICKLING for offset in range(UNIT_LIMIT)))).cast("B")
_TOKEN = 2  # bytes

_PHASE = 0xF  # bits of MARK; zero (IDLE): the packet has not begun

_dropped = bytearray(len(_TOKENS))  # tokens that nobody will look at are read into it


class SharedPage(Protocol):
    """A mapped page as the primitives take it; the C twin looks at the memory alone."""

    words: memoryview  # the page as native 64-bit words
    mark_token: memoryview  # the low half-word of MARK
    tail_token: memoryview  # the low half-word of TAIL
    lock: int  # the page's own descriptor, locked while a packet is entered or its tail taken
    claims_read: int
    claims_write: int

    def __buffer__(self, flags: int, /) -> memoryview: ...


def page_begin(page: SharedPage, packet: int, count: int, /) -> None:
    """Enter a packet: from now on its units, 0 to `count` - 1, may be claimed."""
    packet = _within("packet", packet, 0, PACKET_LIMIT - 1)
    count = _within("count", count, 1, UNIT_LIMIT)
    words = page.words
    now = monotonic_ns()
    if count == 1 and words[CLAIM] < 2:
        # No token is in the pipe and none is needed, so nobody can take anything meanwhile.
        words[CLAIM], words[START], words[MARK] = 1, now, packet << 16 | TAKEN
        return
    try:
        lockf(page.lock, LOCK_EX)
        # Until the tokens are there MARK names the packet with phase IDLE: it has not begun, it may be begun
        # again after an interrupt, and if the worker dies here no token is taken for one of the old packet.
        words[MARK] = packet << 16
        if words[CLAIM] > 1:
            _drop_tokens(page)
        words[CLAIM] = count
        if count > 1:
            os.write(page.claims_write, _TOKENS[: _TOKEN * count])
        words[START], words[MARK] = now, packet << 16 | TAKEN
    finally:
        lockf(page.lock, LOCK_UN)


def page_claim(page: SharedPage, /) -> int:
    """Claim the next unit, mark it and return its offset; -1 if none is left to this worker."""
    words = page.words
    left = words[CLAIM]  # 0: none; 1: the only one; else as many as the packet has, not all claimed yet
    now = monotonic_ns()
    if left < 2:
        if left == 1:
            words[CLAIM], words[START], words[MARK] = 0, now, words[MARK] & ~0xFFFF | UNPICKLING
        return left - 1
    words[START] = now
    try:
        # The kernel moves the token from the pipe into the mark: claimed and marked in one step.
        os.readv(page.claims_read, (page.mark_token,))
    except BlockingIOError:
        words[CLAIM] = 0
        return -1
    offset = _offset(words[MARK])
    if offset == left - 1:
        words[CLAIM] = 0
    return offset


def page_run(
    page: SharedPage, function: Callable[[Any], Any], items: Sequence[Any], values: list[Any], /
) -> tuple[Any] | None:
    """Run the unit that was claimed last, and all that can be claimed then; what one of them raises comes out.

    The function is called with the item of each, of those of the whole packet, which a list of them then has no more.
    What it returns is appended to the values of the units before, where it is an atom. Any other value is returned, in
    a tuple: it may have changed when the next unit has run. (The C twin also appends what consists of atoms and of
    containers that nobody else has.) The page is not held meanwhile: that may fork, and the child is to unmap it.
    """
    unit = len(values)
    while unit >= 0:
        value = function(_taken(items, unit))
        if not is_settled(value):
            return (value,)
        values.append(value)
        unit = page_claim(page)
    return None


def _taken(items: Sequence[Any], unit: int) -> Any:
    item = items[unit]
    if type(items) is list:
        items[unit] = None  # what the function adds to it goes with it
    return item


def page_take(page: SharedPage, packet: int, /) -> int:
    """Take back the units of a packet that are not claimed; return the first, or -1 if there is none.

    Asked again about the packet of which it took units last, it gives the same answer.
    """
    packet = _within("packet", packet, 0, PACKET_LIMIT - 1)
    words = page.words
    if words[TAIL] >> 16 != packet or not words[TAIL] & 0xFFFF:
        try:
            lockf(page.lock, LOCK_EX | LOCK_NB)
            # Locked, so the worker stays with this packet if it is with it now: the tokens are this packet's.
            if words[MARK] >> 16 != packet or not words[MARK] & _PHASE:
                return -1
            words[TAIL] = packet << 16
            os.readv(page.claims_read, (page.tail_token, _dropped))
        except BlockingIOError:  # the worker is just entering a packet, or no token was left
            return -1
        finally:
            lockf(page.lock, LOCK_UN)
    return _offset(words[TAIL]) if words[TAIL] & 0xFFFF else -1


def _drop_tokens(page: SharedPage) -> None:
    """Empty the pipe of what a packet left there that was abandoned before its end."""
    try:
        while os.readv(page.claims_read, (_dropped,)):
            pass
    except BlockingIOError:
        pass  # empty now


def _offset(mark: int) -> int:
    return mark >> 4 & 0xFFF


# --- A worker's outbox --------------------------------------------------------------------------------------

UNIT_BITS, BYTE_BITS = 13, 18  # of the word, which `_outbox` explains
ONE_UNIT: Final = 1 << BYTE_BITS
LONGEST_COMMIT: Final = 16 * 1024  # bytes: a larger payload is sent at once instead of being copied once more


class SharedOutbox(Protocol):
    """As `SharedPage`, a mapped outbox."""

    word: memoryview  # the first 64 bits
    records: memoryview  # the bytes behind


def outbox_append(outbox: SharedOutbox, status: int, payload: Any, payloads: list[Any], /) -> bool:
    """Commit the outcome of the next unit and note its payload; False if that is not to lie there, or has no room."""
    status = _within("status", status, 0, 0xFF)
    start = (word := outbox.word[0]) & ONE_UNIT - 1
    room = len(outbox.records) - start - COMMITTED_HEAD.size
    if type(payload) is not bytes or len(payload) > min(room, LONGEST_COMMIT):
        return False
    record, these = COMMITTED_HEAD.pack(len(payload), status) + payload, (payload,)
    outbox.records[start : start + len(record)] = record
    more = word + ONE_UNIT + len(record)
    # commit
    payloads += these
    outbox.word[0] = more

    return True


def page_run_committing(
    page: SharedPage,
    outbox: SharedOutbox,
    function: Callable[[Any], Any],
    items: Sequence[Any],
    dumps: Callable[[Any], Any],
    payloads: list[Any],
    values: list[Any],
    /,
) -> tuple[Any] | None:
    """As `page_run`, and commit each outcome, as `dumps` pickles it, before the next unit is claimed.

    One that is too large for that is returned as well.
    """
    word = outbox.word[0]
    unit = (word >> BYTE_BITS + UNIT_BITS) % (1 << UNIT_BITS) + (word >> BYTE_BITS) % (1 << UNIT_BITS)
    while unit >= 0:
        value = function(_taken(items, unit))
        if not (is_settled(value, LONGEST_COMMIT) and outbox_append(outbox, 0, dumps(value), payloads)):
            return (value,)
        values.append(value)
        unit = page_claim(page)
    return None


# --- Slabs --------------------------------------------------------------------------------------------------

_INT_MAX: Final = 0x7FFF_FFFF
MAPPINGS_KEEP_DESCRIPTORS: Final = sys.version_info < (3, 13)
_OPTIONS: Final[dict[str, Any]] = {} if MAPPINGS_KEEP_DESCRIPTORS else {"trackfd": False}


def slab_lend(descriptor: int, own: Callable[[int], Owner], /) -> Owner:
    """Return an owner of a new open file by which this memfd can be read, and which has a shared lock on it.

    `own` makes the owner from its descriptor, and is written in C, as `select.epoll.fromfd` is. Raises OSError where
    the system gives no descriptor, no /proc or no such locks.
    """
    path = f"/proc/self/fd/{_within('descriptor', descriptor, 0, _INT_MAX)}"
    (lent,) = map(own, map(os.open, (path,), (os.O_RDONLY | os.O_CLOEXEC,)))
    flock(lent.fileno(), LOCK_SH | LOCK_NB)
    return lent


def slab_copy(target: Buffer, start: int, source: Buffer, /) -> None:
    """Copy C-contiguous memory to a part of other, which it does not overlap. ValueError where there is no room."""
    with memoryview(target).cast("B") as whole, memoryview(source).cast("B") as data:
        stop = _within("start", start, 0, sys.maxsize) + len(data)
        if stop > len(whole):
            raise ValueError("a slab has no room for that there")
        whole[start:stop] = data


def slab_is_free(descriptor: int, /) -> bool:
    """Tell whether none of the open files by which this memfd was lent is open any more."""
    descriptor = _within("descriptor", descriptor, 0, _INT_MAX)
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except OSError as error:
        if came_from_handler(error):
            raise
        return False
    flock(descriptor, LOCK_UN)
    return True


def slab_seals(descriptor: int, size: int, /) -> int:
    """Return the seals of a memfd; 0 if it has less than so many bytes. Raises OSError for what is no memfd."""
    descriptor, size = _within("descriptor", descriptor, 0, _INT_MAX), _within("size", size, 1, sys.maxsize)
    seals = fcntl(descriptor, F_GET_SEALS)
    return seals if os.fstat(descriptor).st_size >= size else 0


def slab_map(descriptor: int, size: int, frozen: bool, /) -> Any:
    """Return a mapping of a memfd's first bytes, which has the buffer protocol and can be referred to weakly.

    It can be written to, and nobody else sees that; with `frozen` it can only be read, and the memory is shared. It is
    unmapped with the last reference, and MAPPINGS_KEEP_DESCRIPTORS says whether it has a descriptor of its own until
    then. Raises OSError where the system gives none.
    """
    descriptor, size = _within("descriptor", descriptor, 0, _INT_MAX), _within("size", size, 1, sys.maxsize)
    flags, prot = (MAP_SHARED, PROT_READ) if frozen else (MAP_PRIVATE, PROT_READ | PROT_WRITE)
    return mmap(descriptor, size, flags=flags, prot=prot, **_OPTIONS)
