"""A program written for multiprocessing.Pool, with one line changed.

Run it: ``python examples/drop_in.py``
"""

from __future__ import annotations

import os

from pairpool import Pool  # was: from multiprocessing import Pool

greeting = ""


def prepare(text: str) -> None:
    """Set a global in each worker before its first task, as so many programs do."""
    global greeting
    greeting = text


def greet(name: str) -> str:
    """Use what the initializer has set."""
    return f"{greeting}, {name}!"


def divide(dividend: int, divisor: int) -> float:
    """Divide, or fail."""
    return dividend / divisor


def main() -> None:
    """Use each of the calls once."""
    with Pool(2, initializer=prepare, initargs=("Hello",)) as pool:
        print(pool.map(greet, ["Ada", "Grace"]))
        print(pool.starmap(divide, [(6, 3), (9, 2)]))
        print(list(pool.imap(abs, range(-3, 0))))
        print(sorted(pool.imap_unordered(abs, range(-3, 0), chunksize=2)))
        result = pool.apply_async(divide, (1, 4))
        print(result.get(timeout=10))
        print(pool.map(lambda name: greet(name).upper(), ["Ada"]))  # lambdas may be sent, too
        try:
            pool.apply(divide, (1, 0))
        except ZeroDivisionError as error:
            print(f"ZeroDivisionError: {error}")
        print("in another process:", pool.apply(os.getpid) != os.getpid())
    pool.join()


if __name__ == "__main__":
    main()
