"""What a run found, for readers and for programs: lines as it goes, a Markdown page, a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks._harness import BEST_OTHER, Case, Result, Samples, Target, at, is_met, rounded
from benchmarks.rivals import OURS, STDLIB

PREFACE = """\
Written by `make bench`. Each figure is the median over the rounds (least .. greatest), and each measurement a fresh
process. A ratio is taken within each round; its median is what is held against the target. Where no target speaks of
a pool it takes part in fewer rounds."""


def as_lines(case: Case, result: Result) -> str:
    """Return what was found in one case, a rival in each line."""
    where = f", {case.axis}: {at(result.point)}" if case.axis else ""
    lines = [f"\n{case.title}{where} [{case.unit}]"]
    width = max(map(len, result.rivals), default=0)
    lines += [f"  {name:<{width}}  {samples}" for name, samples in result.rivals.items()]
    lines += [f"  {_in_words(case, target, result)}" for target in case.targets]
    return "\n".join(lines)


def _in_words(case: Case, target: Target, result: Result) -> str:
    reached = result.reached(case, target)
    return f"must reach {_limit(case, target)}: {reached}, {_verdict(case, target, reached)}"


def _limit(case: Case, target: Target) -> str:
    sign = ">=" if case.more_is_better else "<="
    return f"{sign} {rounded(target.limit)}" + (f" x {target.against}" if target.against else f" {case.unit}")


def _verdict(case: Case, target: Target, reached: Samples) -> str:
    if not reached.values:
        return "not measured"
    return "met" if is_met(case, target, reached) else "missed"


def missed(cases: Sequence[Case], results: Iterable[Result]) -> list[str]:
    """Return what was measured and does not reach its target."""
    by_title = {case.title: case for case in cases}
    return [
        f"{result.title}: {_in_words(by_title[result.title], target, result)}"
        for result in results
        for target in by_title[result.title].targets
        if _verdict(by_title[result.title], target, result.reached(by_title[result.title], target)) == "missed"
    ]


def as_markdown(about: Mapping[str, str], cases: Sequence[Case], results: Sequence[Result]) -> str:
    """Return the page: the machine, the targets, every pool, what grows, and what each row times."""
    by_title = {case.title: case for case in cases}
    pairs = [(by_title[result.title], result) for result in results]
    single = [(case, result) for case, result in pairs if case.axis is None]
    parts = [
        "# Benchmarks",
        PREFACE,
        _table(["machine", ""], [[name, value] for name, value in about.items()]),
        "## What must be reached",
        _table(
            [
                "case",
                "unit",
                "pairpool",
                "held against",
                "its figure",
                "ratio",
                "must be",
                "verdict",
                "best other pool",
            ],
            _target_rows(single),
        ),
        "## Every pool",
        _every_pool("case", [(f"{case.title} [{case.unit}]", result) for case, result in single]),
    ]
    for case in cases:
        points = [(at(result.point), result) for each, result in pairs if each is case and case.axis]
        if points:
            parts += [f"## {case.title} [{case.unit}]", _every_pool(str(case.axis), points)]
    measured = [case for case in cases if case.title in {result.title for result in results}]
    parts += ["## What each row times", "\n".join(f"- **{case.title}**: {case.what}" for case in measured)]
    return "\n\n".join(parts) + "\n"


def _target_rows(pairs: Sequence[tuple[Case, Result]]) -> Iterator[list[str]]:
    for case, result in pairs:
        for target in case.targets or (None,):
            of = OURS if target is None else target.of
            against = (target and result.against(case, target)) or STDLIB
            must = "" if target is None else _limit(case, target).removesuffix(f" x {target.against}")
            title = case.title if of == OURS else f"{case.title}, {of.partition(', ')[2]}"
            ours, theirs = result.samples(of), result.samples(against)
            yield [
                title,
                case.unit,
                str(ours),
                f"{BEST_OTHER}, {against}" if target and target.against == BEST_OTHER else against,
                str(theirs),
                str(ours.by(theirs)),
                must.removesuffix(case.unit),
                "" if target is None else _verdict(case, target, result.reached(case, target)),
                _best_other(case, result, of),
            ]


def _best_other(case: Case, result: Result, of: str) -> str:
    """Return which of the pools that are not ours has the best median, and how one of ours compares to it."""
    best = result.best_other(case)
    if best is None:
        return "-"
    theirs = result.samples(best)
    ratio = result.samples(of).by(theirs)
    return f"{best}: {rounded(theirs.median)}" + (f" (ours x {rounded(ratio.median)})" if ratio.values else "")


def _every_pool(head: str, rows: Sequence[tuple[str, Result]]) -> str:
    names = list(dict.fromkeys(name for _, result in rows for name in result.rivals))
    return _table(
        [head, *names],
        [[label, *(str(result.rivals.get(name, "-")) for name in names)] for label, result in rows],
    )


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").strip() for cell in line) + " |" for line in lines)


def write_json(file: Path, about: Mapping[str, str], cases: Sequence[Case], results: Sequence[Result]) -> None:
    """Write all that was measured, value by value."""
    units = {case.title: case.unit for case in cases}
    document = {
        "facts": dict(about),
        "results": [asdict(result) | {"unit": units[result.title]} for result in results],
    }
    file.write_text(json.dumps(document, indent=1) + "\n")


def read_json(file: Path) -> tuple[dict[str, str], list[Result]]:
    """Read what was written of an earlier run."""
    document = json.loads(file.read_text())
    results = [
        Result(each["title"], each["point"], {name: Samples(**values) for name, values in each["rivals"].items()})
        for each in document["results"]
    ]
    return document["facts"], results
