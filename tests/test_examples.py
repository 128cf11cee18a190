from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PATIENCE = 120  # seconds

# Each example, its arguments, and lines that it must print.
EXPECTED: dict[str, tuple[list[str], list[str]]] = {
    "drop_in.py": (
        [],
        [
            "['Hello, Ada!', 'Hello, Grace!']",
            "[2.0, 4.5]",
            "[3, 2, 1]",
            "[1, 2, 3]",
            "0.25",
            "['HELLO, ADA!']",
            "ZeroDivisionError: division by zero",
            "in another process: True",
        ],
    ),
    "submit_and_callbacks.py": (
        [],
        [
            "one: 7692c3ad",
            "two: 3fc4ccfe",
            "three: 8b5b9db0",
            "called back: 04efaf08 222b0bd5 44778d82",
            "error: invalid literal for int() with base 10: 'twelve'",
        ],
    ),
    "resize_while_working.py": (
        [],
        [
            "sizes of the pool: 1 4 2",
            "more than one worker took part: True",
            "items done: 3000 of 3000, each once",
        ],
    ),
    "live_socket.py": (
        [],
        [
            "FIRST CLIENT - by a worker: True",
            "SECOND CLIENT - by a worker: True",
            "step 1 of 3",
            "step 3 of 3",
            "finished",
        ],
    ),
    "arrays.py": (
        ["--side", "1024", "--rounds", "1", "--workers", "2"],
        [
            "1024 x 1024 pixels in tiles of 512 x 512, 2 workers",
            "the same as in one piece: True",
            "checksum: 3b16d837",
        ],
    ),
    "count_stdlib.py": (["--files", "3", "--workers", "2"], []),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_example_runs_and_prints_what_it_promises(name: str) -> None:
    """The example ends well, without a warning, and has printed every line that it is there to show."""
    arguments, lines = EXPECTED[name]
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.stderr == ""
    assert done.returncode == 0
    assert [line for line in lines if line not in done.stdout.splitlines()] == []


def test_every_example_is_run() -> None:
    """No example is forgotten here."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)
