"""Fixtures of the whole suite: nothing is left behind, every start method, pools that end."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeAlias

import pytest

import pairpool
from holdings import Holdings, remains
from interruptions import Undisturbed
from pairpool import _core
from pairpool._codec import Encoder
from scenarios import Clock, NoThread, Stage
from tasks import Line

START_METHODS = ("fork", "forkserver", "spawn")

MakePool: TypeAlias = Callable[..., Any]

_failed = pytest.StashKey[bool]()

# Blocks of 32 KiB and more are given back to the system when they are freed, as at first; or else no test could tell
# what it takes, or may take, for it had what others have left to the allocator (mallopt(3), M_MMAP_THRESHOLD).
ctypes.CDLL(None).mallopt(-3, 32 * 1024)


def pytest_collection_finish() -> None:
    """Leave what is there before the first test out of later collections: looking through it takes 0.1 s each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether the test itself failed, for `no_leftovers`."""
    report = yield
    if report.when == "call":
        item.stash[_failed] = report.failed
    return report


@pytest.fixture(autouse=True)
def no_leftovers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a descriptor, thread, child process or shared mapping behind.

    A test that failed is not asked: its traceback keeps its pools alive.
    """
    before = Holdings.now()
    yield
    if not request.node.stash.get(_failed, False):
        left = remains(before)
        assert left == [], "left behind by the test"


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    """Each start method in turn."""
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["inherited", "verified"])
def encoder(request: pytest.FixtureRequest) -> Iterator[Encoder]:
    """An encoder of either sort."""
    encoder = Encoder(inherited=request.param)
    yield encoder
    encoder.trim()


def _pools_of(library: Any) -> Iterator[MakePool]:
    pools: list[Any] = []

    def make(*args: Any, start_method: str = "fork", **kwargs: Any) -> Any:
        pool = library.get_context(start_method).Pool(*args, **kwargs)
        pools.append(pool)
        return pool

    yield make
    while pools:
        pool = pools.pop()
        pool.terminate()
        pool.join()
        del pool  # the library's closes its pipes when it is collected, and not before


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    """Make pools of ours (``start_method="fork"`` unless told) which end with the test."""
    yield from _pools_of(pairpool)


@pytest.fixture(params=["multiprocessing", "pairpool"])
def make_either_pool(request: pytest.FixtureRequest) -> Iterator[MakePool]:
    """Make pools of the standard library and of ours in turn.

    For whatever is kept as it is in the standard library: the same test passing over both shows
    that it asks for what the library does, and not for what we believe of it.
    """
    yield from _pools_of(multiprocessing if request.param == "multiprocessing" else pairpool)


@pytest.fixture
def make_line() -> Iterator[Callable[[], Line]]:
    """Make lines to the tasks of a forked pool; they must exist before the pool does."""
    lines: list[Line] = []

    def make() -> Line:
        lines.append(Line())
        return lines[-1]

    yield make
    for line in lines:
        line.close()


@pytest.fixture
def make_stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Stage]:
    """Make a dispatcher over two scripted workers, which are up."""

    def make() -> Stage:
        clock = Clock()
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Thread", NoThread)
            stage = Stage(Undisturbed(), clock)
        monkeypatch.setattr(_core, "time", clock)
        stage.run()
        return stage

    return make


@pytest.fixture
def stage(make_stage: Callable[[], Stage]) -> Iterator[Stage]:
    """Make a dispatcher over two scripted workers, which are up; at the end nothing may be left of it."""
    stage = make_stage()
    yield stage
    stage.close()
