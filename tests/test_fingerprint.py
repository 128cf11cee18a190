from __future__ import annotations

import ast
import functools
import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from pairpool._anatomy import functions_of, is_definition, names_in
from pairpool._fingerprint import DIGEST_SIZE, Scope, digest, likeness

PROGRAM = Path(__file__).parent / "programs" / "codec_digests.py"


def make(source: str, **names: Any) -> Any:
    """Return the last thing that source defines in a main module."""
    scope = {"__name__": "__main__", **names}
    exec(source, scope)
    return scope[ast.parse(source).body[-1].name]  # type: ignore[attr-defined]


def run(seed: str, *arguments: str) -> dict[str, list[str]]:
    """Return the digests that a fresh interpreter finds."""
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(PROGRAM), *arguments]
    found: dict[str, list[str]] = json.loads(subprocess.check_output(command, env=environment))
    return found


class TestEqualAcrossProcesses:
    """What must not change a digest."""

    @pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
    def test_digests_of_a_worker(self, method: str) -> None:
        """A worker of any start method finds the digests that the caller finds."""
        expected = run("1")

        assert len(expected) >= 10
        assert run("1", method) == expected

    def test_hash_seeds(self) -> None:
        """Digests do not depend on the hash seed of the interpreter."""
        assert run("1") == run("2") == run("3", "spawn")

    def test_line_and_file(self) -> None:
        """Moving a definition, or its file, changes nothing."""
        source = "class C:\n  def f(self):\n    class D: x = 1\n    self.y = self.z = 1\n"
        one = make(source)
        scope: dict[str, Any] = {"__name__": "__main__"}
        exec(compile("\n\n\n" + source.replace("\n    class", "\n\n    class"), "another file", "exec"), scope)

        assert digest(one, Scope.ALL) == digest(scope["C"], Scope.ALL)

    def test_running(self) -> None:
        """Neither the interpreter's adaptations nor a tracer's changes count."""
        function = make("def f(n):\n  total = 0\n  for i in range(n): total += i\n  return total")
        before = digest(function, Scope.ALL)
        for _ in range(100):
            function(100)
        warm = digest(function, Scope.ALL)
        traced = sys.gettrace()
        sys.settrace(lambda *_: lambda *_: None)
        try:
            function(10)
            during = digest(function, Scope.ALL)
        finally:
            sys.settrace(traced)

        assert before == warm == during

    def test_size(self) -> None:
        """A digest has 16 bytes, and the first is its scope."""
        found = digest(run, Scope.CODE)

        assert len(found) == DIGEST_SIZE == 16
        assert found[0] == Scope.CODE


CHANGES_OF_CODE = [
    ("def f(): return 1", "def f(): return 2"),
    ("def f(): return 1", "def f(): return 1.0"),
    ("def f(): return 0.0", "def f(): return -0.0"),
    ("def f(): return 1", "def f(): return True"),
    ("def f(): return a", "def f(): return b"),
    ("def f(): return x.a", "def f(): return x.b"),
    ("def f(x): return x in {1, 2}", "def f(x): return x in {1, 3}"),
    ("def f(x, y): return x", "def f(y, x): return y"),
    ("def f(x): return x", "def f(*, x): return x"),
    ("def f():\n  try: g()\n  except A: pass", "def f():\n  try: g()\n  except B: pass"),
    ("def f(): return [lambda: 1]", "def f(): return [lambda: 2]"),
    ("def f():\n  class D: x = 1", "def f():\n  class D: x = 2"),
    ("class C:\n  def f(self): return 1", "class C:\n  def f(self): return 2"),
    ("class C:\n  def f(self): return 1", "class C:\n  def g(self): return 1"),
    ("class C:\n  @property\n  def f(self): return 1", "class C:\n  @property\n  def f(self): return 2"),
    ("class C:\n  def f(self): return 1", "class C:\n  @staticmethod\n  def f(self): return 1"),
    ("class C:\n  class D:\n    def f(self): return 1", "class C:\n  class D:\n    def f(self): return 2"),
    ("class C(dict): pass", "class C(list): pass"),
    (
        "import functools\n@functools.cache\ndef f(): return 1",
        "import functools\n@functools.cache\ndef f(): return 2",
    ),
    (
        "def d(g):\n  return lambda: g()\n@d\ndef f(): return 1",
        "def d(g):\n  return lambda: g()\n@d\ndef f(): return 2",
    ),
]
CHANGES_OF_VALUES = [
    ("def f(x=1): pass", "def f(x=2): pass"),
    ("def f(x=len): pass", "def f(x=max): pass"),
    ("def f(*, x=1): pass", "def f(*, x=2): pass"),
    ("class C: x = 1", "class C: x = 2"),
    ("class C: x = 1", "class C: y = 1"),
    ("import enum\nclass C(enum.Enum): A = 1", "import enum\nclass C(enum.Enum): A = 2"),
    (
        "def d(n):\n  return lambda g: lambda: n\n@d(1)\ndef f(): pass",
        "def d(n):\n  return lambda g: lambda: n\n@d(2)\ndef f(): pass",
    ),
]  # fmt: skip


class TestDifferences:
    """What must change a digest."""

    @pytest.mark.parametrize("scope", [Scope.CODE, Scope.ALL])
    @pytest.mark.parametrize(("one", "other"), CHANGES_OF_CODE)
    def test_code(self, one: str, other: str, scope: Scope) -> None:
        """A definition which does something else has another digest."""
        assert digest(make(one), scope) != digest(make(other), scope)

    @pytest.mark.parametrize(("one", "other"), CHANGES_OF_VALUES)
    def test_values(self, one: str, other: str) -> None:
        """Plain values that a definition carries count only where they are asked for."""
        assert digest(make(one), Scope.ALL) != digest(make(other), Scope.ALL)

    @pytest.mark.parametrize(("one", "other"), CHANGES_OF_VALUES[:4] + CHANGES_OF_VALUES[-1:])
    def test_state(self, one: str, other: str) -> None:
        """Counters and defaults computed at import do not make a definition another one."""
        assert digest(make(one), Scope.CODE) == digest(make(other), Scope.CODE)

    def test_circles(self) -> None:
        """A function that closes over itself, and a class that is its own attribute, have a digest."""
        source = "def outer():\n  def inner(): return inner() + {}\n  return inner\ninner = outer()\ndef f(): pass"
        one, other = (make(source.format(number)).__globals__["inner"] for number in (1, 2))
        cls = make("class C: pass")
        cls.itself = cls

        assert digest(one, Scope.ALL) != digest(other, Scope.ALL)
        assert len(digest(cls, Scope.ALL)) == DIGEST_SIZE

    def test_globals_are_not_included(self) -> None:
        """What a function refers to by a global name is not part of its digest."""
        source = "def f(): return helper()"

        assert digest(make(source, helper=len), Scope.ALL) == digest(make(source, helper=None), Scope.ALL)


class TestLikeness:
    """What a definition was like at some moment."""

    def test_same(self) -> None:
        """A definition is like itself until something of it changes."""
        for definition in (
            run,
            TestLikeness,
            functools.cache(run),
            sys,
            make("class C:\n  def f(self): pass"),
        ):
            assert likeness(definition).holds_for(definition)
            assert not likeness(definition).holds_for(make("def f(): pass"))

    def test_code_replaced(self) -> None:
        """Giving a function other code or other defaults is seen."""
        function, other = make("def f(x): return 1"), make("def f(x=1): return 2")
        for change in ("__code__", "__defaults__"):
            before = likeness(function)
            setattr(function, change, getattr(other, change))
            assert not before.holds_for(function)

    def test_method_replaced(self) -> None:
        """Replacing, adding or removing a method is seen, in nested classes and wrappers too."""
        cls = make("class C:\n  def f(self): pass\n  class D:\n    pass\n  @property\n  def p(self): pass")
        changes: list[tuple[Any, str, Any]] = [
            (cls, "f", lambda self: 1),
            (cls, "g", lambda self: 1),
            (cls, "p", property(lambda self: 1)),
            (cls.D, "f", lambda self: 1),
            (cls, "f", None),
        ]
        for owner, name, value in changes:
            before = likeness(cls)
            assert before.holds_for(cls)
            setattr(owner, name, value)
            assert not before.holds_for(cls)

    def test_id_used_again(self) -> None:
        """A new function is not taken for one that died, though it may have its id and its code."""
        make_one = make("def outer(n):\n  return lambda: n")
        before = likeness(make_one(1))
        gc.collect()

        assert not any(before.holds_for(make_one(number)) for number in range(10))

    def test_keeps_nothing_alive(self) -> None:
        """Remembering what a definition is like does not keep it."""
        for source in (
            "def f(): pass",
            "def o():\n  x = 1\n  return lambda: x\ndef f(): pass",
            "class C:\n  def f(self): pass",
        ):
            definition = make(source)
            reference = weakref.ref(definition)
            remembered = likeness(definition)
            del definition
            gc.collect()
            assert reference() is None
            assert not remembered.holds_for(make("def g(): pass"))


class Proxy:
    """Says that it is a function."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise AssertionError("code of the user's ran")


def test_proxies_are_data() -> None:
    """Whether something is a definition is found out without running its code."""
    assert not is_definition(Proxy())


def test_functions_of() -> None:
    """The functions behind a definition are found through closures, wrappers, nested classes and defaults."""
    source = """
def helper(): pass
def deco(g):
    def run(h=helper): return g()
    return run
class C:
    @deco
    def one(self): pass
    @property
    def two(self): pass
    class D:
        @staticmethod
        def three(): pass
"""
    names = {function.__name__ for function in functions_of(make(source))}

    assert names == {"run", "one", "helper", "two", "three"}


def test_names_in() -> None:
    """Global names are found in nested functions and in the bodies of classes."""
    code = make(
        "def f():\n  class C:\n    x = in_body\n    def g(self): return in_method\n  return lambda: in_lambda"
    ).__code__

    assert {"in_body", "in_method", "in_lambda"} <= names_in(code)
