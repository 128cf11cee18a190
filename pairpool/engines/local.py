"""Slots that are worker processes of this machine, each on private channels.

Theory of operation
===================
One I/O thread a pool waits on the zygote's channel and pidfd, an eventfd that wakes it, and the workers' channels while
no caller waits on them himself (_pump.py).

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
- Receiving, and who does it: _pump.py.

What may block: the I/O thread in its epoll; a pumping caller in his; the end of the I/O thread in
`Zygote.close`. Where the zygote does not end the workers of a pool that is terminated, the I/O thread does, in the end.
"""

from __future__ import annotations

import select
import signal
import socket
import threading
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
from pairpool._masks import shut_out_signals
from pairpool._outgoing import Outgoing
from pairpool._packet import Reason
from pairpool._pump import BATCH, Kick, Pump
from pairpool._waiting import Deadline, wake_all
from pairpool._zygote import Exited, Spawned, WorkerSetup, Zygote
from pairpool.engines import Event, Handlers, SlotEnd, WorkerPlan

if TYPE_CHECKING:
    from pairpool._body import Body
    from pairpool._jobs import Encoder
    from pairpool._waiting import Settable

GRACE = 5.0  # seconds that workers have to end after SIGTERM before they are killed
STUCK = 1.0  # seconds beyond that after which the zygote, which should have done so, is killed with them
REST = 0.005  # seconds until the kernel is asked again that pushed back for want of memory or descriptors
BODY_ROOM = 1 << 18  # bytes of small payloads in a packet: its slab and its two messages cost as much as copying that
LONGEST = 1_000_000.0  # seconds in one epoll: it counts milliseconds in 31 bits


class LocalEngine:
    """Offers worker processes as slots."""

    def __init__(self, context: BaseContext) -> None:
        # Made before the workers: it remembers what the main module has at this moment.
        encoder = _codec.Encoder(inherited=context.get_start_method() == "fork")
        self.encoder: Encoder = encoder
        self.credit = _channel.BUFFER_SIZE
        self.packet_room = _channel.charge(_framing.MESSAGE_LIMIT)
        self.body_room = BODY_ROOM
        self.sure_room = _framing.MESSAGE_LIMIT - 1024
        self._outgoing = Outgoing(encoder.arena)
        self.outbox: deque[Any] = self._outgoing.entries
        self._context = context
        self._handles: dict[int, WorkerHandle] = {}  # by slot
        self._chores: deque[Callable[[], None]] = deque()
        self._buried: deque[WorkerHandle] = deque()  # have ended; what belongs to them is still to be released
        self._shutting = False  # workers end, or are ended; nothing new begins
        self._end_by = Deadline(None)  # when they have to have ended
        self._oom_watch = OomWatch()
        self._orphaned = False  # the zygote has ended
        self.is_shut = False
        self.signals: list[Settable] = []  # of those who wait for a worker to be forked
        self._unowned = deque([None])  # who takes what is here owns all this: the I/O thread, or who gives it up before

    # -- coming up (caller's thread, nothing else runs yet) ---------------------------------------------------

    def start(self, handlers: Handlers, plan: WorkerPlan, slots: Sequence[int]) -> None:
        self.handlers = handlers
        with ExitStack() as undo:
            self._wake_kick = undo.enter_context(closing(Kick()))
            self._pump = Pump(handlers, self.wake)
            undo.callback(self._pump.release)
            setup = WorkerSetup(
                plan.initializer,
                plan.initargs,
                max_memory_per_worker=plan.max_memory_per_worker,
                memory_limit=plan.memory_limit,
            )
            self._zygote = Zygote.start(self._context, setup)
            undo.pop_all()
        self._outer = self._pump.outer
        try:
            for slot in slots:
                self._open(slot)
            for descriptor in (self._wake_kick.descriptor, self._zygote.channel, self._zygote.pidfd):
                self._outer.register(descriptor, select.EPOLLIN)
            _descriptors.call_after_fork_in_child(self._after_fork_in_child)
            self._thread = threading.Thread(target=self._run, name="pairpool-io", daemon=True)
            self._thread.start()
        except BaseException:
            if self._take_over():
                self._shutting = True
                self._release()
            else:
                self.shut(kill=True)  # a signal handler raised when the thread had begun
            raise

    def _take_over(self) -> bool:
        try:
            self._unowned.pop()
        except IndexError:
            return False
        return True

    def await_spawned(self, handle: WorkerHandle) -> None:
        """Waits until a worker asked for is forked, or has failed to be."""
        self.handlers.wait(lambda: handle.known_pid is not None or handle.exitcode is not None, self.signals)

    def _after_fork_in_child(self) -> None:
        self.handlers.forked = True

    # -- the protocol (dispatcher's lock held) ----------------------------------------------------------------

    def entry(self, slot: int, packet: int, body: Body) -> tuple[Any, int]:
        return self._outgoing.pack(self._handles[slot], packet, body)

    def flush(self) -> None:
        if not self._outgoing.flush(self.handlers, self._condemn_at):
            self.wake()  # the kernel pushes back: the I/O thread tries again

    @property
    def processes(self) -> LocalEngine:
        return self

    def exchange(self, slot: int, packet: int, sent: list[Any], heard: deque[Event]) -> tuple[int, Any] | None:
        handle = self._handles[slot]
        answer = self._pump.exchange(handle, packet, self.outbox, sent, heard)
        if self.outbox:
            self.flush()  # the kernel pushes back, or the packet cannot be sent
        return handle.answer(packet, sent, heard) if answer is None and heard else answer

    def join(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join()

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

    def mark(self, slot: int) -> tuple[int, int, int] | None:
        handle = self._handles.get(slot)
        return None if handle is None else handle.mark()

    def has_taken(self, slot: int, packet: int) -> bool:
        handle = self._handles.get(slot)
        return handle is None or handle.page.read().packet == packet

    def rouse(self, slot: int) -> None:
        handle = self._handles.get(slot)
        if handle is not None and not handle.rouse():
            self.handlers.events.append((self.handlers.on_up, slot))

    def dump(self, slot: int) -> None:
        handle = self._handles.get(slot)
        if handle is not None:
            handle.dump_stack()

    def interrupt(self, slot: int, mark: tuple[int, int, int], reason: Reason) -> None:
        handle = self._handles.get(slot)
        if handle is not None:
            handle.interrupt(mark, reason)

    def terminate(self, slot: int) -> None:
        handle = self._handles.get(slot)
        if handle is not None:
            handle.signal(signal.SIGTERM)

    def kill(self, slot: int) -> None:
        self._leave(partial(self._kill, slot))

    def _condemn_at(self, tasks: socket.socket) -> None:
        handle = self._pump.handle_at(tasks.fileno())
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
        if look_at is None:
            return
        if self._pump.pumpers:
            self._pump.look_by(look_at)
        if not self._pump.looks_for_all:
            self._wake_kick.look_by(look_at)

    # -- any thread -------------------------------------------------------------------------------------------

    @property
    def receives_here(self) -> bool:
        return self._pump.receives_here

    def work(self) -> bool:
        return False

    def workers(self) -> list[Any]:
        return [handle for handle in list(self._handles.values()) if handle.is_alive()]

    def pump(self, ready: Callable[[], bool], watched: list[Settable], timeout: float | None) -> bool:
        try:
            pumped = self._pump.pump(ready, watched, timeout)
            self.watch_until(self.handlers.look_at)
        except BaseException:
            self.wake()  # a signal handler raised: what was received, and what is to be looked at, is the I/O thread's
            raise
        return pumped

    # -- the I/O thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        shut_out_signals()
        if not self._take_over():
            return
        try:
            while True:
                self._do_chores()
                self.handlers.drain()
                self._release_buried()
                if self._shutting and (not self._handles or self._end_by.passed()):
                    return
                if self.outbox or not self._zygote.flush():
                    # The kernel pushed back for want of memory or descriptors, which passes.
                    patience: float | None = REST
                else:
                    patience = self._patience()
                if not self._chores and not self.handlers.events and not self._buried:
                    self._serve(self._outer.poll(None if patience is None else min(patience, LONGEST)))
        except BaseException as error:
            self.handlers.collapse(error)
        finally:
            self._end()

    def _patience(self) -> float | None:
        """Seconds to sleep. A caller who pumps looks in time himself; when he leaves he says when it is to be."""
        return self._wake_kick.patience(
            lambda: None if self._pump.looks_for_all else self.handlers.look_at, self._end_by
        )

    def _serve(self, ready: Sequence[tuple[int, int]]) -> None:
        for descriptor, _ in ready:
            if descriptor == self._wake_kick.descriptor.fileno():
                self._wake_kick.clear()
            elif descriptor == self._pump.channels.fileno():
                self._pump.receive()
                self.handlers.drain()
                self._pump.rearm()
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
        self._pump.receive_rest(handle)
        mark = handle.page.read()
        self.look(handle.slot, mark.packet, _framing.UNIT_LIMIT, False)
        self.recall(handle.slot)
        end = handle.end(exitcode, mark, self._oom_watch)
        words: list[Event] = [(handlers.on_unstarted, (handle.slot, unstarted))] if unstarted else []
        events.extend((*words, (handlers.on_down, end), (self._bury, handle)))
        handlers.drain()

    def _bury(self, handle: WorkerHandle) -> None:
        """Forgets a worker that has ended and was accounted for (dispatcher's lock held)."""
        self._outgoing.drop(handle)
        self._handles.pop(handle.slot, None)
        events, buried = self.handlers.events, self._buried
        these = (handle,)
        # commit
        buried += these
        del events[0]

        self.wake()

    def _release_buried(self) -> None:
        """On the I/O thread, without the lock: see `Pump`."""
        while self._buried:
            with self._pump.receiving:
                self._release_handle(self._buried[0])
            del self._buried[0]

    def _release_handle(self, handle: WorkerHandle) -> None:
        self._pump.unwatch(handle)
        handle.close()

    def _kill(self, slot: int) -> None:
        self._zygote.signal(slot, signal.SIGKILL, group=True)

    def _open_later(self, slot: int) -> None:
        if slot in self._handles or self._shutting:
            return
        try:
            if self._zygote.ended:
                raise ProcessLookupError("the zygote ended")
            with self._pump.receiving:  # whatever the worker says is said after `on_open`
                self._open(slot)
                self.handlers.events.append((self.handlers.on_open, slot))
        except OSError as error:
            handlers, end = self.handlers, SlotEnd(slot, None, None, None, 0)
            refusal = (slot, f"a worker could not be started: {error}")
            handlers.events.extend(((handlers.on_unstarted, refusal), (handlers.on_down, end)))

    def _open(self, slot: int) -> None:
        number = next(process._process_counter)  # type: ignore[attr-defined]
        does = (self.await_spawned, self.condemn, self._outgoing.stay_inline)
        handle = WorkerHandle(self.handlers, slot, number, self._zygote.worker_name(number), *does)
        self._handles[slot] = handle
        try:
            self._pump.watch(handle)
            self._zygote.spawn(slot, handle.number, handle.descriptors())
        except BaseException:
            self._release_handle(handle)
            del self._handles[slot]
            raise

    def _shut(self, kill: bool) -> None:
        self._shutting = True
        self._pump.stop()
        if kill:
            self._end_by = Deadline(GRACE + STUCK)
            self._zygote.stop(GRACE)

    def _end(self) -> None:
        """The last thing the I/O thread does; what is left of workers and zygote ends with it."""
        self._shutting = True
        self._pump.stop()
        self._release()
        self.is_shut = True
        self.handlers.engine_shut()

    def _release(self) -> None:
        """Ends the zygote and all workers, and closes everything but what a caller may still be pumping with."""
        self._zygote.close()
        self._release_buried()
        for handle in list(self._handles.values()):
            handle.ended(handle.exitcode)
            handle.close()
        self._handles.clear()
        self._tell_spawned()
        self.encoder.trim()
        self._pump.release()
        self._wake_kick.close()
