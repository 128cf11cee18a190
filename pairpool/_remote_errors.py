"""Errors on their way from a worker to the caller.

An error travels as a list of *nodes*: itself, its cause, its context, the members of a group, and
theirs, each pickled by itself and joined again by number. So a chain may be long or circular, and
a node that cannot be pickled, or not be unpickled, costs only itself: `multiprocessing`'s
MaybeEncodingError stands in its place. Each node is tried in the worker before it is sent.

Tracebacks arrive as real ones. A frame is made by running one line of code that raises, compiled
with the file, line and columns of the remote frame, so that every tool that prints tracebacks
finds the source, and puts its markers where they belong.
"""

from __future__ import annotations

import ast
import io
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback  # type: ignore[attr-defined]
from types import BuiltinFunctionType, CodeType, FunctionType, TracebackType, WrapperDescriptorType
from typing import Any, Final, NamedTuple

from pairpool._envelope import PROTOCOL
from pairpool._returning import ReturningPickler
from pairpool._strikes import came_from_handler

MOST_NODES = 1000  # of a chain; what is behind them is left out
MOST_FRAMES = 200  # of one traceback: its outermost and innermost half; the text has them all
LONGEST_REPR = 2000  # characters of what is only to be read

_PACKAGE: Final = __name__.partition(".")[0]
_OS_ERROR_FIELDS: Final = ("errno", "strerror", "filename", "filename2")


class RemoteFrame(NamedTuple):
    """A frame of a traceback, without the objects in it."""

    file: str
    function: str
    module: str
    line: int
    end_line: int
    column: int
    end_column: int


class Node(NamedTuple):
    """One error of those that hang together."""

    pickled: bytes | None
    trouble: str  # why it is not pickled
    said: str  # its repr
    frames: list[RemoteFrame]
    cause: int | None
    context: int | None
    suppress_context: bool
    notes: list[str] | None


def encode_error(error: BaseException, *, wrap: bool) -> bytes:
    """Pickle an error with its traceback and all that hangs together with it.

    Whatever is wrong with the error, this returns. `wrap`: give it a RemoteTraceback for a cause.
    """
    try:
        text = format_error(error) if wrap else None
        return _dumps(text, _Collection(error).nodes())
    except BaseException as trouble:
        kinds = (type(trouble).__qualname__, type(error).__qualname__)
        return _dumps(None, [Node(None, *kinds, [], None, None, False, None)])


def decode_error(data: Any) -> BaseException:
    """Return the error that was encoded, or one which says why there is none.

    Raises only what a signal handler raises meanwhile: that is not why, and another attempt gives the error.
    """
    try:
        text, rows = pickle.loads(data)
        nodes = [Node(*row) for row in rows]
        error = _Joining(nodes).join()
        if text is not None:
            _give_text(error, text)
    except BaseException as trouble:
        if came_from_handler(trouble):
            raise
        return carrier(safe_repr(trouble, here=True), "an error that could not be decoded")
    return error


def carrier(trouble: str, said: str) -> BaseException:
    """Return the error that stands for another one, of which only the repr arrived."""
    error: BaseException = MaybeEncodingError(_Said(trouble), _Said(said))
    return error


def format_error(error: BaseException) -> str:
    """Return the text that the interpreter would print for an error."""
    try:
        frames = own_frames_skipped(error.__traceback__)
        return "".join(traceback.format_exception(type(error), error, frames))
    except BaseException as trouble:  # __str__ of something in the chain, or too deep a chain
        return f"{safe_repr(error)}\n(its traceback cannot be shown: {safe_repr(trouble)})\n"


def safe_repr(obj: object, *, here: bool = False) -> str:
    """Return the repr of an object, or something like it where it has none.

    `here`: the caller asks, not a worker; he gets what a signal handler raises meanwhile.
    """
    try:
        said = repr(obj)
    except BaseException as trouble:
        if here and came_from_handler(trouble):
            raise
        said = f"<{type(obj).__qualname__} object whose repr raises>"
    return said if len(said) <= LONGEST_REPR else said[:LONGEST_REPR] + "..."


class _Said:
    """Has the repr it is given: MaybeEncodingError takes the repr of what it is made of."""

    def __init__(self, said: str) -> None:
        self._said = said

    def __repr__(self) -> str:
        return self._said


# In the worker.


def _dumps(text: str | None, nodes: Iterable[Node]) -> bytes:
    return pickle.dumps((text, [tuple(node) for node in nodes]), PROTOCOL)


class _Collection:
    """An error and all that hangs together with it, numbered."""

    def __init__(self, error: BaseException) -> None:
        self.errors: list[BaseException] = []
        self._numbers: dict[int, int] = {}
        self._number(error)
        for known in self.errors:  # grows meanwhile
            for other in (known.__cause__, known.__context__, *members_of(known)):
                self._number(other)

    def nodes(self) -> list[Node]:
        """Return the error and the others, in the order of their numbers."""
        return [self._node(error) for error in self.errors]

    def number_of(self, error: BaseException | None) -> int | None:
        """Return the number of an error; None if it is none of these."""
        return self._numbers.get(id(error))

    def _number(self, error: BaseException | None) -> None:
        if error is not None and id(error) not in self._numbers and len(self.errors) < MOST_NODES:
            self._numbers[id(error)] = len(self.errors)
            self.errors.append(error)

    def _node(self, error: BaseException) -> Node:
        pickled, trouble = self._pickle(error)
        is_small = pickled is None or len(pickled) < LONGEST_REPR
        return Node(
            pickled,
            trouble,
            safe_repr(error) if is_small else type(error).__qualname__,
            frames_of(own_frames_skipped(error.__traceback__)),
            self.number_of(error.__cause__),
            self.number_of(error.__context__),
            error.__suppress_context__,
            _notes_of(error),
        )

    def _pickle(self, error: BaseException) -> tuple[bytes | None, str]:
        """Return the first pickle of an error that brings it back, or what was wrong with them all."""
        trouble = ""
        for form in _forms(error):
            file = io.BytesIO()
            try:
                _NodePickler(file, self, members_of(error)).dump(form)
                _load_node(file.getvalue(), self.errors.__getitem__)
            except BaseException as failed:
                trouble = trouble or safe_repr(failed)
            else:
                return file.getvalue(), ""
        return None, trouble


class _NodePickler(ReturningPickler):
    """Pickles one error; of a group only the numbers of its members."""

    def __init__(self, file: Any, collection: _Collection, members: Iterable[BaseException]) -> None:
        super().__init__(file)
        self.dispatch_table = {**self.dispatch_table, TracebackType: _reduce_traceback}
        self._collection = collection
        self._members = set(map(id, members))

    def persistent_id(self, obj: Any) -> int | None:
        return self._collection.number_of(obj) if id(obj) in self._members else None


class _Bare:
    """An error as it is, to be made again without running its class's own `__init__`."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self._error
        arguments = (error.message, list(error.exceptions)) if isinstance(error, BaseExceptionGroup) else error.args
        fields = {name: value for name in _OS_ERROR_FIELDS if (value := getattr(error, name, None)) is not None}
        return make_bare, (type(error), arguments, vars(error), fields if isinstance(error, OSError) else {})


def _forms(error: BaseException) -> Iterator[object]:
    """Yield what to pickle for an error, the best first."""
    bare = _Bare(error)
    if _init_takes_other_arguments(type(error)):
        yield bare
        yield error
    else:
        yield error
        yield bare
    if isinstance(error, BaseExceptionGroup):
        yield _Bare(BaseExceptionGroup(error.message, error.exceptions))


def _init_takes_other_arguments(cls: type[BaseException]) -> bool:
    """Tell whether pickle would call an `__init__` of the user's with what that one gave to its base.

    It may refuse them, or make something else of them without a word.
    """
    own = [getattr(cls, name, None) for name in ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")]
    return isinstance(cls.__init__, FunctionType) and not any(isinstance(method, FunctionType) for method in own)


def members_of(error: BaseException) -> tuple[BaseException, ...]:
    """Return the members of a group."""
    return error.exceptions if isinstance(error, BaseExceptionGroup) else ()


def _notes_of(error: BaseException) -> list[str] | None:
    notes = getattr(error, "__notes__", None)
    return [str(note) for note in notes] if isinstance(notes, (list, tuple)) else None


def own_frames_skipped(first: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame that is not pairpool's; all of it where there is none."""
    frame = first
    while frame is not None and _module_of(frame).partition(".")[0] == _PACKAGE:
        frame = frame.tb_next
    return frame or first


def frames_of(first: TracebackType | None) -> list[RemoteFrame]:
    """Return the frames of a traceback; of a very long one both ends."""
    found = []
    while first is not None:
        found.append(first)
        first = first.tb_next
    if len(found) > MOST_FRAMES:
        found[MOST_FRAMES // 2 : -MOST_FRAMES // 2] = []
    return [_remote_frame(step) for step in found]


def _remote_frame(step: TracebackType) -> RemoteFrame:
    code = step.tb_frame.f_code
    positions: Iterator[Sequence[int | None]] = iter(())
    if step.tb_lasti >= 0:
        positions = islice(code.co_positions(), step.tb_lasti // 2, None)
    _, end_line, column, end_column = next(positions, (None,) * 4)
    line = max(step.tb_lineno or 1, 1)
    if end_line is None or column is None or end_column is None:
        end_line, column, end_column = line, 0, 0
    return RemoteFrame(code.co_filename, code.co_name, _module_of(step), line, end_line, column, end_column)


def _module_of(step: TracebackType) -> str:
    return str(step.tb_frame.f_globals.get("__name__"))


def _reduce_traceback(held: TracebackType) -> tuple[Any, ...]:
    """Reduce a traceback that an error holds as data."""
    return make_traceback, ([tuple(frame) for frame in frames_of(held)],)


# Where they arrive.


def _give_text(error: BaseException, text: str) -> None:
    """Put the remote traceback as text between an error and its cause."""
    remote = RemoteTraceback(f'\n"""\n{text}"""')
    remote.__cause__ = error.__cause__
    try:
        error.__cause__ = remote
    except Exception as trouble:  # its class does not let it: it is still the error
        if came_from_handler(trouble):
            raise


class _Joining:
    """Makes errors of nodes, and joins them."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._errors: list[BaseException | None] = [None] * len(nodes)

    def join(self) -> BaseException:
        """Return the first error, with all that belongs to it."""
        for number, node in enumerate(self._nodes):
            try:
                self._dress(self._made(number), node)
            except Exception as trouble:  # as above
                if came_from_handler(trouble):
                    raise
        return self._made(0)

    def _made(self, number: int) -> BaseException:
        error = self._errors[number]
        if error is None:
            error = self._errors[number] = self._make(self._nodes[number])
        return error

    def _make(self, node: Node) -> BaseException:
        if node.pickled is None:
            return carrier(node.trouble, node.said)
        try:
            return _load_node(node.pickled, self._made)
        except BaseException as trouble:
            if came_from_handler(trouble):
                raise
            return carrier(safe_repr(trouble, here=True), node.said)

    def _dress(self, error: BaseException, node: Node) -> None:
        error.__traceback__ = make_traceback(node.frames)
        error.__cause__ = None if node.cause is None else self._made(node.cause)
        error.__context__ = None if node.context is None else self._made(node.context)
        error.__suppress_context__ = node.suppress_context  # assigning a cause set it
        if node.notes is not None:
            error.__notes__ = node.notes


class _NodeUnpickler(pickle.Unpickler):
    def __init__(self, pickled: bytes, find: Callable[[int], BaseException]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._find = find

    def persistent_load(self, number: int) -> BaseException:
        return self._find(number)


def _load_node(pickled: bytes, find: Callable[[int], BaseException]) -> BaseException:
    error = _NodeUnpickler(pickled, find).load()
    if not isinstance(error, BaseException):
        raise TypeError(f"an error was pickled, and {type(error).__qualname__!r} object came back")
    return error


def make_bare(
    cls: type[BaseException], arguments: Sequence[Any], attributes: dict[str, Any], fields: dict[str, Any]
) -> BaseException:
    """Make an error with the builtin parts of its class alone."""
    error: BaseException = _builtin(cls, "__new__")(cls, *arguments)
    try:
        _builtin(cls, "__init__")(error, *arguments)
    except TypeError as trouble:  # its own __init__ never called that one
        if came_from_handler(trouble):
            raise
    if not isinstance(error, BaseExceptionGroup):
        error.args = tuple(arguments)
    for name, value in fields.items():
        setattr(error, name, value)
    vars(error).update(attributes)
    return error


def _builtin(cls: type, name: str) -> Any:
    """Return the first implementation of a method in C."""
    for ancestor in cls.__mro__:
        method = vars(ancestor).get(name)
        if isinstance(method, (BuiltinFunctionType, WrapperDescriptorType)):
            return method
    raise TypeError(f"{cls.__qualname__} has no builtin {name}")


def make_traceback(frames: Iterable[Sequence[Any]]) -> TracebackType | None:
    """Make a real traceback of remote frames, given from the outermost."""
    made: TracebackType | None = None
    for frame in reversed([RemoteFrame(*frame) for frame in frames]):
        step = _raise_in(frame)
        made = TracebackType(made, step.tb_frame, step.tb_lasti, frame.line)
    return made


def _raise_in(frame: RemoteFrame) -> TracebackType:
    """Return the traceback of an error raised by code that claims to be that of the frame."""
    code = _code_of(frame)
    try:
        exec(code, {"__name__": frame.module, "__file__": frame.file})
    except NameError as error:
        step = error.__traceback__ and error.__traceback__.tb_next
        if step is None or step.tb_next is not None or step.tb_frame.f_code is not code:
            raise  # that of a signal handler
        return step
    raise AssertionError("a name that cannot exist was found")


def _code_of(frame: RemoteFrame) -> CodeType:
    place = {
        "lineno": frame.line,
        "end_lineno": max(frame.line, frame.end_line),
        "col_offset": frame.column,
        "end_col_offset": max(frame.end_column, frame.column) if frame.end_line <= frame.line else frame.end_column,
    }
    name = ast.Name("no such name", ast.Load(), **place)
    module = ast.Module([ast.Expr(name, **place)], [])
    code: CodeType = compile(module, frame.file.replace("\0", "?"), "exec", dont_inherit=True)
    return code.replace(co_name=frame.function, co_qualname=frame.function)
