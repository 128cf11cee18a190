"""A worker process: takes packets from its channel, runs them, sends their outcomes.

One thread, the main one. It blocks in three places only: waiting for a message, sending one (the parent always
receives in the end, which also frees what the kernel lacks; where the parent is gone the dead-man pipe kills this
process), and in the user's code.
"""

from __future__ import annotations

import array
import errno
import faulthandler
import os
import pickle
import select
import socket
import struct
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from operator import not_
from typing import TYPE_CHECKING, Any

from pairpool import _channel, _codec, _descriptors, _framing
from pairpool._descriptors import Owner
from pairpool._interrupts import Interrupts
from pairpool._outbox import Outbox
from pairpool._packet import OUTCOMES_HEAD, PLACED, Flag, Kind, OutcomeMode, Status
from pairpool._page import DUMP_SIGNAL, Page
from pairpool._runner import Runner
from pairpool._slab import KEPT, Arena, Put
from pairpool.errors import PairpoolError

if TYPE_CHECKING:
    from pairpool._memory import Gauge, Limit
    from pairpool._surroundings import WorkerSetup

SPIN = 100e-6  # seconds a worker keeps looking for its next packet before it sleeps: what a wake-up costs
CONTROL_EVERY = 64  # packets after which the control channel is read even if the next packet is there already

IDLE = KEPT // 1_000_000  # ms without work after which a worker gives back the memory of its slabs

# Bytes of results in a message: those of a map wait in it, which should take no mapping.
BULK = _channel.MOST_READ - 4096

_SOME_LOST = int(socket.MSG_CTRUNC)  # descriptors; plain: an `&` with the module's flags is a microsecond
_PAYLOADS = 2  # place of the first payload among the buffers of outcomes that have one each
_ONLY_BYTES = frozenset((bytes,))

# Why the kernel may refuse to send for a while: no memory, or as many descriptors in flight as this user may have.
_REFUSALS = frozenset((errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS))
_REST = 0.005  # seconds until it is asked again; nothing tells when that is over


def run(setup: WorkerSetup, slot: int, descriptors: tuple[int, ...]) -> None:
    """The life of a worker. `descriptors`: tasks, control, outbox, and those of the page."""
    kind = (socket.AF_UNIX, socket.SOCK_SEQPACKET, 0)
    tasks = socket.socket(*kind, fileno=descriptors[0])
    control = socket.socket(*kind, fileno=descriptors[1])
    # What a task forks has none of it: neither its children nor the zygotes of pools that it makes.
    _descriptors.register(tasks, control)
    gauge, limit = _rations(setup)
    with (
        tasks,
        control,
        _crashes_told(descriptors[3:]),
        closing(Outbox.attach(descriptors[2])) as outbox,
        closing(Page.attach(descriptors[3:])) as page,
        nullcontext() if gauge is None else closing(gauge),
    ):
        worker = Worker(tasks, control, outbox, page, gauge, limit)
        if setup.initializer is not None:
            initializer = setup.initializer if limit is None else limit.holding(setup.initializer)
            try:
                initializer(*setup.initargs)
            except BaseException as error:
                # The stdlib's worker would die with this traceback, and be replaced for ever.
                worker.send(Kind.FAILED, slot, [traceback.format_exc().encode("utf-8", "backslashreplace")])
                if isinstance(error, Exception):
                    traceback.print_exc()
                    sys.exit(1)
                raise
        worker.send(Kind.READY, slot, [])
        worker.serve()


def _rations(setup: WorkerSetup) -> tuple[Gauge | None, Limit | None]:
    """What minds the memory of a worker that has just come up."""
    most, room = setup.max_memory_per_worker, setup.memory_limit
    if most is None and room is None:
        return None, None
    from pairpool import _memory  # is there already: see WorkerSetup.resolve_entry

    return None if most is None else _memory.Gauge(most), None if room is None else _memory.Limit(room)


@contextmanager
def _crashes_told(page: tuple[int, ...]) -> Iterator[None]:
    """Has the stack written to the page when it is asked for, and when this process crashes.

    Where the user has enabled faulthandler himself, crashes are told where he wants it.
    """
    with closing(Page.dump_file(page)) as file:
        ours = not faulthandler.is_enabled()
        forget = _forget_all if ours else _forget_asked
        _descriptors.register(file)
        # In a child of a task the file is closed, and its number may be another's when it crashes.
        _descriptors.call_after_fork_in_child(forget)
        faulthandler.register(DUMP_SIGNAL, file.fileno(), chain=False)
        if ours:
            faulthandler.enable(file.fileno())
        try:
            yield
        finally:
            forget()


def _forget_all() -> None:
    faulthandler.disable()
    _forget_asked()


def _forget_asked() -> None:
    faulthandler.unregister(DUMP_SIGNAL)


class _PickleCodec:
    """The codec as the runner takes it."""

    def __init__(self, slabs: Arena) -> None:
        decoder = _codec.Decoder()  # before the initializer runs: it remembers what the main module had
        self._refused = decoder.refused
        self.loads = decoder.loads
        self.encode_value = partial(_codec.encode_result, put=slabs.put)

    def refused(self, data: Any) -> bytes | None:
        needs = _codec.loads_needs(data)
        refused = self._refused(needs)
        # By their places: the parent, which has sent them, need not unpickle anything to know them.
        places = [place for place, need in enumerate(needs) if need in refused]
        return struct.pack(f"<{len(places)}H", *places) if places else None

    def kept(self, data: Any) -> bytes:
        return bytes(data)

    is_nothing = staticmethod(not_)

    def has_nothing(self, payloads: Sequence[Any]) -> bool:
        return not all(map(len, payloads))

    def loading(self, payloads: Sequence[Any]) -> _Loading:
        return _Loading(payloads)

    may_wait = staticmethod(_framing.is_settled)
    encode_values = staticmethod(_codec.Encoder.dumps_atoms)

    def encode_error(self, error: BaseException) -> bytes:
        # A result that cannot be pickled is no error of the task: as in the stdlib it shows no remote traceback.
        return _codec.encode_error(error, wrap=not isinstance(error, _codec.MaybeEncodingError))

    def portions(self, payloads: list[Any]) -> list[int]:
        if _ONLY_BYTES.issuperset(map(type, payloads)) and sum(map(len, payloads)) <= BULK:
            return [len(payloads)]
        portions, room = list[int](), 0
        for payload in payloads:
            # A message brings one result's slab at most: many may come before the first is digested.
            size = len(payload) if type(payload) is bytes else BULK
            if not portions or size > room:
                portions.append(0)
                room = BULK
            portions[-1] += 1
            room -= size
        return portions


class _Loading:
    """What is in pickles; each is loaded when its unit runs."""

    __slots__ = ("_pickles",)

    def __init__(self, pickles: Sequence[Any]) -> None:
        self._pickles = pickles

    def __getitem__(self, unit: int) -> Any:
        return pickle.loads(self._pickles[unit])


class Worker:
    """The process's ends of its channels, and the runner between them."""

    _inline = 0  # outcomes are to go without slabs, as far as they can

    def __init__(
        self,
        tasks: socket.socket,
        control: socket.socket,
        outbox: Outbox,
        page: Page,
        gauge: Gauge | None = None,
        limit: Limit | None = None,
    ) -> None:
        self._tasks = tasks
        self._control = control
        self._gauge = gauge
        self._look = None if gauge is None else self._look_at_gauge
        # Who has no options about memory makes no call more for them.
        self._slabs = Arena()
        codec, self._send = _PickleCodec(self._slabs), self.send
        if limit is not None:
            self._send = limit.lifting(self.send)
            codec.encode_values = limit.lifting(codec.encode_values)
            codec.encode_error = limit.lifting(codec.encode_error)  # type: ignore[method-assign]
        interrupts = Interrupts(page)
        interrupts.install()
        self._runner = Runner(codec, page, outbox, self._send, interrupts, self._look)
        _codec.find_with(self._runner.shared)
        self._run = self._runner.run if limit is None else limit.holding(self._runner.run)
        self._arrivals: deque[tuple[Any, Any]] = deque()
        self._stopped = False

    def send(self, kind: int, ident: int, buffers: Sequence[Any]) -> None:
        """Sends one message, blocking while the channel is full. Outcomes for which there is no slab go in parts."""
        outcomes, descriptors = buffers, tuple[int, ...]()
        if not _ONLY_BYTES.issuperset(map(type, buffers)):
            buffers, descriptors = _placed(buffers)
        message = _framing.pack(kind, ident, buffers)
        if len(message) <= _framing.MESSAGE_LIMIT:
            self._transmit(message, descriptors)
            return
        put: Put = self._slabs.put_anyway
        head = bytes(buffers[0]) if kind == Kind.OUTCOMES else b""
        if head and self._inline and OUTCOMES_HEAD.unpack(head)[2] > 1:
            put = _no_slab
        try:
            message, slab = _channel.spill(message, ident, put, head)
        except (OSError, MemoryError) as error:
            if kind != Kind.OUTCOMES:
                raise
            for part in _in_parts(outcomes, error):
                self.send(kind, ident, part)
            return
        with closing(slab):
            self._transmit(message, (slab.fileno(), *descriptors))

    def _transmit(self, message: bytes, descriptors: tuple[int, ...]) -> None:
        while True:
            try:
                if descriptors:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                    self._tasks.sendmsg([message], rights)
                else:
                    self._tasks.sendall(message)
                return
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                time.sleep(_REST)

    def serve(self) -> None:
        """Runs packets until told to stop, or until the parent is gone."""
        poll = select.poll()
        poll.register(self._tasks, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        arrivals = self._arrivals
        look = self._look
        since_control = 0
        while not self._stopped:
            if _framing.await_message(self._tasks, arrivals, None, SPIN):
                if not self._take_packet(arrivals.popleft()[1]):
                    return
                if look is not None:
                    look()  # only here, where nothing of the packet is in memory any more
                since_control += 1
                if since_control < CONTROL_EVERY:
                    continue
            elif not poll.poll(None if self._slabs.trim_at is None else IDLE):
                self._slabs.trim()
                poll.poll()
            since_control = 0
            self._read_control()

    def _take_packet(self, raw: Any) -> bool:
        """Runs one packet; False where the parent is gone."""
        message, received = _framing.admit(raw, some_lost=True)
        if not message:
            return False
        if raw[2] & _SOME_LOST:
            # No descriptor is free here, or none is allowed: the parent may have smaller packets, or another worker.
            _descriptors.close_all(received)
            self.send(Kind.UNRECEIVED, _framing.unpack(message)[1], [])
            return True
        kind, ident, buffers = _framing.unpack(message)
        if kind == _channel.SPILLED:
            kind, buffers = _channel.fetch(ident, buffers, received)
            os.close(received[0])
            received = received[1:]
        if kind == Kind.TASKS:
            self._inline = buffers[0][1] & Flag.INLINE
            self._run(ident, buffers, received)
        return True

    def _look_at_gauge(self) -> None:
        """Tells the parent, once, that this process holds more memory than it may between units."""
        if self._gauge is not None and (used := self._gauge.excess()):
            self._gauge = None
            self._send(Kind.FULL, 0, [used.to_bytes(8, "little")])

    def _read_control(self) -> None:
        arrivals = self._arrivals
        while _framing.receive(self._control, arrivals, None, 1):
            message, _ = _framing.admit(arrivals.popleft()[1])
            if not message:
                self._stopped = True  # the parent wants no more of this worker, or is gone
                return
            kind, slot, buffers = _framing.unpack(message)
            if kind == Kind.FORGET:
                self._runner.forget(buffers[0].cast("Q"))
            elif kind == Kind.ROUSE:
                self.send(Kind.READY, slot, [])


def _no_slab(_parts: Sequence[Any], _starts: Sequence[int], _end: int) -> Owner:
    raise OSError(errno.EMFILE, "the caller has no descriptors to receive slabs with")


def _in_parts(buffers: Sequence[Any], error: BaseException) -> list[list[Any]]:
    """Outcomes that do not fit into a message, in two; of one alone that cannot be sent it is the error.

    `error`: why there is no slab for them.
    """
    mode, first, units, took = OUTCOMES_HEAD.unpack(buffers[0])
    payloads: list[Any]
    if units == 1:
        problem = PairpoolError(f"the result could not be sent: {error!r}")
        statuses, payloads = bytes([Status.ERROR]), [_codec.encode_error(problem, wrap=False)]
    elif mode == OutcomeMode.SHARED:
        values: Any = _codec.decode_result(buffers[1])
        statuses, payloads = bytes(units), [_codec.encode_result(value) for value in values]
    else:
        statuses, payloads = buffers[1], [*buffers[_PAYLOADS:]]
    parts = [range(units // 2), range(units // 2, units)]
    return [
        [
            OUTCOMES_HEAD.pack(OutcomeMode.SEPARATE, first + part.start, len(part), took * len(part) // units),
            statuses[part.start : part.stop],
            *payloads[part.start : part.stop],
        ]
        for part in parts
        if part
    ]


def _placed(buffers: Sequence[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """The buffers of outcomes some of which lie in slabs, and the slabs' descriptors."""
    sent, descriptors, places = list(buffers), list[int](), list[bytes]()
    for place, payload in enumerate(buffers[_PAYLOADS:]):
        if type(payload) is _codec.Payload:
            sent[_PAYLOADS + place] = payload.data
            if payload.weight:
                descriptors += payload.descriptors
                places.append(PLACED.pack(place, payload.weight))
    if places:
        sent.append(b"".join(places))
    return sent, tuple(descriptors)
