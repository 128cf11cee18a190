"""The fault matrix: wherever a process is struck, in whatever way, it costs what it must and nothing else.

Each cell strikes at one place in one way, while other jobs go on beside, and looks at everything that comes: the
result that was struck, every other item of its job, the other jobs, what can be done with the pool afterwards, and
what stays behind (the fixture `no_leftovers`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fault_cells
import pairpool
from conftest import START_METHODS
from fault_bench import Bench
from fault_jobs import Cell, Face, by_calls_together, by_imap, by_map
from faults import HOWS, place_in_packet
from pairpool import _pacing
from pairpool._scheduler import Scheduler

MATRIX = """
where                  Exception Base     SystemExit Interrupt exit(0)  exit(3)  SIGKILL  SIGSEGV  stop+kill stop+end
pickling arguments     raises    cuts     cuts       cuts      dies     dies     dies     dies     dies      resumes
unpickling arguments   raises    raises   raises     raises    lost     lost     lost     lost     lost      ended
running                raises    raises   raises     raises    lost     lost     lost     lost     lost      ended
amid a packet          raises    raises   raises     raises    lost     lost     lost     lost     lost      ended
freeing arguments      ignored   ignored  ignored    ignored   lost     lost     lost     lost     lost      ended
pickling the result    unsent    raises   raises     raises    lost     lost     lost     lost     lost      ended
unpickling the result  raises    raises   raises     raises    dies     dies     dies     dies     dies      resumes
callback               raises    raises   raises     raises    dies     dies     dies     dies     dies      resumes
done callback          told      told     told       told      dies     dies     dies     dies     dies      resumes
iterable               cuts      cuts     cuts       cuts      dies     dies     dies     dies     dies      resumes
initializer, once      retried   retried  retried    retried   retried  retried  retried  retried  retried   ended
initializer, always    fails     fails    fails      fails     fails    fails    fails    fails    fails     ended
idle                   replaced  replaced replaced   replaced  replaced replaced replaced replaced replaced  ended
zygote, forking        retried   broken   broken     broken    broken   broken   broken   broken   broken    ended
zygote                 broken    broken   broken     broken    broken   broken   broken   broken   broken    ended
"""

EXPECTATIONS = {
    "raises": "the result that it belongs to raises it",
    "cuts": "the call itself raises it; where a thread of the pool's pulls and pickles (imap) its item does, and is "
    "the last one",
    "unsent": "the result raises MaybeEncodingError, which names it",
    "lost": "the result raises WorkerLostError, which says of the worker its pid, how it ended and what it ran",
    "dies": "the caller's own process ends so, and neither zygote nor workers stay behind",
    "resumes": "the caller's own process is stopped, and can terminate nothing; continued, it gets the right result",
    "told": "the result is right; the log of concurrent.futures says it, or `threading.excepthook` of no Exception",
    "ignored": "the interpreter prints it, as wherever an object is freed; the result is right",
    "retried": "it is nobody's result: a worker is asked for once more, and all is right",
    "replaced": "it is nobody's result: the worker's handle has the exit code, another worker comes",
    "fails": "all that is pending, and all that comes later, raises InitializerError, which says how workers end",
    "broken": "all that is pending, and all that comes later, raises PairpoolError: the zygote ended; no worker stays",
    "ended": "`terminate()` returns, what was pending raises PoolTerminatedError, and no process stays",
}
"""What the words mean. Where it is not said otherwise, every other item and every other job is right, and so is what
is done with the pool afterwards."""


def read_matrix() -> Iterator[Cell]:
    """Return the cells of the table."""
    _, head, *rows = MATRIX.splitlines()
    hows = head.split()[1:]
    for row in rows:
        where, words = re.split("  +", row, maxsplit=1)
        for how, word in zip(hows, words.split(), strict=True):
            yield Cell(where, how, word)


CELLS = list(read_matrix())

MakeBench = Callable[[str], Bench]


@pytest.fixture
def make_bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBench]:
    """Make benches that are cleared when the test ends."""
    # Processes that are started afresh are not to import pytest as their main module: it takes most of their time.
    main = __import__("__main__")
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.delattr(main, "__file__", raising=False)
    benches: list[Bench] = []

    def make(method: str) -> Bench:
        benches.append(Bench(method))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def test_the_table_is_whole() -> None:
    """Every place and every way is in it once, in words that are explained, and every place can be struck."""
    wheres = list(dict.fromkeys(cell.where for cell in CELLS))
    assert [(cell.where, cell.how) for cell in CELLS] == [(where, how) for where in wheres for how in HOWS]
    assert wheres == list(fault_cells.PLACES)
    assert {cell.expected for cell in CELLS} == set(EXPECTATIONS)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.where}-{cell.how}")
def test_a_forked_cell(make_bench: MakeBench, cell: Cell) -> None:
    """It costs what the table says, and nothing else."""
    fault_cells.observe(make_bench("fork"), cell)


@pytest.mark.parametrize("where", fault_cells.PLACES)
@pytest.mark.parametrize("method", START_METHODS[1:])
def test_cells_started_afresh(make_bench: MakeBench, method: str, where: str) -> None:
    """The same holds where processes are started afresh; cells share a pool as long as they leave it whole."""
    bench, unlike = make_bench(method), []
    for cell in CELLS:
        if cell.where == where:
            try:
                fault_cells.observe(bench, cell)
            except Exception as error:
                unlike.append(f"{cell}: {error!r}")
                bench.close()
    assert not unlike, "\n".join(unlike)


@pytest.mark.parametrize("face", [by_map, by_imap, by_calls_together])
def test_ten_items_are_one_packet(make_bench: MakeBench, face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is struck amid a packet has two units before it, and seven behind."""
    monkeypatch.setattr(_pacing, "units_at_once", lambda *_: 10)
    monkeypatch.setattr(Scheduler, "late", lambda self, now: None)  # or a busy machine has its tail cut off
    places = face(make_bench("fork").pool(), place_in_packet, list(range(10)))()
    places = places[0] if face is by_map else places
    assert {packet for packet, _ in places} == {places[0][0]}
    assert [place for _, place in places] == list(range(10))


# -- An ordinary user ---------------------------------------------------------------------------------------

NOBODY = 65534
DESCRIPTORS = 256  # that he may have open, and as many in flight, which limits everybody but root
HIS_PROGRAM = (
    f"import resource, sys, pytest; resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS})); "
    "sys.exit(pytest.main(sys.argv[1:]))"
)
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
READING = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")  # and nothing else of root's


def _run_as_user(who: tuple[str, ...], program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(pairpool.__file__).parents[1]), "HOME": "/"}
    command = [*who, sys.executable, "-BP", "-c", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def _ordinary_user() -> tuple[str, ...]:
    """Return how to run a command as one who can read what it takes to run the tests."""
    if os.getuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root cannot become another user for want of setpriv")
    trials = {who: _run_as_user(who, "import pytest, pairpool") for who in (AS_NOBODY, (*AS_NOBODY, *READING))}
    able = [who for who, trial in trials.items() if trial.returncode == 0]
    if not able:
        pytest.skip(f"user {NOBODY} cannot run the interpreter: {trials[AS_NOBODY].stderr}")
    return able[0]


def test_forked_cells_of_an_ordinary_user() -> None:
    """It all holds for one whose descriptors are few, also those on their way."""
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--rootdir", str(Path(__file__).parents[1]))
    done = _run_as_user(_ordinary_user(), HIS_PROGRAM, *options, f"{__file__}::{test_a_forked_cell.__name__}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1]
