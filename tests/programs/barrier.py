"""Items of one map wait for each other, and meet however they were packed for travel."""

# Written as its users write: without types, and without words about each function.
# mypy: ignore-errors
# ruff: noqa: D103

import sys

from pairpool import get_context

meeting = None


def prepare(barrier):
    global meeting
    meeting = barrier


def meet(item):
    """Wait for the other of two items that lie close together in a stream of quick ones."""
    if item in (1000, 1003):
        meeting.wait()
    return item


def meet_each(item):
    meeting.wait()
    return item


def main():
    context = get_context(sys.argv[1])
    with context.Pool(2, prepare, (context.Barrier(2),)) as pool:
        assert pool.map(meet, range(2000), chunksize=1) == list(range(2000))
        assert list(pool.imap(meet, range(2000))) == list(range(2000))
        assert sorted(pool.imap_unordered(meet, range(2000))) == list(range(2000))
        assert pool.map(meet_each, range(20), chunksize=1) == list(range(20))
        results = [pool.apply_async(meet, (item,)) for item in range(990, 1010)]
        assert [result.get() for result in results] == list(range(990, 1010))
    pool.join()


if __name__ == "__main__":
    main()
    print("done")
