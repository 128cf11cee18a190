"""What a pool takes from the program that uses it: processor time, memory, and rest."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks._harness import Case, Setting, Target
from benchmarks.rivals import STDLIB, Rival
from benchmarks.work import block_until, increment

SETTLE = 0.5  # seconds after which whoever was still busy has gone to sleep
REST = 2.5  # seconds after which nobody has anything left to look at


def parent_time(rival: Rival, setting: Setting) -> float:
    """Processor time of the caller's process, all threads, for `map` of 20 000 ints with chunksize=1, by item."""
    count = setting.less(20_000)
    pool = rival.open(setting.workers)
    pool.map(increment, range(max(1, count // 20)), 1)
    begun = time.process_time()
    pool.map(increment, range(count), 1)
    taken = time.process_time() - begun
    pool.close()
    return taken / count * 1_000_000


def memory_of_queued(rival: Rival, setting: Setting) -> float:
    """Growth of the caller's private memory by 20 000 calls queued behind busy workers, with what waits for them.

    The calls are of `apply_async`, or of `submit` where there is none. Memory is what the kernel counts: pages.
    """
    count = setting.less(20_000)
    with tempfile.TemporaryDirectory() as directory:
        gate = Path(directory, "gate")
        pool = rival.open(setting.workers)
        for wait in [pool.call_later(increment, number) for number in range(1000)]:
            wait()
        blocked = [pool.call_later(block_until, str(gate)) for _ in range(setting.workers)]
        time.sleep(setting.shorter(SETTLE))
        before = private_memory()
        waits = [pool.call_later(increment, number) for number in range(count)]
        time.sleep(setting.shorter(SETTLE))  # threads of the pool may still be at it
        grown = private_memory() - before
        gate.touch()
        for wait in blocked + waits:
            wait()
        pool.close()
    return grown / count


def private_memory() -> int:
    """Return the bytes of this process that it shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def wake_ups_at_rest(rival: Rival, setting: Setting) -> float:
    """How often threads of the caller, but for the one that watches, and its descendants go to sleep in 2 s, by second.

    Who goes to sleep has been woken. The pool is warm, and has had two and a half seconds to come to rest: a thread
    that was to look at the work after a second, as pairpool's does, may be woken once more though the work is done.
    """
    seconds = setting.shorter(2.0)
    pool = rival.open(setting.workers)
    pool.map(increment, range(1000), 1)
    time.sleep(setting.shorter(REST))
    before = sum(_switches())
    time.sleep(seconds)
    woken = sum(_switches()) - before
    pool.close()
    return woken / seconds


def _switches() -> Iterator[int]:
    """Yield the voluntary context switches of each thread of this process but ours, and of its descendants."""
    for pid in (os.getpid(), *descendants(os.getpid())):
        for task in Path(f"/proc/{pid}/task").iterdir():
            if int(task.name) != threading.get_native_id():
                lines = (task / "status").read_text().splitlines()
                yield next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def descendants(parent: int) -> Iterator[int]:
    """Yield the processes below a process: its children, and theirs."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(") ")[2]
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            if int(after_name.split()[1]) == parent:
                yield int(entry.name)
                yield from descendants(int(entry.name))


CASES = (
    Case("processor time of the caller, map, chunksize=1", "us/item", parent_time, targets=(Target(0.05, STDLIB),)),
    Case("memory of a queued task", "bytes", memory_of_queued, targets=(Target(0.35, STDLIB),)),
    Case("wake-ups at rest", "1/s", wake_ups_at_rest, targets=(Target(0),)),
)
