"""Which signals our threads have blocked: all that another thread can take, but where the user's code runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import pairpool
from large import comes_true
from pairpool import _masks
from receiving import PATIENCE
from zygotes import blocked_signals

MakePool = Callable[..., Any]

FAULT = """
import ctypes, faulthandler
from pairpool import _masks
faulthandler.enable()
_masks.shut_out_signals()
ctypes.string_at(8)
"""

ALL = {*map(int, signal.valid_signals() - _masks.FAULTS - {signal.SIGKILL, signal.SIGSTOP})}


def blocked_in(thread: threading.Thread) -> set[int]:
    """Return which signals a thread has blocked."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    (mask,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk:")]
    return {number for number in ALL if mask >> number - 1 & 1}


def ours() -> dict[str, threading.Thread]:
    """Return the threads of ours that there are, by their names."""
    return {thread.name: thread for thread in threading.enumerate() if thread.name.startswith("pairpool-")}


def test_no_thread_of_ours_takes_a_signal(make_pool: MakePool) -> None:
    """Another one may have blocked it for a while, and is to handle it when that is over."""
    pool = make_pool(2)
    assert pool.map(abs, range(9)) == [*range(9)]
    threads = ours()
    assert {*threads} == {"pairpool-callbacks", "pairpool-io"}
    for thread in threads.values():
        assert comes_true(lambda thread=thread: blocked_in(thread) == ALL, PATIENCE), thread.name  # type: ignore[misc]


@pytest.mark.once
def test_a_watchman_takes_no_signal_either() -> None:
    """Of a pool of threads."""
    with pairpool.ThreadPool(2) as pool:
        assert pool.map(abs, range(1000)) == [*range(1000)]
        watchman = ours()["pairpool-watch"]
        assert comes_true(lambda: blocked_in(watchman) == ALL, PATIENCE)


def test_a_callback_has_the_callers_mask(make_pool: MakePool) -> None:
    """What it starts can be ended by a signal."""
    pool, told = make_pool(1), SimpleQueue[set[int]]()
    for _ in range(2):
        pool.apply_async(abs, (1,), callback=lambda _: told.put(blocked_signals()))
        assert told.get(timeout=PATIENCE) == set()
    assert comes_true(lambda: blocked_in(ours()["pairpool-callbacks"]) == ALL, PATIENCE)


@pytest.mark.once
def test_a_thread_that_one_of_ours_starts_has_the_callers_mask() -> None:
    """A worker of a pool of threads runs the user's code."""
    with pairpool.ThreadPool(1) as pool:

        def grow() -> None:
            _masks.shut_out_signals()
            pool.resize(2)

        thread = threading.Thread(target=grow)
        thread.start()
        thread.join(PATIENCE)
        barrier = threading.Barrier(2, timeout=PATIENCE)

        def mask(_: int) -> set[int]:
            barrier.wait()
            return blocked_signals()

        assert pool.map(mask, range(2), chunksize=1) == [set(), set()]


@pytest.mark.once
def test_a_fault_is_told_by_a_thread_that_has_shut_out_signals() -> None:
    """By faulthandler, where it is on."""
    done = subprocess.run([sys.executable, "-c", FAULT], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr
