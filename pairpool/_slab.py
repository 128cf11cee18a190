"""Slabs: shared memory in which one process hands large payloads to another.

Theory of operation
===================
A slab is a memfd of the sender's, sealed at its size. One payload at a time lies in it, and a descriptor of it travels
with each message that needs it, so that any packet may be taken back and sent to another worker. The receiver maps it
privately, closes the descriptor, and gives views of the mapping to whoever unpickles. Nothing but those views keeps the
mapping: with the last of them it is unmapped, and so is all that was written to it.

Pages that exist are what makes this fast: filling them by a copy takes a fifth of the time that it takes to have the
kernel make them. So a slab is used again once nobody can look at it any more, and the kernel tells when that is. Each
payload travels on an open file of its own, opened for reading through /proc, which has a shared lock (flock(2)). Such a
lock belongs to the open file: whatever refers to that keeps it, be it a descriptor, a message on its way or a mapping,
in whatever process, also in one that was forked behind our back. Where the sender can have the exclusive lock nobody
is left. That takes no message, no bookkeeping and no trust; half a microsecond to ask.

- A slab is first filled by pwrite(2), and by copying through a mapping from then on, but no further than it was written
  before. So no page is touched through a mapping that does not exist yet, and where memory is short there is an
  OSError and no SIGBUS.
- What a receiver writes is its own (MAP_PRIVATE), and by the descriptor that it has it could not write to the slab.
- A slab that comes back late, or never, is given up: its memory is the receiver's then, until he drops it.

Threads: `Arena.put` may be called by any, and from signal handlers. A slab is in one place at a time, a deque of the
arena's or the hands of one thread; an interrupt in between loses it, and then it is collected.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from pairpool import _descriptors, _framing
from pairpool._descriptors import Owner
from pairpool._strikes import came_from_handler

Put = Callable[[Sequence[Any], Sequence[int], int], Owner]
"""Copies parts to where they are to lie in a slab, with its end; returns what the receiver is to be given."""

SMALLEST: Final = 16  # exponent of the smallest slab's size
LARGEST: Final = 47  # exponent: what a process can map
ALIGNMENT: Final = 64  # bytes: where parts begin, as numpy and its like want it
NAME: Final = "pairpool-slab"
STEP: Final = 1 << 23  # bytes copied or mapped in one go: until then no other thread runs
MOST_AT_ONCE: Final = 1 << 30  # bytes: what one read(2) or write(2) takes is limited
MOST_KEPT: Final = 1 << 28  # bytes of slabs in an arena, used or not
MOST_SLABS: Final = 128  # in an arena: each has a descriptor, or two
KEPT: Final = 1_000_000_000  # ns that they stay there from the last use on
LOOKED_AT: Final = 4  # slabs, those that were lent longest, before another one is made
LOWEST: Final = 16  # descriptor that one may have in any case, without a look at the limit
HIGHEST: Final = 512  # descriptor that a slab may have: programs wait with select(2), which knows of 1024
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ of madvise(2), since Linux 5.14
_FLAGS: Final = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING

# What counts is descriptors, or else vm.max_map_count, which is 65 530.
_MOST_MAPPED: Final = 128 if _framing.MAPPINGS_KEEP_DESCRIPTORS else 16_384
_own: set[weakref.ref[Any]] = set()  # what is mapped privately
_common: set[weakref.ref[Any]] = set()  # and what is frozen


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where parts of these sizes lie in a slab, one after another, and where the last ends."""
    starts, end = [], 0
    for size in sizes:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        starts.append(start)
        end = start + size
    return starts, end


def put_for_all(parts: Sequence[Any], starts: Sequence[int], end: int) -> Owner:
    """As `put_once`, and nobody can write to it any more, so that all who read it can share the memory."""
    slab = _filled(parts, starts, end)
    slab.freeze()
    return slab.lend()


def put_once(parts: Sequence[Any], starts: Sequence[int], end: int) -> Owner:
    """As `Put`, in a slab that is never used for anything else. Raises OSError where the system has no room."""
    return _filled(parts, starts, end).lend()


def _filled(parts: Sequence[Any], starts: Sequence[int], end: int) -> _Slab:
    slab = _Slab(_exponent_of(end))
    slab.fill(parts, starts, end)
    return slab


class Arena:
    """The slabs of a sender, by their size; of each size the one that was lent longest ago comes first."""

    def __init__(self) -> None:
        self.trim_at: int | None = None  # when `trim` is due, in ns; None: there is nothing in it
        self._slabs: list[deque[_Slab]] = [deque() for _ in range(LARGEST + 1)]

    def put(self, parts: Sequence[Any], starts: Sequence[int], end: int) -> Owner:
        """As `Put`. Raises OSError where the system has no room."""
        exponent = _exponent_of(end)
        slabs = self._slabs[exponent]
        found = _free_one_of(slabs)
        slab = found or _Slab(exponent)
        lent = slab.lend()
        if is_high(lent.fileno()):
            raise OSError("slabs have taken as many descriptors as they may")
        slab.fill(parts, starts, end)
        slabs.append(slab)
        self.trim_at = time.monotonic_ns() + KEPT
        if found is None:
            self._make_room()
        return lent

    def put_anyway(self, parts: Sequence[Any], starts: Sequence[int], end: int) -> Owner:
        """As `put`, for what has no other way: also beyond the descriptors that slabs may have."""
        try:
            return self.put(parts, starts, end)
        except OSError as error:
            if came_from_handler(error):
                raise
        return put_once(parts, starts, end)

    def _make_room(self) -> None:
        """Gives up slabs where there are too many, the largest first."""
        number = sum(map(len, self._slabs))
        size = sum([len(slabs) << exponent for exponent, slabs in enumerate(self._slabs) if slabs])
        for exponent in range(LARGEST, SMALLEST - 1, -1):
            slabs = self._slabs[exponent]
            while slabs and (size > MOST_KEPT or number > MOST_SLABS):
                _close_first(slabs)
                number, size = number - 1, size - (1 << exponent)

    def trim(self) -> None:
        """Gives back to the system what nobody uses, and gives up the rest."""
        self.trim_at = None
        for slabs in self._slabs:
            while slabs:
                _close_first(slabs)


def _exponent_of(size: int) -> int:
    return max(SMALLEST, (size - 1).bit_length())


def _free_one_of(slabs: deque[_Slab]) -> _Slab | None:
    for _ in range(min(len(slabs), LOOKED_AT)):
        try:
            slab = slabs.popleft()
        except IndexError as error:
            if came_from_handler(error):
                raise
            return None  # another thread has just taken it
        if slab.is_free():
            return slab
        slabs.append(slab)
    return None


def _close_first(slabs: deque[_Slab]) -> None:
    try:
        slabs.popleft().close()
    except IndexError as error:  # another thread has just taken it
        if came_from_handler(error):
            raise


class _Slab:
    """A piece of the sender's memory that others can map."""

    __slots__ = ("__weakref__", "_exists", "_map", "_owner", "_size")

    def __init__(self, exponent: int) -> None:
        self._size = 1 << exponent
        self._exists = 0  # bytes
        self._map: mmap.mmap | None = None
        self._owner = _descriptors.own(os.memfd_create, NAME, _FLAGS)
        _descriptors.register(self)
        os.ftruncate(self._owner.fileno(), self._size)
        fcntl.fcntl(self._owner.fileno(), fcntl.F_ADD_SEALS, _SEALS)

    def fill(self, parts: Sequence[Any], starts: Sequence[int], end: int) -> None:
        """Copies parts to where they belong. Raises OSError where there is no memory."""
        if end > self._exists:
            for part, start in zip(parts, starts, strict=True):
                _write(self._owner.fileno(), memoryview(part), start)
            self._exists = end
            return
        if self._map is None:
            self._map = mmap.mmap(self._owner.fileno(), self._size)  # first, so that a forked child can close it
            self._fill_page_table(self._map)
        for part, start in zip(parts, starts, strict=True):
            data = memoryview(part)
            for at in range(0, len(data), STEP):
                _framing.slab_copy(self._map, start + at, data[at : at + STEP])

    def _fill_page_table(self, mapped: mmap.mmap) -> None:
        """Else copying stops at each page that is not there yet: 26 ms for 64 MB, of which this saves 13."""
        try:
            for start in range(0, self._exists, STEP):
                mapped.madvise(_POPULATE_READ, start, min(STEP, self._exists - start))
        except OSError as error:
            if came_from_handler(error):
                raise

    def freeze(self) -> None:
        """Has the kernel refuse whoever wants to write to it. Not once it was mapped."""
        fcntl.fcntl(self._owner.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)

    def lend(self) -> Owner:
        """A descriptor by which it can be read. Raises OSError where the system gives none."""
        return _framing.slab_lend(self._owner.fileno(), Owner.fromfd)

    def is_free(self) -> bool:
        """Whether nobody can look any more at what was last in it."""
        return _framing.slab_is_free(self._owner.fileno())

    def close(self) -> None:
        """Twice does no harm."""
        self._owner.close()
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:
                pass  # forked while another thread was filling it in Python: the mapping is in use for ever here


def is_high(descriptor: int) -> bool:
    """Whether slabs have taken as many descriptors as they may: the rest is the program's."""
    if descriptor < LOWEST:
        return False
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return descriptor >= (HIGHEST if soft == resource.RLIM_INFINITY else min(HIGHEST, soft // 2))


def _would_be_high(descriptor: int) -> bool:
    """Whether the descriptor that a mapping keeps of this one, where mappings do that, is for the program to have."""
    if not _framing.MAPPINGS_KEEP_DESCRIPTORS:
        return False
    try:
        return is_high(_descriptors.own(os.dup, descriptor).fileno())
    except OSError as error:
        if came_from_handler(error):
            raise
    return True  # there is none at all


def _write(descriptor: int, data: memoryview, start: int) -> None:
    while data:
        written = os.pwrite(descriptor, data[:MOST_AT_ONCE], start)
        start += written
        data = data[written:]


# -- the receiver's side -------------------------------------------------------------------------------------


def check(descriptor: int, size: int) -> None:
    """Raises ValueError or OSError where this is no slab of at least so many bytes: it could end under a mapping."""
    if _framing.slab_seals(descriptor, size) & _SEALS != _SEALS:
        raise ValueError(f"no slab of {size} bytes")


def content(descriptor: int, size: int) -> Any:
    """What is in a slab: mapped, or copied where the system gives no mapping. The descriptor may be closed afterwards.

    Whoever has it may write to it, and nobody else sees that; but to one that was frozen nobody can.

    Raises OSError or MemoryError where there is no room for a copy either.
    """
    frozen = bool(_framing.slab_seals(descriptor, size) & fcntl.F_SEAL_WRITE)
    if len(_own) + len(_common) < _MOST_MAPPED and not _would_be_high(descriptor):
        known = _common if frozen else _own
        try:
            mapped = _framing.slab_map(descriptor, size, frozen)
        except OSError as error:  # no memory, by some limit, or too many mappings
            if came_from_handler(error):
                raise
        else:
            known.add(weakref.ref(mapped, known.discard))
            return mapped
    copied = copy(descriptor, size)
    return memoryview(copied).toreadonly() if frozen else copied


def copy(descriptor: int, size: int) -> bytearray:
    """What is in a slab, copied. Raises OSError or MemoryError where there is no room for it."""
    copied = bytearray(size)
    with memoryview(copied) as rest:
        at = 0
        while at < size:
            got = os.preadv(descriptor, [rest[at : at + MOST_AT_ONCE]], at)
            if not got:
                raise OSError(f"a slab has {at} bytes instead of {size}")
            at += got
    return copied


def held_bytes() -> int:
    """Bytes of slabs of which this process keeps the memory."""
    there = [reference() for reference in [*_own]]
    return sum([len(mapped) for mapped in there if mapped is not None])
