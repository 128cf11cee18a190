"""Signal handlers that strike at a chosen point of the package's code.

CPython looks for signals when a function is entered, when a loop turns back and when a call of a C function has
returned. `Interruption` finds every such *point* that the package passes while it is watched, by tracing single
instructions, and has a handler run at one of them, or at several.
"""

from __future__ import annotations

import dis
import inspect
import signal
import sys
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any, NamedTuple

from commits import PACKAGE

_CALLS = frozenset(code for name, code in dis.opmap.items() if name.startswith("CALL") and "INTRINSIC" not in name)
_TURNS = frozenset(code for name, code in dis.opmap.items() if "BACKWARD" in name and "NO_INTERRUPT" not in name)


class Interrupted(BaseException):
    """What a signal handler raises, as Ctrl-C does."""


class Point(NamedTuple):
    """A place where a handler can strike."""

    code: CodeType
    offset: int  # -1: the entry of the function

    def __str__(self) -> str:
        lines = {start: line for start, _, line in self.code.co_lines() if line}
        line = max((line for start, line in lines.items() if start <= self.offset), default=self.code.co_firstlineno)
        path = self.code.co_filename.removeprefix(str(PACKAGE))
        return f"{path.lstrip('/')}:{line} in {self.code.co_qualname}, instruction {self.offset}"


class Interruption:
    """Watches the package, and strikes at the points whose numbers it is given."""

    def __init__(self, strikes: Iterable[int] = (), handler: Callable[[], None] | None = None) -> None:
        """`handler`: what runs there; None raises `Interrupted`."""
        self.passed: list[Point] = []
        self.struck: list[Point] = []
        self.stage: Any = None  # what is watched, for the handler
        self._strikes = frozenset(strikes)
        self._handler = handler
        self._called: set[FrameType] = set()  # frames whose latest instruction was a call
        self._bytes: dict[CodeType, bytes] = {}

    def watch(self, action: Callable[[], Any]) -> bool:
        """Run something; return whether a handler's exception came out of it."""
        before = signal.signal(signal.SIGUSR2, self._handle)  # the package tells handlers by what is set
        sys.settrace(self._enter)
        try:
            action()
        except Interrupted:
            return True
        finally:
            sys.settrace(None)
            signal.signal(signal.SIGUSR2, before)
            self._called.clear()
        return False

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(PACKAGE)):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if code.co_flags & inspect.CO_GENERATOR:
            self._called.add(frame)  # unless it is entered to be closed: then an exception comes next
        else:
            self._pass(Point(code, -1))
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if event == "opcode":
            code, offset = frame.f_code, frame.f_lasti
            instruction = self._instructions(code)[offset]
            after_call = frame in self._called
            self._called.discard(frame)
            if instruction in _CALLS:
                self._called.add(frame)
            if after_call or instruction in _TURNS:
                self._pass(Point(code, offset))
        elif event == "exception":
            self._called.discard(frame)  # where a call raises nobody looks for signals
        return self._step

    def _instructions(self, code: CodeType) -> bytes:
        # `co_code` is made anew each time that it is asked for.
        if code not in self._bytes:
            self._bytes[code] = code.co_code
        return self._bytes[code]

    def _pass(self, point: Point) -> None:
        self.passed.append(point)
        if len(self.passed) - 1 in self._strikes:
            self.struck.append(point)
            self._handle()

    def _handle(self, number: int = signal.SIGUSR2, frame: FrameType | None = None) -> None:
        if self._handler is None:
            raise Interrupted
        self._handler()


class Undisturbed(Interruption):
    """Watches nothing and never strikes."""

    def watch(self, action: Callable[[], Any]) -> bool:
        """Run something."""
        action()
        return False
