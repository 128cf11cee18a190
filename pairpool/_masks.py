"""Which signals a thread has blocked.

A mask belongs to a thread, and threads and processes that it starts inherit it.
"""

from __future__ import annotations

# The C functions behind those of the signal module, which make enum members of all they return:
# 60 us for a full mask, and some 40 pages for a worker to copy, a tenth of what it copies to start.
import _signal  # type: ignore[import-not-found]
import signal
from collections.abc import Collection
from typing import Final

# They tell of a fault in the thread itself: where they are blocked the kernel kills without a word of faulthandler's.
FAULTS: Final = frozenset(
    {
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
        signal.SIGABRT,
    }
)
_OTHERS: Final = tuple(map(int, signal.valid_signals() - FAULTS))


def blocked_signals() -> Collection[int]:
    """Return the signals that the calling thread has blocked.

    Asked before `shut_out_signals`, which may raise what a handler raises when it has done its work.
    """
    mask: Collection[int] = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    return mask


def shut_out_signals() -> None:
    """Block every signal in the calling thread but those that tell of a fault."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _OTHERS)


def shut_out_interrupt() -> None:
    """Block SIGINT in the calling thread, and in what it executes."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGINT,))


def let_in_signals(mask: Collection[int]) -> None:
    """Set the mask that `blocked_signals` returned."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
