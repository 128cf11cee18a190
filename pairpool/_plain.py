"""Plain pickling by C picklers that are used again.

Making a `pickle.Pickler` costs more than pickling small things with it, and `pickle.dumps` knows no
reducers but the global ones; so picklers are kept. One that raised, or that has a large memo, is
not: clearing a memo costs what it has ever held. What they write goes into a slab where it is large,
and is not put together before (_envelope.py).
"""

from __future__ import annotations

import copyreg
import io
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import reduction
from types import SimpleNamespace
from typing import Any, Final

from pairpool import _framing
from pairpool._envelope import LARGEST_GROUP, LARGEST_IN_BAND, LARGEST_SMALL, PROTOCOL, Large, Sorter
from pairpool._framing import NUMBERS
from pairpool._passing import Reducer, extra_reducers
from pairpool._strikes import came_from_handler

GLOBAL: Final = pickle.STACK_GLOBAL[0]  # an int: looking for one in bytes takes an eighth of looking for bytes
MAIN: Final = b"_main__"  # what names the main module has this in it, and GLOBAL

_NAMES_SOMETHING: Final = re.compile(rb"(?:\x94|h.|j....)\x93", re.DOTALL)
"""STACK_GLOBAL after the name, which is remembered (MEMOIZE) or remembered from before (BINGET, LONG_BINGET)."""

_WORTH_READING: Final = 256
"""Bytes a pickle up to which to look for names (2 ns a byte) costs less than it spares."""

_EXTENSIONS: Final[dict[int, Any]] = copyreg._inverted_registry  # type: ignore[attr-defined]
"""What pickles may name by a number, by a program that has `copyreg.add_extension`.

There is no public name for it; pickle itself takes it from there.
"""


_Pickler = tuple[Callable[[Any], None], Callable[[], None], list[Any], Sorter]


class PlainPickler:
    """Pickles as the stdlib's pool does, with what is registered with `multiprocessing.reduction`."""

    def __init__(self, adapt: Callable[[Reducer], Reducer], in_band: int = LARGEST_IN_BAND) -> None:
        """`adapt` is asked once for each registered reducer for what to use in its place; `in_band`: see `Sorter`."""
        self._adapt = adapt
        self._in_band = in_band
        self._global: Mapping[Any, Any] = {}
        self._registered: Mapping[type, Reducer] = {}
        self._idle: list[_Pickler] = []
        self._table: dict[Any, Any] = {}

    def dumps(self, obj: object) -> bytes | Large:
        """Pickle one object. Reentrant, and safe to call from several threads."""
        idle = self._idle
        dump, clear_memo, written, sorter = pickler = self._take()
        dump(obj)
        if len(written) > 1 or len(written[0]) > LARGEST_SMALL:
            return Large.written(written, sorter.buffers)
        data: bytes = written[0]
        buffers = sorter.take()
        clear_memo()
        written.clear()
        idle.append(pickler)
        return Large((data,), buffers) if buffers else data

    def dumps_each(self, objs: Iterable[object], pickled: list[bytes]) -> Large | None:
        """Append the pickle of each object to `pickled`, up to the first that names something in the main module.

        The first that is large is returned, and ends it as well. What is raised is the next one's. Reducers registered
        meanwhile are used from the next call on.
        """
        idle = self._idle
        dump, clear_memo, written, sorter = pickler = self._take()
        large = None
        for obj in objs:
            dump(obj)
            if len(written) > 1 or len(written[0]) > LARGEST_SMALL:
                return Large.written(written, sorter.buffers)
            data = written[0]
            if sorter.buffers:
                large = Large((data,), sorter.take())
            clear_memo()
            written.clear()
            if large is not None or (GLOBAL in data and MAIN in data):
                break
            pickled.append(data)
        idle.append(pickler)
        return large

    def _take(self) -> _Pickler:
        """A pickler that nobody uses. It is kept in what was `_idle` before, so that it never is with newer ones."""
        forking: Any = reduction.ForkingPickler
        if forking._extra_reducers != self._registered or copyreg.dispatch_table != self._global:
            self._take_reducers()
        try:
            return self._idle.pop()
        except IndexError:
            pass  # what follows stands outside, or an interrupt would show this error, too
        return self._make()

    def _take_reducers(self) -> None:
        globals_, registered = dict(copyreg.dispatch_table), dict(extra_reducers())
        table = {**globals_, **{kind: self._adapt(reducer) for kind, reducer in registered.items()}}
        # Picklers with the old table go back to the old list, that is nowhere.
        self._table, self._idle = table, []
        self._global, self._registered = globals_, registered

    def _make(self) -> _Pickler:
        written: list[Any] = []
        sorter = Sorter(self._in_band)
        pickler = pickle.Pickler(SimpleNamespace(write=written.append), PROTOCOL, buffer_callback=sorter)
        pickler.dispatch_table = self._table
        return pickler.dump, pickler.clear_memo, written, sorter


def dumps_together(objs: list[Any]) -> bytes | None:
    """Pickle a list of small values which nobody can tell from a pickle for each; None where somebody could."""
    if not _framing.share_nothing(objs):
        return None
    try:
        data = pickle.dumps(objs, PROTOCOL)
    except Exception as error:
        if came_from_handler(error):
            raise
        return None  # somebody has changed one since
    return data if len(data) <= LARGEST_GROUP else None


def are_plain(pickles: Sequence[Any]) -> bool:
    """Tell whether loading these runs no code of the user's: nobody sees when it is done, nor how often."""
    if sum(map(len, pickles)) > _WORTH_READING * len(pickles):
        return False
    try:
        joined = b"".join(pickles)
    except TypeError:
        return False  # some lie in slabs
    return _NAMES_SOMETHING.search(joined) is None and not _EXTENSIONS


class _NamesNothing:
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no number")

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"extension {code} is no number")


class _Loader(_NamesNothing, pickle.Unpickler):
    """The one in C. An extension that was loaded once it takes from a cache, and asks nobody."""


class _CarefulLoader(_NamesNothing, pickle._Unpickler):
    """The one in Python, which does ask."""


def load_numbers(pickled: Any) -> list[Any]:
    """Load a list of numbers; raises UnpicklingError where it is none. No code of the user's runs."""
    loader = _CarefulLoader if _EXTENSIONS else _Loader
    values = loader(io.BytesIO(pickled)).load()
    if type(values) is not list or not NUMBERS.issuperset(map(type, values)):
        raise pickle.UnpicklingError("no list of numbers")
    return values
