"""Tasks that have their worker answer nonsense, as one would whose memory was overwritten.

Kept free of pytest: a worker of the spawn method imports this module before its first task.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import sys
from array import array
from collections.abc import Callable
from types import FrameType
from typing import Any

from pairpool import _channel, _framing
from pairpool._framing_py import ONE_UNIT
from pairpool._packet import COMMITTED_HEAD, OUTCOMES_HEAD, Kind, OutcomeMode, Status
from pairpool._worker import Worker


def worker_here() -> Worker:
    """Return the worker that runs the caller: it is further up on the stack."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        for found in frame.f_locals.values():
            if isinstance(found, Worker):
                return found
        frame = frame.f_back
    raise AssertionError("nothing that a worker runs")


def lie(how: str) -> None:
    """Answer in the way that is named, and wait for the end."""
    worker = worker_here()
    LIES[how](worker, worker._runner.page.read().packet)  # type: ignore[attr-defined]
    signal.pause()


def lie_once(marker: str, how: str) -> None:
    """As an initializer: lie in the first worker that comes here, and in no other."""
    try:
        os.mkdir(marker)
    except FileExistsError:
        return
    lie(how)


def _outcomes(mode: int, first: int, units: int, *payloads: bytes) -> Callable[[Worker, int], None]:
    def send(worker: Worker, packet: int) -> None:
        worker.send(Kind.OUTCOMES, packet, [OUTCOMES_HEAD.pack(mode, first, units, 0), *payloads])

    return send


def _message(kind: int, *buffers: bytes) -> Callable[[Worker, int], None]:
    return lambda worker, packet: worker.send(kind, packet, buffers)


def _raw(message: bytes, *descriptors: int) -> Callable[[Worker, int], None]:
    def send(worker: Worker, _: int) -> None:
        worker._tasks.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))])

    return send


def _spill(*descriptors: int) -> Callable[[Worker, int], None]:
    return _raw(_framing.pack(_channel.SPILLED, 1, [struct.pack("<Q", 100)]), *descriptors)


def _record(status: int, payload: bytes) -> bytes:
    return COMMITTED_HEAD.pack(len(payload), status) + payload


def _leave(units: int, records: bytes) -> Callable[[Worker, int], None]:
    """Tells of so many units with these records in the outbox, and dies."""

    def leave(worker: Worker, packet: int) -> None:
        outbox: Any = worker._runner._outbox
        outbox.begin(packet)
        outbox.memory.records[: len(records)] = records
        outbox.memory.word[0] += units * ONE_UNIT + len(records)
        os.kill(os.getpid(), signal.SIGKILL)

    return leave


SEPARATE, SHARED, COMMITTED = OutcomeMode.SEPARATE, OutcomeMode.SHARED, OutcomeMode.COMMITTED
NONE = b"\x80\x04N."  # the pickle of None

# What is done with a worker, and the packet of the one call that it runs.
LIES: dict[str, Callable[[Worker, int], None]] = {
    "no message": _raw(b"garbage"),
    "no message, and descriptors": _raw(b"garbage", 0, 1, 2),
    "the end of the channel": lambda worker, _: worker._tasks.shutdown(socket.SHUT_WR),
    "a kind that there is not": _message(99),
    "a kind that only the parent sends": _message(Kind.TASKS, b""),
    "ready again": _message(Kind.READY),
    "failed without a word": _message(Kind.FAILED),
    "too much memory, where nobody has asked": _message(Kind.FULL, (1 << 40).to_bytes(8, "little")),
    "too much memory, without saying how much": _message(Kind.FULL),
    "too much memory, in half a word": _message(Kind.FULL, b"half"),
    "outcomes without a head": _message(Kind.OUTCOMES),
    "outcomes with half a head": _message(Kind.OUTCOMES, b"half"),
    "outcomes of a mode that there is not": _outcomes(77, 0, 1, b"\0", NONE),
    "outcomes of units that there are not": _outcomes(SEPARATE, 0, 2, b"\0\0", NONE, NONE),
    "outcomes of a later unit": _outcomes(SEPARATE, 1, 1, b"\0", NONE),
    "outcomes of no unit": _outcomes(SEPARATE, 0, 0, b""),
    "more units than payloads": _outcomes(SEPARATE, 0, 1, b"\0"),
    "more payloads than units": _outcomes(SEPARATE, 0, 1, b"\0", NONE, NONE),
    "more statuses than units": _outcomes(SEPARATE, 0, 1, b"\0\0", NONE),
    "a status that there is not": _outcomes(SEPARATE, 0, 1, bytes([Status.LAST + 1]), NONE),
    "another try that nobody asked for": _outcomes(SEPARATE, 0, 1, bytes([Status.AGAIN]), NONE),
    "another try that nobody asked for, in a record": _leave(1, _record(Status.AGAIN, NONE)),
    "a shared payload of what is awaited one by one": _outcomes(SHARED, 0, 1, NONE),
    "two shared payloads": _outcomes(SHARED, 0, 1, NONE, NONE),
    "records in a message": _outcomes(COMMITTED, 0, 1, _record(Status.OK, NONE)),
    "records cut off": _leave(1, _record(Status.OK, NONE)[:-1]),
    "records that go on": _leave(1, _record(Status.OK, NONE) + b"more"),
    "fewer records than units": _leave(2, _record(Status.OK, NONE)),
    "a record with a status that there is not": _leave(1, _record(77, NONE)),
    "a refusal of what it need not have": _message(Kind.REFUSED, b"\0\0"),
    "a refusal of nothing": _message(Kind.REFUSED, b""),
    "half a refusal": _message(Kind.REFUSED, b"\0\0\0"),
    "a refusal without a word": _message(Kind.REFUSED),
    "a spilled message without its memfd": _spill(),
    "a spilled message in what is no memfd": _spill(0),
    "an outbox that is garbled": _leave(1, b"abc"),
}


def lie_of_a_map(item: int) -> None:
    """Answer a packet of one item with two results, together, and wait for the end."""
    worker = worker_here()
    packet = worker._runner.page.read().packet  # type: ignore[attr-defined]
    _outcomes(SHARED, 0, 1, pickle.dumps([item, item]))(worker, packet)
    signal.pause()
