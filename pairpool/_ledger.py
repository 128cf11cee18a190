"""What is known of the main modules of a pool's workers, on the caller's side and on theirs.

**Theory of operation.** A function or class of ``__main__`` travels by name only if the worker has
the same thing under that name, helpers included. The unit of comparison is one global of the main
module, here a *binding*; what a definition reaches through its globals is a list of bindings,
found anew whenever one of them has changed.

- The ledger is made with the pool and remembers what every binding was like then. Where workers
  are forks of the caller of that moment (`inherited`), this decides alone: what is as it was then
  goes by name, whatever an initializer put in its place; anything else goes by value.
- Where workers ran the main module again, only they can tell. A *need* (the name of a binding
  and the digest of what the caller has there) goes with the message, and the worker compares it
  with what it had before its initializer ran. What was there when the pool began is compared by
  its code alone, since counters and defaults computed at import differ between any two processes.

Guarantees:

- What once went by value, or was refused, goes by value for as long as the pool lives, and so
  does whatever reaches it: a worker that got it has it planted in its main module.
- No definition of the user's is kept alive (but for its code).

Nothing here takes a lock: every change of a set or dictionary is one operation.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pairpool._anatomy import Definition, functions_of, held_by, in_main, is_definition, names_in
from pairpool._fingerprint import DIGEST_SIZE, Likeness, Scope, digest, likeness
from pairpool._framing import ATOMS
from pairpool._namespaces import (
    MAIN_NAMES,
    MISSING,
    Namespace,
    is_planted,
    main_module,
    main_namespace,
    namespace,
)

Need = tuple[str, bytes]
"""A binding (``name`` in ``__main__``, else ``module:name``) and the digest of what it has to be."""

_PRESENT: Final = bytes((Scope.PRESENT,)).ljust(DIGEST_SIZE, b"\0")


def presence(home: str, name: str) -> Need:
    """Return the need for a global to have any value."""
    return (name if home in MAIN_NAMES else f"{home}:{name}", _PRESENT)


def binding_of(definition: Definition) -> str | None:
    """Return the global of the main module through which a pickle would find a definition by name."""
    path = getattr(definition, "__qualname__", None)
    if not isinstance(path, str):
        return None
    found: Any = main_module()
    for step in path.split("."):
        found = getattr(found, step, MISSING)
    return path.partition(".")[0] if found is definition else None


class Reach:
    """The bindings which the functions behind some names use, directly or through each other."""

    def __init__(self, main: Namespace, names: Iterable[str]) -> None:
        self._main = main
        self.definitions: dict[str, Likeness] = {}
        self._others: dict[str, type] = {}  # types of data: a function may take its place
        pending = list(names)
        while pending:
            name = pending.pop()
            if name in self.definitions or name in self._others:
                continue
            value = main.get(name, MISSING)
            if is_definition(value):
                self.definitions[name] = likeness(value)
                pending.extend(self._names_behind(value))
            else:
                self._others[name] = type(value)

    def _names_behind(self, definition: Definition) -> Iterable[str]:
        for function in functions_of(definition):
            if function.__globals__ is self._main:
                yield from names_in(function.__code__)
            yield from map(_top_name, filter(_is_main_class, held_by(function)))
        if isinstance(definition, type):
            metaclass: type = type(definition)
            yield from map(_top_name, filter(_is_main_class, definition.__mro__ + metaclass.__mro__))

    def still_holds(self) -> bool:
        """Tell whether every binding is what it was."""
        get = self._main.get
        for name, like in self.definitions.items():  # no generators: it is asked for every call
            if not like.holds_for(get(name, MISSING)):
                return False
        return not self._others or all(type(get(name, MISSING)) is kind for name, kind in self._others.items())


def _is_same_version(shipped: tuple[Likeness | None, object, int], value: object) -> bool:
    like, plain, _ = shipped
    if like is not None:
        return is_definition(value) and like.holds_for(value)
    return plain is (value if type(value) in ATOMS else MISSING)


def _is_main_class(value: object) -> bool:
    return issubclass(type(value), type) and in_main(value)


def _top_name(cls: type) -> str:
    return cls.__qualname__.partition(".")[0]


class Ledger:
    """The caller's side: how definitions of its main module may travel to the workers of a pool."""

    def __init__(self, *, inherited: bool) -> None:
        self.revision = 0  # another one whenever something is to travel otherwise than before
        self._revisions = itertools.count(1)
        self._inherited = inherited
        self._main = main_namespace()
        self._bound = frozenset(self._main)
        self._origin = {name: likeness(value) for name, value in self._main.items() if is_definition(value)}
        self._accepted: set[Need] = set()
        self._by_value: set[str] = set()
        self._shipped: dict[tuple[str, str], tuple[Likeness | None, object, int]] = {}
        self._known: dict[str, tuple[Reach, tuple[Need, ...] | None]] = {}

    def reach(self, names: Iterable[str]) -> Reach:
        """Find what is behind the global names that some code uses."""
        return Reach(self._main, names)

    def needs_of(self, name: str) -> tuple[Need, ...] | None:
        """Return what a worker must have for a binding to travel by name; None: it goes by value."""
        known = self._known.get(name)
        if known is None or not known[0].still_holds():
            reach = Reach(self._main, (name,))
            known = self._known[name] = reach, self._needs(reach) if name in reach.definitions else None
        reach, needs = known
        return needs if self._by_value.isdisjoint(reach.definitions) else None

    def pending(self, needs: Sequence[Need]) -> list[Need]:
        """Return those needs that no worker has confirmed."""
        return [need for need in needs if need not in self._accepted]

    def data_need(self, home: str, name: str) -> Need | None:
        """Return the need by which a function may leave its data at home; None: bring the data."""
        need = presence(home, name)
        if need[0] in self._by_value or (self._inherited and home in MAIN_NAMES):
            return None
        return need

    def is_inherited(self, home: str, name: str) -> bool:
        """Tell whether workers have a global because the caller had it when they were forked."""
        return self._inherited and home in MAIN_NAMES and name in self._bound

    def accept(self, needs: Iterable[Need]) -> None:
        """A worker has these."""
        self._accepted.update(needs)

    def refuse(self, needs: Iterable[Need]) -> None:
        """A worker has something else, or nothing, under these names."""
        self.went_by_value({name for name, _ in needs})

    def version_of(self, home: str, name: str, value: object) -> int:
        """Return the version of a global that a function takes along, larger than those it had before.

        A new version makes a new `revision`: functions that were sent with the old one have to be
        sent again before they are used again, or would find this one.
        """
        shipped = self._shipped.get((home, name))
        if shipped is not None and _is_same_version(shipped, value):
            return shipped[2]
        # A time, because a caller may itself be a worker: what it was sent then is older than what it sends.
        version = time.monotonic_ns()
        if is_definition(value):
            self._shipped[home, name] = likeness(value), None, version
        else:
            # Only plain values are compared: a function that brings any other is pickled for each call.
            self._shipped[home, name] = None, value if type(value) in ATOMS else MISSING, version
        self.revision = next(self._revisions)
        return version

    def went_by_value(self, names: set[str]) -> None:
        """From now on these go by value."""
        if not names <= self._by_value:
            self._by_value |= names
            self.revision = next(self._revisions)

    def _needs(self, reach: Reach) -> tuple[Need, ...] | None:
        originals = {name for name in reach.definitions if self._is_original(name)}
        if self._inherited:
            return () if len(originals) == len(reach.definitions) else None
        return tuple(
            (name, digest(self._main.get(name), Scope.CODE if name in originals else Scope.ALL))
            for name in reach.definitions
        )

    def _is_original(self, name: str) -> bool:
        origin = self._origin.get(name)
        return origin is not None and origin.holds_for(self._main.get(name, MISSING))


class Witness:
    """The worker's side: whether it has what a message needs.

    To be made before the initializer runs: what that one replaces is not what the caller means.
    """

    def __init__(self) -> None:
        self._started_with = {name: value for name, value in main_namespace().items() if is_definition(value)}
        self._verified: set[Need] = set()

    def refused(self, needs: Iterable[Need]) -> list[Need]:
        """Return those needs which this worker does not meet."""
        return [need for need in needs if need not in self._verified and not self._verify(need)]

    def _verify(self, need: Need) -> bool:
        home, _, name = need[0].rpartition(":")
        home = home or "__main__"
        if is_planted(home, name):
            return False  # other workers need not have it
        if not self._meets(need[1], home, name):
            return False
        self._verified.add(need)
        return True

    def _meets(self, wanted: bytes, home: str, name: str) -> bool:
        if wanted == _PRESENT:
            return name in namespace(home)
        definition = self._started_with.get(name, MISSING)
        if definition is MISSING:
            definition = main_namespace().get(name, MISSING)
        return is_definition(definition) and digest(definition, Scope(wanted[0])) == wanted
