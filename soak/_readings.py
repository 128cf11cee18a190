"""What a pool's processes hold at one moment, read from /proc: memory, descriptors, threads, shared mappings.

Workers are killed and replaced, so a process is not compared with itself but its role with its role. There are three:
the parent is the process that reads, its children are helpers (the zygote; between pools what the standard library
keeps: its fork server and its resource tracker), and everything below those is a worker. Of a role the greatest value
counts, whichever process has it, and how many processes there are; zombies count too.

Memory is what a process has written to, in its own pages and in shared ones: Anonymous, which stays what it is
however many processes share a page after a fork (the PSS of a worker would grow when its neighbour dies), and
Pss_Shmem, where mappings of memfds are told. /proc/<pid>/status has the same sums, but rounded by the kernel to
hundreds of pages. Of the parent it is told, too, how many blocks Python's allocator has given out: objects, more or
less. Memory is moved by free blocks that lie between others and cannot be given back; their number is not.

Who reads is read along, so this file does without pathlib, which keeps the names that it meets.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Self, TypeAlias

ROLES = ("parent", "helpers", "workers")

PATIENCE = 10.0  # seconds in which what is ending ends, and what is starting starts
PAUSE = 0.01  # seconds between two looks

_MEMORY = ("Anonymous:", "Swap:", "Pss_Shmem:")


@dataclass(frozen=True)
class Holding:
    """What one process holds; or a role: the greatest of its processes, and how many they are."""

    memory: int = 0  # bytes
    blocks: int = 0  # of the parent alone
    descriptors: int = 0
    threads: int = 0
    mappings: int = 0
    processes: int = 0

    @classmethod
    def of(cls, pid: int) -> Self:
        """Read what a process holds; nothing, if it has ended."""
        home = f"/proc/{pid}"
        try:
            with open(f"{home}/smaps_rollup") as lines:
                memory = sum(int(line.split()[1]) for line in lines if line.startswith(_MEMORY))
            with open(f"{home}/maps") as lines:
                # Those to write to: files of the system (the cache of iconv, a locale) are mapped shared to be read.
                mappings = sum(line.split(maxsplit=2)[1] in ("rw-s", "rwxs") for line in lines)
            return cls(
                memory=1024 * memory,
                blocks=sys.getallocatedblocks() if pid == os.getpid() else 0,
                descriptors=len(os.listdir(f"{home}/fd")) - (pid == os.getpid()),  # one of ours is open only to list
                threads=len(os.listdir(f"{home}/task")),
                mappings=mappings,
                processes=1,
            )
        except (FileNotFoundError, ProcessLookupError):
            return cls(processes=1)  # a zombie, or gone between the listing and the reading

    def beside(self, other: Holding) -> Holding:
        """Return what a role holds that has the processes of both."""
        pairs = zip(asdict(self).items(), asdict(other).values(), strict=True)
        greatest = {kind: max(mine, theirs) for (kind, mine), theirs in pairs}
        return Holding(**{**greatest, "processes": self.processes + other.processes})


KINDS = tuple(field.name for field in fields(Holding))

Moment: TypeAlias = Mapping[str, Holding]
"""What each role holds at one moment; a role without processes is not there."""


def _generations() -> dict[int, int]:
    """Return every process at or below this one, and how far below."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    # The name stands in brackets and may hold anything, brackets and blanks too.
                    parents[int(entry)] = int(file.read().rpartition(b") ")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended between the listing and the reading
    found = {os.getpid(): 0}
    while new := {pid: found[up] + 1 for pid, up in parents.items() if up in found and pid not in found}:
        found.update(new)
    return found


def read() -> Moment:
    """Read what every role holds now."""
    moment: dict[str, Holding] = {}
    for pid, generation in _generations().items():
        role = ROLES[min(generation, len(ROLES) - 1)]
        moment[role] = Holding.of(pid).beside(moment.get(role, Holding()))
    return moment


def read_at_rest(workers: int) -> Moment:
    """Read when there are so many workers and two looks see the same; after a while, whatever there is.

    A thread that has done its work and a worker that was killed take a moment to be gone.
    """
    gc.collect()  # what only waits for the collector is no leak
    _give_back()
    deadline = time.monotonic() + PATIENCE
    before = _counts(read())
    while True:
        time.sleep(PAUSE)
        moment = read()
        now = _counts(moment)
        if now == before and moment.get("workers", Holding()).processes == workers:
            return moment
        if time.monotonic() > deadline:
            return moment
        before = now


def _give_back() -> None:
    """Have the C library give back to the system what it keeps free, where it can; of that there is more by chance.

    The framing in Python lets a message's memory be cut from 32 KiB; bursts of calls left 1.3 to 2 MiB free in between.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _counts(moment: Moment) -> dict[str, dict[str, int]]:
    """Return all but memory and blocks, of which no two looks see the same."""
    return {role: {**asdict(holding), "memory": 0, "blocks": 0} for role, holding in moment.items()}


class Series:
    """Readings in their order, kept in one piece of memory: as objects they would be seen in what they tell."""

    def __init__(self, moments: Iterable[Moment] = ()) -> None:
        self._numbers = array("q")
        for moment in moments:
            self.append(moment)

    def append(self, moment: Moment) -> None:
        """Add a reading; a role without processes holds nothing."""
        for role in ROLES:
            holding = moment.get(role, Holding())
            self._numbers.extend(getattr(holding, kind) for kind in KINDS)

    def __len__(self) -> int:
        return len(self._numbers) // (len(ROLES) * len(KINDS))

    def of(self, role: str, kind: str) -> Sequence[int]:
        """Return what was read of one kind and role."""
        return self._numbers[ROLES.index(role) * len(KINDS) + KINDS.index(kind) :: len(ROLES) * len(KINDS)]
