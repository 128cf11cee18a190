from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import select
import socket
import sys
import threading
from collections.abc import Iterator
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import pytest

from codec_things import Reducing, arrive, is_open, whole
from interruptions import Interruption
from pairpool._codec import Encoder


class Passing:
    """Has a descriptor, which its reducer passes as the documentation of multiprocessing says."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor


def _reduce_passing(passing: Passing) -> Any:
    return _rebuild_passing, (reduction.DupFd(passing.descriptor),)


def _rebuild_passing(descriptor: Any) -> Passing:
    return Passing(descriptor.detach())


reduction.register(Passing, _reduce_passing)


class TestDescriptors:
    """Descriptors in arguments."""

    @pytest.fixture
    def pair(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Two sockets."""
        one, other = socket.socketpair()
        with one, other:
            yield one, other

    def test_sockets(self, encoder: Encoder, pair: tuple[socket.socket, socket.socket]) -> None:
        """A socket in an argument travels beside the pickle and works where it arrives."""
        payload = whole(encoder.dumps(pair[0]))
        assert len(payload.descriptors) == 1
        assert not os.get_inheritable(payload.descriptors[0])
        with arrive(payload) as found:
            found.send(b"x")
        payload.close()

        assert pair[1].recv(1) == b"x"
        assert not is_open(payload.descriptors[0])

    def test_connections(self, encoder: Encoder) -> None:
        """So does a connection of multiprocessing, and what else is reduced by DupFd."""
        reading, writing = multiprocessing.Pipe(duplex=False)
        payload = whole(encoder.dumps([reading, writing, Passing(writing.fileno()), writing]))
        first, second, third, fourth = arrive(payload)
        second.send("hello")

        assert isinstance(first, Connection)
        assert first.recv() == "hello"
        assert fourth is second
        assert len(payload.descriptors) == 3
        os.close(third.descriptor)
        for connection in (reading, writing, first, second):
            connection.close()

    def test_no_server_is_started(self, encoder: Encoder, pair: tuple[socket.socket, socket.socket]) -> None:
        """The stdlib's thread that serves descriptors is not needed."""
        threads = threading.enumerate()
        encoder.dumps(pair)

        assert threading.enumerate() == threads

    def test_closed_with_the_payload(self, encoder: Encoder, pair: tuple[socket.socket, socket.socket]) -> None:
        """A payload that is dropped leaves no descriptor behind; closing it twice closes nothing else."""
        payload = whole(encoder.dumps(pair))
        first, second = payload.descriptors
        payload.close()
        with open(os.devnull) as file:
            assert file.fileno() in (first, second)
            payload.close()
            del payload
            assert is_open(file.fileno())
        payload = whole(encoder.dumps(pair))
        numbers = list(payload.descriptors)
        del payload

        assert not any(map(is_open, numbers))

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_error_while_pickling(
        self, encoder: Encoder, pair: tuple[socket.socket, socket.socket], error: type[BaseException]
    ) -> None:
        """Where pickling fails after a descriptor was duplicated, the duplicate is closed."""

        def fail() -> Any:
            raise error

        before = os.listdir("/proc/self/fd")
        with pytest.raises(error):
            encoder.dumps([pair[0], Reducing(fail)])

        assert os.listdir("/proc/self/fd") == before

    @pytest.mark.parametrize("reduced", [(int, ("x",)), (sys.exit, (3,))])
    def test_error_while_unpickling(self, encoder: Encoder, reduced: Any) -> None:
        """Where unpickling fails, whatever it raises, the descriptors are closed."""
        with contextlib.ExitStack() as stack:
            ends = [stack.enter_context(end) for end in multiprocessing.Pipe()]
            before = os.listdir("/proc/self/fd")
            payload = whole(encoder.dumps([ends[0], Reducing(lambda: reduced), ends[1]]))
            with pytest.raises((ValueError, SystemExit)):
                arrive(payload)
            payload.close()

            assert os.listdir("/proc/self/fd") == before

    def test_closed_socket(self, encoder: Encoder) -> None:
        """A closed socket raises what it raises in the stdlib."""
        closed = socket.socket()
        closed.close()

        with pytest.raises(OSError, match="Bad file descriptor"):
            encoder.dumps(closed)

    def test_several_threads(self, encoder: Encoder) -> None:
        """Each thread's pickle gets its own descriptors."""
        failures: list[Any] = []

        def work() -> None:
            for _ in range(50):
                reading, writing = os.pipe()
                payload = whole(encoder.dumps(Passing(reading)))
                found = arrive(payload)
                os.write(writing, b"x")
                if not select.select([found.descriptor], [], [], 5)[0]:
                    failures.append(found)
                for descriptor in (reading, writing, found.descriptor):
                    os.close(descriptor)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert failures == []

    @pytest.mark.parametrize("passing", [False, True])
    def test_an_interrupt_comes_out_wherever_it_strikes(
        self, encoder: Encoder, pair: tuple[socket.socket, socket.socket], passing: bool
    ) -> None:
        """None is swallowed by a finalizer, while a call is pickled or dropped; and no descriptor is left."""
        argument = pair[0] if passing else 0
        before = os.listdir("/proc/self/fd")
        for number in itertools.count():
            # A function that is not known yet, by value.
            interruption = Interruption([number])
            struck = interruption.watch(lambda: encoder.call(lambda: 0, (argument,), {}))
            assert os.listdir("/proc/self/fd") == before
            if not interruption.struck:
                break
            assert struck, interruption.struck

        assert number > 100
