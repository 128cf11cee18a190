"""Signal handlers that raise while the caller pickles: whose error that is."""

from __future__ import annotations

import functools
import gc
import itertools
import operator
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback  # type: ignore[attr-defined]
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tasks
from codec_things import Reducing, arrive
from interruptions import Interrupted, Interruption
from pairpool import _namespaces
from pairpool._codec import Encoder
from pairpool._feeder import CLOSED, Feeder
from pairpool._prepared import Prepared
from pairpool._remote_errors import decode_error, encode_error

MAIN = vars(sys.modules["__main__"])


def raise_an_error(*_: object) -> None:
    """Handle a signal."""
    raise TimeoutError("of the handler")


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Have SIGALRM raise TimeoutError."""
    before = signal.signal(signal.SIGALRM, raise_an_error)
    yield
    signal.signal(signal.SIGALRM, before)


struck = functools.partial(pytest.raises, TimeoutError, match="of the handler")


class Strike:
    """Reduces something to 7, and is struck the n-th time that it does."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.times = 0

    def __call__(self) -> Any:
        """Reduce."""
        self.times += 1
        if self.times == self.at:
            signal.raise_signal(signal.SIGALRM)
        return int, (7,)


def fail() -> Any:
    """Raise what a handler might raise."""
    raise TimeoutError("its own")


# -- The codec -------------------------------------------------------------------------------------


def data_of_a_function(thing: Any) -> Any:
    """Return a function of the main module that uses a global, and another that cannot be pickled."""
    MAIN.update(data_in_main=thing, lock_in_main=threading.Lock())
    return eval("lambda: (data_in_main, lock_in_main)", MAIN)


# What is pickled, and how often its reducer is called for that.
SHAPES: dict[str, tuple[Callable[[Any], Any], int]] = {
    "plainly": (lambda thing: [thing], 1),
    "carefully": (lambda thing: [thing, lambda: 1], 2),
    "by value where it is to go by name": (data_of_a_function, 3),
}
WAYS: dict[str, Callable[[Encoder, Any], Any]] = {
    "dumps": lambda encoder, thing: encoder.dumps(thing),
    "dumps_each": lambda encoder, thing: encoder.dumps_each([[1], thing], []),
    "definition": lambda encoder, thing: encoder.definition(functools.partial(tasks.identity, thing)),
    "call": lambda encoder, thing: encoder.call(tasks.identity, (thing,), {}),
}


@pytest.fixture
def main_module() -> Iterator[None]:
    """Take from the main module what a test puts there."""
    yield
    for name in ("data_in_main", "lock_in_main"):
        MAIN.pop(name, None)


@pytest.mark.usefixtures("main_module")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_it_comes_out_whichever_attempt_it_strikes(way: str, shape: str) -> None:
    """An attempt that was struck did not fail; and the encoder goes on as before."""
    (make, times), pickle_it = SHAPES[shape], WAYS[way]
    calm = Strike(0)
    pickle_it(Encoder(), make(Reducing(calm)))
    assert calm.times == times
    for at in range(1, times + 1):
        encoder = Encoder()
        with struck():
            pickle_it(encoder, make(Reducing(Strike(at))))
        assert arrive(encoder.dumps([1])) == [1]


def test_a_module_whose_import_it_strikes_is_imported_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for one that does not exist."""
    (tmp_path / "struck_once.py").write_text("import signal\nsignal.raise_signal(signal.SIGALRM)\nhere = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with struck():
        _namespaces.namespace("struck_once")
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    assert _namespaces.namespace("struck_once")["here"] == 1
    del sys.modules["struck_once"]


# -- Feeders ---------------------------------------------------------------------------------------


def feeder_of(items: Any) -> Feeder:
    """Make a feeder to which nobody listens."""
    dispatcher: Any = SimpleNamespace(encoder=Encoder(), starving=False, drain=lambda: None)
    job: Any = SimpleNamespace(unit=1, prepared=Prepared(), plan=SimpleNamespace(unit_ns=1))
    return Feeder(dispatcher, job, items)


def test_it_is_no_items_error() -> None:
    """Those before the one that was struck come to their results."""
    feeder = feeder_of([[1], Reducing(Strike(1)), [3]])
    with struck():
        feeder.feed()
    assert list(map(arrive, feeder.fresh)) == [[1]]


class Source:
    """Items behind code of the user's, in which a handler strikes."""

    def __iter__(self) -> Iterator[Any]:
        signal.raise_signal(signal.SIGALRM)
        return iter(())


def test_it_is_not_the_last_item() -> None:
    """Nobody may say that there are no more."""
    feeder = feeder_of(Source())
    with struck():
        feeder.feed()
    assert feeder.fresh == []


def test_what_is_raised_after_the_last_item_is_no_items_error() -> None:
    """Whoever did it: a handler written in C is not to be seen."""
    feeder = feeder_of([[1], [2]])

    def dumps_each(units: Any, entries: list[Any]) -> None:
        entries += units
        raise OSError("of somebody")

    feeder._dispatcher.encoder = SimpleNamespace(dumps_each=dumps_each, dumps_together=lambda _: None)
    with pytest.raises(OSError, match="of somebody"):
        feeder.feed()
    assert feeder.fresh == [[1], [2]]


def test_what_a_reducer_raises_is_its_items_error() -> None:
    """Also where a handler might raise the like."""
    feeder = feeder_of([[1], Reducing(fail), [3]])
    feeder.feed()
    one, error, three, end = feeder.fresh
    assert (arrive(one), str(error), arrive(three), end) == ([1], "its own", [3], CLOSED)


# -- Pools -----------------------------------------------------------------------------------------


class Called:
    """Calls a function when somebody wants to know its name."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def __call__(self) -> None:
        """Be a callable."""

    def __str__(self) -> str:
        return str(self.action())


def iterate(action: Callable[[], Any]) -> Iterator[Any]:
    """Call a function when the first is asked for."""
    yield action()


def adding(action: Callable[[], Any]) -> Any:
    """Return a function that calls another when it is pickled."""
    return functools.partial(operator.add, Reducing(action))


# Where code of the user's runs in a call that returns at once, and what has its result.
LATER: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "apply_async": (lambda pool, action: pool.apply_async(tasks.identity, (Reducing(action),)), "get"),
    "its arguments": (lambda pool, action: pool.apply_async(tasks.identity, iterate(action)), "get"),
    "what is said of them": (lambda pool, action: pool.apply_async(Called(action), 5), "get"),
    "submit": (lambda pool, action: pool.submit(tasks.identity, Reducing(action)), "result"),
    "map_async": (lambda pool, action: pool.map_async(adding(action), [1]), "get"),
    "imap": (lambda pool, action: pool.imap(adding(action), [1]), "next"),
}
AT_ONCE: dict[str, Callable[[Any, Any], Any]] = {
    "apply": lambda pool, action: pool.apply(tasks.identity, (Reducing(action),)),
    "map": lambda pool, action: pool.map(tasks.identity, [[1], Reducing(action), [3]]),
    "starmap": lambda pool, action: pool.starmap(tasks.identity, [([1],), (Reducing(action),)]),
}


@pytest.mark.parametrize("face", [*LATER, *AT_ONCE])
def test_it_comes_out_of_the_call_that_it_struck(make_pool: Any, face: str) -> None:
    """And the pool is whole."""
    pool = make_pool(1)
    call = AT_ONCE[face] if face in AT_ONCE else LATER[face][0]
    with struck():
        call(pool, Strike(1))
    assert pool.map(tasks.identity, [[1], [2]]) == [[1], [2]]
    assert not pool._dispatcher.pending()


@pytest.mark.parametrize("face", LATER)
def test_what_the_users_code_raises_is_the_results(make_pool: Any, face: str) -> None:
    """Though it is what the handler might raise."""
    pool = make_pool(1)
    call, take = LATER[face]
    result = call(pool, fail)
    with pytest.raises(TimeoutError, match="its own"):
        getattr(result, take)(60)
    assert pool.apply(tasks.identity, (1,)) == 1


# -- Errors that arrive ----------------------------------------------------------------------------


class Steps:
    """Counts how often code of the user's runs, and has a signal strike there once."""

    def __init__(self) -> None:
        self.taken = 0
        self.at = 0
        self.signal = signal.SIGALRM
        self.arrived = False  # what comes from a worker is loaded, not what is to go there

    def __call__(self) -> None:
        """Take a step."""
        self.taken += 1
        if self.taken == self.at:
            signal.raise_signal(self.signal)


_steps = Steps()


@pytest.fixture
def steps() -> Iterator[Steps]:
    """The steps that errors of this module take."""
    _steps.__init__()  # type: ignore[misc]
    yield _steps
    _steps.__init__()  # type: ignore[misc]


class TouchyError(Exception):
    """Runs code of the user's wherever it is touched."""

    def __reduce__(self) -> Any:
        _steps()
        return load_touchy, self.args

    def __setattr__(self, name: str, value: Any) -> None:
        _steps()
        super().__setattr__(name, value)


def load_touchy(*args: Any) -> Any:
    """Load one."""
    _steps()
    return TouchyError(*args)


class UnloadableError(Exception):
    """Raises what has a repr of the user's, when it is loaded where it arrives."""

    def __reduce__(self) -> Any:
        return load_unloadable, self.args

    def __repr__(self) -> str:
        _steps()
        return "UnloadableError()"


def load_unloadable(*args: Any) -> Any:
    """Load one."""
    if _steps.arrived:
        raise UnloadableError
    return UnloadableError(*args)


class BareError(Exception):
    """Is made without its own `__init__`, for which there are other arguments."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def together() -> BaseException:
    """Return errors of all these sorts that hang together."""
    error = ExceptionGroup("all", [TouchyError(1), UnloadableError(2), BareError(3, 4)])
    error.add_note("a note")
    try:
        try:
            raise TouchyError(5)
        except TouchyError as cause:
            raise error from cause
    except ExceptionGroup as raised:
        return raised


def looks(error: BaseException) -> str:
    """Return how an error would be printed."""
    return "".join(traceback.format_exception(error))


SIGNALS: dict[signal.Signals, type[BaseException]] = {
    signal.SIGALRM: TimeoutError,
    signal.SIGINT: KeyboardInterrupt,  # its handler is written in C
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "error", [TouchyError(1), UnloadableError(2), together()], ids=lambda error: type(error).__name__
)
def test_it_is_not_why_an_error_could_not_be_loaded(error: BaseException, number: signal.Signals, steps: Steps) -> None:
    """It comes out, whatever of the error it strikes; another attempt gives the error."""
    data = encode_error(error, wrap=True)
    steps.arrived, steps.taken = True, 0
    expected = looks(decode_error(data))
    steps.signal = number
    all_steps = range(1, steps.taken + 1)
    assert all_steps
    for steps.at in all_steps:
        steps.taken = 0
        with pytest.raises(SIGNALS[number]):
            decode_error(data)
        assert looks(decode_error(data)) == expected


@pytest.mark.parametrize("kind", [Interrupted, OSError, NameError, TypeError])
def test_it_comes_out_wherever_it_strikes_what_loads_an_error(kind: type[BaseException], steps: Steps) -> None:
    """Also where it is of a kind that is caught there for a reason."""

    def strike() -> None:
        raise kind

    def load() -> None:
        try:
            loaded.append(decode_error(data))
        except kind as error:
            loaded.append(error)

    data = encode_error(together(), wrap=True)
    steps.arrived = True
    expected = looks(decode_error(data))
    for number in itertools.count():
        loaded: list[BaseException] = []
        interruption = Interruption([number], strike)
        gc.disable()  # in a finalizer of another test's pool nobody would notice a strike
        try:
            interruption.watch(load)
        finally:
            gc.enable()
        if not interruption.struck:
            break
        assert type(loaded[0]) is kind, f"struck at {interruption.struck[0]}"
    assert looks(loaded[0]) == expected
    assert number > 100


@pytest.mark.parametrize(
    "error", [TouchyError(1), UnloadableError(2), together()], ids=lambda error: type(error).__name__
)
def test_a_worker_sends_an_error_whatever_strikes_it(error: BaseException, steps: Steps) -> None:
    """There nobody waits for what a handler raises: the task is over, and has failed already."""
    encode_error(error, wrap=True)
    all_steps = range(1, steps.taken + 1)
    for steps.at in all_steps:
        steps.taken = 0
        data = encode_error(error, wrap=True)
        assert isinstance(decode_error(data), type(error) | MaybeEncodingError)


def fail_touchily(item: Any = None) -> Any:
    """Be a task that fails."""
    raise TouchyError(item)


GETS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "apply_async": lambda pool: pool.apply_async(fail_touchily).get,
    "map_async": lambda pool: pool.map_async(fail_touchily, [None]).get,
    "submit": lambda pool: pool.submit(fail_touchily).result,
    "imap": lambda pool: pool.imap(fail_touchily, [None]).__next__,
    "imap_unordered": lambda pool: pool.imap_unordered(fail_touchily, [None]).__next__,
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("face", GETS)
def test_it_comes_out_of_who_asks_for_a_failed_result(
    make_pool: Any, face: str, number: signal.Signals, steps: Steps
) -> None:
    """However often; and whoever asks again gets the error of the task."""
    pool = make_pool(1)
    steps.signal = number
    get = GETS[face](pool)
    for steps.at in range(1, 4):
        steps.taken = 0
        with pytest.raises(SIGNALS[number]):
            get()
    with pytest.raises(TouchyError) as caught:
        get()
    assert isinstance(caught.value.__cause__, RemoteTraceback)
