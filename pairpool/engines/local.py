"""Slots that are worker processes of this machine, each on private channels.

Theory of operation
===================
One I/O thread a pool waits on an outer epoll: the zygote's channel and pidfd, an eventfd that wakes it, and the epoll
that has every worker's tasks channel. A caller who waits for a result *pumps*: he waits on those channels himself, and
on a kick. The I/O thread is off its watch over them meanwhile (they are armed in the outer epoll with EPOLLONESHOT; he
disarms them and arms them again when he leaves), so that no thread has to be woken on his behalf. It stays on watch
where further callers wait: he may be held up in a signal handler, which may even wait for one of them.

Who holds which descriptor
--------------------------
============  =====================  ==========================================================
what          parent                 worker
============  =====================  ==========================================================
tasks         both ends              worker_end
control       parent_end             worker_end
page, outbox  mapped                 mapped (the page's pipe too, in the Python twin)
pidfd         held                   -
============  =====================  ==========================================================

Threads and locks
-----------------
- Methods of the protocol run with the dispatcher's lock held. What could not be done twice (making descriptors, orders
  to the zygote) they leave as *chores* to the I/O thread, which no signal handler ever interrupts.
- `_receiving` (reentrant: a signal handler may pump inside a pump) makes receiving from a channel one thread's at a
  time, so that messages stay in order and nothing is under way when a worker's end is digested.
- `_pumper` is the one thread that pumps: two would take each other's kicks. It is looked at and set by operators with
  no call between them, where neither another thread nor a signal handler comes in. `_pumpers` counts that thread's
  pumps, each but the first in a signal handler or finalizer that interrupted the one before.
- Disarmed means: some caller is between disarming and the arming in his `finally`, which no exception can skip (one C
  call, straight after operators), and no other caller waits.

What may block: the I/O thread in the outer epoll; a pumping caller in the inner one; the end of the I/O thread in
`Zygote.close`. Where the zygote does not end the workers of a pool that is terminated, the I/O thread does, in the end.
"""

from __future__ import annotations

import select
import signal
import socket
import threading
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from multiprocessing import process
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from pairpool import _channel, _codec, _descriptors, _framing, errors
from pairpool._cgroup import OomWatch
from pairpool._handle import WorkerHandle
from pairpool._outgoing import Outgoing
from pairpool._pump import Kick, Watch
from pairpool._waiting import Deadline, wake_all
from pairpool._zygote import Exited, Spawned, WorkerSetup, Zygote
from pairpool.engines import Event, Handlers, SlotEnd, WorkerPlan

if TYPE_CHECKING:
    from pairpool._jobs import Body, Encoder
    from pairpool._waiting import Settable

SPIN = 50e-6  # seconds a waiting caller keeps looking before he sleeps: less than a wake-up costs
GRACE = 5.0  # seconds that workers have to end after SIGTERM before they are killed
STUCK = 1.0  # seconds beyond that after which the zygote, which should have done so, is killed with them
BATCH = 64  # messages taken from one channel before the next has its turn
REST = 0.005  # seconds until the kernel is asked again that pushed back for want of memory or descriptors
LONGEST = 1_000_000.0  # seconds in one epoll: it counts milliseconds in 31 bits
ARMED = select.EPOLLIN | select.EPOLLONESHOT


class LocalEngine:
    """Offers worker processes as slots."""

    def __init__(self, context: BaseContext) -> None:
        # Made before the workers: it remembers what the main module has at this moment.
        self.encoder: Encoder = _codec.Encoder(inherited=context.get_start_method() == "fork")
        self.credit = _channel.BUFFER_SIZE
        self.packet_room = _channel.charge(_framing.MESSAGE_LIMIT)
        self.body_room = _framing.MESSAGE_LIMIT - 1024
        self._outgoing = Outgoing()
        self.outbox: deque[Any] = self._outgoing.entries
        self._context = context
        self._handles: dict[int, WorkerHandle] = {}  # by slot
        self._by_descriptor: dict[int, WorkerHandle] = {}  # by the number of its tasks channel
        self._chores: deque[Callable[[], None]] = deque()
        self._receiving = threading.RLock()
        self._pumper = 0
        self._pumpers = 0
        self._sleeps_until: int | None = None  # ns; None: for ever
        self._shutting = False  # workers end, or are ended; nothing new begins
        self._end_by = Deadline(None)  # when they have to have ended
        self._oom_watch = OomWatch()
        self._orphaned = False  # the zygote has ended
        self._released = False  # and are gone, with the zygote; the I/O thread waits for nothing more
        self._finished = threading.Event()
        self.signals: list[Settable] = []  # of those who wait for a worker to be forked

    # -- coming up (caller's thread, nothing else runs yet) ---------------------------------------------------

    def start(self, handlers: Handlers, plan: WorkerPlan, slots: Sequence[int]) -> None:
        self.handlers = handlers
        with ExitStack() as undo:
            self._watch_ends = undo.enter_context(closing(Watch()))
            self._pump_kick = undo.enter_context(closing(Kick()))
            self._wake_kick = undo.enter_context(closing(Kick()))
            self._zygote = Zygote.start(self._context, WorkerSetup(plan.initializer, plan.initargs))
            undo.pop_all()
        self._channels, self._outer = self._watch_ends.channels, self._watch_ends.outer
        try:
            self._watch_ends.caller.register(self._pump_kick.descriptor, select.EPOLLIN)
            self._watch_ends.caller.register(self._channels, select.EPOLLIN)
            for slot in slots:
                self._open(slot)
            self._outer.register(self._channels, ARMED)
            for descriptor in (self._wake_kick.descriptor, self._zygote.channel, self._zygote.pidfd):
                self._outer.register(descriptor, select.EPOLLIN)
            _descriptors.call_after_fork_in_child(self._after_fork_in_child)
            self._thread = threading.Thread(target=self._run, name="pairpool-io", daemon=True)
            self._thread.start()
        except BaseException:
            self._shutting = True
            self._release()
            raise

    def await_spawned(self, handle: WorkerHandle) -> None:
        """Waits until a worker asked for is forked, or has failed to be."""
        self.handlers.wait(lambda: handle.known_pid is not None or handle.exitcode is not None, self.signals)

    def _after_fork_in_child(self) -> None:
        self.handlers.forked = True

    # -- the protocol (dispatcher's lock held) ----------------------------------------------------------------

    def entry(self, slot: int, packet: int, body: Body) -> tuple[Any, int]:
        return self._outgoing.pack(self._handles[slot], packet, body.buffers, body.descriptors)

    def flush(self) -> None:
        if not self._outgoing.flush(self.handlers, self._condemn_at):
            self.wake()  # the kernel pushes back: the I/O thread tries again

    def recall(self, slot: int) -> None:
        handle = self._handles.get(slot)
        if handle is not None:
            while _framing.receive(handle.tasks_worker_end, self.handlers.events, handle.on_recalled, BATCH) == BATCH:
                pass

    def look(self, slot: int, packet: int, count: int, cut: bool) -> None:
        handle = self._handles.get(slot)
        if handle is None:
            return
        events = self.handlers.events
        committed = handle.committed(packet)
        if committed is not None:
            events.append((self.handlers.on_outcomes, committed))
        if cut:
            events.append((self.handlers.on_cut, (packet, handle.page.take_tail(packet, count))))

    def open(self, slot: int) -> None:
        self._leave(partial(self._open_later, slot))

    def stop(self, slot: int) -> None:
        handle = self._handles.get(slot)
        if handle is not None:
            handle.stop()

    def forget(self, slot: int, definition: int) -> None:
        handle = self._handles.get(slot)
        if handle is not None:
            handle.forget(definition)

    def condemn(self, slot: int) -> None:
        handle = self._handles.get(slot)
        if handle is not None and not handle.condemned:
            # By way of the zygote, which may have told nothing of this worker yet; its children go with it.
            self._leave(partial(self._kill, slot))
            handle.condemned = True

    def _condemn_at(self, tasks: socket.socket) -> None:
        handle = self._by_descriptor.get(tasks.fileno())
        if handle is not None:
            self.condemn(handle.slot)

    def shut(self, *, kill: bool) -> None:
        self._leave(partial(self._shut, kill))

    def _leave(self, chore: Callable[[], None]) -> None:
        """Leaves something to the I/O thread. Left twice, it is done twice: each chore looks whether it is done."""
        self._chores.append(chore)
        self.wake()

    def wake(self) -> None:
        self._wake_kick.set()

    def watch_until(self, look_at: int | None) -> None:
        """The scheduler wants to be asked again at `look_at` (ns)."""
        if look_at is not None and not self._pumpers:
            until = self._sleeps_until
            if until is None or look_at < until:
                self._sleeps_until = look_at
                self.wake()

    # -- any thread -------------------------------------------------------------------------------------------

    def work(self) -> bool:
        return False

    def workers(self) -> list[Any]:
        return [handle for handle in list(self._handles.values()) if handle.is_alive()]

    def wait_shut(self, timeout: float | None = None) -> bool:
        return self._finished.wait(timeout)

    def pump(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None) -> bool:
        channels, kick = self._channels, self._pump_kick
        modify, me, deadline = self._outer.modify, get_ident(), Deadline(timeout)
        watched.append(kick)
        nested = False
        try:
            if self._shutting or (self._pumper and self._pumper != me):
                self._watch_for_others()
                return False
            nested = self._pumper == me
            self._pumper = me
            self._pumpers += 1
            try:
                modify(channels, 0)
                self._watch_for_others()
                self._pump(ready, deadline)
            finally:
                # Operators and one C call: no exception can come between, so the I/O thread is on watch again.
                self._pumpers -= 1
                self._pumper = me if nested else 0
                kick.awake = 0
                modify(channels, 0 if nested else ARMED)
        except (OSError, ValueError):
            if not self._released:
                raise  # else: the epolls are closed
        except BaseException:
            self.wake()  # a signal handler raised: what was received is digested by the I/O thread
            raise
        finally:
            watched.remove(kick)
            self._close_watch()
            if nested:
                kick.set()  # the interrupted pump would go on waiting for what has come meanwhile
        self.watch_until(self.handlers.look_at)
        return ready() or not self._shutting

    def _watch_for_others(self) -> None:
        """Has the I/O thread on watch where others wait besides who pumps."""
        if self.handlers.waiters > self._pumpers and not self._released:
            self._outer.modify(self._channels, ARMED)

    def _pump(self, ready: Callable[[], bool], deadline: Deadline) -> None:
        # In a function of its own: what a signal handler raises at a loop's end passes by a `finally` of the same
        # function (python/cpython#130279, 3.12 and 3.13).
        me, kick, caller = get_ident(), self._pump_kick, self._watch_ends.caller
        while not ready() and not self._shutting:
            if kick.descriptor.fileno() in _framing.wait_ready(caller, SPIN, self._patience(deadline)):
                kick.clear()
            kick.awake = me
            self._receive(_framing.wait_ready(self._channels, 0.0, 0.0))
            self.handlers.drain()
            kick.awake = 0  # before it looks
            if deadline.passed():
                return

    def _patience(self, deadline: Deadline) -> float | None:
        """Seconds until the deadline, or until the scheduler wants to look at something."""
        seconds = deadline.remaining()
        look = self.handlers.seconds_to_look()
        if look is None:
            return seconds
        return look if seconds is None else min(seconds, look)

    def _receive(self, descriptors: Sequence[int]) -> None:
        """Receives what has come on these channels."""
        events = self.handlers.events
        for descriptor in descriptors:
            with self._receiving:
                handle = self._by_descriptor.get(descriptor)
                if handle is not None:  # else it was buried meanwhile
                    _framing.receive(handle.tasks, events, handle.on_message, BATCH)

    # -- the I/O thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                self._do_chores()
                self.handlers.drain()
                if self._shutting and (not self._handles or self._end_by.passed()):
                    return
                if self.outbox or not self._zygote.flush():
                    # The kernel pushed back for want of memory or descriptors, which passes.
                    patience: float | None = REST
                else:
                    patience = self._end_by.remaining() if self._pumpers else self._patience(self._end_by)
                if not self._chores and not self.handlers.events:
                    self._serve(self._outer.poll(None if patience is None else min(patience, LONGEST)))
                self._sleeps_until = self.handlers.look_at if not self._pumpers else None
        except BaseException as error:
            self.handlers.collapse(error)
        finally:
            self._end()

    def _serve(self, ready: Sequence[tuple[int, int]]) -> None:
        for descriptor, _ in ready:
            if descriptor == self._wake_kick.descriptor.fileno():
                self._wake_kick.clear()
            elif descriptor == self._channels.fileno():
                self._receive(_framing.wait_ready(self._channels, 0.0, 0.0))
                self.handlers.drain()
                if not self._pumpers or self.handlers.waiters > self._pumpers:
                    self._outer.modify(self._channels, ARMED)
            else:
                self._take_replies()

    def _do_chores(self) -> None:
        while self._chores:
            self._chores.popleft()()

    def _take_replies(self) -> None:
        replies = self._zygote.replies()
        if self._zygote.ended:
            self._tell_zygote_end()  # before all that follows from it
        for reply in replies:
            handle = self._handles.get(reply.slot)
            if handle is None:
                continue
            if isinstance(reply, Spawned):
                handle.spawned(reply)
                self._tell_spawned()
            elif isinstance(reply, Exited):
                self._on_end(handle, reply.exitcode)
            else:
                self._on_end(handle, None, f"a worker could not be started: {reply.reason}")
        if self._zygote.ended:
            # Nobody would tell of a worker's end any more: all end now.
            for handle in list(self._handles.values()):
                self._kill(handle.slot)
                self._on_end(handle, None)

    def _tell_zygote_end(self) -> None:
        if not self._orphaned:
            self._orphaned = True
            self._outer.unregister(self._zygote.pidfd)
            self._outer.unregister(self._zygote.channel)
            words = "the pool's zygote process ended; no worker can be watched or replaced any more"
            self.handlers.events.append((self.handlers.on_broken, errors.PairpoolError(words)))

    def _tell_spawned(self) -> None:
        wake_all(self.signals)

    def _on_end(self, handle: WorkerHandle, exitcode: int | None, unstarted: str = "") -> None:
        """A worker has ended: what it told and what it never began comes before the word of it.

        `unstarted`: why there never was one.
        """
        handle.ended(exitcode)
        self._tell_spawned()
        events, handlers = self.handlers.events, self.handlers
        with self._receiving:
            self._receive_rest(handle)
        mark = handle.page.read()
        self.look(handle.slot, mark.packet, _framing.UNIT_LIMIT, False)
        self.recall(handle.slot)
        end = handle.end(exitcode, mark, self._oom_watch)
        words: list[Event] = [(handlers.on_unstarted, (handle.slot, unstarted))] if unstarted else []
        events.extend((*words, (handlers.on_down, end), (self._bury, handle)))
        handlers.drain()

    def _receive_rest(self, handle: WorkerHandle) -> None:
        while _framing.receive(handle.tasks, self.handlers.events, handle.on_message, BATCH) == BATCH:
            pass

    def _bury(self, handle: WorkerHandle) -> None:
        """Releases what belonged to a worker that has ended and was accounted for (dispatcher's lock held)."""
        with self._receiving:
            self._release_handle(handle)
        self._handles.pop(handle.slot, None)
        del self.handlers.events[0]
        self.wake()

    def _release_handle(self, handle: WorkerHandle) -> None:
        if self._by_descriptor.pop(handle.tasks.fileno(), None) is not None:
            self._channels.unregister(handle.tasks)
        self._outgoing.drop(handle)
        handle.close()

    def _kill(self, slot: int) -> None:
        self._zygote.signal(slot, signal.SIGKILL, group=True)

    def _open_later(self, slot: int) -> None:
        if slot in self._handles or self._shutting:
            return
        try:
            if self._zygote.ended:
                raise ProcessLookupError("the zygote ended")
            with self._receiving:  # whatever the worker says is said after `on_open`
                self._open(slot)
                self.handlers.events.append((self.handlers.on_open, slot))
        except OSError as error:
            handlers, end = self.handlers, SlotEnd(slot, None, None, None, 0)
            refusal = (slot, f"a worker could not be started: {error}")
            handlers.events.extend(((handlers.on_unstarted, refusal), (handlers.on_down, end)))

    def _open(self, slot: int) -> None:
        number = next(process._process_counter)  # type: ignore[attr-defined]
        name = self._zygote.worker_name(number)
        handle = WorkerHandle(self.handlers, slot, number, name, self.await_spawned, self.condemn)
        self._handles[slot] = handle
        try:
            self._watch(handle)
            self._zygote.spawn(slot, handle.number, handle.descriptors())
        except BaseException:
            self._release_handle(handle)
            del self._handles[slot]
            raise

    def _watch(self, handle: WorkerHandle) -> None:
        self._channels.register(handle.tasks, select.EPOLLIN)
        self._by_descriptor[handle.tasks.fileno()] = handle

    def _shut(self, kill: bool) -> None:
        self._shutting = True
        self._pump_kick.set()
        if kill:
            self._end_by = Deadline(GRACE + STUCK)
            self._zygote.stop(GRACE)

    def _end(self) -> None:
        """The last thing the I/O thread does; what is left of workers and zygote ends with it."""
        self._shutting = True
        self._pump_kick.set()
        self._release()
        self._finished.set()
        self.handlers.engine_shut()

    def _release(self) -> None:
        """Ends the zygote and all workers, and closes everything but what a caller may still be pumping with."""
        self._zygote.close()
        for handle in list(self._handles.values()):
            handle.ended(handle.exitcode)
            handle.close()
        self._handles.clear()
        self._tell_spawned()
        self._by_descriptor.clear()
        self._released = True
        self._close_watch()

    def _close_watch(self) -> None:
        """Closes the epolls once nobody waits on them: the last to leave does it. Twice does no harm."""
        if self._released and not self._pumpers:
            for owner in (self._watch_ends, self._pump_kick, self._wake_kick):
                owner.close()
