"""What becomes of zygote and workers when their parent does not say goodbye."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forks import exit_code, fork_child
from pairpool import _deadman
from pairpool._deadman import Deadman
from zygotes import Nest, has_ended

PROGRAM = Path(__file__).parent / "programs" / "zygote_parent.py"

SCENES = [
    "idle",
    "computing",
    "sleeping",
    "deaf",
    "stopped workers",
    "stopped zygote",
    "all stopped",
    "children",
    "nested",
    "closed descriptors",
    "starting",
    "fork of the parent",
    "stray fork of the parent",
]


@contextmanager
def parent_in(method: str, scene: str) -> Iterator[tuple[subprocess.Popen[str], list[int], list[int]]]:
    """Run a parent in this scene; yield it with the pids that are to end and those that are not."""
    program = [sys.executable, str(PROGRAM), method, scene]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            ending, _, staying = parent.stdout.readline().partition("and")
            yield parent, [*map(int, ending.split())], [*map(int, staying.split())]
        finally:
            parent.kill()


class TestParentIsKilled:
    """SIGKILL leaves a parent no chance to do anything."""

    @pytest.mark.parametrize("scene", SCENES)
    def test_nothing_is_left(self, start_method: str, scene: str) -> None:
        """Zygote, workers and their groups end with a parent that was killed, whatever they are doing."""
        with parent_in(start_method, scene) as (parent, ending, staying):
            pidfds = [os.pidfd_open(pid) for pid in ending]
            assert len(pidfds) >= 3
            try:
                parent.kill()

                assert [has_ended(pidfd) for pidfd in pidfds] == [True] * len(pidfds)
            finally:
                for pidfd in pidfds:
                    os.close(pidfd)
                for pid in staying:
                    os.kill(pid, signal.SIGKILL)  # it did live on, or this would raise

    def test_replaced_by_another_program(self) -> None:
        """A parent that executes another program has ended too, though its pid lives on."""

        def work() -> None:
            nest = Nest("fork")
            pids = [nest.zygote.pid, nest.spawn().call(os.getpid)]
            pidfds = [os.pidfd_open(pid) for pid in pids]
            for pidfd in pidfds:
                os.set_inheritable(pidfd, True)
            wait = "import select, sys; [select.select([int(fd)], [], []) for fd in sys.argv[1:]]"
            os.execv(sys.executable, [sys.executable, "-c", wait, *map(str, pidfds)])

        assert exit_code(fork_child(work)) == 0


class TestDeadman:
    """The pipe on which a process group depends."""

    @pytest.fixture
    def deadman(self) -> Iterator[Deadman]:
        """A pipe."""
        deadman = Deadman()
        yield deadman
        deadman.close()

    def test_let_go_before_it_is_bound(self, deadman: Deadman) -> None:
        """A process whose parent let go before it bound itself is killed when it does."""

        def work() -> None:
            deadman.close_parent_end()  # the last one, as soon as the parent has closed its own
            os.read(deadman.worker_end, 1)
            os.setpgid(0, 0)
            _deadman.bind(deadman.worker_end)

        pid = fork_child(work)
        deadman.close()

        assert exit_code(pid) == -signal.SIGKILL

    def test_let_go_afterwards(self, deadman: Deadman) -> None:
        """A group is killed when the parent lets go, stopped or not."""

        def work() -> None:
            deadman.close_parent_end()
            os.setpgid(0, 0)
            _deadman.bind(deadman.worker_end)
            os.kill(0, signal.SIGSTOP)

        pid = fork_child(work)
        os.waitpid(pid, os.WUNTRACED)
        deadman.close()

        assert exit_code(pid) == -signal.SIGKILL

    def test_unbound(self, deadman: Deadman) -> None:
        """A group that was unbound by any holder of the pipe's end lives on."""

        def work() -> None:
            deadman.close_parent_end()
            os.setpgid(0, 0)
            _deadman.bind(deadman.worker_end)
            os.kill(0, signal.SIGSTOP)

        pid = fork_child(work)
        os.waitpid(pid, os.WUNTRACED)
        _deadman.unbind(deadman.worker_end)
        deadman.close()
        os.kill(pid, signal.SIGCONT)

        assert exit_code(pid) == 0

    def test_ends_of_the_pipe(self, deadman: Deadman) -> None:
        """Each end is closed once, in any order, and at the latest with the object."""
        worker_end = deadman.worker_end
        deadman.close_worker_end()
        deadman.close_worker_end()

        assert deadman.worker_end == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(worker_end)
        deadman.close()
        deadman.close()
        with pytest.warns(ResourceWarning):
            Deadman()
