"""What goes into a packet: its buffers, in the order that _packet.py tells, and what they take of its room."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pairpool._codec import Payload
from pairpool._packet import DEFINITION_HEAD, TASKS_HEAD, Flag, Mode

if TYPE_CHECKING:
    from pairpool._jobs import Encoder

DESCRIPTOR_ROOM = 128  # bytes of a packet's room for each descriptor: the kernel lets one message carry 253


class Body(NamedTuple):
    """What goes into a packet."""

    units: int
    buffers: list[Any]
    descriptors: tuple[int, ...]
    definitions: frozenset[int]  # that ride on it
    needs: tuple[Any, ...]
    retries: bool = False  # outcomes may say that a unit is to run again
    limit: int = 0  # ns that the unit with the least time may take; 0: none has a limit


def takes(payload: Payload) -> int:
    """What a payload takes of a packet's room."""
    size = len(payload.data) + 24 if isinstance(payload.data, bytes) else 0
    return size + DESCRIPTOR_ROOM * len(payload.descriptors)


def table(idents: Sequence[int]) -> bytes:
    """Numbers of definitions, 0 for none."""
    return struct.pack(f"<{len(idents)}Q", *idents)


def pack_body(
    encoder: Encoder,
    mode: Mode,
    flags: int,
    chunk: int,
    definition: int,
    first: int,
    definitions: Any,
    tables: list[Any],
    payloads: Sequence[Payload | None],
    count: int | None = None,
    filters: Sequence[int] = (),
    limit_ns: int = 0,
) -> Body:
    """The buffers of a packet. `filters`: definitions of the errors after which units run again."""
    definitions = list(definitions)
    count = len(payloads) if count is None else count
    needs: tuple[Any, ...] = ()
    descriptors: tuple[int, ...] = ()
    for carried in definitions:
        needs += carried.payload.needs
        descriptors += carried.payload.descriptors
    for payload in payloads:
        if payload is not None and (payload.needs or payload.descriptors):
            needs += payload.needs
            descriptors += payload.descriptors
    buffers: list[Any] = [b""]
    if descriptors:
        flags |= Flag.DESCRIPTORS
        shares = [len(carried.payload.descriptors) for carried in definitions]
        shares += [len(payload.descriptors) if payload is not None else 0 for payload in payloads]
        buffers.append(struct.pack(f"<{len(shares)}H", *shares))
    if needs:
        flags |= Flag.NEEDS
        buffers.append(encoder.dumps_needs(needs))
    for carried in definitions:
        buffers.append(DEFINITION_HEAD.pack(carried.ident, carried.kind))
        buffers.append(carried.payload.data)
    retries = any(filters)
    if limit_ns:
        flags |= Flag.LIMITED
    if retries:
        flags |= Flag.RETRIES
        buffers.append(table(filters))
    buffers += tables
    buffers += [encoder.nothing if payload is None else payload.data for payload in payloads]
    buffers[0] = TASKS_HEAD.pack(mode, flags, len(definitions), count, chunk, definition, first)
    return Body(
        count, buffers, descriptors, frozenset(carried.ident for carried in definitions), needs, retries, limit_ns
    )
