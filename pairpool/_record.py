"""Outcomes of consecutive units of a job, as the dispatcher keeps them until its sink or reader decodes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pairpool import errors
from pairpool._packet import COMMITTED_HEAD, OutcomeMode, Status


class Record(NamedTuple):
    """Outcomes of consecutive units of a job."""

    first: int
    units: int
    mode: int
    buffers: Sequence[Any]
    skip: int = 0  # values of the one payload that they share which were told before

    def parts(self) -> tuple[Sequence[int], Sequence[Any]]:
        """Status and payload of each; not where they share one payload. For LOST that is the error itself."""
        if self.mode == OutcomeMode.LOST:
            return bytes([Status.ERROR]) * self.units, [*self.buffers] * self.units
        if self.mode == OutcomeMode.COMMITTED:
            return read_committed(self.buffers[0], self.units)
        return self.buffers[0], self.buffers[1:]

    @property
    def payloads(self) -> Sequence[Any]:
        """What is to be decoded."""
        return self.buffers if self.mode == OutcomeMode.SHARED else self.buffers[1:]

    def outcomes(self) -> list[tuple[int, int, Any]]:
        """Unit, Status and payload of each."""
        statuses, payloads = self.parts()
        return list(zip(range(self.first, self.first + self.units), statuses, payloads, strict=False))

    def separate(self, failures: dict[int, BaseException]) -> Record:
        """The same in OutcomeMode.SEPARATE. `failures`: of units that could not be sent."""
        outcomes = [
            (unit, Status.ERROR, failures[unit]) if status == Status.SKIPPED and unit in failures
            else (unit, status, payload)
            for unit, status, payload in self.outcomes()
        ]  # fmt: skip
        (record,) = Record.of(outcomes)
        return record

    @staticmethod
    def of(outcomes: Sequence[tuple[int, int, Any]]) -> tuple[Record, ...]:
        """One of these outcomes of consecutive units; none where there is none."""
        if not outcomes:
            return ()
        statuses = bytes([status for _, status, _ in outcomes])
        payloads = [payload for _, _, payload in outcomes]
        return (Record(outcomes[0][0], len(outcomes), OutcomeMode.SEPARATE, [statuses, *payloads]),)

    def values(self, decode: Callable[[Any], Any]) -> list[Any]:
        """Values that share one payload. Raises what decoding raises, and PairpoolError where their number is wrong."""
        values = decode(self.buffers[0])
        if type(values) is not list or len(values) != self.skip + self.units:
            raise errors.PairpoolError(f"a worker did not answer {self.units} items with as many results")
        return values[self.skip :] if self.skip else values

    def after(self, first: int) -> Record:
        """The same without the units before `first`, which are not all."""
        if self.mode == OutcomeMode.SHARED:
            told = first - self.first
            return Record(first, self.units - told, self.mode, self.buffers, self.skip + told)
        (record,) = Record.of(self.outcomes()[first - self.first :])
        return record


def read_committed(records: Any, count: int) -> tuple[bytes, list[memoryview]]:
    """Statuses and payloads of `count` records written to an outbox."""
    view = memoryview(records)
    statuses = bytearray(count)
    payloads: list[memoryview] = []
    at = 0
    for unit in range(count):
        length, status = COMMITTED_HEAD.unpack_from(view, at)
        at += COMMITTED_HEAD.size
        payloads.append(view[at : at + length])
        statuses[unit] = status
        at += length
    return bytes(statuses), payloads
