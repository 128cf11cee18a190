"""Counts tokens and names in every Python file of the interpreter's own standard library.

Each file is a task of its own: it is read, cut into tokens by `tokenize` and parsed by `ast`, and
what was counted is added up in the caller as it arrives. The same is then done by
multiprocessing.Pool; the counts must be equal, and the times stand side by side.

Run it: ``make demo``, or ``python examples/count_stdlib.py [--workers N] [--files N]``
"""

from __future__ import annotations

import argparse
import ast
import multiprocessing
import os
import platform
import sysconfig
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pairpool

ROWS = 12  # of the table that is printed


@dataclass
class Counts:
    """What was counted in some files."""

    files: int = 0
    unreadable: int = 0
    lines: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Add what was counted elsewhere."""
        self.files += other.files
        self.unreadable += other.unreadable
        self.lines += other.lines
        self.tokens.update(other.tokens)
        self.names.update(other.names)


def names_in(tree: ast.AST) -> Counter[str]:
    """Count each use of a name in a syntax tree: variables, attributes, arguments, keywords, definitions."""
    names: Counter[str] = Counter()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                names[name] += 1
            case ast.keyword(arg=str(name)):
                names[name] += 1
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names[name] += 1
    return names


def count(path: Path) -> Counts:
    """Count one file. The library has files that are no valid Python, on purpose, for its tests."""
    try:
        with warnings.catch_warnings(), tokenize.open(path) as source:
            warnings.simplefilter("ignore")  # old escapes in the files that are read
            text = source.read()
            tree = ast.parse(text)
            lines = iter(text.splitlines(keepends=True))
            tokens = Counter(token.string for token in tokenize.generate_tokens(lambda: next(lines, "")))
    except (SyntaxError, UnicodeDecodeError, ValueError, tokenize.TokenError, RecursionError):
        return Counts(unreadable=1)
    for blank in [token for token in tokens if not token.strip()]:
        del tokens[blank]
    return Counts(1, 0, text.count("\n"), tokens, names_in(tree))


def standard_library() -> list[Path]:
    """Return every Python file of this interpreter's standard library, largest first.

    (A large file that is begun last leaves all workers but one without work at the end.)
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in root.rglob("*.py") if "site-packages" not in path.parts]
    return sorted(files, key=lambda path: (-path.stat().st_size, path))


def count_with(make_pool: Callable[[int], Any], workers: int, files: list[Path]) -> tuple[Counts, float]:
    """Count all files with the workers of one pool; return the sum and the seconds it took."""
    begun = time.perf_counter()
    total = Counts()
    with make_pool(workers) as pool:
        for counts in pool.imap_unordered(count, files):
            total.add(counts)
    pool.join()
    return total, time.perf_counter() - begun


def print_table(counts: Counts) -> None:
    """Print the most frequent tokens and names, side by side."""
    print(f"{'token':<16}{'times':>10}    {'name':<16}{'times':>10}")
    rows = zip(counts.tokens.most_common(ROWS), counts.names.most_common(ROWS), strict=True)
    for (token, often), (name, used) in rows:
        print(f"{token:<16}{often:>10,}    {name:<16}{used:>10,}")


def main() -> None:
    """Count with both pools, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=max(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--files", type=int, help="count only so many of the files")
    options = parser.parse_args()

    files = standard_library()[: options.files]
    print(f"Python {platform.python_version()}: {len(files)} files, {options.workers} workers", flush=True)
    ours, seconds = count_with(pairpool.Pool, options.workers, files)
    print_table(ours)
    print(
        f"{ours.files} files with {ours.lines:,} lines, {ours.tokens.total():,} tokens and "
        f"{ours.names.total():,} names; {ours.unreadable} files are no valid Python",
        flush=True,
    )
    theirs, their_seconds = count_with(multiprocessing.Pool, options.workers, files)
    if ours != theirs:
        raise SystemExit("the counts differ")
    print(f"pairpool.Pool         {seconds:7.2f} s")
    print(f"multiprocessing.Pool  {their_seconds:7.2f} s   (the same counts)")


if __name__ == "__main__":
    main()
