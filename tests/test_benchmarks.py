from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pairpool
from benchmarks import _harness, _report, rivals
from benchmarks.__main__ import CASES
from benchmarks._harness import BEST_OTHER, Case, Options, Result, Samples, Target, at, is_met
from benchmarks.rivals import EXECUTOR, IN_PYTHON, NO_SUCH_CALL, OURS, RIVALS, STDLIB

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
HERE = (OURS, STDLIB, EXECUTOR)  # what comes with Python, and we


def run(*arguments: str, status: int = 0) -> str:
    """Run the benchmarks, which must end so, and return what they print."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == status, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What a quick run of everything writes: the JSON, and the page."""
    directory = tmp_path_factory.mktemp("benchmarks")
    report, page = directory / "results.json", directory / "table.md"
    run("--quick", "--rivals", ";".join(HERE), "--json", str(report), "--markdown", str(page))
    return json.loads(report.read_text()), page.read_text()


def lacks_share(measured: dict[str, Any]) -> bool:
    """Tell whether nothing was measured because the pool cannot share objects."""
    return not hasattr(pairpool.Pool, "share") and bool(measured["left_out"] == NO_SUCH_CALL)


def test_every_case_is_measured_with_every_rival_or_says_why_not(
    written: tuple[dict[str, Any], str],
) -> None:
    """A quick run measures ours in every case, and of the others all that have the call."""
    document, _ = written
    found = {(each["title"], each["point"]): each["rivals"] for each in document["results"]}

    assert {(case.title, point) for case in CASES for point in case.points[:1]} == set(found)
    for (title, _), measured in found.items():
        assert set(HERE) >= set(measured), title
        assert len(measured[OURS]["values"]) == 1 or lacks_share(measured[OURS]), title
        for name, samples in measured.items():
            assert (len(samples["values"]), samples["left_out"]) in [
                (1, None),
                (0, NO_SUCH_CALL),
                (0, "its default chunk is one item"),
            ], (title, name)


def test_whom_targets_speak_of_is_measured(written: tuple[dict[str, Any], str]) -> None:
    """What ours is held against has a figure in the same run."""
    document, _ = written
    found = {each["title"]: each["rivals"] for each in document["results"]}

    for case in CASES:
        for target in case.targets:
            if target.against in RIVALS:
                assert found[case.title][target.against]["values"] != [], case.title
            else:
                assert target.against in (None, BEST_OTHER)


def test_the_page_has_a_row_for_every_target_and_says_what_each_case_times(
    written: tuple[dict[str, Any], str],
) -> None:
    """The page shows each case among the targets, and what it measures."""
    document, page = written
    ours = {each["title"]: each["rivals"][OURS] for each in document["results"]}

    for case in CASES:
        assert f"- **{case.title}**: {case.what}" in page
        assert case.axis or f"\n| {case.title} | {case.unit} | " in page
    assert page.count(" | met | ") + page.count(" | missed | ") == sum(
        target.of in HERE and not lacks_share(ours[case.title]) for case in CASES for target in case.targets
    )


def test_both_twins_are_measured() -> None:
    """The framing in Python is a rival of its own, in a process with that framing."""
    printed = run("--quick", "--only", "map, chunksize=1", "--rivals", f"{OURS};{IN_PYTHON};{STDLIB}")

    assert printed.count("must reach >= 15 x multiprocessing.Pool") >= 1
    assert "not measured" not in printed
    assert RIVALS[IN_PYTHON].environment == {"PAIRPOOL_EXTENSION": "0"}


def test_what_is_not_installed_is_left_out_visibly() -> None:
    """A peer that is missing is named as such, and is no failure."""
    missing = next((rival.name for rival in RIVALS.values() if not rival.installed), None)
    if missing is None:
        pytest.skip("all peers are installed here")

    assert "not installed" in run("--quick", "--only", "start, one call, stop", "--rivals", missing)


def test_a_missed_target_is_an_error_only_where_that_is_asked_for(tmp_path: Path) -> None:
    """The exit status is 0 whatever the figures, but with --check."""
    case = next(case for case in CASES if case.targets and case.targets[0].against == STDLIB)
    bad = Result(case.title, 0, {OURS: Samples([1.0]), STDLIB: Samples([1.0])})
    earlier = tmp_path / "earlier.json"
    _report.write_json(earlier, {"CPU": "one"}, CASES, [bad])

    assert "1 targets missed" in run("--from", str(earlier))
    run("--from", str(earlier), "--check", status=1)


def test_what_fails_of_ours_is_an_error(tmp_path: Path) -> None:
    """The exit status tells when pairpool itself could not be measured."""
    failed = Result(CASES[0].title, 0, {OURS: Samples(left_out="failed: MemoryError")})
    earlier = tmp_path / "earlier.json"
    _report.write_json(earlier, {}, CASES, [failed])

    assert f"{CASES[0].title}, {OURS}: failed: MemoryError" in run("--from", str(earlier), status=1)


def test_a_measurement_that_fails_says_why_and_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error in the process that measures is what the rival is left out for."""
    monkeypatch.chdir(ROOT)
    unknown = Case("no such case", "s", lambda rival, setting: 0.0)
    [failed] = _harness.run([unknown], Options(rounds=2, rivals=[OURS]))

    assert failed.samples(OURS) == Samples([], "failed: KeyError: 'no such case'")
    assert "Traceback" in capfd.readouterr().err


def test_a_measurement_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is ended, and left out for that."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(_harness, "PATIENCE", 0.0)
    [late] = _harness.run(CASES[:1], Options(rounds=1, quick=True, rivals=[OURS]))

    assert late.samples(OURS) == Samples([], "took more than 0 s")


def test_who_is_not_spoken_of_by_a_target_has_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, the standard library's and what a target names have a turn in each round, in changing order."""
    turns: list[str] = []
    monkeypatch.setattr(_harness, "_measure_apart", lambda case, rival, *rest: turns.append(rival.name))
    case = Case("a case", "s", lambda rival, setting: 0.0, targets=(Target(1.0, STDLIB),))
    list(_harness.run([case], Options(rounds=3, rivals=HERE)))

    rounds = [OURS, STDLIB, EXECUTOR], [STDLIB, EXECUTOR, OURS], [OURS, STDLIB]
    assert turns == [name for each in rounds for name in each]


def test_what_takes_long_has_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a slow case rounds are three, and who is not spoken of by a target has a turn in the first alone."""
    turns: list[str] = []
    monkeypatch.setattr(_harness, "_measure_apart", lambda case, rival, *rest: turns.append(rival.name))
    case = Case("a case", "s", lambda rival, setting: 0.0, slow=True)
    list(_harness.run([case], Options(rounds=5, rivals=HERE)))

    assert [turns.count(name) for name in HERE] == [3, 3, 1]


def test_charts_of_the_same_figures_are_the_same_bytes(tmp_path: Path) -> None:
    """Charts change only with what was measured, so that they can be committed."""
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("charts are drawn where the benchmarks are installed")
    earlier = tmp_path / "earlier.json"
    figures = {OURS: Samples([2.0, 300.0]), STDLIB: Samples([0.0])}
    _report.write_json(earlier, {}, CASES, [Result(case.title, case.points[0], figures) for case in CASES])
    drawn = []
    for directory in (tmp_path / "once", tmp_path / "again"):
        run("--from", str(earlier), "--svg", str(directory))
        drawn.append({file.name: file.read_bytes() for file in directory.iterdir()})

    assert {"throughput.svg", "map-chunksize-1-by-workers.svg"} <= set(drawn[0])
    assert drawn[0] == drawn[1]


def test_a_ratio_is_taken_round_by_round() -> None:
    """The median of the ratios is not the ratio of the medians; a round without the other, or with zero, has none."""
    ours, theirs = Samples([10.0, 20.0, 90.0, 5.0]), Samples([1.0, 10.0, 10.0])

    assert ours.by(theirs).values == [10.0, 2.0, 9.0]
    assert ours.by(theirs).median == 9.0
    assert ours.by(Samples([0.0, 4.0])).values == [5.0]


@pytest.mark.parametrize(("more_is_better", "best", "ratio"), [(True, STDLIB, 3.0), (False, EXECUTOR, 6.0)])
def test_the_best_other_pool_is_the_one_with_the_best_median(more_is_better: bool, best: str, ratio: float) -> None:
    """Neither of ours is among the others, nor is who has no figure."""
    case = Case("a case", "s", lambda rival, setting: 0.0, more_is_better)
    measured = {OURS: Samples([12.0]), IN_PYTHON: Samples([1.0]), STDLIB: Samples([4.0]), EXECUTOR: Samples([2.0])}
    result = Result(case.title, 0, measured | {"loky": Samples(left_out="not installed")})

    assert result.best_other(case) == best
    assert result.reached(case, Target(3.0, BEST_OTHER)).values == [ratio]
    assert Result(case.title, 0, {OURS: Samples([1.0])}).reached(case, Target(3.0, BEST_OTHER)).values == []


@pytest.mark.parametrize(
    ("place", "seen"),
    [(1, "1"), (256, "256"), (10_000, "10,000"), (1024, "1 KiB"), (1 << 18, "256 KiB"), (1 << 26, "64 MiB")],
)
def test_powers_of_two_are_sizes(place: int, seen: str) -> None:
    """Numbers of workers and of items are numbers."""
    assert at(place) == seen


@pytest.mark.parametrize(
    ("more_is_better", "reached", "met"),
    [(True, 2.0, True), (True, 1.9, False), (False, 2.0, True), (False, 2.1, False)],
)
def test_a_target_is_a_least_where_more_is_better_and_a_most_elsewhere(
    more_is_better: bool, reached: float, met: bool
) -> None:
    """The limit itself meets the target."""
    case = Case("a case", "s", lambda rival, setting: 0.0, more_is_better)

    assert met == is_met(case, Target(2.0), Samples([reached]))


def test_an_adapter_refuses_calls_that_its_pool_does_not_have() -> None:
    """What an adapter does not define is left out for that reason, not an error."""
    with pytest.raises(rivals.LeftOut, match="has no such call"):
        rivals.Adapter(None).apply(abs, 1)
