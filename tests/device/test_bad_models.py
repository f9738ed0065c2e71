"""What is no model, or not one that runs here: one clear error each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxdistill.device.bench import bench
from onnxdistill.errors import ModelFileError, OnnxDistillError, UsageError


def save(path: Path, nodes: list[onnx.NodeProto], shape: list[int | str], **graph: object) -> Path:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        **graph,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=8), path)
    return path


def refused(path: Path, **how: object) -> str:
    with pytest.raises(OnnxDistillError) as caught:
        bench([path], runs=1, **how)  # type: ignore[arg-type]  # one of the options
    assert isinstance(caught.value, ModelFileError | UsageError)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_missing_empty_and_a_folder(tmp_path: Path) -> None:
    assert "none.onnx" in refused(tmp_path / "none.onnx")
    (tmp_path / "empty.onnx").touch()
    assert "empty" in refused(tmp_path / "empty.onnx")
    assert "folder" in refused(tmp_path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated(make_model: Callable[..., Path], share: float) -> None:
    path = make_model(width=64)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert path.name in refused(path)


@pytest.mark.parametrize("content", [b"hello\n", bytes(1000), b"\xff" * 1000, b"PK\x03\x04rest"])
def test_other_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    assert "text.onnx" in refused(path)


def test_external_data_that_is_missing_or_too_short(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], ["N", 64], initializer=[weight])
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert bench([path], runs=1).cases[0].size_bytes > 64 * 64 * 4
    (tmp_path / "w.bin").write_bytes(b"short")
    assert "m.onnx" in refused(path)
    (tmp_path / "w.bin").unlink()
    assert "w.bin" in refused(path)


def test_an_operator_that_nobody_knows(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Swirl", ["x"], ["y"], domain="ours")], ["N", 4])
    assert "Swirl" in refused(path)


def test_a_shape_beyond_all_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], ["N", 2**40])
    assert "GB" in refused(path)


def test_a_model_that_asks_for_more_memory_while_it_runs(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([2**40, 4], np.int64), "s")
    path = save(tmp_path / "m.onnx", [helper.make_node("Expand", ["x", "s"], ["y"])], [1, 4], initializer=[shape])
    assert "m.onnx" in refused(path)
