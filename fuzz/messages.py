"""`unpack` and `pack` of both twins, side by side.

The Python twin is the specification. What it returns or raises the C twin has to return or raise, and in the same
words where they are the specification's own.
"""

from __future__ import annotations

import ctypes
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pickle import PickleBuffer
from types import FunctionType
from typing import Any, Final, NamedTuple

from fuzz.source import EDGES, MESSAGES, Source, build, damaged, message
from pairpool import _framing_c, _framing_py
from pairpool.errors import FramingError

ACCEPTED: Final = "accepted"


class DisagreementError(Exception):
    """An input that the twins take differently, or in a way that neither may."""


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns or, if it raises, the error's type and words."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error), str(error)


def agreed(python: Any, c: Any) -> Any:
    """Return what both twins did."""
    if python != c:
        raise DisagreementError(f"the twins disagree\n  Python: {shown(python)}\n  C:      {shown(c)}")
    return python


def require(condition: bool, promise: str, *found: Any) -> None:
    """Raise DisagreementError, in the words of what was promised and with what there is instead, unless it holds."""
    if not condition:
        raise DisagreementError("\n  ".join([f"it does not hold that {promise}", *map(shown, found)]))


def shown(value: Any) -> str:
    """Return an input or an outcome in words, and all that is bytes in hexadecimal."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"bytes.fromhex({value.hex()!r})"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = zip(value._fields, value, strict=True)
        return f"{type(value).__name__}({', '.join(f'{name}={shown(field)}' for name, field in fields)})"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}([{', '.join(map(shown, value))}])"
    return value.__name__ if isinstance(value, FunctionType | type) else repr(value)


# --- unpack -------------------------------------------------------------------------------------------------


def _signed(data: bytes) -> Any:
    return memoryview(data).cast("b")


def _exact(data: bytes) -> Any:
    """Return a buffer behind which not one more byte is allocated, so that a sanitizer sees what is read there."""
    return array("B", data)[:]


def _within_another(data: bytes) -> Any:
    return memoryview(b"pair" + data + b"pair")[4:-4]


def _every_other(data: bytes) -> Any:
    return memoryview(bytes(2 * len(data)))[::2]


def _text(data: bytes) -> Any:
    return data.hex()


def _nothing(_: bytes) -> Any:
    return None


_NO_MESSAGES: Final = (_every_other, _text, _nothing)
_FORMS: Final[Sequence[Callable[[bytes], Any]]] = (
    *[bytes] * 40, *[_exact] * 12, *[bytearray] * 4, *[_within_another] * 3, _signed, PickleBuffer, *_NO_MESSAGES,
)  # fmt: skip


class Arrival(NamedTuple):
    """What `unpack` is given."""

    data: bytes
    form: Callable[[bytes], Any]


def make_arrival(source: Source) -> Arrival:
    """Make a message with any damage, or garbage with and without a header."""
    how = source.random()
    if how < 0.92:
        data = damaged(source, message(source), MESSAGES)
    elif how < 0.96:
        data = source.stuff(source.below(200))
    else:
        data = build(source.below(256), 0, [])[:16] + source.stuff(source.below(200))
    return Arrival(data, source.pick(_FORMS))


_REASON: Final = re.compile(r"malformed message of (\d+) bytes: (.*)")


def check_arrival(arrival: Arrival) -> str:
    """Unpack it with both twins, and pack what is accepted: that must give the same bytes."""
    data = arrival.data
    message = arrival.form(data)
    unpacked = agreed(outcome(_framing_py.unpack, message), theirs := outcome(_framing_c.unpack, message))
    if unpacked[0] is FramingError:
        words = _REASON.fullmatch(unpacked[1])
        require(words is not None and int(words[1]) == len(data), "the error tells how long the message is", unpacked)
        return words[2] if words else ""
    if len(unpacked) == 2:
        require(arrival.form in _NO_MESSAGES and unpacked[0] is TypeError, "unpack raises FramingError", unpacked)
        return "no buffer"
    kind, ident, views = unpacked
    for view, their in zip(views, theirs[2], strict=True):
        mine, others = ((v.obj, v.format, v.readonly, v.c_contiguous) for v in (view, their))
        require(mine == others, "the views are of one kind, into the same object", mine, others)
    pack = _framing_c.pack if ident & 1 else _framing_py.pack
    require(pack(kind, ident, views) == data, "what is accepted is what is packed", unpacked)
    return ACCEPTED


# --- pack ---------------------------------------------------------------------------------------------------


class StruckError(Exception):
    """Raised by what is given to `pack`, where it is asked for something."""


class Index:
    """What can be taken for an integer, or says that it can."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __index__(self) -> Any:
        if self.value is StruckError:
            raise StruckError("asked for its index")
        return self.value

    def __repr__(self) -> str:
        return f"Index({self.value!r})"


_NUMBERS: Final = (
    *EDGES, -1, -256, -(2**63), -(2**64), -(2**70), 2**64 + 1, 2**70, True, False, 1.0, -0.5, "1", b"1", None, (),
    Index(1), Index(-1), Index(256), Index(2**64), Index("1"), Index(None), Index(StruckError),
)  # fmt: skip


def _released(data: bytes) -> Any:
    view = memoryview(data)
    view.release()
    return view


def _shorts(data: bytes) -> Any:
    return array("H", data) if len(data) % 2 == 0 else data


def _square(data: bytes) -> Any:
    return memoryview(data).cast("B", (2, len(data) // 2)) if data and len(data) % 2 == 0 else data


def _ctypes_array(data: bytes) -> Any:
    return (ctypes.c_ubyte * len(data)).from_buffer_copy(data)


def _one_of_many(data: bytes) -> Any:
    """Return a view of one item, which is contiguous however far it is to the next."""
    return memoryview(data + b"pair")[::5] if len(data) == 1 else data


def _backwards(data: bytes) -> Any:
    return memoryview(data)[::-1]


def _every_other_row(data: bytes) -> Any:
    return memoryview(bytes(4 * len(data))).cast("B", (4, len(data)))[::2] if data else _every_other(data)


_BUFFERS: Final[Sequence[Callable[[bytes], Any]]] = (
    *[bytes] * 6, bytearray, memoryview, _exact, _signed, _within_another, _shorts, _square, _ctypes_array,
    _one_of_many, PickleBuffer,
)  # fmt: skip
_NO_BUFFERS: Final[Sequence[Callable[[bytes], Any]]] = (
    _text, _nothing, len, list, _released, _every_other, _backwards, _every_other_row,
)  # fmt: skip


def _one_by_one(items: Iterable[Any]) -> Iterator[Any]:
    yield from items


def _then_struck(items: Iterable[Any]) -> Iterator[Any]:
    yield from items
    raise StruckError("asked for one buffer more")


def _as_text(items: Iterable[Any]) -> str:
    return "x" * len([*items])


def _as_bytes(items: Iterable[Any]) -> bytes:
    return bytes(len([*items]))


_CONTAINERS: Final[Sequence[Callable[[Iterable[Any]], Any]]] = (list, list, list, tuple, deque, _one_by_one)
_NO_CONTAINERS: Final[Sequence[Callable[[Iterable[Any]], Any]]] = (_then_struck, _as_text, _as_bytes, id)


class Packing(NamedTuple):
    """What `pack` is given: made anew for each twin, since an iterator is good for one."""

    kind: Any
    ident: Any
    contents: list[bytes]
    forms: list[Callable[[bytes], Any]]
    container: Callable[[Iterable[Any]], Any]

    def arguments(self) -> tuple[Any, Any, Any]:
        """Return the arguments."""
        buffers = [form(content) for form, content in zip(self.forms, self.contents, strict=True)]
        return self.kind, self.ident, self.container(buffers)

    @property
    def is_sound(self) -> bool:
        """Whether there is a message of it."""
        return (
            type(self.kind) is int and 0 <= self.kind < 2**8
            and type(self.ident) is int and 0 <= self.ident < 2**64
            and self.container in _CONTAINERS and not any(form in _NO_BUFFERS for form in self.forms)
        )  # fmt: skip


def make_packing(source: Source) -> Packing:
    """Make arguments for `pack`; most are sound, in the others anything may be wrong, also more than one thing."""
    contents = [source.stuff(source.size()) for _ in range(source.pick((0, 1, 1, 2, 3, 5, 9)))]
    hostile = source.random() < 0.4
    return Packing(
        source.pick(_NUMBERS) if hostile and source.random() < 0.3 else source.below(256),
        source.pick(_NUMBERS) if hostile and source.random() < 0.4 else source.number(64),
        contents,
        [source.pick(_NO_BUFFERS if hostile and source.random() < 0.2 else _BUFFERS) for _ in contents],
        source.pick(_NO_CONTAINERS if hostile and source.random() < 0.2 else _CONTAINERS),
    )


# What the specification raises itself, and so in its own words; other words are the interpreter's.
_OWN: Final = (ValueError, BufferError)
_MAY_BE_RAISED: Final = (*_OWN, TypeError, StruckError)


def check_packing(packing: Packing) -> str:
    """Pack it with both twins; what is packed must be as documented, and unpack to what it was made from."""
    packed, theirs = (outcome(twin.pack, *packing.arguments()) for twin in (_framing_py, _framing_c))
    if isinstance(packed, tuple) and isinstance(theirs, tuple) and packed[0] not in _OWN:
        packed, theirs = packed[:1], theirs[:1]
    agreed(packed, theirs)
    if isinstance(packed, tuple):
        error, *words = packed
        require(error in _MAY_BE_RAISED, "pack raises nothing else than it is known to raise", error)
        return str(words[0]).partition(" between ")[0] if words else str(error.__name__)
    if packing.is_sound:
        kind, ident, contents = packing.kind, packing.ident, packing.contents
        require(packed == build(kind, ident, contents), "a message is laid out as documented", packed)
        unpacked: Any = (_framing_py if ident & 1 else _framing_c).unpack(packed)
        require(unpacked == (kind, ident, contents), "what is packed is what is unpacked", packed)
    return ACCEPTED
