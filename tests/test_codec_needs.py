from __future__ import annotations

import abc
import dataclasses
import math
import sys
import threading
from typing import Any

import pytest
from cloudpickle import cloudpickle

from codec_things import whole
from pairpool._codec import Decoder, Encoder, Need, Payload

MAIN = vars(sys.modules["__main__"])


def define(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Define things in the main module until the test is over."""
    made: dict[str, Any] = {}
    exec(source, MAIN, made)
    for name, value in made.items():
        monkeypatch.setitem(MAIN, name, value)


def names(needs: Any) -> list[str]:
    """Return the names that are needed."""
    return sorted(name for name, _ in needs)


SOURCE = """
def helper_in_main(): return 1
def other_in_main(): return math.floor(helper_in_main())
def function_in_main(): return other_in_main()
class Base_in_main:
    def f(self): return helper_in_main()
class Class_in_main(Base_in_main):
    x = 1
    def f(self): return super().f()
"""


@pytest.fixture(autouse=True)
def main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the main module of the test run something to define."""
    for module in (abc, dataclasses, math):
        monkeypatch.setitem(MAIN, module.__name__, module)
    define(monkeypatch, SOURCE)


class TestNeeds:
    """What travels by name, and what a worker is asked for."""

    def test_everything_behind_a_function(self) -> None:
        """A function needs what it reaches through its globals: functions, classes and modules."""
        payload = Encoder().definition(MAIN["function_in_main"]).payload

        assert names(payload.needs) == ["function_in_main", "helper_in_main", "math", "other_in_main"]
        assert payload.fallback is not None

    def test_everything_behind_a_class(self) -> None:
        """An instance needs its class, the bases of that, and what their methods reach."""
        payload = whole(Encoder().dumps([MAIN["Class_in_main"]()]))

        assert names(payload.needs) == ["Base_in_main", "Class_in_main", "helper_in_main"]

    @pytest.mark.parametrize("inherited", [False, True])
    def test_large(self, inherited: bool) -> None:
        """One that is large is known to be, and ends a portion, also where workers need nothing for it."""
        thing, payloads = MAIN["Class_in_main"](), list[Any]()
        thing.data = bytes(50_000)
        encoder = Encoder(inherited=inherited)
        encoder.dumps_each([[1], thing, [2]], payloads)

        assert [type(each) is Payload and each.large for each in payloads] == [False, True]
        assert bool(payloads[1].needs) is not inherited

    def test_one_among_many(self) -> None:
        """Of objects that are pickled together those that have to do with the main module need something."""
        payloads: list[Any] = []
        Encoder().dumps_each([[1], MAIN["Class_in_main"](), MAIN["Class_in_main"], [2], [3]], payloads)

        assert [bool(whole(payload).needs) for payload in payloads] == [False, True, True, False, False]

    def test_forks_need_not_be_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Workers that are forks have what the caller had; the rest goes by value at once."""
        encoder = Encoder(inherited=True)
        assert encoder.definition(MAIN["function_in_main"]).payload.needs == ()
        define(monkeypatch, "def helper_in_main(): return 2")
        payload = encoder.definition(MAIN["function_in_main"]).payload

        assert (payload.needs, payload.fallback) == ((), None)
        assert b"helper_in_main" in payload.data

    def test_accepted(self) -> None:
        """What a worker has confirmed is not asked for again, and no fallback is made."""
        encoder = Encoder()
        first = whole(encoder.dumps(MAIN["Class_in_main"]()))
        encoder.accept(first.needs)
        second = whole(encoder.dumps(MAIN["Class_in_main"]()))

        assert (second.needs, second.fallback) == ((), None)

    def test_refused(self) -> None:
        """What a worker refused goes by value, and so does what reaches it; nothing else does."""
        encoder = Encoder()
        needs = encoder.definition(MAIN["function_in_main"]).payload.needs
        encoder.refuse([need for need in needs if need[0] == "other_in_main"])
        again = encoder.definition(MAIN["function_in_main"]).payload
        alone = encoder.definition(MAIN["helper_in_main"]).payload

        assert names(again.needs) == ["helper_in_main", "math"]
        assert names(alone.needs) == ["helper_in_main"]
        encoder.accept(alone.needs)
        assert names(whole(encoder.dumps(MAIN["function_in_main"])).needs) == ["math"]

    def test_refused_for_good(self) -> None:
        """What one worker refused goes by value, whatever another one says."""
        encoder = Encoder()
        needs = encoder.definition(MAIN["helper_in_main"]).payload.needs
        encoder.refuse(needs)
        encoder.accept(needs)

        assert encoder.definition(MAIN["helper_in_main"]).payload.needs == ()

    def test_changed_after_it_was_accepted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A change makes another need."""
        encoder = Encoder()
        before = encoder.definition(MAIN["function_in_main"])
        encoder.accept(before.payload.needs)
        define(monkeypatch, "def helper_in_main(): return 2")
        after = encoder.definition(MAIN["function_in_main"])

        assert after is not before
        assert names(after.payload.needs) == ["helper_in_main"]
        assert not set(after.payload.needs) & set(before.payload.needs)

    def test_data_takes_the_place_of_a_function_and_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name counts from the moment at which it has a function."""
        encoder = Encoder()
        monkeypatch.setitem(MAIN, "helper_in_main", None)
        assert "helper_in_main" not in names(encoder.definition(MAIN["function_in_main"]).payload.needs)
        define(monkeypatch, "def helper_in_main(): return 2")
        assert "helper_in_main" in names(encoder.definition(MAIN["function_in_main"]).payload.needs)


class TestDataOfFunctions:
    """Globals of functions that go by value."""

    @pytest.fixture
    def function(self) -> Any:
        """A function that uses a global which need not be there."""
        return eval("lambda: data_in_main", MAIN)

    def test_where_the_worker_has_it(self, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Data is not sent to a worker that has something under its name."""
        monkeypatch.setitem(MAIN, "data_in_main", [1])
        payload = Encoder().definition(function).payload

        assert names(payload.needs) == ["data_in_main"]
        assert Decoder().refused(payload.needs) == []

    def test_where_the_worker_lacks_it(self, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """It comes along where the worker has not, and each time from then on."""
        monkeypatch.setitem(MAIN, "data_in_main", [1])
        encoder = Encoder()
        payload = encoder.definition(function).payload
        monkeypatch.delitem(MAIN, "data_in_main")
        refused = Decoder().refused(payload.needs)
        assert names(refused) == ["data_in_main"]
        assert payload.fallback is not None
        assert Decoder().loads(payload.fallback.data, ())() == [1]
        encoder.refuse(refused)
        monkeypatch.setitem(MAIN, "data_in_main", [2])

        assert encoder.definition(function).payload.needs == ()

    def test_planted_data(self, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """What came along says nothing about other workers, and gives way to what comes later."""
        monkeypatch.setitem(MAIN, "data_in_main", 1)
        first = Encoder().definition(function).payload
        monkeypatch.setitem(MAIN, "data_in_main", 2)
        second = Encoder().definition(function).payload
        monkeypatch.delitem(MAIN, "data_in_main")
        need: Need = ("data_in_main", bytes(16))

        assert Decoder().loads(first.data, ())() == 1
        assert Decoder().refused([need]) == [need]
        assert Decoder().loads(second.data, ())() == 2
        MAIN["data_in_main"] = 3  # a task's doing
        assert Decoder().refused([need]) == []
        assert Decoder().loads(second.data, ())() == 3

    def test_that_cannot_travel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where it cannot be pickled it stays a need: the call is refused, and not run without."""
        encoder = Encoder()
        function = eval("lambda: (lock_in_main, list_in_main)", MAIN)
        monkeypatch.setitem(MAIN, "lock_in_main", threading.Lock())
        monkeypatch.setitem(MAIN, "list_in_main", [1])
        payload = encoder.definition(function).payload

        assert names(payload.needs) == ["list_in_main", "lock_in_main"]
        assert payload.fallback is not None
        assert names(payload.fallback.needs) == ["lock_in_main"]

    def test_that_cannot_travel_to_a_fork(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Workers that are forks are known to lack it: the call fails with the reason."""
        encoder = Encoder(inherited=True)
        monkeypatch.setitem(MAIN, "lock_in_main", threading.Lock())

        with pytest.raises(TypeError, match=r"_thread\.lock"):
            encoder.definition(eval("lambda: lock_in_main", MAIN))

    def test_inherited_data(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a fork inherited is neither sent nor asked for, however large, and need not be picklable."""
        monkeypatch.setitem(MAIN, "lock_in_main", threading.Lock())
        payload = Encoder(inherited=True).definition(eval("lambda: lock_in_main", MAIN)).payload

        assert payload.needs == ()
        assert Decoder().loads(payload.data, ())() is MAIN["lock_in_main"]

    def test_of_other_modules(self) -> None:
        """Local functions of a module see that module; nothing of it is sent."""
        payload = Encoder(inherited=True).definition(_local_function()).payload

        assert names(payload.needs) == ["test_codec_needs:MAIN"]
        assert Decoder().refused(payload.needs) == []
        assert Decoder().loads(payload.data, ())() is MAIN


def _local_function() -> Any:
    return lambda: MAIN


class TestWitness:
    """What a worker says about its main module."""

    def test_same(self) -> None:
        """A worker with the same definitions refuses nothing."""
        for inherited in (True, False):
            payload = Encoder(inherited=inherited).definition(MAIN["function_in_main"]).payload
            assert Decoder().refused(payload.needs) == []

    @pytest.mark.parametrize(
        ("source", "refused"),
        [
            ("def helper_in_main(): return 2", ["helper_in_main"]),
            ("def function_in_main(): return 2", ["function_in_main"]),
            ("math = 5", ["math"]),
            ("import json as math", ["math"]),
            ("from math import sin as other_in_main", ["other_in_main"]),
        ],
    )
    def test_other(self, source: str, refused: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker names exactly what it has otherwise."""
        payload = Encoder().definition(MAIN["function_in_main"]).payload
        define(monkeypatch, source)

        assert names(Decoder().refused(payload.needs)) == refused

    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So does a worker that has nothing under a name."""
        payload = Encoder().definition(MAIN["function_in_main"]).payload
        monkeypatch.delitem(MAIN, "helper_in_main")

        assert names(Decoder().refused(payload.needs)) == ["helper_in_main"]

    def test_before_the_initializer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What an initializer replaces is not compared: the caller means what it replaced."""
        payload = Encoder().definition(MAIN["function_in_main"]).payload
        decoder = Decoder()
        define(monkeypatch, "def helper_in_main(): return 'the worker\\'s'")

        assert decoder.refused(payload.needs) == []

    def test_planted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What came by value says nothing about other workers."""
        encoder = Encoder(inherited=True)
        define(monkeypatch, "def helper_in_main(): return 2")
        payload = encoder.definition(MAIN["function_in_main"]).payload
        needs = Encoder().definition(MAIN["helper_in_main"]).payload.needs
        decoder = Decoder()
        decoder.loads(payload.data, ())

        assert decoder.refused(needs) == list(needs)


class TestParcels:
    """Classes that go by value are pickled once."""

    @pytest.mark.parametrize(
        "source",
        [
            "class Later_in_main:\n  x = (1, 2)\n  def f(self): return helper_in_main()",
            "class Later_in_main(Base_in_main):\n  def f(self): return super().f()",
            "class Later_in_main(abc.ABC):\n  @property\n  def f(self): return helper_in_main",
            """
@dataclasses.dataclass
class Later_in_main:
    x: int = 5
    y: list = dataclasses.field(default_factory=list)
    def f(self): return helper_in_main()
""",
        ],
    )
    def test_same_parcel(self, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """As long as a class stays the same its pickle does, and it is loaded once."""
        encoder = Encoder(inherited=True)
        define(monkeypatch, source)
        payloads = [whole(encoder.dumps(MAIN["Later_in_main"]())) for _ in range(3)]
        _forget_class(MAIN["Later_in_main"])
        found = [_load(payload) for payload in payloads]

        assert payloads[1].data == payloads[2].data
        assert len({type(instance) for instance in found}) == 1
        assert type(found[0]) is not MAIN["Later_in_main"]
        assert found[0].f() == 1

    @pytest.mark.parametrize(
        "change",
        [
            "Later_in_main.f = lambda self: 'changed'",
            "Later_in_main.x = 'changed'",
            "Later_in_main.f.__code__ = (lambda self: 'changed').__code__",
            "def helper_in_main(): return 'changed'",
        ],
    )
    def test_changed_class(self, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A class that changed, or something that its methods use, is pickled anew."""
        encoder = Encoder(inherited=True)
        source = "class Later_in_main:\n  x = 1\n  def f(self): return helper_in_main()"
        define(monkeypatch, source)
        before = whole(encoder.dumps(MAIN["Later_in_main"]()))
        define(monkeypatch, change)
        after = whole(encoder.dumps(MAIN["Later_in_main"]()))
        _forget_class(MAIN["Later_in_main"])

        assert after.data != before.data
        found = _load(after)
        assert "changed" in (found.x, found.f())

    def test_classes_with_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A class with an attribute that can change unseen is pickled each time."""
        encoder = Encoder(inherited=True)
        define(monkeypatch, "class Later_in_main:\n  found = []")
        encoder.dumps(MAIN["Later_in_main"]())
        MAIN["Later_in_main"].found.append("changed")
        payload = whole(encoder.dumps(MAIN["Later_in_main"]()))
        _forget_class(MAIN["Later_in_main"])

        assert _load(payload).found == ["changed"]


def _load(payload: Payload) -> Any:
    return Decoder().loads(payload.data, ())


def _forget_class(cls: type) -> None:
    """Make this process one that has never seen a class."""
    with cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:
        tracker = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.pop(cls)
        cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.pop(tracker)
