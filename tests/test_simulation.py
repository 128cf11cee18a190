"""Thousands of pools in virtual time: no unit is lost, none runs twice, every run ends.

Two variables of the environment choose what is run: ``PAIRPOOL_SIMULATION_SEED``, the first seed, and
``PAIRPOOL_SIMULATIONS``, how many. A failure names the seed that replays it.
"""

from __future__ import annotations

import os

import pytest

from pairpool._scheduler import Scheduler
from pairpool._states import Packet
from simulated_workers import Fate
from simulation import Simulation

pytestmark = pytest.mark.once

FIRST_SEED = int(os.environ.get("PAIRPOOL_SIMULATION_SEED", "0"))
SIMULATIONS = int(os.environ.get("PAIRPOOL_SIMULATIONS", "2500"))


def simulate(seed: int) -> Simulation:
    """Run one simulation; an error says how to run it again."""
    simulation = Simulation(seed)
    try:
        simulation.run()
    except Exception as error:
        error.add_note(f"replay it with PAIRPOOL_SIMULATION_SEED={seed} PAIRPOOL_SIMULATIONS=1")
        raise
    return simulation


def test_every_schedule_ends_with_each_unit_settled_once() -> None:
    """Whatever dies, is resized, recalled, refused or late: each unit ends once, and every run ends."""
    for seed in range(FIRST_SEED, FIRST_SEED + SIMULATIONS):
        simulate(seed)


def test_seeds_lead_everywhere() -> None:
    """Among a few hundred schedules there are all fates, deaths, cancelled jobs and refused packets."""
    pools = [simulate(seed).pool for seed in range(300)]
    jobs = [job for pool in pools for job in pool.jobs.values()]
    assert {fate for job in jobs for fate in job.fates.values()} == set(Fate)
    assert any(job.cancelled for job in jobs)
    assert sum(pool.roused for pool in pools) > 10
    assert sum(pool.deaths for pool in pools) > sum(pool.losses for pool in pools) > 50


def test_a_seed_replays() -> None:
    """The same seed gives the same run, to the nanosecond."""
    runs = [simulate(seed).pool for seed in (7, 7)]
    first, second = ((pool.now, pool.deaths, [job.fates for job in pool.jobs.values()]) for pool in runs)
    assert first == second


def test_a_fault_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that forgets units of a dead worker is caught, with the seed that shows it."""

    def lose_too_much(self: Scheduler, packet: Packet, running: int | None, record: object, now: int) -> None:
        lose(self, packet, packet.count - 1, record, now)

    lose = Scheduler.lose
    monkeypatch.setattr(Scheduler, "lose", lose_too_much)
    with pytest.raises(AssertionError) as caught:
        list(map(simulate, range(300)))
    assert "PAIRPOOL_SIMULATION_SEED=" in caught.value.__notes__[0]
