"""What the parent reads in memory that it shares with a worker: its outbox, and its page.

The reader of an outbox exists once, for both twins. So it is held against what its documentation says, written down
here a second time and as plainly as can be.
"""

from __future__ import annotations

import mmap
import os
from array import array
from functools import cache
from typing import Any, Final, NamedTuple

from fuzz.messages import ACCEPTED, outcome, require
from fuzz.source import ANY_BYTES, Damage, Source, damaged
from pairpool import _framing_c, _framing_py
from pairpool._framing_py import CLAIM, MARK, PACKET_LIMIT, START, TAIL, UNIT_LIMIT
from pairpool._handle import WorkerHandle, _highest_in_records
from pairpool._outbox import SIZE, Outbox
from pairpool._packet import COMMITTED_HEAD, OutcomeMode, Status
from pairpool._record import read_committed
from pairpool.engines import Outcomes

# --- Records of an outbox -----------------------------------------------------------------------------------


class Records(NamedTuple):
    """What is said to be the records of so many outcomes."""

    data: bytes
    units: int


def _set_record_length(source: Source, data: bytearray) -> None:
    """Tell another length of the first record, or whatever stands at another place where one might be."""
    at = source.pick((0, 0, 5, 8, 9))
    if len(data) >= at + 4:
        data[at : at + 4] = source.number(32, int.from_bytes(data[at : at + 4], "little")).to_bytes(4, "little")


def _set_status(source: Source, data: bytearray) -> None:
    """Tell another status of the first record, or of one of no bytes behind it."""
    at = source.pick((4, 4, 9))
    if len(data) > at:
        data[at] = source.pick((0, 1, 2, 3, 4, 128, 255))


_RECORDS: Final[tuple[Damage, ...]] = (*ANY_BYTES, *[_set_record_length] * 3, *[_set_status] * 2)


def make_records(source: Source) -> Records:
    """Make records with any damage, and say how many they are or another number."""
    units = source.pick((1, 1, 2, 3, 5, 21)) if source.random() < 0.999 else 4096
    payloads = [source.stuff(source.size() if units < 100 else 2) for _ in range(units)]
    data = b"".join(COMMITTED_HEAD.pack(len(payload), source.below(3)) + payload for payload in payloads)
    told = units if source.random() < 0.85 else source.number(32, units)
    return Records(damaged(source, data, _RECORDS), told)


def records_of(data: bytes, units: int) -> tuple[bytes, list[bytes]] | None:
    """Return statuses and payloads of records that are as many as told, whole, and nothing else; None of any other."""
    statuses, payloads = [], []
    while data:
        length, status, rest = int.from_bytes(data[:4], "little"), data[4:5], data[5:]
        if not status or status[0] > Status.LAST or length > len(rest):
            return None
        statuses.append(status)
        payloads.append(rest[:length])
        data = rest[length:]
    return (b"".join(statuses), payloads) if len(payloads) == units else None


def check_records(records: Records) -> str:
    """Ask whether they are sound, and read those that are."""
    expected = records_of(*records)
    highest = outcome(_highest_in_records, memoryview(records.data), records.units)
    if expected is None:
        require(highest > Status.LAST, "unsound records are told by a status that there is not", highest)
        return "unsound"
    require(highest == max(expected[0], default=0), "of sound records the highest status is told", highest)
    read = outcome(read_committed, records.data, records.units)
    require(read == expected, "sound records are read as they were written", read)
    return ACCEPTED


class Commit(NamedTuple):
    """What lies in an outbox, and the packet whose outcomes are looked for there."""

    word: int
    records: bytes
    packet: int


def make_commit(source: Source) -> Commit:
    """Make an outbox, in which anything may be wrong."""
    data, units = make_records(source)
    data = data[: SIZE - 8]
    packet = source.number(64)
    word = (packet & 0xFFFFF) << 44 | source.getrandbits(13) << 31 | (units & 0x1FFF) << 18 | len(data)
    how = source.random()
    if how < 0.1:
        word ^= 1 << source.below(64)
    elif how < 0.15:
        word = source.number(64)
    elif how < 0.2:
        word = word & ~0x3FFFF | source.number(18, len(data))
    return Commit(word, data, packet)


class _CondemnedError(Exception):
    """The worker is to end."""


def _condemn(_: int) -> None:
    raise _CondemnedError


@cache
def _handle_with_outbox() -> tuple[WorkerHandle, Outbox]:
    """Return the parent's half of a worker that there is not; one for all inputs, as nothing of it is ever kept."""
    handle, outbox = WorkerHandle.__new__(WorkerHandle), Outbox.create()
    handle.slot, handle.outbox, handle._condemn = 1, outbox, _condemn
    return handle, outbox


def check_commit(commit: Commit) -> str:
    """Look for the outcomes of the packet: they are those in the outbox, or there are none, or the worker ends."""
    handle, outbox = _handle_with_outbox()
    outbox.memory.records[: len(commit.records)] = commit.records
    outbox.memory.word[0] = word = commit.word
    packet, first, units, used = word >> 44, word >> 31 & 0x1FFF, word >> 18 & 0x1FFF, word & 0x3FFFF
    found = outcome(handle.committed, commit.packet)
    if packet != commit.packet & 0xFFFFF or not units:
        require(found is None, "no outcomes are found of another packet", found)
        return "none"
    data = bytes(outbox.memory.records[:used])
    records = records_of(data, units)
    if records is None:
        require(found == (_CondemnedError, ""), "a worker whose outbox is unsound is to end", found)
        return "unsound"
    again = Status.AGAIN in records[0]
    expected = Outcomes(1, commit.packet, OutcomeMode.COMMITTED, first, units, 0, [data], again)
    require(found == expected, "what is found is what was committed", found)
    return ACCEPTED


# --- The page -----------------------------------------------------------------------------------------------


class Tail(NamedTuple):
    """A page, the claims in its pipe, and the packet whose tail is to be taken back."""

    words: tuple[int, ...]
    tokens: bytes
    packet: int


def make_tail(source: Source) -> Tail:
    """Make a page with anything in its words; mostly they are about the packet, so that it matters."""
    packet = source.number(64) % PACKET_LIMIT
    words = [0] * 4
    first, end = source.number(16) % UNIT_LIMIT, source.number(16) % (UNIT_LIMIT + 1)
    words[CLAIM] = (packet & 0xFFFFFFFF) << 32 | first << 16 | end
    words[MARK] = packet << 16 | source.getrandbits(16)
    words[START] = source.number(64)
    words[TAIL] = packet << 16 | source.pick((0, 0, source.getrandbits(16)))
    for at in range(4):
        if source.random() < 0.15:
            words[at] = source.number(64)
    return Tail(tuple(words), source.stuff(source.pick((0, 0, 1, 2, 4, 100))), packet)


class _PythonPage:
    """A page as the Python twin takes it."""

    def __init__(self) -> None:
        self.lock = os.memfd_create("pairpool-fuzz")
        os.ftruncate(self.lock, mmap.PAGESIZE)
        memory = memoryview(mmap.mmap(self.lock, mmap.PAGESIZE))
        self.words = memory.cast("Q")
        self.mark_token, self.tail_token = (memory[8 * word : 8 * word + 2] for word in (MARK, TAIL))
        self.claims_read, self.claims_write = os.pipe2(os.O_NONBLOCK)

    def refill(self, tail: Tail) -> None:
        """Have these words, and these tokens in the pipe."""
        try:
            os.read(self.claims_read, 4096)
        except BlockingIOError:
            pass  # the last tail was taken
        os.write(self.claims_write, tail.tokens)
        for at, word in enumerate(tail.words):
            self.words[at] = word


_python_page: Final = cache(_PythonPage)


def check_tail(tail: Tail) -> str:
    """Take it, twice, with each twin. They claim in different ways, so that they need not find the same."""
    piped: Any = _python_page()
    piped.refill(tail)
    swapped: Any = array("Q", tail.words)[:]  # nothing is allocated behind it: see messages._exact
    taken = []
    for twin, page in ((_framing_py, piped), (_framing_c, swapped)):
        first, again = (outcome(twin.page_take, page, tail.packet) for _ in range(2))
        require(type(first) is int and -1 <= first < UNIT_LIMIT, "what is taken is an offset, or -1", first)
        # A worker that garbles how far it may claim is owed no more than that.
        honest = tail.words[CLAIM] & 0xFFFF <= UNIT_LIMIT
        require(again == first or not honest, "asked again it gives the same answer", first, again)
        taken.append(first)
    return ACCEPTED if max(taken) >= 0 else "none"
