"""What crosses between caller and workers, as bytes: callables, arguments, results, errors.

The caller has an `Encoder` for each pool, and each worker a `Decoder`.

- Plain pickling first. Only what that cannot do, or what mentions the main module, is given to the
  pickler that tells functions and classes by name from those by value (_by_value.py). What may go
  by name is the ledger's to say (_ledger.py).
- Reducers are code of the user's: everything here that pickles is called on the user's threads
  (see semantics in DESIGN.md), raises what they raise, and leaves nothing behind where they do.
"""

from __future__ import annotations

import functools
import io
import itertools
import pickle
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import reduction
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]  # typeshed has it not
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Final, NamedTuple

from pairpool import _envelope, _passing
from pairpool._anatomy import CachedFunction
from pairpool._by_value import Attempt, SendingPickler
from pairpool._envelope import LARGEST_SMALL, LARGEST_TOGETHER, PROTOCOL, Large, Sorter
from pairpool._framing import ATOMS, NUMBERS
from pairpool._kept import KeptDefinitions
from pairpool._ledger import Ledger, Need, Witness
from pairpool._parcels import ClassParcels
from pairpool._passing import Collector, Reducer
from pairpool._payload import Definition, DefinitionKind, Payload, payload_of, says_enough
from pairpool._plain import GLOBAL, MAIN, PlainPickler, are_plain, dumps_together, load_numbers
from pairpool._remote_errors import decode_error, encode_error, safe_repr
from pairpool._returning import dumps_return
from pairpool._shared import Shared, find_with, make_array
from pairpool._slab import Arena, Put, put_for_all, put_once
from pairpool._strikes import came_from_handler

__all__ = [
    "ATOMS",
    "Decoder",
    "Arrived",
    "Definition",
    "DefinitionKind",
    "Encoder",
    "MaybeEncodingError",
    "Need",
    "Payload",
    "Shared",
    "decode_error",
    "decode_result",
    "encode_error",
    "encode_result",
    "find_with",
]

_GLOBAL_END: Final = pickle.STACK_GLOBAL + pickle.MEMOIZE + pickle.STOP
"""How the pickle of a name ends."""

_WITHOUT_SLAB: Final = frozenset((bytes, memoryview))
"""As what pickles arrive that have no slab of their own."""

_BOUNDLESS: Final = (RecursionError, MemoryError)
"""Errors of pickling that a second attempt would only repeat."""

_SAME_AS_NATIVE: Final = frozenset(
    # Reducers of the stdlib's that do what pickle does without them.
    getattr(reduction, name, None)
    for name in ("_reduce_method", "_reduce_method_descriptor", "_reduce_partial")
)
_METHODS_OF_TYPES: Final = (MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType)

_idents = itertools.count(1)


def _name_of(function: object) -> str:
    if isinstance(function, functools.partial):
        return f"partial({_name_of(function.func)})"
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else type(function).__qualname__


class Arrived(NamedTuple):
    """A pickle that came with a slab."""

    data: Any
    slabs: Sequence[_passing.Slab]
    """Those of one message; they are its own when the message was digested."""
    place: int
    """Which of them it lies in."""
    weight: int
    """Bytes that lie there."""


def decode_result(data: Any) -> object:
    """Return a result. Raises what unpickling raises."""
    return _envelope.loads_with_slab(data.data, data.slabs[data.place]) if type(data) is Arrived else pickle.loads(data)


class Encoder:
    """The caller's half. Safe to use from several threads, and from reducers that it runs."""

    nothing: Final = b""
    """A payload that no object has."""

    decode_error = staticmethod(decode_error)

    def __init__(self, *, inherited: bool = False) -> None:
        """Make it before the workers: it remembers what the main module has at this moment.

        `inherited`: workers are forks of this process as it is now, so that nothing needs to be verified.
        """
        self._ledger = Ledger(inherited=inherited)
        self._kept: KeptDefinitions[Definition] = KeptDefinitions(self._ledger)
        self._parcels = ClassParcels(self._ledger)
        self._plain = PlainPickler(_adapt)
        self.arena = Arena()
        self._expects_main = False  # the latest object had to do with the main module

    # Callables.

    def definition(self, function: Callable[..., Any]) -> Definition:
        """Return the definition of a callable that a whole job uses."""
        if isinstance(function, Shared):
            return function.reduce(self._ledger)[0]
        kept = self._kept.find(function)
        return kept if kept is not None else self._define(function)

    def call(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Definition | None, Payload | bytes]:
        """Return what one call sends: the callable apart, or with the arguments if it carries an object."""
        definition = self._kept.find(function)
        if definition is None:
            if not _travels_apart(function):
                return None, self.dumps((function, arguments, keywords))
            definition = self._define(function)
        if not keywords and ATOMS.issuperset(map(type, arguments)):
            data = pickle.dumps((arguments, keywords), PROTOCOL)
            if len(data) <= LARGEST_TOGETHER:
                return definition, data
        return definition, self.dumps((arguments, keywords))

    def share(self, obj: Any) -> Shared:
        """Return a handle of an object which workers load once; what lies out of band is in memory once for all."""
        payload, _ = self._encode_once(obj, put_for_all)
        definition = Definition(next(_idents), DefinitionKind.BY_VALUE, payload, _name_of(obj))
        return Shared(definition, self._ledger, obj)

    def empty(self, shape: Any, dtype: Any) -> Shared:
        """Return a handle of a new array in which workers and caller write."""
        array, data, descriptors = make_array(shape, dtype)
        payload = Payload(data, descriptors=descriptors)
        return Shared(Definition(next(_idents), DefinitionKind.BY_VALUE, payload, "an array"), self._ledger, array)

    def _encode_once(self, obj: object, put: Put) -> tuple[Payload, SendingPickler | None]:
        data = self._dumps_plainly(obj, put)
        if data is None:
            return self._encode_carefully(obj, put)
        return data if isinstance(data, Payload) else Payload(data), None

    def _define(self, function: Callable[..., Any]) -> Definition:
        payload, pickler = self._encode_once(function, put_once)
        kind = _kind(function, payload, pickler)
        definition = Definition(next(_idents), kind, payload, _name_of(function))
        if _travels_apart(function) and len(payload.descriptors) <= bool(payload.weight):  # none but a slab's
            self._kept.keep(function, definition, pickler, by_name=kind is DefinitionKind.NAMED)
        return definition

    def definition_of_plain(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Definition | None:
        """Return the definition of a call whose arguments may be pickled later, with others'; None: one could tell."""
        plain = not keywords and NUMBERS.issuperset(map(type, arguments))
        return self._kept.find(function) if plain else None

    @staticmethod
    def dumps_arguments(arguments: tuple[Any, ...]) -> bytes:
        """Pickle the arguments of one of those alone."""
        return pickle.dumps((arguments, {}), PROTOCOL)

    # Data.

    def dumps(self, obj: object) -> Payload | bytes:
        """Pickle one object."""
        if not self._expects_main:
            data = self._dumps_plainly(obj, self.arena.put)
            if data is not None:
                return data
        return self._dumps_carefully(obj)

    def dumps_each(self, objs: Sequence[object], payloads: list[Any]) -> None:
        """Append to `payloads` what `dumps` returns for each object, up to the first that is large.

        What is raised is the next one's. One by one they cost three times as much.
        """
        before = len(payloads)
        while (done := len(payloads) - before) < len(objs):
            large = None
            if not self._expects_main:
                large = self._dumps_each_plainly(objs[done:], payloads)
                done = len(payloads) - before
            if large is not None:
                payloads.append(large)
            elif done < len(objs):
                payloads.append(self._dumps_carefully(objs[done]))
            if type(payloads[-1]) is Payload and payloads[-1].large:
                return

    def _dumps_carefully(self, obj: object) -> Payload | bytes:
        payload, pickler = self._encode_carefully(obj, self.arena.put)
        # Objects that follow are often like this one: spare them the plain attempt.
        self._expects_main = pickler.met_main
        data: bytes = payload.data
        return payload if payload.large or payload.needs or payload.descriptors or payload.uses else data

    dumps_together: Final = staticmethod(dumps_together)

    @staticmethod
    def is_atoms(items: Iterable[Any]) -> bool:
        """Tell whether items can share a pickle without anyone noticing."""
        return ATOMS.issuperset(map(type, items))

    @staticmethod
    def dumps_atoms(items: Sequence[Any]) -> bytes:
        """Pickle together what can share a pickle, atoms or containers of them. Runs no code of the user's."""
        return pickle.dumps(items, PROTOCOL)

    decode_value: Final = staticmethod(decode_result)

    @staticmethod
    def size_of_large(pickles: Sequence[Any]) -> int:
        """Bytes of those results that are large; of small ones, which are many, nobody has to know."""
        if _WITHOUT_SLAB.issuperset(map(type, pickles)) and sum(map(len, pickles)) <= LARGEST_SMALL:
            return 0
        size = 0
        for each in pickles:  # errors have none
            large = each.weight if type(each) is Arrived else len(each) if type(each) in _WITHOUT_SLAB else 0
            size += large if large > LARGEST_SMALL else 0
        return size

    decode_plain: Final = staticmethod(pickle.loads)
    """Returns a result of those that `are_plain`."""
    are_plain: Final = staticmethod(are_plain)
    decode_numbers: Final = staticmethod(load_numbers)
    """Returns a list of numbers; runs no code of the user's."""

    # Memory.

    @property
    def trim_at(self) -> int | None:
        """When to `trim`, in ns of the monotonic clock; None where there is no need."""
        return self.arena.trim_at

    def trim(self) -> None:
        """Give back to the system the memory of slabs that nobody uses."""
        self.arena.trim()

    # What workers answer.

    def accept(self, needs: Iterable[Need]) -> None:
        """A worker has these: they are not asked for again."""
        self._ledger.accept(needs)

    def refuse(self, needs: Iterable[Need]) -> None:
        """A worker has something else: these go by value from now on."""
        self._ledger.refuse(needs)

    @staticmethod
    def dumps_needs(needs: Iterable[Need]) -> bytes:
        """Write needs down for a worker."""
        return dumps_needs(needs)

    # How an object is pickled.

    def _dumps_plainly(self, obj: object, put: Put) -> bytes | Payload | None:
        """Pickle as the stdlib's pool does; None where that fails, or says too little."""
        plain = PlainPickler(_adapt, LARGEST_SMALL) if put is put_for_all else self._plain
        try:
            data = plain.dumps(obj)
        except Exception as error:  # not told: the careful attempt raises the same, or the true reason
            if _is_final(error):
                raise
            return None
        if isinstance(data, Large):
            return payload_of(data, put) if says_enough(data) else None
        return None if GLOBAL in data and MAIN in data else data

    def _dumps_each_plainly(self, objs: Sequence[object], pickled: list[Any]) -> bytes | Payload | None:
        """Append what `_dumps_plainly` returns for each object, up to the first for which that is None.

        The first that is large is returned.
        """
        try:
            large = self._plain.dumps_each(objs, pickled)
        except Exception as error:  # not told: as above
            if _is_final(error):
                raise
            return None
        return payload_of(large, self.arena.put) if large is not None and says_enough(large) else None

    def _encode_carefully(self, obj: object, put: Put) -> tuple[Payload, SendingPickler]:
        payload, pickler = self._pickle(obj, Attempt.FIRST, put)
        self._ledger.went_by_value(pickler.by_value)
        if pickler.needs:
            try:
                payload.fallback = self._fallback(obj, put)
            except BaseException:
                payload.close()
                raise
        return payload, pickler

    def _fallback(self, obj: object, put: Put) -> Payload | None:
        for attempt in (Attempt.FALLBACK, Attempt.CAUTIOUS):
            try:
                return self._pickle(obj, attempt, put)[0]
            except Exception as error:  # it can only go by name, then
                if came_from_handler(error):
                    raise
        return None

    def _pickle(self, obj: object, attempt: Attempt, put: Put) -> tuple[Payload, SendingPickler]:
        file, collector = io.BytesIO(), Collector()
        sorter = Sorter(LARGEST_SMALL) if put is put_for_all else Sorter()
        parcels = self._parcels if attempt is Attempt.FIRST else None
        try:
            pickler = SendingPickler(file, self._ledger, collector, attempt, parcels, sorter)
            pickler.dump(obj)
            large, needs, uses = Large((file.getvalue(),), sorter.buffers), tuple(pickler.needs), tuple(pickler.uses)
            return payload_of(large, put, needs, collector.take(), uses), pickler
        except BaseException:
            collector.close()
            raise


class Decoder:
    """The worker's half. To be made before the initializer runs."""

    def __init__(self) -> None:
        self._witness = Witness()

    def refused(self, needs: Iterable[Need]) -> list[Need]:
        """Return those needs that this worker does not meet."""
        return self._witness.refused(needs)

    loads = staticmethod(_envelope.loads)


def encode_result(value: object, put: Put = put_once) -> bytes | Payload:
    """Pickle a result; raises MaybeEncodingError as the stdlib's pool does, where that fails."""
    kind = type(value)
    try:
        if kind in ATOMS and not ((kind is bytes or kind is str) and len(value) > LARGEST_SMALL):  # type: ignore[arg-type]
            return pickle.dumps(value, PROTOCOL)
        data = _results.dumps(value)
        if not isinstance(data, Large):
            return data
        payload = payload_of(data, put)
        return payload if payload.weight else bytes(payload.data)
    except _BOUNDLESS as error:
        trouble: Exception = error
    except Exception:
        try:
            return dumps_return(value)
        except Exception as error:
            trouble = error
    raise MaybeEncodingError(trouble, _Shown(value))


def dumps_needs(needs: Iterable[Need]) -> bytes:
    """Write needs down for the way."""
    return pickle.dumps(tuple(needs), PROTOCOL)


def loads_needs(data: Any) -> list[Need]:
    """Read needs that were written down."""
    return list(pickle.loads(data))


class _Shown:
    """Has the repr of a value, also where that one raises."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        try:
            return repr(self._value)
        except BaseException:
            return safe_repr(self._value)


def _is_final(error: Exception) -> bool:
    """Tell whether there is to be no second attempt: it would only repeat this, or the first did not fail."""
    return isinstance(error, _BOUNDLESS) or came_from_handler(error)


class _NotPlainError(Exception):
    """Raised by plain pickling where an object has a reducer that may pass descriptors."""


def _adapt(reducer: Reducer) -> Reducer:
    return reducer if reducer in _SAME_AS_NATIVE else _refuse_plain


def _refuse_plain(_: object) -> Any:
    raise _NotPlainError


# Results pass no descriptors: there reducers do what they do in the stdlib.
_results = PlainPickler(lambda reducer: reducer)


def _travels_apart(function: Any) -> bool:
    """Tell functions and classes from callables that carry an object with them."""
    kind = type(function)
    if kind is BuiltinFunctionType:
        return type(function.__self__) is ModuleType
    return kind is FunctionType or kind is CachedFunction or issubclass(kind, type)


def _kind(function: Any, payload: Payload, pickler: SendingPickler | None) -> DefinitionKind:
    if payload.data.endswith(_GLOBAL_END):
        return DefinitionKind.NAMED
    is_method_of_class = type(function) in (MethodType, BuiltinFunctionType) and isinstance(function.__self__, type)
    if is_method_of_class or isinstance(function, _METHODS_OF_TYPES):
        goes_by_name = pickler is None or not (pickler.functions or pickler.classes)
        return DefinitionKind.NAMED if goes_by_name else DefinitionKind.BY_VALUE
    return DefinitionKind.BY_VALUE if _travels_apart(function) else DefinitionKind.STATEFUL
