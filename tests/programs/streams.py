"""What a worker does with its streams and at its end: run with either library, it prints the same."""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D103

import atexit
import multiprocessing
import os
import sys
from multiprocessing import util

import pairpool


class Log(list):
    """A list that the library can hold a weak reference to."""


log = Log()


def at_exit_of_plain_python():
    os.write(1, b"atexit\n")


def prepare():
    atexit.register(at_exit_of_plain_python)
    util.Finalize(None, os.write, args=(1, b"finalizer\n"), exitpriority=1)


def after_fork(log):
    log.append("after fork")


def report(_):
    print("printed, and not flushed", end="\n", flush=False)
    return (sys.stdin.read(), log, multiprocessing.parent_process() is not None)


def main():
    library = {"multiprocessing": multiprocessing, "pairpool": pairpool}[sys.argv[2]]
    util.register_after_fork(log, after_fork)
    pool = library.get_context(sys.argv[1]).Pool(1, prepare)
    seen = pool.map(report, [1])
    pool.close()
    pool.join()
    print(seen, flush=True)


if __name__ == "__main__":
    main()
