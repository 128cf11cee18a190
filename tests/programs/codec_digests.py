"""Prints the digest of everything defined here: ``codec_digests.py [METHOD]``.

Run as the main module it prints what it has; with a start method, what a process of that method has
of it. The definitions are of every shape that could make two processes disagree.
"""

from __future__ import annotations

import abc
import enum
import functools
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pairpool._anatomy import is_definition
from pairpool._fingerprint import Scope, digest
from pairpool._namespaces import main_namespace


def constants() -> Any:
    """Have constants of every kind, sets among them."""
    return {"a", "b", "c"} >= {"d"}, 1 in (1, 2.5, -0.0, 1j, b"x", None, ...), "x" in {"m", "n", "o", "p"}


def nested(depth: int = 3, *rest: int, key: str = "k") -> Callable[[], Iterator[int]]:
    """Have code in its constants, a class with a body among it."""

    class Inner:
        """Knows where it was written, in some versions."""

        zeta, alpha = 1, 2

        def method(self) -> None:
            self.one = self.two = self.three = self.four = 1

    def generate() -> Iterator[int]:
        yield from (depth * number for number in rest)

    Inner().method()
    return generate


def repeat(times: int) -> Callable[[Any], Any]:
    """Decorate."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def run(*arguments: Any) -> Any:
            return [function(*arguments) for _ in range(times)]

        return run

    return decorate


@repeat(3)
def decorated(number: int) -> int:
    """Be closed over."""
    return number


@functools.lru_cache(maxsize=10)
def cached(number: int) -> int:
    """Be wrapped by an object of C."""
    return number


async def coroutine() -> None:
    """Be another kind of function."""
    async with multiprocessing.Lock():  # type: ignore[attr-defined]
        await coroutine()


class Plain:
    """Has attributes of every kind."""

    __slots__ = ("fourth", "third")
    names = frozenset({"x", "y", "z", "w"})

    def __init__(self) -> None:
        self.third = self.fourth = 1

    @property
    def value(self) -> int:
        """Be a property."""
        return self.third

    @classmethod
    def make(cls) -> Plain:
        """Be a class method."""
        return cls()

    @staticmethod
    def add(one: int, other: int) -> int:
        """Be a static method."""
        return one + other

    class Inside:
        """Is inside."""

        def method(self) -> int:
            """Be a method."""
            return 5


class Derived(Plain):
    """Closes over itself."""

    def __init__(self) -> None:
        super().__init__()


class Base(abc.ABC):
    """Has a metaclass."""

    @abc.abstractmethod
    def work(self) -> None:
        """Be abstract."""


@dataclass(order=True)
class Record:
    """Has generated methods."""

    name: str
    size: int = 5
    tags: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    """Is generated."""

    left: int
    right: int = 3


class Color(enum.Flag):
    """Has members."""

    RED = 1
    GREEN = 2


def digests() -> dict[str, list[str]]:
    """Return both digests of each definition of this module."""
    found = {}
    for name, value in main_namespace().items():
        if is_definition(value) and getattr(value, "__module__", "") in ("__main__", "__mp_main__"):
            found[name] = [digest(value, scope).hex() for scope in (Scope.CODE, Scope.ALL)]
    return found


def tell(connection: Any) -> None:
    """Send the digests."""
    connection.send(digests())


def main() -> None:
    """Print the digests."""
    if not sys.argv[1:]:
        print(json.dumps(digests()))
        return
    context: Any = multiprocessing.get_context(sys.argv[1])
    ours, theirs = context.Pipe()
    process = context.Process(target=tell, args=(theirs,))
    process.start()
    print(json.dumps(ours.recv()))
    process.join()


if __name__ == "__main__":
    main()
