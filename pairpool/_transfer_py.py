"""Messages between processes, sent and received in Python: `_framing_py` has what is in them.

How a step is made uninterruptible is said there.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections import deque
from functools import partial
from itertools import compress, count, repeat
from operator import call
from socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, SCM_RIGHTS, SOL_SOCKET
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    import select
    import socket
    from collections.abc import Callable

Raw: TypeAlias = tuple[bytes, list[tuple[int, int, bytes]], int, Any]  # the value of socket.recvmsg()
Arrivals: TypeAlias = deque[tuple[Any, Raw]]
Outgoing: TypeAlias = "deque[tuple[socket.socket, bytes, tuple[int, ...]]]"

MESSAGE_LIMIT: Final = 32 * 1024  # bytes, header included; one message takes a sixth of the usual SO_SNDBUF
READY_LIMIT: Final = 256  # descriptors told by one wait_ready(); the kernel begins with the others next time
_LONGEST_POLL = 2_000_000.0  # seconds; epoll_wait() counts milliseconds in 31 bits

# As many descriptors as the kernel lets one message carry (SCM_MAX_FD), and the sender's credentials.
_ANCILLARY_SPACE = CMSG_SPACE(253 * array("i").itemsize) + CMSG_SPACE(struct.calcsize("3i"))

# MSG_DONTWAIT for each call: O_NONBLOCK would bind everybody who holds the same end.
_SEND_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL
_RECEIVE_FLAGS = MSG_DONTWAIT | MSG_CMSG_CLOEXEC

# A full queue; no kernel memory; as many descriptors in flight as this user may have. All of them pass.
_BACK_PRESSURE = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS))

# What recvmsg() returns from then on when the other side is gone. A message of no bytes looks the same; one
# of no bytes that brought a descriptor does not, and is a message like any other.
_END: Raw = (b"", [], MSG_CMSG_CLOEXEC, None)


_call: Callable[[Callable[[], object]], object] = call  # its own type is too general for map()


def flush(outgoing: Outgoing, /) -> bool:
    """Send entries ``(socket, message, descriptors)`` from the left; False when the kernel pushes back.

    Never waits. An entry is sent and removed in one uninterruptible step. Where sending raises OSError the
    entry is still there, at the left end. One caller at a time; others may append meanwhile.
    """
    try:
        while outgoing:
            sock, message, descriptors = outgoing[0]
            ancillary = [(SOL_SOCKET, SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            send = partial(sock.sendmsg, (message,), ancillary, _SEND_FLAGS)
            send_and_remove: tuple[Callable[[], object], ...] = (send, outgoing.popleft)
            deque(map(_call, send_and_remove), maxlen=0)
    except OSError as error:
        if error.errno not in _BACK_PRESSURE:
            raise
        return False
    return True


def receive(sock: socket.socket, arrivals: Arrivals, tag: object, limit: int, /) -> int:
    """Append ``(tag, value of sock.recvmsg())`` for up to `limit` messages that are there; return how many.

    Never waits. A message is received and appended in one uninterruptible step. When the other side is gone
    and all that it sent has been received, one message of no bytes is appended (at each call).
    """
    # iter() ends at _END and compress() counts what was appended: len(arrivals) would not do, because
    # another thread may take from it. The limited iterator stands first: zip() asks it first.
    received = count(1)
    messages = iter(partial(sock.recvmsg, MESSAGE_LIMIT, _ANCILLARY_SPACE, _RECEIVE_FLAGS), _END)
    ended = reset = False
    try:
        arrivals.extend(compress(zip(repeat(tag, limit), messages, strict=False), received))
        ended = True
    except BlockingIOError:
        pass  # nothing more is there; what follows stands outside, or an interrupt would show this error too
    except ConnectionResetError:
        reset = True
    taken = next(received) - 1
    if reset:
        # Told once, and before the messages that the other side sent: it closed with ours unread.
        return taken + receive(sock, arrivals, tag, limit - taken)
    if ended and taken < limit:
        arrivals.append((tag, _END))  # a step of its own: the end is told again if an interrupt takes this
        taken += 1
    return taken


def await_message(sock: socket.socket, arrivals: Arrivals, tag: object, spin: float, /) -> int:
    """As ``receive(..., limit=1)``, but try for up to `spin` seconds, yielding the processor each turn."""
    deadline = monotonic() + spin
    while not receive(sock, arrivals, tag, 1):
        if not monotonic() < deadline:
            return 0
        os.sched_yield()
    return 1


def wait_ready(epoll: select.epoll, spin: float, timeout: float | None, /) -> list[int]:
    """Return the descriptors that are ready on a `select.epoll`; an empty list when the time is over.

    Tries for up to `spin` seconds, yielding the processor in every turn, then waits for up to `timeout`
    seconds more (None: for ever; zero or less: not at all). At most READY_LIMIT descriptors are told at
    once.
    """
    deadline = monotonic() + spin
    while spin > 0:
        events = epoll.poll(0, READY_LIMIT)
        if events:
            return [descriptor for descriptor, _ in events]
        if not monotonic() < deadline:
            break
        os.sched_yield()
    if timeout is not None:
        timeout = min(max(0.0, timeout), _LONGEST_POLL)
    events = epoll.poll(timeout, READY_LIMIT)
    return [descriptor for descriptor, _ in events]
