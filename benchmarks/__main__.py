"""Measure pairpool beside the other pools. ``make bench`` installs them and writes all that there is to see.

Run it: ``python -m benchmarks [--quick] [--rounds N] [--workers N] [--only WORD] [--rivals NAMES] [--check]
[--json FILE] [--markdown FILE] [--svg DIR]``, or with ``--from FILE`` to draw an earlier run again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks import balance, footprint, large, latency, scale, throughput
from benchmarks._harness import Options, Setting, cases_of, facts, measure_here, run
from benchmarks._report import as_lines, as_markdown, missed, read_json, write_json
from benchmarks.rivals import IN_PYTHON, NO_SUCH_CALL, OURS, RIVALS

MODULES = (throughput, latency, footprint, balance, large, scale)
CASES = cases_of(*MODULES)


def _names(given: str) -> list[str]:
    names = [name.strip() for name in given.split(";")]
    if unknown := set(names) - set(RIVALS):
        raise argparse.ArgumentTypeError(f"no such rival: {', '.join(unknown)}; there are: {'; '.join(RIVALS)}")
    return names


def parse_command_line() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it runs")
    parser.add_argument("--rounds", type=int, help="how often each rival has its turn (default 5)")
    parser.add_argument("--workers", type=int, default=2, help="workers of each pool (default 2)")
    parser.add_argument("--only", default="", metavar="WORD", help="only cases whose title has this")
    parser.add_argument("--rivals", type=_names, default=list(RIVALS), metavar="NAMES", help="only these, between `;`")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write facts and samples to a file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to a file")
    parser.add_argument("--svg", type=Path, metavar="DIR", help="draw the charts (needs matplotlib)")
    parser.add_argument("--from", type=Path, dest="earlier", metavar="FILE", help="measure nothing, read this JSON")
    # What the harness says to a process that is to measure once.
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "RIVAL"), help=argparse.SUPPRESS)
    parser.add_argument("--point", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run what the command line asks for, and return the exit status."""
    given = parse_command_line()
    by_title = {case.title: case for case in CASES}
    if given.measure:
        title, rival = given.measure
        measure_here(by_title[title], RIVALS[rival], Setting(given.workers, given.quick, given.point))
        return 0

    for file in (given.json, given.markdown):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)  # now, and not after a quarter of an hour
    if given.earlier:
        about, results = read_json(given.earlier)
    else:
        options = Options(
            given.rounds or (1 if given.quick else 5), given.quick, given.workers, given.only, given.rivals
        )
        about = facts(options.rivals) | {"workers": str(options.workers), "rounds": str(options.rounds)}
        width = max(map(len, about))
        print("\n".join(f"{name:<{width}}  {value}" for name, value in about.items()), flush=True)
        results = []
        for result in run(CASES, options):
            results.append(result)
            print(as_lines(by_title[result.title], result), flush=True)
        about["load"] += f", {os.getloadavg()[0]:.2f} when it ended"

    if given.json:
        write_json(given.json, about, CASES, results)
    if given.markdown:
        given.markdown.write_text(as_markdown(about, CASES, results))
    if given.svg:
        from benchmarks._charts import draw  # whoever wants no charts needs no matplotlib

        draw(given.svg, MODULES, results)

    failed = [
        f"{result.title}, {name}: {samples.left_out}"
        for result in results
        for name, samples in result.rivals.items()
        if name in (OURS, IN_PYTHON) and samples.left_out not in (None, NO_SUCH_CALL)  # as an earlier version may
    ]
    short = missed(CASES, results)
    print("\n" + "\n".join([f"{len(short)} targets missed", *short, *failed]))
    return 1 if failed or (given.check and short) else 0


if __name__ == "__main__":
    sys.exit(main())
