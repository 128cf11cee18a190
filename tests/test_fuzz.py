"""The fuzzer: it comes to everything that there is to come to, and what it finds it tells so that it is found again."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pairpool import _framing, _framing_py
from twins import needs_c

ROOT = Path(__file__).parent.parent
INPUTS = 20_000

# Has the specification be wrong about one message in some hundreds, and then fuzzes.
SABOTAGED = """
import os, signal
from pairpool import _framing_py

sound = _framing_py.unpack

def unpack(message):
    kind, ident, buffers = sound(message)
    if kind == 77:
        {sabotage}
    return kind, ident, buffers

_framing_py.unpack = unpack
from fuzz import framing
framing.main()
"""


def fuzz(*arguments: str, program: str | None = None) -> tuple[int, str]:
    """Run the fuzzer, or a program instead of it; return its exit code and all that it says."""
    what = ["-m", "fuzz.framing"] if program is None else ["-c", program]
    command = [sys.executable, *what, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout


def reasons() -> set[str]:
    """Return every reason for which the specification refuses something, as its own text has it."""
    unpack, admit, pack = (inspect.getsource(each) for each in (_framing_py.unpack, _framing.admit, _framing_py.pack))
    faults = re.findall(r'fault = f?"(.+)"', admit)
    return {
        *(f"unpack: {reason}" for reason in re.findall(r'_malformed\(view, "(.+)"\)', unpack)),
        *(f"admit: {re.sub('{.*?}', 'N', fault)}" for fault in faults),
        *(f"pack: {error}" for error in re.findall(r'BufferError\("(.+)"\)', pack)),
        # Two words are for a number of buffers that no machine has the memory for.
        *(f"pack: {name} must be" for name in re.findall(r'_within\("(\w+)"', pack)),
    }


@needs_c
def test_every_reason_to_refuse_and_acceptance_are_reached() -> None:
    """The twins agree on the first inputs of a seed, among which is everything that may become of one."""
    code, said = fuzz("--inputs", str(INPUTS), "--seed", "1")
    assert code == 0, said
    reached = {line.split(maxsplit=1)[-1] for line in said.splitlines()}
    accepted = {f"{name}: accepted" for name in ("unpack", "pack", "admit", "records", "outbox", "page")}

    assert len(reasons()) >= 15
    assert (reasons() | accepted | {"answer: accepted: outcomes", "answer: the worker ends"}) - reached == set()


@needs_c
def test_a_seed_gives_the_same_inputs_however_many_processes_share_them() -> None:
    """What becomes of the inputs of a seed is the same in each run."""
    alone, shared = (fuzz("--inputs", "3500", "--seed", "2", "--processes", number) for number in ("1", "3"))

    assert (alone[0], alone[1].splitlines()[2:]) == (0, shared[1].splitlines()[2:]), alone[1]


@needs_c
@pytest.mark.parametrize(
    ("sabotage", "words"),
    [
        ("return kind, ident, buffers[1:]", "the twins disagree"),
        ("raise KeyError(kind)", "the twins disagree"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "it ended the process, with exit code -9"),
    ],
    ids=["another value", "another error", "death"],
)
def test_a_fault_is_told_with_the_command_that_shows_it_again(sabotage: str, words: str) -> None:
    """An input that is not taken well is printed; its number alone is enough to run it once more."""
    program = SABOTAGED.format(sabotage=sabotage)
    code, said = fuzz("--inputs", "20000", "--seed", "3", program=program)
    found = re.search(r"^replay: python -m fuzz.framing (--seed 3 --number \d+)$", said, re.MULTILINE)
    assert found is not None, said
    again = fuzz(*found[1].split(), program=program)

    assert (code, words in said, "bytes.fromhex('70616972" in said) == (1, True, True), said
    assert again[0] == (-9 if "kill" in sabotage else 1), again[1]
    assert fuzz(*found[1].split())[0] == 0
