"""The codec of engines that share memory with the caller: an object is its own payload."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pairpool._codec import Definition, DefinitionKind, Payload, Shared

_idents = itertools.count(1)


class _Nothing:
    """A payload that is not to be run; every object of the user's is one that is."""


NOTHING = _Nothing()


class ObjectEncoder:
    """The caller's half."""

    nothing = Payload(NOTHING)
    trim_at = None

    def definition(self, function: Callable[..., Any]) -> Definition:
        return Definition(next(_idents), DefinitionKind.NAMED, Payload(function))

    def call(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Definition | None, Payload]:
        return None, Payload((function, arguments, keywords))

    def definition_of_plain(self, *_: Any) -> None:
        return None  # nothing is pickled

    def dumps_arguments(self, arguments: tuple[Any, ...]) -> bytes:
        raise AssertionError("no call is plain")

    def share(self, obj: Any) -> Shared:
        raise ValueError("threads share every object of the caller's: pass the object itself")

    def empty(self, shape: Any, dtype: Any) -> Shared:
        raise ValueError("threads share every object of the caller's: pass an array of your own")

    def dumps(self, value: Any) -> Payload:
        return Payload(value)

    def dumps_each(self, values: Iterable[Any], payloads: list[Any]) -> None:
        payloads.extend(map(Payload, values))

    def dumps_together(self, values: list[Any]) -> Any:
        return None  # there is nothing to be saved

    def dumps_atoms(self, items: Sequence[Any]) -> Any:
        return items

    def is_atoms(self, items: Any) -> bool:
        return True  # nothing is copied, so nothing can be shared wrongly

    def trim(self) -> None: ...
    def accept(self, needs: Any) -> None: ...
    def refuse(self, needs: Any) -> None: ...

    def dumps_needs(self, needs: Any) -> Any:
        return needs

    @staticmethod
    def decode_value(data: Any) -> Any:
        return data

    @staticmethod
    def size_of_large(_: Any) -> int:
        return 0  # what they hold is the user's, and so is asking for its size

    decode_plain = decode_numbers = decode_value

    @staticmethod
    def are_plain(_: Any) -> bool:
        return True

    @staticmethod
    def decode_error(data: Any) -> BaseException:
        error: BaseException = data
        return error


class ObjectCodec:
    """The worker's half."""

    def refused(self, needs: Any) -> Any:
        return ()

    def loads(self, data: Any, descriptors: Sequence[int]) -> Any:
        return data

    def kept(self, data: Any) -> Any:
        return data

    def is_nothing(self, data: Any) -> bool:
        return data is NOTHING

    def has_nothing(self, payloads: Sequence[Any]) -> bool:
        return any(map(self.is_nothing, payloads))

    def loading(self, payloads: Sequence[Any]) -> Sequence[Any]:
        return payloads

    def may_wait(self, value: Any) -> bool:
        return True

    def encode_values(self, values: list[Any]) -> Any:
        return values

    def encode_value(self, value: Any) -> Any:
        return value

    def encode_error(self, error: BaseException) -> Any:
        return error

    def portions(self, payloads: list[Any]) -> list[int]:
        return [len(payloads)]
