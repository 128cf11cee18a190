"""Large pickles: what of them travels where, that they arrive as they were, and which of them name the main module."""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec_things import arrive, whole
from pairpool import _slab
from pairpool._by_value import DefinitionPickler
from pairpool._codec import Decoder, Encoder, decode_result, encode_result
from pairpool._envelope import LARGEST_IN_BAND, LARGEST_TOGETHER, Large, pack
from pairpool._payload import Payload, says_enough
from pairpool._plain import PlainPickler
from pairpool._slab import Arena, layout, put_for_all, put_once

MAIN = vars(sys.modules["__main__"])
KIB = 1 << 10
MIB = 1 << 20
FRAME = 64 * KIB  # bytes after which the pickler begins another frame, and from which on data has none


def pickled(obj: Any) -> Large:
    """Pickle something large."""
    large = PlainPickler(lambda reducer: reducer).dumps(obj)
    assert isinstance(large, Large)
    return large


def travel(obj: Any, put: _slab.Put = put_once) -> Any:
    """Pack and open something large."""
    data, slab, _ = pack(pickled(obj), put, 0)
    assert slab is not None
    assert len(data) <= LARGEST_TOGETHER
    return Decoder.loads(data, (os.dup(slab.fileno()),))


def mapped() -> int:
    """Return how many slabs this process has mapped to look into."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if _slab.NAME in line]
    return sum("rw-s" not in line for line in lines)


def numbers(count: int, **options: Any) -> Any:
    """Make an array."""
    return np.arange(count, **options)


# -- As it was ---------------------------------------------------------------------------------------


def read_only(array: Any) -> Any:
    """Make an array that nobody can write to."""
    array.flags.writeable = False
    return array


RECORDS = np.dtype([("name", "U5"), ("at", "M8[s]"), ("x", "f4", (2, 3))])

ARRAYS: dict[str, Callable[[], list[Any]]] = {
    "one": lambda: [numbers(20_000)],
    "several": lambda: [numbers(20_000), numbers(70_000, dtype="i2"), numbers(10_000, dtype="c16")],
    "large and small": lambda: [numbers(3), numbers(20_000), numbers(5), numbers(10_000)],
    "just inside and just not": lambda: [numbers(LARGEST_IN_BAND + more, dtype="u1") for more in (0, 1)],
    "of no size": lambda: [numbers(0), numbers(20_000), np.empty((3, 0, 2)), np.array(5.0)],
    "read-only": lambda: [read_only(numbers(20_000)), numbers(20_000), read_only(numbers(5))],
    "by columns": lambda: [np.asfortranarray(numbers(size * size).reshape(size, size)) for size in (100, 150)],
    "not contiguous": lambda: [numbers(50_000)[::2], numbers(40_000).reshape(200, 200)[:, 3:90]],
    "records": lambda: [np.zeros(4_000, RECORDS), np.array(["a", "bc"] * 9_000)],
    "of objects": lambda: [np.array([None, "x", 5] * 20_000, dtype=object), numbers(20_000)],
    "many": lambda: [numbers(20_000 + number) for number in range(30)],
    "many of all sizes": lambda: [numbers(size) for size in (200_000, 20_000, 5, 300_000, 5_000, 20_000, 0)],
    "long stream": lambda: [numbers(20_000), np.array([str(number) for number in range(20_000)], dtype=object)],
}
PUTS: dict[str, _slab.Put] = {"arena": Arena().put, "once": put_once, "for all": put_for_all}


@pytest.mark.parametrize("put", PUTS)
@pytest.mark.parametrize("arrays", ARRAYS)
def test_arrays_arrive_as_they_were(arrays: str, put: str) -> None:
    """In type, shape and order, aligned, and as writable as they were, where all do not share one memory."""
    sent = ARRAYS[arrays]()
    for found, array in zip(travel(sent, PUTS[put]), sent, strict=True):
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert found.flags.aligned
        assert found.flags.f_contiguous == np.array(array, order="K").flags.f_contiguous
        np.testing.assert_array_equal(found, array)
        if put != "for all":
            assert found.flags.writeable == array.flags.writeable
            if found.flags.writeable:
                found[...] = array
        elif array.nbytes > LARGEST_IN_BAND and array.flags.contiguous and array.dtype.kind in "iuc":
            assert not found.flags.writeable
    PUTS["arena"].__self__.trim()  # type: ignore[attr-defined]


DATA: dict[str, Any] = {
    "bytes": b"x" * 200_000,
    "a bytearray": bytearray(b"x" * 200_000),
    "a string": "\u20ac" * 50_000,
    "an int": 1 << 1_600_000,
    "many small": [(number, str(number)) for number in range(20_000)],
    "of every sort": [
        b"a" * FRAME,
        "b" * FRAME,
        {"c": bytearray(b"c" * 200_000)},
        1 << 600_000,
        None,
        [[b"d" * 70_000]],
    ],
    "a little too large": b"x" * LARGEST_TOGETHER,
    "the same twice": [b"x" * 200_000] * 2,
}


@pytest.mark.parametrize("data", DATA)
def test_data_arrives_as_it_was(data: str) -> None:
    """Also where nothing went out of band: the stream is in the slab, in however many pieces it was written."""
    sent = DATA[data]
    found = travel(sent)
    assert found == sent
    assert type(found) is type(sent)


def test_buffers_arrive_as_they_were() -> None:
    """Those that were read-only are, others can be written to; each once, however often it is named."""
    buffer, still, array = bytearray(b"b" * 200_000), b"s" * 200_000, numbers(20_000)
    found = travel([pickle.PickleBuffer(buffer), pickle.PickleBuffer(still), array, array, array[:20], buffer])
    assert [bytes(each) for each in found[:2]] == [buffer, still]
    assert [memoryview(each).readonly for each in found[:2]] == [False, True]
    assert found[2] is found[3]
    assert found[5] == buffer
    found[2][0] = 77
    assert found[4][0] == 0


def test_the_sender_s_are_left_alone() -> None:
    """What is written where it arrived is not seen here, nor by another one that opens the same."""
    array = numbers(10_000)
    data, slab, _ = pack(pickled(array), put_once, 0)
    assert slab is not None
    one, other = (Decoder.loads(data, (os.dup(slab.fileno()),)) for _ in range(2))
    one[:] = -1
    assert array.tolist() == other.tolist() == list(range(10_000))


def test_the_stream_is_in_the_envelope_where_it_is_short() -> None:
    """Then the slab has nothing but buffers, one after another."""
    arrays = [numbers(20_000), numbers(30_000)]
    large = pickled(arrays)
    data, slab, size = pack(large, put_once, 0)
    assert slab is not None
    assert size == layout([160_000, 240_000])[1]
    assert b"".join(large.chunks) in data
    assert os.pread(slab.fileno(), size, 0) == bytes(arrays[0]) + bytes(arrays[1])
    large = pickled([*arrays, b"x" * 5_000])
    data, slab, longer = pack(large, put_once, 0)
    assert slab is not None
    assert longer > size + 5_000
    assert os.pread(slab.fileno(), 9_000, 0).startswith(b"".join(large.chunks))


def test_other_descriptors_travel_beside_it(encoder: Encoder) -> None:
    """It finds its slab among them."""
    array = numbers(100_000)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        payload = whole(encoder.dumps([theirs, array, theirs]))
        assert len(payload.descriptors) == 2
        found, there, same = arrive(payload)
        with found:
            assert same is found
            ours.send(b"x")
            assert found.recv(1) == b"x"
        assert there.tolist() == array.tolist()
        payload.close()


class Raising:
    """Cannot be loaded."""

    def __reduce__(self) -> Any:
        return int, ("x",)


def test_what_cannot_be_loaded_leaves_nothing() -> None:
    """Neither a descriptor nor a mapping."""
    sent = [numbers(50_000), Raising()]
    for _ in range(3):
        with pytest.raises(ValueError, match="invalid literal"):
            travel(sent)
    assert mapped() == 0


def test_results_go_the_same_way() -> None:
    """As small ones they are bytes; large ones have a slab with them."""
    assert isinstance(encode_result(numbers(10)), bytes)
    array = numbers(50_000)
    payload = encode_result([array, "x"])
    assert isinstance(payload, Payload)
    assert payload.weight >= array.nbytes
    found: Any = Decoder.loads(payload.data, tuple(map(os.dup, payload.descriptors)))
    assert found[0].tolist() == array.tolist()
    small: Any = decode_result(encode_result(numbers(10)))
    assert small.tolist() == list(range(10))


# -- What keeps it in memory -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 4])
def test_a_view_keeps_all_of_it(number: int) -> None:
    """Nothing is copied; the mapping is gone with the last view."""
    found = travel([numbers(50_000) for _ in range(number)])
    piece = found[-1][:7]
    assert mapped() == 1
    del found
    assert mapped() == 1
    assert piece.tolist() == list(range(7))
    del piece
    assert mapped() == 0


def test_of_many_the_small_ones_are_copied() -> None:
    """Or somebody who keeps one of them would keep them all."""
    found = travel([numbers(30_000) for _ in range(5)])
    assert mapped() == 0
    found[3][0] = 5
    found = travel([*[numbers(30_000) for _ in range(4)], numbers(MIB)])
    assert mapped() == 1
    del found[4]
    assert mapped() == 0
    found = travel([numbers(30_000) for _ in range(5)], put_for_all)
    assert mapped() == 1  # all have that in common


# -- What names something of the main module ---------------------------------------------------------


class Reduced:
    """Made by a function of the main module."""

    def __reduce__(self) -> Any:
        return MAIN["Named_in_main"], ()


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Define a class in the main module, and return an instance."""
    made: dict[str, Any] = {}
    exec("class Named_in_main:\n    def __eq__(self, other): return type(self) is type(other)", MAIN, made)
    monkeypatch.setitem(MAIN, "Named_in_main", made["Named_in_main"])
    return made["Named_in_main"]()


PLACES: dict[str, Callable[[Any], Any]] = {
    "alone in much": lambda named: [named, numbers(100_000)],
    "first": lambda named: [named, b"x" * 200_000],
    "last": lambda named: [b"x" * 200_000, named],
    "last of arrays": lambda named: [numbers(100_000), numbers(50_000), named],
    "between large bytes": lambda named: [b"x" * 200_000, named, b"y" * 200_000],
    "between large strings": lambda named: ["x" * 200_000, named, "y" * 200_000],
    "between bytes and array": lambda named: [b"x" * 200_000, [named], numbers(100_000), bytearray(b"y" * 200_000)],
    "after a large int": lambda named: [1 << 1_600_000, named],
    "between large ints": lambda named: [b"x" * 200_000, 1 << 1_600_000, named, 1 << 1_600_000],
    "behind many small": lambda named: [[(number, str(number)) for number in range(50_000)], named],
    "as a key": lambda named: [{"x" * 100_000: b"y" * 100_000}, {type(named): 5}],
    "as a class": lambda named: [b"x" * 200_000, type(named), b"x" * 200_000],
    "as a reducer": lambda _: [b"x" * 200_000, Reduced(), b"y" * 200_000],
    "after pickles": lambda named: [b"\x80" + b"x" * 200_000, b"\x95" + b"y" * 200_000, named],
    "in an array": lambda named: [np.array([b"x" * 70_000, named, "y" * 70_000], dtype=object)],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_name_of_the_main_module_is_seen_wherever_it_stands(place: str, named: Any) -> None:
    """Such a pickle is no plain one: what it names may be something else in a worker, or nothing."""
    assert not says_enough(pickled(PLACES[place](named)))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["dumps", "dumps_each", "share", "call"])
def test_it_goes_the_careful_way(place: str, named: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but the caller has the class, and it arrives all the same."""
    sent = PLACES[place](named)
    encoder = Encoder()
    if way == "dumps":
        payload = whole(encoder.dumps(sent))
    elif way == "dumps_each":
        payloads: list[Any] = []
        encoder.dumps_each([[1], sent], payloads)
        payload = whole(payloads[1])
    elif way == "share":
        payload = encoder.share(sent).definition.payload
    else:
        payload = whole(encoder.call(len, (sent,), {})[1])
    assert payload.needs == () or payload.fallback is not None
    sound = payload.fallback or payload
    monkeypatch.delitem(MAIN, "Named_in_main")
    found: Any = arrive(sound)
    if way == "call":
        ((found,), _) = found
    assert len(found) == len(sent)
    encoder.trim()


KINDS: dict[str, Callable[[int], Any]] = {
    "bytes": lambda size: b"x" * size,
    "strings": lambda size: "x" * size,
    "bytearrays": bytearray,
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_seen_behind_what_just_fits_into_a_frame(kind: str, named: Any) -> None:
    """Wherever the pickler begins another one."""
    make = KINDS[kind]
    for size in range(FRAME - 40, FRAME + 1):
        assert not says_enough(pickled([make(size), named])), size
        assert not says_enough(pickled([make(size), make(size), named, make(size)])), size
        assert not says_enough(pickled([make(FRAME), make(FRAME - size), named, make(200_000)])), size


def test_it_is_seen_behind_every_mixture(named: Any) -> None:
    """Of what is in frames and what is not."""
    pieces = [b"x" * 10, "y" * (FRAME - 20), b"z" * FRAME, 1 << 600_000, numbers(20_000), "w" * 200_000]
    for mixture in itertools.permutations(pieces, 4):
        assert not says_enough(pickled([*mixture, named]))
        assert not says_enough(pickled([*mixture[:2], named, *mixture[2:]]))


def test_large_data_is_not_searched_for_names() -> None:
    """It may say what it likes, and that would take longer than to copy it."""
    for data in (b"__main__" * 100_000, "__main__" * 100_000, np.frombuffer(b"__main__" * 100_000, dtype="u1")):
        assert says_enough(pickled([data, 5]))
    assert says_enough(pickled([b"x" * 200_000, len, DefinitionPickler]))


@pytest.fixture(autouse=True)
def trimmed() -> Iterator[None]:
    """Leave nothing in the arena that all tests have in common."""
    yield
    PUTS["arena"].__self__.trim()  # type: ignore[attr-defined]
