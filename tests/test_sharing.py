"""Which values can share a pickle, or be pickled later, without anyone noticing."""

from __future__ import annotations

import math
import pickle
from contextlib import closing
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, strategies as st

import twins
from pairpool import _page
from pairpool._page import Page
from pairpool._sharing_py import ATOMS
from tasks import Odd
from twins import TWINS

twin = twins.twin  # the fixture

atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
keys = atoms | st.tuples(atoms, atoms)
others = st.sampled_from([1j, {1}, bytearray(b"x"), Odd(), len, True.__class__])


def containers(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return lists, tuples and dicts of these."""
    return st.lists(values, max_size=4) | st.tuples(values, values) | st.dictionaries(keys, values, max_size=3)


trees = st.recursive(atoms, containers, max_leaves=12)


def met(value: Any, seen: list[int]) -> bool:
    """Note every list and dict in a value; return whether there is nothing else but tuples and atoms."""
    if isinstance(value, (list, dict)):
        seen.append(id(value))
    parts = [*value, *value.values()] if type(value) is dict else value
    if type(value) in (list, dict, tuple):
        return all(met(part, seen) for part in parts)
    return type(value) in (*ATOMS,)


def is_forest(values: list[Any]) -> bool:
    """Return what `share_nothing` is to tell, of what is no tangle."""
    seen: list[int] = []
    return met(values, seen) and len(set(seen)) == len(seen)


@given(values=st.lists(trees, max_size=6), again=st.lists(st.integers(0, 20)), other=st.none() | others)
@pytest.mark.parametrize("twin_name", TWINS)
def test_values_share_nothing_that_could_change(
    twin_name: str, values: list[Any], again: list[int], other: object
) -> None:
    """The twin in C tells exactly; the one in Python may be unsure."""
    for number in again:
        values.insert(number, values[number % len(values)] if values else [])
    if other is not None:
        values.append([other])
    told = TWINS[twin_name].share_nothing(values)
    assert told in ((is_forest(values),) if twin_name == "c" else (is_forest(values), False))
    if told:
        arrived = pickle.loads(pickle.dumps(values, 5))
        assert is_forest(arrived)
        assert repr(arrived) == repr(values)


@pytest.mark.parametrize("item", [{"name": "x", 2: 1.5}, [1, None], (b"x", True), 7, "text"], ids=type)
def test_records_share_nothing(twin: ModuleType, item: Any) -> None:
    """Flat ones of one kind, which both twins know; but for the very same twice."""
    assert twin.share_nothing([type(item)(item) for _ in range(20)]) is True
    if type(item) in (dict, list):
        assert twin.share_nothing([item, item]) is False


def deep(depth: int) -> Any:
    """Return a list within lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def tangle(depth: int) -> Any:
    """Return what is small, and takes long to walk through."""
    value: Any = 1
    for _ in range(depth):
        value = (value,) * 32
    return value


ring: list[Any] = []
ring.append(ring)


LONG = {
    "deep": deep(1000),
    "ring": ring,
    "in a ring": [ring],
    "tangle": tangle(3),
    "long": [*range(10_000)],
    "many": [[] for _ in range(1000)],
    "no hash": [Odd()],
    "complex": [1j],
}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_what_would_take_long_is_not_looked_through(twin: ModuleType, value: Any) -> None:
    """Nor what is no plain value."""
    assert twin.share_nothing([value]) is False
    assert twin.share_nothing([1, value]) is False


# -- In C ------------------------------------------------------------------------------------------------------------

held: list[Any] = []
WITH_LIST: tuple[list[Any]] = ([],)


def kept(value: Any) -> Any:
    """Return a value, and keep it."""
    held.append(value)
    return value


OWN = {
    "a dict": lambda: {"a": [1, {}], (1, 2): ("x", [None])},
    "a list": lambda: [*"text"],
    "a tuple": lambda: ([1], {}),
    "a constant": lambda: (1, ("x", 2.5)),
    "nothing": lambda: None,
}
SHARED = {
    "a dict": lambda: kept({}),
    "within a dict": lambda: {"a": kept([])},
    "within a tuple that is held": lambda: kept(([],)),
    "within one that is held within one that is not": lambda: (kept(([],)),),
    "within a constant": lambda: [WITH_LIST],
    "twice": lambda: [held] * 2,
    "a set": lambda: {1},
    "long": lambda: [*range(10_000)],
    "deep": lambda: deep(100),
    "a long text": lambda: ["x" * 1_000_000],
}


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a page on which the twin in C is with the first of a packet's units."""
    if "c" not in TWINS:
        pytest.skip("there is no twin in C")
    monkeypatch.setattr(_page, "_twin", TWINS["c"])
    with closing(Page.create()) as page:
        page.begin(1, 3)
        page.claim()
        yield page


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_what_nobody_else_has_is_kept(page: Page, make: Any) -> None:
    """It will not change."""
    values: list[Any] = []
    assert page.run(lambda _: make(), range(3), values) is None
    assert values == [make()] * 3


@pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)
def test_what_somebody_has_is_handed_out(page: Page, make: Any) -> None:
    """It is to be pickled before the next unit runs."""
    values: list[Any] = []
    left = page.run(lambda number: make() if number == 1 else math.inf, range(3), values)
    assert values == [math.inf]
    assert left == (make(),)
