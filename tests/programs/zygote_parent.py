"""A parent with workers in some state, to be killed: ``zygote_parent.py METHOD SCENE``.

Prints the pids of everything that has to end with it on one line, and waits to be killed. What it
prints after ``and`` is to live on.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import zygotes
from zygotes import Nest, Remote, stop_process

_nested: list[Nest] = []


def compute() -> None:
    """Be in C for hours, with the GIL held."""
    pow(7, 10**9)


def nest_within(method: str) -> list[int]:
    """Make a zygote and a worker of this worker's; return the pids of both."""
    _nested.append(Nest(method))
    return [_nested[0].zygote.pid, _nested[0].spawn().call(os.getpid)]


def scene(name: str, method: str, nest: Nest, workers: list[Remote]) -> tuple[list[int], list[int]]:
    """Bring about a state; return the pids that come with it: those that are to end, those that are not."""
    match name:
        case "idle":
            pass
        case "computing":
            for worker in workers:
                worker.post(compute)
        case "sleeping":
            for worker in workers:
                worker.post(time.sleep, 10_000)
        case "deaf":
            for worker in workers:
                worker.call(zygotes.ignore, signal.SIGTERM)
        case "stopped workers":
            for worker in workers:
                stop_process(worker.call(os.getpid))
        case "stopped zygote":
            stop_process(nest.zygote.pid)
        case "all stopped":
            children = [worker.call(zygotes.start_child) for worker in workers]
            for pid in (*children, *(worker.call(os.getpid) for worker in workers), nest.zygote.pid):
                stop_process(pid)
            return children, []
        case "children":
            return [worker.call(child) for worker in workers for child in (zygotes.start_child, zygotes.fork_child)], []
        case "nested":
            return [pid for worker in workers for pid in worker.call(nest_within, method)], []
        case "closed descriptors":
            # Theirs, not the zygote's copies: the groups stay bound.
            for worker in workers:
                worker.post(close_all_and_wait)
        case "fork of the parent":
            child = zygotes.fork_child()
            stop_process(nest.zygote.pid)  # or that would see to it, whatever the child holds
            return [], [child]
        case "stray fork of the parent":
            return [], [zygotes.stray_fork()]
        case "starting":
            nest.spawn(100)
            nest.spawn(101)
        case _:
            raise ValueError(name)
    return [], []


def close_all_and_wait() -> None:
    """Close every descriptor, as a task that turns into a daemon would."""
    os.closerange(3, 1000)
    while True:
        signal.pause()


def main(method: str, name: str) -> None:
    """Bring about a state and wait."""
    nest = Nest(method)
    # Into another session than zygote and workers. Else the kernel itself continues their groups when
    # this process ends, with SIGHUP, as those of a shell's jobs, and no stopped scene would be one.
    os.setsid()
    workers = [nest.spawn(slot) for slot in range(2)]
    pids = [nest.zygote.pid, *(worker.call(os.getpid) for worker in workers)]
    ending, staying = scene(name, method, nest, workers)
    print(*pids, *ending, "and", *staying, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
