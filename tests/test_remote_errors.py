from __future__ import annotations

import io
import os
import pickle
import sys
import threading
import traceback
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback  # type: ignore[attr-defined]
from types import TracebackType
from typing import Any, Self

import pytest

from pairpool._remote_errors import MOST_FRAMES, MOST_NODES, decode_error, encode_error


class RefusedError(Exception):
    """Pickles, and does not unpickle: its constructor takes other arguments than its base."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.first = first


class MisreadError(Exception):
    """Unpickles by the stdlib's way into something else, without a word."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")


class SilentBaseError(Exception):
    """Never calls the constructor of its base."""

    def __init__(self, first: int, *, second: int) -> None:
        self.total = first + second


class RefusedOSError(OSError):
    """An OSError with arguments of its own."""

    def __init__(self, path: str) -> None:
        super().__init__(2, "gone", path)


class RefusedExit(SystemExit):
    """Has a field which the constructor in C sets."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code)
        self.reason = reason


class LockedError(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class ReducedError(Exception):
    """Has a `__reduce__` of its own, which keeps neither notes nor anything else."""

    def __reduce__(self) -> Any:
        return ReducedError, ("made by __reduce__",)


class FatalReduceError(Exception):
    """Raises what is no Exception when it is pickled."""

    def __reduce__(self) -> Any:
        raise SystemExit("at pickling")


class FatalSetStateError(Exception):
    """Raises what is no Exception when it is unpickled."""

    def __reduce__(self) -> Any:
        return FatalSetStateError._make, ()

    @staticmethod
    def _make() -> None:
        raise KeyboardInterrupt("at unpickling")


class NotAnError(Exception):
    """Unpickles into something that is no error."""

    def __reduce__(self) -> Any:
        return dict, ()


class UnspeakableError(Exception):
    """Has no repr, no str, and cannot be pickled."""

    def __repr__(self) -> str:
        raise SystemExit("at repr")

    __str__ = __repr__

    def __reduce__(self) -> Any:
        raise ValueError("no")


class ShyError(Exception):
    """Lets nobody read or set what belongs to it."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__class__", "__traceback__"):
            raise SystemExit(name)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class Group(ExceptionGroup[Exception]):
    """A group whose constructor takes other arguments."""

    def __new__(cls, errors: list[Exception], label: str) -> Self:
        """Take the members first."""
        group = super().__new__(cls, f"group {label}", errors)
        group.label = label
        return group

    label: str


class FromAfarError(Exception):
    """Can only be unpickled in the process that pickled it."""

    def __reduce__(self) -> Any:
        return _only_in, (os.getpid(),)


def _only_in(pid: int) -> FromAfarError:
    if os.getpid() != pid:
        raise RuntimeError("another process")
    return FromAfarError()


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """Return an error after it was raised here."""
    try:
        if cause is not None:
            raise error from cause
        raise error  # some comment
    except BaseException as caught:
        return caught


def sent(error: BaseException, *, wrap: bool = True) -> Any:
    """Return what arrives of an error."""
    return decode_error(encode_error(error, wrap=wrap))


def frames(trace: TracebackType | None) -> list[str]:
    """Return the functions of a traceback."""
    return [frame.name for frame in traceback.extract_tb(trace)]


class TestWrapping:
    """What an error has for a cause."""

    def test_cause_is_remote_traceback(self) -> None:
        """The cause of an error is the stdlib's RemoteTraceback with the text of the remote one."""
        error = sent(raised(RuntimeError(123)))
        cause: Any = error.__cause__

        assert type(error) is RuntimeError
        assert error.args == (123,)
        assert type(cause) is RemoteTraceback
        assert str(cause).startswith('\n"""\nTraceback (most recent call last):\n')
        assert str(cause).endswith('RuntimeError: 123\n"""')
        assert "raise error  # some comment" in cause.tb

    def test_excepthook_shows_the_remote_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What the interpreter prints for an uncaught error has the line of the worker's source."""
        error = sent(raised(RuntimeError(123)))

        sys.excepthook(type(error), error, error.__traceback__)

        assert "raise error  # some comment" in capsys.readouterr().err

    def test_users_cause_is_behind_the_remote_traceback(self) -> None:
        """The user's own cause is the cause of the RemoteTraceback."""
        error = sent(raised(RuntimeError("outer"), KeyError("inner")))

        assert error.__cause__ is not None
        assert type(error.__cause__.__cause__) is KeyError

    def test_unwrapped(self) -> None:
        """An error sent unwrapped keeps its own cause."""
        error = sent(raised(RuntimeError("outer"), KeyError("inner")), wrap=False)

        assert type(error.__cause__) is KeyError
        assert sent(raised(RuntimeError()), wrap=False).__cause__ is None

    def test_only_the_outermost_is_wrapped(self) -> None:
        """Contexts and members of groups have no RemoteTraceback."""
        inner = raised(KeyError("member"))
        assert isinstance(inner, Exception)
        error = sent(raised(ExceptionGroup("group", [inner])))

        assert isinstance(error, ExceptionGroup)
        assert error.exceptions[0].__cause__ is None
        assert "raised" in frames(error.exceptions[0].__traceback__)


class TestTracebacks:
    """Frames."""

    def test_frames_are_real(self) -> None:
        """The traceback has the worker's frames, with file, line and source."""
        error = raised(ValueError())
        there = traceback.extract_tb(error.__traceback__)
        here = traceback.extract_tb(sent(error).__traceback__)

        assert list(there) == list(here)
        assert there[0].line == here[0].line

    def test_markers_are_where_they_belong(self) -> None:
        """Printing shows the same as in the worker, the markers under the source included."""
        try:
            _ = len([1 / 1]) + len([1 / 0])
        except ZeroDivisionError as caught:
            error = caught

        assert traceback.format_exception(sent(error, wrap=False)) == traceback.format_exception(error)

    def test_frames_of_code_without_source(self) -> None:
        """Frames of code that was made from a string arrive, whatever their file is called."""
        code = compile("def f():\n  raise ValueError\nf()", "<a \0 string>".replace("\0", "?"), "exec")
        try:
            exec(code, {"__name__": "nowhere"})
        except ValueError as caught:
            error = sent(caught)

        assert frames(error.__traceback__) == ["test_frames_of_code_without_source", "<module>", "f"]

    def test_frames_are_debuggable(self) -> None:
        """A frame knows its module and can be asked for its variables."""
        trace = sent(raised(ValueError())).__traceback__
        assert trace is not None

        assert trace.tb_frame.f_globals["__name__"] == __name__
        assert trace.tb_frame.f_code.co_filename == __file__

    def test_recursion(self) -> None:
        """Of a very deep traceback both ends arrive."""

        def recurse() -> None:
            recurse()

        try:
            recurse()
        except RecursionError as caught:
            error = sent(caught)

        assert type(error) is RecursionError
        assert len(frames(error.__traceback__)) == MOST_FRAMES
        assert frames(error.__traceback__)[0] == "test_recursion"

    def test_traceback_held_as_data(self) -> None:
        """An error that holds a traceback as an attribute can be sent."""
        held = raised(KeyError())
        error = raised(ValueError())
        error.held = held.__traceback__  # type: ignore[attr-defined]

        assert frames(sent(error).held) == ["raised"]


class TestChains:
    """Errors that hang together."""

    def test_context_and_suppression(self) -> None:
        """Contexts arrive, and whether they are to be shown."""
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise ValueError("second") from None
        except ValueError as caught:
            error = sent(caught, wrap=False)

        assert type(error.__context__) is KeyError
        assert error.__suppress_context__

    def test_context_is_shown_where_it_was(self) -> None:
        """An error without a cause keeps showing its context."""
        error = ValueError()
        error.__context__ = KeyError()

        assert not sent(error, wrap=False).__suppress_context__

    @pytest.mark.parametrize("error", [ValueError("x"), ReducedError("x"), RefusedError(1, 2)])
    def test_notes(self, error: Exception) -> None:
        """Notes arrive, also where `__reduce__` forgets them."""
        error.add_note("a note")

        assert sent(error).__notes__ == ["a note"]

    def test_groups(self) -> None:
        """A group arrives with its members, each with its own chain and frames."""
        inner = raised(RefusedError(1, 2), KeyError("why"))
        assert isinstance(inner, Exception)
        error = sent(raised(ExceptionGroup("all", [inner, ExceptionGroup("deeper", [OSError(5, "io")])])))

        assert isinstance(error, ExceptionGroup)
        first, second = error.exceptions
        assert isinstance(first, RefusedError)
        assert first.first == 1
        assert type(first.__cause__) is KeyError
        assert isinstance(second, ExceptionGroup)
        assert str(second.exceptions[0]) == "[Errno 5] io"

    def test_group_with_its_own_constructor(self) -> None:
        """A group class that takes other arguments arrives as what it is."""
        error = sent(Group([KeyError()], "label"))

        assert type(error) is Group
        assert error.label == "label"
        assert error.message == "group label"

    def test_group_with_a_member_that_cannot_travel(self) -> None:
        """A member that cannot be pickled is replaced; its neighbours and the group stay."""
        error = sent(BaseExceptionGroup("all", [LockedError(), SystemExit(3)]))

        assert isinstance(error, BaseExceptionGroup)
        assert isinstance(error.exceptions[0], MaybeEncodingError)
        assert isinstance(error.exceptions[1], SystemExit)

    def test_chain_with_an_error_that_cannot_travel(self) -> None:
        """A cause that cannot be pickled is replaced; the error itself stays."""
        error = sent(raised(ValueError("outer"), LockedError()), wrap=False)

        assert type(error) is ValueError
        assert isinstance(error.__cause__, MaybeEncodingError)
        assert error.__cause__.value == "LockedError('locked')"

    def test_circle(self) -> None:
        """A circle of causes arrives as a circle."""
        one, other = ValueError("one"), KeyError("other")
        one.__cause__, other.__cause__ = other, one

        error = sent(one, wrap=False)

        assert error.__cause__ is not None
        assert error.__cause__.__cause__ is error

    def test_very_long_chain(self) -> None:
        """A chain far deeper than the interpreter recurses arrives, cut at some length."""
        error: BaseException = ValueError(0)
        for number in range(1, 5 * sys.getrecursionlimit()):
            later = ValueError(number)
            later.__context__ = error
            error = later

        found, length = sent(error), 0
        assert found.args == error.args
        while found.__context__ is not None:
            found, length = found.__context__, length + 1
        assert length == MOST_NODES - 1


class TestDifficultErrors:
    """Errors that pickle does not bring back as they were."""

    @pytest.mark.parametrize(
        "error",
        [
            RefusedError(1, 2),
            MisreadError(5),
            SilentBaseError(1, second=2),
            RefusedOSError("/some/path"),
            RefusedExit(3, "because"),
            OSError(13, "denied", "/a", None, "/b"),
            UnicodeDecodeError("ascii", b"\xff", 0, 1, "bad"),
            KeyError("key"),
            StopIteration(4),
            ImportError("no", name="module", path="/path"),
            SyntaxError("bad", ("file", 1, 2, "text", 1, 3)),
            MaybeEncodingError(ValueError(1), [2]),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_arrive_as_they_are(self, error: BaseException) -> None:
        """Type, text, arguments and attributes of an error arrive unchanged."""
        found = sent(error)

        assert type(found) is type(error)
        assert str(found) == str(error)
        assert found.args == error.args
        assert vars(found) == vars(error)
        for field in ("errno", "strerror", "filename", "filename2", "code", "value", "name", "path", "start"):
            assert getattr(found, field, None) == getattr(error, field, None)

    def test_replaced_by_a_carrier(self) -> None:
        """What cannot travel becomes a MaybeEncodingError with the reason, the repr and the traceback."""
        error = sent(raised(LockedError()))

        assert type(error) is MaybeEncodingError
        assert error.exc == """TypeError("cannot pickle '_thread.lock' object")"""
        assert error.value == "LockedError('locked')"
        assert str(error) == f"Error sending result: '{error.value}'. Reason: '{error.exc}'"
        assert type(error.__cause__) is RemoteTraceback
        assert "raise error  # some comment" in str(error.__cause__)
        assert frames(error.__traceback__) == ["raised"]

    @pytest.mark.parametrize("error", [FatalReduceError("x"), FatalSetStateError("x"), NotAnError("x")])
    def test_fatal_reducers(self, error: Exception) -> None:
        """An error whose own way of being pickled fails, or leads elsewhere, is made without it."""
        found = sent(raised(error))

        assert type(found) is type(error)
        assert found.args == ("x",)

    def test_without_repr(self) -> None:
        """Even an error that cannot be shown arrives, as something that can."""
        found = sent(raised(UnspeakableError()))

        assert type(found) is UnspeakableError
        error = LockedError()
        error.args = (UnspeakableError(),)
        assert isinstance(sent(error), MaybeEncodingError)

    def test_that_cannot_be_looked_at(self) -> None:
        """Even an error whose attributes raise becomes something that arrives."""
        found = sent(raised(ShyError()))

        assert isinstance(found, (ShyError, MaybeEncodingError))

    def test_local_class(self) -> None:
        """An error of a class that has no name goes by value, and back into the caller's own class."""

        class LocalError(Exception):
            pass

        found = sent(raised(LocalError("x")))

        assert type(found) is LocalError
        assert found.args == ("x",)

    def test_base_exceptions(self) -> None:
        """KeyboardInterrupt and its like are sent as any error."""
        assert type(sent(raised(KeyboardInterrupt("x")))) is KeyboardInterrupt
        assert type(sent(raised(GeneratorExit()))) is GeneratorExit


class TestDecoding:
    """What arrives."""

    @pytest.mark.parametrize(
        "data",
        [b"", b"garbage", pickle.dumps(None), pickle.dumps((None, [])), pickle.dumps((None, [(1, 2)]))],
    )
    def test_garbage(self, data: bytes) -> None:
        """What is no encoded error decodes into an error that says so."""
        assert isinstance(decode_error(data), MaybeEncodingError)

    def test_error_that_the_caller_cannot_load(self) -> None:
        """An error which loads in the worker but not in the caller becomes a carrier with its text."""
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, encode_error(raised(FromAfarError()), wrap=True))
            os._exit(0)
        os.wait()
        with open(reading, "rb", closefd=True) as stream:
            os.close(writing)
            found: Any = decode_error(stream.read())

        assert isinstance(found, MaybeEncodingError)
        assert found.exc == "RuntimeError('another process')"
        assert found.value == "FromAfarError()"
        assert "FromAfarError" in str(found.__cause__)

    def test_printing_any_of_them(self) -> None:
        """What arrives can be printed in full."""
        error = sent(raised(ExceptionGroup("all", [LockedError(), RefusedError(1, 2)]), KeyError("why")))

        traceback.print_exception(error, file=io.StringIO())
