"""The soak, small: each part runs, and whatever it is to find is found.

``make soak`` runs it at full size; how large "small" is, and what flat means, is told in soak/.
"""

from __future__ import annotations

import mmap
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

import soak.__main__
from chaos import Account
from soak.__main__ import MARK, PARTS, marked, run_apart
from soak._flatness import ALLOWANCE, FEWEST, MIB, judge
from soak._journal import check_account
from soak._part import Options
from soak._readings import KINDS, ROLES, Holding, Series, read

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
PATIENCE = 120  # seconds

USUAL = Holding(memory=20 * MIB, blocks=80_000, descriptors=25, threads=4, mappings=4, processes=2)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python beside the folder of the soak."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize("name", [part.name for part in PARTS])
def test_a_part_runs(name: str) -> None:
    """Each part at a hundredth of its size ends well, and says in one line what it did."""
    done = run("-m", "soak", "--only", name, "--minutes-scale", "0.01", "--schedules", "10000")

    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith(f"{name} ")] == ["ok"]


# -- what is flat -----------------------------------------------------------------------------------------------


def series(holding_of: Callable[[int], Holding], role: str = "parent", length: int = 100) -> Series:
    """Make readings of three roles up, of which one holds what it is told to, reading by reading."""
    return Series({**dict.fromkeys(ROLES, USUAL), role: holding_of(number)} for number in range(length))


def growing(readings: Series) -> list[tuple[str, str]]:
    """Return what is not flat: roles and kinds."""
    return [(figure.role, figure.kind) for figure in judge(readings) if not figure.flat]


@pytest.mark.parametrize("length", [FEWEST, 20, 97, 200])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_leak_is_reported(kind: str, role: str, length: int) -> None:
    """A leak is found in whatever leaks, of whoever does, and nothing else is accused."""
    step = ALLOWANCE.get(kind, 1) * 2 // length or 1
    leaking = series(lambda number: replace(USUAL, **{kind: getattr(USUAL, kind) + number * step}), role, length)

    assert growing(leaking) == [(role, kind)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ALLOWANCE])
def test_a_single_leak_in_the_middle_is_reported(kind: str) -> None:
    """One that is lost once in all the time is one too many."""
    leaking = series(lambda number: replace(USUAL, **{kind: getattr(USUAL, kind) + (number > 50)}))

    assert growing(leaking) == [("parent", kind)]


@pytest.mark.parametrize(("over", "leaks"), [(0, False), (1, True)])
@pytest.mark.parametrize("kind", ALLOWANCE)
def test_what_an_allocator_keeps_has_a_bound(kind: str, over: int, leaks: bool) -> None:
    """What an allocator may hold back is no leak; a byte or a block more is."""
    more = ALLOWANCE[kind] + over
    moved = series(lambda number: replace(USUAL, **{kind: getattr(USUAL, kind) + number // 90 * more}))

    assert growing(moved) == [("parent", kind)] * leaks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "moves",
    [
        pytest.param(lambda number: min(number, 10), id="warm-up"),
        pytest.param(lambda number: 100 * (number % 25 == 0), id="a few odd readings"),
        pytest.param(lambda number: -number // 10, id="shrinking"),
    ],
)
def test_what_does_not_last_is_no_leak(kind: str, moves: Callable[[int], int]) -> None:
    """What grows only at first, what comes and goes, and what shrinks is flat."""
    unit = ALLOWANCE.get(kind, 1)
    moving = series(lambda number: replace(USUAL, **{kind: 20 * unit + moves(number) * unit}))

    assert growing(moving) == []


def test_a_role_that_comes_later_has_grown() -> None:
    """Processes that were not there at the start are more than none."""
    late = Series({"parent": USUAL, **({"helpers": USUAL} if number > 50 else {})} for number in range(100))

    assert ("helpers", "processes") in growing(late)


def test_too_few_readings_are_refused() -> None:
    """Where a tenth would be less than one reading, nothing is said."""
    with pytest.raises(ValueError, match="readings tell nothing"):
        judge(series(lambda _: USUAL, length=FEWEST - 1))


# -- what is read -----------------------------------------------------------------------------------------------


def take_descriptors(stack: ExitStack) -> None:
    """Open a pipe."""
    for end in os.pipe():
        stack.callback(os.close, end)


def take_thread(stack: ExitStack) -> None:
    """Start a thread."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    stack.callback(thread.join)
    stack.callback(over.set)


def take_mapping(stack: ExitStack) -> None:
    """Map a page that forks would share."""
    stack.enter_context(mmap.mmap(-1, mmap.PAGESIZE))


def take_memory(stack: ExitStack) -> None:
    """Write to some memory."""
    held = [bytearray(b"x") * (8 * MIB)]
    stack.callback(held.clear)


def take_blocks(stack: ExitStack) -> None:
    """Make some objects."""
    held = [object() for _ in range(5_000)]
    stack.callback(held.clear)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test has taken, to be given back."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    ("take", "kind", "least"),
    [
        (take_descriptors, "descriptors", 2),
        (take_thread, "threads", 1),
        (take_mapping, "mappings", 1),
        (take_memory, "memory", 7 * MIB),
        (take_blocks, "blocks", 4_000),
    ],
)
def test_what_is_taken_is_read(stack: ExitStack, take: Callable[[ExitStack], None], kind: str, least: int) -> None:
    """Readings see what a process has taken."""
    before = getattr(read()["parent"], kind)
    take(stack)

    assert getattr(read()["parent"], kind) - before >= least


def test_processes_are_read_and_found_by_their_mark() -> None:
    """A child is a helper; whoever has the mark in its environment is found, whosever child it is."""
    before = read().get("helpers", Holding()).processes
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], env={**os.environ, MARK: "test"}, stdin=subprocess.PIPE
    ) as child:
        assert read()["helpers"].processes == before + 1
        assert marked("test") == [child.pid]
        child.communicate(b"\n")
    assert marked("test") == []


# -- what is told -----------------------------------------------------------------------------------------------

LEAK = """
import os
from soak._part import Options, Part

def work(course):
    for _ in course.turns(10):
        os.pipe()
        course.read(workers=0)
    return "10 pipes"

raise SystemExit(not Part("pipes", work, deadline=60).run(Options(scale=0.01)))
"""

HANG = """
import threading
from soak._part import Course, Options

def hang():
    threading.Event().wait()

Course(Options(), deadline=0.2).turn()
hang()
"""


LOSS = """
from pairpool._scheduler import Scheduler
from soak import simulation
from soak._part import Options

def lose_too_much(self, packet, running, record, now, lose=Scheduler.lose):
    lose(self, packet, packet.count - 1, record, now)

Scheduler.lose = lose_too_much
raise SystemExit(not simulation.PART.run(Options(schedules=1000)))
"""

STALL = """
import threading
from soak import simulation
from soak._part import Options

def run(self):
    threading.Event().wait()

simulation.simulation.Simulation.run = run
simulation.PATIENCE = 0.2
raise SystemExit(not simulation.PART.run(Options(schedules=1000)))
"""


def test_a_part_that_leaks_fails() -> None:
    """From the readings to the exit status: a leak is told with its figures."""
    done = run("-c", LEAK)

    assert done.returncode == 1
    assert done.stdout.startswith("pipes       FAILED  10 pipes in ")
    assert "NOT FLAT, threads 2, processes 1" in done.stdout


def test_a_part_that_raises_fails() -> None:
    """An error is told in the part's line, and with its traceback beside it."""
    done = run("-c", LEAK.replace("os.pipe()", "raise LookupError('an item')"))

    assert done.returncode == 1
    assert done.stdout.endswith(" s: LookupError: an item\n")
    assert "Traceback" in done.stderr


def test_a_schedule_that_fails_is_named() -> None:
    """The error of a schedule comes out of its worker with how to run it again."""
    done = run("-c", LOSS)

    assert done.returncode == 1
    assert re.search(r"^replay it with PAIRPOOL_SIMULATION_SEED=\d+ PAIRPOOL_SIMULATIONS=1", done.stderr, re.MULTILINE)


def test_a_schedule_that_does_not_end_is_named() -> None:
    """Where a schedule hangs, it is told among which seeds."""
    done = run("-c", STALL)

    assert done.returncode == 1
    assert done.stdout.endswith(" s: AssertionError: one of seeds 0 to 9 does not end\n")


def test_a_part_that_hangs_is_ended() -> None:
    """A hang ends at the deadline, with exit status 1 and a word on where it stands."""
    done = run("-c", HANG)

    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in hang" in done.stderr


def run_program(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run a part that is this program of the shell."""
    script = tmp_path / "part"
    script.write_text(f"#!/bin/sh\n{program}\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    return run_apart(PARTS[0], Options())


def test_a_part_that_dies_without_a_word_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is a line for each part, also for one that could print none."""
    assert not run_program("kill -9 $$", tmp_path, monkeypatch)
    assert capsys.readouterr().out == "items       FAILED  ended with status -9 before it had a result\n"


def test_a_part_that_leaves_a_process_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that outlives its part is told, although it is nobody's child any more."""
    monkeypatch.setattr(soak.__main__, "PATIENCE", 0.0)
    # While a program is being put in the place of the shell's the process has no environment to be known by.
    until_it_runs = "until grep -q ^sleep /proc/$!/cmdline && grep -q . /proc/$!/environ; do :; done"
    assert not run_program(f"sleep 600 & {until_it_runs}; echo $!", tmp_path, monkeypatch)
    pid, told = capsys.readouterr().out.splitlines()
    os.kill(int(pid), signal.SIGKILL)
    assert told == f"items       FAILED  left processes behind: [{pid}]"


def account(delivered: Sequence[int], lost: int = 0) -> Account:
    """Make an account of some results."""
    made = Account()
    made.delivered.update(delivered)
    made.lost = lost
    return made


def test_an_account_that_agrees_passes() -> None:
    """A killed worker may cost the item that it had begun, or claimed and not begun, or none."""
    items = [1, 2, 3]
    check_account(account([1, 2, 3]), Counter([1, 2, 3]), items, kills=1)
    check_account(account([1, 2], lost=1), Counter([1, 2, 3]), items, kills=1)
    check_account(account([1, 2], lost=1), Counter([1, 2]), items, kills=1)


@pytest.mark.parametrize(
    ("delivered", "lost", "begun", "said"),
    [
        ([1, 2, 3], 0, [1, 2, 3, 3], "items ran twice: \\[3\\]"),
        ([1, 2, 3, 3], 0, [1, 2, 3], "came twice: \\[3\\]"),
        ([1, 2], 0, [1, 2, 3], "of 3 items 2 came and 0 were lost"),
        ([1], 2, [1, 2, 3], "2 items were lost with 1 workers killed"),
        ([1, 2, 3], 0, [1, 2], "a result came of what never began"),
        ([1, 2, 3], 0, [1, 2, 3, 4], "something ran that nobody asked for"),
    ],
)
def test_an_account_that_does_not_agree_fails(delivered: list[int], lost: int, begun: list[int], said: str) -> None:
    """Whatever is lost without a word, or comes or runs twice, is told."""
    with pytest.raises(AssertionError, match=said):
        check_account(account(delivered, lost), Counter(begun), [1, 2, 3], kills=1)
