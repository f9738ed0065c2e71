"""Shape inference, and what it falls back to."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from onnxdistill.quantization.shapes import infer_shapes
from tests.quantization.graphs import model_of


def shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    return {
        value.name: [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }


def test_computed_sizes_are_known() -> None:
    text = """m (float[n, 4, 6] x) => (float[n, p, q] y) {
        s = Shape (x)
        first = Gather (s, zero)
        more = Concat <axis = 0> (first, rest)
        a = Reshape (x, more)
        y = Relu (a)
    }"""
    constants = {"zero": np.array([0], np.int64), "rest": np.array([8, 3], np.int64)}
    assert shapes(infer_shapes(model_of(text, constants)))["a"] == ["n", 8, 3]


def test_where_symbolic_inference_gives_up_the_other_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A size that depends on values ends symbolic inference.
    text = """m (float[5] x) => (float[k] y, float[4, 5] z) {
        r = Relu (b)
        z = Mul (r, r)
        c = CumSum (x, axis)
        i = Cast <to = 7> (c)
        m = ReduceMax <keepdims = 1> (i)
        n = Mod (m, m)
        y = ConstantOfShape (n)
    }"""
    constants = {"b": np.zeros((4, 5), np.float32), "axis": np.array(0, np.int64)}
    model = model_of(text, constants)

    def gives_up(*_: object) -> None:
        raise TypeError("Argument of Integer should be of numeric type, got Min(150, k).")

    monkeypatch.setattr(SymbolicShapeInference, "infer_shapes", gives_up)
    assert shapes(infer_shapes(model))["r"] == [4, 5]
    assert capsys.readouterr().out == ""
