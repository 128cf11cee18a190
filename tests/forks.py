"""Runs part of a test in a forked child, where it may change what belongs to the whole process."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def fork_child(work: Callable[[], object]) -> int:
    """Fork a child that does this and ends, with exit code 1 where it raises; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    """Wait until a child has ended; return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_in_child(work: Callable[[], object]) -> int:
    """Do this in a child and return its exit code."""
    return exit_code(fork_child(work))


def open_descriptors() -> dict[str, str]:
    """Return this process's open descriptors and what each leads to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the descriptor of the listing itself
    return found
