"""Callables that have been sent before, and how to see cheaply that they are still the same.

A kept definition is found by the identity of the callable, which it does not keep alive, and used
again only while its *guard* holds. A callable whose state could change unseen (it closes over a
list, say) is not kept: it is pickled for each call.
"""

from __future__ import annotations

import dis
import enum
import functools
import sys
import weakref
from collections.abc import Callable
from operator import attrgetter, is_
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any, Final, Generic, Protocol, TypeVar

from pairpool._anatomy import WRAPPERS, cell_contents, held_by, in_main, is_definition, names_in
from pairpool._by_value import SendingPickler
from pairpool._fingerprint import likeness
from pairpool._framing import ATOMS
from pairpool._ledger import Ledger, binding_of
from pairpool._namespaces import MISSING, home_of, main_module, main_namespace
from pairpool._strikes import came_from_handler

T = TypeVar("T")

MOST_KEPT = 4096  # definitions; then all are dropped, and travel once more

_STORE_DEREF: Final = dis.opmap["STORE_DEREF"]

_CONSTANTS: Final = ATOMS | {tuple, frozenset}
_DESCRIPTORS: Final = WRAPPERS | {MemberDescriptorType, GetSetDescriptorType}


class Guard(Protocol):
    """Knows when a callable is no longer what was pickled."""

    def holds_for(self, function: Callable[..., Any]) -> bool: ...


class _ImportedGuard:
    """Of a callable which pickle finds in a module that can be imported."""

    __slots__ = ("_find", "_module")

    def __init__(self, module: ModuleType, name: str) -> None:
        self._module = module
        self._find = attrgetter(name)

    def holds_for(self, function: Callable[..., Any]) -> bool:
        try:
            return self._find(self._module) is function
        except AttributeError as error:
            if came_from_handler(error):
                raise
            return False


class _MainGuard:
    """Of a callable of the main module which went by name."""

    __slots__ = ("_binding", "_ledger", "_reach", "_revision")

    def __init__(self, ledger: Ledger, binding: str) -> None:
        self._ledger = ledger
        self._revision = ledger.revision
        self._binding = binding
        self._reach = ledger.reach((binding,))

    def holds_for(self, function: Callable[..., Any]) -> bool:
        # A function of a class is found further down; most are at the top.
        top = getattr(main_module(), self._binding, MISSING)
        if top is not function and binding_of(function) != self._binding:
            return False
        return self._revision == self._ledger.revision and self._reach.still_holds()


class ValueGuard:
    """Of what went by value, with all that it took along."""

    __slots__ = ("_classes", "_data", "_functions", "_ledger", "_reach", "_revision")

    def __init__(self, ledger: Ledger, pickler: SendingPickler) -> None:
        self._ledger = ledger
        self._revision = ledger.revision
        self._functions = list(map(_FunctionMakings, pickler.functions))
        self._classes = list(map(_ClassMakings, pickler.classes))
        self._data = pickler.data
        main = main_namespace()
        of_main = (function for function in pickler.functions if function.__globals__ is main)
        self._reach = ledger.reach(name for function in of_main for name in names_in(function.__code__))

    def holds_for(self, _: object) -> bool:
        return (
            self._revision == self._ledger.revision
            and all(function.holds() for function in self._functions)
            and all(cls.holds() for cls in self._classes)
            and all(namespace.get(name, MISSING) is value for namespace, name, value in self._data)
            and self._reach.still_holds()
        )


def guard_value(ledger: Ledger, pickler: SendingPickler, *, class_: bool = False) -> ValueGuard | None:
    """Return a guard for what went by value; None where it has state that no guard sees.

    `class_`: it is a class. What the decorators of libraries close over in its methods, as
    `dataclass` does, is then no state: a class is not loaded anew for each call anyway.
    """
    functions = pickler.functions
    if class_:
        functions = [function for function in functions if home_of(function.__globals__) in (None, "__main__")]
    has_state = not (
        all(map(_is_plain, functions))
        and all(map(_has_constant_attributes, pickler.classes))
        and all(type(value) in ATOMS for _, _, value in pickler.data)
    )
    return None if has_state else ValueGuard(ledger, pickler)


class _FunctionMakings:
    """A function as it was, with what it closes over."""

    __slots__ = ("_closed_over", "_likeness", "_reference")

    def __init__(self, function: FunctionType) -> None:
        self._reference = weakref.ref(function)
        self._likeness = likeness(function)
        self._closed_over = [weakref.ref(value) if is_definition(value) else value for value in cell_contents(function)]

    def holds(self) -> bool:
        function = self._reference()
        if function is None or not self._likeness.holds_for(function):
            return False
        return function.__closure__ is None or self._closes_over_the_same(function)

    def _closes_over_the_same(self, function: FunctionType) -> bool:
        values = list(cell_contents(function))
        return len(values) == len(self._closed_over) and all(
            (before() if type(before) is weakref.ref else before) is now
            for before, now in zip(self._closed_over, values, strict=True)
        )


class _ClassMakings:
    """A class as it was, with its plain attributes."""

    __slots__ = ("_attributes", "_likeness", "_reference")

    def __init__(self, cls: type) -> None:
        self._reference = weakref.ref(cls)
        self._likeness = likeness(cls)
        self._attributes = _plain_attributes(cls)

    def holds(self) -> bool:
        cls = self._reference()
        if cls is None or not self._likeness.holds_for(cls):
            return False
        attributes = _plain_attributes(cls)
        return len(attributes) == len(self._attributes) and all(map(is_, attributes, self._attributes))


def _plain_attributes(cls: type) -> list[Any]:
    """Return those attributes that a guard has to look at itself."""
    return [value for value in tuple(vars(cls).values()) if type(value) in _CONSTANTS]


def _is_plain(function: FunctionType) -> bool:
    """Tell whether a function has no state that could change while it stays the same object."""
    return (
        all(map(_is_fixed, held_by(function)))
        and not (vars(function).keys() - {"__wrapped__"})
        and not _rebinds_cells(function.__code__)
        and home_of(function.__globals__) is not None
    )


def _is_fixed(value: Any) -> bool:
    kind = type(value)
    # `dataclass` gives the methods that it makes markers of its own.
    return kind in ATOMS or is_definition(value) or kind.__module__ == "dataclasses"


def _has_constant_attributes(cls: type) -> bool:
    """Tell whether a class has no attribute that could change while it stays the same object.

    Those with two underscores on both sides are taken to be made once, by Python or a decorator.
    """
    return not issubclass(type(cls), enum.EnumMeta) and all(
        _is_constant(value)
        for name, value in vars(cls).items()
        if not (name[:2] == name[-2:] == "__" or name == "_abc_impl")
    )


def _is_constant(value: Any) -> bool:
    kind = type(value)
    if kind is tuple or kind is frozenset:
        return all(map(_is_constant, value))
    return kind in ATOMS or kind in _DESCRIPTORS or is_definition(value)


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
        # In C: an interrupt that struck in a function of ours would be swallowed, since finalizers call it.
        forget = functools.partial(self._entries.pop, id(function))
        self._entries[id(function)] = weakref.ref(function, forget), guard, made

    def _guard(self, function: Any, pickler: SendingPickler | None, by_name: bool) -> Guard | None:
        if by_name and in_main(function):
            binding = binding_of(function)
            return None if binding is None else _MainGuard(self._ledger, binding)
        if by_name:
            module = sys.modules.get(str(function.__module__))
            return None if module is None else _ImportedGuard(module, function.__qualname__)
        return None if pickler is None else guard_value(self._ledger, pickler)
