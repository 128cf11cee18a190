"""Callables and objects of every sort, for the codec's tests."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pairpool._codec import Decoder, Payload


def add(one: int, other: int = 1) -> int:
    """Add."""
    return one + other


def twice(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate with a closure."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        return function(*arguments) * 2

    return run


@twice
def decorated(number: int) -> int:
    """Be decorated."""
    return number


@functools.lru_cache
def cached(number: int) -> int:
    """Be cached."""
    return number


class Thing:
    """Has methods of every kind."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def __call__(self, other: int) -> int:
        """Be called."""
        return self.number + other

    def method(self, other: int) -> int:
        """Be a method."""
        return self.number + other

    @classmethod
    def make(cls, number: int) -> Thing:
        """Be a class method."""
        return cls(number)

    @staticmethod
    def static(number: int) -> int:
        """Be a static method."""
        return number


def local_things() -> dict[str, Any]:
    """Return callables that have no name."""

    @dataclass
    class Local:
        number: int = 0

        def method(self) -> int:
            return self.number

        @classmethod
        def make(cls) -> Local:
            return cls(5)

    captured = 10
    return {
        "lambda": lambda x: x,
        "closure": lambda x: x + captured,
        "local class": Local,
        "method of a local class": Local.make,
        "method of an instance of a local class": Local(1).method,
        "cached": functools.lru_cache(lambda x: x),
    }


LOCAL = local_things()


def whole(payload: Payload | bytes) -> Payload:
    """Return a payload with everything that one has, also where it was bytes alone."""
    return payload if isinstance(payload, Payload) else Payload(payload)


def arrive(payload: Payload | bytes) -> Any:
    """Unpickle a payload here."""
    payload = whole(payload)
    assert Decoder().refused(payload.needs) == []
    return Decoder().loads(payload.data, tuple(map(os.dup, payload.descriptors)))


class Reducing:
    """Calls a function when it is pickled."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def __reduce__(self) -> Any:
        return self.action()


def is_open(descriptor: int) -> bool:
    """Tell whether a descriptor is open."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
