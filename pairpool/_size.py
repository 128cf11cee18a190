"""How many workers a pool has by default, and how much memory it takes for what is under way: what is really there."""

from __future__ import annotations

import math
import os
from functools import cache

from pairpool import _cgroup

TRANSIT_SHARE = 4  # of the memory, that what is under way may take: one in so many bytes


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


@cache
def transit_limit() -> int:
    """Bytes that a map may have under way: a quarter of the machine's memory, or of what the cgroup may use."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, _cgroup.memory_limit() or machine) // TRANSIT_SHARE


def _quota() -> int | None:
    """CPUs that the cgroup of this process may use, rounded up; None where there is no limit to be read."""
    least: float | None = None
    for folder in _cgroup.folders():
        limit = _cgroup.numbers(f"{folder}/cpu.max")  # the time in each period that may be used, and the period
        if len(limit) == 2 and limit[1]:
            cpus = limit[0] / limit[1]
            least = cpus if least is None else min(least, cpus)
    return math.ceil(least) if least else None
