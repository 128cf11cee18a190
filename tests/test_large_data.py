"""Large data in arguments, results and whatever else travels: it arrives as pickle has it, and is nobody else's.

What is written to an argument is seen by nobody else, and what somebody keeps stays as it is, whatever else has
travelled since by the same memory.
"""

from __future__ import annotations

import array as arrays
import gc
import os
import pickle
import signal
import socket
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.lib.recfunctions import repack_fields

import pairpool
from forks import exit_code, fork_child
from large import KIB, LARGE, MIB, MIDDLE, PATIENCE, Array, fresh, is_all, numbers_in, scribble
from pairpool import Retry
from tasks import Line, identity

MakePool = Callable[..., Any]
MakeLine = Callable[[], Line]

MUCH = 5 * MIB
SMALL = 4 * KIB  # bytes: less than a message has room for


# -- What arrives -----------------------------------------------------------------------------------


@dataclass
class Box:
    """Has two things."""

    left: Any
    right: Any


class Tagged(np.ndarray[Any, Any]):
    """An array of a class of our own."""


class Lump:
    """Has a buffer, which its pickle passes as a buffer."""

    def __init__(self, buffer: Any) -> None:
        self.view = memoryview(buffer)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Lump, (pickle.PickleBuffer(self.view),)


def describe(obj: Any, met: dict[int, tuple[int, Any]] | None = None) -> Any:
    """Return all that can be seen of an object, as plain data: of two that are alike it is equal.

    `met`: what was met before, by its identity, which is its own only while it is kept. What is met again is told as
    that, not as another that looks alike.
    """
    met = {} if met is None else met
    kind = type(obj).__name__
    if isinstance(obj, str):
        return kind, len(obj), zlib.crc32(obj.encode("utf-8", "surrogatepass"))
    if isinstance(obj, bytes):
        return kind, len(obj), zlib.crc32(obj)
    if isinstance(obj, np.generic):
        return kind, repr(obj.dtype), obj.tobytes()
    if isinstance(obj, tuple):
        return (kind, *(describe(each, met) for each in obj))
    if id(obj) in met:
        return "again", met[id(obj)][0]
    met[id(obj)] = len(met), obj
    if isinstance(obj, np.ndarray):
        plain = np.asarray(obj)
        flags = {name: obj.flags[name] for name in ("C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEABLE", "ALIGNED")}
        if plain.dtype.names is not None:
            plain = repack_fields(plain, recurse=True)  # what lies between the fields is anything
        content = describe(plain.tolist(), met) if plain.dtype.hasobject else zlib.crc32(plain.tobytes("A"))
        return kind, repr(obj.dtype), obj.shape, obj.strides, flags, content
    if isinstance(obj, bytearray | arrays.array):
        return kind, len(obj), zlib.crc32(obj)
    if isinstance(obj, Lump):
        return kind, obj.view.readonly, obj.view.nbytes, zlib.crc32(obj.view)
    if isinstance(obj, list):
        return (kind, *(describe(each, met) for each in obj))
    if isinstance(obj, dict):
        return kind, {key: describe(value, met) for key, value in obj.items()}
    if isinstance(obj, Box):
        return kind, describe(obj.left, met), describe(obj.right, met)
    return kind, repr(obj)


def see(obj: Any) -> Any:
    """Return what a worker sees of an object, and the object."""
    return describe(obj), obj


# A message has room for 32 KiB, and pickle treats 64 KiB and more in a way of its own.
sizes = st.one_of(
    st.integers(0, 300),
    st.integers(32 * KIB - 200, 32 * KIB + 200),
    st.integers(64 * KIB - 200, 64 * KIB + 200),
    st.integers(100 * KIB, 400 * KIB),
)

DTYPES: dict[str, Any] = {
    "bytes": "u1",
    "numbers": "<i4",
    "big-endian": ">i8",
    "half": "f2",
    "double": "f8",
    "long double": "g",
    "complex": "c16",
    "bool": "?",
    "texts": "S7",
    "wide texts": "U3",
    "void": "V5",
    "moments": "M8[ns]",
    "days": "M8[D]",
    "durations": "m8[s]",
    "packed records": [("a", "u1"), ("b", "<f8"), ("c", "S3")],
    "aligned records": np.dtype([("a", "u1"), ("b", "<f8", (2, 2)), ("c", [("d", "<i2")])], align=True),
    "records with moments": [("when", "M8[us]"), ("what", "<i4")],
}


def _noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@dataclass(frozen=True)
class AnArray:
    """What an array is to be; small, so that a failure can be read."""

    dtype: str
    size: int  # bytes, more or less
    shape: str
    layout: str
    read_only: bool
    seed: int

    def make(self) -> Any:
        """Make it."""
        dtype = np.dtype(DTYPES[self.dtype])
        length = 1 if self.shape == "()" else 0 if "0" in self.shape else self.size // dtype.itemsize
        shape = {"()": (), "(0,)": (0,), "(3, 0)": (3, 0), "(n,)": (length,), "(n, 3)": (length // 3, 3)}.get(
            self.shape, (2, length // 14, 7)
        )
        content = np.frombuffer(_noise(self.seed, int(np.prod(shape)) * dtype.itemsize), dtype)
        made: Any = content.reshape(shape).copy(order="F" if self.layout == "F" else "C")
        if self.layout == "transposed":
            made = made.T
        elif self.layout == "every other" and made.ndim:
            made = made[::2]
        elif self.layout == "backwards" and made.ndim:
            made = made[::-1]
        elif self.layout == "broadcast":
            made = np.broadcast_to(made, (2, *made.shape))
        elif self.layout == "part":
            made = made[1:, ...] if made.ndim else made
        elif self.layout == "of a subclass":
            made = made.view(Tagged)
        if self.read_only:
            made.flags.writeable = False
        return made


def _of_objects(seed: int, size: int) -> Array:
    found = np.empty(2, object)
    found[:] = [_noise(seed, size), [seed]]
    return found


def _kept_short(seed: int, size: int) -> bytearray:
    # Its content does not begin where its memory does.
    short = bytearray(_noise(seed, size + 3))
    del short[:3]
    return short


THINGS: dict[str, Callable[[int, int], Any]] = {
    "bytes": _noise,
    "bytearray": lambda seed, size: bytearray(_noise(seed, size)),
    "shortened bytearray": _kept_short,
    "str": lambda seed, size: _noise(seed, size // 2).hex(),
    "wide str": lambda seed, size: "\U0001f40d\udc80ß" * (size // 12),
    "array": lambda seed, size: arrays.array("H", _noise(seed, size // 2 * 2)),
    "array of objects": _of_objects,
    "buffer, read-only": lambda seed, size: Lump(_noise(seed, size)),
    "buffer": lambda seed, size: Lump(bytearray(_noise(seed, size))),
    "part of a buffer": lambda seed, size: Lump(memoryview(bytearray(_noise(seed, size)))[size // 3 :]),
    "read-only view of what can be written": lambda seed, size: Lump(memoryview(bytearray(size)).toreadonly()),
    "scalar": lambda seed, size: np.datetime64(seed, "ns"),
    "small": lambda seed, size: (None, seed, 0.5, {seed}),
}


@dataclass(frozen=True)
class AThing:
    """What something else is to be."""

    kind: str
    size: int
    seed: int

    def make(self) -> Any:
        """Make it."""
        return THINGS[self.kind](self.seed, self.size)


seeds = st.integers(0, 1000)
shapes = st.sampled_from(["(n,)", "(n, 3)", "(2, n, 7)", "()", "(0,)", "(3, 0)"])
layouts = st.sampled_from(["C", "F", "transposed", "every other", "backwards", "broadcast", "part", "of a subclass"])
pieces = st.lists(
    st.builds(AnArray, st.sampled_from(list(DTYPES)), sizes, shapes, layouts, st.booleans(), seeds)
    | st.builds(AThing, st.sampled_from(list(THINGS)), sizes, seeds),
    min_size=1,
    max_size=5,
)

# How they are put together: by their number, so that one piece may be in several places.
plans = st.recursive(
    st.integers(0, 4),
    lambda inner: st.tuples(st.sampled_from(["list", "tuple", "dict", "box", "ring"]), st.lists(inner, max_size=3)),
    max_leaves=6,
)


def _build(plan: Any, made: list[Any]) -> Any:
    if isinstance(plan, int):
        return made[plan % len(made)]
    kind, inner = plan
    built = [_build(each, made) for each in inner]
    if kind == "tuple":
        return tuple(built)
    if kind == "dict":
        return {str(number): each for number, each in enumerate(built)}
    if kind == "box":
        return Box(built, made[0])
    if kind == "ring":
        built.append(built)
    return built


FACES: dict[str, Callable[[Any, Any], Iterable[Any]]] = {
    "apply": lambda pool, obj: [pool.apply(see, (obj,)), pool.apply(see, (), {"obj": obj})],
    "submit": lambda pool, obj: [future.result(PATIENCE) for future in [pool.submit(see, obj), pool.submit(see, obj)]],
    "map": lambda pool, obj: pool.map(see, [obj] * 2, 1),
    "map in chunks": lambda pool, obj: pool.map(see, [obj] * 6, 5),
    "starmap": lambda pool, obj: pool.starmap(see, [(obj,)] * 2),
    "imap": lambda pool, obj: pool.imap(see, [obj] * 2),
    "imap in chunks": lambda pool, obj: pool.imap(see, [obj] * 3, 2),
    "imap_unordered": lambda pool, obj: pool.imap_unordered(see, [obj] * 2),
}


def there(obj: Any) -> Any:
    """Return what pickle alone makes of an object."""
    return pickle.loads(pickle.dumps(obj, 5))


@pytest.mark.parametrize("face", FACES)
def test_what_arrives_is_what_pickle_makes_of_it(make_pool: MakePool, face: str) -> None:
    """There and back: contents, types, shapes, order, what can be written, and what is the same object."""
    pool = make_pool(2)

    @settings(max_examples=25, deadline=None)
    @given(plans, pieces)
    def check(plan: Any, pieces: list[AnArray | AThing]) -> None:
        obj = _build(plan, [piece.make() for piece in pieces])
        in_worker, back = describe(there(obj)), describe(there(there(obj)))
        for seen, returned in FACES[face](pool, obj):
            assert seen == in_worker
            assert describe(returned) == back

    check()


@pytest.mark.parametrize("size", [SMALL, MIDDLE, LARGE])
def test_a_buffer_may_be_in_fortrans_order(make_pool: MakePool, size: int) -> None:
    """It arrives as pickle has it: as its bytes, as they lie in memory."""
    lump = Lump(np.arange(size // 8, dtype="<u8").reshape(2, -1).copy(order="F"))
    seen, returned = make_pool(1).apply(see, (lump,))
    assert seen == describe(returned) == describe(there(lump))


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [SMALL, MIDDLE, LARGE])
def test_a_bare_buffer_arrives(make_pool: MakePool, kind: type[bytes | bytearray], size: int) -> None:
    """With nothing around it: there and back, with what may be written."""
    pool, content = make_pool(1), kind(size)
    returned: Any = pool.apply(identity, (pickle.PickleBuffer(content),))
    view = memoryview(returned)
    assert view.readonly is isinstance(content, bytes)
    assert bytes(view) == content


def test_a_buffer_in_pieces_is_refused(make_pool: MakePool) -> None:
    """In pickle's words, and the pool works on."""
    pool = make_pool(1)
    array: Any = np.zeros((1000, 1000))
    pieces = pickle.PickleBuffer(array[::2, ::2])
    with pytest.raises(pickle.PicklingError, match="non-contiguous"):
        pool.apply(identity, ([np.zeros(LARGE), pieces],))
    assert pool.apply(scribble, (fresh(1),)) == [1]


# -- Whose it is ------------------------------------------------------------------------------------


def scribble_over_both(pair: tuple[Array, Array]) -> list[list[int]]:
    """Write all over two arrays; return what was in each when its turn came."""
    return [scribble(each) for each in pair]


def test_who_writes_to_an_argument_writes_to_his_own(make_pool: MakePool, start_method: str) -> None:
    """The caller's array stays as it is, and so does that of every other item, and what is beside it."""
    pool, given = make_pool(2, start_method=start_method), fresh(7)
    for chunksize in (None, 1):
        assert pool.map(scribble_over_both, [(given, given[:])] * 4, chunksize) == [[[7], [7]]] * 4
        assert pool.map(scribble, [given] * 4, chunksize) == [[7]] * 4
    for chunksize in (None, 1, 2):
        assert pool.map(scribble, [*map(fresh, range(9))], chunksize) == [[number] for number in range(9)]
    assert pool.apply(scribble, (given,)) == pool.submit(scribble, given).result(PATIENCE) == [7]
    assert is_all(given, 7)


def test_who_writes_to_a_result_writes_to_his_own(make_pool: MakePool) -> None:
    """The next one is as its task has made it."""
    results = make_pool(2).map(fresh, [5] * 20)
    for number, result in enumerate(results):
        assert scribble(result) == [5], number


class TornError(Exception):
    """Raised by tasks that have destroyed what they were given."""


def destroy(path: str, end: str, array: Array) -> list[int]:
    """Write all over an array, then fail or die, three times; then return what is in it."""
    with open(path, "a") as journal:
        journal.write("x")
    found = scribble(array)
    if os.path.getsize(path) <= 3:
        if end == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise TornError
    return found


@pytest.mark.parametrize("end", ["fails", "dies"])
@pytest.mark.parametrize("face", ["apply", "starmap", "imap"])
def test_an_item_that_is_run_again_finds_its_argument_as_it_was(
    make_pool: MakePool, tmp_path: Path, end: str, face: str
) -> None:
    """Whatever earlier tries did to theirs."""
    pool = make_pool(2).options(retry=Retry(5, (TornError,), deaths=5))
    given = (str(tmp_path / "runs"), end, fresh(3))
    if face == "apply":
        assert pool.apply(destroy, given) == [3]
    elif face == "starmap":
        assert pool.starmap(destroy, [given]) == [[3]]
    else:
        assert list(pool.imap(partial(destroy, *given[:2]), [given[2]])) == [[3]]
    assert os.path.getsize(given[0]) == 4
    assert is_all(given[2], 3)


def use_up(state: Array, item: int) -> tuple[list[int], int]:
    """Return what was in an array that comes with the function, and leave the item there."""
    found = numbers_in(state)
    state[...] = item
    return found, item


class Worker:
    """Carries an array about with it."""

    def __init__(self, state: Array) -> None:
        self.state = state

    def use_up(self, item: int) -> tuple[list[int], int]:
        """Do the same with its own."""
        return use_up(self.state, item)

    __call__ = use_up


CARRIERS: dict[str, Callable[[Array], Any]] = {
    "partial": lambda state: partial(use_up, state),
    "bound method": lambda state: Worker(state).use_up,
    "callable object": Worker,
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_function_that_carries_an_array_has_a_new_one_for_each_chunk(
    make_either_pool: MakePool, carrier: str
) -> None:
    """And the same one within a chunk, as with the library's pool."""
    pool, state = make_either_pool(2), fresh(99, MIB)
    function = CARRIERS[carrier](state)
    assert pool.map(function, range(12), 1) == [([99], item) for item in range(12)]
    assert pool.map(function, range(12), 3) == [([item - 1 if item % 3 else 99], item) for item in range(12)]
    assert list(pool.imap(function, range(6))) == [([99], item) for item in range(6)]
    assert [pool.apply(function, (item,)) for item in range(3)] == [([99], item) for item in range(3)]
    assert is_all(state, 99)


def test_it_is_the_same_with_every_start_method(make_pool: MakePool, start_method: str) -> None:
    """Workers that are no forks of the caller load it as often."""
    pool, state = make_pool(2, start_method=start_method), fresh(99, MIB)
    assert pool.map(partial(use_up, state), range(12), 1) == [([99], item) for item in range(12)]
    assert is_all(state, 99)


# -- What is kept -----------------------------------------------------------------------------------

MANY = 300

KEEPING: dict[str, Callable[[Any, range], Iterable[Array]]] = {
    "map": lambda pool, numbers: pool.map(fresh, numbers),
    "map in chunks": lambda pool, numbers: pool.map(fresh, numbers, 7),
    "imap": lambda pool, numbers: pool.imap(fresh, numbers),
    "apply": lambda pool, numbers: (pool.apply(fresh, (number,)) for number in numbers),
    "apply_async": lambda pool, numbers: [
        result.get(PATIENCE) for result in [pool.apply_async(fresh, (number,)) for number in numbers]
    ],
    "submit": lambda pool, numbers: (pool.submit(fresh, number).result(PATIENCE) for number in numbers),
}


def keep_every_third(pool: Any, face: str) -> None:
    """Keep some results, drop the others at once, and have many more made before those that are kept are looked at."""
    kept = {}
    for number, result in enumerate(KEEPING[face](pool, range(MANY))):
        assert is_all(result, number)
        if number % 3 == 0:
            kept[number] = result
    for number, result in enumerate(KEEPING[face](pool, range(MANY, 2 * MANY)), MANY):
        assert is_all(result, number)
    assert [number for number, result in kept.items() if numbers_in(result) != [number]] == []


@pytest.mark.parametrize("face", KEEPING)
def test_results_that_are_kept_stay_as_they_are(make_pool: MakePool, face: str) -> None:
    """However many others come and go."""
    keep_every_third(make_pool(2), face)


def test_they_do_with_every_start_method(make_pool: MakePool, start_method: str) -> None:
    """It is the same."""
    keep_every_third(make_pool(2, start_method=start_method), "imap")


def several(number: int) -> list[Array]:
    """Make four large arrays, which come in one pickle."""
    return [fresh(4 * number + place, LARGE) for place in range(4)]


PARTS: dict[str, Callable[[Any], Any]] = {
    "slice": lambda whole: whole[100:200],
    "every seventh": lambda whole: whole[::7],
    "backwards": lambda whole: whole[::-1],
    "other shape": lambda whole: whole.reshape(2, -1).T,
    "other type": lambda whole: whole.view("<u2")[::2],
    "memoryview": lambda whole: memoryview(whole)[10:20],
    "of a subclass": lambda whole: whole.view(Tagged)[5:],
    "iterator": iter,
    "object that has it": lambda whole: Box(None, [whole]),
}


def numbers_in_part(part: Any) -> list[int]:
    """Return which numbers there are in one of those."""
    if isinstance(part, Box):
        part = part.right[0]
    elif isinstance(part, Iterator):
        part = list(part)
    return numbers_in(part)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_result_keeps_what_it_needs(make_pool: MakePool, part: str) -> None:
    """The result itself may go, and with it whatever came beside it."""
    pool = make_pool(2)
    kept = {}
    for number in range(40):
        results = pool.apply(several, (number,))
        kept[4 * number + number % 4] = PARTS[part](results[number % 4])
    del results
    for number, result in enumerate(pool.imap(fresh, range(1000, 1100)), 1000):
        assert is_all(result, number)
    limit = 2**16 if part == "other type" else 2**32
    assert [(number, each) for number, each in kept.items() if numbers_in_part(each) != [number % limit]] == []


_kept: list[tuple[int, Any]] = []  # in a worker


def keep_some(array: Array) -> int:
    """Keep every third argument, or a part of it, for ever; return its number."""
    number = int(array[0])
    if number % 3 == 0:
        _kept.append((number, PARTS["every seventh"](array) if number % 2 else array))
    return number


def look_at_kept(_: Any = None) -> list[tuple[int, list[int]]]:
    """Return what is in everything that was kept."""
    return [(number, numbers_in(array)) for number, array in _kept]


def have_some_kept(pool: Any, chunksize: int | None) -> None:
    """Have a pool's one worker keep some of its arguments, and look at them when many more have come and gone."""
    numbers = [*range(MANY)]
    assert pool.map(keep_some, map(fresh, numbers), chunksize) == numbers
    assert [*pool.imap(scribble, map(fresh, numbers))] == [[number] for number in numbers]
    assert pool.apply(look_at_kept) == [(number, [number]) for number in numbers[::3]]


@pytest.mark.parametrize("chunksize", [None, 1, 5])
def test_arguments_that_a_worker_keeps_stay_as_they_are(make_pool: MakePool, chunksize: int | None) -> None:
    """Also those of which all others of their chunk are gone."""
    have_some_kept(make_pool(1), chunksize)


def test_workers_of_every_start_method_may_keep_them(make_pool: MakePool, start_method: str) -> None:
    """It is the same."""
    have_some_kept(make_pool(1, start_method=start_method), None)


def keep_in_a_ring(array: Array) -> int:
    """Have an argument kept by a ring of objects, which is collected some time later, or never."""
    box = Box(None, array)
    box.left = box
    return int(array[0])


def test_arguments_and_results_may_lie_in_rings(make_pool: MakePool) -> None:
    """They go when they are collected, and what comes meanwhile is right."""
    pool = make_pool(1)
    seen = []
    for number in range(100):
        seen.append(pool.apply(keep_in_a_ring, (fresh(number),)))
        ring = Box(None, pool.apply(fresh, (number,)))
        ring.left = ring
        assert is_all(ring.right, number)
    assert seen == [*range(100)]
    gc.collect()
    assert pool.apply(scribble, (fresh(1),)) == [1]


def return_and_keep(array: Array) -> Array:
    """Return an argument and keep it."""
    _kept.append((int(array[0]), array))
    return array


def test_what_a_worker_returns_it_may_keep_and_change(make_pool: MakePool) -> None:
    """An argument that is the result as well belongs to both."""
    pool = make_pool(1)
    results = [pool.apply(return_and_keep, (fresh(number),)) for number in range(30)]
    for number, result in enumerate(results):
        assert scribble(result) == [number]
    assert pool.apply(look_at_kept) == [(number, [number]) for number in range(30)]


# -- Forks of the user's own ------------------------------------------------------------------------


def look_when_told(gate: Line, held: list[Array], number: int) -> None:
    """In a child: wait until it may look, and fail where something else is there."""
    gate.await_told()
    if not is_all(held[0], number):
        raise AssertionError(f"{numbers_in(held[0])} instead of {number}")


def have_others_made(pool: Any, count: int = 50) -> None:
    """Have arrays of the same size go both ways."""
    for number in range(1000, 1000 + count):
        result = pool.apply(identity, (fresh(number),))
        assert is_all(result, number)


def test_a_child_of_the_callers_keeps_a_result(make_pool: MakePool, make_line: MakeLine, start_method: str) -> None:
    """Its parent may drop it, and take many more."""
    gate, pool = make_line(), make_pool(1, start_method=start_method)
    held = [pool.apply(fresh, (7,))]
    child = fork_child(lambda: look_when_told(gate, held, 7))
    held.clear()
    have_others_made(pool)
    gate.tell(b"x")
    assert exit_code(child) == 0


def test_what_a_child_drops_its_parent_keeps(make_pool: MakePool) -> None:
    """A child that drops what it has inherited gives nothing back in its parent's name."""
    pool = make_pool(1)
    held = [pool.apply(fresh, (7,))]

    def drop() -> None:
        held.clear()
        gc.collect()

    assert exit_code(fork_child(drop)) == 0
    have_others_made(pool)
    assert is_all(held[0], 7)


def test_what_a_child_writes_only_it_sees(make_pool: MakePool, make_line: MakeLine) -> None:
    """Neither its parent nor what comes later."""
    wrote, pool = make_line(), make_pool(1)
    held = [pool.apply(fresh, (7,))]

    def write() -> None:
        scribble(held[0])
        wrote.tell(b"x")

    child = fork_child(write)
    wrote.await_told()
    assert is_all(held[0], 7)
    held.clear()
    have_others_made(pool)
    assert exit_code(child) == 0


def test_a_fork_between_a_result_and_its_loading(make_pool: MakePool) -> None:
    """A result that has come and that nobody has asked for is the parent's."""
    pool = make_pool(1)
    result = pool.apply_async(fresh, (7,))
    result.wait(PATIENCE)
    assert exit_code(fork_child(gc.collect)) == 0
    have_others_made(pool)
    assert is_all(result.get(PATIENCE), 7)


def leave_a_child(gate: Line, array: Array) -> int:
    """Fork a child that looks at the argument when it is told to; return its pid."""
    return fork_child(lambda: look_when_told(gate, [array], int(array[0])))


def test_a_child_of_a_worker_keeps_an_argument(make_pool: MakePool, make_line: MakeLine) -> None:
    """The task that was given it may be long over."""
    gate, pool = make_line(), make_pool(1)
    child = pool.apply(leave_a_child, (gate, fresh(7)))
    have_others_made(pool)
    gate.tell(b"x")
    assert pool.apply(exit_code, (child,)) == 0


def leave_a_child_and_keep(gate: Line, array: Array) -> int:
    """Do that, and keep the argument until another task drops it."""
    _kept.append((int(array[0]), array))
    return leave_a_child(gate, array)


def test_a_child_keeps_it_longer_than_its_worker(make_pool: MakePool, make_line: MakeLine) -> None:
    """It is dropped by a later task, and is the child's all the same."""
    gate, pool = make_line(), make_pool(1)
    children = [pool.apply(leave_a_child_and_keep, (gate, fresh(number))) for number in range(3)]
    have_others_made(pool, 10)
    pool.apply(drop_kept)
    have_others_made(pool)
    gate.tell(b"xxx")
    assert [pool.apply(exit_code, (child,)) for child in children] == [0, 0, 0]


def drop_kept() -> None:
    """Drop what was kept."""
    _kept.clear()


# -- Results and the end of their pool --------------------------------------------------------------


@pytest.mark.parametrize("end", ["terminate", "close"])
def test_results_outlive_their_pool(make_pool: MakePool, end: str) -> None:
    """Also those that have come and were not asked for before."""
    pool = make_pool(2)
    kept = pool.map(fresh, range(50))
    kept.append(pool.apply(fresh, (50,)))
    part = pool.apply(fresh, (51,))[10:20]
    late = pool.map_async(fresh, range(52, 60))
    late.wait(PATIENCE)
    getattr(pool, end)()
    pool.join()
    del pool
    gc.collect()
    kept += [part, *late.get(PATIENCE)]
    assert [numbers_in(each) for each in kept] == [[number] for number in range(60)]


def test_results_outlive_a_forgotten_pool() -> None:
    """It ends when nobody holds it; they do not."""
    pool = pairpool.get_context("fork").Pool(2)
    kept = [pool.apply(fresh, (number,)) for number in range(20)]
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        del pool
    gc.collect()
    assert [numbers_in(each) for each in kept] == [[number] for number in range(20)]


def test_what_an_iterator_has_received_it_gives_after_the_end(make_pool: MakePool) -> None:
    """Item by item."""
    pool = make_pool(2)
    iterator = pool.imap(fresh, range(30))
    assert is_all(next(iterator), 0)
    pool.close()
    pool.join()
    assert [numbers_in(each) for each in iterator] == [[number] for number in range(1, 30)]


@pytest.mark.parametrize("end", ["killed", "replaced", "removed"])
def test_results_outlive_their_worker(make_pool: MakePool, end: str) -> None:
    """However it went, and whether they were loaded before or not."""
    pool = make_pool(2, maxtasksperchild=3 if end == "replaced" else None)
    kept = [pool.apply(fresh, (number,)) for number in range(10)]
    late = [pool.apply_async(fresh, (number,)) for number in range(10, 20)]
    for result in late:
        result.wait(PATIENCE)
    if end == "killed":
        for worker in pool._pool:
            os.kill(worker.pid, signal.SIGKILL)
    elif end == "removed":
        pool.resize(1)
    have_others_made(pool)
    kept += [result.get(PATIENCE) for result in late]
    assert [numbers_in(each) for each in kept] == [[number] for number in range(20)]


# -- What else is large -----------------------------------------------------------------------------

WHOLE: dict[str, Any] = {
    "bytes": _noise(1, MUCH),
    "bytearray": bytearray(_noise(2, MUCH)),
    "str": _noise(3, MUCH // 2).hex(),
    "wide str": "ß🐍" * (MUCH // 4),
    "int": int.from_bytes(_noise(4, MUCH), "big"),
    "many small things": [(number, str(number)) for number in range(200_000)],
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_no_array_may_be_large(make_pool: MakePool, kind: str) -> None:
    """There and back."""
    obj = WHOLE[kind]
    pool = make_pool(1)
    assert pool.apply(identity, (obj,)) == obj
    assert pool.map(identity, [obj] * 2) == [obj] * 2


class LargeError(Exception):
    """Has much to say."""

    def __init__(self, words: str, array: Array) -> None:
        super().__init__(words, array)
        self.array = array


def fail_with(number: int) -> None:
    """Raise an error that carries a large array."""
    raise LargeError("much", fresh(number, MIB))


ERRORS: dict[str, Callable[[Any, int], Any]] = {
    "apply": lambda pool, number: pool.apply(fail_with, (number,)),
    "submit": lambda pool, number: pool.submit(fail_with, number).result(PATIENCE),
    "map": lambda pool, number: pool.map(fail_with, [number]),
    "imap": lambda pool, number: next(pool.imap(fail_with, [number])),
}


@pytest.mark.parametrize("face", ERRORS)
def test_errors_may_be_large(make_pool: MakePool, face: str) -> None:
    """They bring what they have, and stay as they are."""
    pool = make_pool(2)
    errors = []
    for number in range(20):
        with pytest.raises(LargeError, match="much") as caught:
            ERRORS[face](pool, number)
        errors.append(caught.value)
        assert "fail_with" in str(caught.value.__cause__)
    assert [numbers_in(error.array) for error in errors] == [[number] for number in range(20)]
    assert errors[3].args[1] is errors[3].array


def test_functions_may_be_large(make_pool: MakePool, start_method: str) -> None:
    """A closure brings its array by value: what is there now."""
    pool, array = make_pool(2, start_method=start_method), fresh(5, MIB)

    def look(item: int, *, default: Array = array) -> tuple[int, list[int], list[int]]:
        return item, numbers_in(array), numbers_in(default)

    assert pool.map(look, range(10), 1) == [(item, [5], [5]) for item in range(10)]
    array[:] = 6
    assert [pool.apply(look, (item,)) for item in range(3)] == [(item, [6], [6]) for item in range(3)]
    assert pool.submit(look, 1).result(PATIENCE) == (1, [6], [6])


def look_at(*arguments: Array, **keywords: Array) -> list[list[int]]:
    """Return what is in each."""
    return [numbers_in(each) for each in (*arguments, *keywords.values())]


def test_arguments_by_keyword_may_be_large(make_pool: MakePool) -> None:
    """And several at once."""
    pool = make_pool(1)
    arguments, keywords = (fresh(1), fresh(2, SMALL), fresh(3, MIB)), {"four": fresh(4, MIB), "five": fresh(5)}
    every = [[number] for number in range(1, 6)]
    assert pool.apply(look_at, arguments, keywords) == every
    assert pool.apply_async(look_at, arguments, keywords).get(PATIENCE) == every
    assert pool.submit(look_at, *arguments, **keywords).result(PATIENCE) == every
    assert pool.starmap(look_at, [arguments] * 3) == [every[:3]] * 3


_initial: list[Array] = []  # in a worker


def take_initial(array: Array) -> None:
    """Be the initializer of workers that keep an array."""
    _initial.append(array)


def scribble_over_initial() -> tuple[int, list[int]]:
    """Write all over it; return the worker's pid and what was in it."""
    return os.getpid(), scribble(_initial[0])


def test_arguments_of_the_initializer_may_be_large(make_pool: MakePool, start_method: str) -> None:
    """Each worker has its own, those that come later as well."""
    pool = make_pool(1, take_initial, (fresh(9, MIB),), maxtasksperchild=1, start_method=start_method)
    found = [pool.apply(scribble_over_initial) for _ in range(2)]
    assert [numbers for _, numbers in found] == [[9]] * 2
    assert len({pid for pid, _ in found}) == 2


def test_callbacks_are_given_large_results(make_pool: MakePool) -> None:
    """One after another, each its own."""
    pool, told = make_pool(2), list[Array]()
    results = [pool.apply_async(fresh, (number,), callback=told.append) for number in range(30)]
    assert [numbers_in(result.get(PATIENCE)) for result in results] == [[number] for number in range(30)]
    assert sorted(numbers_in(each) for each in told) == [[number] for number in range(30)]


# -- With descriptors beside ------------------------------------------------------------------------


def answer(argument: tuple[list[socket.socket], Array]) -> list[int]:
    """Say on each socket what is in the array, which is written to then; return it."""
    sockets, array = argument
    found = scribble(array)
    for each in sockets:
        with each:
            each.send(bytes(found))
    return found


MakeSockets = Callable[[int], tuple[socket.socket, list[socket.socket]]]


@pytest.fixture
def make_sockets() -> Iterator[MakeSockets]:
    """Make a pair of sockets, of which the second is many that are one."""
    with ExitStack() as stack:

        def make(many: int) -> tuple[socket.socket, list[socket.socket]]:
            ours, theirs = map(stack.enter_context, socket.socketpair())
            return ours, [theirs, *(stack.enter_context(theirs.dup()) for _ in range(many - 1))]

        yield make


@pytest.mark.parametrize("each", [1, 8])
def test_sockets_and_arrays_travel_together(make_pool: MakePool, make_sockets: MakeSockets, each: int) -> None:
    """Each item has its own of both, whatever they share a message with."""
    pool = make_pool(2)
    pairs = [make_sockets(each) for _ in range(60)]
    items = [(theirs, fresh(number)) for number, (_, theirs) in enumerate(pairs)]
    for face in (pool.map, pool.imap, pool.imap_unordered):
        assert sorted(face(answer, items)) == [[number] for number in range(60)]
    assert pool.map(answer, items, 7) == [[number] for number in range(60)]
    assert [pool.apply(answer, (item,)) for item in items] == [[number] for number in range(60)]
    for number, (ours, _) in enumerate(pairs):
        assert ours.recv(100) == bytes([number]) * 5 * each


def test_many_sockets_and_an_array(make_pool: MakePool, make_sockets: MakeSockets) -> None:
    """Nearly as many as one message takes."""
    pool, (ours, theirs) = make_pool(1), make_sockets(250)
    for number in range(3):
        assert pool.apply(answer, ((theirs, fresh(number)),)) == [number]
        assert ours.recv(1000) == bytes([number]) * 250


# -- Threads ----------------------------------------------------------------------------------------


def test_threads_are_given_the_very_objects() -> None:
    """Nothing is copied, however large; and nothing is kept of it."""
    array = fresh(1, MIB)
    with pairpool.ThreadPool(2) as pool:
        assert pool.apply(identity, (array,)) is array
        assert pool.submit(identity, array).result(PATIENCE) is array
        assert pool.apply_async(identity, (array,)).get(PATIENCE) is array
        for results in (
            pool.map(identity, [array] * 3, 1),
            pool.imap(identity, [array] * 3),
            pool.map(identity, [array]),
        ):
            assert all(each is array for each in results)
        assert all(each is array for each in pool.starmap(identity, [(array,)] * 5, 2))
    pool.join()
    gone = weakref.ref(array)
    del array, results
    gc.collect()
    assert gone() is None
