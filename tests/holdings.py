"""What a process holds that a pool could leave behind, read from /proc.

Four kinds are looked at: open descriptors, running threads, child processes (zombies too: an
unreaped child is a leftover) and shared mappings. `Holdings.now()` takes them, and
`remains(before)` says in words what has come since and stayed.

Not everything that stays is a leftover of ours. The standard library keeps some things for the
life of the process, on purpose, from their first use on; `STDLIB_KEEPS` names them, and the
functions below it find exactly those and nothing that merely looks alike.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import select
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

STDLIB_KEEPS = {
    "the fork server": "one process and one pipe, started by the first forkserver process and "
    "kept for the next one; there is no public way to stop it",
    "the resource tracker": "one process and one pipe, started by the first semaphore or spawned "
    "process; it must outlive everything that it tracks",
    "arenas of multiprocessing.heap": "the memory under Value and Array goes back to a free list "
    "of the library's, never to the system; a file /dev/shm/pym-* for each arena",
}

GRACE = 5.0  # seconds for what is ending already: a thread or child that was told to stop

# What a shared mapping looks like in /proc/self/maps. Files of the system that are mapped shared
# (the cache of iconv, a locale) do not begin so.
_SHARED_MEMORY = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV")
_ARENA = "/dev/shm/pym-"


def _stdlib_processes() -> set[int]:
    server = multiprocessing.forkserver._forkserver
    tracker = resource_tracker._resource_tracker
    pids = (getattr(server, "_forkserver_pid", None), getattr(tracker, "_pid", None))
    return {pid for pid in pids if pid is not None}


def _stdlib_descriptors() -> set[int]:
    server = multiprocessing.forkserver._forkserver
    tracker = resource_tracker._resource_tracker
    ends = (getattr(server, "_forkserver_alive_fd", None), getattr(tracker, "_fd", None))
    return {end for end in ends if end is not None}


def _descriptors() -> Iterator[tuple[int, str]]:
    """Every open descriptor with the kind of thing it leads to, such as ``socket:[4711]``."""
    kept = _stdlib_descriptors()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        if int(name) not in kept and not target.startswith(_ARENA):
            yield int(name), target


def _children() -> Iterator[tuple[int, str]]:
    """Every process whose parent we are, with its name and state."""
    kept = _stdlib_processes()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path(f"/proc/{entry}/stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and the reading
        # The name stands in brackets and may hold anything, brackets and blanks too.
        name, _, rest = text.partition(" (")[2].rpartition(") ")
        state, parent = rest.split()[:2]
        if int(parent) == os.getpid() and int(entry) not in kept:
            yield int(entry), f"{name} ({state})"


def _mappings() -> Iterator[tuple[str, str]]:
    """Every mapping of shared memory: its address and what is mapped."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        address, _, _, _, _, *path = line.split(maxsplit=5)
        target = path[0] if path else ""
        if target.startswith(_SHARED_MEMORY) and not target.startswith(_ARENA):
            yield address, target


@dataclass(frozen=True)
class Holdings:
    """All that a process holds at one moment."""

    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[threading.Thread]
    children: frozenset[tuple[int, str]]
    mappings: frozenset[tuple[str, str]]

    @classmethod
    def now(cls) -> Holdings:
        """Return what this process holds now."""
        return cls(
            descriptors=frozenset(_descriptors()),
            threads=frozenset(threading.enumerate()),
            children=frozenset(_children()),
            mappings=frozenset(_mappings()),
        )

    def since(self, before: Holdings) -> list[str]:
        """Return, in words, what is held now and was not held before."""
        running = {pid for pid, _ in before.children}
        return [
            *(f"descriptor {fd} -> {to}" for fd, to in sorted(self.descriptors - before.descriptors)),
            *(f"thread {thread.name}" for thread in self.threads - before.threads),
            *(f"child {pid} {what}" for pid, what in self.children if pid not in running),
            *(f"mapping {at} of {what}" for at, what in sorted(self.mappings - before.mappings)),
        ]


def remains(before: Holdings, grace: float = GRACE) -> list[str]:
    """Return what is left since `before`, after what is ending has had `grace` seconds to end."""
    if not Holdings.now().since(before):
        return []
    gc.collect()  # an object in a cycle holds its descriptors until it is collected
    multiprocessing.active_children()  # the library reaps its finished children here, and only here
    deadline = time.monotonic() + grace
    now = Holdings.now()
    for thread in now.threads - before.threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    running = {pid for pid, _ in before.children}
    for pid in {pid for pid, _ in now.children} - running:
        _wait_ended(pid, deadline)
    multiprocessing.active_children()
    return Holdings.now().since(before)


def _wait_ended(pid: int, deadline: float) -> None:
    """Wait until a child has ended; whoever started it has to reap it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        os.close(pidfd)
