"""What a function or class is made of, and whether two of them in two processes are the same.

A `digest` describes structure: code, recursively, with the names and constants it uses. It has
no line numbers and no file names, and nothing in it depends on the interpreter's hash seed, so it
is equal in every process that compiled the same source, also where the main module was run again
as ``__mp_main__``. What a definition only refers to by a global name is not part of its digest:
whoever compares asks for those names one by one (see _ledger.py).
"""

from __future__ import annotations

import dis
import enum
import hashlib
import weakref
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodDescriptorType, ModuleType
from typing import Any, Final, Protocol

from pairpool._anatomy import (
    CachedFunction,
    Definition,
    cell_contents,
    functions_of,
    in_main,
    is_definition,
    is_found_by_name,
    methods_of,
    name_of,
    parts_of_attribute,
    weak_reference,
)
from pairpool._framing import ATOMS

DIGEST_SIZE: Final = 16

_DERIVED: Final = frozenset(
    # Parts of a class that Python makes from the others, or that say where it was written.
    (
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__qualname__",
        "__static_attributes__",
        "__type_params__",
        "__weakref__",
        "_abc_impl",
    )
)
_POSITIONAL: Final = ("__firstlineno__", "__static_attributes__")


class Scope(enum.IntEnum):
    """How much of a definition has to be the same."""

    PRESENT = 0  # a global of that name, whatever it is
    CODE = 1  # what it does
    ALL = 2  # also the plain values it carries: defaults, closures, attributes of a class


def digest(definition: Definition, scope: Scope) -> bytes:
    """Return 16 bytes, of which the first is the scope."""
    hasher = hashlib.blake2b(digest_size=DIGEST_SIZE - 1)
    writer = _Writer(scope)
    writer.write_definition(definition)
    hasher.update(repr(writer.tokens).encode("utf-8", "surrogatepass"))
    return bytes((scope,)) + hasher.digest()


class _Writer:
    """Writes a definition down as a list of strings, numbers and bytes."""

    def __init__(self, scope: Scope) -> None:
        self.tokens: list[str | int | bytes] = []
        self._with_values = scope is Scope.ALL
        self._seen: dict[int, int] = {}
        self._held: list[object] = []  # keeps the ids in _seen from being used again

    def write_definition(self, definition: Definition) -> None:
        """Write a definition itself, though it may have a name."""
        number = self._seen.setdefault(id(definition), len(self._seen))
        if number < len(self._held):
            self._put("again", number)
            return
        self._held.append(definition)
        if isinstance(definition, FunctionType):
            self._write_function(definition)
        elif isinstance(definition, type):
            self._write_class(definition)
        elif isinstance(definition, CachedFunction):
            self._write_cached_function(definition)
        else:
            self._put("named", *name_of(definition))

    def _put(self, *tokens: str | int | bytes) -> None:
        self.tokens.extend(tokens)

    def _write_function(self, function: FunctionType) -> None:
        self._put("function")
        self._write_code(function.__code__)
        if self._with_values:
            self._write_value(function.__defaults__)
            for name, value in (function.__kwdefaults__ or {}).items():
                self._put(name)
                self._write_value(value)
        for contents in cell_contents(function):
            if self._with_values or is_definition(contents):
                self._write_value(contents)

    def _write_cached_function(self, cached: Any) -> None:
        self._put("cached", repr(getattr(cached, "cache_parameters", dict)()))
        self._write_value(getattr(cached, "__wrapped__", None))

    def _write_class(self, cls: type) -> None:
        self._put("class", cls.__name__)
        self._write_value(type(cls))
        for base in cls.__bases__:
            self._write_value(base)
        if isinstance(cls, enum.EnumMeta) and self._with_values:
            members: Mapping[str, enum.Enum] = cls.__members__
            for name, member in members.items():
                self._put(name)
                self._write_value(member.value)
        for name, value in sorted(vars(cls).items()):
            if name in _DERIVED:
                continue
            parts = tuple(parts_of_attribute(value))
            if parts:
                self._put(name, type(value).__name__)
                for part in parts:
                    self._write_part(part, cls)
            elif self._with_values:
                self._put(name)
                self._write_value(value)

    def _write_part(self, part: Definition, cls: type) -> None:
        if isinstance(part, type) and part.__qualname__.startswith(cls.__qualname__ + "."):
            self.write_definition(part)  # a class inside the class
        else:
            self._write_value(part)

    def _write_value(self, value: Any) -> None:
        """Write a value: definitions by name where that says it all, data only where it is constant."""
        kind = type(value)
        if kind in ATOMS or kind is complex or value is ...:
            self._put(kind.__name__, repr(value))
        elif kind is tuple:
            self._put("tuple", len(value))
            for element in value:
                self._write_value(element)
        elif kind is frozenset:
            self._put("frozenset", *sorted(map(self._apart, value)))
        elif kind is CodeType:
            self._write_code(value)
        elif kind in (BuiltinFunctionType, MethodDescriptorType):
            self._put("named", *name_of(value))
        elif not is_definition(value):
            self._put("object", *name_of(kind))
        elif _is_written_by_name(value):
            self._put("named", *name_of(value))
        else:
            self.write_definition(value)

    def _apart(self, value: Any) -> str:
        writer = _Writer(Scope.ALL)
        writer._write_value(value)
        return repr(writer.tokens)

    def _write_code(self, code: CodeType) -> None:
        self._put(
            "code",
            code.co_name,
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            code.co_flags,
            code.co_code,
            code.co_exceptiontable,
        )
        for names in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars):
            self._put(len(names), *names)
        positional = _positional_constants(code)
        for index, constant in enumerate(code.co_consts):
            if index not in positional:
                self._write_value(constant)


def _positional_constants(code: CodeType) -> frozenset[int]:
    """Return which constants of a class's body say where it was written.

    Python 3.13 and later store them; in 3.13.0 the order of the one for __static_attributes__
    depends on the hash seed.
    """
    if _POSITIONAL[0] not in code.co_names:
        return frozenset()
    found = set()
    previous: dis.Instruction | None = None
    for instruction in dis.get_instructions(code):
        if instruction.argval in _POSITIONAL and previous is not None and previous.arg is not None:
            found.add(previous.arg)
        previous = instruction
    return frozenset(found)


def _is_written_by_name(definition: Definition) -> bool:
    """Tell whether the name of a definition says enough.

    That of a class does, because whoever compares asks for the classes that are referred to as
    well. A function of the main module may have lost its name to a decorator's.
    """
    _, name = name_of(definition)
    if isinstance(definition, (type, ModuleType)):
        return "<" not in name
    return not in_main(definition) and is_found_by_name(definition)


class Likeness(Protocol):
    """What a definition was like at some moment. Keeps nothing of it alive but code and defaults."""

    def holds_for(self, definition: Definition) -> bool:
        """Tell whether this is the same object, made of the same functions with the same code."""


def likeness(definition: Definition) -> Likeness:
    """Remember what a definition is like now."""
    if isinstance(definition, FunctionType) and definition.__closure__ is None:
        return _FunctionLikeness(definition)
    if isinstance(definition, ModuleType) or not (in_main(definition) or isinstance(definition, FunctionType)):
        return _LikenessOfParts(definition, _nothing)
    if isinstance(definition, type) and len(methods_of(definition)) == len(functions_of(definition)):
        return _LikenessOfParts(definition, methods_of)
    return _LikenessOfParts(definition, functions_of)


class _FunctionLikeness:
    """Of a function that closes over nothing: what most are, and what is looked at most often."""

    __slots__ = ("_code", "_defaults", "_keyword_defaults", "_reference")

    def __init__(self, function: FunctionType) -> None:
        self._reference = weakref.ref(function)
        self._code = function.__code__
        self._defaults = function.__defaults__
        self._keyword_defaults = function.__kwdefaults__

    def holds_for(self, definition: Definition) -> bool:
        function = self._reference()
        return (
            function is not None
            and function is definition
            and function.__code__ is self._code
            and function.__defaults__ is self._defaults
            and function.__kwdefaults__ is self._keyword_defaults
        )


class _LikenessOfParts:
    """Of what consists of several functions; `list_parts` finds them."""

    __slots__ = ("_likenesses", "_list_parts", "_reference")

    def __init__(self, definition: Definition, list_parts: Callable[[Definition], list[FunctionType]]) -> None:
        self._reference = weak_reference(definition)
        self._list_parts = list_parts
        self._likenesses = list(map(_FunctionLikeness, list_parts(definition)))

    def holds_for(self, definition: Definition) -> bool:
        if self._reference() is not definition:
            return False
        parts = self._list_parts(definition)
        return len(parts) == len(self._likenesses) and all(map(_holds_for, self._likenesses, parts))


_holds_for = _FunctionLikeness.holds_for


def _nothing(_: Definition) -> list[FunctionType]:
    """List the parts of a definition that is only known by its name."""
    return []
