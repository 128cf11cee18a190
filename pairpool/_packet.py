"""What is written in a packet and in what a worker answers: the order of a message's buffers.

_framing.py carries numbered buffers from one process to another; this file says what they mean. The dispatcher
writes packets and reads outcomes, the runner in the worker reads packets and writes outcomes. On engines that
share memory with the caller (threads, inline) a buffer may be any object.

A packet (Kind.TASKS, ident = number of the packet)
    [0]  TASKS_HEAD: mode, flags, number of definitions, units, units a chunk, definition, first unit
    [..] where Flag.DESCRIPTORS: u16 per definition and per unit, how many of the descriptors are its own
    [..] where Flag.NEEDS: names in ``__main__`` and their digests (see _codec.py)
    [..] per definition that the worker may not have: DEFINITION_HEAD, payload
    [..] where Flag.RETRIES: u64 (Mode.CALLS: one per unit), the definition that tells which errors are AGAIN; 0: none
    [..] where Mode.CALLS: u64 per unit, its definition (0: the function is in the unit's own payload)
    [..] Mode.SHARED, Mode.ALIKE: one payload, a list of all items
         Mode.GROUPED: a payload for each GROUP units of the job, a list of their items; the first of the packet's is in
         the first payload, and what is before it or after the last is not to be run
         otherwise one payload a unit (NOTHING: not to be run)

Outcomes (Kind.OUTCOMES, ident = number of the packet)
    [0]  OUTCOMES_HEAD: mode, first unit (counted within the packet), units, nanoseconds they took
    [..] OutcomeMode.SHARED: one payload, a list of all values
         OutcomeMode.SEPARATE: one Status byte a unit, then one payload a unit
    [..] where descriptors of slabs came along: PLACED for each of them, in the order of the payloads that they are of
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

GROUP: Final = 64  # units that may share a payload
NOTHING: Final = b""  # the payload of a unit that is not to be run; no pickle is empty


# The names of what is asked for each packet are plain numbers: 3.11 takes 55 ns more to find a member of an
# IntEnum, and a call asks for 15 of them; an ``&`` with an IntFlag is a microsecond of Python.


class Kind:
    """What a message is."""

    TASKS: Final = 1  # a packet
    OUTCOMES: Final = 2  # outcomes of a run of its units
    REFUSED: Final = 3  # none of its units has begun: [0] is which of its needs (u16 each) the worker has otherwise
    READY: Final = 4  # the worker has run the initializer, or was roused
    FAILED: Final = 5  # the initializer raised: [0] is the error
    FORGET: Final = 6  # control: definitions (u64 each) that will not be named again; the channel's end: end, too
    FULL: Final = 7  # the worker holds more memory than it may between units: [0] is how much, in bytes (u64)
    ROUSE: Final = 8  # control: say READY again
    UNRECEIVED: Final = 9  # none of its units has begun: the worker had no descriptor free to receive it with


class Mode:
    """How a packet's units are packed."""

    SHARED: Final = 0  # every unit one item, all in one pickle: only where sharing it cannot be seen
    SEPARATE: Final = 1  # every unit one item with a pickle of its own
    CHUNKS: Final = 2  # every unit a list of items in one pickle, run in order, over at the first error
    CALLS: Final = 3  # every unit the arguments of one call
    GROUPED: Final = 4  # every unit one item, some in one pickle: as SHARED, but pickled before the packet was made
    ALIKE: Final = 5  # calls of one function: every unit the arguments of one, all in one pickle


class Flag:
    """Bits of a packet's flags."""

    STAR: Final = 1  # items are argument tuples
    NEEDS: Final = 2
    DESCRIPTORS: Final = 4
    INTERRUPTED: Final = 64  # a unit may be interrupted: what is raised must find out which
    LIMITED: Final = 32  # each item may take only so long
    RETRIES: Final = 16  # some errors are worth another try
    INLINE: Final = 128  # the caller has no descriptors to receive with: what can goes in messages that need none
    VISIBLE: Final = 8  # each outcome is awaited on its own: commit it as soon as it is there


class OutcomeMode:
    SHARED: Final = 0
    SEPARATE: Final = 1
    COMMITTED: Final = 2  # never sent: records that lie in a worker's outbox, each COMMITTED_HEAD and its payload
    LOST: Final = 3  # nor this: the dispatcher's own word for units whose worker died


class Status:
    """How a unit ended."""

    OK: Final = 0
    ERROR: Final = 1
    SKIPPED: Final = 2  # not run: an error before it in its chunk, or NOTHING to run
    AGAIN: Final = 3  # an error after which it may be run again
    LAST: Final = AGAIN


class Reason(IntEnum):
    """Why a unit is interrupted (four bits of the page, see _page.py)."""

    NONE = 0
    SOFT_LIMIT = 1
    CANCELLED = 2


TASKS_HEAD = struct.Struct("<BBHIIQQ")
DEFINITION_HEAD = struct.Struct("<QB")
OUTCOMES_HEAD = struct.Struct("<BxxxIIQ")
COMMITTED_HEAD = struct.Struct("<IB")
PLACED = struct.Struct("<IQ")  # place among the payloads of a message, bytes of its slab


def flagged(head: bytes, flag: int) -> bytes:
    """The head of a packet with another flag."""
    mode, flags, *rest = TASKS_HEAD.unpack(head)
    return TASKS_HEAD.pack(mode, flags | flag, *rest)


def deal(descriptors: tuple[int, ...], numbers: bytes) -> list[tuple[int, ...]]:
    """The descriptors that came with a packet, dealt out to the payloads that they belong to."""
    shares, at = [], 0
    for (number,) in struct.iter_unpack("<H", numbers):
        shares.append(descriptors[at : at + number])
        at += number
    return shares
