"""A program that waits in its pool in one of several ways until it is interrupted at the terminal."""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D103

import gc
import signal
import sys
import time

from pairpool import get_context


def nap(seconds):
    time.sleep(seconds)


def ignore_sigterm(seconds):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ignoring", flush=True)
    time.sleep(seconds)


def apply_and_tell(pool):
    try:
        pool.apply(ignore_sigterm, (1000,))
    finally:
        print("terminating", flush=True)


def close_and_join(pool):
    pool.apply_async(nap, (1000,))
    pool.close()
    pool.join()


WAYS = {
    "apply": lambda pool: pool.apply(nap, (1000,)),
    "map": lambda pool: pool.map(nap, [1000] * 9),
    "imap": lambda pool: list(pool.imap(nap, [1000] * 9)),
    "get": lambda pool: pool.apply_async(nap, (1000,)).get(),
    "result": lambda pool: pool.submit(nap, 1000).result(),
    "join": close_and_join,
    # Not once for long: a signal that comes just before a sleep does not end it.
    "nothing": lambda pool: [nap(0.1) for _ in iter(int, 1)],
    "many": lambda pool: [pool.apply(abs, (1,)) for _ in iter(int, 1)],
    "SIGTERM ignored": apply_and_tell,
}


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where this is run by what ignores it
    method, way = sys.argv[1:]
    if way == "start":
        # What is raised in a finalizer, or in one of importlib's callbacks, is only printed: here none runs.
        gc.disable()
        pools = []
        while True:
            with get_context(method).Pool(2) as pool:
                pools.append(pool)
                pool.map(abs, range(9))
            print("ready", flush=True)
    with get_context(method).Pool(2) as pool:
        # While it is pickled by value the library handles errors: what strikes there has their tracebacks before its.
        pool.apply(nap, (0,))
        print("ready", flush=True)
        WAYS[way](pool)


if __name__ == "__main__":
    main()
