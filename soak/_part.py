"""What all parts of the soak share: how much they do, when they are read, what they print, and that they end.

A part runs in a process of its own. A hang is the worst that can befall a pool, so there are deadlines for the part
and for each of its turns, kept by a thread of faulthandler's which needs no interpreter: it prints where every thread
stands and exits with 1. They are far from what a part takes on a busy machine: who meets one does not come back.
"""

from __future__ import annotations

import faulthandler
import importlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pairpool
from soak._flatness import judge, told
from soak._readings import Series, read_at_rest

TESTS = Path(__file__).parent.parent / "tests"

MINUTE = 60.0  # seconds
TURN_DEADLINE = 3 * MINUTE  # of one turn, which takes seconds
LEAST_DEADLINE = 2 * MINUTE  # of a part, however little it does

FULL_TURNS = 100  # in which a part is done, with a reading after each
FEW_TURNS = 10  # however little it does: without so many readings there is nothing to judge


@dataclass(frozen=True)
class Options:
    """How a soak is run."""

    scale: float = 1.0
    seed: int = 0
    schedules: int = 0


class Course:
    """One run of a part: its share of the work, its turns, its readings."""

    def __init__(self, options: Options, deadline: float) -> None:
        """`deadline`: seconds from now until which the part must have ended."""
        self.options = options
        self.random = Random(options.seed)
        self.readings = Series()
        self._begun = time.monotonic()
        self._deadline = self._begun + deadline

    @property
    def taken(self) -> float:
        """The seconds since the part began."""
        return time.monotonic() - self._begun

    def scaled(self, count: int, least: int = 1) -> int:
        """Return what is left of a count at full size, but no less than `least`."""
        return max(least, round(count * self.options.scale))

    def turn(self) -> None:
        """Begin a turn, which has a deadline."""
        left = min(TURN_DEADLINE, self._deadline - time.monotonic())
        faulthandler.dump_traceback_later(max(left, 0.001), exit=True)

    def turns(self, count: int) -> Iterator[range]:
        """Begin turn after turn; together they do things 0 to `count` - 1."""
        turns = self.least_turns
        for turn in range(turns):
            self.turn()
            yield range(turn * count // turns, (turn + 1) * count // turns)

    @property
    def least_turns(self) -> int:
        """How many turns there are. They become more with the scale, not longer: a turn's work is held in memory."""
        return self.scaled(FULL_TURNS, least=FEW_TURNS)

    def read(self, workers: int) -> None:
        """Read what all processes hold, once there are so many workers and nothing moves."""
        self.readings.append(read_at_rest(workers))


@dataclass(frozen=True)
class Part:
    """One part of the soak."""

    name: str
    work: Callable[[Course], str]
    """Does it, and says in a few words what was done; what it finds wrong it raises."""
    deadline: float
    """Seconds that it may take at full size."""
    extent: Callable[[Options], float] = lambda options: options.scale
    """What there is to do, as a multiple of the full size."""

    def deadline_of(self, options: Options) -> float:
        """Return the seconds that it may take as it is run."""
        return max(LEAST_DEADLINE, self.deadline * self.extent(options))

    def run(self, options: Options) -> bool:
        """Do it in this process, print its line, and return whether all is well."""
        course = Course(options, self.deadline_of(options))
        course.turn()  # which may make a pool before its first own
        try:
            done = self.work(course)
            figures = judge(course.readings) if len(course.readings) else []
            well = all(figure.flat for figure in figures)
            words = "; ".join([f"{done} in {course.taken:.0f} s", *told(figures)])
        except Exception as error:
            traceback.print_exc()
            well, words = False, f"after {course.taken:.0f} s: {type(error).__name__}: {error}".partition("\n")[0]
        print(line(self.name, well, words), flush=True)
        course.turn()  # so that an interpreter that does not come to its end has a deadline, too
        return well


def line(name: str, well: bool, words: str) -> str:
    """Return the line of a part."""
    return f"{name:<10}  {'ok    ' if well else 'FAILED'}  {words}"


def make_pool(*arguments: Any, start_method: str = "fork") -> pairpool.Pool:
    """Make a pool of ours."""
    pool: pairpool.Pool = pairpool.get_context(start_method).Pool(*arguments)
    return pool


def borrow(name: str) -> Any:
    """Import a module of tests/, which is a folder of modules and no package."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module(name)
