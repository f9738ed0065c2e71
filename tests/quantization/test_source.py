"""Float ONNX files as people bring them: which can be quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxdistill.errors import ModelFileError
from onnxdistill.quantization.source import take_source
from tests.onnxfiles import classifier, normal, saved
from tests.quantization.graphs import run


def test_a_file_is_copied_as_it_is_and_counted(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", mean="[0, 0, 0]")
    source = take_source(path, tmp_path / "copy.onnx")
    assert source.path.read_bytes() == path.read_bytes()
    assert source.parameters == 16 * 27 + 16 * 144 + 5 * 16
    assert source.metadata == {"mean": "[0, 0, 0]"}


def test_weights_beside_the_file_come_along(tmp_path: Path) -> None:
    whole = classifier(tmp_path / "whole.onnx")
    (tmp_path / "parts").mkdir()
    path = tmp_path / "parts" / "model.onnx"
    onnx.save_model(onnx.load(whole), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    source = take_source(path, tmp_path / "copy.onnx")
    (tmp_path / "parts" / "weights.bin").unlink()
    x = normal(2, 3, 8, 8)
    assert np.array_equal(run(onnx.load(source.path), image=x)[0], run(onnx.load(whole), image=x)[0])
    assert source.parameters == take_source(whole, tmp_path / "again.onnx").parameters


@pytest.mark.parametrize(
    ("text", "constants", "part"),
    [
        (
            "g (float[N,4] x) => (float[N,4] y) { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }",
            {"s": np.float32(0.1), "z": np.uint8(0)},
            "is quantized already: it has 2 nodes such as QuantizeLinear",
        ),
        (
            "g (uint8[N,4] x) => (int32[N,3] y) { y = MatMulInteger (x, w) }",
            {"w": np.ones((4, 3), np.uint8)},
            "is quantized already: it has 1 nodes such as MatMulInteger",
        ),
        (
            "g (float16[N,4] x) => (float16[N,3] y) { y = MatMul (x, w) }",
            {"w": np.ones((4, 3), np.float16)},
            "has weights of float16, and int8 is made of float32",
        ),
        ("g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }", {}, "no float weights to quantize"),
        ("g (float[N,4] x, float[4,3] w) => (float[N,3] y) { y = MatMul (x, w) }", {}, "no float weights to quantize"),
        (
            "g (float[N,4] x) => (float[N,4] y) { y = Mul (x, w) }",
            {"w": np.ones((1, 4), np.float32)},
            "no float weights to quantize",
        ),
    ],
)
def test_what_cannot_be_quantized(tmp_path: Path, text: str, constants: dict[str, object], part: str) -> None:
    path = saved(tmp_path / "model.onnx", text, constants)
    with pytest.raises(ModelFileError, match=part):
        take_source(path, tmp_path / "copy.onnx")
    assert not (tmp_path / "copy.onnx").exists()


def test_weights_may_be_nodes_or_lie_in_branches(tmp_path: Path) -> None:
    node = saved(
        tmp_path / "node.onnx",
        "g (float[N,2] x) => (float[N,1] y) { w = Constant <value = float[2,1] {1.0, 2.0}> () y = MatMul (x, w) }",
    )
    take_source(node, tmp_path / "a.onnx")
    branch = saved(
        tmp_path / "branch.onnx",
        """g (float[N,2] x, bool c) => (float[N,2] y) {
            y = If (c) <
                then_branch = t () => (float[N,2] a) { a = MatMul (x, w) },
                else_branch = e () => (float[N,2] b) { b = Relu (x) }
            >
        }""",
        {"w": np.ones((2, 2), np.float32)},
    )
    take_source(branch, tmp_path / "b.onnx")


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="There is no file"):
        take_source(tmp_path / "none.onnx", tmp_path / "copy.onnx")
    (tmp_path / "other.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ModelFileError, match=r"other\.onnx is not in the format of ONNX files"):
        take_source(tmp_path / "other.onnx", tmp_path / "copy.onnx")
