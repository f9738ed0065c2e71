from __future__ import annotations

import pytest

from onnxdistill.device.measuring.statistics import NEEDED_TIMINGS
from tests.device.loading.virtual import virtual_open_loop


@pytest.mark.parametrize(
    ("count", "reported"),
    [(1, ""), (9, "50"), (10, "50 90"), (20, "50 90 95"), (999, "50 90 95 99"), (1000, "50 90 95 99 99.9")],
)
def test_percentiles_only_as_far_as_the_sample_supports_them(count: int, reported: str) -> None:
    result = virtual_open_loop(1.0, rate_per_s=100.0, seconds=count / 100)
    found = [f"{percent:g}" for percent in NEEDED_TIMINGS if result.percentile(percent) is not None]
    assert found == reported.split()
