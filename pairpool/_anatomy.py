"""What functions and classes consist of, and what they refer to.

Everything here looks and changes nothing, and runs no code of the user's but attributes of classes.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Final, TypeAlias

from pairpool._namespaces import MAIN_NAMES

CachedFunction: Final = type(functools.cache(len))
"""What `functools.lru_cache` makes of a function."""

Definition: TypeAlias = Any
"""A function, class or module: what is set anew where a name has another one."""

WRAPPERS: Final = frozenset(
    # What stands for a function in a class.
    (
        property,
        classmethod,
        staticmethod,
        functools.cached_property,
        functools.partialmethod,
        functools.singledispatchmethod,
    )
)


def is_definition(value: object) -> bool:
    """Tell functions, classes and modules from data.

    By the type alone: asking a proxy for its ``__class__`` runs code of the user's.
    """
    kind = type(value)
    if kind is BuiltinFunctionType:
        return type(getattr(value, "__self__", None)) is ModuleType  # else it is a method, of some object
    return kind is FunctionType or kind is CachedFunction or issubclass(kind, (type, ModuleType))


def in_main(definition: Definition) -> bool:
    """Tell whether a definition says it comes from the main module."""
    module = getattr(definition, "__module__", None)
    return isinstance(module, str) and module in MAIN_NAMES


def is_found_by_name(definition: Definition) -> bool:
    """Tell whether the module and the name that a definition claims lead to it."""
    module, name = name_of(definition)
    found: Any = sys.modules.get(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    return found is definition


def name_of(definition: Definition) -> tuple[str, str]:
    """Return module and name that a definition claims; the main module by its first name."""
    if isinstance(definition, ModuleType):
        return "", "__main__" if definition.__name__ in MAIN_NAMES else definition.__name__
    module, name = getattr(definition, "__module__", None), getattr(definition, "__qualname__", "")
    return "__main__" if in_main(definition) else str(module), str(name)


def held_by(function: FunctionType) -> Iterator[Any]:
    """Yield the values that a function carries: its defaults and what it closes over."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from cell_contents(function)


def cell_contents(function: FunctionType) -> Iterator[Any]:
    """Yield what a function closes over, without the cells that are still empty."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # empty
            continue


def parts_of_attribute(value: Any) -> Iterator[Definition]:
    """Yield the definitions that an attribute of a class consists of."""
    if is_definition(value):
        yield value
    elif type(value) is property:
        yield from filter(is_definition, (value.fget, value.fset, value.fdel))
    elif type(value) in (classmethod, staticmethod):
        yield from parts_of_attribute(value.__func__)
    elif type(value) in WRAPPERS:
        yield from parts_of_attribute(value.func)


def functions_of(definition: Definition) -> list[FunctionType]:
    """Return the functions of Python that run where a definition is used, but for named globals.

    These are the function itself and those it carries; the methods of a class of the main module,
    of the classes in it, and of those bases that have no name of their own.
    """
    found: list[FunctionType] = []
    seen: set[int] = set()
    pending = [definition]
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, FunctionType):
            found.append(part)
            pending.extend(filter(_is_own, held_by(part)))
        elif isinstance(part, CachedFunction):
            pending.append(getattr(part, "__wrapped__", None))
        elif isinstance(part, type) and in_main(part):
            pending.extend(base for base in (type(part), *part.__bases__) if "<" in base.__qualname__)
            for value in tuple(vars(part).values()):
                pending.extend(filter(_is_own, parts_of_attribute(value)))
    return found


def methods_of(cls: type) -> list[FunctionType]:
    """Return the functions in a class itself; where there may be more, what `functions_of` finds."""
    found = []
    for value in tuple(vars(cls).values()):
        kind = type(value)
        if kind is FunctionType:
            found.append(value)
        elif kind in WRAPPERS:
            found.extend(part for part in parts_of_attribute(value) if type(part) is FunctionType)
        elif kind is CachedFunction or issubclass(kind, type):
            return functions_of(cls)
    return found


def _is_own(value: Any) -> bool:
    kind = type(value)
    return kind is FunctionType or kind is CachedFunction or (issubclass(kind, type) and in_main(value))


def names_in(code: CodeType) -> set[str]:
    """Return every name that code uses for a global, and some that are only attributes.

    Telling them apart takes a walk through the instructions, and misses the body of a class in a
    function; an attribute that happens to have the name of a global costs little.
    """
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= names_in(constant)
    return names


def weak_reference(definition: Definition) -> Callable[[], Definition]:
    """Return a weak reference; a strong one to the few definitions that have none."""
    try:
        return weakref.ref(definition)
    except TypeError:
        return lambda: definition
