"""What runs packets in a worker, alone: what it sends for what it was given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pairpool._codec import DefinitionKind
from pairpool._objects import ObjectCodec
from pairpool._packet import DEFINITION_HEAD, TASKS_HEAD, Flag, Kind, Mode, OutcomeMode, Status
from pairpool._runner import Gate, Runner
from pairpool.engines.threads import ThreadPage

DEFINITION = 7


class Claims(ThreadPage):
    """A page that gives the worker some units, then none."""

    def __init__(self, *units: int) -> None:
        self._units = [*reversed(units)]

    def begin(self, packet: int, count: int) -> None:
        """Enter a packet: it has the units that were given."""

    def claim(self) -> int:
        """Return the next unit, -1 where the parent has taken the rest."""
        return self._units.pop() if self._units else -1


def run(
    function: Any, units: list[Any], claims: Claims, mode: Mode, flags: int, gate: Gate | None = None
) -> list[tuple[int, Any]]:
    """Run a packet; return what was sent, its head taken apart in no other way than its kind."""
    sent: list[tuple[int, Any]] = []
    runner = Runner(ObjectCodec(), claims, None, lambda kind, _, buffers: sent.append((kind, buffers)), gate)
    head = TASKS_HEAD.pack(mode, flags, 1, len(units), 1, DEFINITION, 0)
    carried = (DEFINITION_HEAD.pack(DEFINITION, DefinitionKind.NAMED), function)
    runner.run(1, [head, *carried, *([units] if mode == Mode.SHARED else units)], ())
    return sent


@pytest.mark.parametrize("flags", [0, Flag.VISIBLE], ids=["together", "visible"])
@pytest.mark.parametrize("mode", [Mode.SHARED, Mode.SEPARATE])
def test_of_a_packet_taken_back_before_it_began_nothing_is_told(mode: Mode, flags: int) -> None:
    """A packet of which the parent took every unit is answered by nothing: he knows."""
    assert run(abs, [1, 2], Claims(), mode, flags) == []


@pytest.mark.parametrize("star", [False, True])
def test_a_chunk_in_which_stop_iteration_is_raised_ends_in_it(star: bool) -> None:
    """It is an error as any other, and not the end of the chunk, as for `list(map(...))`."""

    def stop(item: int) -> Iterator[int]:
        raise StopIteration(item)

    items = [(1,), (2,)] if star else [1, 2]
    ((kind, buffers),) = run(stop, [items], Claims(0), Mode.CHUNKS, Flag.STAR if star else 0)
    head, statuses, error = buffers
    assert (kind, head[0], statuses) == (Kind.OUTCOMES, OutcomeMode.SEPARATE, bytes([Status.ERROR]))
    assert isinstance(error, StopIteration)
    assert error.value == 1
