"""The scheduler alone under a virtual clock, schedule after schedule: each unit ends once, and every run ends.

A pool runs them on all processors; they begin at another seed each time. One processor does nearly 300 a second, so
that a million take half an hour on two. Whoever else needs the processors for so long goes first: workers lower their
priority.

What is read is that pool. Its workers hold the scheduler that is simulated, so what they lose is its, or the
simulation's: with a million schedules 1.25 MiB in all, a byte a schedule.
"""

from __future__ import annotations

import gc
import os
from typing import Any

from soak._part import MINUTE, Course, Options, Part, borrow, make_pool

SCHEDULES = 1_000_000
BLOCK = 25  # schedules that are one task: a tenth of a second, for which others may idle at the end of a turn
PATIENCE = 2 * MINUTE  # for one block, of whose seeds one hangs otherwise; below the deadline of a turn
NICENESS = 10
LARGE = range(946_162_446, 946_162_546)  # seeds with schedules that take more memory than most

simulation = borrow("simulation")


def simulate(seed: int) -> None:
    """Run one schedule; an error says how to run it again."""
    try:
        simulation.Simulation(seed).run()
    except Exception as error:
        error.add_note(f"replay it with PAIRPOOL_SIMULATION_SEED={seed} PAIRPOOL_SIMULATIONS=1 (test_simulation.py)")
        raise


def simulate_all(seeds: range) -> int:
    """Run some schedules, and return how many they were."""
    for seed in seeds:
        simulate(seed)
        # A simulation is a cycle, and its size is drawn. Left to later collections, they would move what is read of
        # memory by megabytes; and with nothing else to look at (see `begin`), this takes no longer.
        gc.collect()
    return len(seeds)


def begin() -> None:
    """Make a worker ready: others go first, and what it has imported is no garbage.

    What one schedule takes is drawn. A few large ones come first, or a short run may meet its first one when it is
    half over, and what that takes once would look like growth.
    """
    os.nice(NICENESS)
    gc.freeze()
    simulate_all(LARGE)


def run_turn(course: Course, pool: Any, seeds: range) -> int:
    """Run the schedules of one turn, and return how many came back."""
    blocks = [seeds[start : start + BLOCK] for start in range(0, len(seeds), BLOCK)]
    results = pool.imap(simulate_all, blocks)  # in order, so that it is known which of them hangs
    done = 0
    for block in blocks:
        course.turn()  # begun anew for each: where processors are few or busy, they all take long
        try:
            done += results.next(PATIENCE)
        except TimeoutError:
            raise AssertionError(f"one of seeds {block[0]} to {block[-1]} does not end") from None
    return done


def work(course: Course) -> str:
    """Run schedules from the first seed on, on every processor."""
    schedules = course.scaled(course.options.schedules)
    first = course.options.seed
    done = 0
    with make_pool(None, begin) as pool:
        workers = len(pool._pool)
        for numbers in course.turns(schedules):
            done += run_turn(course, pool, range(first + numbers.start, first + numbers.stop))
            course.read(workers)
    assert done == schedules, f"of {schedules} schedules {done} were run"
    rate = schedules / max(course.taken, 0.001)
    return f"{schedules:,} schedules from seed {first} on, {rate:.0f} a second by {workers} workers"


def extent(options: Options) -> float:
    """Return by what the schedules asked for are more than those that are usual."""
    return options.scale * options.schedules / SCHEDULES


PART = Part("simulation", work, deadline=360 * MINUTE, extent=extent)  # six times what one processor takes
