"""The messages, and that the twins are twins."""

from __future__ import annotations

import array
import fcntl
import gc
import inspect
import os
import pickle
import random
import select
import struct
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from mmap import PAGESIZE
from socket import AF_UNIX, SOCK_SEQPACKET, socketpair
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

import twins
from pairpool import _framing
from pairpool._packet import OUTCOMES_HEAD, Kind, OutcomeMode
from pairpool.errors import FramingError
from twins import PAIRS, TWINS, needs_c

twin = twins.twin  # the fixture

HEADER = struct.Struct("<4sBBHQI")
FUNCTIONS = ["await_message", "exchange", "flush", "pack", "receive", "unpack", "wait_ready"]
PRIMITIVES = [
    "outbox_append",
    "page_begin",
    "page_claim",
    "page_run",
    "page_run_committing",
    "page_take",
    "share_nothing",
]
SLABS = ["slab_copy", "slab_is_free", "slab_lend", "slab_map", "slab_seals"]
REPEATS = 100
CONSTANTS = ["BYTE_BITS", "LONGEST_COMMIT", "MESSAGE_LIMIT", "READY_LIMIT", "UNIT_BITS", "UNIT_LIMIT"]

kinds = st.integers(0, 0xFF)
idents = st.integers(0, 0xFFFF_FFFF_FFFF_FFFF)
buffer_lists = st.lists(st.binary(max_size=200), max_size=8)
pairs_of_twins = pytest.mark.parametrize(("writer", "reader"), PAIRS)


def unpacked(twin: ModuleType, message: Any) -> tuple[Any, ...]:
    """Return what unpack() returns or, if it raises, the error's type and words."""
    try:
        value: tuple[Any, ...] = twin.unpack(message)
    except Exception as error:
        return type(error), str(error)
    return value


# --- Messages ---------------------------------------------------------------------------------------------


@pairs_of_twins
@given(kind=kinds, ident=idents, buffers=buffer_lists)
@example(kind=0, ident=0, buffers=[])
@example(kind=255, ident=2**64 - 1, buffers=[b"", b"x" * 40_000, b""])
def test_what_one_twin_packs_the_other_unpacks(
    writer: ModuleType, reader: ModuleType, kind: int, ident: int, buffers: list[bytes]
) -> None:
    """A message unpacked gives what was packed, whichever twin did which."""
    assert reader.unpack(writer.pack(kind, ident, buffers)) == (kind, ident, buffers)


@needs_c
@given(kind=kinds, ident=idents, buffers=buffer_lists)
def test_twins_pack_the_same_bytes(kind: int, ident: int, buffers: list[bytes]) -> None:
    """A message is the same, byte for byte, whichever twin packed it."""
    assert TWINS["c"].pack(kind, ident, buffers) == TWINS["python"].pack(kind, ident, buffers)


def test_layout_is_as_documented(twin: ModuleType) -> None:
    """The bytes of a message are those that the documentation of `_framing` gives."""
    message = twin.pack(3, 0x0102030405060708, [b"abc", b"", b"z"])

    assert message.hex(" ", 4).split() == [
        b"pair".hex(), "01030000", "08070605", "04030201", "03000000",
        "03000000", "00000000", "00000000", "00000000", "01000000", "00000000",
        b"abcz".hex(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "buffer",
    [
        b"\x01\x02\x03\x04",
        bytearray(b"\x01\x02\x03\x04"),
        memoryview(b"\x01\x02\x03\x04"),
        array.array("H", [0x0201, 0x0403]),
        memoryview(array.array("H", [0x0201, 0x0403])),
        memoryview(b"\x01\x02\x03\x04").cast("B", (2, 2)),
        pickle.PickleBuffer(b"\x01\x02\x03\x04"),
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_any_contiguous_buffer_is_packed(twin: ModuleType, buffer: Any) -> None:
    """A buffer may be any object with the buffer protocol, of any item size and shape."""
    assert twin.unpack(twin.pack(1, 2, [buffer]))[2] == [b"\x01\x02\x03\x04"]


def test_buffers_may_come_from_any_iterable(twin: ModuleType) -> None:
    """The buffers may be a list, a tuple or an iterator."""
    expected = twin.pack(1, 2, [b"a", b"b"])

    assert [twin.pack(1, 2, (b"a", b"b")), twin.pack(1, 2, iter([b"a", b"b"]))] == [expected, expected]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((256, 0, []), ValueError, "kind must be between 0 and 255"),
        ((-1, 0, []), ValueError, "kind must be between 0 and 255"),
        ((2**70, 0, []), ValueError, "kind must be between 0 and 255"),
        ((0, 2**64, []), ValueError, "ident must be between 0 and 18446744073709551615"),
        ((0, -1, []), ValueError, "ident must be between 0 and 18446744073709551615"),
        ((0.0, 0, []), TypeError, "'float' object cannot be interpreted as an integer"),
        ((0, "1", []), TypeError, "'str' object cannot be interpreted as an integer"),
        ((0, 0, 1), TypeError, "'int' object is not iterable"),
        ((0, 0, ["text"]), TypeError, "a bytes-like object is required, not 'str'"),
        ((0, 0, [b"good", memoryview(b"abcd")[::2]]), BufferError, "C-contiguous"),
    ],
)
def test_pack_refuses_what_fits_no_message(
    twin: ModuleType, arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    """Whatever cannot be packed raises what it deserves, in the same words from both twins."""
    with pytest.raises(error, match=words):
        twin.pack(*arguments)


def test_pack_releases_every_buffer(twin: ModuleType) -> None:
    """A buffer can be resized after it was packed, and after packing it failed."""
    buffer = bytearray(b"abc")
    twin.pack(1, 2, [buffer])
    with pytest.raises(TypeError):
        twin.pack(1, 2, [buffer, "text"])

    buffer.append(0)

    assert buffer == b"abc\x00"


def test_buffers_are_views_into_the_message(twin: ModuleType) -> None:
    """Unpacking copies nothing, and the views keep the message alive."""
    message = twin.pack(1, 2, [b"abc", b"de"])

    assert [view.obj for view in twin.unpack(message)[2]] == [message, message]


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda message: array.array("B", message)])
def test_unpack_takes_any_buffer(twin: ModuleType, wrap: Callable[[bytes], Any]) -> None:
    """A message may be any object with the buffer protocol."""
    assert twin.unpack(wrap(twin.pack(7, 8, [b"abc"]))) == (7, 8, [b"abc"])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "shorter than a header"),
        (HEADER.pack(b"pair", 1, 0, 0, 0, 0)[:-1], "shorter than a header"),
        (HEADER.pack(b"pear", 1, 0, 0, 0, 0), "wrong magic"),
        (HEADER.pack(b"pair", 2, 0, 0, 0, 0), "unknown version"),
        (HEADER.pack(b"pair", 1, 0, 1, 0, 0), "unknown flags"),
        (HEADER.pack(b"pair", 1, 0, 0x8000, 0, 0), "unknown flags"),
        (HEADER.pack(b"pair", 1, 0, 0, 0, 1), "lengths cut off"),
        (HEADER.pack(b"pair", 1, 0, 0, 0, 0xFFFF_FFFF) + b"x" * 100, "lengths cut off"),
        (HEADER.pack(b"pair", 1, 0, 0, 0, 0) + b"x", "lengths do not add up"),
        (HEADER.pack(b"pair", 1, 0, 0, 0, 1) + struct.pack("<Q", 2) + b"x", "lengths do not add up"),
        (HEADER.pack(b"pair", 1, 0, 0, 0, 1) + struct.pack("<Q", 1) + b"xy", "lengths do not add up"),
        (HEADER.pack(b"pair", 1, 0, 0, 0, 2) + struct.pack("<2Q", 2**64 - 1, 2), "lengths do not add up"),
    ],
)
def test_unpack_refuses_what_is_malformed(twin: ModuleType, message: bytes, reason: str) -> None:
    """Each way to be malformed is a FramingError that names it."""
    with pytest.raises(FramingError) as caught:
        twin.unpack(message)

    assert str(caught.value) == f"malformed message of {len(message)} bytes: {reason}"


@given(message=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_framing_error(message: bytes) -> None:
    """Bytes unpack or raise FramingError, the same in both twins."""
    outcomes = [unpacked(twin, message) for twin in TWINS.values()]

    assert outcomes[0][0] is FramingError or len(outcomes[0]) == 3
    assert outcomes == outcomes[:1] * len(TWINS)


@given(data=st.data(), buffers=buffer_lists)
def test_a_damaged_message_is_a_message_or_a_framing_error(data: st.DataObject, buffers: list[bytes]) -> None:
    """A message with a byte changed, cut off or added unpacks or raises FramingError, alike in both twins."""
    message = bytearray(TWINS["python"].pack(1, 2, buffers))
    at = data.draw(st.integers(0, len(message) - 1))
    damage = data.draw(st.binary(max_size=3))
    message[at : at + data.draw(st.integers(0, 3))] = damage

    outcomes = [unpacked(twin, message) for twin in TWINS.values()]

    assert outcomes[0][0] is FramingError or len(outcomes[0]) == 3
    assert outcomes == outcomes[:1] * len(TWINS)


# --- The twins --------------------------------------------------------------------------------------------


@needs_c
@pytest.mark.parametrize("name", FUNCTIONS + PRIMITIVES + SLABS)
def test_twins_have_the_same_signatures(name: str) -> None:
    """A function of the C twin is called as that of the Python twin is."""
    ours, theirs = (inspect.signature(getattr(twin, name)) for twin in (TWINS["python"], TWINS["c"]))

    assert list(ours.parameters) == list(theirs.parameters)
    assert [p.kind for p in ours.parameters.values()] == [p.kind for p in theirs.parameters.values()]


@needs_c
@pytest.mark.parametrize("name", FUNCTIONS + PRIMITIVES + SLABS)
def test_twins_refuse_a_wrong_number_of_arguments(name: str) -> None:
    """Too few and too many arguments are a TypeError from both twins."""
    right = len(inspect.signature(getattr(TWINS["python"], name)).parameters)
    for twin in TWINS.values():
        for number in (0, right - 1, right + 1):
            with pytest.raises(TypeError):
                getattr(twin, name)(*[None] * number)


@needs_c
def test_twins_have_the_same_constants() -> None:
    """What both sides of a channel must agree on is the same in both twins."""
    assert [getattr(TWINS["c"], name) for name in CONSTANTS] == [getattr(TWINS["python"], name) for name in CONSTANTS]


def exercise(twin: ModuleType) -> None:
    """Call every function, with success and with each kind of failure."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    arrivals: deque[Any] = deque()
    slab = os.memfd_create("slab")  # which has one seal, that there are to be no more
    os.ftruncate(slab, PAGESIZE)
    outcome = twin.pack(Kind.OUTCOMES, 2, [OUTCOMES_HEAD.pack(OutcomeMode.SEPARATE, 0, 1, 0), b"\0", b"abc"])
    with ours, theirs, select.epoll() as epoll, select.epoll() as outer:
        epoll.register(theirs, select.EPOLLIN)
        outer.register(epoll, 0)
        for _ in range(REPEATS):
            message = twin.pack(1, 2, [b"abc", bytearray(b"de")])
            twin.unpack(message)
            twin.unpack(bytearray(message))
            twin.flush(deque([(ours, message, ()), (ours, message, (0, 1))]))
            twin.wait_ready(epoll, 1.0, 1.0)
            twin.await_message(theirs, arrivals, "tag", 1.0)
            twin.receive(theirs, arrivals, "tag", 10)
            for answer in (outcome, message):
                theirs.send(answer)
                twin.exchange(outer, epoll, 0, deque([(ours, message, ())]), ours, arrivals, "tag", 2, [None], 0.0)
            with pytest.raises(OSError, match="No such file"):
                twin.exchange(epoll, outer, 0, deque(), ours, arrivals, "tag", 2, [], 0.0)
            for _, raw in arrivals:
                for descriptor in _framing.admit(raw)[1]:
                    os.close(descriptor)
            arrivals.clear()
            if not twin.PIPED_CLAIMS:
                page = bytearray(64)
                twin.page_begin(page, 2**40, 4000)
                assert (twin.page_claim(page), twin.page_take(page, 2**40)) == (0, 1)
                twin.page_begin(page, 1, 20)
                assert twin.page_claim(page) == 0
                twin.page_run(page, str, range(20), values := list[Any]())
                assert values == list(map(str, range(20)))
                twin.page_begin(page, 2, 20)
                assert twin.page_claim(page) == 0
                values.clear()
                small, payloads = bytearray(200), list[bytes]()  # an outbox without room for all
                assert twin.page_run_committing(page, small, str, range(20), pickle.dumps, payloads, values)
                assert payloads == list(map(pickle.dumps, values))
                assert twin.outbox_append(bytearray(64), 1, b"x", payloads)
                twin.page_begin(page, 3, 20)
                values.clear()
                assert twin.page_run(page, lambda item: values, range(20), values) == ([],)
            assert twin.share_nothing([{"a": 1}, {"a": 2}]) is not twin.share_nothing([{"a": 1j}])
            target, source = bytearray(8), bytearray(b"text")
            twin.slab_copy(target, 4, source)
            with suppress(ValueError):
                twin.slab_copy(target, 5, source)
            for each in (target, source):
                each.append(0)  # which raises BufferError while anybody views it
                each.pop()
            lent = twin.slab_lend(slab, select.epoll.fromfd)
            assert not twin.slab_is_free(slab)
            assert len(twin.slab_map(lent.fileno(), PAGESIZE, False)) == twin.slab_seals(lent.fileno(), 1) * PAGESIZE
            lent.close()
            assert twin.slab_is_free(slab)
    failures: list[tuple[str, tuple[Any, ...]]] = [
        ("pack", (1, 2, [b"abc", "text"])),
        ("pack", (1, 2, [b"abc", memoryview(b"abc")[::2]])),
        ("pack", (1, -1, [])),
        ("pack", ("1", 1, [])),
        ("unpack", (b"",)),
        ("unpack", (message + b"x",)),
        ("unpack", ("text",)),
        ("unpack", (memoryview(message)[::2],)),
        ("flush", (deque([(ours, message, ())]),)),
        ("flush", (deque([(ours, message, ("text",))]),)),
        ("flush", (deque([(ours, "text", ())]),)),
        ("receive", (ours, deque(), "tag", 1)),
        ("receive", ("text", deque(), "tag", 1)),
        ("wait_ready", (epoll, 0.0, 0.0)),
        ("page_begin", (bytearray(8), 1, 1)),
        ("page_claim", (bytes(64),)),
        ("page_run", (bytearray(64), int, ["text"], [])),
        ("page_run", (bytearray(64), int, [], [])),
        ("page_run", (bytes(64), abs, [1], [])),
        ("page_run", (bytearray(64), abs, [1], ())),
        ("page_run_committing", (bytearray(64), bytearray(64), int, ["text"], pickle.dumps, [], [])),
        ("page_run_committing", (bytearray(64), bytearray(64), int, [], pickle.dumps, [], [])),
        ("page_run_committing", (bytearray(64), bytearray(64), str, [1], abs, [], [])),
        ("page_run_committing", (bytearray(64), bytes(64), str, [1], pickle.dumps, [], [])),
        ("page_run_committing", (bytes(64), bytearray(64), str, [1], pickle.dumps, [], [])),
        ("page_run_committing", (bytearray(64), bytearray(64), str, [1], pickle.dumps, (), [])),
        ("page_run_committing", (bytearray(64), bytearray(64), str, [1], pickle.dumps, [], ())),
        ("outbox_append", (bytearray(64), 256, b"", [])),
        ("outbox_append", (bytearray(64), 1, b"", ())),
        ("outbox_append", (bytearray(7), 1, b"", [])),
        ("page_take", (bytearray(64), 2**48)),
        ("slab_copy", (bytearray(8), 5, b"text")),
        ("slab_copy", (bytearray(8), 9, b"")),
        ("slab_copy", (bytearray(8), -1, b"text")),
        ("slab_copy", (bytes(8), 0, b"text")),
        ("slab_copy", (bytearray(8), 0, "text")),
        ("slab_lend", (2**20, select.epoll.fromfd)),
        ("slab_lend", (-1, select.epoll.fromfd)),
        ("slab_is_free", ("text",)),
        ("slab_map", (slab, 0, False)),
        ("slab_map", (2**20, 1, False)),
        ("slab_map", (slab, 2**62, False)),
        ("slab_seals", (ours.fileno(), 1)),
        ("slab_seals", (0, 0)),
    ]
    for name, arguments in failures * REPEATS:
        try:
            getattr(twin, name)(*arguments)
        except (ValueError, TypeError, OSError, AttributeError, BufferError, IndexError, FramingError):
            continue
        pytest.fail(f"{name} did not fail")
    os.close(slab)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 100_000, (1 << 22) - 1, (1 << 22) + 200])
def test_all_is_copied_and_nothing_else(twin: ModuleType, size: int) -> None:
    """However it lies, and however large it is; up to the last byte that there is room for."""
    data = random.Random(size).randbytes(3 + size)
    for start, skip, behind in product([0, 1, 15, 64, 79], [0, 3], [0, 100]):
        source = memoryview(data)[skip : skip + size]
        target = bytearray(b"\xaa" * (start + size + behind))
        twin.slab_copy(target, start, source)
        assert target == b"\xaa" * start + source + b"\xaa" * behind


def test_a_memfd_is_free_when_nothing_leads_to_it_any_more(twin: ModuleType) -> None:
    """A descriptor does, and so does a mapping, also in a child of which Python knows nothing."""
    slab = os.memfd_create("slab", os.MFD_ALLOW_SEALING)
    reading, writing = os.pipe()
    try:
        os.pwrite(slab, b"ours", 0)
        lent = twin.slab_lend(slab, select.epoll.fromfd)
        mapped = memoryview(twin.slab_map(lent.fileno(), 4, False))
        lent.close()
        child = os.fork()
        if not child:
            os.read(reading, 1)
            os._exit(0)
        assert not twin.slab_is_free(slab)
        mapped[:2] = b"HI"
        assert (bytes(mapped), os.pread(slab, 4, 0)) == (b"HIrs", b"ours")
        mapped.release()
        del mapped
        assert not twin.slab_is_free(slab)
        os.write(writing, b"x")
        assert os.waitpid(child, 0) == (child, 0)
        assert twin.slab_is_free(slab)
    finally:
        for descriptor in (slab, reading, writing):
            os.close(descriptor)


def test_a_frozen_memfd_can_only_be_read(twin: ModuleType) -> None:
    """All who map it have the same memory."""
    slab = os.memfd_create("slab", os.MFD_ALLOW_SEALING)
    os.pwrite(slab, b"ours", 0)
    mapped = twin.slab_map(slab, 4, True)

    os.pwrite(slab, b"X", 0)

    assert memoryview(mapped).readonly
    assert bytes(mapped) == b"Xurs"
    assert twin.slab_seals(slab, 4) == 0
    assert twin.slab_seals(slab, 5) == 0
    fcntl.fcntl(slab, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    assert (twin.slab_seals(slab, 4), twin.slab_seals(slab, 5)) == (fcntl.F_SEAL_SHRINK, 0)
    os.close(slab)


def test_nothing_is_leaked(twin: ModuleType) -> None:
    """However often the functions are called, and fail, no memory is kept."""
    growth = []
    for _ in range(8):
        gc.collect()
        before = sys.getallocatedblocks()
        exercise(twin)
        gc.collect()
        growth.append(sys.getallocatedblocks() - before)

    # One block kept by one kind of call grows by REPEATS in every round; the interpreter's caches fill in the first.
    assert min(growth) < REPEATS // 2


@pytest.mark.parametrize("name", FUNCTIONS + PRIMITIVES + SLABS)
def test_each_function_comes_from_the_module_it_claims(twin: ModuleType, name: str) -> None:
    """No twin borrows a function of the other."""
    function = getattr(twin, name)

    in_c = twin.__name__ == "pairpool._framing_c"
    assert (function.__module__ == "pairpool._framing_c") == in_c
    assert inspect.isbuiltin(function) == in_c


def test_the_c_twin_has_nothing_that_the_python_twin_lacks(twin: ModuleType) -> None:
    """Every public name of a twin is one of the shared functions and constants, or of the Python twin."""
    public = {name for name in vars(twin) if not name.startswith("_")}

    assert public <= set(vars(TWINS["python"]))
    assert {*FUNCTIONS, *PRIMITIVES, *SLABS, *CONSTANTS} <= public


@pytest.mark.parametrize("name", FUNCTIONS + SLABS)
def test_framing_offers_the_twin_it_names(name: str) -> None:
    """`_framing` hands out the functions of the twin that TWIN names."""
    assert getattr(_framing, name) is getattr(TWINS[_framing.TWIN], name)
