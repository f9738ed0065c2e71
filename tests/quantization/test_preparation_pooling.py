"""Means over height and width: which are pooled, and that they stay what they are."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxdistill.quantization.pooling import pool_globally
from onnxdistill.quantization.preparation import prepare
from tests.quantization.graphs import model_of, operators, run, uniform

AXES = np.array([2, 3], np.int64)


def pooled(model: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    rewritten = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    return pool_globally(rewritten), ir.to_proto(rewritten)


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, 2], [-2, 3]])
@pytest.mark.parametrize("batch", [1, 3])
def test_means_over_height_and_width_are_pooled(axes: list[int], batch: int) -> None:
    model = model_of(
        "m (float[n, 4, 5, 6] x) => (float[n, 4, 1, 1] y) { y = ReduceMean <keepdims = 1> (x, axes) }",
        {"axes": np.array(axes, np.int64)},
    )
    count, after = pooled(model)
    assert count == 1
    assert operators(after) == {"GlobalAveragePool": 1}
    x = uniform(batch, 4, 5, 6)
    np.testing.assert_allclose(run(after, x=x)[0], run(model, x=x)[0], rtol=1e-5, atol=1e-6)


def test_axes_that_are_an_attribute_are_read() -> None:
    text = "m (float[n, 4, 5, 6] x) => (float[n, 4, 1, 1] y) { y = ReduceMean <axes = [2, 3]> (x) }"
    model = model_of(text, opset=13)
    count, after = pooled(model)
    assert count == 1
    x = uniform(2, 4, 5, 6)
    np.testing.assert_allclose(run(after, x=x)[0], run(model, x=x)[0], rtol=1e-5, atol=1e-6)


def test_dimensions_that_are_not_kept_are_left_out_again() -> None:
    text = """m (float[n, 4, h, w] x) => (float[n, 4] y) {
        a = Relu (x)
        y = ReduceMean <keepdims = 0> (a, axes)
    }"""
    model = model_of(text, {"axes": AXES})
    count, after = pooled(model)
    assert count == 1
    assert operators(after) == {"Relu": 1, "GlobalAveragePool": 1, "Reshape": 1}
    x = uniform(3, 4, 5, 7)
    np.testing.assert_allclose(run(after, x=x)[0], run(model, x=x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "m (float[n, 4, 5, 6] x) => (float[n, 1, 5, 6] y) { y = ReduceMean (x, channels) }",
        "m (float[n, 4, 5, 6] x) => (float[n, 4, 1, 6] y) { y = ReduceMean (x, height) }",
        "m (float[n, 4, 5, 6] x) => (float[n, 1, 1, 1] y) { y = ReduceMean (x, most) }",
        "m (float[n, 4, 5, 6] x) => (float[1, 1, 1, 1] y) { y = ReduceMean (x) }",
        "m (float[n, 4, 5, 6] x) => (float[n, 4, 1, 1] y) { y = ReduceMax (x, both) }",
        "m (float[n, 4, 5, 6, 7] x) => (float[n, 4, 1, 1, 7] y) { y = ReduceMean (x, both) }",
        "m (float[n, 4, 5, 6, 7] x) => (float[n, 4, 5, 1, 1] y) { y = ReduceMean (x, last) }",
        "m (float[n, 4, 5] x) => (float[n, 1, 1] y) { y = ReduceMean (x, last) }",
        "m (int32[n, 4, 5, 6] x) => (int32[n, 4, 1, 1] y) { y = ReduceMean (x, both) }",
        "m (float[n, 4, 5, 6] x, int64[2] axes) => (float y) { y = ReduceMean (x, axes) }",
    ],
)
def test_other_means_stay(text: str) -> None:
    constants = {
        "channels": np.array([1], np.int64),
        "height": np.array([2], np.int64),
        "most": np.array([1, 2, 3], np.int64),
        "both": AXES,
        "last": np.array([-2, -1], np.int64),
    }
    model = model_of(text, {name: array for name, array in constants.items() if name in text})
    count, after = pooled(model)
    assert count == 0
    assert operators(after) == operators(model)


def test_of_an_unknown_rank_stays() -> None:
    model = model_of(
        "m (float x, int64[4] s) => (float y) { a = Reshape (x, s)\n y = ReduceMean (a, axes) }", {"axes": AXES}
    )
    del model.graph.value_info[:]
    rewritten = ir.from_proto(model)
    assert pool_globally(rewritten) == 0


def test_preparation_pools() -> None:
    text = "m (float[n, 4, 5, 6] x) => (float[n, 4, 1, 1] y) { y = ReduceMean (x, axes) }"
    assert operators(prepare(model_of(text, {"axes": AXES}))) == {"GlobalAveragePool": 1}
