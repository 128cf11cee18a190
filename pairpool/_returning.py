"""How results and errors of the user's travel back from a worker.

As in the stdlib's pool, a function that has no name cannot be a result. A class without one can,
since its instances are often harmless records: it goes by value, as a pickle inside the pickle, in
which functions are its methods. A class that came from the caller goes back to being the caller's
own: cloudpickle's tracking numbers tell, and nothing of it is changed there.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Callable
from types import FunctionType
from typing import Any

from cloudpickle import cloudpickle

from pairpool._anatomy import Definition, in_main, is_definition
from pairpool._by_value import (
    CLASS_MAKERS,
    Brought,
    DefinitionPickler,
    Reduced,
    is_importable,
    is_special,
    restore_returned_function,
)
from pairpool._envelope import PROTOCOL
from pairpool._framing import ATOMS
from pairpool._ledger import binding_of
from pairpool._namespaces import Namespace
from pairpool._passing import extra_reducers

_unfinished: set[str] = set()  # tracking numbers of classes made here and not yet filled


def dumps_return(obj: object) -> bytes:
    """Pickle what a worker returns."""
    file = io.BytesIO()
    ReturningPickler(file).dump(obj)
    return file.getvalue()


class ReturningPickler(pickle.Pickler):
    """Pickles as the stdlib's pool does, but for classes that have no name where it arrives."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, PROTOCOL)
        self.dispatch_table = {**copyreg.dispatch_table, **extra_reducers()}

    def reducer_override(self, obj: Any) -> Reduced:
        kind = type(obj)
        if not issubclass(kind, type) or kind in self.dispatch_table or _has_name(obj):
            return NotImplemented
        if is_special(obj):
            return cloudpickle._class_reduce(obj)
        file = io.BytesIO()
        _ClassPickler(file).dump(obj)
        return pickle.loads, (file.getvalue(),)


class _ClassPickler(DefinitionPickler):
    """Pickles one class with what it consists of."""

    def stays_named(self, definition: Definition) -> bool:
        return _has_name(definition)

    def globals_to_bring(self, _: str, names: Namespace) -> tuple[Brought, Brought]:
        """Bring what the caller's own module may lack, which is little: it is where the work came from."""
        definitions = [
            (name, 0, value)
            for name, value in names.items()
            if is_definition(value) and not (in_main(value) and binding_of(value) == name)
        ]
        return definitions, [(name, 0, value) for name, value in names.items() if type(value) in ATOMS]

    def restorer(self) -> Callable[[FunctionType, Any], None]:
        return restore_returned_function

    def reduce_class(self, cls: type) -> Reduced:
        reduced = super().reduce_class(cls)
        if is_special(cls):
            return reduced
        maker, arguments, state, *_ = reduced
        tracker = arguments[CLASS_MAKERS[maker]]
        return (
            make_returned_class,
            (maker, tracker, arguments),
            (tracker, state),
            None,
            None,
            fill_returned_class,
        )


def _has_name(definition: Definition) -> bool:
    return binding_of(definition) is not None if in_main(definition) else is_importable(definition)


def make_returned_class(maker: Callable[..., type], tracker: str, arguments: tuple[Any, ...]) -> type:
    """Return the class of that tracking number: the one there is, or else a new one, still empty."""
    known: type | None = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
    if known is not None:
        return known
    _unfinished.add(tracker)
    return maker(*arguments)


def fill_returned_class(cls: type, state: Any) -> None:
    """Fill a class that was made just now; leave any other alone."""
    tracker, contents = state
    if tracker in _unfinished:
        _unfinished.discard(tracker)
        cloudpickle._class_setstate(cls, contents)
