"""Static int8: what is in the file, and that the runtime fuses it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from onnxdistill.device.host import read_host
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.networks import build_network
from onnxdistill.quantization.ladder import Loss
from onnxdistill.quantization.scheme import saturates
from onnxdistill.quantization.workshop import Workshop
from onnxdistill.recipe import ExportTable, QuantizeTable
from onnxdistill.stages.export import export
from onnxdistill.stages.quantize import QuantizeResult, quantize, quantize_measured
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
def test_activations_are_unsigned_on_x86(source: Path, tmp_path: Path, architecture: str) -> None:
    host = replace(read_host(), architecture=architecture)
    result = quantize(source, tmp_path / "int8.onnx", feeds(), QuantizeTable(), host)
    assert result.form.scheme.activations == "uint8"
    assert set(zero_point_types(tmp_path / "int8.onnx")) == {TensorProto.UINT8}


def test_activations_are_signed_elsewhere_or_on_demand(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "a.onnx", feeds(), QuantizeTable(activations="int8"))
    assert set(zero_point_types(tmp_path / "a.onnx")) == {TensorProto.INT8}
    host = replace(read_host(), architecture="aarch64", int8_features=("DOTPROD",))
    scheme = quantize(source, tmp_path / "b.onnx", feeds(), QuantizeTable(), host).form.scheme
    # Accuracies are measured here, and have to be those of the other machine.
    assert (scheme.activations, scheme.weight_bits) == ("int8", 7 if saturates(read_host()) else 8)


def test_outputs_stay_near_and_every_convolution_is_quantized(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "int8.onnx", feeds(), QuantizeTable())
    before = open_session(source, SessionSettings()).run({"input": inputs(8).numpy()})["output"]
    after = open_session(tmp_path / "int8.onnx", SessionSettings()).run({"input": inputs(8).numpy()})["output"]
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99
    model = onnx.load(tmp_path / "int8.onnx")
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert set(node.input[:2]) <= dequantized
    assert (tmp_path / "int8.onnx").stat().st_size < 0.6 * source.stat().st_size
    assert {entry.key: entry.value for entry in model.metadata_props}["classes"] == "ten"


def test_weights_keep_seven_bits_where_sums_saturate(source: Path, tmp_path: Path) -> None:
    host = replace(read_host(), architecture="x86_64", int8_features=("AVX2",))
    result = quantize(source, tmp_path / "int8.onnx", feeds(), QuantizeTable(), host)
    assert result.form.scheme.weight_bits == 7
    model = onnx.load(tmp_path / "int8.onnx")
    weights = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 4]
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in weights)
    assert largest <= 64


class Scripted:
    """A judge that knows its answers: speed-ups by scheme, and losses by their file's place in the order."""

    limit = 0.5

    def __init__(self, speedups: list[tuple[float, float, float]], losses: list[float] | None = None) -> None:
        self._speedups = iter(speedups)
        self.measurable = losses is not None
        self._losses = iter(losses or ())

    def loss(self, path: Path) -> Loss:
        assert path.is_file()
        return Loss(next(self._losses), 0.0)

    def speedup(self, path: Path) -> Estimate:
        assert path.is_file()
        return Estimate(*next(self._speedups))

    def refusal(self, loss: Loss) -> str:
        return "too much" if loss.points > self.limit else ""

    def may_be_chance(self, loss: Loss) -> bool:
        return False


SAME, SLOW, FAST, FASTER = (1.0, 0.9, 1.1), (0.7, 0.6, 0.8), (1.5, 1.4, 1.6), (2.0, 1.9, 2.1)


def measured(source: Path, folder: Path, judge: Scripted) -> QuantizeResult:
    # Where two schemes come into question for a ResNet: unsigned activations and signed ones.
    host = replace(read_host(), architecture="x86_64")
    return quantize_measured(Workshop(source, feeds, host), folder / "int8.onnx", QuantizeTable(), judge)


def test_the_usual_scheme_ships_unless_another_is_clearly_faster(source: Path, tmp_path: Path) -> None:
    result = measured(source, tmp_path, Scripted([FAST, (1.55, 1.45, 1.65)]))
    assert [one.speedup.value for one in result.variants] == [1.5, 1.55]
    assert set(zero_point_types(result.path)) == {TensorProto.UINT8}
    result = measured(source, tmp_path, Scripted([FAST, FASTER]))
    assert set(zero_point_types(result.path)) == {TensorProto.INT8}
    assert (result.refusal, result.rungs, result.loss) == ("", (), None)


def test_what_is_not_faster_does_not_ship(source: Path, tmp_path: Path) -> None:
    result = measured(source, tmp_path, Scripted([SAME, SLOW], losses=[]))
    assert "int8 is 1.00× as fast" in result.refusal
    assert result.path.is_file()
    # The first one isn't faster, and so isn't looked at again.
    result = measured(source, tmp_path, Scripted([SAME, FAST], losses=[0.0]))
    assert not result.refusal
    assert result.form.scheme.activations == "int8"


def test_the_ladder_ends_where_little_enough_is_lost(source: Path, tmp_path: Path) -> None:
    result = measured(source, tmp_path, Scripted([FAST, SLOW], losses=[3.0, 2.0, 0.4]))
    assert [rung.kept for rung in result.rungs] == [True, True, True]
    assert [rung.name for rung in result.rungs] == ["as it is", "ranges by percentile", "ranges by entropy"]
    assert result.loss == Loss(0.4, 0.0)
    assert not result.refusal


def test_a_judge_has_the_last_word(source: Path, tmp_path: Path) -> None:
    class Strict(Scripted):
        def refusal(self, loss: Loss) -> str:
            return f"{loss.points} is too much"

    workshop = Workshop(source, feeds)
    result = quantize_measured(
        workshop, tmp_path / "int8.onnx", QuantizeTable(activations="uint8"), Strict([FAST], [0.25])
    )
    assert result.refusal == "0.25 is too much"
