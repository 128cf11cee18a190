"""A program that is interrupted when multiprocessing has started a zygote and has not told it yet what it is.

Its argument is the start method. It prints one word when the interrupt has come out, and nobody complains.
"""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D101, D103

import _thread
import os
import signal
import sys
import threading
from functools import partial
from multiprocessing import forkserver, util

from pairpool import _birth, get_context

STARTS = {"spawn": (util, "spawnv_passfds"), "forkserver": (forkserver, "connect_to_new_process")}

struck = threading.Event()
made = []


class StruckError(Exception):
    pass


def strike(*_):
    if not struck.is_set():
        struck.set()
        raise StruckError


def by_the_kernel():
    # Not once: a signal that comes just before a sleep does not end it, and this start waits for it.
    while not struck.is_set():
        os.kill(os.getpid(), signal.SIGUSR1)
        struck.wait(0.01)


def by_another_thread():
    # Whoever waits is not woken by it: it strikes when he has what he waited for.
    _thread.interrupt_main(signal.SIGUSR1)


def start_and_be_struck(send, *args):
    made.append(start(*args))
    send()
    return made[-1]


if __name__ == "__main__":
    method = sys.argv[1]
    module, name = STARTS[method]
    _birth._PATIENCE = 1000.0  # who waits so long is seen to
    with get_context(method).Pool(1):
        pass  # a fork server is running now
    signal.signal(signal.SIGUSR1, strike)
    start = getattr(module, name)
    for send in (by_the_kernel, by_another_thread):
        struck.clear()
        setattr(module, name, partial(start_and_be_struck, send))
        try:
            get_context(method).Pool(1)
        except StruckError:
            setattr(module, name, start)
        with get_context(method).Pool(1) as pool:
            assert pool.apply(abs, (-1,)) == 1
    assert len(made) == 2
    if method == "spawn":
        assert not any(os.path.exists(f"/proc/{pid}") for pid in made)
    print("done")
