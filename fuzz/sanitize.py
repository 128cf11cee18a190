"""Runs the C twin with AddressSanitizer and UndefinedBehaviorSanitizer: the tests that use it most, and the fuzzer.

Run it: ``python -m fuzz.sanitize [--inputs N]``. A copy of the package is built in a temporary folder, and whatever
is built in this one stays as it is. The interpreter is not instrumented: the runtime is preloaded into it, and with
PYTHONMALLOC=malloc all that it allocates has the sanitizer's red zones around it.

What a sanitizer has to say goes to files and not to stderr, since a worker may be the one that says it: its end would
be taken for one of those that a test is about. First of all faults are planted, in an extension of their own, which
must be reported; otherwise nothing that follows would mean anything.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]

TESTS: Final = (
    "framing",
    "page",
    "sharing",
    "groups",
    "programs",
    "local",
    "waiting",
    "exchange",
    "lone_calls",
    "slab",
    "slab_shortages",
)

FLAGS: Final = (
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    *("-g", "-O1", "-fPIC", "-shared"),
    # As a library of its own the one runtime would have the other told where reports go, and not itself.
    *("-static-libubsan", "-Wl,--exclude-libs,libubsan.a"),
)
# What setup.py asks for, since that is what is shipped.
MACROS: Final = ("-DPy_LIMITED_API=0x030B0000",) if sys.version_info[:2] == (3, 11) else ()

HANG: Final = 300  # seconds until a test that hangs becomes a traceback: everything is slow here

# Overreads by one byte and shifts by as much as it is told; the interpreter itself does neither.
PLANTED: Final = """
#include <Python.h>

static PyObject *overread(PyObject *module, PyObject *buffer) {
    Py_buffer view;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    long behind = ((volatile char *)view.buf)[view.len];
    PyBuffer_Release(&view);
    return PyLong_FromLong(behind);
}

static PyObject *shift(PyObject *module, PyObject *places) {
    return PyLong_FromLong(1 << PyLong_AsLong(places));
}

static PyMethodDef methods[] = {{"overread", overread, METH_O, NULL}, {"shift", shift, METH_O, NULL}, {NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "planted", NULL, 0, methods};

PyMODINIT_FUNC PyInit_planted(void) {
    return PyModule_Create(&definition);
}
"""

# Each is done by a child, of whose end nobody takes notice: only the report can give it away.
IN_A_CHILD: Final = "import os, planted, array\nif not os.fork(): planted.{fault}; os._exit(0)\nos.wait()"
FAULTS: Final = {
    "overread(array.array('B', bytes(27))[:])": "heap-buffer-overflow",
    "shift(32)": "shift exponent 32 is too large",
}

# The runtime's allocator is not made for fork (before GCC 14): whatever lock of it a thread holds at that moment stays
# locked in the child. Python's threads hold none while another one has the GIL, but for those that have left Python
# and give their memory back. So a fork waits for these; as sitecustomize it does so in every process.
SETTLE: Final = """
import os, threading

def _running():
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/stat") as file:
                state = file.read().rpartition(") ")[2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state.startswith("R"):
            yield int(thread)

def _settle():
    known = {threading.get_native_id(), *[thread.native_id for thread in threading.enumerate()]}
    try:
        while {*_running()} - known:
            os.sched_yield()
    except OSError:
        pass  # a test has left no descriptor to look with

os.register_at_fork(before=_settle)
"""

# Also that nobody runs the wrong binary: every worker has to have ours, and the runtime.
WHERE: Final = """
import sys
from pathlib import Path
import pairpool

def where(_):
    import pairpool._framing
    return pairpool._framing.twin.__file__, "libasan" in Path("/proc/self/maps").read_text()

if __name__ == "__main__":
    for method in ("fork", "forkserver", "spawn"):
        with pairpool.get_context(method).Pool(1) as pool:
            found = {where(0), *pool.map(where, range(4))}
        if found != {(sys.argv[1], True)}:
            sys.exit(f"with {method} it is not the sanitized twin that runs: {found}")
"""


class Workshop:
    """A temporary folder with a copy of the package, and the environment in which the sanitizers watch."""

    def __init__(self, folder: Path, compiler: str, runtime: str) -> None:
        self.folder = folder
        self.reports = folder / "reports"
        self._compiler = compiler
        log = f"log_path={self.reports / 'of'}"
        self._environment = {
            **os.environ,
            "LD_PRELOAD": runtime,
            "PYTHONMALLOC": "malloc",
            "PYTHONPATH": str(folder),
            "PAIRPOOL_EXTENSION": "1",
            # An interpreter leaks what it needs until its end. The quarantine is each process's own.
            "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=1:quarantine_size_mb=32:{log}",
            "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:{log}",
        }
        self.reports.mkdir()
        for name in ("pairpool", "tests", "fuzz"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)  # the settings of pytest
        (folder / "sitecustomize.py").write_text(SETTLE)

    def compile(self, source: Path) -> Path:
        """Build an extension beside its source, with the sanitizers in it."""
        target = source.with_name(source.stem + sysconfig.get_config_var("EXT_SUFFIX"))
        include = sysconfig.get_path("include")
        subprocess.run([self._compiler, *FLAGS, *MACROS, f"-I{include}", str(source), "-o", str(target)], check=True)
        return target

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run the interpreter in the folder; return its exit code, and what the sanitizers had to report."""
        done = subprocess.run([sys.executable, *arguments], cwd=self.folder, env=self._environment, check=False)
        found = [path.read_text(errors="replace") for path in sorted(self.reports.iterdir())]
        for path in self.reports.iterdir():
            path.unlink()
        return done.returncode, "\n".join(found)

    def require(self, title: str, *arguments: str) -> None:
        """Run it, and end here unless all goes well and nothing is reported."""
        print(f"== {title}", flush=True)
        code, report = self.run(*arguments)
        if report or code:
            sys.exit(f"{report}\n{title}: exit code {code}, {'and a report' if report else 'without a report'}")

    def require_report(self, fault: str, words: str) -> None:
        """Run a planted fault, and end here unless it is reported."""
        code, report = self.run("-c", IN_A_CHILD.format(fault=fault))
        if code or words not in report or "planted.c" not in report:
            sys.exit(f"a planted fault was not reported, {fault}: exit code {code}, {report or 'no report'}")


def runtime_of(compiler: str) -> str | None:
    """Return where the compiler has AddressSanitizer's runtime; None where it has none."""
    asked = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    found = Path(asked.stdout.strip())
    return str(found.resolve()) if found.is_absolute() and found.exists() else None


def sanitize(folder: Path, compiler: str, runtime: str, inputs: int) -> None:
    """Build, prove that faults are found, and look for some."""
    workshop = Workshop(folder, compiler, runtime)
    (folder / "planted.c").write_text(PLANTED)
    workshop.compile(folder / "planted.c")
    for fault, words in FAULTS.items():
        workshop.require_report(fault, words)
    print(f"== {len(FAULTS)} planted faults were reported")
    twin = workshop.compile(folder / "pairpool" / "_framing_c.c")
    (folder / "where.py").write_text(WHERE)
    workshop.require("workers of each start method run it", "where.py", str(twin))
    tests: Sequence[str] = [f"tests/test_{name}.py" for name in TESTS]
    workshop.require("tests", "-m", "pytest", "-q", "-o", f"faulthandler_timeout={HANG}", *tests)
    workshop.require("fuzzer", "-m", "fuzz.framing", "--inputs", str(inputs))
    print("== the sanitizers have nothing to report")


def main() -> None:
    """Read the command line; where something to build with is missing, say so and do nothing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, metavar="N", help="of the fuzzer (default 1 000 000)")
    given = parser.parse_args()
    compiler = shutil.which("gcc")
    runtime = runtime_of(compiler) if compiler else None
    if compiler is None or runtime is None:
        print(f"Nothing was sanitized: there is no {'libasan' if compiler else 'gcc'} here.")
        return
    with tempfile.TemporaryDirectory(prefix="pairpool-sanitize-") as folder:
        sanitize(Path(folder), compiler, runtime, given.inputs)


if __name__ == "__main__":
    main()
