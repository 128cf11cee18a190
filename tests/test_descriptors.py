"""pairpool's own descriptors in forks that others make."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from forks import run_in_child
from pairpool import _descriptors
from pairpool._descriptors import Descriptor


def is_open(number: int) -> bool:
    """Return whether this process has such a descriptor."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def expect(value: bool) -> None:
    """Fail, in a child too, where asserts are not rewritten."""
    if not value:
        raise AssertionError


@pytest.fixture
def number() -> Iterator[int]:
    """A descriptor that is closed by nobody else."""
    number = os.open(os.devnull, os.O_RDONLY)
    yield number
    _descriptors.unregister(number)
    os.close(number)


class TestForks:
    """What a forked child has."""

    def test_number(self, number: int) -> None:
        """A registered number is closed in the child and open in the parent."""
        _descriptors.register(number)

        assert run_in_child(lambda: expect(not is_open(number))) == 0
        assert is_open(number)

    def test_owner(self) -> None:
        """A registered owner is closed in the child: there it says so, and closes nothing again."""
        with socket.socket() as owner:
            number = owner.fileno()
            _descriptors.register(owner)

            def work() -> None:
                expect(owner.fileno() == -1)
                expect(os.open(os.devnull, os.O_RDONLY) <= number)
                while not is_open(number):
                    os.open(os.devnull, os.O_RDONLY)
                owner.close()
                expect(is_open(number))

            assert run_in_child(work) == 0
            assert is_open(number)

    def test_owner_that_was_closed(self) -> None:
        """A number that belongs to somebody else by now stays open."""
        owner = socket.socket()
        _descriptors.register(owner)
        number = owner.fileno()
        owner.close()
        again = os.open(os.devnull, os.O_RDONLY)
        os.dup2(again, number)
        try:
            assert run_in_child(lambda: expect(is_open(number))) == 0
        finally:
            for open_ in {again, number}:
                os.close(open_)

    def test_number_that_was_closed(self, number: int) -> None:
        """A number that was closed through the registry is forgotten by it."""
        twin = os.dup(number)
        _descriptors.register(twin)
        _descriptors.close(twin)
        os.dup2(number, twin)
        try:
            assert run_in_child(lambda: expect(is_open(twin))) == 0
        finally:
            os.close(twin)

    def test_number_closed_behind_our_back(self, number: int) -> None:
        """A number that is open no more does not keep the others from being closed."""
        gone = os.dup(number)
        _descriptors.register(gone, number)
        os.close(gone)
        try:
            assert run_in_child(lambda: expect(not is_open(number))) == 0
        finally:
            _descriptors.unregister(gone)

    def test_owners_are_not_kept(self) -> None:
        """The registry keeps no owner alive, and loses no count of them."""
        before = len(_descriptors._owners)
        owner = Descriptor(os.open(os.devnull, os.O_RDONLY))
        number = owner.fileno()
        _descriptors.register(owner)

        with pytest.warns(ResourceWarning):
            del owner

        assert not is_open(number)
        assert before == len(_descriptors._owners)

    def test_spared(self, number: int) -> None:
        """What the forking thread spares stays open in its child, and is closed in that one's."""
        _descriptors.register(number)

        def work() -> None:
            expect(is_open(number))
            expect(run_in_child(lambda: expect(not is_open(number))) == 0)

        with _descriptors.spare(number):
            assert run_in_child(work) == 0
        assert run_in_child(lambda: expect(not is_open(number))) == 0

    def test_spared_by_another_thread(self, number: int) -> None:
        """What one thread spares is closed in a child that another one forks."""
        _descriptors.register(number)
        codes = []
        with _descriptors.spare(number):
            thread = threading.Thread(target=lambda: codes.append(run_in_child(lambda: expect(not is_open(number)))))
            thread.start()
            thread.join()

        assert codes == [0]


class TestCallbacks:
    """What is called in a forked child."""

    def test_after_the_closing(self, number: int) -> None:
        """A callback runs in the child, when the descriptors are closed, and not in the parent."""
        seen: list[bool] = []

        def look() -> None:
            seen.append(is_open(number))

        _descriptors.register(number)
        _descriptors.call_after_fork_in_child(look)

        assert run_in_child(lambda: expect(seen == [False])) == 0
        assert seen == []

    def test_method_of_an_object(self) -> None:
        """A bound method is called while its object lives, and does not keep it alive."""
        seen: list[str] = []

        class Pool:
            def on_fork(self) -> None:
                seen.append("called")

        pool = Pool()
        _descriptors.call_after_fork_in_child(pool.on_fork)
        assert run_in_child(lambda: expect(seen == ["called"])) == 0

        del pool

        assert run_in_child(lambda: expect(seen == [])) == 0

    def test_that_raises(self, capfd: pytest.CaptureFixture[str]) -> None:
        """A callback that raises is told of on stderr and keeps none of the others from running."""
        seen: list[str] = []

        def fail() -> None:
            raise ValueError("meant to fail")

        def follow() -> None:
            seen.append("called")

        _descriptors.call_after_fork_in_child(fail)
        _descriptors.call_after_fork_in_child(follow)

        assert run_in_child(lambda: expect(seen == ["called"])) == 0
        assert "meant to fail" in capfd.readouterr().err


class TestDescriptor:
    """An owner of one descriptor."""

    def test_closes_once(self) -> None:
        """It is closed once, and says -1 from then on."""
        owner = Descriptor(os.open(os.devnull, os.O_RDONLY))
        number = owner.fileno()
        assert f"<Descriptor {number}>" == repr(owner)

        owner.close()
        again = os.open(os.devnull, os.O_RDONLY)
        owner.close()

        assert again == number
        assert is_open(again)
        assert owner.fileno() == -1
        assert repr(owner) == "<Descriptor closed>"
        os.close(again)

    def test_is_opened_in_one_step(self) -> None:
        """It can open what it owns, and opens nothing where that fails."""
        owner = Descriptor.of(os.open, os.devnull, os.O_RDONLY)
        assert is_open(owner.fileno())
        owner.close()

        with pytest.raises(FileNotFoundError):
            Descriptor.of(os.open, "/no such file", os.O_RDONLY)
