"""Ranges in the int8 file: exactly those that were found, by every method, and the accuracy that they leave."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.errors import ModelFileError
from onnxdistill.quantization.preparation import prepare
from onnxdistill.quantization.ranges import Method, Range
from onnxdistill.recipe import ExportTable, QuantizeTable
from onnxdistill.stages.export import export
from onnxdistill.stages.quantize import quantize
from onnxdistill.tasks.classification import Classification
from tests.fitted import FittedDigits, export_digits

METHODS: tuple[Method, ...] = get_args(Method)


class Small(nn.Module):
    """What the quantizer treats in its own way: Relu and Relu6 that it folds, a residual sum, a Softmax inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = nn.functional.relu6(x + 4 * self.second(x))
        return self.last(torch.softmax(self.third(x).mean((2, 3)), 1))


def samples(count: int = 16) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, 3, 12, 12), dtype=np.float32)


def export_to(network: nn.Module, path: Path) -> Path:
    export(network.eval(), torch.zeros(3, 3, 12, 12), path, ExportTable())
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_to(Small(), tmp_path_factory.mktemp("float") / "small.onnx")


def scales(path: Path) -> dict[str, tuple[np.float32, int, np.dtype[np.generic]]]:
    """Scale, zero point and its type of every activation, by the name of the tensor."""
    model = onnx.load(path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.input[0].removesuffix("_QuantizeLinear_Input"): (
            values[node.input[1]][()],
            int(values[node.input[2]]),
            values[node.input[2]].dtype,
        )
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def expected_scale(covered: Range, dtype: np.dtype[np.generic]) -> tuple[np.float32, int]:
    """As the ONNX operator defines them: what is real is scale * (integer - zero point)."""
    limits = np.iinfo(dtype)
    scale = (covered.high - covered.low) / 255
    return np.float32(scale), int(np.round(limits.min - covered.low / scale))


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("method", METHODS)
def test_scales_are_exactly_those_of_the_ranges(source: Path, tmp_path: Path, method: str, activations: str) -> None:
    table = QuantizeTable.model_validate({"ranges": method, "activations": activations})
    result = quantize(source, tmp_path / "int8.onnx", [{"input": samples()}], table)
    found = scales(tmp_path / "int8.onnx")
    assert len(found) >= 7
    assert found.keys() <= result.ranges.keys()
    for name, (scale, zero_point, dtype) in found.items():
        assert dtype == np.dtype(activations)
        assert (scale, zero_point) == expected_scale(result.ranges[name], dtype)
    assert Range(0.0, 1.0) in result.ranges.values()  # the Softmax
    assert not result.unseen
    low_ends = [zero_point - np.iinfo(dtype).min for _, zero_point, dtype in found.values()]
    assert low_ends.count(0) >= 3  # Relu, Relu6, Softmax: no level is spent below zero


def test_weights_and_minmax_scales_are_those_of_onnx_runtime(source: Path, tmp_path: Path) -> None:
    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"input": samples()}]

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return self.left.pop() if self.left else None

    result = quantize(source, tmp_path / "ours.onnx", [{"input": samples()}], QuantizeTable(activations="uint8"))
    onnx.save(prepare(onnx.load(source)), tmp_path / "prepared.onnx")
    quantize_static(
        str(tmp_path / "prepared.onnx"),
        str(tmp_path / "theirs.onnx"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=result.form.scheme.weight_bits == 7,
    )
    theirs, ours = scales(tmp_path / "theirs.onnx"), scales(tmp_path / "ours.onnx")
    assert theirs.keys() == ours.keys()
    for name, (scale, zero_point, _) in theirs.items():
        assert ours[name][0] == pytest.approx(scale, rel=1e-4)
        assert abs(ours[name][1] - zero_point) <= 1
    their_weights, our_weights = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if len(t.dims) in (2, 4)}
        for path in (tmp_path / "theirs.onnx", tmp_path / "ours.onnx")
    )
    assert len(our_weights) == 4
    for name, values in our_weights.items():
        assert values.dtype == np.int8
        np.testing.assert_array_equal(values, their_weights[name])


class Dead(nn.Module):
    """A Relu whose input is negative whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        with torch.no_grad():
            self.first.bias.fill_(-100.0)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_a_dead_relu_still_clips(tmp_path: Path, activations: str) -> None:
    source = export_to(Dead(), tmp_path / "dead.onnx")
    table = QuantizeTable.model_validate({"activations": activations})
    for method in METHODS:
        changed = table.model_copy(update={"ranges": method})
        quantize(source, tmp_path / "int8.onnx", [{"input": samples()}], changed)
        before, after = (
            open_session(path, SessionSettings()).run({"input": samples()})["output"]
            for path in (source, tmp_path / "int8.onnx")
        )
        np.testing.assert_allclose(after, before, atol=0.01 * np.abs(before).max())


def test_what_no_sample_shows_stays_in_float(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[n, 4] input) => (float[n, 4] shown, float[k, 4] never)
    <int64[1] start = {0}, int64[1] axis = {0}, float[4, 4] w = {1, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 0, 0, 0, 0, 1}>
    {
        shown = MatMul(input, w)
        sums = ReduceMax<keepdims = 0>(shown)
        above = Greater(shown, sums)
        places = NonZero(above)
        rows = Gather<axis = 0>(places, start)
        row = Squeeze(rows, axis)
        picked = Gather<axis = 0>(shown, row)
        never = MatMul(picked, w)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "float.onnx")
    inputs = np.random.default_rng(0).standard_normal((16, 4), dtype=np.float32)
    result = quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", [{"input": inputs}], QuantizeTable())
    assert set(result.unseen) == {"picked", "never"}
    assert scales(tmp_path / "int8.onnx").keys() == {"input", "shown"}
    outputs = open_session(tmp_path / "int8.onnx", SessionSettings()).run({"input": inputs})
    assert outputs["never"].shape == (0, 4)
    np.testing.assert_allclose(
        outputs["shown"], inputs @ np.float32([[1, 2, 0, 0], [0, 1, 0, 0], [0, 3, 1, 0], [0, 0, 0, 1]]), atol=0.1
    )


def test_calibration_samples_that_are_no_numbers_are_refused(source: Path, tmp_path: Path) -> None:
    wrong = samples()
    wrong[3, 1, 2, 2] = np.nan
    with pytest.raises(ModelFileError, match=r"'input' has values that are no number \(NaN\)"):
        quantize(source, tmp_path / "int8.onnx", [{"input": wrong}], QuantizeTable())


def accuracy_after(source: Path, task: Classification, method: str) -> tuple[float, float, float]:
    """Validation accuracy of the float file and of its int8 form in percent, and the share of images they agree on."""
    batches = ({task.input_name: batch.inputs.numpy()} for batch in task.calibration_batches(32))
    table = QuantizeTable.model_validate({"ranges": method})
    quantize(source, source.with_name("int8.onnx"), batches, table)
    runners = [open_session(path, SessionSettings()).run for path in (source, source.with_name("int8.onnx"))]
    before, after = (task.score(runner, "validation").value for runner in runners)
    images = {task.input_name: task.example_input(500).numpy()}
    chosen, chosen_after = (runner(images)[task.output_name].argmax(1) for runner in runners)
    return before, after, float((chosen == chosen_after).mean())


def test_digits_are_read_as_well_as_in_float(digits: Classification, tmp_path: Path) -> None:
    source = export_digits(FittedDigits(digits), digits, tmp_path / "float.onnx")
    for method in METHODS:
        before, after, agreement = accuracy_after(source, digits, method)
        assert before > 98
        assert after >= before - 0.5
        assert agreement >= 0.99


def test_outliers_ruin_the_range_of_all_values_and_not_that_of_entropy(digits: Classification, tmp_path: Path) -> None:
    source = export_digits(FittedDigits(digits, outlier=1000.0), digits, tmp_path / "float.onnx")
    before, after, agreement = accuracy_after(source, digits, "minmax")
    assert after < before - 10
    assert agreement < 0.9
    before, after, agreement = accuracy_after(source, digits, "entropy")
    assert after >= before - 0.5
    assert agreement >= 0.99
