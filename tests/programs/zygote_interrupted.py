"""Makes zygotes and workers while a timer interrupts it again and again: ``zygote_interrupted.py METHOD``.

Everything happens in the main thread, where signal handlers run. Prints how many interrupts were caught;
ends with an AssertionError if a process or descriptor is left, or a worker is told of twice or never.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pairpool._zygote import Exited, Reply, Spawned, WorkerSetup, Zygote
from zygotes import next_number

STARTS = 100
WORKERS = 100

delays = random.Random(0)
interrupts = 0


def interrupt(*_: object) -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def interrupted(work: Callable[[], object], longest: float) -> bool:
    """Do this, interrupted once at some moment within so many seconds, or not at all; tell whether it was."""
    global interrupts
    try:
        signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-6, longest))
        work()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, ())  # runs the handler of a signal that came before
    except KeyboardInterrupt:
        interrupts += 1
        return True
    return False


def leave_at_once(setup: WorkerSetup, slot: int, descriptors: tuple[int, ...]) -> None:
    """Be a worker that ends."""


def held() -> list[str]:
    """Return the descriptors of this process, and make sure that it has no children."""
    gc.collect()
    try:
        raise AssertionError(f"left behind: {os.waitpid(-1, 0)}")
    except ChildProcessError:
        return os.listdir("/proc/self/fd")


def start(method: str) -> Zygote:
    """Make a zygote."""
    return Zygote.start(multiprocessing.get_context(method), WorkerSetup(entry=leave_at_once))


def make_workers(zygote: Zygote) -> None:
    """Have workers made and go, and see each once."""
    said: list[Reply] = []

    def listen() -> None:
        nonlocal said
        said += zygote.replies()

    for slot in range(WORKERS):
        number = next_number()
        while slot not in zygote._slots:
            interrupted(lambda slot=slot, number=number: zygote.spawn(slot, number, ()), 100e-6)  # type: ignore[misc]
        interrupted(listen, 100e-6)
    missed = True
    while sum(isinstance(reply, Exited) for reply in said) < WORKERS:
        # After an interrupt there may be more to send and to return though nothing comes.
        if not missed and not zygote.pending:
            select.select([zygote.channel], [], [])
        missed = interrupted(listen, 100e-6)
    for kind in (Spawned, Exited):
        assert sorted(reply.slot for reply in said if isinstance(reply, kind)) == list(range(WORKERS))
    for reply in said:
        if isinstance(reply, Spawned):
            os.close(reply.pidfd)


def main(method: str) -> None:
    """Do all of it."""
    signal.signal(signal.SIGALRM, interrupt)
    before = held()
    for _ in range(STARTS):
        made: list[Zygote] = []
        interrupted(lambda made=made: made.append(start(method)), 3e-3)  # type: ignore[misc]
        for zygote in made:
            zygote.close()
    assert before == held()
    zygote = start(method)
    make_workers(zygote)
    while zygote.pidfd >= 0:
        interrupted(zygote.close, 500e-6)
    assert before == held()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    print(interrupts)


if __name__ == "__main__":
    main(*sys.argv[1:])
