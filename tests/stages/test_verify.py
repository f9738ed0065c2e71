"""What files are scored by: the session of production here, or one that adds up integers as other machines do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxdistill.device.host import read_host
from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.quantization.scheme import saturates
from onnxdistill.stages.verify import verify
from onnxdistill.tasks.base import Metric, Runner, Score, Split
from tests.quantization.test_saturation import layer_model


class Output:
    """Scores a model of two inputs by its output."""

    metric = Metric("sum", "")
    measurable = True

    def score(self, run: Runner, split: Split, on_progress: Callable[[int, int], None] | None = None) -> Score:
        assert split == "test"
        return Score(float(run({"x": np.full((1, 2), 255, np.float32)})["y"].item()), (0.0, 0.0), 1)

    def describe_data(self) -> dict[str, Any]:
        return {}


def test_exact_sums_are_asked_of_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On processors with the instructions for it, they are exact in any case."""
    path, asked = tmp_path / "model.onnx", []
    onnx.save(layer_model("MatMul", np.full((2, 1), 127, np.int8), (1, 2)), path)

    def opened(*parts: Any, config: dict[str, str] | None = None) -> Any:
        asked.append(config)
        return open_session(*parts, config=config)

    monkeypatch.setattr("onnxdistill.stages.verify.open_session", opened)
    verify(path, Output(), SessionSettings(), exact=True)
    verify(path, Output(), SessionSettings())
    assert asked == [{"session.x64quantprecision": "1"}, None]


def test_sums_that_overflow_here_are_exact_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "overflowing.onnx"
    onnx.save(layer_model("MatMul", np.full((2, 1), 127, np.int8), (1, 2)), path)
    exact = verify(path, Output(), SessionSettings(), exact=True)
    assert exact.value == 2 * 127 * 255
    assert verify(path, Output(), SessionSettings()).value == (2**15 - 1 if saturates(read_host()) else exact.value)
