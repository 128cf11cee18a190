"""When the place of a worker that has died is filled.

A worker that dies of what it ran is replaced at once: what it ran is gone with it. One that came up and then died
without having begun anything was ended by something else, be it what its initializer left behind, the kernel for want
of memory or somebody who kills it, and the next may well end so too. The death of such a worker is *in vain*. A few of
those in a row mean nothing; after that replacements wait, or an idle pool would fork for ever, as fast as it can.

Where units wait for a worker they cannot do so for ever: after so many deaths in vain, with no outcome of anything in
between, nothing ever will begin them (see _answers.py).

What others make of their units does not end such a row: one worker that is well would have the others forked without
end. It ends with the death of a worker that had begun something, and with time.
"""

from __future__ import annotations

AT_ONCE = 2  # deaths in vain, in a row, whose workers are replaced at once, however few workers there are
FIRST_WAIT = 10_000_000  # ns until the next is replaced; twice as long for each that follows
LONGEST_WAIT = 1_000_000_000  # ns
CALM = 10 * LONGEST_WAIT  # ns after which the next is the first of a row again

_DOUBLINGS = (LONGEST_WAIT // FIRST_WAIT).bit_length()  # that are certainly enough


class Respawn:
    """The deaths in vain of one pool, and when it may have a worker again."""

    def __init__(self) -> None:
        self.at: int | None = None  # no worker is asked for before, in ns; None: at once
        self.barren = 0  # deaths in vain while units waited, since anything last had an outcome or none waited
        self._row = 0  # deaths in vain, in a row
        self._row_until = 0  # ns; when that is forgotten
        self._last: int | None = None  # the slot of the last

    def died_in_vain(self, slot: int, size: int, now: int, *, missed: bool) -> None:
        """The worker of a slot, one of `size`, died and had begun nothing. `missed`: units wait for one, in vain.

        Told twice of the same slot it counts once: whoever tells may be interrupted, and then tells again.
        """
        if slot == self._last:
            return
        row = self._row + 1 if now < self._row_until else 1
        barren = self.barren + 1 if missed else 0
        over = row - max(AT_ONCE, size)
        at = None if over <= 0 else now + min(FIRST_WAIT << min(over - 1, _DOUBLINGS), LONGEST_WAIT)
        # commit
        self.at = at
        self.barren = barren
        self._row = row
        self._row_until = now + CALM
        self._last = slot

    def waits(self, now: int) -> bool:
        """Whether no worker is to be asked for yet."""
        if self.at is not None and now >= self.at:
            self.at = None
        return self.at is not None
