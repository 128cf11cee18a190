"""A program that is interrupted when multiprocessing has started a zygote and has not told it yet what it is.

Its argument is the start method. It prints one word when the interrupt has come out, and nobody complains.
"""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D101, D103

import os
import signal
import sys
import threading
from multiprocessing import forkserver, util

from pairpool import get_context

STARTS = {"spawn": (util, "spawnv_passfds"), "forkserver": (forkserver, "connect_to_new_process")}

struck = threading.Event()
made = []


class StruckError(Exception):
    pass


def strike(*_):
    struck.set()
    raise StruckError


def start_and_be_struck(*args):
    made.append(start(*args))
    os.kill(os.getpid(), signal.SIGUSR1)
    struck.wait()
    return made[0]


if __name__ == "__main__":
    method = sys.argv[1]
    module, name = STARTS[method]
    with get_context(method).Pool(1):
        pass  # a fork server is running now
    signal.signal(signal.SIGUSR1, strike)
    start = getattr(module, name)
    setattr(module, name, start_and_be_struck)
    try:
        get_context(method).Pool(1)
    except StruckError:
        setattr(module, name, start)
    with get_context(method).Pool(1) as pool:
        assert pool.apply(abs, (-1,)) == 1
    if method == "spawn":
        assert not os.path.exists(f"/proc/{made[0]}")
    print("done")
