"""Slabs: memory in which large payloads travel, who may see and change it, and when it is used again."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pickle
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from forks import exit_code, fork_child
from pairpool import _framing, _slab
from pairpool._descriptors import Owner
from pairpool._slab import Arena, content, layout, put_for_all

SIZE = 200_000  # bytes: what is a little larger is in a slab of the same size


def put(arena: Arena, data: Any = b"x" * SIZE) -> Owner:
    """Have an arena put one part."""
    return arena.put([data], [0], len(data))


def inode(slab: Owner) -> int:
    """Return what tells slabs apart, whatever descriptor leads there."""
    return os.fstat(slab.fileno()).st_ino


def read(slab: Owner, size: int = SIZE) -> bytes:
    """Return what is in a slab."""
    return bytes(content(slab.fileno(), size))


@pytest.fixture
def arena() -> Iterator[Arena]:
    """Make an arena."""
    arena = Arena()
    yield arena
    arena.trim()


# -- Where parts lie ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "starts", "end"),
    [
        ([], [], 0),
        ([0], [0], 0),
        ([1], [0], 1),
        ([1, 64, 65, 3], [0, 64, 128, 256], 259),
        ([64, 0, 0, 1], [0, 64, 64, 64], 65),
        ([1 << 40, 5], [0, 1 << 40], (1 << 40) + 5),
    ],
)
def test_parts_lie_one_after_another(sizes: list[int], starts: list[int], end: int) -> None:
    """Each begins where arrays may begin, and none before the last one's end."""
    assert layout(sizes) == (starts, end)


@pytest.mark.parametrize("again", [False, True], ids=["written", "through the mapping"])
@pytest.mark.parametrize("step", [7, 1 << 23])
def test_every_part_arrives(arena: Arena, monkeypatch: pytest.MonkeyPatch, step: int, again: bool) -> None:
    """Of whatever type, also empty ones and those for which one system call is not enough."""
    monkeypatch.setattr(_slab, "STEP", step)
    monkeypatch.setattr(_slab, "MOST_AT_ONCE", 1000 * step)
    if again:
        put(arena, b"z" * 70_000).close()
    parts = [b"a" * 1000, bytearray(b"b" * 66_000), b"", memoryview(b"0c0")[1:2], pickle.PickleBuffer(b"d" * 3).raw()]
    starts, end = layout([len(part) for part in parts])
    with contextlib.closing(arena.put(parts, starts, end)) as slab:
        there = read(slab, end)
        assert _slab.copy(slab.fileno(), end) == there
    assert [there[start : start + len(part)] for start, part in zip(starts, parts, strict=True)] == parts


# -- When it is used again ---------------------------------------------------------------------------


@contextlib.contextmanager
def by_descriptor(slab: Owner) -> Iterator[None]:
    """Have a duplicate of the descriptor that the receiver was given."""
    duplicate = os.dup(slab.fileno())
    slab.close()
    yield
    os.close(duplicate)


@contextlib.contextmanager
def by_message(slab: Owner) -> Iterator[None]:
    """Have it in a message that nobody has read."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        socket.send_fds(ours, [b"x"], [slab.fileno()])
        slab.close()
        yield


@contextlib.contextmanager
def by_message_that_was_read(slab: Owner) -> Iterator[None]:
    """Have it from a message, from which it went to another process in yet another one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        socket.send_fds(ours, [b"x"], [slab.fileno()])
        slab.close()
        _, (received,), *_ = socket.recv_fds(theirs, 1, 1)
        socket.send_fds(ours, [b"x"], [received])
        os.close(received)
        yield


@contextlib.contextmanager
def by_mapping(slab: Owner) -> Iterator[None]:
    """Have it mapped."""
    held = content(slab.fileno(), SIZE)
    slab.close()
    yield
    del held


@contextlib.contextmanager
def by_slice(slab: Owner) -> Iterator[None]:
    """Have a piece of a view of the mapping."""
    held = memoryview(content(slab.fileno(), SIZE))[10:90][5:7].cast("B")
    slab.close()
    yield
    assert held.tobytes() == b"xx"
    del held


@contextlib.contextmanager
def by_child(slab: Owner, fork: Callable[[], int]) -> Iterator[None]:
    """Have a child that got the mapping with the rest of this process's memory, and nothing but that."""
    held = content(slab.fileno(), SIZE)
    slab.close()
    child = fork()
    while child == 0:
        signal.pause()
    del held
    yield
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL


def by_forked_child(slab: Owner) -> AbstractContextManager[None]:
    """As Python forks."""
    return by_child(slab, lambda: fork_child(signal.pause))


def by_stray_child(slab: Owner) -> AbstractContextManager[None]:
    """As a library in C forks: no hook closes anything."""
    return by_child(slab, ctypes.PyDLL(None).fork)


HOLDERS = [
    by_descriptor,
    by_message,
    by_message_that_was_read,
    by_mapping,
    by_slice,
    by_forked_child,
    by_stray_child,
]


@pytest.mark.parametrize("hold", HOLDERS)
@pytest.mark.parametrize("used_before", [False, True])
def test_a_slab_is_used_again_when_nobody_has_it(
    arena: Arena, hold: Callable[[Owner], AbstractContextManager[None]], used_before: bool
) -> None:
    """And not while anybody has, in whatever form and process."""
    if used_before:
        put(arena).close()
    first = put(arena)
    used = inode(first)
    with hold(first):
        second = put(arena)
        third = put(arena)
        assert len({used, inode(second), inode(third)}) == 3
    again = put(arena)
    assert inode(again) == used
    for slab in (second, third, again):
        slab.close()


def test_sizes_do_not_mix(arena: Arena) -> None:
    """What needs twice as much is in another slab; a smaller one stays for what fits."""
    small, large = put(arena, b"s" * 70_000), put(arena, b"l" * 140_000)
    pair = inode(small), inode(large)
    small.close()
    large.close()
    again = put(arena, b"S" * 131_072), put(arena, b"L" * 131_073)
    assert (inode(again[0]), inode(again[1])) == pair
    assert (read(again[0], 131_072), read(again[1], 131_073)) == (b"S" * 131_072, b"L" * 131_073)


def test_threads_never_share_a_slab(arena: Arena) -> None:
    """Each finds what it has put, however many put at once, and the slabs are no more than that takes."""
    start, wrong, seen = threading.Barrier(8), list[bytes](), set[int]()

    def work(number: int) -> None:
        start.wait()
        for turn in range(60):
            data = bytes([number, turn]) * (SIZE // 2)
            slab = put(arena, data)
            seen.add(inode(slab))
            held = content(slab.fileno(), SIZE)
            slab.close()
            if bytes(held) != data:
                wrong.append(data[:2])
            del held

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(seen) < 8 * 60


# -- Who sees what -----------------------------------------------------------------------------------


def test_what_a_receiver_writes_is_its_own(arena: Arena) -> None:
    """Neither the sender sees it, nor another receiver, nor who gets the slab next."""
    slab = put(arena)
    mine = memoryview(content(slab.fileno(), SIZE))
    mine[:5] = b"12345"
    other = memoryview(content(slab.fileno(), SIZE))
    assert bytes(mine[:7]) == b"12345xx"
    assert bytes(other[:7]) == os.pread(slab.fileno(), 7, 0) == b"x" * 7
    used = inode(slab)
    slab.close()
    del mine, other
    again = put(arena, b"y" * (SIZE - 100))
    assert inode(again) == used
    assert read(again) == b"y" * (SIZE - 100) + b"x" * 100


def test_what_a_receiver_has_does_not_change(arena: Arena) -> None:
    """Whatever is put afterwards: it has its content for as long as it likes."""
    slab = put(arena, b"1" * SIZE)
    held = content(slab.fileno(), SIZE)
    slab.close()
    for turn in range(20):
        put(arena, bytes([turn]) * SIZE).close()
    arena.trim()
    put(arena).close()
    assert bytes(held) == b"1" * SIZE


def test_a_receiver_cannot_write_to_the_slab(arena: Arena) -> None:
    """Its descriptor is for reading, and the size is sealed."""
    with contextlib.closing(put(arena)) as slab:
        number = slab.fileno()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(number, b"y")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(number, b"y", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(number, SIZE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        for size in (0, 1 << 30):
            with pytest.raises(OSError, match=r"Invalid argument|Operation not permitted"):
                os.ftruncate(number, size)
        assert read(slab) == b"x" * SIZE


def test_what_is_for_all_cannot_be_written_by_anybody() -> None:
    """Not even through a descriptor of one's own; and all that map it have the same memory."""
    with contextlib.closing(put_for_all([b"a" * 10, b"b" * SIZE], *layout([10, SIZE]))) as slab:
        one, other = (memoryview(content(slab.fileno(), 64 + SIZE)) for _ in range(2))
        assert one.readonly
        assert bytes(one[:10]) + bytes(other[64:]) == b"a" * 10 + b"b" * SIZE
        number = os.open(f"/proc/self/fd/{slab.fileno()}", os.O_RDWR)
        with pytest.raises(PermissionError):
            os.write(number, b"y")
        with pytest.raises(PermissionError):
            mmap.mmap(number, SIZE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        os.close(number)
        lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if _slab.NAME in line]
        assert [line.split()[1] for line in lines] == ["r--s", "r--s"]


def test_copying_does_not_stop_at_each_page(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a slab is used again the page table has been filled before."""
    with mmap.mmap(-1, mmap.PAGESIZE) as some:
        try:
            some.madvise(_slab._POPULATE_READ)
        except OSError:
            pytest.skip("the kernel is older than 5.14")
    data, faults, slab_copy = b"x" * (20 << 20), 0, _framing.slab_copy

    def copy(*arguments: Any) -> None:
        nonlocal faults
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        slab_copy(*arguments)
        faults += resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    monkeypatch.setattr(_framing, "slab_copy", copy)
    put(arena, data).close()
    assert faults == 0  # it was written
    put(arena, data).close()
    assert faults < 50


def test_a_page_table_has_no_pages_that_were_not_there(arena: Arena) -> None:
    """What is filled in makes no memory."""
    first = put(arena, b"x" * (5 << 20))  # in a slab of 8 MiB
    blocks = os.fstat(first.fileno()).st_blocks
    first.close()
    again = put(arena, b"x" * (5 << 20))
    assert os.fstat(again.fileno()).st_blocks == blocks


def test_a_payload_that_is_longer_is_written(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a mapping only as far as there are pages: to make one there the kernel may have no memory, and kills."""
    written: list[int] = []
    write = _slab._write

    def note(descriptor: int, data: memoryview, start: int) -> None:
        written.append(len(data))
        write(descriptor, data, start)

    monkeypatch.setattr(_slab, "_write", note)
    blocks = 0
    for size, how in [(140_000, "w"), (200_000, "w"), (140_000, "m"), (200_000, "m"), (262_144, "w"), (262_144, "m")]:
        with contextlib.closing(put(arena, bytes([size % 251]) * size)) as slab:
            taken = os.fstat(slab.fileno()).st_blocks * 512
            assert taken >= size
            assert how == "w" or taken == blocks
            blocks = taken
            assert read(slab, size) == bytes([size % 251]) * size
        assert (written == [size]) is (how == "w")
        written.clear()
    assert len(arena._slabs[18]) == 1
