"""How many workers a pool has by default: the CPUs that this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def default_size() -> int:
    """CPUs by affinity, or less where the cgroup's quota or ``PAIRPOOL_WORKERS`` says so.

    (The stdlib: `os.process_cpu_count()` since 3.13, `os.cpu_count()` before; a container's quota is not seen.)
    """
    process_cpu_count = getattr(os, "process_cpu_count", None)
    cpus = (process_cpu_count() if process_cpu_count is not None else len(os.sched_getaffinity(0))) or 1
    most = os.environ.get("PAIRPOOL_WORKERS") or str(cpus)
    try:
        return max(1, min(cpus, _quota() or cpus, int(most)))
    except ValueError:
        raise ValueError(f"PAIRPOOL_WORKERS must be a number of workers, not {most!r}") from None


def _quota(root: str = "/sys/fs/cgroup", member: str = "/proc/self/cgroup") -> int | None:
    """CPUs that the cgroup (v2) of this process may use, rounded up; None where there is no limit to be read."""
    try:
        path = next(line[3:] for line in Path(member).read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    least: float | None = None
    folder = Path(root + path)
    while True:
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            cpus = int(quota) / int(period)
            least = cpus if least is None else min(least, cpus)
        except (OSError, ValueError, ZeroDivisionError):
            pass  # no such file at the root, "max", or something odd: no limit at this level
        if folder == Path(root) or folder == folder.parent:
            return math.ceil(least) if least else None
        folder = folder.parent
