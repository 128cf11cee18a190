"""Real workers are killed at random moments: nothing is lost but what they ran, nothing runs twice, nothing hangs.

``PAIRPOOL_CHAOS_SEED`` chooses what is drawn; a failure names it. What the kernel schedules it cannot replay.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import randrange
from typing import Any

import pytest

import chaos

SEED = int(os.environ.get("PAIRPOOL_CHAOS_SEED") or randrange(1_000_000))


@pytest.mark.parametrize("face", chaos.FACES)
def test_every_item_is_accounted_for(make_pool: Any, start_method: str, face: str, tmp_path: Path) -> None:
    """Results, errors and the journal of what was begun agree exactly, whichever workers die when."""

    def make(*args: Any) -> Any:
        return make_pool(*args, start_method=start_method)

    items, pause = (1000, 0.01) if start_method == "fork" else (500, 0.1)
    try:
        kills = chaos.run(make, face, items, SEED, pause, tmp_path / "begun")
    except Exception as error:
        error.add_note(f"PAIRPOOL_CHAOS_SEED={SEED}")
        raise
    assert kills > 0
