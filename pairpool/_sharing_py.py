"""Which values can share a pickle, or be pickled later, without anyone noticing: in Python, as a specification for C.

An item has a pickle of its own, and a result is pickled when its item ends. That can be seen only where something in
it may change, or is something else by identity than its equals. So *atoms* can share one, and wait; and containers
made of atoms can share one where none is met twice.

The twin in C looks into containers of containers, and knows from their references which ones nobody else has.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Final

from pairpool._strikes import came_from_handler

ATOMS: Final = frozenset({int, float, str, bytes, bool, type(None)})
"""Types whose values have no identity worth keeping: equal is the same."""
NUMBERS: Final = ATOMS - {str, bytes}
"""Those that are short, but for ints of many digits."""

LONGEST_KEPT: Final = 1 << 17
"""Bytes or characters of a value that is pickled later with others: so long it has a slab of its own."""

_MOST_PARTS: Final = 2048  # values that are looked at


def is_settled(value: Any, longest: int = LONGEST_KEPT) -> bool:
    """Tell whether a value is an atom, and no bytes or text that long: it will not change."""
    kind = type(value)
    try:
        return kind in ATOMS and not ((kind is bytes or kind is str) and len(value) >= longest)
    except Exception as error:  # of its class's hash
        if came_from_handler(error):
            raise
        return False


def share_nothing(values: list[Any], /) -> bool:
    """Tell whether all of these can share a pickle: surely they have nothing in common that could change.

    False where it is not sure, or would take long to find out.
    """
    try:
        kinds = set(map(type, values))
        parts: chain[Any]
        if kinds == {dict}:
            parts = chain(chain.from_iterable(values), chain.from_iterable(map(dict.values, values)))
        elif kinds == {list} or kinds == {tuple}:
            parts = chain.from_iterable(values)
        else:
            return kinds <= ATOMS
        few = sum(map(len, values)) <= _MOST_PARTS
        apart = kinds == {tuple} or len(set(map(id, values))) == len(values)
        return few and apart and ATOMS.issuperset(map(type, parts))
    except Exception as error:  # of the hash of one of their classes
        if came_from_handler(error):
            raise
        return False
