"""Outcomes that a worker has committed and not yet sent, in memory that outlives it.

Tiny units travel many to a message, so that outcomes wait in the worker for the message to fill. Were they only in its
own memory they would be lost with it, or would have to run twice; and a unit that hangs would hold up the
outcomes of those before it. So each is written here first, and then *committed* by one 64-bit store that tells
packet, first unit, number of units and bytes at once:

    word = packet (20 bits) | first unit (13 bits) | units (13 bits) | bytes (18 bits)

A reader copies the records and reads the word again: as long as packet and first unit are the same, what it
copied was only ever appended to. A store that an x86 or ARM core has retired is seen by everyone, also after
the process is killed, so an outcome is committed or it is not.

Cost of a commit: 0.3 us in Python.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys

from pairpool import _descriptors
from pairpool._packet import COMMITTED_HEAD

SIZE = 128 * 1024  # bytes, the word included: some hundred outcomes of tiny units
WORD = 8  # bytes
HEAD_SIZE = COMMITTED_HEAD.size

_PACKET_BITS, _UNIT_BITS, _BYTE_BITS = 20, 13, 18
_PACKET_SHIFT = 2 * _UNIT_BITS + _BYTE_BITS
_FIRST_SHIFT = _UNIT_BITS + _BYTE_BITS
_COUNT_SHIFT = _BYTE_BITS
_ONE_UNIT = 1 << _COUNT_SHIFT


def _low(packet: int) -> int:
    return packet & ((1 << _PACKET_BITS) - 1)


class Outbox:
    """One worker's outbox: made by the parent, mapped by both. A child that either forks later does not have it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = _descriptors.Descriptor(descriptor)
        try:
            if sys.version_info >= (3, 13):
                self._map = mmap.mmap(descriptor, SIZE, trackfd=False)  # earlier versions keep a duplicate
            else:
                self._map = mmap.mmap(descriptor, SIZE)
        except BaseException:
            self._descriptor.close()
            raise
        self._view = memoryview(self._map)
        self._word = self._view[:WORD].cast("Q")
        self._packet = self._first = 0
        self._statuses = bytearray()  # of what is committed, and its payloads, for the message
        self._payloads: list[bytes] = []
        self._stop = WORD  # of the records
        self._committed = 0  # the word
        _descriptors.register(self)

    @classmethod
    def create(cls) -> Outbox:
        """Parent: make the outbox of a worker to come."""
        descriptor = os.memfd_create("pairpool-outbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, SIZE)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    @classmethod
    def attach(cls, descriptor: int) -> Outbox:
        """Worker: map the outbox whose descriptor it was given."""
        outbox = cls(descriptor)
        outbox.drop_descriptor()
        return outbox

    @property
    def descriptor(self) -> int:
        """Parent: what the worker is to be given, before `drop_descriptor`."""
        return self._descriptor.fileno()

    def drop_descriptor(self) -> None:
        """Closes the descriptor: the mapping is enough."""
        self._descriptor.close()

    def close(self) -> None:
        """Unmaps it and closes the descriptor; once closed it stays so."""
        self._descriptor.close()
        try:
            self._word.release()
            self._view.release()
            self._map.close()
        except BufferError:
            pass  # forked while another thread was reading it: the mapping is in use for ever here

    # -- the worker's side -----------------------------------------------------------------------------------

    def begin(self, packet: int, first: int = 0) -> None:
        """What follows are outcomes of `packet` from unit `first` on."""
        self._packet, self._first = _low(packet), first
        self._forget()

    def append(self, status: int, data: bytes) -> bool:
        """Commits the outcome of the next unit; False where there is no room for it."""
        start, size = self._stop, HEAD_SIZE + len(data)
        stop = start + size
        if stop > SIZE:
            return False
        self._view[start:stop] = COMMITTED_HEAD.pack(len(data), status) + data
        self._stop = stop
        self._statuses.append(status)
        self._payloads.append(data)
        self._committed = self._word[0] = self._committed + _ONE_UNIT + size
        return True

    def take(self) -> tuple[int, bytes, list[bytes]]:
        """First unit, statuses and payloads of what is committed and was not cleared."""
        return self._first, bytes(self._statuses), self._payloads

    def clear(self) -> None:
        """What was committed has been sent."""
        self._first += len(self._payloads)
        self._forget()

    def _forget(self) -> None:
        self._statuses, self._payloads, self._stop = bytearray(), [], WORD
        self._committed = self._word[0] = self._packet << _PACKET_SHIFT | self._first << _FIRST_SHIFT

    # -- the parent's side -----------------------------------------------------------------------------------

    def peek(self, packet: int) -> tuple[int, int, bytes] | None:
        """First unit, number of units and records committed for `packet`; None where there are none to be had."""
        word = self._word[0]
        count = word >> _COUNT_SHIFT & ((1 << _UNIT_BITS) - 1)
        if word >> _PACKET_SHIFT != _low(packet) or not count:
            return None
        used = word & ((1 << _BYTE_BITS) - 1)
        records = bytes(self._view[WORD : WORD + used])
        if self._word[0] >> _FIRST_SHIFT != word >> _FIRST_SHIFT:
            return None  # sent meanwhile: the message tells them
        return word >> _FIRST_SHIFT & ((1 << _UNIT_BITS) - 1), count, records
