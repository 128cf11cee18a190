from __future__ import annotations

import array
import os
import sys
import threading
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest

from codec_things import LOCAL, Reducing, Thing, add, whole
from pairpool._codec import Decoder, Encoder, Payload, decode_result, encode_result
from pairpool._envelope import LARGEST_TOGETHER


class UnpicklingError(Exception):
    """Raised by what is unpickled."""


def _raise(error: BaseException) -> None:
    raise error


class TestDecoder:
    """What a worker loads."""

    @pytest.mark.parametrize("error", [UnpicklingError("x"), SystemExit("x"), KeyboardInterrupt("x")])
    def test_error_while_unpickling(self, encoder: Encoder, error: BaseException) -> None:
        """Whatever unpickling raises comes out as it is."""
        payload = whole(encoder.dumps(Reducing(lambda: (_raise, (error,)))))

        with pytest.raises(type(error), match="x"):
            Decoder().loads(payload.data, ())

    def test_buffers(self, encoder: Encoder) -> None:
        """Any buffer can be unpickled."""
        data = whole(encoder.dumps([1])).data

        assert Decoder().loads(memoryview(bytearray(data)), ()) == [1]


class Unshowable:
    """Has no repr, and cannot be pickled."""

    def __repr__(self) -> str:
        raise SystemExit

    def __reduce__(self) -> Any:
        raise ValueError("no")


class TestResults:
    """What a worker returns."""

    @pytest.mark.parametrize("size", [50_000, 250_000])
    def test_large(self, size: int) -> None:
        """Those that would be read from a slab, and not mapped, are bytes as small ones are."""
        for value in (bytes(size), array.array("b", bytes(size)), [str(number) for number in range(size // 8)]):
            encoded = encode_result(value)
            if size < LARGEST_TOGETHER:
                assert isinstance(encoded, bytes)
                assert decode_result(encoded) == value
            else:
                assert isinstance(encoded, Payload)
                encoded.close()

    @pytest.mark.parametrize(
        ("pickles", "plain"),
        [
            ([1, "x", b"y", [None], {"a": (2.0,)}], True),
            ([1, add], False),
            ([1, b"x" * 900, 2, 3], True),  # few bytes each
            ([bytes(10_000)], False),  # to look through that would take longer than to load it
            ([], True),
        ],
    )
    def test_are_plain(self, pickles: list[Any], plain: bool) -> None:
        """Where nobody sees when they are loaded, and it takes no time to find out."""
        assert Encoder.are_plain([encode_result(each) for each in pickles]) is plain

    @pytest.mark.parametrize("value", [None, 5, {"a": [1]}, Thing, add, array.array("i", [1])], ids=repr)
    def test_arrive(self, value: Any) -> None:
        """Results arrive as they are."""
        assert decode_result(encode_result(value)) == value

    @pytest.mark.parametrize("value", [lambda: 42, [lambda: 42], threading.Lock()], ids=["lambda", "list", "lock"])
    def test_refused_as_in_the_stdlib(self, value: Any) -> None:
        """What the stdlib's pool does not return raises its MaybeEncodingError, equal in all attributes."""
        with pytest.raises(Exception, match="pickle") as reason:
            ForkingPickler.dumps(value)
        with pytest.raises(MaybeEncodingError) as found:
            encode_result(value)
        expected = MaybeEncodingError(reason.value, value)

        assert type(found.value) is MaybeEncodingError
        assert (found.value.exc, found.value.value) == (expected.exc, expected.value)
        assert (str(found.value), repr(found.value)) == (str(expected), repr(expected))
        assert found.value.args == expected.args
        assert found.value.__context__ is None

    def test_without_repr(self) -> None:
        """A result that cannot even be shown raises MaybeEncodingError, too."""
        with pytest.raises(MaybeEncodingError, match="whose repr raises"):
            encode_result(Unshowable())

    def test_fatal_reducers(self) -> None:
        """What is no Exception comes out of pickling a result."""
        with pytest.raises(SystemExit):
            encode_result(Reducing(lambda: sys.exit(3)))

    def test_instances_of_local_classes(self) -> None:
        """An instance of a class without a name returns as an instance of the caller's class."""
        value = LOCAL["local class"](3)

        found = decode_result(encode_result([value, value]))

        assert found == [value, value]
        assert type(found[0]) is LOCAL["local class"]

    def test_local_classes_made_by_the_worker(self) -> None:
        """An instance of a class that only the worker has arrives with its methods."""
        program = (
            "import sys\n"
            "from pairpool._codec import encode_result\n"
            "def make():\n"
            "  factor = 10\n"
            "  class Made:\n"
            "    def __init__(self, x): self.x = x\n"
            "    def scaled(self): return self.x * factor\n"
            "    def itself(self): return Made\n"
            "  return Made(4)\n"
            "sys.stdout.buffer.write(encode_result([make()]))\n"
        )
        reading, writing = os.pipe()
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", program],
            {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)],
        )
        os.close(writing)
        with open(reading, "rb") as stream:
            found: Any = decode_result(stream.read())
        os.waitpid(pid, 0)

        assert found[0].scaled() == 40
        assert found[0].itself() is type(found[0])

    def test_methods_of_the_callers_class_stay(self) -> None:
        """Receiving an instance changes nothing of the class that the caller has."""
        cls = LOCAL["local class"]
        data = encode_result(cls(1))
        method = cls.method
        decode_result(data)

        assert cls.method is method
