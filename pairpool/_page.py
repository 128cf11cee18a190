"""A worker's shared page: what it is at, and the claims by which units begin or are taken back.

Theory of operation
===================
A little memory (a memfd, sealed at its size) is mapped by the parent and by one worker. Six words of 64 bits
are used, each with one writer, except CLAIM in the C twin; further behind is room for the stacks that faulthandler
writes down when the worker crashes:

    word   written by  what
    CLAIM  both        C twin: low half of the packet's ident (32 bits), next unit to be claimed (16), end of
                       what may be claimed (16). Python twin, the worker's own: the units of its packet, 0
                       when none is left.
    MARK   worker      what the worker is at: packet (48), offset of the unit (12), phase (4)
    START  worker      when that unit was claimed, in nanoseconds of the monotonic clock
    TAIL   parent      what was taken back last, as in MARK: packet, first unit, any phase (none: no unit)
    STRUCK parent      the unit that is to be interrupted, as in MARK with the reason in place of the phase
    SINCE  parent      what START was of it: items of a unit may be interrupted one by one

A packet's units are claimed one after another, and what is not claimed yet can be taken back by the parent,
all of it at once. In C both are a compare-and-swap on CLAIM. Python has none, so there the claims are tokens
of two bytes in a pipe: the worker writes one for each unit, reads one to claim it, and the parent reads
whatever is there. A token is what the low bits of MARK become, and the kernel moves it from the pipe
straight into the word (readv): claimed and marked in one step, which neither a signal nor a death can split.
Tokens do not name their packet. So the worker enters a packet under a record lock on the memfd, and the
parent takes a tail under the same lock and only while MARK names the packet that it means. A packet of one
unit has no tokens: its unit is claimed with it.

Guarantees
==========
- A unit is claimed by the worker or taken by the parent, never both; also if the worker is killed meanwhile.
- A unit that MARK did not show has not begun. So after a death MARK alone tells what had (`Mark.begun`): in
  the C twin one unit more may be claimed.
- MARK is one word: packet, offset and phase are always of the same moment. START may be younger, never older.
- Interrupts. `take_tail` may be called again, and gives the same answer until units of another packet are
  taken. `begin` may be called again unless `read` shows the packet, not IDLE. A `claim` whose value an
  interrupt took is seen in `read`: phase UNPICKLING. The parent should besides treat units that a worker
  finished without running as its own.

Assumptions
===========
The worker is trusted with its own page: garbage written there costs its own packet, and never raises here.
Both sides run the same twin. One thread begins and claims; one at a time takes.

What may block
==============
`begin`, in the Python twin, while the parent takes a tail: a few microseconds. The parent never waits.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import sys
import time
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pairpool import _descriptors, _framing
from pairpool._framing_py import MARK, START, TAIL, UNIT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DUMP: Final = mmap.PAGESIZE  # where the last words of a worker that crashes begin
SIZE: Final = 4 * mmap.PAGESIZE
DUMP_SIGNAL: Final = signal.SIGRTMAX - 2  # has a worker write its stacks there; one that hardly anybody uses
INTERRUPT_SIGNAL: Final = signal.SIGRTMAX - 3  # has a worker look whether the unit that it runs is to be interrupted

_twin = _framing.twin

_STRUCK, _SINCE = 4, 5
_TOKENS_SIZE = 2 * UNIT_LIMIT  # bytes that the pipe must hold: every token of the longest packet
_PHASE = 0xF


class Phase(IntEnum):
    """How far the worker is with a unit."""

    IDLE = 0  # the packet, if any, is not entered yet
    TAKEN = 1  # the packet is entered, none of its units is claimed
    UNPICKLING = 2  # the unit is claimed; its arguments are being loaded
    RUNNING = 3  # in user code
    DONE = 4


_RUNNING, _DONE = int(Phase.RUNNING), int(Phase.DONE)  # 3.11 takes its time to find them


class Mark(NamedTuple):
    """What a worker is at."""

    packet: int
    offset: int
    phase: Phase
    started_ns: int

    @property
    def begun(self) -> int:
        """How many units of the packet have begun; these, and no others, a dead worker may have run."""
        return 0 if self.phase <= Phase.TAKEN else self.offset + 1


class _Memory(mmap.mmap):
    """The mapped page as the primitives of both twins take it (`_framing_py.SharedPage`)."""

    words: memoryview
    mark_token: memoryview
    tail_token: memoryview
    lock = claims_read = claims_write = -1

    @classmethod
    def map(cls, descriptor: int) -> _Memory:
        if sys.version_info >= (3, 13):
            memory = cls(descriptor, SIZE, trackfd=False)  # earlier versions keep a duplicate until close()
        else:
            memory = cls(descriptor, SIZE)
        # An mmap cannot be closed while a view of it is there; close() releases these first.
        memory.words = memoryview(memory).cast("Q")
        memory.mark_token = _low_half_word(memory, MARK)
        memory.tail_token = _low_half_word(memory, TAIL)
        return memory

    def close(self) -> None:
        for view in (self.mark_token, self.tail_token, self.words):
            view.release()
        super().close()


def _low_half_word(memory: mmap.mmap, word: int) -> memoryview:
    start = 8 * word + (0 if sys.byteorder == "little" else 6)
    return memoryview(memory)[start : start + 2]


class Page:
    """One worker's page, made by the parent and mapped by both.

    Its descriptors are registered: a child that the parent or the worker forks later has none of them.
    """

    begin: Callable[[int, int], None]
    """Worker: enter a packet with so many units; from now on these may be claimed, by either side."""

    claim: Callable[[], int]
    """Worker: claim the next unit and return its offset; -1 if none is left, as the parent took the rest."""

    run: Callable[[Callable[[Any], Any], Sequence[Any], list[Any]], tuple[Any] | None]
    """Worker: run the unit that was claimed last, and all that can be claimed then (`_framing_py.page_run`)."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._open = [_descriptors.Descriptor(number) for number in descriptors]
        _descriptors.register(self)
        try:
            self.memory = _map(descriptors)
        except BaseException:
            self._close_descriptors()
            raise
        # One Python call fewer than a method has: this is done for each unit.
        self.begin = partial(_twin.page_begin, self.memory)
        self.claim = partial(_twin.page_claim, self.memory)
        self.run = partial(_twin.page_run, self.memory)

    @classmethod
    def create(cls) -> Page:
        """Parent: make the page of a worker to come."""
        descriptors = [os.memfd_create("pairpool-page", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)]
        try:
            os.ftruncate(descriptors[0], SIZE)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptors[0], fcntl.F_ADD_SEALS, seals)
            if _twin.PIPED_CLAIMS:
                descriptors += os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
                _make_room(descriptors[-1])
        except BaseException:
            _descriptors.close_all(descriptors)
            raise
        return cls(descriptors)

    @classmethod
    def attach(cls, descriptors: Sequence[int]) -> Page:
        """Worker: map the page whose `descriptors` it was given; they belong to the page from now on."""
        page = cls(descriptors)
        if not _twin.PIPED_CLAIMS:
            page._close_descriptors()  # the mapping is enough
        return page

    @staticmethod
    def dump_file(descriptors: Sequence[int]) -> _descriptors.Descriptor:
        """Worker: where its last words go, of the `descriptors` that it attaches the page from."""
        file = _descriptors.Descriptor.of(os.dup, descriptors[0])
        os.lseek(file.fileno(), DUMP, os.SEEK_SET)  # nobody else reads or writes by the file's position
        return file

    def dump(self) -> str:
        """Parent: the last words of a worker that has crashed; empty where there are none."""
        return self.memory[DUMP:].partition(b"\0")[0].decode("ascii", "backslashreplace")

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Parent: what the worker is to be given, in this order, before `drop_worker_ends`."""
        return tuple(descriptor.fileno() for descriptor in self._open)

    def drop_worker_ends(self) -> None:
        """Parent: close what only the worker needs, once it has been given its descriptors."""
        if _twin.PIPED_CLAIMS:
            self._open.pop().close()  # the worker alone writes tokens
        else:
            self._close_descriptors()

    @property
    def claimed(self) -> int:
        """Worker: the unit that was claimed last."""
        return self.memory.words[MARK] >> 4 & 0xFFF

    def running(self) -> None:
        """Worker: show that the unit's own code runs from now on."""
        words = self.memory.words
        words[MARK] = words[MARK] & ~_PHASE | _RUNNING

    def next_item(self) -> None:
        """Worker: the next item of a unit begins, for which time counts anew."""
        self.memory.words[START] = time.monotonic_ns()

    def done(self) -> None:
        """Worker: show that no unit's code runs."""
        words = self.memory.words
        words[MARK] = words[MARK] & ~_PHASE | _DONE

    def take_tail(self, packet: int, count: int) -> int:
        """Parent: take back the units that the worker has not claimed; return the offset of the first.

        It is `count` if there are none or if the worker is not with this packet. All from the returned offset
        on belong to the caller, who should remember it as the packet's new count: asked about the same packet
        with the old count this gives the same answer again.
        """
        first = _twin.page_take(self.memory, packet)
        return first if 0 <= first < count else count

    def read(self) -> Mark:
        """Return what the worker is at."""
        words = self.memory.words
        mark, started = words[MARK], words[START]  # in this order: see "Guarantees"
        phase = mark & _PHASE
        # Garbage is taken for the worst: that the unit has begun.
        return Mark(mark >> 16, mark >> 4 & 0xFFF, Phase(min(phase, Phase.DONE)), started)

    def interrupt(self, packet: int, offset: int, since: int, reason: int) -> None:
        """Parent: write down which unit the worker is to interrupt; `since`: when it began, as `read` tells."""
        words = self.memory.words
        words[_SINCE] = since
        words[_STRUCK] = packet << 16 | offset << 4 | reason

    def has_interrupt(self) -> bool:
        """Parent: whether it has ever written down a unit that is to be interrupted."""
        return self.memory.words[_STRUCK] != 0

    def read_interrupt(self) -> tuple[int, int]:
        """Worker: why the unit that runs is to be interrupted, and when it began; the reason is 0 where it is not."""
        words = self.memory.words
        struck, since = words[_STRUCK], words[START]
        means_this = struck >> 4 == words[MARK] >> 4 and words[_SINCE] == since
        return (struck & _PHASE if means_this else 0), since

    def close(self) -> None:
        """Unmap the page and close its descriptors; once closed it stays so."""
        self._close_descriptors()
        try:
            self.memory.close()
        except BufferError:
            pass  # forked while another thread was within a primitive: the mapping is in use for ever here

    def _close_descriptors(self) -> None:
        while self._open:
            self._open.pop().close()

    def __repr__(self) -> str:
        if self.memory.closed:
            return "<Page closed>"
        packet, offset, phase, _ = self.read()
        return f"<Page packet {packet}, unit {offset}: {phase.name}>"


def _map(descriptors: Sequence[int]) -> _Memory:
    expected = 3 if _twin.PIPED_CLAIMS else 1
    if len(descriptors) != expected:
        raise ValueError(f"the page of the other twin: {len(descriptors)} descriptors instead of {expected}")
    memory = _Memory.map(descriptors[0])
    if _twin.PIPED_CLAIMS:
        memory.lock, memory.claims_read, memory.claims_write = descriptors
    return memory


def _make_room(pipe: int) -> None:
    """Have the pipe hold all tokens; a user with very many pipes is given small ones."""
    if fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) < _TOKENS_SIZE:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _TOKENS_SIZE)
