"""CPython's own tests of its pools, unchanged, over ours.

They come from the running interpreter's `test` package, and every class there that makes a pool
is run: for each start method over processes, once over threads, and over a manager (whose server
makes its pools in threads that are not the main one). A class that takes its pool from the
attribute ``Pool`` is given ours there; one that calls ``multiprocessing.Pool`` or has a manager
make it runs between `pairpool.install()` and `pairpool.uninstall()`.

`SKIPPED` is all that is not run of them.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.dummy
import multiprocessing.forkserver
import multiprocessing.util
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pairpool
from holdings import Holdings, remains

START_METHODS = ("fork", "forkserver", "spawn")

# Each test of CPython's that is not run, with the reason. At most three, ever.
SKIPPED = {
    "TestPoolNotLeakOnFailure.test_release_unused_processes": (
        "gives Pool() a mock for a context, whose fourth Process fails to start, and counts the "
        "mocks that stay alive; our workers are forked by the zygote and never made by "
        "context.Process, so that the mock is not asked for any"
    ),
    "ThreadsTestPool.test_terminate": (
        "before 3.13 its tasks sleep for five minutes, and no thread can be killed: the stdlib's "
        "pool passes because it has begun none of them when it is terminated, a moment later; ours has"
    ),
}

cpython = pytest.importorskip("test._test_multiprocessing", reason="python without its tests")
main_handling = pytest.importorskip("test.test_multiprocessing_main_handling")

# CPython's tests start managers and processes of their own while threads of a pool are running.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks")


class _Installed:
    """Runs a class of CPython's tests with one start method, and with our pools in place."""

    start_method = ""
    method_before: str | None

    @classmethod
    def setUpClass(cls) -> None:
        cls.method_before = multiprocessing.get_start_method(allow_none=True)
        multiprocessing.set_start_method(cls.start_method, force=True)
        pairpool.install()
        super().setUpClass()  # type: ignore[misc]

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()  # type: ignore[misc]
        pairpool.uninstall()
        multiprocessing.set_start_method(cls.method_before, force=True)


# What CPython mixes into a class of tests to make it one over processes, threads or a manager.
_MIXINS: dict[str, type] = {
    "Processes": cpython.ProcessesMixin,
    "Threads": cpython.ThreadsMixin,
    "Manager": cpython.ManagerMixin,
}
_POOLS: dict[str, Any] = {
    "Processes": {"Pool": staticmethod(pairpool.Pool)},
    "Threads": {"Pool": staticmethod(pairpool.ThreadPool)},
}
_POOL_TESTS = [
    (cpython._TestPool, "Processes"),
    (cpython._TestPool, "Manager"),
    (cpython._TestPoolWorkerErrors, "Processes"),
    (cpython._TestPoolWorkerLifetime, "Processes"),
    (cpython.TestPoolNotLeakOnFailure, ""),
]

# Classes in which only these tests make a pool; the others would test CPython alone.
_SINGLE_TESTS: dict[str, tuple[str, ...]] = {
    "TestInitializers": ("test_pool_initializer",),
    "TestStdinBadfiledescriptor": ("test_pool_in_process",),
    "TestSyncManagerTypes": ("test_pool",),
    "MiscTestCase": ("test_large_pool",),  # since 3.12
}


def _skips(base: type, *, here: str) -> dict[str, Any]:
    """Return those tests of `base` that `SKIPPED` names, by its name or by that of its class here."""
    body: dict[str, Any] = {}
    for name, reason in SKIPPED.items():
        of, _, test = name.partition(".")
        if of in (base.__name__, here):
            body[test] = unittest.skip(reason)(getattr(base, test))
    return body


def _only(base: type, tests: tuple[str, ...]) -> dict[str, None]:
    """Return the body of a class in which only `tests` of `base` are left."""
    return {name: None for name in dir(base) if name.startswith("test") and name not in tests}


def _define(name: str, bases: tuple[type, ...], body: dict[str, Any]) -> None:
    """Put a class of tests in this module, where workers can find it by its name."""
    body = {**body, "__module__": __name__, "__qualname__": name}
    globals()[name] = type(name, bases, body)


def _define_tests(start_method: str) -> None:
    title = start_method.capitalize()
    here = {"start_method": start_method}
    for base, over in _POOL_TESTS:
        mixins = [_MIXINS[over]] if over else []
        bases = (_Installed, base, *mixins, unittest.TestCase)
        name = f"{title}{over}{base.__name__.removeprefix('_')}"
        _define(name, bases, {**_POOLS.get(over, {}), **_skips(base, here=name), **here})
    for name, tests in _SINGLE_TESTS.items():
        base = getattr(cpython, name)
        if any(hasattr(base, test) for test in tests):
            _define(f"{title}{name}", (_Installed, base), {**_only(base, tests), **here})
    _define(
        f"{title}MainHandling",
        (main_handling.MultiProcessingCmdLineMixin, unittest.TestCase),
        {
            **here,
            "main_in_children_source": main_handling.test_source
            if start_method == "fork"
            else main_handling.test_source_main_skipped_in_children,
        },
    )


for _method in START_METHODS:
    _define_tests(_method)
_define(
    "ThreadsTestPool",
    (cpython._TestPool, _MIXINS["Threads"], unittest.TestCase),
    {**_POOLS["Threads"], **_skips(cpython._TestPool, here="ThreadsTestPool")},
)


@pytest.fixture(autouse=True)
def pools_from_pairpool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CPython's programs import their pool from pairpool."""
    theirs = "from multiprocessing import Pool, set_start_method"
    ours = "from multiprocessing import set_start_method\nfrom pairpool import Pool"

    def writing_ours(write: Callable[..., Any]) -> Callable[..., Any]:
        def write_ours(*args: Any) -> Any:
            return write(*(a.replace(theirs, ours) if isinstance(a, str) else a for a in args))

        return write_ours

    assert theirs in main_handling.test_source, "CPython's programs import their pool otherwise"
    for name in ("make_script", "make_zip_pkg"):
        monkeypatch.setattr(main_handling, name, writing_ours(getattr(main_handling, name)))


@pytest.fixture(autouse=True, scope="class")
def no_leftovers() -> Iterator[None]:
    """Fail a class that leaves anything behind; its tests share one pool, made before them."""
    before = Holdings.now()
    yield
    assert remains(before) == [], "left behind by the class"


@pytest.fixture(autouse=True, scope="module")
def no_preload() -> Iterator[None]:
    """Start the fork server as CPython's tests do, and stop it with the last of them."""
    multiprocessing.forkserver.set_forkserver_preload(cpython.PRELOAD)
    yield
    multiprocessing.forkserver.set_forkserver_preload(["__main__"])
    multiprocessing.util._cleanup_tests()  # type: ignore[attr-defined]


def test_at_most_three_tests_of_cpython_are_skipped() -> None:
    """The list of what is skipped stays short, and names tests that exist."""
    assert len(SKIPPED) <= 3
    for name in SKIPPED:
        of, _, test = name.partition(".")
        assert hasattr(globals().get(of) or getattr(cpython, of), test), name
