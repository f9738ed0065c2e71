"""What users of int8 complain of most, planted: the documented way fails where it is said to, and ours does not.

Latency is not the subject here: that what isn't faster doesn't ship is in tests/stages/test_quantize.py, sums that
overflow 16 bits are in test_saturation.py, tensors without elements and memory in test_calibration.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from benchmarks.documented import documented
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.quantization.ladder import Loss
from onnxdistill.quantization.scheme import usual_scheme
from onnxdistill.quantization.workshop import Calibration, Form, Workshop
from onnxdistill.recipe import QuantizeTable
from onnxdistill.stages.quantize import QuantizeResult, quantize_measured
from onnxdistill.tasks.base import Split
from onnxdistill.tasks.classification import Classification
from tests.fitted import FittedDigits, export_digits
from tests.quantization.graphs import Constants, model_of, run

Array = NDArray[np.float32]


class Accuracy:
    """A judge to whom all int8 files are faster, and who measures what they cost on validation."""

    limit = 0.5
    measurable = True

    def __init__(self, task: Classification, source: Path) -> None:
        self._task = task
        self._float = self.percent(source, "validation")

    def percent(self, path: Path, split: Split) -> float:
        """Accuracy of a file."""
        return self._task.score(open_session(path, SessionSettings()).run, split).value

    def loss(self, path: Path) -> Loss:
        points = self._float - self.percent(path, "validation")
        return Loss(points, points - 0.1)

    def speedup(self, path: Path) -> Estimate:
        assert path.is_file()
        return Estimate(2.0, 1.9, 2.1)

    def refusal(self, loss: Loss) -> str:
        return "too much" if loss.points > self.limit else ""

    def may_be_chance(self, loss: Loss) -> bool:
        return False


def calibration_of(task: Classification) -> Calibration:
    return lambda: ({task.input_name: batch.inputs.numpy()} for batch in task.calibration_batches(32))


def climbed(source: Path, task: Classification, judge: Accuracy) -> QuantizeResult:
    workshop = Workshop(source, calibration_of(task))
    return quantize_measured(workshop, source.with_name("int8.onnx"), QuantizeTable(), judge)


@pytest.mark.parametrize(
    ("spread", "outlier", "dead"),
    [(1e3, 0.0, False), (1.0, 1e3, False), (1e3, 1e3, True)],
    ids=["dynamic range", "outliers", "with dead channels, all at once"],
)
def test_accuracy_does_not_collapse(
    digits: Classification, tmp_path: Path, spread: float, outlier: float, dead: bool
) -> None:
    network = FittedDigits(digits, spread=spread, outlier=outlier, dead=dead)
    source = export_digits(network, digits, tmp_path / "float.onnx")
    judge = Accuracy(digits, source)
    before = judge.percent(source, "test")
    assert before > 90
    theirs = documented(source, tmp_path / "theirs.onnx", calibration_of(digits)())
    assert judge.percent(theirs, "test") < before - 10
    result = climbed(source, digits, judge)
    assert not result.refusal, result.rungs
    assert judge.percent(result.path, "test") >= before - 1.0
    kinds = {node.op_type for node in onnx.load(result.path).graph.node}
    assert "QuantizeLinear" in kinds


def forms(model: onnx.ModelProto, x: Array, folder: Path) -> list[Array]:
    """The output of a model in the usual form, and in all others that leave the same in int8."""
    onnx.save(model, folder / "float.onnx")
    workshop = Workshop(folder / "float.onnx", lambda: [{"x": x}])
    made: list[onnx.ModelProto] = []
    for per_channel in (True, False):
        usual = Form(usual_scheme(workshop.prepared, "auto", per_channel, workshop.host))
        changes = ({}, {"corrected": True}, {"corrected": True, "rounded": True}, {"equalization": "exact"})
        made += [workshop.make(replace(usual, **change)).model for change in changes]
    return [run(each, x=x)[0] for each in made]


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def decibels(expected: Array, given: Array) -> float:
    return float(10 * np.log10(np.square(expected).mean() / np.square(expected - given).mean()))


def test_biases_of_dead_channels_do_not_overflow(tmp_path: Path) -> None:
    """Issue 22020: at the scale of weights that are next to nothing, a bias has more than 32 bits."""
    weight, bias = noise(4, 3, 3, 3), np.float32([0.1, 1.0, 2.0, -1.0])
    weight[1] *= 1e-12
    weight[2] = 0.0
    assert bias[1] / (np.abs(weight[1]).max() / 127 * 4 / 255) > 2**31  # the scale of weights, and that of the input
    body = "g (float[n,3,8,8] x) => (float[n,4,6,6] y) { y = Conv(x, w, b) }"
    x = noise(8, 3, 8, 8, seed=1)
    model = model_of(body, {"w": weight, "b": bias})
    (expected,) = run(model, x=x)
    for given in forms(model, x, tmp_path):
        assert all(decibels(expected[:, channel], given[:, channel]) > 20 for channel in range(4))


BOXES_AND_CONFIDENCES: Constants = {
    "w": noise(4, 3, 3, 3) * np.float32(20),
    "b": np.full(4, 300, np.float32),
    "v": noise(2, 3, 3, 3, seed=2) * np.float32(0.3),
    "shape": np.int64([0, 6, 36]),
}
HEAD = """[boxes] boxes = Conv(x, w, b)
    [scores] scores = Conv(x, v)
    [p] p = Sigmoid(scores)
    [joined] joined = Concat<axis = 1>(boxes, p)
    [flat] y = Reshape(joined, shape)"""


def test_detectors_keep_their_confidences(tmp_path: Path) -> None:
    """Issue 14233: boxes in pixels and confidences share a scale, at which all confidences are zero."""
    model = model_of(f"g (float[n,3,8,8] x) => (float[n,6,36] y) {{ {HEAD} }}", BOXES_AND_CONFIDENCES)
    x = noise(8, 3, 8, 8, seed=1)
    (expected,) = run(model, x=x)
    made = forms(model, x, tmp_path)
    theirs = documented(tmp_path / "float.onnx", tmp_path / "theirs.onnx", [{"x": x}])
    assert not run(onnx.load(theirs), x=x)[0][:, 4:].any()
    for given in made:
        assert all(decibels(expected[:, channel], given[:, channel]) > 30 for channel in range(6))
