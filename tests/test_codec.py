from __future__ import annotations

import functools
import gc
import json
import math
import operator
import os
import select
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from cloudpickle import cloudpickle

import codec_things
from codec_things import LOCAL, Thing, add, arrive, cached, decorated, is_open
from pairpool import _by_value
from pairpool._codec import DefinitionKind, Encoder, Payload, loads_needs
from pairpool._descriptors import OwnedDescriptors

NAMED, BY_VALUE, STATEFUL = DefinitionKind


class TestKinds:
    """How each sort of callable travels."""

    @pytest.mark.parametrize(
        ("function", "kind"),
        [
            (add, NAMED),
            (decorated, NAMED),
            (cached, NAMED),
            (Thing, NAMED),
            (Thing.method, NAMED),
            (Thing.static, NAMED),
            (Thing.make, NAMED),
            (len, NAMED),
            (math.sin, NAMED),
            (int, NAMED),
            (type, NAMED),
            (json.dumps, NAMED),
            (str.upper, NAMED),
            (int.__add__, NAMED),
            (dict.fromkeys, NAMED),
            (operator.add, NAMED),
            (LOCAL["lambda"], BY_VALUE),
            (LOCAL["closure"], BY_VALUE),
            (LOCAL["local class"], BY_VALUE),
            (LOCAL["method of a local class"], BY_VALUE),
            (LOCAL["cached"], BY_VALUE),
            (LOCAL["method of an instance of a local class"], STATEFUL),
            (Thing(1), STATEFUL),
            (Thing(1).method, STATEFUL),
            (functools.partial(add, 1), STATEFUL),
            (functools.partial(lambda x: x, 1), STATEFUL),
            ([].append, STATEFUL),
            ("a".join, STATEFUL),
            ((5).__add__, STATEFUL),
            (operator.itemgetter(1), STATEFUL),
            (operator.attrgetter("x"), STATEFUL),
            (operator.methodcaller("x"), STATEFUL),
        ],
        ids=repr,
    )
    def test_kind(self, encoder: Encoder, function: Any, kind: DefinitionKind) -> None:
        """Each sort of callable is treated as semantics asks, and arrives as a callable."""
        definition = encoder.definition(function)

        assert definition.kind is kind
        assert callable(arrive(definition.payload))

    @pytest.mark.parametrize("function", [add, decorated, cached, Thing, len, LOCAL["lambda"], LOCAL["closure"]])
    def test_call_apart(self, encoder: Encoder, function: Any) -> None:
        """An unchanged function or class travels once: every call has the same definition."""
        first, payload = encoder.call(function, (1,), {"x": [2]})
        second, _ = encoder.call(function, (3,), {})

        assert first is not None
        assert first is second is encoder.definition(function)
        assert arrive(payload) == ((1,), {"x": [2]})

    @pytest.mark.parametrize(
        "function", [Thing(1), Thing(1).method, functools.partial(add, 1), [].append, operator.itemgetter(1)]
    )
    def test_call_together(self, encoder: Encoder, function: Any) -> None:
        """What carries an object shares one pickle with its arguments."""
        definition, payload = encoder.call(function, (function,), {})

        assert definition is None
        loaded, (argument,), _ = arrive(payload)
        assert getattr(loaded, "__self__", loaded) is getattr(argument, "__self__", argument)

    def test_names(self, encoder: Encoder) -> None:
        """What has a name travels as that name and loads as the same object."""
        for function in (add, decorated, cached, Thing, len, Thing.static):
            payload = encoder.definition(function).payload
            assert arrive(payload) is function
            assert len(payload.data) < 60

    def test_identities(self, encoder: Encoder) -> None:
        """No two definitions of a process have the same number."""
        idents = [Encoder().definition(function).ident for function in (add, len, lambda: 1)]

        assert len({*idents, encoder.definition(add).ident}) == 4


class TestKept:
    """When a definition that was sent may be used again."""

    def test_changed_closure(self, encoder: Encoder) -> None:
        """A function whose cell has another value is sent anew."""

        def outer() -> tuple[Any, Any]:
            value = 1

            def change() -> None:
                nonlocal value
                value += 1

            return (lambda: value), change

        function, change = outer()
        before = encoder.definition(function)
        assert encoder.definition(function) is before
        change()
        after = encoder.definition(function)

        assert after is not before
        assert [arrive(before.payload)(), arrive(after.payload)()] == [1, 2]

    @pytest.mark.parametrize("attribute", ["__code__", "__defaults__", "__kwdefaults__"])
    def test_changed_function(self, encoder: Encoder, attribute: str) -> None:
        """A function given other code or defaults is sent anew."""
        function: Any = lambda x=1, *, y=2: (x, y)  # noqa: E731
        other: Any = lambda x=3, *, y=4: (y, x)  # noqa: E731
        before = encoder.definition(function)
        setattr(function, attribute, getattr(other, attribute))
        after = encoder.definition(function)

        assert after is not before
        assert arrive(after.payload)() == function()

    @pytest.mark.parametrize(
        "make",
        [
            lambda: _closing_over([]),
            lambda: lambda collected=[]: collected,
            lambda: LOCAL["local class"],
            lambda: _with_attribute(lambda: 1),
        ],
    )
    def test_state(self, encoder: Encoder, make: Callable[[], Any]) -> None:
        """What could change unseen is pickled for each call."""
        function = make()

        assert encoder.definition(function) is not encoder.definition(function)

    def test_counter(self, encoder: Encoder) -> None:
        """A function that rebinds what it closes over begins anew with each call."""

        def outer() -> Any:
            count = 0

            def step() -> int:
                nonlocal count
                count += 1
                return count

            return step

        step = outer()

        assert [arrive(encoder.definition(step).payload)() for _ in range(2)] == [1, 1]

    def test_keeps_no_function_alive(self, encoder: Encoder) -> None:
        """Sending a function does not keep it, nor what it closes over."""

        class Held:
            pass

        function = _closing_over(Held)
        reference = weakref.ref(function)
        encoder.call(function, (), {})
        encoder.call(LOCAL["lambda"], (), {})
        del function
        gc.collect()

        assert reference() is None

    def test_id_used_again(self, encoder: Encoder) -> None:
        """A function that has the id and the code of one that died is another function."""
        results = [arrive(encoder.definition(_closing_over(number)).payload)() for number in range(50)]

        assert results == list(range(50))

    def test_rebound_name(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        """A function whose name now belongs to another one travels by value."""
        old = add
        before = encoder.definition(old)
        monkeypatch.setattr(codec_things, "add", lambda: "new")
        after = encoder.definition(old)

        assert (before.kind, after.kind) == (NAMED, BY_VALUE)
        assert arrive(after.payload)(1) == 2

    def test_many_functions(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        """There is a limit to what is kept."""
        monkeypatch.setattr("pairpool._kept.MOST_KEPT", 10)
        functions = list(map(_closing_over, range(25)))
        for function in functions:
            encoder.definition(function)

        assert len(encoder._kept._entries) <= 10


def _closing_over(value: Any) -> Any:
    return lambda: value


def _with_attribute(function: Any) -> Any:
    function.count = 0
    return function


class TestPayload:
    """What crosses as bytes."""

    def test_close_closes_the_fallback(self) -> None:
        """Closing a payload closes the descriptors of both its forms."""
        pairs = [OwnedDescriptors(list(map(select.epoll.fromfd, os.pipe()))) for _ in range(2)]
        Payload(b"", (), Payload(b"", descriptors=pairs[0]), pairs[1]).close()

        assert not any(is_open(descriptor) for pair in pairs for descriptor in pair)

    def test_needs_as_bytes(self) -> None:
        """Needs can be written down and read."""
        needs = (("name", b"0123456789abcdef"),)

        assert tuple(loads_needs(Encoder.dumps_needs(needs))) == needs


def test_cloudpickle_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloudpickle that is different inside is refused with one sentence about versions."""
    monkeypatch.delattr(cloudpickle, "_function_getstate")

    with pytest.raises(ImportError, match=r"pairpool needs cloudpickle>=3.*differs inside"):
        _by_value.check_cloudpickle()


def test_modules_that_do_not_exist_elsewhere(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of a module that cannot be imported share one dictionary where they arrive."""
    module = types.ModuleType("made_at_run_time")
    exec("def get(): return value\ndef put(x):\n  global value\n  value = x\n", vars(module))
    module.value = 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_at_run_time", module)
    get, put = module.get, module.put
    del module.get, module.put  # they have no name any more
    payloads = encoder.definition(get).payload, encoder.definition(put).payload
    monkeypatch.delitem(sys.modules, "made_at_run_time")
    found_get, found_put = map(arrive, payloads)
    found_put(5)

    assert found_get() == 5


def test_functions_of_no_module(encoder: Encoder) -> None:
    """Functions made in a dictionary of their own share it where they arrive, if they travel together."""
    scope: dict[str, Any] = {"value": 1}
    exec("def get(): return value\ndef put(x):\n  global value\n  value = x\n", scope)
    get, put = arrive(encoder.dumps((scope["get"], scope["put"])))
    put(5)

    assert get() == 5
    assert scope["value"] == 1
