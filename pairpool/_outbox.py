"""Outcomes that a worker has committed and not yet sent, in memory that outlives it.

Tiny units travel many to a message, so that outcomes wait in the worker for the message to fill. Were they only in its
own memory they would be lost with it, or would have to run twice; and a unit that hangs would hold up the
outcomes of those before it. So each is written here first, and then *committed* by one 64-bit store that tells
packet, first unit, number of units and bytes at once:

    word = packet (20 bits) | first unit (13 bits) | units (13 bits) | bytes (18 bits)

A reader copies the records and reads the word again: as long as packet and first unit are the same, what it
copied was only ever appended to. A store that an x86 or ARM core has retired is seen by everyone, also after
the process is killed, so an outcome is committed or it is not.

Cost of a commit: 0.3 us in Python, 0.05 in C.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import sys
from typing import TYPE_CHECKING, Any, Final

from pairpool import _descriptors, _framing
from pairpool._framing_py import BYTE_BITS, UNIT_BITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pairpool._page import Page

SIZE: Final = 128 * 1024  # bytes, the word included: some hundred outcomes of tiny units

_twin = _framing.twin

_WORD = 8  # bytes
_PACKET_BITS = 20
_PACKET_SHIFT = 2 * UNIT_BITS + BYTE_BITS
_FIRST_SHIFT = UNIT_BITS + BYTE_BITS


def _low(packet: int) -> int:
    return packet & ((1 << _PACKET_BITS) - 1)


class _Memory(mmap.mmap):
    """The mapped outbox as the primitives of both twins take it (`_framing_py.SharedOutbox`)."""

    word: memoryview
    records: memoryview

    @classmethod
    def map(cls, descriptor: int) -> _Memory:
        if sys.version_info >= (3, 13):
            memory = cls(descriptor, SIZE, trackfd=False)  # earlier versions keep a duplicate
        else:
            memory = cls(descriptor, SIZE)
        # An mmap cannot be closed while a view of it is there; close() releases these first.
        view = memoryview(memory)
        memory.word, memory.records = view[:_WORD].cast("Q"), view[_WORD:]
        return memory

    def close(self) -> None:
        for view in (self.word, self.records):
            view.release()
        super().close()


class Outbox:
    """One worker's outbox: made by the parent, mapped by both. A child that either forks later does not have it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = _descriptors.Descriptor(descriptor)
        try:
            self.memory = _Memory.map(descriptor)
        except BaseException:
            self._descriptor.close()
            raise
        self._packet = self._first = 0
        self._payloads: list[Any] = []  # of what is committed and was not cleared
        self._failures: list[tuple[int, int]] = []  # place among these, and status
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
            self.memory.close()
        except BufferError:
            pass  # forked while another thread was reading it: the mapping is in use for ever here

    # -- the worker's side -----------------------------------------------------------------------------------

    def begin(self, packet: int, first: int = 0) -> None:
        """What follows are outcomes of `packet` from unit `first` on."""
        self._packet, self._first = _low(packet), first
        self._forget()

    def append(self, status: int, data: Any) -> bool:
        """Commits the outcome of the next unit; False where there is no room, or it is too large to be copied."""
        if not _twin.outbox_append(self.memory, status, data, self._payloads):
            return False
        if status:
            self._failures.append((len(self._payloads) - 1, status))
        return True

    def run(
        self, page: Page, function: Callable[[Any], Any], items: Sequence[Any], values: list[Any]
    ) -> tuple[Any] | None:
        """Runs units and commits what they give (`_framing_py.page_run_committing`)."""
        return _twin.page_run_committing(
            page.memory, self.memory, function, items, pickle.dumps, self._payloads, values
        )

    @property
    def next_unit(self) -> int:
        """The unit whose outcome is to be committed next."""
        return self._first + len(self._payloads)

    def take(self) -> tuple[int, bytes, list[Any]]:
        """First unit, statuses and payloads of what is committed and was not cleared."""
        statuses = bytearray(len(self._payloads))
        for place, status in self._failures:
            statuses[place] = status
        return self._first, bytes(statuses), self._payloads

    def clear(self) -> None:
        """What was committed has been sent."""
        self._first += len(self._payloads)
        self._forget()

    def _forget(self) -> None:
        self._payloads, self._failures = [], []
        self.memory.word[0] = self._packet << _PACKET_SHIFT | self._first << _FIRST_SHIFT

    # -- the parent's side -----------------------------------------------------------------------------------

    def peek(self, packet: int) -> tuple[int, int, bytes] | None:
        """First unit, number of units and records committed for `packet`; None where there are none to be had."""
        word = self.memory.word[0]
        count = word >> BYTE_BITS & ((1 << UNIT_BITS) - 1)
        if word >> _PACKET_SHIFT != _low(packet) or not count:
            return None
        used = word & ((1 << BYTE_BITS) - 1)
        records = bytes(self.memory.records[:used])
        if self.memory.word[0] >> _FIRST_SHIFT != word >> _FIRST_SHIFT:
            return None  # sent meanwhile: the message tells them
        return word >> _FIRST_SHIFT & ((1 << UNIT_BITS) - 1), count, records
