"""What inputs are made from: numbers at the edges, valid messages, and ways to damage them.

Everything is drawn from one `Source`, so that a seed and a number give the same input on every machine.
The layout of a message is written down here once more, on purpose: what the twins pack is compared with it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, TypeVar

T = TypeVar("T")

HEADER: Final = struct.Struct("<4sBBHQI")  # magic, version, kind, flags, ident, number of buffers
LENGTH: Final = struct.Struct("<Q")

_NUMBER: Final = struct.Struct("<I")
_NUMBER_AT, _IDENT_AT, _FLAGS_AT, _KIND_AT, _VERSION_AT = 16, 8, 6, 5, 4

# Where sums wrap, signs turn, and a header or a length ends.
EDGES: Final = (
    0, 1, 2, 3, 7, 8, 9, 12, 19, 20, 21, 27, 28, 29, 127, 128, 255, 256, 4095, 4096, 32767, 32768, 65535, 65536,
    2**29 - 1, 2**29, 2**31 - 1, 2**31, 2**32 - 20, 2**32 - 1, 2**32, 2**32 + 1, 2**48 - 1, 2**48, 2**61 - 1, 2**61,
    2**63 - 1, 2**63, 2**63 + 1, 2**64 - 28, 2**64 - 20, 2**64 - 8, 2**64 - 1,
)  # fmt: skip

# As often as they stand here. One input in some thousands is long, so that most of them are quick.
_COUNTS: Final = (0, 1, 1, 1, 2, 2, 3, 4, 5, 8, 13, 21)
_SIZES: Final = (0, 0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 20, 28, 31, 64, 100)
_LONG: Final = 1 / 4000
_MANY_BUFFERS, _LARGE_BUFFER = 3000, 60_000

_STUFF: Final = Random(0).randbytes(2 * _LARGE_BUFFER)  # contents are cut from it: cheaper than drawing them


class Source(Random):
    """Where every choice comes from; quicker than `Random` at what is asked for a million times."""

    def below(self, stop: int) -> int:
        """Return one of 0 to stop - 1."""
        return int(self.random() * stop)

    def pick(self, things: Sequence[T]) -> T:
        """Return one of these."""
        return things[int(self.random() * len(things))]

    def chance(self, probability: float) -> bool:
        """Return True so often."""
        return self.random() < probability

    def stuff(self, length: int) -> bytes:
        """Return so many bytes, at most 60 000, of any values."""
        start = int(self.random() * _LARGE_BUFFER)
        return _STUFF[start : start + length]

    def size(self) -> int:
        """Return the length of a buffer, which is mostly short."""
        return self.below(_LARGE_BUFFER) if self.random() < _LONG else self.pick(_SIZES)

    def count(self) -> int:
        """Return a number of buffers, which is mostly small."""
        return self.below(_MANY_BUFFERS) if self.random() < _LONG else self.pick(_COUNTS)

    def number(self, bits: int, near: int = 0) -> int:
        """Return an unsigned number of so many bits: an edge, one that is close to another, or any."""
        how = self.random()
        if how < 0.5:
            number = self.pick(EDGES)
        elif how < 0.8:
            number = near + self.below(33) - 16
        else:
            number = self.getrandbits(bits)
        return number & ((1 << bits) - 1)


# --- Valid messages -----------------------------------------------------------------------------------------


def build(kind: int, ident: int, buffers: Sequence[bytes]) -> bytes:
    """Return the message that the documentation of `_framing` describes."""
    lengths = struct.pack(f"<{len(buffers)}Q", *map(len, buffers))
    return b"".join([HEADER.pack(b"pair", 1, kind, 0, ident, len(buffers)), lengths, *buffers])


def message(source: Source) -> bytes:
    """Return a valid message of any shape."""
    count = source.count()
    many = count > max(_COUNTS)  # and none of them holds anything: that would be too much
    buffers = [b""] * count if many else [source.stuff(source.size()) for _ in range(count)]
    return build(source.below(256), source.number(64), buffers)


# --- Damage -------------------------------------------------------------------------------------------------

Damage = Callable[[Source, bytearray], None]


def flip_bits(source: Source, data: bytearray) -> None:
    """Flip a bit or a few, mostly near the beginning, where it matters."""
    if data:
        reach = min(len(data), 60) if source.random() < 0.7 else len(data)
        for _ in range(source.pick((1, 1, 1, 2, 4))):
            data[source.below(reach)] ^= 1 << source.below(8)


def set_byte(source: Source, data: bytearray) -> None:
    """Set a byte to one of the values that programs take for special."""
    if data:
        data[source.below(len(data))] = source.pick((0, 1, 0x7F, 0x80, 0xFE, 0xFF))


def cut(source: Source, data: bytearray) -> None:
    """Drop the end: anywhere, or just before or behind an edge."""
    at = source.pick(EDGES[:20]) if source.random() < 0.4 else source.below(len(data) + 1)
    del data[at:]


def extend(source: Source, data: bytearray) -> None:
    """Add something at the end."""
    length = source.pick((1, 1, 2, 7, 8, 16, 40))
    data += bytes(length) if source.random() < 0.3 else source.stuff(length)


def drop(source: Source, data: bytearray) -> None:
    """Drop something in the middle."""
    at = source.below(len(data) + 1)
    del data[at : at + source.pick((1, 2, 4, 8, 20))]


def insert(source: Source, data: bytearray) -> None:
    """Put something in, new or a copy of what stands elsewhere."""
    length = source.pick((1, 2, 4, 8, 20))
    start = source.below(len(data) + 1)
    what = data[start : start + length] if source.random() < 0.5 else source.stuff(length)
    at = source.below(len(data) + 1)
    data[at:at] = what


ANY_BYTES: Final[tuple[Damage, ...]] = (flip_bits, flip_bits, set_byte, cut, extend, drop, insert)
"""What can be done to bytes of any meaning."""


def set_magic(source: Source, data: bytearray) -> None:
    """Begin with another magic."""
    data[:4] = source.pick((b"PAIR", b"pear", b"riap", b"pai\0", bytes(4), source.stuff(4)))


def set_version(source: Source, data: bytearray) -> None:
    """Tell another version."""
    data[_VERSION_AT:_KIND_AT] = bytes([source.pick((0, 2, 3, 0x81, 255))])


def set_kind(source: Source, data: bytearray) -> None:
    """Tell any kind, which no decoder of messages minds."""
    data[_KIND_AT:_FLAGS_AT] = source.stuff(1)


def set_flags(source: Source, data: bytearray) -> None:
    """Set a flag, or any."""
    flags = 1 << source.below(16) if source.random() < 0.8 else source.getrandbits(16)
    data[_FLAGS_AT:_IDENT_AT] = flags.to_bytes(2, "little")


def set_ident(source: Source, data: bytearray) -> None:
    """Tell any ident, which no decoder of messages minds."""
    data[_IDENT_AT:_NUMBER_AT] = LENGTH.pack(source.number(64))


def set_number(source: Source, data: bytearray) -> None:
    """Tell another number of buffers."""
    if len(data) >= HEADER.size:
        (number,) = _NUMBER.unpack_from(data, _NUMBER_AT)
        _NUMBER.pack_into(data, _NUMBER_AT, source.number(32, number))


def _lengths(data: bytearray) -> int:
    """Return how many lengths a message has, by its own account and at most as many as there is room for."""
    if len(data) < HEADER.size + LENGTH.size:
        return 0
    number: int = _NUMBER.unpack_from(data, _NUMBER_AT)[0]
    return min(number, (len(data) - HEADER.size) // LENGTH.size)


def set_length(source: Source, data: bytearray) -> None:
    """Tell another length of one buffer."""
    count = _lengths(data)
    if count:
        at = HEADER.size + LENGTH.size * source.below(count)
        (length,) = LENGTH.unpack_from(data, at)
        LENGTH.pack_into(data, at, source.number(64, length))


def wrap_lengths(source: Source, data: bytearray) -> None:
    """Tell two lengths which add up as before, modulo 2**64; as honest ones every now and then."""
    count = _lengths(data)
    if count > 1:
        one, other = (HEADER.size + LENGTH.size * at for at in source.sample(range(count), 2))
        total = LENGTH.unpack_from(data, one)[0] + LENGTH.unpack_from(data, other)[0]
        part = source.number(64) if source.random() < 0.8 else source.below(total + 1) & (2**64 - 1)
        LENGTH.pack_into(data, one, part)
        LENGTH.pack_into(data, other, (total - part) & (2**64 - 1))


MESSAGES: Final[tuple[Damage, ...]] = (
    *ANY_BYTES, set_magic, set_version, set_kind, set_flags, set_ident, set_number, set_number, set_length, set_length,
    wrap_lengths, wrap_lengths,
)  # fmt: skip
"""What can be done to messages."""

_TIMES: Final = (0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 4)  # how often an input is damaged


def damaged(source: Source, data: bytes, ways: Sequence[Damage]) -> bytes:
    """Return these bytes with any damage, or as they are."""
    times = source.pick(_TIMES)
    if not times:
        return data
    changed = bytearray(data)
    for _ in range(times):
        source.pick(ways)(source, changed)
    return bytes(changed)
