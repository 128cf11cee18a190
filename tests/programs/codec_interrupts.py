"""Pickles descriptors while a timer interrupts it again and again.

Prints how often it was interrupted, and that no descriptor is left.
"""

from __future__ import annotations

import os
import random
import signal
import socket
from typing import Any

from pairpool._codec import Encoder, Payload

ROUNDS = 3000
LONGEST = 150e-6  # seconds from the start of an attempt to its interrupt


def interrupt(*_: object) -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def dumps(encoder: Encoder, obj: object) -> Payload:
    """Pickle what has descriptors."""
    payload = encoder.dumps(obj)
    assert isinstance(payload, Payload)
    return payload


def main() -> None:
    """Pickle and drop."""
    encoder, interrupts, delays = Encoder(inherited=True), 0, random.Random(0)
    ours, theirs = socket.socketpair()
    signal.signal(signal.SIGALRM, interrupt)
    before = os.listdir("/proc/self/fd")
    obj: Any = [ours, lambda: ours.family, theirs]
    for _ in range(ROUNDS):
        try:
            signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-6, LONGEST))
            dumps(encoder, obj).close()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupts += 1
    assert os.listdir("/proc/self/fd") == before
    assert len(dumps(encoder, obj).descriptors) == 2
    print(f"{interrupts} interrupts, none left")


if __name__ == "__main__":
    main()
