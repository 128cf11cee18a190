"""What becomes of what a worker refused: it travels by value, or cannot travel."""

from __future__ import annotations

from typing import Any

from pairpool import errors
from pairpool._codec import Definition, DefinitionKind


def fall_back_definition(definition: Definition) -> bool:
    """Makes a refused definition travel by value; False where it cannot."""
    payload = definition.payload
    if payload.needs:
        if payload.fallback is None:
            return False
        definition.payload = payload.fallback
        if definition.kind is DefinitionKind.NAMED:
            definition.kind = DefinitionKind.BY_VALUE
    return True


def refusal(needs: tuple[Any, ...]) -> errors.RefusedError:
    """What a unit gets that cannot travel either way."""
    names = ", ".join(sorted({f"__main__.{name}" for name, _ in needs}))
    return errors.RefusedError(
        f"the worker has something else than the caller as {names}, and it cannot be sent by value: "
        "make the pool after everything that its tasks use is defined"
    )
