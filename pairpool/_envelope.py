"""Pickles that have a slab of their own: their bytes there, and an envelope that says where.

An envelope stands where the pickle would::

    MAGIC u8 | index u16: which of the descriptors that came along is the slab's | number of buffers u16 |
    length of the stream u64 | whether that is in the slab u8 | length of each buffer u64 | stream, or nothing

The *stream* is the pickle without the buffers that went out of band (PEP 574). Those are loaded as views of the mapped
slab, as they lie there, and are not copied any more.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

from pairpool._descriptors import Owner
from pairpool._passing import ArrivedSlab, Slab, claim, of_descriptors, with_arrivals
from pairpool._slab import Put, layout
from pairpool._strikes import came_from_handler

PROTOCOL: Final = 5
# Bytes of a pickle that travels with others; a larger one has a slab of its own.
LARGEST_TOGETHER: Final = 1 << 17
# Bytes of a buffer that stays in the pickle; a larger one goes out of band, into such a slab.
LARGEST_IN_BAND: Final = 80 * 1024
# Bytes of a pickle that does not count where memory is bounded, and of a buffer of which each sharer has its own.
LARGEST_SMALL: Final = 30 * 1024
# Bytes of a pickle of several items: any of them may be sent alone, and all go along.
LARGEST_GROUP: Final = 16 * 1024
_MAGIC: Final = 0xE1  # no pickle begins with that
_HEAD: Final = struct.Struct("<BHHQB")
_LARGEST_STREAM: Final = 4 * 1024  # bytes that a stream may have and still be in the envelope
_MOST_BUFFERS: Final = (1 << 16) - 1
_BEGINNINGS: Final = (pickle.PROTO, pickle.FRAME)  # of what the pickler writes that is not data by itself
_AS_THEY_ARE: Final = (bytes, bytearray)  # whoever reduces to a buffer of these gets such a one, not a view
_FEW: Final = 4  # buffers that all stay views, whatever their size
_WORTH_A_VIEW: Final = 1 << 20  # bytes of one that stays a view where there are more


class Large(NamedTuple):
    """A pickle as a pickler wrote it, and its buffers. What they view may change until it is packed."""

    chunks: Sequence[Any]
    buffers: Sequence[Any]

    @staticmethod
    def written(chunks: Sequence[Any], buffers: Sequence[Any]) -> Large:
        """What a pickler wrote; where that is somebody's own bytes at length it is no bytes, but what has them."""
        return Large([each if type(each) is bytes else memoryview(each).cast("B") for each in chunks], buffers)

    def frames(self) -> list[Any]:
        """Those chunks that may have names in them; the others are somebody's bytes or text, and may be long."""
        return [chunk for chunk in self.chunks if type(chunk) is bytes and chunk[:1] in _BEGINNINGS]


def pack(large: Large, put: Put, index: int) -> tuple[bytes, Owner | None, int]:
    """The envelope, the descriptor of a slab that has to travel with it, and how many bytes are in that.

    Where there is no room for a slab everything is in the envelope. Raises MemoryError where there is none for that.

    Args:
        large: what it is about.
        put: has it in a slab.
        index: which of the descriptors that travel with the envelope is the slab's.
    """
    chunks, buffers = large
    length, sizes = sum(map(len, chunks)), tuple(map(len, buffers))
    outside = length > _LARGEST_STREAM
    if outside:
        starts, end = layout((length, *sizes))
        starts[:1] = accumulate(map(len, chunks[:-1]), initial=0)
    else:
        starts, end = layout(sizes)
    try:
        lent = put([*chunks, *buffers] if outside else buffers, starts, end)
    except (OSError, MemoryError) as error:
        if came_from_handler(error):
            raise
        inside = _Inside(b"".join(chunks), [pickle.PickleBuffer(buffer) for buffer in buffers])
        return pickle.dumps(inside, PROTOCOL), None, 0
    head = _HEAD.pack(_MAGIC, index, len(sizes), length, outside) + struct.pack(f"<{len(sizes)}Q", *sizes)
    return head if outside else b"".join((head, *chunks)), lent, end


class _Inside:
    def __init__(self, stream: bytes, buffers: list[pickle.PickleBuffer]) -> None:
        self._arguments = stream, buffers

    def __reduce__(self) -> tuple[Any, ...]:
        return open_inside, self._arguments


def open_inside(stream: bytes, buffers: list[Any]) -> Any:
    """Unpickle what has its buffers with it."""
    return pickle.loads(stream, buffers=buffers)


def loads(data: Any, descriptors: Sequence[int] = ()) -> Any:
    """Unpickle, also what is in an envelope. The descriptors are consumed, also where this fails."""
    if not descriptors:
        return pickle.loads(data)
    return with_arrivals(of_descriptors(descriptors), _open if data[0] == _MAGIC else pickle.loads, data)


def loads_with_slab(data: Any, slab: Slab) -> Any:
    """Unpickle what is in an envelope. Its slab is not consumed."""
    return with_arrivals((ArrivedSlab(slab),), _open if data[0] == _MAGIC else pickle.loads, data)


def _open(data: Any) -> Any:
    _, index, number, length, outside = _HEAD.unpack_from(data)
    stream = _HEAD.size + 8 * number
    sizes = struct.unpack_from(f"<{number}Q", data, _HEAD.size)
    starts, end = layout((length, *sizes) if outside else sizes)
    content = memoryview(claim(index).content(end))
    if outside:
        pickled = content[:length]
        del starts[0]
    else:
        pickled = memoryview(data)[stream : stream + length]
    parts: list[Any] = [content[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    if number > _FEW and not content.readonly:
        # A view keeps all of the slab, and of many arrays somebody may keep one.
        parts = [bytearray(part) if len(part) < _WORTH_A_VIEW else part for part in parts]
    return pickle.loads(pickled, buffers=parts)


class Sorter:
    """Tells a pickler which buffers go out of band, and keeps them."""

    def __init__(self, in_band: int = LARGEST_IN_BAND) -> None:
        """`in_band`: bytes up to which a buffer stays in the pickle."""
        self.buffers: list[memoryview] = []
        self._in_band = in_band

    def take(self) -> list[memoryview]:
        """Those that it has, which it has no more."""
        taken = self.buffers
        if taken:
            self.buffers = []
        return taken

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """True where it is to be in the pickle."""
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not contiguous: the pickler says so
        if raw.nbytes <= self._in_band and (raw.nbytes <= LARGEST_SMALL or memoryview(buffer).c_contiguous):
            return True  # a large one the pickler hands on as it is, and it is written only if it is C-contiguous
        if len(self.buffers) >= _MOST_BUFFERS:
            return True
        if type(raw.obj) in _AS_THEY_ARE:
            return True
        self.buffers.append(raw)
        return False
