"""Stage `verify`: the accuracy of the optimized ONNX Runtime session, the thing that will run in production."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.tasks import Score, Scoring


def verify(
    path: Path,
    scoring: Scoring,
    settings: SessionSettings,
    split: Literal["validation", "test"] = "test",
    on_progress: Callable[[int, int], None] | None = None,
    *,
    exact: bool = False,
) -> Score:
    """Measures the metric of an ONNX file.

    Args:
        path: The ONNX file.
        scoring: Knows the data and the metric.
        settings: Provider, threads and optimization level that the file is run with.
        split: `test` for what is reported; `validation` where something is decided by it.
        on_progress: Gets samples done and in all.
        exact: Without overflow in 16 bits, as integers are added up on processors that have the instructions for it;
            see `quantization.saturation`.

    Raises:
        ModelFileError: If the file does not load.
    """
    config = {"session.x64quantprecision": "1"} if exact else None
    return scoring.score(open_session(path, settings, config=config).run, split, on_progress)
