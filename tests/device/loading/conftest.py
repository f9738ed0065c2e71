from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def nothing_to_collect() -> Iterator[None]:
    """Every measurement collects garbage first, which takes a tenth of a second with torch loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
