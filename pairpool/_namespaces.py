"""The dictionaries that functions live in: where a function that travels by value finds its globals.

A function that arrives by value is bound to the dictionary of the module it came from, not to
one of its own, so that it sees what an initializer set there. What it brings along is *planted*
in that dictionary. Planted values are remembered, for two reasons: they are not what the process
started with, so they say nothing about other workers; and the caller may have a newer one, which
replaces them, while one that is older and came late does not.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from types import FunctionType, ModuleType
from typing import Any, Final, NamedTuple

from pairpool._strikes import came_from_handler

Namespace = dict[str, Any]

# The main module has the second name in processes that re-imported it (forkserver, spawn).
MAIN_NAMES: Final = frozenset({"__main__", "__mp_main__"})

MISSING: Final = object()


class _Planted(NamedTuple):
    value: Any
    version: int


_synthetic: dict[str, Namespace] = {}
_planted: dict[str, dict[str, _Planted]] = {}


def main_module() -> ModuleType:
    """Return the main module of this process."""
    return sys.modules["__main__"]


def main_namespace() -> Namespace:
    """Return the dictionary that the functions of the main module have for globals.

    Where multiprocessing re-imported the main module (`runpy`), it is not the module's own
    dictionary: that one is a copy, and what an initializer sets never shows in it.
    """
    own = vars(main_module())
    for value in tuple(own.values()):
        if type(value) is FunctionType and value.__module__ in MAIN_NAMES:
            candidate: Namespace = value.__globals__
            if candidate.get("__name__") in MAIN_NAMES:
                return candidate
    return own


def home_of(globals_: Namespace) -> str | None:
    """Return the name of the module whose functions have these globals; None if there is none.

    None is the answer for code run by `exec` in a dictionary of its own, and for a module which
    has since been replaced.
    """
    name = globals_.get("__name__")
    if not isinstance(name, str):
        return None
    if name in MAIN_NAMES:
        is_main = globals_ is vars(main_module()) or globals_ is main_namespace()
        return "__main__" if is_main else None
    module = sys.modules.get(name)
    return name if module is not None and getattr(module, "__dict__", None) is globals_ else None


def namespace(home: str) -> Namespace:
    """Return the dictionary of the module of that name here.

    A module which cannot be imported here gets a synthetic dictionary, the same one for all
    functions that came from it.
    """
    if home in MAIN_NAMES:
        return main_namespace()
    synthetic = _synthetic.get(home)
    if synthetic is not None:
        return synthetic
    try:
        return vars(importlib.import_module(home))
    except Exception as error:  # whatever its import runs into: here that module does not exist
        if came_from_handler(error):
            raise
        return _synthetic.setdefault(home, {"__name__": home, "__builtins__": builtins})


def plant(home: str, name: str, value: object, version: int, *, replace: bool) -> None:
    """Set a global where it is absent, or has a planted value that is not newer.

    `replace`: also where it has a value of the process's own.
    """
    target = namespace(home)
    planted = _planted.setdefault(home, {})
    current, before = target.get(name, MISSING), planted.get(name)
    if before is not None and before.value is current:
        if version < before.version:
            return
    elif current is not MISSING and not replace:
        return
    target[name] = value
    planted[name] = _Planted(value, version)
    if home in MAIN_NAMES:
        vars(main_module())[name] = value  # where pickles look a name up


def is_planted(home: str, name: str) -> bool:
    """Tell whether that global has the value that was planted there."""
    planted = _planted.get(home, {}).get(name)
    return planted is not None and namespace(home).get(name, MISSING) is planted.value
