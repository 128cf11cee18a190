"""The tables of states: whole, used wholly, and shown in DESIGN.md as they are."""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pairpool import _roster, _scheduler
from pairpool._states import (
    PACKET_TRANSITIONS,
    SLOT_TRANSITIONS,
    Job,
    Moves,
    Packet,
    PacketEvent,
    PacketState,
    Slot,
    SlotEvent,
    SlotState,
)
from simulated import SimulatedPool
from simulation import Simulation

pytestmark = pytest.mark.once

DESIGN = Path(__file__).parent.parent / "DESIGN.md"
Table: TypeAlias = "dict[Any, Moves[Any, Any]]"

TABLES: dict[str, Table] = {"slot": SLOT_TRANSITIONS, "packet": PACKET_TRANSITIONS}

every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def first_state(table: Table) -> StrEnum:
    """Return the state in which a thing is made."""
    job = Job(1, visible=True)
    slot = Slot(1, None)
    packet = Packet(1, job, slot, 0, 1, 0, 0, frozenset(), (), retries=False, limit=0)
    made: dict[Any, StrEnum] = {SlotState: slot.state, PacketState: packet.state}
    return made[type(next(iter(table)))]


@every_table
def test_every_state_is_reached(table: Table) -> None:
    """Every state has a row, and can be reached from the one in which a thing is made."""
    reached = {first_state(table)}
    while following := {state for at in reached for state in table[at].values()} - reached:
        reached |= following
    assert reached == set(table) == set(type(first_state(table)))


@every_table
def test_every_event_is_followed_by_something(table: Table) -> None:
    """No event is without a move."""
    kinds: dict[Any, Any] = {SlotState: SlotEvent, PacketState: PacketEvent}
    events = kinds[type(next(iter(table)))]
    assert {event for moves in table.values() for event in moves} == set(events)


@every_table
def test_a_wrong_move_names_state_and_event(table: Table) -> None:
    """A move that is not in a table raises an error which says what happened in which state."""
    last = list(table)[-1]
    event = next(event for moves in table.values() for event in moves)
    with pytest.raises(KeyError, match=rf"{event!r} .*{last!r}"):
        table[last][event]


def test_every_move_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """In some hundred simulations every move of both tables is made: there is none that cannot happen."""
    made: set[tuple[StrEnum, StrEnum]] = set()

    class Noting(Moves[Any, Any]):
        def __getitem__(self, event: Any) -> Any:
            made.add((self._state, event))
            return super().__getitem__(event)

    def noting(table: Table) -> Table:
        return {state: Noting(state, moves) for state, moves in table.items()}

    for module in (_scheduler, _roster):
        monkeypatch.setattr(module, "SLOT_TRANSITIONS", noting(SLOT_TRANSITIONS))
    monkeypatch.setattr(_scheduler, "PACKET_TRANSITIONS", noting(PACKET_TRANSITIONS))
    for seed in range(400):
        Simulation(seed).run()
    pool = SimulatedPool(2)
    pool.digest()
    for worker in pool.workers.values():
        worker.step()
    pool.digest()
    pool.resize(1)  # when they have channels and are not up yet, which is rare
    pool.digest()
    assert made == {(state, event) for table in TABLES.values() for state, moves in table.items() for event in moves}


def printed() -> str:
    """Return what ``python -m pairpool states`` prints."""
    command = [sys.executable, "-m", "pairpool", "states"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_tables_are_printed() -> None:
    """``python -m pairpool states`` prints both tables, with a row for each state."""
    rows = printed().splitlines()
    for table in TABLES.values():
        for state in table:
            assert any(row.startswith(f"| **{state}** |") for row in rows)


@pytest.mark.skipif(not DESIGN.exists(), reason="there is no DESIGN.md here: an installed package has none")
def test_the_design_shows_the_tables() -> None:
    """DESIGN.md shows both tables exactly as they are printed."""
    assert printed() in DESIGN.read_text()
