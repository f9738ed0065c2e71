"""What the latencies of a run come to: percentiles, as far as there are enough of them, and plain values for JSON."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

from onnxdistill.device.measuring.statistics import NEEDED_TIMINGS, Series


def needed(percent: float) -> int:
    """How many latencies have one beyond a percentile, in the mean; fewer don't support it."""
    return ceil(round(100 / (100 - percent), 6))


def percentile(series: Series, percent: float) -> float | None:
    """A percentile of latencies; None if they are too few for it."""
    return float(np.percentile(series, percent)) if series.size >= needed(percent) else None


def percentiles(series: Series) -> dict[str, float | None]:
    """All percentiles that are reported, by name such as `p50`; None where the latencies are too few."""
    return {f"p{percent:g}": percentile(series, percent) for percent in NEEDED_TIMINGS}


def plain(result: object) -> dict[str, Any]:
    """The attributes of a result by name, arrays as lists and rounded to the nanosecond."""
    values = result.__dict__.items()
    return {name: value.round(6).tolist() if isinstance(value, np.ndarray) else value for name, value in values}
