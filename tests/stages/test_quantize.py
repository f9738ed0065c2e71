"""Static int8: what is in the file, and that the runtime fuses it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.networks import build_network
from onnxdistill.recipe import ExportTable, QuantizeTable
from onnxdistill.stages import quantize as module
from onnxdistill.stages.export import export
from onnxdistill.stages.quantize import quantize
from onnxdistill.tasks.base import Feeds


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "net.onnx"
    export(build_network("cifar-resnet20", 10, 0), inputs(3), path, ExportTable(), metadata={"classes": "ten"})
    return path


def inputs(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def feeds() -> list[Feeds]:
    return [{"input": inputs(8).numpy()}, {"input": -inputs(5).numpy()}]


def zero_point_types(path: Path) -> Counter[int]:
    model = onnx.load(path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return Counter(types[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear")


@pytest.mark.parametrize("architecture", ["x86_64", "AMD64"])
def test_activations_are_unsigned_on_x86(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: architecture)
    result = quantize(source, tmp_path / "int8.onnx", feeds(), QuantizeTable())
    assert result.activations == "uint8"
    assert set(zero_point_types(result.path)) == {TensorProto.UINT8}


def test_activations_are_signed_elsewhere_or_on_demand(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = quantize(source, tmp_path / "a.onnx", feeds(), QuantizeTable(activations="int8"))
    assert set(zero_point_types(result.path)) == {TensorProto.INT8}
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    assert quantize(source, tmp_path / "b.onnx", feeds(), QuantizeTable()).activations == "int8"


def test_outputs_stay_near_and_every_convolution_is_quantized(source: Path, tmp_path: Path) -> None:
    result = quantize(source, tmp_path / "int8.onnx", feeds(), QuantizeTable())
    before = open_session(source, SessionSettings()).run({"input": inputs(8).numpy()})["output"]
    after = open_session(result.path, SessionSettings()).run({"input": inputs(8).numpy()})["output"]
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99
    model = onnx.load(result.path)
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert set(node.input[:2]) <= dequantized
    assert result.path.stat().st_size < 0.6 * source.stat().st_size
    assert {entry.key: entry.value for entry in model.metadata_props}["classes"] == "ten"


def test_weights_keep_seven_bits_where_sums_saturate(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutVnni:
        int8_features = ("AVX2",)

    monkeypatch.setattr(module, "read_processor", WithoutVnni)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    result = quantize(source, tmp_path / "int8.onnx", feeds(), QuantizeTable())
    assert result.reduced_range
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer if len(t.dims) == 4]
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in weights)
    assert largest <= 64
