from __future__ import annotations

import array
import copyreg
import functools
import math
import multiprocessing
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from multiprocessing.reduction import ForkingPickler
from multiprocessing.sharedctypes import RawArray
from typing import Any

import pytest

from codec_things import LOCAL, Reducing, Thing, add, arrive, whole
from pairpool._codec import Encoder, decode_result, encode_result


class TestData:
    """Arguments."""

    @pytest.mark.parametrize(
        "obj",
        [
            None,
            5,
            "_main__",
            {"a": [1, (2.5, b"x")]},
            {1, 2},
            LOCAL["local class"](3),
            math,
            array.array("i", [1]),
        ],
        ids=repr,
    )
    def test_arrives(self, encoder: Encoder, obj: Any) -> None:
        """Data arrives as it is."""
        for _ in range(3):
            assert arrive(encoder.dumps(obj)) == obj

    def test_large(self, encoder: Encoder) -> None:
        """Data of any size arrives, and small data after it."""
        large = [bytes(200_000), bytearray(200_000), "x" * 200_000, list(range(50_000))]

        assert arrive(encoder.dumps(large)) == large
        assert arrive(encoder.dumps([1])) == [1]

    def test_atoms(self) -> None:
        """Only items of exactly the plain types may share a pickle."""
        assert Encoder.is_atoms([1, 2.5, "x", b"x", True, None])
        others: list[Any] = [(), [], {}, 1j, bytearray(), type("Sub", (int,), {})()]
        for item in others:
            assert not Encoder.is_atoms([1, item])

    @pytest.mark.parametrize(
        ("make", "kind", "words"),
        [
            (threading.Lock, TypeError, "cannot pickle '_thread.lock' object"),
            (
                multiprocessing.Lock,
                RuntimeError,
                "Lock objects should only be shared between processes through inheritance",
            ),
            (
                lambda: multiprocessing.get_context("fork").SimpleQueue(),
                RuntimeError,
                "SimpleQueue objects should only be shared between processes through inheritance",
            ),
            (
                lambda: multiprocessing.Value("i"),
                RuntimeError,
                "Synchronized objects should only be shared between processes through inheritance",
            ),
            (
                lambda: RawArray("i", 3),
                RuntimeError,
                "c_int_Array_3 objects should only be shared between processes through inheritance",
            ),
            (
                lambda: multiprocessing.current_process().authkey,
                TypeError,
                "Pickling an AuthenticationString object is disallowed for security reasons",
            ),
            (lambda: memoryview(b"x"), TypeError, "cannot pickle memoryview objects"),
            (lambda: (i for i in "x"), TypeError, "cannot pickle 'generator' object"),
        ],
    )
    @pytest.mark.parametrize("careful", [False, True])
    def test_refused_as_in_the_stdlib(
        self, encoder: Encoder, make: Callable[[], Any], kind: type[Exception], words: str, careful: bool
    ) -> None:
        """What the stdlib's pool does not send is refused, with its words."""
        obj = make()
        with pytest.raises(kind) as expected:
            ForkingPickler.dumps(obj)
        with pytest.raises(kind) as found:
            encoder.dumps([lambda: 1, obj] if careful else obj)

        assert str(found.value) == str(expected.value) == words
        assert found.value.__context__ is None

    def test_files(self, encoder: Encoder) -> None:
        """An open file is refused as in the stdlib, and not turned into a copy."""
        with tempfile.TemporaryFile("w+") as file:
            with pytest.raises(TypeError, match="TextIOWrapper") as expected:
                ForkingPickler.dumps(file)
            with pytest.raises(TypeError) as found:
                encoder.dumps([lambda: 1, file])

        assert str(found.value) == str(expected.value)

    def test_the_true_reason(self, encoder: Encoder) -> None:
        """Where a function cannot go by value the error says why, not that it has no name."""
        lock = threading.Lock()

        with pytest.raises(TypeError, match=r"_thread\.lock"):
            encoder.call(lambda: lock, (), {})

    def test_deep_data(self, encoder: Encoder) -> None:
        """Data too deep for pickle raises RecursionError, as in the stdlib."""
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]

        with pytest.raises(RecursionError):
            encoder.dumps(deep)
        while deep:  # or its deallocation may be too deep in turn
            deep = deep[0]

    def test_errors_in_reducers(self, encoder: Encoder) -> None:
        """Whatever a reducer raises comes out, and the encoder goes on as before."""
        for error in (ValueError("x"), KeyboardInterrupt("x"), SystemExit("x")):

            def fail(error: BaseException = error) -> Any:
                raise error

            for _ in range(2):
                with pytest.raises(type(error), match="x") as found:
                    encoder.dumps([1, Reducing(fail)])
                assert found.value is error
            assert arrive(encoder.dumps([1])) == [1]

    def test_reducers_that_use_the_encoder(self, encoder: Encoder) -> None:
        """A reducer may itself have something pickled."""
        outer = Reducing(lambda: (bytes, (whole(encoder.dumps([2])).data,)))

        assert pickle.loads(arrive(encoder.dumps(outer))) == [2]

    @pytest.mark.parametrize("where", range(4))
    @pytest.mark.parametrize("error", [ValueError("x"), RecursionError("x"), SystemExit("x"), KeyboardInterrupt("x")])
    def test_errors_among_many(self, encoder: Encoder, where: int, error: BaseException) -> None:
        """Of objects that are pickled together an error is that of the first that has no payload."""

        def fail() -> Any:
            raise error

        objs: list[Any] = [[1], {2: 2}, lambda: 3]
        objs.insert(where, Reducing(fail))
        payloads: list[Any] = ["before"]
        with pytest.raises(type(error), match="x"):
            encoder.dumps_each(objs, payloads)
        assert len(payloads) == 1 + where
        encoder.dumps_each(objs[where + 1 :], payloads)

        assert payloads[0] == "before"
        assert [arrive(payload) for payload in payloads[1:3]] == [[1], {2: 2}]
        assert arrive(payloads[3])() == 3

    def test_one_among_many(self, encoder: Encoder) -> None:
        """Objects that are pickled together share nothing, whatever their size and whatever a reducer does."""
        shared, large = [1], list(range(100_000))
        inner: list[Any] = []

        def again() -> Any:
            encoder.dumps_each([shared, shared], inner)
            return list, ()

        objs = [shared, large, Reducing(again), large, shared, [shared, shared]]
        payloads: list[Any] = []
        while len(payloads) < len(objs):  # it stops after what is large
            encoder.dumps_each(objs[len(payloads) :], payloads)

        assert [arrive(payload) for payload in payloads] == [shared, large, [], large, shared, [shared, shared]]
        assert payloads[0] == payloads[4] == inner[0] == inner[1] == encoder.dumps(shared)

    def test_threads(self, encoder: Encoder) -> None:
        """Several threads may pickle at once."""
        found: list[Any] = []

        def work(number: int) -> None:
            found.extend(
                arrive(encoder.dumps([number, turn, Thing(turn)]))[:2] == [number, turn] for turn in range(200)
            )

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert found == [True] * 800


_registered: dict[type, Any] = vars(ForkingPickler)["_extra_reducers"]


def _reduce_to(words: str, _: object) -> Any:
    return str, (words,)


class Registered:
    """Has a reducer that is registered somewhere."""


class TestRegisteredReducers:
    """Reducers that others registered."""

    @pytest.fixture(autouse=True)
    def unregister(self) -> Iterator[None]:
        """Remove what a test registers."""
        yield
        _registered.pop(Registered, None)
        copyreg.dispatch_table.pop(Registered, None)

    @pytest.mark.parametrize("careful", [False, True])
    def test_with_multiprocessing(self, encoder: Encoder, careful: bool) -> None:
        """Reducers registered with multiprocessing are used, at once and in their latest version."""
        obj = [lambda: 1, Registered()] if careful else [0, Registered()]
        assert type(arrive(encoder.dumps(obj))[1]) is Registered
        for words in ("one", "two"):
            reduction.register(Registered, functools.partial(_reduce_to, words))
            assert arrive(encoder.dumps(obj))[1] == words
            assert decode_result(encode_result([Registered()])) == [words]

    @pytest.mark.parametrize("careful", [False, True])
    def test_with_copyreg(self, encoder: Encoder, careful: bool) -> None:
        """Reducers registered with copyreg are used, at once and in their latest version."""
        obj = [lambda: 1, Registered()] if careful else [0, Registered()]
        for words in ("one", "two"):
            copyreg.pickle(Registered, functools.partial(_reduce_to, words))
            assert arrive(encoder.dumps(obj))[1] == words
            assert decode_result(encode_result([Registered()])) == [words]

    def test_replaced_reducer_of_the_stdlib(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        """Someone else's reducer for what the stdlib also has one for is used."""
        monkeypatch.setitem(_registered, functools.partial, lambda _: (str, ("theirs",)))

        assert arrive(encoder.dumps(functools.partial(add))) == "theirs"
