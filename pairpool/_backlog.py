"""The jobs of a pool, and whose turn it is.

A job's units that wait are those from `next` up to `ready`, which were never handed out, and the few ranges of
`returned`. How these methods commit is said in _scheduler.py.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from pairpool._ranges import excluding, sum_of
from pairpool._states import Action, Job


class Backlog:
    """Jobs by number; those with units to hand out take turns."""

    def __init__(self, actions: deque[tuple[Any, ...]]) -> None:
        """`actions`: the scheduler's, where it is told that a job has finished."""
        self.jobs: dict[int, Job] = {}
        self.waiting: dict[int, Job] = {}  # jobs with units to hand out, the one whose turn it is first
        self.actions = actions

    def add(self, job: Job) -> None:
        self.jobs[job.ident] = job

    def feed(self, job: Job, ready: int, closed: bool, source: list[Any] | None = None, taken: int = 0) -> None:
        """Units before `ready` can be handed out; `closed`: there will be no more.

        The first `taken` entries of `source` have become units.
        """
        waits = ready > job.next or job.returned
        finished = closed and job.settled == ready
        # commit
        job.ready = ready
        job.closed = closed
        if waits:
            self.waiting[job.ident] = job
        if finished:
            self.actions += ((Action.FINISH, job.ident),)
        if source is not None:
            del source[:taken]

    def skip(self, job: Job, start: int, stop: int) -> None:
        """Settles the units of start..stop that have not been handed out, without running them."""
        stop = min(stop, job.ready)
        ahead = max(0, stop - job.next) if start <= job.next else 0
        returned = excluding(job.returned, start, stop)
        came_back = sum_of(job.returned) - sum_of(returned)
        settled = job.settled + ahead + came_back
        following = job.next + ahead
        waits = following < job.ready or returned
        listed = job.ident in self.waiting
        finished = job.closed and settled == job.ready and settled != job.settled
        # commit
        job.next = following
        job.returned = returned
        job.settled = settled
        if listed and not waits:
            del self.waiting[job.ident]
        if finished:
            self.actions += ((Action.FINISH, job.ident),)

    def remove(self, job: Job) -> None:
        """Forgets a job; what is in flight of it will be ignored when it comes back."""
        listed = job.ident in self.waiting
        known = job.ident in self.jobs
        # commit
        if listed:
            del self.waiting[job.ident]
        if known:
            del self.jobs[job.ident]
