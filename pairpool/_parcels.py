"""Classes by value, pickled once for as long as they stay the same.

To pickle a class of the notebook's costs a hundred times what an instance costs, and as much
again to load it. So a class goes as a *parcel*, a pickle inside the pickle with a number, which is
made once, and opened once in each worker.
"""

from __future__ import annotations

import io
import os
import pickle
import weakref
from typing import Any, Final, NamedTuple

from pairpool._by_value import Reduced, SendingPickler
from pairpool._kept import ValueGuard, guard_value
from pairpool._ledger import Ledger

MOST_KEPT: Final = 256  # parcels; then all are dropped, and made once more

_opened: weakref.WeakValueDictionary[bytes, type] = weakref.WeakValueDictionary()


class _Parcel(NamedTuple):
    """A class that was pickled, and what its pickler found out; keeps none of it alive."""

    guard: ValueGuard
    reduced: Reduced
    by_value: set[str]
    functions: list[weakref.ref[Any]]
    classes: list[weakref.ref[type]]
    data: list[Any]

    def tell(self, pickler: SendingPickler) -> None:
        """Tell a pickler what it would have found out."""
        pickler.by_value |= self.by_value
        pickler.functions += [found for reference in self.functions if (found := reference()) is not None]
        pickler.classes += [found for reference in self.classes if (found := reference()) is not None]
        pickler.data += self.data


class ClassParcels:
    """The parcels that a caller has made."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._made: dict[int, _Parcel] = {}

    def reduce(self, cls: type, pickler: SendingPickler) -> Reduced:
        """Reduce a class for a pickler, and let that one know what there was to find out."""
        parcel = self._made.get(id(cls))
        # Classes of that id may have come and gone.
        if parcel is not None and parcel.classes[0]() is cls and parcel.guard.holds_for(cls):
            parcel.tell(pickler)
            return parcel.reduced
        file = io.BytesIO()
        part = pickler.nested(file)
        part.dump(cls)
        self._ledger.went_by_value(part.by_value)
        pickler.include(part)
        # Not a digest of it: a class that is as it was before may have to plant its helpers again.
        reduced = open_parcel, (os.urandom(16), file.getvalue())
        self._keep(cls, part, reduced)
        return reduced

    def _keep(self, cls: type, part: SendingPickler, reduced: Reduced) -> None:
        guard = None if part.needs else guard_value(self._ledger, part, class_=True)
        if guard is None:
            return
        if len(self._made) >= MOST_KEPT:
            self._made.clear()
        functions = list(map(weakref.ref, part.functions))
        classes = list(map(weakref.ref, part.classes))
        self._made[id(cls)] = _Parcel(guard, reduced, part.by_value, functions, classes, part.data)


def open_parcel(number: bytes, data: bytes) -> type:
    """Return the class in a parcel, which is loaded the first time."""
    cls = _opened.get(number)
    if cls is None:
        cls = _opened[number] = pickle.loads(data)
    return cls
