"""Hard sigmoids behind layers: which are folded, and that they stay what they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxdistill.quantization.gates import fold_hard_sigmoids
from tests.quantization.graphs import model_of, operators, run, uniform

CONV = {"w": uniform(5, 4, 1, 1, seed=1, width=2), "b": uniform(5, seed=2)}


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("attributes", ["<alpha = 0.16666667, beta = 0.5>", "<alpha = 0.3, beta = 0.1>", ""])
def test_behind_a_convolution_it_becomes_bounds(bias: str, attributes: str) -> None:
    text = f"""m (float[n, 4, 2, 2] x) => (float[n, 5, 2, 2] y) {{
        g = Conv (x, w{bias})
        y = HardSigmoid {attributes} (g)
    }}"""
    model = model_of(text, {name: array for name, array in CONV.items() if name == "w" or bias})
    rewritten = ir.from_proto(model)
    assert fold_hard_sigmoids(rewritten) == 1
    after = ir.to_proto(rewritten)
    assert operators(after) == {"Conv": 1, "Clip": 1}
    x = uniform(3, 4, 2, 2)
    expected = run(model, x=x)[0]
    # All three pieces of the function are met.
    assert expected.min() == 0
    assert expected.max() == 1
    assert np.any((expected > 0) & (expected < 1))
    np.testing.assert_allclose(run(after, x=x)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["", ", b"])
def test_behind_a_gemm_it_becomes_bounds(transposed: int, bias: str) -> None:
    text = f"""m (float[n, 4] x) => (float[n, 5] y) {{
        g = Gemm <transB = {transposed}> (x, w{bias})
        y = HardSigmoid (g)
    }}"""
    constants = {"w": uniform(*((5, 4) if transposed else (4, 5)), seed=1)} | (
        {"b": uniform(5, seed=2)} if bias else {}
    )
    model = model_of(text, constants)
    rewritten = ir.from_proto(model)
    assert fold_hard_sigmoids(rewritten) == 1
    x = uniform(3, 4)
    np.testing.assert_allclose(run(ir.to_proto(rewritten), x=x)[0], run(model, x=x)[0], rtol=1e-5, atol=1e-6)


def test_a_weight_that_another_layer_has_too_stays_for_it() -> None:
    text = """m (float[n, 4, 2, 2] x) => (float[n, 5, 2, 2] y, float[n, 5, 2, 2] z) {
        g = Conv (x, w, b)
        y = HardSigmoid (g)
        z = Conv (x, w, b)
    }"""
    model = model_of(text, CONV)
    rewritten = ir.from_proto(model)
    assert fold_hard_sigmoids(rewritten) == 1
    x = uniform(2, 4, 2, 2)
    for actual, expected in zip(run(ir.to_proto(rewritten), x=x), run(model, x=x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_new_names_do_not_meet_old_ones() -> None:
    text = """m (float[n, 4, 2, 2] x) => (float[n, 5, 2, 2] y_weight, float[n, 5, 2, 2] y_least) {
        g = Conv (x, w, b)
        y = HardSigmoid (g)
        y_weight = Relu (y)
        y_least = Neg (y)
    }"""
    model = model_of(text, CONV)
    rewritten = ir.from_proto(model)
    assert fold_hard_sigmoids(rewritten) == 1
    x = uniform(2, 4, 2, 2)
    for actual, expected in zip(run(ir.to_proto(rewritten), x=x), run(model, x=x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "g = Relu (x)\n y = HardSigmoid (g)",  # no layer
        "g = Conv (x, w)\n a = HardSigmoid (g)\n y = Mul (g, a)",  # hard-swish: the layer's output is read again
        "g = Conv (x, w)\n y = Sigmoid (g)",
        "v = Relu (w)\n g = Conv (x, v)\n y = HardSigmoid (g)",  # weights that are computed
    ],
)
def test_others_stay(body: str) -> None:
    text = f"m (float[n, 4, 2, 2] x) => (float[n, c, 2, 2] y) {{ {body} }}"
    model = model_of(text, {"w": CONV["w"]} if "w" in body else {})
    rewritten = ir.from_proto(model)
    assert fold_hard_sigmoids(rewritten) == 0
    assert operators(ir.to_proto(rewritten)) == operators(model)


def test_a_layer_whose_output_the_model_returns_stays() -> None:
    text = """m (float[n, 4, 2, 2] x) => (float[n, 5, 2, 2] g, float[n, 5, 2, 2] y) {
        g = Conv (x, w, b)
        y = HardSigmoid (g)
    }"""
    assert fold_hard_sigmoids(ir.from_proto(model_of(text, CONV))) == 0


def test_a_gemm_with_factors_of_its_own_stays() -> None:
    text = "m (float[n, 4] x) => (float[n, 5] y) { g = Gemm <alpha = 2.0> (x, w)\n y = HardSigmoid (g) }"
    assert fold_hard_sigmoids(ir.from_proto(model_of(text, {"w": uniform(4, 5)}))) == 0
