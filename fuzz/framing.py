"""Throws hostile inputs at everything that decodes what another process wrote, in both twins of the framing.

Run it: ``python -m fuzz.framing [--inputs N] [--seed S] [--processes P]``. What an input is depends on the seed and its
number alone. One on which the twins disagree, or which ends the process, is printed with the command that runs
it once more, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from random import randrange
from typing import Any, Final

try:
    from fuzz import answers, memory, messages
except ImportError as missing:
    # As everywhere, PAIRPOOL_EXTENSION=1 means that the C twin has to be there.
    if missing.name != "pairpool._framing_c" or os.environ.get("PAIRPOOL_EXTENSION") == "1":
        raise
    print("The C twin was not built: there is nothing to compare the Python twin with.")
    sys.exit(0)
from fuzz.messages import ACCEPTED, DisagreementError, shown
from fuzz.source import Source

BATCH: Final = 1000  # inputs from one seed of their own: as many are made again to come to one of them


@dataclass(frozen=True)
class Target:
    """Something that decodes: how an input for it is made, and how it is held to what it promises."""

    name: str
    share: int  # inputs of 256, on average
    make: Callable[[Source], Any]
    check: Callable[[Any], str]  # what became of the input; DisagreementError where that may not be


TARGETS: Final = (
    Target("unpack", 160, messages.make_arrival, messages.check_arrival),
    Target("pack", 40, messages.make_packing, messages.check_packing),
    Target("admit", 20, answers.make_envelope, answers.check_envelope),
    Target("records", 16, memory.make_records, memory.check_records),
    Target("outbox", 8, memory.make_commit, memory.check_commit),
    Target("answer", 8, answers.make_answer, answers.check_answer),
    Target("page", 4, memory.make_tail, memory.check_tail),
)
_TABLE: Final = [target for target in TARGETS for _ in range(target.share)]

Tally = Counter[tuple[str, str]]  # by target, and what became of the input


class FaultError(Exception):
    """An input that was not taken as it should be; its words say all that there is to know."""


def inputs(seed: int, batch: int) -> Iterator[tuple[Target, Any]]:
    """Make the inputs of one batch. None depends on what became of those before it."""
    source = Source(f"{seed}/{batch}")
    for _ in range(BATCH):
        target = _TABLE[source.getrandbits(8)]
        yield target, target.make(source)


def input_of(seed: int, number: int) -> tuple[Target, Any]:
    """Make one input once more."""
    return [*inputs(seed, number // BATCH)][number % BATCH]


def told(seed: int, number: int, what: str) -> str:
    """Return all that is known of an input that was not taken well."""
    target, made = input_of(seed, number)
    replay = f"replay: python -m fuzz.framing --seed {seed} --number {number}"
    return f"input {number} of seed {seed}, for {target.name}: {what}\ninput: {shown(made)}\n{replay}"


def check(seed: int, number: int, target: Target, made: Any) -> str:
    """Run one input; FaultError where it is not taken well."""
    try:
        return target.check(made)
    except DisagreementError as disagreement:
        raise FaultError(told(seed, number, str(disagreement))) from disagreement
    except Exception as error:
        raise FaultError(told(seed, number, traceback.format_exc())) from error


# --- Many inputs --------------------------------------------------------------------------------------------


def run_share(seed: int, count: int, share: int, processes: int, at: memoryview) -> Tally:
    """Run every so many-th batch of so many inputs. `at` is told the number of the input that is run."""
    tally: Tally = Counter()
    with answers.descriptors_left_open():
        for batch in range(share, -(-count // BATCH), processes):
            for number, (target, made) in enumerate(inputs(seed, batch), batch * BATCH):
                if number == count:
                    break
                at[share] = number
                tally[target.name, check(seed, number, target, made)] += 1
    return tally


def _work(result: Connection, *arguments: Any) -> None:
    try:
        result.send(run_share(*arguments))
    except FaultError as fault:
        result.send(str(fault))


def run(seed: int, count: int, processes: int) -> Tally:
    """Run so many inputs in processes of their own, so that one which ends its process is told as well."""
    at = memoryview(mmap.mmap(-1, 8 * processes)).cast("Q")
    context = multiprocessing.get_context("fork")  # which inherits the memory where they tell how far they are
    running: dict[Any, tuple[int, ForkProcess]] = {}
    for share in range(processes):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(writer, seed, count, share, processes, at), daemon=True)
        process.start()
        writer.close()
        running[reader] = share, process
    tally: Tally = Counter()
    try:
        while running:
            for ready in wait([*running]):
                share, process = running.pop(ready)
                tally += _result_of(seed, at[share], process, ready)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    return tally


def _result_of(seed: int, number: int, process: ForkProcess, reader: Any) -> Tally:
    """Return what a process has told. `number`: of the input that it ran last."""
    try:
        result = reader.recv()
    except EOFError:
        process.join()
        what = f"it ended the process, with exit code {process.exitcode}"
        raise FaultError(told(seed, number, what)) from None
    process.join()
    if isinstance(result, str):
        raise FaultError(result)
    tally: Tally = result
    return tally


def report(tally: Tally) -> None:
    """Print how many inputs were accepted, and how many refused for which reason."""
    accepted = sum(number for (_, what), number in tally.items() if what.startswith(ACCEPTED))
    print(f"{accepted:,} accepted, {tally.total() - accepted:,} refused")
    for target in TARGETS:
        for (name, what), number in sorted(tally.items(), key=lambda entry: (-entry[1], entry[0])):
            if name == target.name:
                print(f"{number:>12,}  {name}: {what}")


# --- The command line ---------------------------------------------------------------------------------------


def _run_one(seed: int, number: int) -> None:
    target, made = input_of(seed, number)
    print(f"input {number} of seed {seed}, for {target.name}: {shown(made)}", flush=True)  # it may end the process
    with answers.descriptors_left_open():
        print(check(seed, number, target, made))


def main() -> None:
    """Read the command line, and do what it asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, metavar="N", help="how many (default 1 000 000)")
    parser.add_argument("--seed", type=int, help="what all of them are drawn from (default: any)")
    parser.add_argument("--processes", type=int, metavar="P", help="side by side (default: one for each core)")
    parser.add_argument("--number", type=int, metavar="K", help="run one input, of this number")
    given = parser.parse_args()
    seed = randrange(2**32) if given.seed is None else given.seed
    processes = given.processes or len(os.sched_getaffinity(0))
    try:
        if given.number is not None:
            _run_one(seed, given.number)
            return
        print(f"seed {seed}, {given.inputs:,} inputs, {processes} processes", flush=True)
        begun = time.monotonic()
        tally = run(seed, given.inputs, processes)
        seconds = time.monotonic() - begun
    except FaultError as fault:
        sys.exit(str(fault))
    print(f"{tally.total():,} inputs in {seconds:.1f} s, {tally.total() / seconds:,.0f} inputs/s")
    report(tally)


if __name__ == "__main__":
    main()
