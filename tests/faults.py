"""The faults of the matrix: in how many ways a process may be struck, and what strikes it at a given place.

Kept free of pytest: a worker of the spawn method imports this module before its first task.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing.util
import os
import resource
import signal
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any, Self

from pairpool._nursery import Nursery

HOWS = (
    *("Exception", "Base", "SystemExit", "Interrupt"),
    *("exit(0)", "exit(3)", "SIGKILL", "SIGSEGV"),
    *("stop+kill", "stop+end"),
)
"""In which ways: four errors, four deaths, and two times a process that is stopped. That is seen from outside; then it
is killed, or `terminate()` is called."""


class StruckError(Exception):
    """An error like any other."""


class StruckBaseError(BaseException):
    """An error that is no Exception."""


RAISED: dict[str, type[BaseException]] = {
    "Exception": StruckError,
    "Base": StruckBaseError,
    "SystemExit": SystemExit,
    "Interrupt": KeyboardInterrupt,
}
EXIT_CODES = {
    "exit(0)": 0,
    "exit(3)": 3,
    "SIGKILL": -signal.SIGKILL,
    "SIGSEGV": -signal.SIGSEGV,
    "stop+kill": -signal.SIGKILL,
}
END_WORDS = {
    "exit(0)": "exited with status 0",
    "exit(3)": "exited with status 3",
    "SIGKILL": "was killed by SIGKILL",
    "SIGSEGV": "was killed by SIGSEGV",
    "stop+kill": "was killed by SIGKILL",
}
WORDS = "struck here"  # what every error says


def strike(how: str) -> None:
    """Strike the calling process; only one that was stopped, and is continued, returns."""
    if how in RAISED:
        raise RAISED[how](WORDS)
    match how:
        case "exit(0)" | "exit(3)":
            os._exit(EXIT_CODES[how])
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        case "SIGSEGV":
            faulthandler.disable()  # pytest's, inherited: it would print where
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            ctypes.string_at(0)  # a true one: a signal that is only sent is blocked in zygotes
        case "stop+kill" | "stop+end":
            os.kill(os.getpid(), signal.SIGSTOP)


# -- Items and what is done with them ---------------------------------------------------------------

LARGE = bytes(150_000)  # so many have a slab of their own
SURVIVOR = 7  # what becomes of an item that strikes while it travels, where the struck process goes on
_MARK = 100  # items from here on are marked


def marked(how: str) -> int:
    """Return the item at which tasks strike in this way."""
    return _MARK + HOWS.index(how)


class Sent:
    """Strikes whoever pickles it."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        strike(self.how)
        return int, (SURVIVOR,)


class Loaded:
    """Strikes whoever unpickles it."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self.how,)


def load(how: str) -> int:
    """Be unpickled."""
    strike(how)
    return SURVIVOR


class Freed(int):
    """Strikes the worker that frees it."""

    def __new__(cls, how: str, *, there: bool = False) -> Self:
        """`there`: it has come to a worker."""
        freed = super().__new__(cls, SURVIVOR)
        freed.how, freed.there = how, there
        return freed

    how: str
    there: bool

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Freed, there=True), (self.how,)

    def __del__(self) -> None:
        if self.there:
            strike(self.how)


def double(item: int) -> int:
    """Return twice the item."""
    return 2 * item


def strike_or_double(item: int) -> int:
    """Strike at a marked item."""
    if item >= _MARK:
        strike(HOWS[item - _MARK])
    return double(item)


def return_sent(item: int) -> Any:
    """Return what strikes the worker that pickles it, for a marked item."""
    return Sent(HOWS[item - _MARK]) if item >= _MARK else double(item)


def return_loaded(item: int) -> Any:
    """Return what strikes the caller who unpickles it, for a marked item."""
    return Loaded(HOWS[item - _MARK]) if item >= _MARK else double(item)


def place_in_packet(_: int) -> tuple[int, int]:
    """Return the packet that the item came in, and its place there."""
    from liars import worker_here

    page: Any = worker_here()._runner.page
    return page.read().packet, page.read().offset


def pull(how: str) -> Iterator[int]:
    """Strike whoever pulls the third item."""
    yield 0
    yield 1
    strike(how)
    yield SURVIVOR


def enlarge(_: int) -> bytes:
    """Return what is too large for a message."""
    return LARGE


# -- Beside items -----------------------------------------------------------------------------------


def fail(_: Any) -> None:
    """Raise, so that an error callback is called."""
    raise ValueError("fails")


def call_back(how: str, _: object) -> None:
    """Be a callback that strikes."""
    strike(how)


def initialize(how: str, strikes: Any) -> None:
    """Be an initializer that strikes: as often as a semaphore may be acquired, or always where there is none."""
    if strikes is None or strikes.acquire(block=False):
        strike(how)


def be_ready(*_: object) -> None:
    """Be an initializer: a signal is enough from now on to strike this worker, whatever it does."""
    for how in HOWS:
        signal.signal(signal_for(how), partial(_on_signal, how))


def signal_for(how: str) -> int:
    """Return the signal by which a worker that is ready is struck in this way."""
    return signal.SIGRTMIN + 1 + HOWS.index(how)


def _on_signal(how: str, number: int, frame: FrameType | None) -> None:
    strike(how)


class Trap:
    """Strikes the zygote of a pool that is made with this among its `initargs`, once.

    With fork it is laid where the pool is made, and taken away there when that is done: the zygote has it. Otherwise
    it is laid in the zygote, which unpickles it; workers are given None instead.
    """

    def __init__(self, place: str, how: str, spared: int) -> None:
        self.arguments = (place, how, spared)

    def __reduce__(self) -> tuple[Any, ...]:
        return lay_trap, self.arguments


TRAPS: dict[str, tuple[Any, str]] = {
    "fork": (os, "fork"),  # what makes a worker of a zygote that forks
    "spawn": (multiprocessing.util, "spawnv_passfds"),  # and of one that spawns
    "order": (Nursery, "_on_signal"),  # what a zygote does on an order to send a signal
}


def lay_trap(place: str, how: str, spared: int) -> None:
    """Have a function strike once, after so many calls that it spares."""
    owner, name = TRAPS[place]
    function = getattr(owner, name)
    calls = iter(range(spared + 1))

    def strike_once(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) == spared:
            strike(how)
        return function(*args, **kwargs)

    setattr(owner, name, strike_once)
