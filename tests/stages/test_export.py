"""Exported files: one file, any batch, checked, and equal to the network."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from onnxdistill.device.session import SessionSettings, open_session
from onnxdistill.errors import NetworkError, ParityError
from onnxdistill.networks import build_network
from onnxdistill.onnxfile import SCOPES
from onnxdistill.recipe import ExportTable
from onnxdistill.stages.export import export


def example(batch: int = 3) -> Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_one_file_with_a_dynamic_batch_names_and_metadata(tmp_path: Path) -> None:
    network = build_network("digits-resnet", 10, 0)
    path = tmp_path / "net.onnx"
    result = export(
        network, example(), path, ExportTable(), input_name="image", output_name="logits", metadata={"task": "test"}
    )
    assert result.relative_difference < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props}["task"] == "test"
    assert model.opset_import[0].version == 20
    session = open_session(path, SessionSettings())
    for batch in (1, 2, 7):
        inputs = example(batch)
        with torch.inference_mode():
            expected = network(inputs).numpy()
        assert np.allclose(session.run({"image": inputs.numpy()})["logits"], expected, atol=1e-4)


def test_the_exported_network_goes_on_as_it_was(tmp_path: Path) -> None:
    network = build_network("digits-resnet", 10, 0).train()
    export(network.eval(), example(), tmp_path / "net.onnx", ExportTable())
    network.train()(example()).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_what_cannot_be_exported_is_explained(tmp_path: Path) -> None:
    class DataDependent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(NetworkError, match=r"DataDependent cannot be exported to ONNX"):
        export(DataDependent().eval(), example(), tmp_path / "net.onnx", ExportTable())


def test_a_network_that_works_in_place_is_compared_on_what_it_got(tmp_path: Path) -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            return x.flatten(1)

    inputs = example()
    before = inputs.clone()
    export(InPlace().eval(), inputs, tmp_path / "net.onnx", ExportTable())
    assert torch.equal(inputs, before)


def test_weights_that_no_file_holds_are_refused_before_anything_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxdistill.stages.export.LARGEST_WEIGHTS_BYTES", 1000)
    with pytest.raises(NetworkError, match=r"DigitsResNet has weights of 0\.\d GB, and an ONNX file holds less than 2"):
        export(build_network("digits-resnet", 10, 0), example(), tmp_path / "net.onnx", ExportTable())
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    class Moody(nn.Module):
        """Differs between tracing and running."""

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) * (1.0 if torch.compiler.is_exporting() else 2.0)

    with pytest.raises(ParityError, match=r"outputs differ by 0\.5"):
        export(Moody().eval(), example(), tmp_path / "net.onnx", ExportTable())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    network = build_network("digits-resnet", 10, 0)
    with torch.no_grad():
        network.linear.bias[3] = bad  # type: ignore[union-attr, index, operator]  # a linear layer
    with pytest.raises(ParityError, match=r"DigitsResNet itself gives NaN or infinity, so that net\.onnx"):
        export(network, example(), tmp_path / "net.onnx", ExportTable())


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_file_that_alone_gives_nan_is_refused(tmp_path: Path) -> None:
    class Fragile(nn.Module):
        """Takes the root of a negative number only in the file."""

        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1) - (1000.0 if torch.compiler.is_exporting() else -1000.0)).sqrt()

    with pytest.raises(ParityError, match="outputs differ by nan"):
        export(Fragile().eval(), example(), tmp_path / "net.onnx", ExportTable())


def test_a_file_does_not_tell_where_the_source_code_lies(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(build_network("digits-resnet", 10, 0), example(), path, ExportTable())
    content = path.read_bytes()
    for trace in (str(Path(torch.__file__).parent).encode(), b"stack_trace", b'.py"', b"fx_node"):
        assert trace not in content
    scopes = [{entry.key: entry.value for entry in node.metadata_props} for node in onnx.load(path).graph.node]
    modules = dict(build_network("digits-resnet", 10, 0).named_modules())
    inner = [name for one in scopes for name in ast.literal_eval(one.get(SCOPES, "[]")) if name]
    assert set(inner) & modules.keys()
