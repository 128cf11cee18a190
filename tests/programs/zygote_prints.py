"""Prints two words, one of them in a worker: ``zygote_prints.py METHOD``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from zygotes import Nest


def main(method: str) -> None:
    """Leave a word in the buffer of standard output, and have a worker print another."""
    print("caller", end=" ")
    nest = Nest(method)
    worker = nest.spawn()
    worker.call(print, "worker")
    worker.retire()
    nest.close()


if __name__ == "__main__":
    main(sys.argv[1])
