"""What the cgroup (v2) of this process says: limits of processors and memory, and deaths for want of it.

It is read in calls that a signal handler may strike. So this does without pathlib, which goes on in `except` clauses
when it puts a path together for the first time: an interrupt there shows two errors.
"""

from __future__ import annotations

import os

from pairpool._descriptors import own
from pairpool._strikes import came_from_handler

LARGEST = 1 << 16  # bytes of such a file
ROOT = "/sys/fs/cgroup"
MEMBERSHIP = "/proc/self/cgroup"


def read(path: str) -> bytes:
    """What is in a small file; nothing where there is no such file, or none that may be read."""
    try:
        file = own(os.open, path, os.O_RDONLY)
        content = os.read(file.fileno(), LARGEST)
        file.close()
        return content
    except OSError as error:
        problem = error
    try:  # outside: an interrupt that strikes here shows no other error
        if came_from_handler(problem):
            raise problem
    finally:
        del problem  # no cycle through the traceback
    return b""


def folders() -> list[str]:
    """The folders of this process's cgroup and of those that it lies in, up to the root; none where there is no v2."""
    # No generator: what is raised where one is closed that nobody wants any more, Python only prints.
    found: list[str] = []
    for line in os.fsdecode(read(MEMBERSHIP)).splitlines():
        if line.startswith("0::"):
            folder = (ROOT + line[3:]).rstrip("/")
            found.append(folder)
            while folder not in (ROOT, ""):
                folder = folder.rpartition("/")[0]
                found.append(folder)
    return found


def numbers(path: str) -> list[int]:
    """The numbers in such a file; none where one is "max", no limit, or something odd."""
    words = read(path).split()
    return [int(word) for word in words] if all(map(bytes.isdigit, words)) else []


def memory_limit() -> int | None:
    """Bytes that this process's cgroup may use; None where there is no limit."""
    return min([limit for folder in folders() for limit in numbers(f"{folder}/memory.max")], default=None)


def oom_kills() -> int | None:
    """How many processes of this cgroup the kernel has killed for want of memory; None where nobody counts.

    (The ``oom_kill`` of memory.events: by any kind of OOM killer, the machine's as well as the cgroup's.)
    """
    for folder in folders()[:1]:
        for line in read(f"{folder}/memory.events").splitlines():
            name, _, count = line.partition(b" ")
            if name == b"oom_kill" and count.isdigit():
                return int(count)
    return None


class OomWatch:
    """Tells of deaths by SIGKILL whether they were for want of memory."""

    def __init__(self) -> None:
        self._known = oom_kills()

    def verdict(self) -> str:
        """What the kernel's count says of a worker that has just been killed, in words."""
        before, self._known = self._known, oom_kills()
        if before is None or self._known is None:
            return "perhaps out of memory"
        if self._known > before:
            return "out of memory: the kernel counts one more process of this cgroup killed for that"
        return "not out of memory, by the kernel's count"
