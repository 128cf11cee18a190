"""Futures from a pool, and callbacks: two ways of not waiting for each result in turn.

Run it: ``python examples/submit_and_callbacks.py``
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import threading

from pairpool import Pool


def digest(text: str) -> str:
    """Return the beginning of the hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def wait_for_futures(pool: Pool) -> None:
    """Submit calls, and take their results in whichever order they come."""
    futures = {pool.submit(digest, text): text for text in ("one", "two", "three")}
    found = {futures[done]: done.result() for done in concurrent.futures.as_completed(futures)}
    for text in sorted(found):
        print(f"{text}: {found[text]}")


def be_called_back(pool: Pool) -> None:
    """Have a function called with each result; all such calls come from one thread, one by one."""
    total: list[str] = []
    everything = threading.Event()

    def on_digest(value: str) -> None:
        total.append(value)
        if len(total) == 3:
            everything.set()

    for text in ("four", "five", "six"):
        pool.apply_async(digest, (text,), callback=on_digest)
    everything.wait()
    print("called back:", *sorted(total))


def be_told_of_an_error(pool: Pool) -> None:
    """Have a function called with the error of a task that fails."""
    errors: list[BaseException] = []
    pool.apply_async(int, ("twelve",), error_callback=errors.append).wait()
    print("error:", *errors)


def main() -> None:
    """Show all three."""
    with Pool(2) as pool:
        wait_for_futures(pool)
        be_called_back(pool)
        be_told_of_an_error(pool)
    pool.join()


if __name__ == "__main__":
    main()
