"""What the scheduler keeps of jobs, packets and slots, and what it decides; every move of states, as tables.

Everything that decides what may follow what lives here; _scheduler.py looks up each move and never sets a
state otherwise. A move that is not in the table is a KeyError that names state and event: a fault of ours.
DESIGN.md shows both tables as ``python -m pairpool states`` prints them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol, TypeVar

State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)


class SlotState(StrEnum):
    ASKED = "asked"  # a worker has been asked for
    STARTING = "starting"  # it has channels: packets may be queued for its worker, which is not up yet
    IDLE = "idle"  # up, nothing in flight
    BUSY = "busy"  # up, at least one packet in flight
    RETIRING = "retiring"  # takes no more packets; told to stop once nothing is in flight
    GONE = "gone"  # its worker has ended


class SlotEvent(StrEnum):
    OPEN = "open"  # the engine has made its channels
    UP = "up"  # its worker has run the initializer
    ASSIGN = "assign"  # a packet was sent
    DRAIN = "drain"  # the last packet in flight was settled or came back
    RETIRE = "retire"  # the pool shrinks, or the worker has done its share of tasks or holds too much memory
    DOWN = "down"  # its worker ended, for whatever reason


class Moves(dict[Event, State]):
    """The moves out of one state, by event."""

    def __init__(self, state: State, moves: dict[Event, State]) -> None:
        super().__init__(moves)
        self._state = state

    def __missing__(self, event: Event) -> State:
        raise KeyError(f"{event!r} cannot follow in state {self._state!r}")


def _strict(table: dict[State, dict[Event, State]]) -> dict[State, Moves[Event, State]]:
    return {state: Moves(state, moves) for state, moves in table.items()}


SLOT_TRANSITIONS = _strict(
    {
        SlotState.ASKED: {
            SlotEvent.OPEN: SlotState.STARTING,
            SlotEvent.RETIRE: SlotState.RETIRING,
            SlotEvent.DOWN: SlotState.GONE,
        },
        SlotState.STARTING: {
            SlotEvent.UP: SlotState.IDLE,  # BUSY where packets were queued meanwhile: see Scheduler.up
            SlotEvent.ASSIGN: SlotState.STARTING,
            SlotEvent.DRAIN: SlotState.STARTING,
            SlotEvent.RETIRE: SlotState.RETIRING,
            SlotEvent.DOWN: SlotState.GONE,
        },
        SlotState.IDLE: {
            SlotEvent.ASSIGN: SlotState.BUSY,
            SlotEvent.RETIRE: SlotState.RETIRING,
            SlotEvent.DOWN: SlotState.GONE,
        },
        SlotState.BUSY: {
            SlotEvent.ASSIGN: SlotState.BUSY,
            SlotEvent.DRAIN: SlotState.IDLE,
            SlotEvent.RETIRE: SlotState.RETIRING,
        },
        SlotState.RETIRING: {
            SlotEvent.OPEN: SlotState.RETIRING,
            SlotEvent.UP: SlotState.RETIRING,
            SlotEvent.DRAIN: SlotState.RETIRING,
            SlotEvent.DOWN: SlotState.GONE,
        },
        SlotState.GONE: {},
    }
)


class PacketState(StrEnum):
    IN_FLIGHT = "in flight"  # at a slot: queued, running, or its results under way
    SETTLED = "settled"  # every unit that was not cut off has an outcome
    RETURNED = "returned"  # came back whole, no unit of it begun
    LOST = "lost"  # its worker died with it


class PacketEvent(StrEnum):
    RESULT = "result"  # outcomes of some of its units
    FINISH = "finish"  # outcomes of the last of its units
    CUT = "cut"  # its tail was claimed back
    RECALL = "recall"  # taken back from the slot's queue
    REFUSE = "refuse"  # the worker has something else under a name that the packet needs
    DOWN = "down"  # its slot's worker ended


PACKET_TRANSITIONS = _strict(
    {
        PacketState.IN_FLIGHT: {
            PacketEvent.RESULT: PacketState.IN_FLIGHT,
            PacketEvent.FINISH: PacketState.SETTLED,
            PacketEvent.CUT: PacketState.IN_FLIGHT,
            PacketEvent.RECALL: PacketState.RETURNED,
            PacketEvent.REFUSE: PacketState.RETURNED,
            PacketEvent.DOWN: PacketState.LOST,
        },
        PacketState.SETTLED: {},
        PacketState.RETURNED: {},
        PacketState.LOST: {},
    }
)


@dataclass(slots=True, eq=False)
class Job:
    """A job as the scheduler sees it: numbers only."""

    ident: int
    visible: bool  # each result is awaited on its own (imap, submit), not only all together (map)
    calls: bool = False  # each unit is a call, as much as a job to who made it
    next: int = 0  # first unit never handed out
    ready: int = 0  # units before this one can be handed out
    closed: bool = False  # no more units will become ready
    returned: tuple[tuple[int, int], ...] = ()  # ranges handed out once that came back
    settled: int = 0  # units with an outcome
    in_flight: int = 0  # packets
    unit_ns: int = 0  # estimate of a unit's running time; 0 = not known
    grown: int = 1  # units a packet may have by now
    awaited: Slot | None = None  # is not refilled by others until a packet of this one fits
    queued: int = 0  # packets that lie behind others
    cleared: Slot | None = None  # where it is the next, what was queued there is being taken back for it

    @property
    def waiting(self) -> int:
        return self.ready - self.next + sum(stop - start for start, stop in self.returned)


class Cargo(Protocol):
    """What a packet carries, as far as it matters afterwards."""

    @property
    def units(self) -> int:
        """How many it has."""

    @property
    def definitions(self) -> frozenset[int]:
        """Definitions that ride on it."""

    @property
    def needs(self) -> tuple[Any, ...]:
        """What the worker is to check before it begins."""

    @property
    def retries(self) -> bool:
        """Whether its outcomes may say that a unit is to run again."""

    @property
    def limit(self) -> int:
        """How long, in ns, its unit with the least time may take; 0: none has a limit."""


@dataclass(slots=True, eq=False)
class Packet:
    """A run of units on its way through a slot."""

    ident: int
    job: Job
    slot: Slot
    first: int  # number of its first unit within the job
    count: int  # units; shrinks when its tail is cut off
    size: int  # bytes it takes of the slot's credit
    load: int  # ns it was estimated to run
    definitions: frozenset[int]
    needs: tuple[Any, ...]
    retries: bool  # its outcomes may say that a unit is to run again
    limit: int  # ns that its unit with the least time may take; 0: none has a limit
    ahead: bool = False  # of what was queued there before
    since: int = 0  # when it became the slot's head, in ns
    look_at: int = 0  # when it is late; 0 = not the slot's head, or nothing to gain from a look
    patience: int = 0  # ns until the next look
    done: int = 0  # units with an outcome; they come in order
    state: PacketState = PacketState.IN_FLIGHT


class Sent(NamedTuple):
    """A packet with one unit that an idle slot was sent, and that is not recorded yet."""

    ident: int
    slot: Slot
    job: Job
    cargo: Cargo
    size: int
    units: dict[int, Any]  # where the unit is put once it has a number
    unit: Any


NEVER: Final = 1 << 48  # a packet that there is not


@dataclass(slots=True, eq=False)
class Slot:
    """A place where packets run, one after another in the order in which they were sent."""

    ident: int
    budget: int | None  # units it may still be given (maxtasksperchild)
    state: SlotState = SlotState.ASKED
    packets: dict[int, Packet] = field(default_factory=dict)
    load: int = 0  # ns of estimated work in flight
    size: int = 0  # bytes in flight
    recalled: bool = True  # nothing was sent since the last recall
    owes: int = 0  # ns of others' work until it gives way again: as much was sent ahead of that
    lain: int = 0  # ns for which packets lay there that came back untaken, since anything was answered
    asleep: bool = False  # its worker left a packet lying, and has given no sign of life since
    allowance: int = 0  # ns for which it may leave one lying before it is taken to be asleep; 0: for ever
    shelf: dict[int, Slot] | None = None  # of the roster, on which it lies
    small_from: int = NEVER  # packet from which on they are small: its worker had no descriptor to receive one with
    single_until: int = 0  # packet until which they have one unit each: among some there was one that needs descriptors


class Action(StrEnum):
    """What the dispatcher is told to do, as ``(Action, argument, ...)``."""

    DELIVER = "deliver"  # (job, record): outcomes for the job's results
    PROGRESS = "progress"  # (job,): the dispatcher's own second half of DELIVER
    FINISH = "finish"  # (job,): every unit of a closed job is settled
    RECALL = "recall"  # (slot,): take back what is queued at the slot
    LOOK = "look"  # (slot, packet, cut): fetch results committed so far; with `cut` also the tail
    OPEN = "open"  # (slot,): start a worker
    ROUSE = "rouse"  # (slot,): have a worker say when it is awake
    STOP = "stop"  # (slot,): tell an idle worker to end


class Choice(NamedTuple):
    """A packet worth sending now: up to `limit` units of `job` from `first` on, to `slot`."""

    slot: Slot
    job: Job
    first: int
    limit: int
