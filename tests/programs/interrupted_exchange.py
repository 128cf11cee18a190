"""Exchanges numbered messages while a timer interrupts it again and again: ``interrupted_exchange.py TWIN``.

Everything is sent and received in the main thread, where signal handlers run. Prints how many interrupts were
caught; ends with an AssertionError if a message was lost, doubled or out of order.
"""

from __future__ import annotations

import random
import signal
import sys
from collections import deque
from importlib import import_module
from socket import AF_UNIX, SOCK_SEQPACKET, socketpair
from typing import Any

MESSAGES = 20_000
LONGEST = 150e-6  # seconds from the start of an attempt to its interrupt


def interrupt(*_: object) -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def exchange(twin: Any, outgoing: Any, arrivals: Any, end: Any, limits: random.Random) -> None:
    """Send and receive until nothing is left on the way."""
    while True:
        sent = twin.flush(outgoing)
        if not twin.receive(end, arrivals, 7, limits.randrange(1, 40)) and sent:
            return


def main(twin: Any) -> None:
    """Send and receive every message, whatever comes in between."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    outgoing = deque((ours, twin.pack(1, number, []), ()) for number in range(MESSAGES))
    arrivals: deque[tuple[int, Any]] = deque()
    delays = random.Random(0)
    interrupts = 0
    signal.signal(signal.SIGALRM, interrupt)
    while True:
        # The timer fires once, and only inside the try block: so nothing but the exchange is interrupted.
        # The loop stands in a function of its own, because CPython 3.12 and 3.13 let an interrupt at the end
        # of its turn escape from a try statement that holds the loop itself (python/cpython#130279).
        try:
            signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-6, LONGEST))
            exchange(twin, outgoing, arrivals, theirs, delays)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.pthread_sigmask(signal.SIG_BLOCK, ())  # runs the handler of a signal that came before
            break
        except KeyboardInterrupt:
            interrupts += 1
    assert not outgoing
    assert {tag for tag, _ in arrivals} == {7}
    ours.close()
    theirs.close()
    assert [twin.unpack(raw[0])[1] for _, raw in arrivals] == list(range(MESSAGES))
    print(interrupts)


main(import_module(sys.argv[1]))
