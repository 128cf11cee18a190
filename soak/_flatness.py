"""Whether a series of readings is flat, and what that means.

The first tenth of the readings is warm-up: modules are imported, caches filled, threads started. The median of the
second tenth is the start, the median of the last tenth is the end, and a kind is flat if its end exceeds its start by
no more than its bound:

- Descriptors, threads, shared mappings and processes: by none. They are counted at rest, where they are always the
  same, and a single one that is lost on the way moves the median.
- Memory: by one mebibyte a process. That is one arena, the unit in which Python's allocator takes memory from the
  system and gives it back, so one small object that happens to outlive its neighbours may hold as much; anything less
  would be judged by chance. Half of it comes at once when the interpreter's table of names is enlarged.
- Blocks of Python's allocator: by a thousand. Up to 400 were seen to come, more and more slowly, in free lists and the
  like, however much was done. This finds the leaks of small objects that are too few to move the memory.

From the middle of the second tenth to the middle of the last is 0.8 of all that a part does; so of n things each is
found to lose something if that is more than 1.25 MiB / n, or 1 250 objects / n.

What shrinks is flat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median_low

from soak._readings import KINDS, ROLES, Series

MIB = 1 << 20  # bytes

ALLOWANCE = {"memory": MIB, "blocks": 1_000}  # that there may be at the end; of other kinds nothing
FEWEST = 10  # readings of which a tenth can be taken


@dataclass(frozen=True)
class Figure:
    """One kind of thing that one role holds: at the start, at the end, and at most."""

    role: str
    kind: str
    start: int
    end: int
    bound: int

    @property
    def flat(self) -> bool:
        """Whether it has not grown beyond its bound."""
        return self.end <= self.bound

    def __str__(self) -> str:
        if self.kind == "memory":
            words = "{:.2f} -> {:.2f} of {:.2f} MiB".format(*(v / MIB for v in (self.start, self.end, self.bound)))
        elif self.kind == "blocks":
            words = f"{self.start:,} -> {self.end:,} of {self.bound:,}"
        else:
            words = f"{self.end}" if self.start == self.end else f"{self.start} -> {self.end} of {self.bound}"
        return f"{self.kind} {words}{'' if self.flat else ' NOT FLAT'}"


def judge(series: Series) -> list[Figure]:
    """Return the figures of a series of readings."""
    if len(series) < FEWEST:
        raise ValueError(f"{len(series)} readings tell nothing: there must be {FEWEST} or more")
    tenth = len(series) // 10
    figures = []
    for role, kind in product(ROLES, KINDS):
        values = series.of(role, kind)
        # Of two in the middle the lower one: a count is a whole number.
        start, end = median_low(values[tenth : 2 * tenth]), median_low(values[-tenth:])
        if any(values):
            figures.append(Figure(role, kind, start, end, start + ALLOWANCE.get(kind, 0)))
    return figures


def told(figures: Sequence[Figure]) -> Iterator[str]:
    """Say what every role held, each in a few words."""
    for role in dict.fromkeys(figure.role for figure in figures):
        yield f"{role}: " + ", ".join(str(figure) for figure in figures if figure.role == role)
