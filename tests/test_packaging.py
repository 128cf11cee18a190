"""What is installed, and that PAIRPOOL_EXTENSION decides about the C twin when building and when running."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import pairpool._framing_py
from twins import TWINS, needs_c

ROOT = Path(__file__).parents[1]
PACKAGE = Path(pairpool._framing_py.__file__).parent

SHOW_TWIN = "import pairpool._framing as f; print(f.TWIN, f.twin.__name__, f.pack.__module__)"
BLOCK_C = "import sys; sys.modules['pairpool._framing_c'] = None; "


def run_python(
    *arguments: str, extension: str | None, where: Path | None = None, setting: tuple[str, str] = ("", "")
) -> subprocess.CompletedProcess[str]:
    """Run an interpreter with this PAIRPOOL_EXTENSION (None: unset), as it finds the package here."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    environment.pop("PAIRPOOL_EXTENSION", None)
    if extension is not None:
        environment["PAIRPOOL_EXTENSION"] = extension
    name, value = setting
    if name:
        environment[name] = value
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)


# --- At run time -------------------------------------------------------------------------------------------

PYTHON_TWIN = "python pairpool._framing_py pairpool._framing_py\n"
C_TWIN = "c pairpool._framing_c pairpool._framing_c\n"


@needs_c
@pytest.mark.parametrize("extension", [None, "", "1"])
def test_the_c_twin_runs_where_it_can_be_had(extension: str | None) -> None:
    """Unset, empty or 1 takes the C twin if it is there."""
    assert run_python("-c", SHOW_TWIN, extension=extension).stdout == C_TWIN


def test_the_python_twin_runs_on_request() -> None:
    """0 takes the Python twin whether or not the C twin is there."""
    assert run_python("-c", SHOW_TWIN, extension="0").stdout == PYTHON_TWIN


@pytest.mark.parametrize("extension", [None, "", "0"])
def test_the_python_twin_runs_where_there_is_no_other(extension: str | None) -> None:
    """Without the C twin the Python twin runs, unless C was demanded."""
    assert run_python("-c", BLOCK_C + SHOW_TWIN, extension=extension).stdout == PYTHON_TWIN


def test_a_demanded_c_twin_that_is_missing_is_an_error() -> None:
    """1 raises ImportError where the C twin is not there."""
    run = run_python("-c", BLOCK_C + SHOW_TWIN, extension="1")

    assert (run.returncode, "ModuleNotFoundError: import of pairpool._framing_c halted" in run.stderr) == (
        1,
        True,
    )


def test_a_choice_that_is_none_is_an_error() -> None:
    """Anything else than 0 and 1 is refused in words."""
    run = run_python("-c", SHOW_TWIN, extension="yes")

    assert run.stderr.endswith("ImportError: PAIRPOOL_EXTENSION must be 0, 1 or unset, not 'yes'\n")


# --- At build time -----------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of whatever the extension is built from."""
    pytest.importorskip("setuptools", minversion="77", reason="pyproject.toml asks for it")
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").touch()
    (tmp_path / "pairpool").mkdir()
    shutil.copy(ROOT / "pairpool" / "_framing_c.c", tmp_path / "pairpool")
    return tmp_path


def build(checkout: Path, extension: str | None, setting: tuple[str, str] = ("", "")) -> tuple[int, list[str], str]:
    """Build in place; return the exit code, the libraries that were built, and what was printed."""
    command = ["-W", "ignore", "setup.py", "build_ext", "--inplace"]
    run = run_python(*command, extension=extension, where=checkout, setting=setting)
    built = [path.name for path in (checkout / "pairpool").glob("*.so")]
    return run.returncode, built, run.stdout + run.stderr


COMPILER = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="there is no C compiler")


@needs_compiler
@pytest.mark.parametrize("extension", [None, "1"])
def test_the_extension_is_built_without_a_warning(checkout: Path, extension: str | None) -> None:
    """The C twin is built, for every version by the oldest only, and the compiler finds nothing to say."""
    suffix = ".abi3.so" if sys.version_info[:2] == (3, 11) else sysconfig.get_config_var("EXT_SUFFIX")

    code, built, output = build(checkout, extension, ("CFLAGS", "-O2 -Wall -Wextra -Werror"))

    assert (code, built) == (0, [f"_framing_c{suffix}"]), output


@needs_compiler
def test_the_extension_is_not_built_where_it_is_not_wanted(checkout: Path) -> None:
    """0 builds nothing."""
    assert build(checkout, "0")[:2] == (0, [])


def test_no_compiler_is_no_error_unless_the_extension_is_demanded(checkout: Path) -> None:
    """Where the C twin cannot be compiled the build goes on without it and says so; 1 makes it fail."""
    unset = build(checkout, None, ("CC", "false"))
    demanded = build(checkout, "1", ("CC", "false"))

    assert unset[:2] == (0, []), unset[2]
    assert 'building extension "pairpool._framing_c" failed' in unset[2]
    assert (demanded[0] != 0, demanded[1]) == (True, [])


def test_a_build_choice_that_is_none_is_refused(checkout: Path) -> None:
    """Anything else than 0 and 1 stops the build in words."""
    code, _, output = build(checkout, "yes")

    assert (code, "PAIRPOOL_EXTENSION must be 0, 1 or unset, not 'yes'" in output) == (1, True)


# --- What is installed -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """What pyproject.toml says of the project."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        table: dict[str, Any] = tomllib.load(file)["project"]
    return table


def test_one_package_is_needed(project: dict[str, Any]) -> None:
    """Cloudpickle is all that pairpool depends on."""
    assert [name.split(">")[0] for name in project["dependencies"]] == ["cloudpickle"]


def test_classifiers_name_the_versions_that_are_supported(project: dict[str, Any]) -> None:
    """The oldest version of the classifiers is the one required, and Linux is the only system."""
    versions = [line for line in project["classifiers"] if "Python :: 3." in line]
    systems = [line for line in project["classifiers"] if line.startswith("Operating System")]

    assert project["requires-python"] == ">=" + versions[0].rpartition(" ")[2]
    assert systems == ["Operating System :: POSIX :: Linux"]


def test_the_installed_metadata_are_those_of_the_project(project: dict[str, Any]) -> None:
    """Name, version, licence and extras are installed as pyproject.toml has them."""
    try:
        installed = metadata.metadata("pairpool")
    except metadata.PackageNotFoundError:
        pytest.skip("pairpool runs from its checkout and is not installed")

    assert (installed["Name"], installed["Version"]) == ("pairpool", project["version"])
    assert installed["License-Expression"] == project["license"] == "MIT"
    assert installed.get_all("Provides-Extra") == list(project["optional-dependencies"])


def test_the_package_says_that_it_is_typed() -> None:
    """Type checkers find the marker and the types of the C twin."""
    assert [(PACKAGE / name).is_file() for name in ("py.typed", "_framing_c.pyi")] == [True, True]


def test_the_suite_runs_over_both_twins_unless_told_otherwise() -> None:
    """A C twin that could not be built cannot leave the suite green."""
    assert set(TWINS) == ({"python"} if os.environ.get("PAIRPOOL_EXTENSION") == "0" else {"python", "c"})
