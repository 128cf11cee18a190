"""Where the package commits, and what its byte code does there.

A *commit* is what follows a comment ``# commit`` up to the end of its block or to a blank line. A signal handler may
raise where CPython looks for signals: when a function is entered, when a loop turns, when a C function returns. A
commit has none of these, so it happens wholly or not at all.
"""

from __future__ import annotations

import dis
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import pairpool

PACKAGE = Path(pairpool.__file__).parent

# Instructions that are operators: they call nothing of Python's as long as what they work on is built in, and look
# for no signals. LIST_EXTEND drives an iterator, which is one of C functions wherever a commit has it.
OPERATORS = frozenset({
    "BINARY_OP", "BINARY_SUBSCR", "BUILD_LIST", "BUILD_SLICE", "BUILD_TUPLE", "COMPARE_OP", "CONTAINS_OP", "COPY",
    "DELETE_FAST", "DELETE_SUBSCR", "EXTENDED_ARG", "IS_OP", "LIST_EXTEND", "LOAD_ATTR", "LOAD_CONST", "LOAD_DEREF",
    "LOAD_FAST", "LOAD_GLOBAL", "NOP", "POP_TOP", "STORE_ATTR", "STORE_FAST", "STORE_SUBSCR", "SWAP", "UNARY_NOT",
})  # fmt: skip
# How they leave a commit, or choose within it by something computed before.
BRANCHES = frozenset({
    "JUMP_BACKWARD", "JUMP_FORWARD", "JUMP_IF_FALSE_OR_POP", "JUMP_IF_TRUE_OR_POP", "POP_JUMP_FORWARD_IF_FALSE",
    "POP_JUMP_FORWARD_IF_NONE", "POP_JUMP_FORWARD_IF_NOT_NONE", "POP_JUMP_FORWARD_IF_TRUE", "POP_JUMP_IF_FALSE",
    "POP_JUMP_IF_NONE", "POP_JUMP_IF_NOT_NONE", "POP_JUMP_IF_TRUE", "RAISE_VARARGS", "RETURN_CONST", "RETURN_VALUE",
})  # fmt: skip
# Spelt otherwise by some version: 3.12 has slices of their own, 3.13 pairs of loads and stores and an explicit bool().
VARIANTS = frozenset({
    "BINARY_SLICE", "LOAD_FAST_CHECK", "LOAD_FAST_LOAD_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST",
    "STORE_SLICE", "TO_BOOL",
})  # fmt: skip
ALLOWED = OPERATORS | BRANCHES | VARIANTS


@dataclass(frozen=True)
class Commit:
    """The lines of one commit."""

    path: Path
    lines: range

    def __str__(self) -> str:
        return f"{self.path.relative_to(PACKAGE).as_posix()}:{self.lines.start}"


def commits_in(path: Path) -> list[Commit]:
    """Return the commits of a source file."""
    source = path.read_text()
    lines = source.splitlines()
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.string.startswith("# commit"):
            line, indentation = token.start
            end = line
            while end < len(lines) and _indentation(lines[end]) >= indentation:
                end += 1
            found.append(Commit(path, range(line + 1, end + 1)))
    return found


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip()) if line.strip() else -1


def all_commits() -> list[Commit]:
    """Return every commit of the package."""
    return [commit for path in sorted(PACKAGE.rglob("*.py")) for commit in commits_in(path)]


def forbidden(commit: Commit) -> list[str]:
    """Return the instructions of a commit at which a signal might strike, or something unknown run."""
    module = compile(commit.path.read_text(), str(commit.path), "exec")
    return [
        f"line {line}: {instruction.opname} {instruction.argrepr}"
        for code in _code_objects(module)
        for line, instruction, lines_by_offset in _instructions(code, commit.lines)
        if instruction.opname not in ALLOWED or _turns(instruction, lines_by_offset, commit.lines)
    ]


def changes(commit: Commit) -> int:
    """Return how many instructions of a commit change something."""
    module = compile(commit.path.read_text(), str(commit.path), "exec")
    opnames = [each.opname for code in _code_objects(module) for _, each, _ in _instructions(code, commit.lines)]
    return sum(name in ("STORE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR", "BINARY_OP", "LIST_EXTEND") for name in opnames)


def _code_objects(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_objects(constant)


def _instructions(code: CodeType, lines: range) -> Iterator[tuple[int, dis.Instruction, dict[int, int]]]:
    instructions = list(dis.get_instructions(code))
    lines_by_offset = {each.offset: each.positions.lineno or 0 for each in instructions if each.positions}
    for each in instructions:
        line = lines_by_offset.get(each.offset, 0)
        # What has no line is the end of a loop or function, put there by the compiler.
        if line in lines:
            yield line, each, lines_by_offset


def _turns(instruction: dis.Instruction, lines_by_offset: dict[int, int], lines: range) -> bool:
    """Whether it begins another turn of a loop within the commit, not the next turn of one around it."""
    return instruction.opname == "JUMP_BACKWARD" and lines_by_offset[instruction.argval] in lines
