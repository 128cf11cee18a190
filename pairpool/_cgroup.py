"""What the cgroup (v2) of this process says: limits of processors and memory, and deaths for want of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def folders() -> Iterator[Path]:
    """The folders of this process's cgroup and of those that it lies in, up to the root; none where there is no v2."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::"):
            folder = Path(f"{ROOT}{line[3:]}")
            yield folder
            while folder not in (ROOT, folder.parent):
                folder = folder.parent
                yield folder


def memory_limit() -> int | None:
    """Bytes that this process's cgroup may use; None where there is no limit."""
    limits = []
    for folder in folders():
        try:
            limits.append(int((folder / "memory.max").read_text()))
        except (OSError, ValueError):
            pass  # no such file at the root, or "max": no limit at this level
    return min(limits, default=None)


def oom_kills() -> int | None:
    """How many processes of this cgroup the kernel has killed for want of memory; None where nobody counts.

    (The ``oom_kill`` of memory.events: by any kind of OOM killer, the machine's as well as the cgroup's.)
    """
    for folder in folders():
        try:
            events = dict(line.split() for line in (folder / "memory.events").read_text().splitlines())
            return int(events["oom_kill"])
        except (OSError, ValueError, KeyError):
            return None
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
