"""Files for other machines: what is in them, and that they compute what the float model does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.quantization.scheme import Scheme
from onnxdistill.quantization.targets import write_for
from onnxdistill.quantization.workshop import Form, Workshop
from onnxdistill.recipe import ExportTable, Target
from onnxdistill.stages.export import export


class Small(nn.Module):
    """Two convolutions, a hard-swish and a classifier; the last convolution has negative outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.first(x))
        return self.last(self.second(x).mean((2, 3)))


def samples() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((16, 3, 12, 12), dtype=np.float32)


def calibration() -> Iterator[dict[str, NDArray[np.float32]]]:
    yield {"input": samples()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "small.onnx"
    export(Small().eval(), torch.zeros(3, 3, 12, 12), path, ExportTable(), metadata={"classes": "four"})
    return path


def written(target: Target, source: Path, path: Path) -> tuple[dict[str, NDArray[np.generic]], onnx.ModelProto]:
    """Initializers by name, and the model."""
    write_for(target, Workshop(source, calibration), Form(Scheme("uint8"), corrected=True), path)
    model = onnx.load(path)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}, model


def zero_points(arrays: dict[str, NDArray[np.generic]], model: onnx.ModelProto) -> list[NDArray[np.generic]]:
    return [arrays[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def weights(arrays: dict[str, NDArray[np.generic]]) -> list[NDArray[np.int8]]:
    return [array for array in arrays.values() if array.ndim > 1 and array.dtype == np.int8]


@pytest.mark.parametrize("target", get_args(Target))
def test_outputs_are_near_those_of_the_float_model(source: Path, tmp_path: Path, target: Target) -> None:
    _, model = written(target, source, tmp_path / "made.onnx")
    expected, given = (
        open_session(path, SessionSettings()).run({"input": samples()})["output"]
        for path in (source, tmp_path / "made.onnx")
    )
    np.testing.assert_allclose(given, expected, atol=0.05 * np.abs(expected).max())
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert {entry.key: entry.value for entry in model.metadata_props}["classes"] == "four"


def test_x86_without_vnni_gets_seven_bits(source: Path, tmp_path: Path) -> None:
    narrow, _ = written("x86", source, tmp_path / "narrow.onnx")
    wide, model = written("x86-vnni", source, tmp_path / "wide.onnx")
    assert max(np.abs(array.astype(int)).max() for array in weights(narrow)) <= 64
    assert max(np.abs(array.astype(int)).max() for array in weights(wide)) == 127
    assert {array.dtype for array in zero_points(wide, model)} == {np.dtype(np.uint8)}


def test_arm_gets_signed_activations(source: Path, tmp_path: Path) -> None:
    arrays, model = written("arm64", source, tmp_path / "made.onnx")
    assert {array.dtype for array in zero_points(arrays, model)} == {np.dtype(np.int8)}


def test_tensorrt_gets_zero_as_zero_and_float_biases(source: Path, tmp_path: Path) -> None:
    arrays, model = written("tensorrt", source, tmp_path / "made.onnx")
    points = zero_points(arrays, model)
    assert points
    assert all(array.dtype == np.int8 and not array.any() for array in points)
    assert not any(array.dtype == np.int32 for array in arrays.values())
    assert len(weights(arrays)) == 3


def test_tensorrt_gets_layers_and_their_activations_in_one(tmp_path: Path) -> None:
    """Nothing is rounded between a convolution and the Relu that alone reads it."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    source = tmp_path / "float.onnx"
    export(network.eval(), torch.zeros(3, 3, 12, 12), source, ExportTable())
    _, model = written("tensorrt", source, tmp_path / "made.onnx")
    made = {name: node for node in model.graph.node for name in node.output}
    (relu,) = (node for node in model.graph.node if node.op_type == "Relu")
    assert made[relu.input[0]].op_type == "Conv"
    rounded = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert relu.output[0] in rounded
    assert len(rounded) == 3  # the input, between the convolutions, the output


def test_what_int8_hurts_stays_in_float_on_every_machine(source: Path, tmp_path: Path) -> None:
    workshop = Workshop(source, calibration)
    (first, *_) = (node.name for node in workshop.prepared.graph.node if node.op_type == "Conv")
    form = Form(Scheme("uint8", float_nodes=frozenset({first})), restored=frozenset({first}))
    for target in ("x86", "arm64", "tensorrt"):
        write_for(target, workshop, form, tmp_path / f"{target}.onnx")
        model = onnx.load(tmp_path / f"{target}.onnx")
        made = {name: node.op_type for node in model.graph.node for name in node.output}
        (layer,) = (node for node in model.graph.node if node.name == first)
        assert layer.input[1] not in made, target


def test_cuda_gets_half_precision(source: Path, tmp_path: Path) -> None:
    arrays, model = written("cuda", source, tmp_path / "made.onnx")
    assert {array.dtype for array in arrays.values() if array.ndim > 1} == {np.dtype(np.float16)}
    assert "QuantizeLinear" not in {node.op_type for node in model.graph.node}
    assert (tmp_path / "made.onnx").stat().st_size < source.stat().st_size
