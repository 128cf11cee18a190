from __future__ import annotations

import os
from pathlib import Path

import pytest

from pairpool import _size

HERE = "0::/user/job\n"


def quota(tmp_path: Path, limits: dict[str, str], membership: str = HERE) -> int | None:
    """Return the quota that is read where the folders of a cgroup say these limits."""
    member = tmp_path / "self"
    member.write_text(membership)
    root = tmp_path / "cgroup"
    (root / "user" / "job").mkdir(parents=True)
    for folder, limit in limits.items():
        (root / folder / "cpu.max").write_text(limit)
    return _size._quota(str(root), str(member))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)],
)
def test_the_quota_is_that_of_the_cgroup_in_whole_processors(tmp_path: Path, limit: str, expected: int | None) -> None:
    """A share of a processor counts as a whole one, and no limit is no quota."""
    assert quota(tmp_path, {"user/job": limit}) == expected


def test_the_least_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    """A group may be given more than the one that it is in; it never gets it."""
    assert quota(tmp_path, {"user/job": "800000 100000", "user": "300000 100000"}) == 3


@pytest.mark.parametrize("limit", ["", "\n", "many few", "100000", "100000 0", "1 2 3"])
def test_odd_files_are_no_limit(tmp_path: Path, limit: str) -> None:
    """What cannot be read as a quota is passed over, as containers have been seen to need."""
    assert quota(tmp_path, {"user/job": limit}) is None


def test_a_process_outside_of_cgroups_has_no_quota(tmp_path: Path) -> None:
    """The first version of cgroups, or none at all, gives no quota."""
    assert quota(tmp_path, {}, membership="4:cpu:/user\n") is None
    assert _size._quota(str(tmp_path), str(tmp_path / "missing")) is None


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
