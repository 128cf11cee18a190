"""Callables that have been sent before, and how to see cheaply that they are still the same.

A kept definition is found by the identity of the callable, which it does not keep alive, and used
again only while its *guard* holds. A callable whose state could change unseen (it closes over a
list, say) is not kept: it is pickled for each call.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Final, Protocol

from pairpool._by_value import SendingPickler
from pairpool._fingerprint import (
    ATOMS,
    CachedFunction,
    Likeness,
    functions_of,
    held_by,
    in_main,
    is_definition,
    names_in,
    weak_reference,
)
from pairpool._ledger import Ledger, Need, binding_of
from pairpool._namespaces import MISSING, Namespace, main_namespace

MOST_KEPT = 4096  # definitions; then all are dropped, and travel once more

_STORE_DEREF: Final = dis.opmap["STORE_DEREF"]


class Guard(Protocol):
    """Knows when a callable is no longer what was pickled."""

    def holds_for(self, function: Callable[..., Any]) -> bool: ...


class _ImportedGuard:
    """Of a callable which pickle finds in a module that can be imported."""

    __slots__ = ("_name", "_namespace")

    def __init__(self, namespace: Namespace, name: str) -> None:
        self._namespace = namespace
        self._name = name

    def holds_for(self, function: Callable[..., Any]) -> bool:
        return self._namespace.get(self._name) is function


class _MainGuard:
    """Of a callable of the main module which went by name."""

    __slots__ = ("_binding", "_ledger", "_needs")

    def __init__(self, ledger: Ledger, binding: str, needs: tuple[Need, ...] | None) -> None:
        self._ledger = ledger
        self._binding = binding
        self._needs = needs

    def holds_for(self, function: Callable[..., Any]) -> bool:
        return binding_of(function) == self._binding and self._ledger.needs_of(self._binding) is self._needs


class _ValueGuard:
    """Of a function which went by value, with all that it took along."""

    __slots__ = ("_data", "_functions", "_ledger", "_reach", "_revision")

    def __init__(self, ledger: Ledger, pickler: SendingPickler) -> None:
        self._ledger = ledger
        self._revision = ledger.revision
        self._functions = [_Makings(function) for function in pickler.functions]
        self._data = pickler.data
        main = main_namespace()
        self._reach = ledger.reach(
            name
            for function in pickler.functions
            if function.__globals__ is main
            for name in names_in(function.__code__)
        )

    def holds_for(self, function: Callable[..., Any]) -> bool:
        return (
            self._revision == self._ledger.revision
            and all(makings.hold() for makings in self._functions)
            and all(namespace.get(name, MISSING) is value for namespace, name, value in self._data)
            and self._reach.still_holds()
        )


class _Makings:
    """A function as it was, with the plain values it carried."""

    __slots__ = ("_held", "_likeness", "_reference")

    def __init__(self, function: FunctionType) -> None:
        self._reference = weak_reference(function)
        self._likeness = Likeness(function)
        self._held = _plain_values(function)

    def hold(self) -> bool:
        function = self._reference()
        return (
            function is not None
            and self._likeness.holds_for(function)
            and all(map(_is_same, self._held, _plain_values(function)))
        )


def _plain_values(function: FunctionType) -> list[Any]:
    """Return what a function holds; MISSING in the place of definitions, which are looked at by themselves."""
    return [MISSING if is_definition(value) else value for value in held_by(function)]


def _is_same(one: object, other: object) -> bool:
    return one is other


def _is_plain(function: FunctionType) -> bool:
    """Tell whether a function has no state that could change while it stays the same object."""
    return (
        all(type(value) in ATOMS or is_definition(value) for value in held_by(function))
        and not (vars(function).keys() - {"__wrapped__"})
        and not _rebinds_cells(function.__code__)
    )


def _rebinds_cells(code: CodeType) -> bool:
    """Tell whether code assigns variables that it shares: what a copy of it does to them stays there."""
    return _STORE_DEREF in code.co_code[::2] or any(
        _rebinds_cells(constant) for constant in code.co_consts if isinstance(constant, CodeType)
    )


class KeptDefinitions:
    """Definitions by callable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._entries: dict[int, tuple[Any, Guard, Any]] = {}

    def find(self, function: Callable[..., Any]) -> Any | None:
        """Return what was kept for this callable; None if there is nothing, or it is no longer right."""
        entry = self._entries.get(id(function))
        if entry is None:
            return None
        reference, guard, definition = entry
        # An id may belong to another object by now.
        return definition if reference() is function and guard.holds_for(function) else None

    def keep(self, function: Callable[..., Any], definition: Any, pickler: SendingPickler | None) -> None:
        """Keep a definition for as long as its callable lives, if there is a way to guard it."""
        guard = self._guard(function, pickler)
        if guard is None:
            return
        if len(self._entries) >= MOST_KEPT:
            self._entries.clear()
        key = id(function)
        self._entries[key] = weak_reference(function, lambda _: self._entries.pop(key, None)), guard, definition
