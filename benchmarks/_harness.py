"""What all benchmarks share: facts of the machine, rivals that take turns, medians with their spread.

A figure means little by itself: machines are busy with other things, clocks change their speed, and
a second of yesterday is not one of today. So every case is measured with all its rivals in turn,
round after round in one process, and what is worth looking at is the ratio. Beside each median
stand the least and the greatest value, which show how much to trust it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pairpool
from pairpool import _framing

Measure = Callable[[], float]
"""Do the work once, from a fresh start, and return what was measured."""


@dataclass(frozen=True)
class Case:
    """One thing that is measured, with each rival; the first of them is ours."""

    title: str
    unit: str
    rivals: Mapping[str, Measure]
    more_is_better: bool = False


@dataclass
class Samples:
    """What was measured of one rival in one case."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The value in the middle."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        least, greatest = min(self.values), max(self.values)
        return f"{_rounded(self.median):>10}  ({_rounded(least)} .. {_rounded(greatest)})"


@dataclass(frozen=True)
class Options:
    """How a benchmark is run."""

    rounds: int
    quick: bool
    workers: int
    only: str
    report: Path | None


def _rounded(value: float) -> str:
    """Return a number with three figures that count."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def parse_options(description: str | None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it runs")
    parser.add_argument("--rounds", type=int, help="how often each rival has its turn (default 5)")
    parser.add_argument("--workers", type=int, default=2, help="workers of each pool (default 2)")
    parser.add_argument("--only", default="", metavar="WORD", help="only cases whose title has this word")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write facts and samples to a file, too")
    given = parser.parse_args()
    rounds = given.rounds or (1 if given.quick else 5)
    return Options(rounds, given.quick, given.workers, given.only, given.json)


def _first_line(path: str, start: str, default: str) -> str:
    """Return what stands behind the colon in the first line of a file that starts so."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return default
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(start)), default)


def facts() -> dict[str, str]:
    """Return what a reader has to know about the machine and the interpreter."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count()
    return {
        "CPU": _first_line("/proc/cpuinfo", "model name", platform.machine()),
        "cores": f"{usable} usable of {present}",
        "load": f"{os.getloadavg()[0]:.2f} when the run began",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "pairpool": f"{pairpool.__version__}, framing in {_framing.TWIN}",
    }


def run(cases: list[Case], options: Options) -> None:
    """Measure every case, print a table, and write the report if one is asked for."""
    about = facts()
    width = max(map(len, about))
    for name, value in about.items():
        print(f"{name:<{width}}  {value}")
    print(f"{'rounds':<{width}}  {options.rounds}, median (least .. greatest)", flush=True)
    report = []
    for case in cases:
        if options.only not in case.title:
            continue
        samples = _take_turns(case, options.rounds)
        _print_case(case, samples)
        values = {name: asdict(each) for name, each in samples.items()}
        report.append({"title": case.title, "unit": case.unit, "rivals": values})
    if options.report is not None:
        document = {"facts": about, "command": sys.argv[0], "cases": report}
        options.report.write_text(json.dumps(document, indent=2) + "\n")


def _take_turns(case: Case, rounds: int) -> dict[str, Samples]:
    """Measure each rival once in every round; who begins changes from round to round."""
    samples = {name: Samples() for name in case.rivals}
    for turn in range(rounds):
        for name in _rotated([*case.rivals], turn):
            gc.collect()  # one rival's garbage is not to be collected in another's time
            samples[name].values.append(case.rivals[name]())
    return samples


def _rotated(names: list[str], by: int) -> Iterator[str]:
    by %= len(names)
    yield from names[by:]
    yield from names[:by]


def _print_case(case: Case, samples: dict[str, Samples]) -> None:
    print(f"\n{case.title} [{case.unit}]")
    ours, *others = case.rivals
    width = max(map(len, case.rivals))
    print(f"  {ours:<{width}}  {samples[ours]}")
    for name in others:
        print(f"  {name:<{width}}  {samples[name]}   {_compared(case, samples[ours], samples[name])}")
    sys.stdout.flush()


def _compared(case: Case, ours: Samples, theirs: Samples) -> str:
    """Return in words what part of a rival's median ours is."""
    if not theirs.median:
        return "ours is the same" if not ours.median else ""
    share = ours.median / theirs.median
    return f"ours is {share:.3g} {'times this rate' if case.more_is_better else 'of this'}"
