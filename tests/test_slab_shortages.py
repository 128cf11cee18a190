"""Slabs where there is no room for them, what is no slab, and how many are kept."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import pickle
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import test_slab
from forks import open_descriptors, run_in_child
from interruptions import Interruption
from pairpool import _framing, _slab
from pairpool._codec import Decoder
from pairpool._envelope import Large, pack
from pairpool._slab import Arena, Put, check, content, put_for_all, put_once
from test_slab import SIZE, inode, put, read

arena = test_slab.arena


def mapped() -> int:
    """Return how many mappings of slabs this process has, those of its arenas included."""
    return Path("/proc/self/maps").read_text().count(f"/memfd:{_slab.NAME}")


def slabs_open() -> int:
    """Return how many descriptors of slabs this process has."""
    return sum(_slab.NAME in target for target in open_descriptors().values())


# -- What the receiver does without ------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("why", ["mmap fails", "too many are mapped"])
def test_content_is_copied_where_it_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch, why: str, frozen: bool) -> None:
    """It may be written to as before, or not."""
    make = put_for_all if frozen else put_once
    with contextlib.closing(make([b"x" * SIZE], [0], SIZE)) as slab:
        if why == "mmap fails":
            monkeypatch.setattr(mmap, "mmap", failing(errno.ENOMEM))
            monkeypatch.setattr(_framing, "slab_map", failing(errno.ENOMEM), raising=False)
        else:
            monkeypatch.setattr(_slab, "_MOST_MAPPED", 0)
        there = content(slab.fileno(), SIZE)
        assert mapped() == 0
        assert bytes(there) == b"x" * SIZE
        assert memoryview(there).readonly is frozen


def test_as_many_are_mapped_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is dropped makes room for another one."""
    monkeypatch.setattr(_slab, "_MOST_MAPPED", 2)
    with contextlib.closing(put_once([b"x" * SIZE], [0], SIZE)) as slab:
        held = [content(slab.fileno(), SIZE) for _ in range(3)]
        assert mapped() == 2
        del held[0]
        assert mapped() == 1
        held.append(content(slab.fileno(), SIZE))
        assert mapped() == 2


@pytest.mark.parametrize("limit", [64, 200])
def test_what_is_mapped_leaves_half_of_the_descriptors(limit: int) -> None:
    """Also where each mapping keeps one."""

    def check_it() -> None:
        slab = put_once([b"x" * SIZE], [0], SIZE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        held = [content(slab.fileno(), SIZE) for _ in range(limit)]
        assert all(bytes(each) == b"x" * SIZE for each in held)
        assert mapped() > 0
        assert os.dup(slab.fileno()) <= limit // 2

    assert run_in_child(check_it) == 0


def test_a_slab_that_ends_early_is_not_read_on(arena: Arena) -> None:
    """Nobody makes up the rest."""
    with contextlib.closing(put(arena)) as slab, pytest.raises(OSError, match="262144 bytes instead of 262145"):
        _slab.copy(slab.fileno(), 262_145)


def memfd(size: int, *seals: int) -> int:
    """Make shared memory of this size, with these seals."""
    number = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(number, size)
    for seal in seals:
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, seal)
    return number


def pipe() -> int:
    """Open a pipe's end."""
    ends = os.pipe()
    os.close(ends[1])
    return ends[0]


NO_SLABS: dict[str, Callable[[], int]] = {
    "no seals": lambda: memfd(SIZE),
    "can shrink": lambda: memfd(SIZE, fcntl.F_SEAL_GROW),
    "can grow": lambda: memfd(SIZE, fcntl.F_SEAL_SHRINK),
    "too short": lambda: memfd(SIZE - 1, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW),
    "a pipe": pipe,
    "a device": lambda: os.open("/dev/zero", os.O_RDWR),
    "a file": lambda: os.open(__file__, os.O_RDONLY),
}


@pytest.mark.parametrize("what", NO_SLABS)
def test_what_is_no_slab_is_refused(what: str) -> None:
    """It might end under a mapping: that is a SIGBUS."""
    number = NO_SLABS[what]()
    with pytest.raises((ValueError, OSError), match=r"no slab of 200000 bytes|Invalid argument"):
        check(number, SIZE)
    os.close(number)


def test_a_slab_is_not_refused(arena: Arena) -> None:
    """Nor is one that is longer than told, or that was frozen."""
    for slab in (put(arena), put_once([b"x"], [0], 1), put_for_all([b"x" * SIZE], [0], SIZE)):
        check(slab.fileno(), 1)
        check(slab.fileno(), os.fstat(slab.fileno()).st_size)
        slab.close()


# -- Where the system has no room --------------------------------------------------------------------


def failing(number: int) -> Callable[..., Any]:
    """Return what fails as a system call does."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


# What fails: module, name, and what stands there. A slab is lent by the framing's twins, or by these functions.
SHORTAGES: dict[str, list[tuple[Any, str, Any]]] = {
    "no descriptor": [(os, "memfd_create", failing(errno.EMFILE))],
    "no second descriptor": [(os, "open", failing(errno.EMFILE)), (_framing, "slab_lend", failing(errno.EMFILE))],
    "no proc": [(os, "open", failing(errno.ENOENT)), (_framing, "slab_lend", failing(errno.ENOENT))],
    "no lock": [(fcntl, "flock", failing(errno.ENOLCK)), (_framing, "slab_lend", failing(errno.ENOLCK))],
    "no memory": [(os, "pwrite", failing(errno.ENOSPC))],
    "no such size": [(os, "ftruncate", failing(errno.EFBIG))],
    "high numbers": [(_slab, "HIGHEST", 3), (_slab, "LOWEST", 0)],
    "few descriptors": [(resource, "getrlimit", lambda _: (6, 6)), (_slab, "LOWEST", 0)],
}


PUTS: dict[str, Put | None] = {"arena": None, "once": put_once, "for all": put_for_all}
LEAVE_ROOM = ("high numbers", "few descriptors")  # for the program's own, which arenas do


@pytest.mark.parametrize(
    ("shortage", "how"),
    [(shortage, how) for shortage in SHORTAGES for how in PUTS if how == "arena" or shortage not in LEAVE_ROOM],
)
def test_without_room_for_a_slab_everything_is_in_the_envelope(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, shortage: str, how: str
) -> None:
    """It arrives, nothing is left of the attempt, and the next one has a slab again."""
    sent: list[Any] = [b"s" * SIZE, bytearray(b"b" * SIZE), b"c" * 5]
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps([pickle.PickleBuffer(part) for part in sent], 5, buffer_callback=buffers.append)
    large, before = Large([stream], [buffer.raw() for buffer in buffers]), slabs_open()
    put_there = PUTS[how] or arena.put
    with monkeypatch.context() as patch:
        for module, name, instead in SHORTAGES[shortage]:
            patch.setattr(module, name, instead, raising=False)
        data, slab, size = pack(large, put_there, 0)
    assert slabs_open() == before
    assert (slab, size) == (None, 0)
    arrived = Decoder.loads(data)
    assert list(map(bytes, arrived)) == list(map(bytes, sent))
    arrived[1][:1] = b"B"
    data, slab, size = pack(large, put_there, 0)
    assert slab is not None
    assert size >= 2 * SIZE
    assert list(map(bytes, Decoder.loads(data, (os.dup(slab.fileno()),)))) == list(map(bytes, sent))
    slab.close()


# -- Where a handler strikes -------------------------------------------------------------------------


def there_and_back(arena: Arena) -> None:
    """Have a slab made, written, written again and mapped, one for all, and read each."""
    for size in (SIZE // 2, SIZE, SIZE):
        read(put(arena, b"x" * size), size)
    read(put_for_all([b"x" * SIZE], [0], SIZE))


def test_an_interrupt_leaves_nothing_wherever_it_strikes() -> None:
    """Not a descriptor and not a mapping."""
    for number in itertools.count():
        arena = Arena()
        interruption = Interruption([number])
        struck = interruption.watch(partial(there_and_back, arena))
        del arena
        assert (slabs_open(), mapped()) == (0, 0), interruption.struck
        if not interruption.struck:
            break
        assert struck, interruption.struck
    assert number > 100


# -- How much is kept --------------------------------------------------------------------------------


def test_no_more_slabs_are_kept_than_may_be(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are their receivers' alone, who still have what was in them."""
    monkeypatch.setattr(_slab, "MOST_SLABS", 3)
    lent = [put(arena, bytes([number]) * SIZE) for number in range(5)]
    assert slabs_open() == 5 + 3
    assert [read(slab)[:1] for slab in lent] == [bytes([number]) for number in range(5)]
    inodes = set(map(inode, lent[2:]))
    for slab in lent:
        slab.close()
    assert slabs_open() == 3
    assert {inode(slab) for slab in [put(arena) for _ in range(3)]} == inodes


def test_no_more_bytes_are_kept_than_may_be(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest go first."""
    monkeypatch.setattr(_slab, "MOST_KEPT", (1 << 18) + (1 << 17))
    small, large = put(arena, b"s" * (1 << 17)), put(arena, b"l" * (1 << 18))
    assert slabs_open() == 2 + 2
    more = put(arena, b"m" * 10)
    assert slabs_open() == 3 + 2
    kept = inode(small)
    for slab in (small, large, more):
        slab.close()
    assert slabs_open() == 2
    put(arena, b"L" * (1 << 19)).close()  # more than may be kept at all
    assert slabs_open() == 2
    assert inode(put(arena, b"S" * (1 << 17))) == kept


def due(arena: Arena) -> int:
    """Return when it is to be trimmed; 0 for never."""
    return arena.trim_at or 0


def test_all_is_given_back_when_it_is_not_used(arena: Arena) -> None:
    """That is due some time after the last use, and not again before the next."""
    assert due(arena) == 0
    arena.trim()
    slabs = [put(arena, b"x" * size) for size in (1, SIZE, SIZE, 3 * SIZE)]
    put(arena, b"x" * 10 * SIZE).close()
    put(arena, b"x" * 10 * SIZE).close()  # through a mapping
    first_due = due(arena)
    put(arena).close()
    assert due(arena) > first_due > 0
    arena.trim()
    assert due(arena) == 0
    assert (slabs_open(), mapped()) == (4, 0)
    assert read(slabs[3], 3 * SIZE) == b"x" * 3 * SIZE
    del slabs
    assert slabs_open() == 0
    put(arena).close()
    assert slabs_open() == 1


def test_an_arena_that_is_dropped_leaves_nothing() -> None:
    """Not a descriptor and not a mapping, and a forked child has none from the beginning."""
    arena = Arena()
    put(arena).close()
    put(arena).close()
    assert slabs_open() >= 1
    assert mapped() == 1

    def look() -> None:
        assert slabs_open() == 0

    assert run_in_child(look) == 0
    del arena
    assert (slabs_open(), mapped()) == (0, 0)
