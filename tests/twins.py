"""The twins of the framing, side by side; a test asks for `twin` and runs over each.

The C twin must be there unless PAIRPOOL_EXTENSION=0 says that it is not wanted: a build that silently failed
must not leave the suite green.
"""

from __future__ import annotations

import os
from itertools import product
from types import ModuleType

import pairpool._framing_py
import pytest

TWINS: dict[str, ModuleType] = {"python": pairpool._framing_py}

if os.environ.get("PAIRPOOL_EXTENSION") != "0":
    import pairpool._framing_c

    TWINS["c"] = pairpool._framing_c

# Who writes and who reads: what one twin sends must be what the other would have sent.
PAIRS = [pytest.param(*pair, id="-".join(names)) for names, pair in
         ((names, tuple(TWINS[name] for name in names)) for names in product(TWINS, repeat=2))]  # fmt: skip

needs_c = pytest.mark.skipif("c" not in TWINS, reason="PAIRPOOL_EXTENSION=0 leaves the C twin out")


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> ModuleType:
    """Each twin in turn."""
    return TWINS[request.param]
