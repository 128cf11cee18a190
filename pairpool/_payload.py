"""What travels, pickled: payloads, and definitions of callables."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from pairpool._descriptors import NONE_OWNED, OwnedDescriptors, register
from pairpool._envelope import LARGEST_SMALL, LARGEST_TOGETHER, Large, pack
from pairpool._ledger import Need
from pairpool._plain import MAIN
from pairpool._slab import Put


class DefinitionKind(enum.IntEnum):
    """How often a worker loads a callable."""

    NAMED = 0  # once: it is found by name
    BY_VALUE = 1  # once for each definition
    STATEFUL = 2  # for each chunk: it carries an object, and each chunk gets its own


# Not frozen, though nobody changes one: a frozen dataclass takes four times as long to make.
@dataclass(slots=True, eq=False, weakref_slot=True)
class Payload:
    """Pickled bytes, and what they need to be unpickled. Where that is nothing, bytes take its place."""

    data: Any
    """Bytes; where workers share memory with the caller (_objects.py), the object itself."""
    needs: tuple[Need, ...] = ()
    """What a worker must have as the caller has it. Where it has not, it unpickles nothing."""
    fallback: Payload | None = None
    """The same by value, if there are needs and it can be had. It may have needs that cannot be avoided."""
    descriptors: OwnedDescriptors = NONE_OWNED
    """Travel beside the bytes. Closed by `close()`, or with the last reference to the payload."""
    uses: tuple[Definition, ...] = ()
    """Shared objects in it (_shared.py), which a worker must have as well."""
    weight: int = 0
    """Bytes of it that lie in a slab, whose descriptor is the last."""
    large: bool = False
    """Its bytes count where nobody has asked for a bound; of small ones there are too many to look at each."""

    def close(self) -> None:
        """Close the descriptors, the fallback's too. A second call does nothing."""
        self.descriptors.close()
        if self.fallback is not None:
            self.fallback.close()


@dataclass(slots=True, eq=False, weakref_slot=True)
class Definition:
    """A callable as it travels."""

    ident: int
    kind: DefinitionKind
    payload: Payload
    name: str = ""  # for people
    item_ns: int = 0  # what an item took in the latest job of it; 0: nobody knows


def says_enough(large: Large) -> bool:
    """Tell whether a plain pickle has nothing to do with the main module."""
    return not any(MAIN in frame for frame in large.frames())


def payload_of(
    large: Large,
    put: Put,
    needs: tuple[Need, ...] = (),
    descriptors: OwnedDescriptors = NONE_OWNED,
    uses: tuple[Definition, ...] = (),
) -> Payload:
    """Return a payload, in a slab of its own where it is that large and there is room for one. `put`: has it there."""
    size = sum(map(len, large.chunks))
    if size <= LARGEST_TOGETHER and not large.buffers:
        return Payload(b"".join(large.chunks), needs, None, descriptors, uses, 0, size > LARGEST_SMALL)
    data, slab, end = pack(large, put, len(descriptors))
    if slab is None:
        return Payload(data, needs, None, descriptors, uses, 0, True)
    payload = Payload(data, needs, None, descriptors.and_that_of(slab), uses, end, True)
    register(payload)  # a child that is forked while it waits would keep the slab
    return payload
