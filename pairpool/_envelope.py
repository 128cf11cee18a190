"""Pickles that are too large for a message: their bytes in a slab, and an envelope that says where.

An envelope is a small pickle like any other. Whoever unpickles it unpickles what is in the slab whose descriptor came
with it, and gets that. Buffers that went out of band (PEP 574) are views of the mapped slab, as they lie there, and are
not copied any more.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pairpool._descriptors import Owner
from pairpool._passing import claim
from pairpool._slab import Put, layout

PROTOCOL: Final = 5
LARGEST_INLINE: Final = 30 * 1024  # bytes: what is larger would hardly leave room for anything else in a message
_LARGEST_STREAM: Final = 4 * 1024  # bytes that a pickle may have without its buffers, and still be in the envelope
_BEGINNINGS: Final = (pickle.PROTO, pickle.FRAME)  # of what the pickler writes that is not data by itself
_FEW: Final = 4  # buffers that all stay views, whatever their size
_SMALL: Final = 1 << 20  # bytes of one that is copied where there are more


class Large(NamedTuple):
    """A pickle as a pickler wrote it, and its buffers. What they view may change until it is packed."""

    chunks: Sequence[Any]
    buffers: Sequence[Any]

    def frames(self) -> list[Any]:
        """Those chunks that may have names in them; the others are somebody's bytes or text, and may be long."""
        return [chunk for chunk in self.chunks if chunk[:1] in _BEGINNINGS]


def pack(large: Large, put: Put, index: int) -> tuple[bytes, Owner | None, int]:
    """The envelope, the descriptor of a slab that has to travel with it, and how many bytes are in that.

    Where there is no room for a slab everything is in the envelope. Raises MemoryError where there is none for that.

    Args:
        large: what it is about.
        put: has it in a slab.
        index: which of the descriptors that travel with the envelope is the slab's.
    """
    chunks, buffers = large
    length = sum(map(len, chunks))
    sizes = tuple(map(len, buffers))
    stream: bytes | int = b"".join(chunks) if length <= _LARGEST_STREAM else length
    if isinstance(stream, bytes):
        parts = buffers
        starts, end = layout(sizes)
    else:
        parts = [*chunks, *buffers]
        starts, end = layout((length, *sizes))
        starts[:1] = [sum(map(len, chunks[:number])) for number in range(len(chunks))]
    try:
        lent = put(parts, starts, end)
    except (OSError, MemoryError):
        inside = _Inside(b"".join(chunks), [pickle.PickleBuffer(buffer) for buffer in buffers])
        return pickle.dumps(inside, PROTOCOL), None, 0
    return pickle.dumps(_Envelope(index, stream, sizes), PROTOCOL), lent, end


class _Envelope:
    def __init__(self, index: int, stream: bytes | int, sizes: tuple[int, ...]) -> None:
        self._arguments = index, stream, sizes

    def __reduce__(self) -> tuple[Any, ...]:
        return open_envelope, self._arguments


def open_envelope(index: int, stream: bytes | int, sizes: tuple[int, ...]) -> Any:
    """Unpickle what is in a slab. `stream`: the pickle, or how long it is at the slab's beginning."""
    lengths = sizes if isinstance(stream, bytes) else (stream, *sizes)
    starts, end = layout(lengths)
    content = memoryview(claim(index).content(end))
    parts: list[Any] = [content[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    pickled = stream if isinstance(stream, bytes) else parts.pop(0)
    if len(parts) > _FEW and not content.readonly:
        # A view keeps all of the slab, and of many arrays somebody may keep one.
        parts = [bytearray(part) if len(part) < _SMALL else part for part in parts]
    return pickle.loads(pickled, buffers=parts)


class _Inside:
    def __init__(self, stream: bytes, buffers: list[pickle.PickleBuffer]) -> None:
        self._arguments = stream, buffers

    def __reduce__(self) -> tuple[Any, ...]:
        return open_inside, self._arguments


def open_inside(stream: bytes, buffers: list[Any]) -> Any:
    """Unpickle what has its buffers with it."""
    return pickle.loads(stream, buffers=buffers)


class Sorter:
    """Tells a pickler which buffers go out of band, and keeps them."""

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """True where it is to be in the pickle."""
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not contiguous: the pickler says so
        if raw.nbytes <= LARGEST_INLINE:
            return True
        self.buffers.append(raw)
        return False
