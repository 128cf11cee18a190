"""What goes into a packet: its buffers, in the order that _packet.py tells, and what they take of its room."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence, Set as AbstractSet
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from pairpool._codec import Definition, Payload
from pairpool._descriptors import NONE_OWNED, OwnedDescriptors
from pairpool._packet import DEFINITION_HEAD, TASKS_HEAD, Flag

if TYPE_CHECKING:
    from pairpool._jobs import Encoder

BUFFER_ROOM = 28  # bytes of a packet's room for each buffer, besides what is in it
NEED_ROOM = 128  # bytes of a packet's room for what a payload needs: a name of usual length, and a digest
ONLY_BYTES = frozenset([bytes])
DESCRIPTOR_ROOM = 1040  # bytes of a packet's room for each descriptor: the kernel lets one message carry 253


class Body(NamedTuple):
    """What goes into a packet."""

    units: int
    buffers: list[Any]
    descriptors: OwnedDescriptors
    definitions: frozenset[int]  # that ride on it
    needs: tuple[Any, ...]
    retries: bool = False  # outcomes may say that a unit is to run again
    limit: int = 0  # ns that the unit with the least time may take; 0: none has a limit


def takes(payload: Payload | bytes) -> int:
    """What a payload takes of a packet's room."""
    if isinstance(payload, bytes):
        return len(payload) + BUFFER_ROOM
    size = len(payload.data) + BUFFER_ROOM if isinstance(payload.data, bytes) else 0
    return size + DESCRIPTOR_ROOM * len(payload.descriptors) + NEED_ROOM * len(payload.needs)


def are_bytes(payloads: Sequence[Payload | bytes]) -> TypeGuard[Sequence[bytes]]:
    """Whether there is nothing about these payloads to be seen to."""
    return ONLY_BYTES.issuperset(map(type, payloads))


def riding(
    known: AbstractSet[int], definitions: Iterable[Definition], payloads: Iterable[Payload | bytes]
) -> list[Definition]:
    """The definitions that have to go with these payloads: themselves, and what they and the payloads use."""
    wanted: dict[int, Definition] = {}
    for definition in definitions:
        for each in (definition, *definition.payload.uses):
            wanted[each.ident] = each
    for payload in payloads:
        if isinstance(payload, Payload):
            wanted |= {used.ident: used for used in payload.uses}
    return [definition for ident, definition in wanted.items() if ident not in known]


def fitting(payloads: Sequence[Payload | bytes], room: int, known: AbstractSet[int]) -> Sequence[Payload | bytes]:
    """The first of these payloads that fit into a packet together, with what they use; one in any case."""
    if are_bytes(payloads) and sum(map(len, payloads)) + BUFFER_ROOM * len(payloads) <= room:
        return payloads  # one by one it would take ten times as long to find out
    for number, payload in enumerate(payloads):
        room -= takes(payload) + sum([takes(used.payload) for used in riding(known, (), (payload,))])
        if room < 0 and number:
            return payloads[:number]
    return payloads


def table(idents: Sequence[int]) -> bytes:
    """Numbers of definitions, 0 for none."""
    return struct.pack(f"<{len(idents)}Q", *idents)


def pack_body(
    encoder: Encoder,
    mode: int,
    flags: int,
    chunk: int,
    definition: int,
    first: int,
    definitions: Any,
    tables: list[Any],
    payloads: Sequence[Payload | bytes],
    count: int | None = None,
    filters: Sequence[int] = (),
    limit_ns: int = 0,
) -> Body:
    """The buffers of a packet. `filters`: definitions of the errors after which units run again."""
    definitions = list(definitions)
    count = len(payloads) if count is None else count
    needs: tuple[Any, ...] = ()
    descriptors = NONE_OWNED
    special = [] if are_bytes(payloads) else [payload for payload in payloads if isinstance(payload, Payload)]
    carrying = [*[carried.payload for carried in definitions], *special]
    if carrying:
        needs = tuple([need for payload in carrying for need in payload.needs])
        descriptors = descriptors.and_those_of([payload.descriptors for payload in carrying])
    buffers: list[Any] = [b""]
    if descriptors:
        flags |= Flag.DESCRIPTORS
        shares = [len(carried.payload.descriptors) for carried in definitions]
        shares += [len(payload.descriptors) if isinstance(payload, Payload) else 0 for payload in payloads]
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
    buffers += [each.data if isinstance(each, Payload) else each for each in payloads] if special else payloads
    buffers[0] = TASKS_HEAD.pack(mode, flags, len(definitions), count, chunk, definition, first)
    return Body(
        count, buffers, descriptors, frozenset(carried.ident for carried in definitions), needs, retries, limit_ns
    )
