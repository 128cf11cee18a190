"""How is measured: in fresh processes, by turns, round after round.

A figure means little by itself: machines are busy with other things, clocks change their speed, and
a second of yesterday is not one of today. So every case is measured with all its rivals in turn,
round after round, and what is worth looking at is the ratio, taken within a round. Beside each median
stand the least and the greatest value, which show how much to trust it.

Each measurement is a process of its own, so that no rival meets the threads, the memory or the
imports of another. It runs this package with ``--measure`` and prints its figure as JSON.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import pairpool
from benchmarks.rivals import IN_PYTHON, OURS, RIVALS, LeftOut, Rival
from pairpool import _framing

PATIENCE = 40.0  # seconds after which a measurement is given up
QUICK = 20  # by what everything is divided where it has to be quick
ROUNDS_OF_SLOW = 3  # at most; those of whom no target speaks take part in one
BEST_OTHER = "the best other pool"  # whom a target may speak of; which it is the figures say


@dataclass(frozen=True)
class Setting:
    """What a measurement is told."""

    workers: int
    quick: bool
    point: int = 0
    """Where on its axis a case is measured that has one."""

    def less(self, count: int) -> int:
        """Return a number of things to do, or fewer where it has to be quick."""
        return max(2, count // QUICK) if self.quick else count

    def shorter(self, seconds: float) -> float:
        """Return how long to wait for or watch something, or less where it has to be quick."""
        return seconds / QUICK if self.quick else seconds

    def with_workers(self, workers: int) -> Setting:
        """Return the same for another number of workers."""
        return replace(self, workers=workers)


@dataclass(frozen=True)
class Target:
    """What a case must reach: at least where more is better, at most where less is."""

    limit: float
    against: str | None = None
    """The rival whose figure ours is divided by, or `BEST_OTHER`; None where the figure itself must reach the limit."""

    of: str = OURS


@dataclass(frozen=True)
class Case:
    """One thing that is measured, with each rival."""

    title: str
    unit: str
    measure: Callable[[Rival, Setting], float]
    more_is_better: bool = False
    targets: tuple[Target, ...] = ()
    rivals: Sequence[str] = tuple(RIVALS)
    axis: str | None = None
    points: tuple[int, ...] = (0,)
    """Where on the axis is measured; a case without one has a single point."""

    slow: bool = False
    """Whether it takes long, by a measurement or by their number: then in fewer rounds."""

    @property
    def what(self) -> str:
        """What is timed, and what not."""
        return " ".join((self.measure.__doc__ or "").split())

    def points_for(self, options: Options) -> tuple[int, ...]:
        """Return where is measured; one point is enough to see that it runs."""
        return self.points[:1] if options.quick else self.points


@dataclass(frozen=True)
class Options:
    """How the benchmarks are run."""

    rounds: int = 5
    quick: bool = False
    workers: int = 2
    only: str = ""
    rivals: Sequence[str] = tuple(RIVALS)


@dataclass
class Samples:
    """What was measured of one rival in one case, round by round, or why nothing was."""

    values: list[float] = field(default_factory=list)
    left_out: str | None = None

    @property
    def median(self) -> float:
        """The value in the middle."""
        return statistics.median(self.values)

    def by(self, other: Samples) -> Samples:
        """Return the ratios to another's values, each of the same round; none where those are zero."""
        return Samples([ours / theirs for ours, theirs in zip(self.values, other.values, strict=False) if theirs])

    def __str__(self) -> str:
        if not self.values:
            return self.left_out or "-"
        spread = f" ({rounded(min(self.values))} .. {rounded(max(self.values))})" if len(self.values) > 1 else ""
        return rounded(self.median) + spread


@dataclass(frozen=True)
class Result:
    """What was measured in one case at one point."""

    title: str
    point: int
    rivals: Mapping[str, Samples]

    def samples(self, rival: str) -> Samples:
        """Return what was measured of a rival, which may be nothing."""
        return self.rivals.get(rival, Samples(left_out="not asked for"))

    def best_other(self, case: Case) -> str | None:
        """Return which of the pools that are not ours has the best median; None where none was measured."""
        others = {
            name: each.median for name, each in self.rivals.items() if each.values and name not in (OURS, IN_PYTHON)
        }
        return (max if case.more_is_better else min)(others, key=others.__getitem__) if others else None

    def against(self, case: Case, target: Target) -> str | None:
        """Return whom a target speaks of, by the name that it has among the rivals."""
        return self.best_other(case) if target.against == BEST_OTHER else target.against

    def reached(self, case: Case, target: Target) -> Samples:
        """Return what is held against a target, round by round; nothing where there is nobody to compare with."""
        ours = self.samples(target.of)
        if target.against is None:
            return ours
        against = self.against(case, target)
        return Samples() if against is None else ours.by(self.samples(against))


def is_met(case: Case, target: Target, reached: Samples) -> bool:
    """Tell whether a target is met, by the median."""
    return reached.median >= target.limit if case.more_is_better else reached.median <= target.limit


def rounded(value: float) -> str:
    """Return a number with the three figures that count."""
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def at(place: int) -> str:
    """Return a place on an axis as readers see it: powers of two are sizes in memory."""
    if place < 1024 or place & (place - 1):
        return f"{place:,}"
    return f"{place >> 20} MiB" if place >= 1 << 20 else f"{place >> 10} KiB"


def facts(rivals: Sequence[str] = ()) -> dict[str, str]:
    """Return what a reader has to know about the machine, the interpreter, and the rivals named."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count()
    about = {
        "CPU": _first_line("/proc/cpuinfo", "model name", platform.machine()),
        "cores": f"{usable} usable of {present}",
        "memory": _first_line("/proc/meminfo", "MemTotal", "unknown"),
        "load": f"{os.getloadavg()[0]:.2f} when the run began",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "pairpool": f"{pairpool.__version__}, framing in {_framing.TWIN}",
    }
    versions = {name: RIVALS[name].version for name in rivals}
    return about | {name: version for name, version in versions.items() if version is not None}


def _first_line(path: str, start: str, default: str) -> str:
    """Return what stands behind the colon in the first line of a file that starts so."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return default
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(start)), default)


def run(cases: Sequence[Case], options: Options) -> Iterator[Result]:
    """Measure every case that is asked for, and yield each result as soon as it is there."""
    for case in cases:
        if options.only in case.title:
            for point in case.points_for(options):
                yield _take_turns(case, point, options)


def _take_turns(case: Case, point: int, options: Options) -> Result:
    """Measure each rival once in every round; who begins changes from round to round."""
    names = [name for name in case.rivals if name in options.rivals]
    compared = {name for target in case.targets for name in (target.of, target.against)}
    samples = {name: Samples(left_out=None if RIVALS[name].installed else "not installed") for name in names}
    for turn in range(min(options.rounds, ROUNDS_OF_SLOW) if case.slow else options.rounds):
        for name in _rotated(names, turn):
            turns = None if name in compared else RIVALS[name].turns
            if samples[name].left_out is None and (turns is None or turn < (1 if case.slow else turns)):
                _measure_apart(case, RIVALS[name], point, options, samples[name])
    return Result(case.title, point, samples)


def _rotated(names: list[str], by: int) -> list[str]:
    by %= max(1, len(names))
    return names[by:] + names[:by]


def _measure_apart(case: Case, rival: Rival, point: int, options: Options, samples: Samples) -> None:
    """Measure once in a fresh process, and note the value, or why there is none."""
    command = [sys.executable, "-m", "benchmarks", "--measure", case.title, rival.name]
    command += ["--point", str(point), "--workers", str(options.workers), *(["--quick"] if options.quick else [])]
    process = subprocess.Popen(
        command,
        env=os.environ | rival.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that it can be ended with its workers
    )
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        samples.left_out = f"took more than {PATIENCE:.0f} s"
        return
    finally:
        if process.poll() is None:  # also when we are interrupted
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    answer = json.loads(output.splitlines()[-1]) if process.returncode == 0 else None
    if isinstance(answer, float):
        samples.values.append(answer)
    elif answer is not None:
        samples.left_out = str(answer)
    else:
        samples.left_out = f"failed: {(errors.splitlines() or ['without a word'])[-1]}"
        print(errors, file=sys.stderr)


def measure_here(case: Case, rival: Rival, setting: Setting) -> None:
    """Measure once in this process, and print the value, or why the rival is left out, as the last line."""
    try:
        answer: float | str = float(case.measure(rival, setting))
    except LeftOut as reason:
        answer = str(reason)
    print(f"\n{json.dumps(answer)}", flush=True)


def cases_of(*modules: ModuleType) -> list[Case]:
    """Return the cases of some modules, in order."""
    return [case for module in modules for case in module.CASES]
