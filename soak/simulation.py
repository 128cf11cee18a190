"""The scheduler alone under a virtual clock, schedule after schedule: each unit ends once, and every run ends.

One processor does 160 schedules a second, so that a million of them (``--schedules 1000000``) take an hour and three
quarters. What is done unless told otherwise takes ten minutes, and begins at another seed each time.
"""

from __future__ import annotations

from soak._part import MINUTE, Course, Options, Part, borrow

SCHEDULES = 90_000

simulation = borrow("simulation")


def simulate(seed: int) -> None:
    """Run one schedule; an error says how to run it again."""
    try:
        simulation.Simulation(seed).run()
    except Exception as error:
        error.add_note(f"replay it with PAIRPOOL_SIMULATION_SEED={seed} PAIRPOOL_SIMULATIONS=1 (test_simulation.py)")
        raise


def work(course: Course) -> str:
    """Run schedules from the first seed on."""
    schedules = course.scaled(course.options.schedules)
    first = course.options.seed
    for numbers in course.turns(schedules):
        for number in numbers:
            simulate(first + number)
    rate = schedules / max(course.taken, 0.001)
    return f"{schedules:,} schedules from seed {first} on, {rate:.0f} a second"


def extent(options: Options) -> float:
    """Return by what the schedules asked for are more than those that are usual."""
    return options.scale * options.schedules / SCHEDULES


PART = Part("simulation", work, deadline=40 * MINUTE, extent=extent)
