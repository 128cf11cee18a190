"""The soak: what pools are after millions of items, thousands of pools, hundreds of deaths. ``make soak``.

Run it: ``python -m soak [--minutes-scale X] [--only WORD] [--seed N] [--schedules N] [--here]``

Each part runs in a fresh process, so that none sees what another left, and prints one line: what it did, and what each
role held at the start, at the end, and at most (_flatness.py says what these are). Exit status 1 if any part fails. A
part fails, too, that leaves a process behind, wherever that went: they all have its mark in their environment.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import randrange

from benchmarks._harness import facts
from soak import arrays, chaos, deaths, items, kills, pools, resizes, simulation, sizes, submits
from soak._part import Options, Part, line

PARTS: tuple[Part, ...] = (
    items.PART,
    arrays.PART,
    sizes.PART,
    pools.PART,
    submits.PART,
    resizes.PART,
    kills.PART,
    chaos.PART,
    simulation.PART,
    deaths.PART,
)

GRACE = 30.0  # seconds beyond its own deadline after which a part is ended from outside
PATIENCE = 10.0  # seconds in which processes of a part that has ended must have ended, too
MARK = "PAIRPOOL_SOAK_PART"


def marked(mark: str) -> list[int]:
    """Return the processes that have a mark in their environment."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                environment = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has ended, or is somebody else's
            if f"{MARK}={mark}".encode() in environment:
                found.append(int(entry))
    return found


def left_behind(mark: str) -> list[int]:
    """Return the processes of a part that stay after its end."""
    deadline = time.monotonic() + PATIENCE
    while (pids := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return pids


def run_apart(part: Part, options: Options) -> bool:
    """Run a part in a process of its own, print its line, and return whether all was well."""
    mark = f"{part.name}-{os.getpid()}"
    command = [sys.executable, "-m", "soak", "--here", "--only", part.name, "--minutes-scale", f"{options.scale}"]
    command += ["--seed", f"{options.seed}", "--schedules", f"{options.schedules}"]
    # A file and no pipe: a process that is left behind would keep the pipe open, and we would wait for it.
    with tempfile.TemporaryFile() as answer:
        process = subprocess.Popen(command, stdout=answer, env={**os.environ, MARK: mark})
        try:
            status = process.wait(part.deadline_of(options) + GRACE)
            ended = f"ended with status {status}"
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
            ended = "was past its deadline"
        left = left_behind(mark)
        answer.seek(0)
        words = answer.read().decode(errors="replace").strip()
    print(words or line(part.name, False, f"{ended} before it had a result"), flush=True)
    if left:
        print(line(part.name, False, f"left processes behind: {left}"), flush=True)
    return status == 0 and not left


def main() -> int:
    """Run the parts that are asked for; 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes-scale", type=float, default=1.0, metavar="X", help="do so much of everything")
    parser.add_argument("--only", default="", metavar="WORD", help="only parts whose name has this word")
    parser.add_argument("--seed", type=int, default=randrange(1_000_000_000), help="of all that is drawn at random")
    parser.add_argument("--schedules", type=int, default=simulation.SCHEDULES, help="of the simulation, at full size")
    parser.add_argument("--here", action="store_true", help="run the parts in this process, one after another")
    given = parser.parse_args()
    options = Options(given.minutes_scale, given.seed, given.schedules)
    parts = [part for part in PARTS if given.only in part.name]
    if not parts:
        parser.error(f"no part is called so; there are {', '.join(part.name for part in PARTS)}")
    if given.here:
        return int(bool([part for part in parts if not part.run(options)]))
    legend = "median of the second tenth of the readings -> of the last, of what is allowed; the greatest of each role"
    for name, value in {**facts(), "seed": options.seed, "scale": options.scale, "figures": legend}.items():
        print(f"{name:<10}  {value}", flush=True)
    return int(bool([part for part in parts if not run_apart(part, options)]))


if __name__ == "__main__":
    sys.exit(main())
