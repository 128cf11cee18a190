from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from pairpool import _cgroup, _size

HERE = "0::/user/job\n"


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lie in a cgroup of which there are only folders yet; return its root."""
    monkeypatch.setattr(_cgroup, "ROOT", str(tmp_path / "cgroup"))
    monkeypatch.setattr(_cgroup, "MEMBERSHIP", str(tmp_path / "self"))
    (tmp_path / "self").write_text(HERE)
    (tmp_path / "cgroup" / "user" / "job").mkdir(parents=True)
    return tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)],
)
def test_the_quota_is_that_of_the_cgroup_in_whole_processors(cgroup: Path, limit: str, expected: int | None) -> None:
    """A share of a processor counts as a whole one, and no limit is no quota."""
    (cgroup / "user/job/cpu.max").write_text(limit)
    assert _size._quota() == expected


def test_the_least_quota_on_the_way_up_counts(cgroup: Path) -> None:
    """A group may be given more than the one that it is in; it never gets it."""
    (cgroup / "user/job/cpu.max").write_text("800000 100000")
    (cgroup / "user/cpu.max").write_text("300000 100000")
    assert _size._quota() == 3


@pytest.mark.parametrize("limit", ["", "\n", "many few", "100000", "100000 0", "1 2 3"])
def test_odd_files_are_no_limit(cgroup: Path, limit: str) -> None:
    """What cannot be read as a quota is passed over, as containers have been seen to need."""
    (cgroup / "user/job/cpu.max").write_text(limit)
    assert _size._quota() is None


def test_a_process_outside_of_cgroups_has_no_quota(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first version of cgroups, or none at all, gives no quota, and counts no deaths."""
    Path(_cgroup.MEMBERSHIP).write_text("4:cpu:/user\n")
    assert (_size._quota(), _cgroup.oom_kills()) == (None, None)
    monkeypatch.setattr(_cgroup, "MEMBERSHIP", str(cgroup / "missing"))
    assert (_size._quota(), _cgroup.oom_kills()) == (None, None)


@pytest.mark.parametrize(
    ("events", "expected"), [("low 0\noom 5\noom_kill 3\n", 3), ("low 0\n", None), ("odd", None), ("", None)]
)
def test_deaths_for_want_of_memory_are_counted(cgroup: Path, events: str, expected: int | None) -> None:
    """The kernel's count is read where it is there, and nothing is made of what is odd."""
    (cgroup / "user/job/memory.events").write_text(events)
    assert _cgroup.oom_kills() == expected


def test_the_quota_bounds_the_default_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota of one processor makes pools of one worker, however many processors there are."""
    monkeypatch.delenv("PAIRPOOL_WORKERS", raising=False)
    monkeypatch.setattr(_size, "_quota", lambda: 1)
    assert _size.default_size() == 1


@pytest.mark.parametrize(("said", "workers"), [("1", 1), ("2", 2), ("1000", 3), ("0", 1), ("", 3)])
def test_the_environment_bounds_the_default_size(monkeypatch: pytest.MonkeyPatch, said: str, workers: int) -> None:
    """PAIRPOOL_WORKERS makes pools smaller than the processors would have them, never larger."""
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    monkeypatch.setattr(_size, "_quota", lambda: None)
    monkeypatch.setenv("PAIRPOOL_WORKERS", said)
    assert _size.default_size() == workers


def test_a_number_of_workers_that_is_none_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """PAIRPOOL_WORKERS is a number, or nothing."""
    monkeypatch.setenv("PAIRPOOL_WORKERS", "all")
    with pytest.raises(ValueError, match="PAIRPOOL_WORKERS must be a number of workers, not 'all'"):
        _size.default_size()


class StruckError(Exception):
    """Is raised by a handler."""


def strike(action: Callable[[], object], number: int) -> BaseException | None:
    """Do something, with an exception raised at the entry of one function; return that where it came out."""
    entries = count()

    def enter(*_: object) -> None:
        if next(entries) == number:
            raise StruckError

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        action()
    except StruckError as error:
        return error
    finally:
        sys.settrace(before)
    return None


@pytest.mark.parametrize("action", [_size.default_size, _size.transit_limit.__wrapped__, _cgroup.oom_kills])
def test_an_interrupt_shows_no_other_error(action: Callable[[], object]) -> None:
    """Wherever it strikes, also in the library's code, it does not come while something else is handled."""
    number = 0
    while (error := strike(action, number)) is not None:
        assert error.__context__ is None
        number += 1
    assert number > 3


def test_what_cannot_be_read_keeps_nobody_alive() -> None:
    """No traceback holds the frames of those who have asked: a pool that is dropped right then would stay."""

    class Held:
        """Is kept by a frame."""

    def ask() -> weakref.ref[Held]:
        held = Held()
        assert _cgroup.read("/nowhere") == b""
        return weakref.ref(held)

    gc.disable()
    try:
        assert ask()() is None
    finally:
        gc.enable()
