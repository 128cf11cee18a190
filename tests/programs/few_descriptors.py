"""A program with few descriptors that sends many large arrays out and back, and keeps all of them.

Its arguments are the start method, how many descriptors it may have, how many KiB an array has, and who runs it:
whoever starts it, or (from root) an ordinary user, whose descriptors are also counted while they are on their way.
"""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D103

import ctypes
import os
import resource
import sys

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from pairpool import get_context

MANY = 200
NOBODY = 65534
PR_SET_DUMPABLE = 4


def make(number, size):
    return np.full(size // 4, number, "<u4")


def add_one(array):
    array += 1
    return array


def check(results):
    assert len(results) == MANY
    for number, result in enumerate(results):
        assert (result == number + 1).all(), (number, result)


def become_ordinary():
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # Or its own /proc would belong to root from now on.
        assert ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0


def main():
    method, few, size, who = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) * 1024, sys.argv[4]
    arrays = [make(number, size) for number in range(MANY)]
    if who == "ordinary":
        # First all that is loaded when it is needed, as he may not be allowed to read it.
        with get_context(method).Pool(2) as pool:
            check(pool.map(add_one, arrays))
            pool.apply_async(add_one, (arrays[0],)).get()
        pool.join()
        become_ordinary()
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
    with get_context(method).Pool(2) as pool:
        mapped = pool.map(add_one, arrays)
        in_chunks = pool.map(add_one, arrays, 7)
        iterated = list(pool.imap(add_one, arrays))
        queued = [pool.apply_async(add_one, (array,)) for array in arrays]
        called = [result.get() for result in queued]
        futures = [future.result() for future in [pool.submit(add_one, array) for array in arrays]]
        for results in (mapped, in_chunks, iterated, called, futures):
            check(results)
        with open(os.devnull):
            pass  # there is one left for the program
    pool.join()
    for number, array in enumerate(arrays):
        assert (array == number).all()
    for results in (mapped, in_chunks, iterated, called, futures):
        check(results)


if __name__ == "__main__":
    main()
    print("done")
