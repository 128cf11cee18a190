"""The engine protocol: slots come and go, packets go out, events come back.

An engine offers *slots* and carries packets to the slot that it is told. It never unpickles what it carries, never
queues on its own account and never retries: the scheduler above decides all that, so that it means the same on
one machine and on many.

Rules, each held by the contract suite (tests/test_engines.py)
--------------------------------------------------------------
1. Each packet sent to a slot is answered until all its units are accounted for: by outcomes, by coming back whole
   (recalled, refused) or in part (cut), or by the end of its slot. Outcomes of a packet come in order.
2. Packets of one slot begin in the order in which they were sent. A unit begins at most once.
3. Answers are put in the dispatcher's `events`, as ``(handler, argument)``; an engine runs no handler itself.
4. `flush`, `recall`, `look`, `open` and `stop` do not block, and report trouble as events, not as exceptions.
5. When a slot ends, everything that it answered is in `events` before the event that says so, and so is
   everything sent to it that it never began.
6. `stop` of an idle slot lets its worker end by itself; after `shut` has finished nothing of the engine is left.
7. The initializer runs once a worker, before its first unit, in the thread that runs the units.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pairpool._descriptors import Owners
from pairpool._packet import Reason
from pairpool.errors import UnsupportedPlatformError

if TYPE_CHECKING:
    from pairpool._body import Body
    from pairpool._jobs import Encoder
    from pairpool._waiting import Settable

Event = tuple[Callable[[Any], None], Any]


class Kept(NamedTuple):
    """Descriptors that came with outcomes and belong to them; whoever digests the message puts owners of them here."""

    descriptors: list[int]
    owners: Owners


NOTHING_KEPT = Kept([], Owners())


class Outcomes(NamedTuple):
    """Argument of `Handlers.on_outcomes`: units `offset`.. of a packet have ended."""

    slot: int
    packet: int
    mode: int  # _packet.OutcomeMode
    offset: int
    units: int
    ran_ns: int  # 0: not known
    buffers: Sequence[Any]
    again: bool = False  # some are Status.AGAIN
    kept: Kept = NOTHING_KEPT


class SlotEnd(NamedTuple):
    """Argument of `Handlers.on_down`: a slot's worker has ended."""

    slot: int
    pid: int | None
    exitcode: int | None
    packet: int | None  # the packet that it was at
    unit: int  # the unit of it that had begun and not ended
    since: int = 0  # when that had begun, in ns of the monotonic clock
    why: str = ""  # what is known of the reason, in words
    stack: str = ""  # what it was doing, where that is known
    in_vain: bool = False  # it never took a packet


class Handlers(Protocol):
    """What an engine may put in `events`. Each handler removes its own event."""

    events: deque[Event]
    forked: bool  # this process is a forked child's copy
    waiters: int  # threads that are in `wait`

    @property
    def look_at(self) -> int | None:
        """When `drain` has to be called at the latest, in ns of the monotonic clock."""

    def on_outcomes(self, outcomes: Outcomes) -> None: ...
    def on_refused(self, refusal: tuple[int, int, tuple[int, ...]]) -> None:
        """Argument: slot, packet, which of its needs (by their places) the slot's worker has otherwise."""

    def on_unreceived(self, told: tuple[int, int]) -> None:
        """Argument: slot, packet; the slot's worker had no descriptor free to receive it with."""

    def on_unsendable(self, failure: tuple[int, BaseException]) -> None:
        """Argument: packet, why it could not be sent, though its slot is well."""

    def on_came_back(self, packet: int) -> None: ...
    def on_cut(self, cut: tuple[int, int]) -> None:
        """Argument: packet, units the worker keeps."""

    def on_open(self, slot: int) -> None:
        """A slot that was asked for by `Engine.open` can be sent packets."""

    def on_up(self, slot: int) -> None:
        """Its worker has run the initializer, or was roused."""

    def on_full(self, word: tuple[int, Any, int]) -> None:
        """Argument: slot, its worker (as of `Engine.workers`), bytes that this holds though it has ended a unit."""

    def on_failed(self, failure: tuple[int, BaseException]) -> None:
        """Argument: slot, what its initializer raised."""

    def on_unstarted(self, refusal: tuple[int, str]) -> None:
        """Argument: slot, why the system gives it no worker. Its `on_down` follows, and nothing comes in between."""

    def on_down(self, end: SlotEnd) -> None: ...
    def on_broken(self, error: BaseException) -> None:
        """The engine cannot go on."""

    def drain(self) -> None:
        """To be called after putting events; from any thread."""

    def wait(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None = None) -> bool:
        """Blocks until `ready()`; not to be called by the engine's own threads."""

    def engine_shut(self) -> None:
        """To be called when nothing of the engine is left."""

    def collapse(self, error: BaseException) -> None:
        """A thread of the engine's fails: everything pending must end with `error`."""


@dataclass
class WorkerPlan:
    """What every worker of a pool is set up with."""

    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    # Of engines whose slots are processes:
    max_memory_per_worker: int | None = None  # bytes of its own beyond which a worker tells `Handlers.on_full`, once
    memory_limit: int | None = None  # bytes that a worker's units may ask for beyond what it comes up with


class Processes(Protocol):
    """What an engine offers beyond the rest where its slots are processes: to be heard at once, watched and killed."""

    @property
    def receives_here(self) -> bool:
        """Whether the calling thread was interrupted as it receives: workers may have to wait with their end for it."""

    def exchange(self, slot: int, packet: int, sent: list[Any], heard: deque[Event]) -> tuple[int, Any] | None:
        """Sends this packet of one unit, which is in the outbox, and looks for its outcome while it pays not to sleep.

        Returns status and payload, and removes the note of the packet in `sent`, in one step. None where there is no
        answer, or another one, which is left in `heard` to be digested.
        """

    def mark(self, slot: int) -> tuple[int, int, int] | None:
        """The packet and unit that run at a slot, and since when in ns; None where none does."""

    def has_taken(self, slot: int, packet: int) -> bool:
        """Whether the slot's worker is with this packet, or has been with it last."""

    def interrupt(self, slot: int, mark: tuple[int, int, int], reason: Reason) -> None:
        """Has an exception raised in the unit that `mark` told of, if it still runs at the slot."""

    def rouse(self, slot: int) -> None:
        """Has the slot's worker answer with `on_up` when it has nothing else to do. Rather too early than never."""

    def dump(self, slot: int) -> None:
        """Has the slot's worker write down its stack, for its `SlotEnd`."""

    def terminate(self, slot: int) -> None:
        """Sends SIGTERM to the slot's worker."""

    def kill(self, slot: int) -> None:
        """Ends the slot's worker, and all that it has started."""


class Engine(Protocol):
    """See the module's head for the rules."""

    encoder: Encoder  # the caller's half of the codec
    credit: int  # bytes of packets a slot may hold
    packet_room: int  # bytes the largest packet takes of it
    body_room: int  # bytes of a packet's buffers up to which units are put together
    sure_room: int  # and up to which that takes nothing for which the system, or a worker, may have no room
    outbox: deque[Any]  # entries in the order in which they are to be sent

    @property
    def processes(self) -> Processes | None:
        """Itself, where its slots are processes."""

    def start(self, handlers: Handlers, plan: WorkerPlan, slots: Sequence[int]) -> None:
        """Comes up with a worker for each of `slots`; raises where that is impossible, leaving nothing."""

    def entry(self, slot: int, packet: int, body: Body) -> tuple[Any, int]:
        """What to put in the outbox for this packet, and what it takes of the slot's credit.

        Raises OSError or MemoryError where the system has no room for it; it may have later.
        """

    def flush(self) -> None:
        """Sends what is in the outbox."""

    def recall(self, slot: int) -> None:
        """Takes back every packet that the slot's worker has not taken."""

    def look(self, slot: int, packet: int, count: int, cut: bool) -> None:
        """Fetches outcomes committed and not yet sent; with `cut` also every unit not yet begun."""

    def open(self, slot: int) -> None:
        """Starts a worker for a new slot."""

    def stop(self, slot: int) -> None:
        """Lets the worker of a slot with nothing in flight end."""

    def condemn(self, slot: int) -> None:
        """The slot's worker answers nonsense: it is to end at once."""

    def forget(self, slot: int, definition: int) -> None:
        """The slot's worker will not be sent units of this definition again."""

    def watch_until(self, look_at: int | None) -> None:
        """The scheduler wants to be asked again at `look_at` (ns): `handlers.drain()` then, if not before."""

    def shut(self, *, kill: bool) -> None:
        """Ends the engine: after its slots have ended, or, with `kill`, by ending them. Does not wait."""

    @property
    def is_shut(self) -> bool:
        """Whether nothing of the engine is left; `handlers.engine_shut()` is called when that has come."""

    def join(self) -> None:
        """Waits until a thread of the engine's has ended that ends when it is shut, unless it is the calling one."""

    def pump(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None) -> bool:
        """Receives and drains on the calling thread until `ready()` or `timeout`.

        False at once where that is not possible: then the caller waits for a signal.
        """

    def work(self) -> bool:
        """Runs what only the caller's thread can run; called without any lock. True where there was something."""

    def workers(self) -> list[Any]:
        """Handles of the live workers, as in `multiprocessing.Pool._pool`."""


def load_engine(name: str, context: Any) -> Engine:
    """The engine of that name, imported on first use."""
    if name == "threads":
        from pairpool.engines.threads import ThreadEngine

        return ThreadEngine()
    if name == "inline":
        from pairpool.engines.inline import InlineEngine

        return InlineEngine()
    if not sys.platform.startswith("linux"):
        raise UnsupportedPlatformError(
            "pairpool's processes need Linux 5.10 or newer (pidfds, SEQPACKET, memfd); ThreadPool works everywhere"
        )
    from pairpool.engines.local import LocalEngine

    return LocalEngine(context)
