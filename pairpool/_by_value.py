"""Functions and classes by value: cloudpickle's reducers, bound to our notion of where globals live.

cloudpickle gives each function that it unpickles a dictionary of globals of its own, so that what
an initializer set is not seen; or, asked to share one, overwrites it. Here such a function gets the
dictionary of its own module (see _namespaces.py), and brings only what may be missing there:

- functions, classes and modules that the worker has otherwise; in the main module they replace
  what is there, elsewhere they fill gaps;
- plain data, only where the name is absent (or where an earlier function brought its value).

All else is left to pickle, so that data which the stdlib's pool refuses (locks, files, views) is
refused here in the same words.
"""

from __future__ import annotations

import builtins
import collections
import copyreg
import enum
import functools
import io
import logging
import pickle
import types
import weakref
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Protocol

from cloudpickle import cloudpickle

from pairpool._anatomy import CachedFunction, Definition, in_main, is_definition, is_found_by_name
from pairpool._envelope import PROTOCOL
from pairpool._framing import ATOMS
from pairpool._ledger import Ledger, Need, binding_of
from pairpool._namespaces import MAIN_NAMES, Namespace, home_of, namespace, plant
from pairpool._passing import Collector, Reducer, extra_reducers
from pairpool._shared import Shared
from pairpool._strikes import came_from_handler

if TYPE_CHECKING:
    from pairpool import _payload

SUPPORTED_CLOUDPICKLE: Final = "cloudpickle>=3.0,<4"

Reduced = Any
"""What a reducer returns."""

Brought = list[tuple[str, int, Any]]
"""Globals that a function takes along: name, version and value."""

_IDENTITY_OF_MODULE: Final = ("__package__", "__name__", "__path__", "__file__")


def check_cloudpickle() -> None:
    """Raise where cloudpickle's private parts that pairpool stands on are not what they were."""

    def sample() -> None: ...

    try:
        _, slots = cloudpickle._function_getstate(sample)
        maker, arguments, _, _, _, setter = cloudpickle._dynamic_class_reduce(type("Sample", (), {}))
        holds = (
            {"__globals__", "__closure__", "_cloudpickle_submodules"} <= slots.keys()
            and maker is cloudpickle._make_skeleton_class
            and arguments[4] in cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
            and callable(cloudpickle._make_skeleton_enum)
            and callable(cloudpickle._class_reduce)
            and callable(cloudpickle._should_pickle_by_reference)
            and setter is cloudpickle._class_setstate
            and type(cloudpickle._make_empty_cell()) is types.CellType
            and types.CodeType in cloudpickle.Pickler.dispatch_table.maps[0]
        )
    except (AttributeError, IndexError, TypeError, ValueError):
        holds = False
    if not holds:
        import cloudpickle as package

        raise ImportError(
            f"pairpool needs {SUPPORTED_CLOUDPICKLE}, and not {package.__version__}, which differs inside"
        )


check_cloudpickle()

_MAPPINGS: Final[tuple[dict[str, str], ...]] = ({}, collections.OrderedDict())
_DATA: Final[frozenset[type]] = frozenset(
    # What cloudpickle would convert, often into something else.
    (
        io.TextIOWrapper,
        logging.Logger,
        logging.RootLogger,
        memoryview,
        types.MethodType,
        weakref.WeakSet,
        *(type(view) for of in _MAPPINGS for view in (of.keys(), of.values(), of.items())),
    )
)
PARTS_OF_DEFINITIONS: Final[dict[type, Reducer]] = {
    kind: reducer for kind, reducer in cloudpickle.Pickler.dispatch_table.maps[0].items() if kind not in _DATA
}

CLASS_MAKERS: Final = {
    # What makes dynamic classes, and which of its arguments is cloudpickle's tracking number.
    cloudpickle._make_skeleton_class: 4,
    cloudpickle._make_skeleton_enum: 5,
}
_SPECIAL: Final = frozenset((type(None), type(NotImplemented), type(...))) | cloudpickle._BUILTIN_TYPE_NAMES.keys()


def is_importable(definition: Definition) -> bool:
    """Tell whether a function or class that is not of the main module is found by its name."""
    if isinstance(definition, CachedFunction):  # cloudpickle knows nothing of these
        return is_found_by_name(definition)
    return bool(cloudpickle._should_pickle_by_reference(definition))


def is_special(cls: type) -> bool:
    """Tell whether a class has no name and yet is the interpreter's, as NoneType and FunctionType."""
    return type(cls) is type and cls in _SPECIAL


class DefinitionPickler(pickle.Pickler):
    """Pickles functions and classes by name or by value; subclasses say which.

    One method sees every object that is not of a basic type, before any table of reducers.
    """

    def __init__(self, file: Any, buffer_callback: Any = None) -> None:
        super().__init__(file, PROTOCOL, buffer_callback=buffer_callback)
        self.dispatch_table = {**copyreg.dispatch_table, **PARTS_OF_DEFINITIONS}
        self._registered = extra_reducers()
        self._anonymous: dict[int, Namespace] = {}

    def stays_named(self, definition: Definition) -> bool:
        """Tell whether a name is enough."""
        raise NotImplementedError

    def globals_to_bring(self, home: str, names: Namespace) -> tuple[Brought, Brought]:
        """Return, of the globals a function uses, the definitions and the data to take along."""
        raise NotImplementedError

    def restorer(self) -> Callable[[FunctionType, Any], None]:
        """Return what finishes a function where it arrives."""
        raise NotImplementedError

    def reduce_registered(self, reducer: Reducer, obj: object) -> Reduced:
        """Reduce an object with what is registered for it with `multiprocessing.reduction`."""
        return reducer(obj)

    def reducer_override(self, obj: Any) -> Reduced:
        kind = type(obj)
        if kind is Shared:
            return self.reduce_shared(obj)
        if kind is FunctionType:
            return NotImplemented if self.stays_named(obj) else self.reduce_function(obj)
        if kind is CachedFunction:
            return NotImplemented if self.stays_named(obj) else reduce_cached_function(obj)
        if issubclass(kind, type) and kind not in self.dispatch_table:
            return NotImplemented if self.stays_named(obj) else self.reduce_class(obj)
        reducer = self._registered.get(kind)
        return NotImplemented if reducer is None else self.reduce_registered(reducer, obj)

    def reduce_shared(self, shared: Shared) -> Reduced:
        return shared.__reduce__()

    def reduce_class(self, cls: type) -> Reduced:
        return cloudpickle._class_reduce(cls) if is_special(cls) else cloudpickle._dynamic_class_reduce(cls)

    def reduce_function(self, function: FunctionType) -> Reduced:
        attributes, slots = cloudpickle._function_getstate(function)
        names = slots.pop("__globals__")
        home = home_of(function.__globals__)
        definitions, data = self.globals_to_bring(home, names) if home is not None else ([], [])
        cells = None
        if function.__closure__ is not None:
            # Filled once the function exists: it may close over itself.
            cells = tuple(cloudpickle._make_empty_cell() for _ in function.__closure__)
        base = self._anonymous_globals(function) if home is None else None
        made_from = (function.__code__, home, base, cells)
        state = (attributes, slots, home, names if home is None else None, definitions, data)
        return make_function, made_from, state, None, None, self.restorer()

    def _anonymous_globals(self, function: FunctionType) -> Namespace:
        """Return globals for a function of no module; those that shared theirs share them in one pickle."""
        globals_ = function.__globals__
        return self._anonymous.setdefault(
            id(globals_), {name: globals_[name] for name in _IDENTITY_OF_MODULE if name in globals_}
        )


class Attempt(enum.Enum):
    """How to pickle what a worker may have, and what it may not have."""

    FIRST = "by name, and as a need"
    FALLBACK = "by value"
    CAUTIOUS = "by value, but data of functions that cannot be pickled is left out, as a need"
    SHALLOW = "by value, without any data of functions: only to see whether it can be done"


class Parcels(Protocol):
    """Classes that were pickled before (see _parcels.py)."""

    def reduce(self, cls: type, pickler: SendingPickler) -> Reduced:
        """Reduce a class to its own pickle."""


class SendingPickler(DefinitionPickler):
    """Pickles what a caller sends to workers, and notes what it found out about it."""

    def __init__(
        self,
        file: Any,
        ledger: Ledger,
        collector: Collector,
        attempt: Attempt,
        parcels: Parcels | None = None,
        buffer_callback: Any = None,
    ) -> None:
        super().__init__(file, buffer_callback)
        self.needs: dict[Need, None] = {}
        self.by_value: set[str] = set()  # bindings
        self.functions: list[FunctionType] = []  # that went by value
        self.classes: list[type] = []  # that went by value
        self.data: list[tuple[Namespace, str, Any]] = []  # that they brought
        self.uses: list[_payload.Definition] = []  # shared objects
        self.met_main = False
        self._ledger = ledger
        self._collector = collector
        self._attempt = attempt
        self._parcels = parcels

    def stays_named(self, definition: Definition) -> bool:
        if not in_main(definition):
            return is_importable(definition)
        self.met_main = True
        binding = binding_of(definition)
        return binding is not None and self._refers_to(binding)

    def reduce_function(self, function: FunctionType) -> Reduced:
        self.functions.append(function)
        return super().reduce_function(function)

    def reduce_class(self, cls: type) -> Reduced:
        if not is_special(cls):
            if self._parcels is not None:
                return self._parcels.reduce(cls, self)
            self.classes.append(cls)
        return super().reduce_class(cls)

    def reduce_shared(self, shared: Shared) -> Reduced:
        self.met_main = True  # a plain attempt would fail with those that follow, too
        used, reduced = shared.reduce(self._ledger)
        self.uses += (used, *used.payload.uses)
        return reduced

    def nested(self, file: Any) -> SendingPickler:
        """Return a pickler for a part of this pickle, which knows nothing of the rest."""
        return SendingPickler(file, self._ledger, self._collector, self._attempt)

    def include(self, part: SendingPickler) -> None:
        """Take over what another pickler has found out."""
        self.needs.update(part.needs)
        self.uses += part.uses
        self.by_value |= part.by_value
        self.functions += part.functions
        self.classes += part.classes
        self.data += part.data

    def reduce_registered(self, reducer: Reducer, obj: object) -> Reduced:
        return self._collector.reduce(reducer, obj)

    def globals_to_bring(self, home: str, names: Namespace) -> tuple[Brought, Brought]:
        definitions: Brought = []
        data: Brought = []
        for name, value in names.items():
            if not is_definition(value):
                if self._brings_data(home, name, value):
                    data.append((name, self._ledger.version_of(home, name, value), value))
                    self.data.append((namespace(home), name, value))
            elif self._brings_definition(home, name, value):
                definitions.append((name, self._ledger.version_of(home, name, value), value))
        return definitions, data

    def restorer(self) -> Callable[[FunctionType, Any], None]:
        return restore_sent_function

    def _refers_to(self, binding: str) -> bool:
        needs = self._ledger.needs_of(binding)
        if needs is None:
            self.by_value.add(binding)
            return False
        pending = self._ledger.pending(needs)
        if pending and self._attempt is not Attempt.FIRST:
            return False
        self.needs.update(dict.fromkeys(pending))
        return True

    def _brings_definition(self, home: str, name: str, value: Any) -> bool:
        if home in MAIN_NAMES:
            self.met_main = True
            return not self._refers_to(name)
        return (getattr(value, "__module__", None), getattr(value, "__qualname__", None)) != (home, name)

    def _brings_data(self, home: str, name: str, value: Any) -> bool:
        if self._attempt is Attempt.SHALLOW or self._ledger.is_inherited(home, name):
            return False
        need = self._ledger.data_need(home, name)
        if need is None or type(value) in ATOMS:
            return True
        if not self._ledger.pending((need,)):
            return False
        if self._attempt is Attempt.FALLBACK or (self._attempt is Attempt.CAUTIOUS and self._can_pickle(value)):
            return True
        self.needs[need] = None
        return False

    def _can_pickle(self, value: Any) -> bool:
        try:
            SendingPickler(io.BytesIO(), self._ledger, self._collector, Attempt.SHALLOW).dump(value)
        except Exception as error:
            if came_from_handler(error):
                raise
            return False
        return True


def reduce_cached_function(cached: Any) -> Reduced:
    """Reduce what `functools.lru_cache` made; the copy begins with an empty cache."""
    wrapped = getattr(cached, "__wrapped__", None)
    if wrapped is None:
        return NotImplemented
    return make_cached_function, (wrapped, cached.cache_parameters())


# Where they arrive.


def make_cached_function(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """Cache a function anew."""
    return functools.lru_cache(**parameters)(function)


def make_function(
    code: types.CodeType, home: str | None, base: Namespace | None, cells: tuple[types.CellType, ...] | None
) -> FunctionType:
    """Make a function that has the globals of its module, or `base` where it has no module."""
    if base is None:
        assert home is not None
        return FunctionType(code, namespace(home), None, None, cells)
    base["__builtins__"] = builtins
    return FunctionType(code, base, None, None, cells)


def restore_sent_function(function: FunctionType, state: Any) -> None:
    """Finish a function that a caller sent: what it brings replaces what the main module has."""
    _restore_function(function, state, replace=True)


def restore_returned_function(function: FunctionType, state: Any) -> None:
    """Finish a function that a worker sent back: what it brings only fills gaps."""
    _restore_function(function, state, replace=False)


def _restore_function(function: FunctionType, state: Any, *, replace: bool) -> None:
    attributes, slots, home, anonymous, definitions, data = state
    function.__dict__.update(attributes)
    slots.pop("_cloudpickle_submodules")  # were there to be imported
    _fill_cells(function, slots.pop("__closure__"))
    for name, value in slots.items():
        setattr(function, name, value)
    if home is None:
        function.__globals__.update(anonymous)
        return
    for name, version, value in definitions:
        plant(home, name, value, version, replace=replace and home in MAIN_NAMES)
    for name, version, value in data:
        plant(home, name, value, version, replace=False)


def _fill_cells(function: FunctionType, filled: Iterable[types.CellType] | None) -> None:
    for empty, cell in zip(function.__closure__ or (), filled or (), strict=True):
        try:
            empty.cell_contents = cell.cell_contents
        except ValueError:  # empty where it came from, too
            continue
