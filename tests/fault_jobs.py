"""The struck job: the ways to ask for it, what comes of it, and whether that is what is expected.

One of its items, the third, is struck. What comes of a job is a list: for each item its value or its error; of a lone
call, and of a map, one outcome in all.
"""

from __future__ import annotations

import multiprocessing.pool
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import faults
import pairpool
from fault_bench import Aside, iterated, midst, outcome
from faults import EXIT_CODES, RAISED, WORDS, double
from receiving import PATIENCE

PLACE = 2  # of the item that is struck, in all jobs
LENGTH = 5  # of those jobs


class Cell(NamedTuple):
    """One cell of the matrix."""

    where: str
    how: str
    expected: str

    @property
    def stops(self) -> bool:
        """Whether something is stopped, and has to be seen so before it goes on."""
        return self.how.startswith("stop")


# -- Faces --------------------------------------------------------------------------------------------


class AtOnce(NamedTuple):
    """An error that the call itself raised, and not its result."""

    error: BaseException


def called(call: Callable[..., Any], task: Callable[[Any], Any], items: list[Any], get: str) -> Callable[[], list[Any]]:
    """Call for each item; return what will wait for the results."""
    results = [outcome(partial(call, task, item)) for item in items]
    return lambda: [
        AtOnce(each) if isinstance(each, BaseException) else outcome(partial(getattr(each, get), PATIENCE))
        for each in results
    ]


def by_apply(pool: Any, task: Callable[[Any], Any], items: list[Any]) -> Callable[[], list[Any]]:
    """Call for the one item that is struck, and wait."""
    lone = Aside(lambda: pool.apply(task, (items[PLACE],)))
    return lambda: [lone.outcome()]


def by_apply_async(pool: Any, task: Callable[[Any], Any], items: list[Any]) -> Callable[[], list[Any]]:
    """Call for each item."""
    return called(lambda task, item: pool.apply_async(task, (item,)), task, items, "get")


def by_calls_together(pool: Any, task: Callable[[Any], Any], items: list[Any]) -> Callable[[], list[Any]]:
    """Call for each item at a moment at which none can be sent, so that the calls travel together."""
    with midst(pool):
        return by_apply_async(pool, task, items)


def by_submit(pool: Any, task: Callable[[Any], Any], items: list[Any]) -> Callable[[], list[Any]]:
    """Submit each item."""
    return called(pool.submit, task, items, "result")


def by_imap(pool: Any, task: Callable[[Any], Any], items: Any) -> Callable[[], list[Any]]:
    """Iterate over the results."""
    return partial(iterated, pool.imap(task, items))


def by_map(pool: Any, task: Callable[[Any], Any], items: Any) -> Callable[[], list[Any]]:
    """Map, and wait."""
    mapped = Aside(lambda: pool.map(task, items))
    return lambda: [mapped.outcome()]


Face = Callable[[Any, Callable[[Any], Any], Any], Callable[[], list[Any]]]
LONE = (by_apply, by_map)  # faces with one outcome in all


# -- What is expected of a struck job -------------------------------------------------------------------


def is_struck(error: Any, how: str) -> bool:
    """Tell whether an outcome is the error that was raised where it struck."""
    return type(error) is RAISED[how] and error.args == (WORDS,)


def is_loss(error: Any, how: str, pids: list[int], task: str) -> bool:
    """Tell whether an outcome says which worker died how, and what it ran."""
    return (
        isinstance(error, pairpool.WorkerLostError)
        and error.pid in pids
        and error.exitcode == EXIT_CODES[how]
        and error.task.startswith(task)
        and str(error).startswith(f"worker process {error.pid} {faults.END_WORDS[how]} while running {error.task}")
    )


def is_unsent(error: Any, how: str) -> bool:
    """Tell whether an outcome says that a result could not be pickled, and why."""
    return isinstance(error, multiprocessing.pool.MaybeEncodingError) and RAISED[how].__name__ in str(error)  # type: ignore[attr-defined]


def is_failed_start(error: Any, how: str) -> bool:
    """Tell whether an outcome says that initializers fail, and how."""
    words = RAISED[how].__name__ if how in RAISED else f"{faults.END_WORDS[how]} before it was ready"
    return type(error) is pairpool.InitializerError and words in str(error)


def is_broken(error: Any) -> bool:
    """Tell whether an outcome is that of a pool whose zygote has ended."""
    return type(error) is pairpool.PairpoolError and "zygote process ended" in str(error)


def check_job(outcomes: list[Any], face: Face, cell: Cell, told: Callable[[Any], bool], length: int) -> None:
    """Check the outcomes of a job one item of which was struck; `told` knows what comes of that one."""
    right: list[Any] = [double(n) for n in range(length)]
    here = 0 if face in LONE else PLACE
    if cell.expected == "ignored" and face is by_map:
        here, (outcomes,) = PLACE, outcomes
    elif face in LONE:
        right = [None]
    elif cell.expected == "cuts" and face is by_imap:
        del right[PLACE + 1 :]
    elif cell.expected == "cuts":
        assert isinstance(outcomes[PLACE], AtOnce), f"there came {outcomes}"
        outcomes[PLACE] = outcomes[PLACE].error
    if cell.expected == "ended":
        # Those that had not come fail as well; an iterator ends with the first of them.
        came = [each == value for each, value in zip(outcomes, right, strict=False) if not told(each)]
        assert all(came), f"there came {outcomes}"
        assert any(map(told, outcomes)), f"there came {outcomes}"
        return
    assert len(outcomes) == len(right), f"there came {outcomes}"
    assert told(outcomes[here]), f"there came {outcomes}"
    right[here] = outcomes[here]
    assert outcomes == right, f"there came {outcomes}"
