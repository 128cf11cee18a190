"""A worker in another process which does nothing but what the codec says, for the codec's tests.

It talks over a connection of multiprocessing's: no dispatcher, no scheduler, one call at a time.
Started by any of the three methods, it re-imports the main module as multiprocessing does.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]
from types import TracebackType
from typing import Any, Self

from pairpool._codec import (
    Decoder,
    Definition,
    DefinitionKind,
    Encoder,
    Need,
    Payload,
    decode_error,
    decode_result,
    encode_error,
    encode_result,
)

Message = tuple[int | None, DefinitionKind | None, bytes | None, bytes, tuple[Need, ...], int]


class Worker:
    """One worker process and the caller's end of its connection."""

    def __init__(
        self, method: str, encoder: Encoder, initializer: Callable[..., Any] | None = None, initargs: Any = ()
    ) -> None:
        context: Any = multiprocessing.get_context(method)
        self.encoder = encoder
        self.refusals: list[list[Need]] = []
        self.sent: list[Payload] = []
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, initializer, initargs))
        self._process.start()
        theirs.close()
        self._known: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.send(None)  # a forked worker has our end as well, and would not see it close
        self._process.join()
        self._ours.close()
        exitcode = self._process.exitcode
        self._process.close()
        assert exitcode == 0

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run one call as apply and submit do."""
        definition, payload = self.encoder.call(function, arguments, {})
        return self._run(definition, payload)

    def run(self, definition: Definition) -> Any:
        """Run a definition that was made before, without arguments."""
        return self._run(definition, self.encoder.dumps(((), {})))

    def forget(self, definition: Definition) -> None:
        """Send a definition again when it is used again."""
        self._known.discard(definition.ident)

    def map(self, function: Callable[..., Any], items: list[Any]) -> list[Any]:
        """Run one call for each item as the map family does."""
        definition = self.encoder.definition(function)
        return [self._run(definition, self.encoder.dumps(((item,), {}))) for item in items]

    def _run(self, definition: Definition | None, payload: Payload | bytes) -> Any:
        if isinstance(payload, bytes):
            payload = Payload(payload)
        apart = definition.payload if definition is not None and definition.ident not in self._known else None
        while refused := self._send(definition, apart, payload):
            self.refusals.append(refused)
            self.encoder.refuse(refused)
            if apart is not None and apart.needs:
                assert apart.fallback is not None, f"refused, and there is no other way: {refused}"
                apart = apart.fallback
            if payload.needs:
                assert payload.fallback is not None, f"refused, and there is no other way: {refused}"
                payload = payload.fallback
        if definition is not None:
            self._known.add(definition.ident)
        self.encoder.accept(payload.needs)
        if apart is not None:
            self.encoder.accept(apart.needs)
        payload.close()
        is_error, data = self._ours.recv()
        if is_error:
            raise decode_error(data)
        return decode_result(data)

    def _send(self, definition: Definition | None, apart: Payload | None, payload: Payload) -> list[Need]:
        """Send one call and return which of its needs are refused."""
        self.sent += [payload] if apart is None else [apart, payload]
        needs = payload.needs if apart is None else (*apart.needs, *payload.needs)
        ident, kind = (None, None) if definition is None else (definition.ident, definition.kind)
        descriptors = payload.descriptors
        message: Message = (ident, kind, apart.data if apart else None, payload.data, needs, len(descriptors))
        self._ours.send(message)
        if descriptors:
            with socket.socket(fileno=os.dup(self._ours.fileno())) as channel:
                socket.send_fds(channel, [b"!"], descriptors)
        refused: list[Need] = self._ours.recv()
        return refused


def serve(connection: Connection, initializer: Callable[..., Any] | None, initargs: Any) -> None:
    """Be a worker until told to stop."""
    decoder = Decoder()
    if initializer is not None:
        initializer(*initargs)
    functions: dict[int, Any] = {}
    while True:
        message: Message | None = connection.recv()
        if message is None:
            return
        descriptors = _receive(connection, message[-1])
        refused = decoder.refused(message[4])
        connection.send(refused)
        if not refused:
            connection.send(_outcome(decoder, functions, message, descriptors))


def _receive(connection: Connection, count: int) -> list[int]:
    if not count:
        return []
    with socket.socket(fileno=os.dup(connection.fileno())) as channel:
        return socket.recv_fds(channel, 1, count)[1]


def _outcome(decoder: Decoder, functions: dict[int, Any], message: Message, descriptors: list[int]) -> Any:
    ident, kind, definition, data, _, _ = message
    try:
        if definition is not None:
            functions[ident or 0] = definition
            if kind is not DefinitionKind.STATEFUL:
                functions[ident or 0] = decoder.loads(definition, ())
        if ident is None:
            function, arguments, keywords = decoder.loads(data, descriptors)
        else:
            function = functions[ident]
            if kind is DefinitionKind.STATEFUL:
                function = decoder.loads(function, ())
            arguments, keywords = decoder.loads(data, descriptors)
        return False, encode_result(function(*arguments, **keywords))
    except MaybeEncodingError as error:
        return True, encode_error(error, wrap=False)
    except BaseException as error:
        return True, encode_error(error, wrap=True)
