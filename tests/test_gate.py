"""The gate measures for real: more work is slower, and equal work is not faster."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from onnxdistill.device.statistics import Ratio
from onnxdistill.gate import SECONDS, Gate, measurably_faster
from onnxdistill.recipe import Recipe
from onnxdistill.tasks.classification import Classification


def recipe(**tables: object) -> Recipe:
    return Recipe.model_validate(
        {"name": "gate", "data": {"source": "digits"}, "teacher": {"network": "digits-resnet"}, **tables}
    )


def test_a_layer_with_a_sixteenth_of_the_work_is_faster(digits: Classification, tmp_path: Path) -> None:
    wide, narrow = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 4, 3, padding=1)
    for quantized in ({}, {"quantize": {}}):
        gate = Gate(recipe(**quantized), digits, tmp_path)
        ratio = gate.layer_speedup(wide, narrow, (64, 16, 16))
        assert measurably_faster(ratio)
        assert not measurably_faster(gate.layer_speedup(narrow, wide, (64, 16, 16)))


def test_only_the_whole_interval_counts() -> None:
    assert measurably_faster(Ratio(1.2, 1.01, 1.4))
    assert not measurably_faster(Ratio(1.2, 0.99, 1.4))


def test_what_is_unclear_is_measured_again_for_longer(
    digits: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [Ratio(1.1, 0.9, 1.3), Ratio(1.1, 1.05, 1.15)]
    asked: list[float] = []

    def timed(_gate: Gate, _before: Path, _after: Path, seconds: float) -> Ratio:
        asked.append(seconds)
        return answers[len(asked) - 1]

    monkeypatch.setattr(Gate, "_timed", timed)
    assert Gate(recipe(), digits, tmp_path).speedup(tmp_path, tmp_path) == answers[1]
    assert asked == list(SECONDS[:2])
