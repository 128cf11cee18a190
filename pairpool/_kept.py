"""Callables that have been sent before, and how to see cheaply that they are still the same.

A kept definition is found by the identity of the callable, which it does not keep alive, and used
again only while its *guard* holds. A callable whose state could change unseen (it closes over a
list, say) is not kept: it is pickled for each call.
"""

from __future__ import annotations

import dis
import functools
import sys
import weakref
from collections.abc import Callable
from operator import is_
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, Generic, Protocol, TypeVar

from pairpool._by_value import SendingPickler
from pairpool._fingerprint import ATOMS, held_by, in_main, is_definition, likeness, names_in, weak_reference
from pairpool._ledger import Ledger, Need, binding_of
from pairpool._namespaces import MISSING, main_namespace

T = TypeVar("T")

MOST_KEPT = 4096  # definitions; then all are dropped, and travel once more

_STORE_DEREF: Final = dis.opmap["STORE_DEREF"]


class Guard(Protocol):
    """Knows when a callable is no longer what was pickled."""

    def holds_for(self, function: Callable[..., Any]) -> bool: ...


class _ImportedGuard:
    """Of a callable which pickle finds in a module that can be imported."""

    __slots__ = ("_module", "_path")

    def __init__(self, module: ModuleType, name: str) -> None:
        self._module = module
        self._path = name.split(".")

    def holds_for(self, function: Callable[..., Any]) -> bool:
        found: Any = self._module
        for step in self._path:
            found = getattr(found, step, None)
        return found is function


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
        in_main = (function for function in pickler.functions if function.__globals__ is main)
        self._reach = ledger.reach(name for function in in_main for name in names_in(function.__code__))

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
        self._likeness = likeness(function)
        self._held = _plain_values(function)

    def hold(self) -> bool:
        function = self._reference()
        if function is None or not self._likeness.holds_for(function):
            return False
        held = _plain_values(function)
        return len(held) == len(self._held) and all(map(is_, held, self._held))


def _plain_values(function: FunctionType) -> list[Any]:
    """Return what a function holds; definitions among it are looked at by themselves."""
    return [MISSING if is_definition(value) else value for value in held_by(function)]


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


class KeptDefinitions(Generic[T]):
    """What was made of callables, by callable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._entries: dict[int, tuple[Callable[[], object], Guard, T]] = {}

    def find(self, function: Callable[..., Any]) -> T | None:
        """Return what was kept for this callable; None if there is nothing, or it is no longer right."""
        entry = self._entries.get(id(function))
        if entry is None:
            return None
        reference, guard, kept = entry
        # By now the id may be that of another object.
        return kept if reference() is function and guard.holds_for(function) else None

    def keep(self, function: Callable[..., Any], made: T, pickler: SendingPickler | None, *, by_name: bool) -> None:
        """Keep what was made of a callable for as long as it lives, if there is a way to guard it."""
        guard = self._guard(function, pickler, by_name)
        if guard is None:
            return
        if len(self._entries) >= MOST_KEPT:
            self._entries.clear()
        forget = functools.partial(_forget, weakref.ref(self), id(function))
        self._entries[id(function)] = weakref.ref(function, forget), guard, made

    def _guard(self, function: Any, pickler: SendingPickler | None, by_name: bool) -> Guard | None:
        if by_name and in_main(function):
            binding = binding_of(function)
            return None if binding is None else _MainGuard(self._ledger, binding, self._ledger.needs_of(binding))
        if by_name:
            module = sys.modules.get(str(function.__module__))
            return None if module is None else _ImportedGuard(module, function.__qualname__)
        if pickler is None or pickler.has_state or not all(map(_is_plain, pickler.functions)):
            return None
        if not all(type(value) in ATOMS for _, _, value in pickler.data):
            return None
        return _ValueGuard(self._ledger, pickler)


def _forget(kept: weakref.ref[KeptDefinitions[Any]], key: int, _: object) -> None:
    owner = kept()
    if owner is not None:
        owner._entries.pop(key, None)
