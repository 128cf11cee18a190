"""How messages are sent, received, admitted and waited for, by both twins."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import resource
import select
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_TRUNC,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SO_PASSCRED,
    SO_SNDBUF,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
    socketpair,
)
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, strategies as st

import twins
from forks import exit_code, fork_child, open_descriptors, run_in_child
from interruptions import Interrupted, Interruption
from pairpool import _framing, _framing_py
from pairpool.errors import FramingError
from twins import PAIRS, TWINS

twin = twins.twin  # the fixture

Sockets = tuple[socket, socket]


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """A socketpair as workers have them: what is sent on the first arrives at the second."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def poll() -> Iterator[select.epoll]:
    """An epoll."""
    with select.epoll() as epoll:
        yield epoll


def carrying(*descriptors: int) -> list[tuple[int, int, bytes]]:
    """Return ancillary data that carries these descriptors."""
    return [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]


# --- Sending ----------------------------------------------------------------------------------------------


def test_flush_sends_in_order_and_removes(twin: ModuleType, sockets: Sockets) -> None:
    """What was sent is gone from the queue and arrives in order."""
    ours, theirs = sockets
    outgoing = deque((ours, bytes([number]), ()) for number in range(40))

    assert twin.flush(outgoing) is True
    assert (len(outgoing), [theirs.recv(10) for _ in range(40)]) == (0, [bytes([n]) for n in range(40)])


def test_flush_of_nothing_is_done(twin: ModuleType) -> None:
    """Nothing to send is sent."""
    assert twin.flush(deque()) is True


def test_back_pressure_leaves_entries_in_order(twin: ModuleType, sockets: Sockets) -> None:
    """A full queue stops flush; as it is read everything follows, in order."""
    ours, theirs = sockets
    ours.setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
    outgoing = deque((ours, struct.pack("<I", number) * 64, ()) for number in range(500))
    received: list[int] = []
    pushed_back = 0

    while not twin.flush(outgoing):
        pushed_back += 1
        assert outgoing[0][1] == struct.pack("<I", 500 - len(outgoing)) * 64
        received += struct.unpack("<I", theirs.recv(1000)[:4])
    while len(received) < 500:
        received += struct.unpack("<I", theirs.recv(1000, MSG_DONTWAIT)[:4])

    assert pushed_back > 0
    assert received == list(range(500))


def flush_until_too_many_are_in_flight(twin: ModuleType) -> None:
    """Run in a child: needs to be an ordinary user."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    outgoing = deque((ours, bytes([number]), (0,)) for number in range(100))
    assert twin.flush(outgoing) is False
    assert 0 < len(outgoing) < 100
    with pytest.raises(OSError, match=os.strerror(errno.ETOOMANYREFS)):
        ours.sendmsg([b"one more"], carrying(0), MSG_DONTWAIT)
    theirs.close()  # what was in flight to it is in flight no more
    ours.close()


def test_too_many_descriptors_in_flight_is_back_pressure(twin: ModuleType) -> None:
    """As many descriptors in flight as the user may have stop flush, and are no error."""
    assert run_in_child(lambda: flush_until_too_many_are_in_flight(twin)) == 0


@pytest.mark.parametrize(
    ("number", "pushes_back"),
    [(errno.EAGAIN, True), (errno.ENOBUFS, True), (errno.ENOMEM, True), (errno.ETOOMANYREFS, True),
     (errno.EPIPE, False), (errno.ECONNRESET, False), (errno.EMSGSIZE, False)],
)  # fmt: skip
def test_which_errors_are_back_pressure(number: int, pushes_back: bool) -> None:
    """Lack of room passes; any other error of the system is raised, and nothing is lost either way."""

    class Failing(socket):
        def sendmsg(self, *_: Any) -> int:
            raise OSError(number, os.strerror(number))

    with Failing(AF_UNIX, SOCK_SEQPACKET) as failing:
        outgoing: Any = deque([(failing, b"message", ())])
        if pushes_back:
            assert TWINS["python"].flush(outgoing) is False
        else:
            with pytest.raises(OSError, match=os.strerror(number)):
                TWINS["python"].flush(outgoing)
        assert len(outgoing) == 1


def test_flush_raises_for_a_socket_whose_other_side_is_gone(twin: ModuleType, sockets: Sockets) -> None:
    """A broken pipe is raised, without a signal, and what could not be sent stays at the left end."""
    ours, theirs = sockets
    theirs.close()
    outgoing = deque([(ours, b"lost", ()), (ours, b"next", ())])

    with pytest.raises(BrokenPipeError):
        twin.flush(outgoing)
    assert [entry[1] for entry in outgoing] == [b"lost", b"next"]


def test_flush_raises_for_a_message_that_is_too_long(twin: ModuleType, sockets: Sockets) -> None:
    """What the socket can never hold is raised, not tried for ever."""
    ours, _ = sockets
    ours.setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
    outgoing = deque([(ours, bytes(100_000), ())])

    with pytest.raises(OSError, match="Message too long"):
        twin.flush(outgoing)
    assert len(outgoing) == 1


def test_flush_raises_for_a_closed_socket(twin: ModuleType, sockets: Sockets) -> None:
    """A socket that was closed on this side is told by the system's own error."""
    sockets[0].close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        twin.flush(deque([(sockets[0], b"message", ())]))


@pytest.mark.parametrize("bad", [("no socket", b"bad", ()), (None, "no bytes", ()), (None, b"bad", ("no descriptor",))])
def test_flush_sends_what_stands_before_an_impossible_entry(twin: ModuleType, sockets: Sockets, bad: Any) -> None:
    """An entry that cannot be sent is raised when its turn comes; those before it are sent."""
    ours, theirs = sockets
    outgoing: deque[Any] = deque([(ours, b"good", ()), (bad[0] or ours, *bad[1:])])

    with pytest.raises((AttributeError, TypeError)):
        twin.flush(outgoing)
    assert (len(outgoing), theirs.recv(10)) == (1, b"good")


@pytest.mark.parametrize(("writer", "reader"), PAIRS)
def test_descriptors_travel_with_a_message(
    writer: ModuleType, reader: ModuleType, sockets: Sockets, tmp_path: Path
) -> None:
    """A descriptor sent with a message arrives with it, as another one, closed on exec."""
    ours, theirs = sockets
    arrivals: deque[Any] = deque()
    with (tmp_path / "file").open("wb") as file:
        writer.flush(deque([(ours, b"with", (file.fileno(), file.fileno())), (ours, b"without", ())]))
        reader.receive(theirs, arrivals, "tag", 10)
        admitted = [_framing.admit(raw) for _, raw in arrivals]
        (data, descriptors), without = admitted

        assert (data, without) == (b"with", (b"without", ()))
        for descriptor in descriptors:
            assert os.fstat(descriptor).st_ino == os.fstat(file.fileno()).st_ino
            assert fcntl.fcntl(descriptor, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
            assert descriptor != file.fileno()
            os.close(descriptor)


def test_as_many_descriptors_as_the_kernel_allows_travel(twin: ModuleType, sockets: Sockets) -> None:
    """A message carries up to 253 descriptors; with one more it is refused by the system's own error."""
    ours, theirs = sockets
    arrivals: deque[Any] = deque()
    outgoing = deque([(ours, b"many", (0,) * 253), (ours, b"too many", (0,) * 254)])

    with pytest.raises(OSError, match="Invalid argument"):
        twin.flush(outgoing)
    twin.receive(theirs, arrivals, "tag", 10)
    data, descriptors = _framing.admit(arrivals[0][1])
    for descriptor in descriptors:
        os.close(descriptor)

    assert (data, len(descriptors), len(outgoing)) == (b"many", 253, 1)


# --- Receiving --------------------------------------------------------------------------------------------


def test_receive_records_what_recvmsg_returns(twin: ModuleType, sockets: Sockets) -> None:
    """An arrival is the tag and the value of socket.recvmsg()."""
    ours, theirs = sockets
    tag = object()
    arrivals: deque[Any] = deque()
    ours.send(b"first")
    expected = theirs.recvmsg(100, 100, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
    ours.send(b"first")

    assert twin.receive(theirs, arrivals, tag, 5) == 1
    assert list(arrivals) == [(tag, expected)]
    assert arrivals[0][0] is tag


@pytest.mark.parametrize("length", [1, 100, 32 * 1024])
def test_receive_takes_up_to_its_limit(twin: ModuleType, sockets: Sockets, length: int) -> None:
    """No more is received than was asked for, and no more than there is, in order and without waiting."""
    ours, theirs = sockets
    arrivals: deque[Any] = deque()
    messages = [bytes([number]) * length for number in range(5)]
    for message in messages:
        ours.send(message)

    assert [twin.receive(theirs, arrivals, 0, limit) for limit in (-1, 0, 2, 1, 10, 10)] == [0, 0, 2, 1, 2, 0]
    assert [raw[0] for _, raw in arrivals] == messages


def test_receive_takes_many(twin: ModuleType, sockets: Sockets) -> None:
    """A hundred messages that are there are received in one call."""
    ours, theirs = sockets
    arrivals: deque[Any] = deque(["what was there"])
    for number in range(100):
        ours.send(bytes([number]))

    assert twin.receive(theirs, arrivals, 0, 1000) == 100
    assert [raw[0][0] for _, raw in list(arrivals)[1:]] == list(range(100))


def test_the_end_is_recorded_once(twin: ModuleType, sockets: Sockets) -> None:
    """When the other side is gone its last messages are recorded, then one without bytes."""
    ours, theirs = sockets
    arrivals: deque[Any] = deque()
    ours.send(b"last")
    ours.close()

    assert twin.receive(theirs, arrivals, 0, 10) == 2
    assert [raw[0] for _, raw in arrivals] == [b"last", b""]
    assert _framing.admit(arrivals[1][1]) == (b"", ())


def test_a_reset_hides_no_message(twin: ModuleType, sockets: Sockets) -> None:
    """Where the other side left messages of ours unread, its own still arrive before the end."""
    ours, theirs = sockets
    arrivals: deque[Any] = deque()
    theirs.send(b"unread")
    ours.send(b"last")
    ours.close()

    assert twin.receive(theirs, arrivals, 0, 10) == 2
    assert [raw[0] for _, raw in arrivals] == [b"last", b""]


def test_an_empty_message_with_a_descriptor_is_not_the_end(twin: ModuleType, sockets: Sockets) -> None:
    """A message without bytes that brings a descriptor is recorded as one, and what follows it too."""
    ours, theirs = sockets
    arrivals: deque[Any] = deque()
    ours.sendmsg([b""], [(SOL_SOCKET, SCM_RIGHTS, struct.pack("i", ours.fileno()))])
    ours.send(b"next")
    before = open_descriptors()

    assert twin.receive(theirs, arrivals, 0, 10) == 2
    with pytest.raises(FramingError, match="descriptors without a message"):
        _framing.admit(arrivals[0][1])
    assert (arrivals[1][1][0], open_descriptors()) == (b"next", before)


def test_receive_raises_for_a_closed_socket(twin: ModuleType, sockets: Sockets) -> None:
    """An error of the system is raised as it is."""
    sockets[0].close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        twin.receive(sockets[0], deque(), 0, 1)


def test_what_cannot_be_recorded_leaves_no_descriptor(twin: ModuleType, sockets: Sockets) -> None:
    """Where arrivals cannot be appended to, the descriptors that came are closed, or stay where they are."""
    ours, theirs = sockets
    for _ in range(3):
        ours.sendmsg([b"with"], carrying(0, 1))
    before = open_descriptors()

    with pytest.raises((AttributeError, TypeError)):
        twin.receive(theirs, ("not", "a", "deque"), 0, 10)
    assert open_descriptors() == before


def test_a_message_that_is_too_long_is_refused(twin: ModuleType, sockets: Sockets) -> None:
    """A message above the limit arrives cut off, is refused, and its descriptors are closed."""
    ours, theirs = sockets
    arrivals: deque[Any] = deque()
    before = open_descriptors()
    ours.sendmsg([bytes(32769)], carrying(0, 1))
    twin.receive(theirs, arrivals, 0, 1)

    with pytest.raises(FramingError, match="more than 32768 bytes"):
        _framing.admit(arrivals[0][1])
    assert arrivals[0][1][2] & MSG_TRUNC
    assert open_descriptors() == before


def receive_with_few_descriptors_left(twin: ModuleType) -> None:
    """Run in a child: no more than two of the four descriptors sent can be received."""
    arrivals: deque[Any] = deque()
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    ours.sendmsg([b"four"], carrying(0, 1, 0, 1))
    before = open_descriptors()
    unused = os.dup(0)
    os.close(unused)
    resource.setrlimit(resource.RLIMIT_NOFILE, (unused + 2, unused + 2))
    assert twin.receive(theirs, arrivals, 0, 1) == 1
    assert arrivals[0][1][2] & MSG_CTRUNC
    assert len(arrivals[0][1][1][0][2]) < 16
    with pytest.raises(FramingError, match="RLIMIT_NOFILE"):
        _framing.admit(arrivals[0][1])
    assert open_descriptors() == before


def test_descriptors_that_were_lost_are_told(twin: ModuleType) -> None:
    """Where the process may not have all descriptors sent, the message is refused and the others closed."""
    assert run_in_child(lambda: receive_with_few_descriptors_left(twin)) == 0


def test_await_message_records_what_is_there(twin: ModuleType, sockets: Sockets) -> None:
    """A message that is there is taken at once, one at a time."""
    ours, theirs = sockets
    arrivals: deque[Any] = deque()
    ours.send(b"first")
    ours.send(b"second")

    assert twin.await_message(theirs, arrivals, "tag", 0.0) == 1
    assert [(tag, raw[0]) for tag, raw in arrivals] == [("tag", b"first")]


@pytest.mark.parametrize("spin", [-1.0, 0.0, 1e-4, float("nan")])
def test_await_message_gives_up(twin: ModuleType, sockets: Sockets, spin: float) -> None:
    """Without a message it ends by itself, and nothing is recorded."""
    arrivals: deque[Any] = deque()

    assert (twin.await_message(sockets[1], arrivals, 0, spin), len(arrivals)) == (0, 0)


def test_await_message_sees_a_message_come(twin: ModuleType, sockets: Sockets) -> None:
    """A message that another process sends meanwhile is received."""
    ours, theirs = sockets
    arrivals: deque[Any] = deque()
    pid = fork_child(lambda: ours.send(b"late"))

    assert twin.await_message(theirs, arrivals, 0, 1e12) == 1
    assert (arrivals[0][1][0], exit_code(pid)) == (b"late", 0)


@pytest.mark.parametrize("reset", [False, True])
def test_an_interrupt_shows_no_error_of_the_socket(twin: ModuleType, reset: bool) -> None:
    """Wherever it strikes: that there is nothing yet, or that the other side closed, is dealt with then."""
    shown: list[BaseException | None] = []
    for strike in count():
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        with ours, theirs:
            if reset:
                ours.send(b"never read")
                theirs.close()

            def wait(sock: socket = ours) -> None:
                try:
                    twin.await_message(sock, deque(), None, 0.0)
                except Interrupted as interrupt:
                    shown.append(interrupt.__context__)
                    raise

            if not Interruption([strike]).watch(wait):
                break

    assert set(shown) <= {None}
    assert len(shown) > 2 or twin is not _framing_py


# --- Admission --------------------------------------------------------------------------------------------


def test_admission_again_closes_nothing_again(sockets: Sockets) -> None:
    """What was refused once is refused again, and no descriptor is closed a second time."""
    ours, theirs = sockets
    ours.sendmsg([b"cut off"], carrying(0))
    raw = theirs.recvmsg(3, 100)
    with pytest.raises(FramingError):
        _framing.admit(raw)
    number = os.dup(0)  # it is given the number that was just closed

    with pytest.raises(FramingError):
        _framing.admit(raw)
    os.close(number)  # it is open still


def test_the_sender_is_checked(sockets: Sockets) -> None:
    """A message is admitted from the process that it must come from, and from no other."""
    ours, theirs = sockets
    theirs.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
    pid = fork_child(lambda: ours.send(b"from a child"))
    from_child = theirs.recvmsg(100, 100)
    assert exit_code(pid) == 0
    ours.send(b"from ourselves")
    from_ourselves = theirs.recvmsg(100, 100)

    assert _framing.admit(from_child, pid) == (b"from a child", ())
    assert _framing.admit(from_ourselves) == (b"from ourselves", ())
    with pytest.raises(FramingError, match=f"a message from process {os.getpid()} instead of {pid}"):
        _framing.admit(from_ourselves, pid)


def test_a_message_without_credentials_is_refused_where_they_are_asked_for(sockets: Sockets) -> None:
    """A socket that was not told to pass credentials vouches for nobody."""
    sockets[0].send(b"from nobody")

    with pytest.raises(FramingError, match="from process None"):
        _framing.admit(sockets[1].recvmsg(100, 100), os.getpid())


ancillary_items = st.tuples(
    st.sampled_from([SOL_SOCKET, 41]),
    st.sampled_from([SCM_RIGHTS, SCM_CREDENTIALS, 99]),
    st.binary(max_size=20),
)


@given(data=st.binary(max_size=3), ancillary=st.lists(ancillary_items, max_size=4), flags=st.integers(0, 0xFF))
def test_admission_returns_every_descriptor_or_closes_it(
    data: bytes, ancillary: list[tuple[int, int, bytes]], flags: int
) -> None:
    """Whatever arrives is admitted with all its descriptors, or refused and all of them are closed."""
    closed: list[int] = []
    expected: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            expected += array.array("i", content[: len(content) // 4 * 4])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairpool._framing.os.close", closed.append)
        try:
            admitted = _framing.admit((data, ancillary, flags, None))
        except FramingError:
            assert (closed, ancillary) == (expected, [])
        else:
            assert (admitted, closed) == ((data, tuple(expected)), [])


# --- Waiting ----------------------------------------------------------------------------------------------


def test_wait_ready_names_what_is_ready(twin: ModuleType, sockets: Sockets, poll: select.epoll) -> None:
    """Descriptors that are ready are returned, those that are not are not."""
    ours, theirs = sockets
    poll.register(ours, select.EPOLLIN)
    poll.register(theirs, select.EPOLLIN)
    ours.send(b"message")

    assert twin.wait_ready(poll, 0.0, 0.0) == [theirs.fileno()]
    assert twin.wait_ready(poll, 1.0, 0.0) == [theirs.fileno()]
    assert twin.wait_ready(poll, 0.0, None) == [theirs.fileno()]
    assert twin.wait_ready(poll, 1.0, 1) == [theirs.fileno()]


@pytest.mark.parametrize("spin", [-1.0, 0.0, 1e-4, float("nan")])
@pytest.mark.parametrize("timeout", [-1.0, 0, 1e-4, float("nan")])
def test_wait_ready_ends_when_the_time_is_over(
    twin: ModuleType, poll: select.epoll, spin: float, timeout: float
) -> None:
    """With nothing ready the answer is an empty list."""
    assert twin.wait_ready(poll, spin, timeout) == []


@pytest.mark.parametrize("spin", [0.0, 1e-4, 1e12])
@pytest.mark.parametrize("timeout", [None, 1e12, float("inf")])
def test_wait_ready_waits(
    twin: ModuleType, sockets: Sockets, poll: select.epoll, spin: float, timeout: float | None
) -> None:
    """What becomes ready later is awaited, spinning or not, however long the time given."""
    ours, theirs = sockets
    poll.register(theirs, select.EPOLLIN)
    pid = fork_child(lambda: ours.send(b"late"))

    assert twin.wait_ready(poll, spin, timeout) == [theirs.fileno()]
    assert exit_code(pid) == 0


def test_wait_ready_names_a_limited_number_at_once(twin: ModuleType, poll: select.epoll) -> None:
    """Of very many that are ready all are told, in several calls."""
    reads, write = os.pipe()
    os.close(write)  # so that the other end is ready
    duplicates = {os.dup(reads) for _ in range(300)}
    try:
        for descriptor in duplicates:
            poll.register(descriptor, select.EPOLLIN)
        first, second = (twin.wait_ready(poll, 0.0, 0.0) for _ in range(2))
    finally:
        for descriptor in (reads, *duplicates):
            os.close(descriptor)

    assert (len(first), len(set(first) | set(second))) == (twin.READY_LIMIT, 300)


def test_wait_ready_raises_for_a_closed_epoll(twin: ModuleType) -> None:
    """An epoll that was closed says so."""
    epoll = select.epoll()
    epoll.close()

    with pytest.raises(ValueError, match="closed epoll"):
        twin.wait_ready(epoll, 0.0, 0.0)


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Have something done by a signal handler, a moment from now."""

    def arm(action: Callable[[], object]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: action())
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    before = signal.getsignal(signal.SIGALRM)
    yield arm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("spin", [0.0, 0.05], ids=["waiting", "spinning"])
def test_a_signal_handler_runs_while_waiting(
    twin: ModuleType, sockets: Sockets, poll: select.epoll, alarm: Callable[[Any], None], spin: float
) -> None:
    """A handler runs although nothing becomes ready otherwise, and the wait goes on after it."""
    ours, theirs = sockets
    poll.register(theirs, select.EPOLLIN)
    alarm(lambda: ours.send(b"from the handler"))

    assert twin.wait_ready(poll, spin, None) == [theirs.fileno()]


@pytest.mark.parametrize("spin", [0.0, 0.05], ids=["waiting", "spinning"])
def test_a_signal_handler_can_end_a_wait(
    twin: ModuleType, poll: select.epoll, alarm: Callable[[Any], None], spin: float
) -> None:
    """What a handler raises comes out of the wait."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    alarm(interrupt)

    with pytest.raises(KeyboardInterrupt):
        twin.wait_ready(poll, spin, None)


def test_interrupts_lose_and_double_nothing(twin: ModuleType) -> None:
    """Hundreds of interrupts caught while 20 000 messages travel leave every one, once and in order."""
    program = Path(__file__).parent / "programs" / "interrupted_exchange.py"

    run = subprocess.run(
        [sys.executable, "-W", "error", program, twin.__name__], capture_output=True, text=True, check=False
    )

    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) > 50
