"""What becomes of what a worker refused: it travels by value, or cannot travel."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from pairpool import errors
from pairpool._codec import Definition, DefinitionKind, Need, Payload


def fallen_back(payload: Any, refused: Collection[Need]) -> Any:
    """What travels instead of a payload: itself if nothing that it needs was refused, or else its form by value.

    An error where it has none. Asked again, of what it returned, it returns the same.
    """
    if not isinstance(payload, Payload) or not any(need in refused for need in payload.needs):
        return payload
    return payload.fallback or refusal(payload.needs)


def fall_back_definitions(definitions: Iterable[Definition | None], refused: Collection[Need]) -> BaseException | None:
    """Has these, and what they use, travel by value where something that they need was refused; why one cannot."""
    for definition in filter(None, definitions):
        for each in (definition, *definition.payload.uses):
            payload = fallen_back(each.payload, refused)
            if isinstance(payload, BaseException):
                return payload
            if payload is not each.payload:
                each.payload = payload
                if each.kind is DefinitionKind.NAMED:
                    each.kind = DefinitionKind.BY_VALUE
    return None


def refusal(needs: tuple[Any, ...]) -> errors.RefusedError:
    """What a unit gets that cannot travel either way."""
    names = ", ".join(sorted({f"__main__.{name}" for name, _ in needs}))
    return errors.RefusedError(
        f"the worker has something else than the caller as {names}, and it cannot be sent by value: "
        "make the pool after everything that its tasks use is defined"
    )
