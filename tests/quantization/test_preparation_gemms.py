"""`Gemm` without factors: the same outputs, and an int8 form that is near to them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxdistill.quantization.scheme import Scheme
from tests.quantization.graphs import Constants, model_of, operators, run, uniform
from tests.quantization.int8 import prepared_of, quantized_of

WEIGHT, BIAS = uniform(6, 8), uniform(8, seed=1, width=12.0)


def decibels(expected: np.ndarray, given: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).mean() / np.square(expected - given).mean()))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("attributes", "added", "nodes"),
    [
        ("beta = 1.0", BIAS, "Gemm"),
        ("beta = 3.0", BIAS, "Gemm"),
        ("beta = 3.0", BIAS.reshape(1, 8), "Gemm"),
        ("alpha = 0.5, beta = 0.25", BIAS, "Gemm"),
        ("alpha = 2.0, transB = 1", BIAS, "Gemm"),
        ("beta = 2.0", np.float32(3.0), "Gemm"),
        ("beta = 2.0", np.float32([[3.0]]), "Gemm"),
        ("beta = 2.0", uniform(16, 8, seed=2), "Gemm Mul Add"),
        ("beta = 1.0", uniform(16, 1, seed=2), "Gemm Add"),
    ],
)
def test_factors_go_into_constants(attributes: str, added: np.ndarray, nodes: str, per_channel: bool) -> None:
    constants: Constants = {"w": WEIGHT.T.copy() if "transB" in attributes else WEIGHT, "c": added}
    body = f"g (float[16, 6] x) => (float[16, 8] y) {{ [gemm] y = Gemm<{attributes}>(x, w, c) }}"
    x = uniform(16, 6, seed=3)
    (expected,) = run(model_of(body, constants), x=x)
    prepared = prepared_of(body, constants)
    assert operators(prepared) == operators_of(nodes)
    np.testing.assert_allclose(run(prepared, x=x)[0], expected, rtol=1e-5, atol=1e-5)
    quantized = quantized_of(prepared, x, Scheme("uint8", per_channel))
    assert decibels(expected, run(quantized, x=x)[0]) > 30


def operators_of(nodes: str) -> dict[str, int]:
    return dict.fromkeys(nodes.split(), 1)


def test_what_is_computed_is_added_behind() -> None:
    body = """g (float[n, 6] x) => (float[n, 8] y) {
        [relu] s = Relu(x)
        [first] c = MatMul(s, v)
        [gemm] y = Gemm<beta = 2.0>(x, w, c)
    }"""
    constants: Constants = {"w": WEIGHT, "v": uniform(6, 8, seed=4)}
    x = uniform(16, 6, seed=3)
    (expected,) = run(model_of(body, constants), x=x)
    prepared = prepared_of(body, constants)
    np.testing.assert_allclose(run(prepared, x=x)[0], expected, rtol=1e-5, atol=1e-5)
    assert decibels(expected, run(quantized_of(prepared, x), x=x)[0]) > 30


def test_constants_of_other_layers_stay() -> None:
    body = """g (float[n, 6] x) => (float[n, 8] y, float[n, 8] z) {
        [first] y = Gemm<alpha = 2.0, beta = 3.0>(x, w, c)
        [second] z = Gemm(x, w, c)
    }"""
    x = uniform(16, 6, seed=3)
    prepared = prepared_of(body, {"w": WEIGHT, "c": BIAS})
    scaled, plain = run(prepared, x=x)
    np.testing.assert_allclose(scaled, 2 * x @ WEIGHT + 3 * BIAS, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(plain, x @ WEIGHT + BIAS, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_channel", [True, False])
def test_transposed_convolutions_in_groups_are_no_traceback(per_channel: bool) -> None:
    body = "g (float[n, 8, 6, 6] x) => (float[n, 8, 8, 8] y) { [up] y = ConvTranspose<group = 2>(x, w, b) }"
    prepared = prepared_of(body, {"w": uniform(8, 4, 3, 3), "b": BIAS})
    x = uniform(4, 8, 6, 6, seed=5)
    quantized = quantized_of(prepared, x, Scheme("uint8", per_channel))
    (expected,) = run(prepared, x=x)
    np.testing.assert_allclose(run(quantized, x=x)[0], expected, atol=0.02 * np.abs(expected).max())
