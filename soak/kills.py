"""Five hundred workers of one pool are killed at random moments: each costs one item at most, and nothing else.

What a dead worker leaves for good is seen from 2.5 KiB or three objects on, and a single descriptor or zombie of all.
"""

from __future__ import annotations

from itertools import cycle

from soak._journal import chaos, check_account, open_journal
from soak._part import MINUTE, Course, Part, make_pool

KILLS = 500
PAUSE = 0.02  # seconds between two kills, on average
ITEMS = range(1, 101)  # of a turn: they take 50 ms and longer, as workers have to be replaced
FACES = ("calls", "waiting", "futures", "imap", "imap_unordered")


def work(course: Course) -> str:
    """Run some items by each face in turn while workers are killed, until enough were."""
    wanted = course.scaled(KILLS)
    faces = cycle(FACES)
    kills = lost = 0
    with open_journal() as journal, make_pool(2, *journal.initializer) as pool:
        while kills < wanted or len(course.readings) < course.least_turns:
            course.turn()
            account = chaos.Account()
            with chaos.Killer(pool, journal.path, course.random, PAUSE) as killer:
                chaos.FACES[next(faces)](pool, ITEMS, account)
            check_account(account, journal.take(), ITEMS, killer.kills)
            kills += killer.kills
            lost += account.lost
            course.read(workers=2)
    return f"{kills:,} kills, {lost:,} items of {len(course.readings) * len(ITEMS):,} lost"


PART = Part("kills", work, deadline=10 * MINUTE)
