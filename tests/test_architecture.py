"""The architecture, held by a test: which part may know of which, read from the source.

pairpool is built in storeys. A module may import from its own storey and from those that `STOREYS`
allows to it, all of which lie below it in the table; and where a storey has a door, nobody outside
imports anything of it but the door. Imports that only a type checker sees do not count.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import pairpool

pytestmark = pytest.mark.once

PACKAGE = Path(pairpool.__file__).parent
LONGEST_FILE = 450  # lines; a file that wants more is missing a noun


@dataclass(frozen=True)
class Storey:
    """Some modules that lie side by side, and the storeys below that they may use."""

    modules: str
    may_use: str = ""
    doors: str = ""  # what others may import of it; everything where there is no door


# From the ground up.
STOREYS = {
    "errors": Storey("errors _masks _strikes"),
    "descriptors": Storey("_descriptors _deadman", "errors"),
    "words": Storey("_packet _states _waiting _size _cgroup", "errors descriptors"),
    "framing": Storey("_framing _framing_py _transfer_py _sharing_py _framing_c", "errors words", doors="_framing"),
    "transport": Storey("_channel _page _outbox _slab", "errors words descriptors framing"),
    "pickling": Storey(
        "_namespaces _anatomy _fingerprint _ledger _by_value _kept _parcels _passing _plain _returning "
        "_remote_errors _envelope _payload _shared _codec",
        "errors descriptors framing transport",
        doors="_codec",
    ),
    "worker": Storey(
        "_runner _units _interrupts _memory _worker", "errors words descriptors framing transport pickling"
    ),
    "zygote": Storey("_orders _surroundings _nursery _birth _zygote", "errors descriptors worker", doors="_zygote"),
    "scheduler": Storey("_scheduler _balance _backlog _roster _pacing _ranges _limits _respawn", "words"),
    "jobs": Storey(
        "_jobs _calls _body _bounds _refusals _record _prepared _terms _feeder",
        "errors words descriptors pickling worker scheduler",
    ),
    "engines": Storey(
        "engines _objects _handle _outgoing _pump engines.inline engines.threads engines.local engines.dask "
        "engines.ray",
        "errors words descriptors framing transport pickling worker zygote",
        doors="engines",
    ),
    "dispatch": Storey(
        "_core _answers _exchange _delivered _dispatch",
        "errors words descriptors pickling scheduler jobs engines",
        doors="_dispatch",
    ),
    "faces": Storey(
        "pool _tasks results _iterators _arguments _future executor joblib _context _install __init__",
        "errors dispatch",
    ),
    # What is asked from a shell is answered from where it is known.
    "shell": Storey("__main__", "errors words framing scheduler faces"),
}

# Beyond the storeys: what single modules promise.
NEVER_IMPORTED = {
    # module: what it does without, whose it is
    "_scheduler": "os socket time threading select asyncio logging multiprocessing",  # events in, actions out
    "_states": "os socket time threading select asyncio logging multiprocessing",
    "_backlog": "os socket time threading select asyncio logging multiprocessing",
    "_roster": "os socket time threading select asyncio logging multiprocessing",
    "_respawn": "os socket time threading select asyncio logging multiprocessing",
    "_pacing": "os socket time threading select asyncio logging multiprocessing",
    "_packet": "os socket time threading select asyncio multiprocessing",
    "errors": "os socket threading select pickle",
}
USERS_ONLY = {
    # door: the storeys whose modules use it, and no others
    "_codec": "worker jobs engines dispatch",
    "_zygote": "engines",
    "_scheduler": "jobs dispatch",
    "_dispatch": "faces",
    "engines": "dispatch",
}
OPTIONAL = ("numpy", "joblib", "dask", "distributed", "ray", "tqdm", "psutil")
EXTRAS = ("joblib", "engines.dask", "engines.ray")  # loaded for those who have asked for the extra
DEPENDENCIES = ("cloudpickle",)

# Where the door is not taken, and why.
BY_THE_WINDOW = {
    ("_page", "_framing_py"): "the words of a page are laid out where the functions over it are specified",
    ("_outbox", "_framing_py"): "and so is that of an outbox",
}


class Import(NamedTuple):
    """One module imported by another."""

    importer: str
    imported: str
    on_import: bool  # and not in a function, later


def modules() -> dict[str, Path]:
    """Return every module of the package by its name within it."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts)] = path
    return found


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _imports(tree: ast.AST, on_import: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield every dotted name that a piece of code imports, and whether it does so on import."""
    for node in ast.iter_child_nodes(tree):
        if _is_for_types(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, on_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that they can be read"
            yield from ((f"{node.module}.{alias.name}", on_import) for alias in node.names)
        in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(node, on_import and not in_function)


@cache
def all_imports() -> list[tuple[str, str, bool]]:
    """Return importer, dotted name and time of every import in the package."""
    return [
        (name, imported, on_import)
        for name, path in modules().items()
        for imported, on_import in _imports(ast.parse(path.read_text()))
    ]


@cache
def own_imports() -> list[Import]:
    """Return the imports of modules of pairpool by modules of pairpool."""
    known = modules()
    found = []
    for importer, dotted, on_import in all_imports():
        package, _, rest = dotted.partition(".")
        if package == "pairpool":
            # The last piece is a module, or a name within the module before it.
            module = rest if rest in known else rest.rpartition(".")[0]
            found.append(Import(importer, module or "__init__", on_import))
    return [each for each in found if each.importer != each.imported]


def storey_of(module: str) -> str:
    """Return the storey in which a module lies."""
    for name, storey in STOREYS.items():
        if module in storey.modules.split():
            return name
    raise LookupError(f"{module} has no place in STOREYS yet")


def test_every_module_has_its_place() -> None:
    """Each module is in exactly one storey; a new one is put there before it is used."""
    placed = [module for storey in STOREYS.values() for module in storey.modules.split()]

    assert len(placed) == len(set(placed))
    assert set(modules()) <= set(placed)


def test_storeys_lie_above_what_they_use() -> None:
    """The table itself is in order: no storey uses one that is listed after it."""
    below: list[str] = []
    for name, storey in STOREYS.items():
        assert set(storey.may_use.split()) <= set(below), name
        below.append(name)


def test_arrows_point_down_only() -> None:
    """No module imports from a storey that its own may not use."""
    wrong = [
        f"{each.importer} ({storey_of(each.importer)}) imports {each.imported} ({storey_of(each.imported)})"
        for each in own_imports()
        if storey_of(each.imported)
        not in (storey_of(each.importer), *STOREYS[storey_of(each.importer)].may_use.split())
    ]
    assert wrong == []


def test_storeys_are_entered_by_their_doors() -> None:
    """What lies behind a door is imported by its own storey only."""
    wrong = [
        f"{each.importer} imports {each.imported}"
        for each in own_imports()
        if storey_of(each.importer) != storey_of(each.imported)
        and (doors := STOREYS[storey_of(each.imported)].doors.split())
        and each.imported not in doors
        and (each.importer, each.imported) not in BY_THE_WINDOW
    ]
    assert wrong == []


@pytest.mark.parametrize("door", USERS_ONLY)
def test_a_door_is_used_by_those_it_is_for(door: str) -> None:
    """Each of the inner parts is known to its few users and to nobody else."""
    users = {storey_of(each.importer) for each in own_imports() if each.imported == door}

    assert users - {storey_of(door)} <= set(USERS_ONLY[door].split())


def test_modules_do_not_import_each_other_in_circles() -> None:
    """Imports that run on import can be put in an order."""
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for each in own_imports():
        if each.on_import:
            graph[each.importer].add(each.imported)

    assert len([*TopologicalSorter(graph).static_order()]) == len(graph)


@pytest.mark.parametrize("module", NEVER_IMPORTED)
def test_a_module_does_without(module: str) -> None:
    """The pure parts know neither clock nor system, so that a test can be both."""
    roots = {dotted.split(".")[0] for importer, dotted, _ in all_imports() if importer == module}

    assert roots & set(NEVER_IMPORTED[module].split()) == set()


def test_errors_stand_on_their_own() -> None:
    """Errors imports nothing of pairpool."""
    assert [each for each in own_imports() if each.importer == "errors"] == []


def test_nothing_optional_is_imported_before_it_is_asked_for() -> None:
    """No module imports an extra at its head."""
    wrong = [
        (importer, dotted)
        for importer, dotted, on_import in all_imports()
        if on_import and dotted.split(".")[0] in OPTIONAL and importer not in ("joblib", "engines.dask", "engines.ray")
    ]
    assert wrong == []


def test_only_the_standard_library_and_two_dependencies_are_imported() -> None:
    """Nothing else is needed to run a pool."""
    roots = {dotted.split(".")[0] for _, dotted, on_import in all_imports() if on_import}

    assert roots - set(sys.stdlib_module_names) <= {"pairpool", *DEPENDENCIES, *OPTIONAL}


def test_importing_pairpool_starts_nothing_and_loads_nothing() -> None:
    """``import pairpool`` loads no part that is not asked for, starts no thread and opens nothing."""
    program = (
        "import os, sys, threading\n"
        "before = set(sys.modules), os.listdir('/proc/self/fd')\n"
        "import pairpool\n"
        "new = {name for name in sys.modules if name.split('.')[0] not in sys.stdlib_module_names}\n"
        "print(*sorted(new - before[0]))\n"
        "assert os.listdir('/proc/self/fd') == before[1]\n"
        "assert threading.active_count() == len(os.listdir('/proc/self/task')) == 1\n"
        "assert 'multiprocessing.pool' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["pairpool"]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_file_is_longer_than_one_thought(path: Path) -> None:
    """A file stays within a length that one can hold in mind."""
    length = path.read_text().count("\n")

    assert length <= LONGEST_FILE
