"""Hard-swish: every spelling becomes one, and a quantized one is computed in integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxdistill.quantization.hardswish import multiply_hard_swishes_in_integers, unify_hard_swishes
from onnxdistill.quantization.preparation import finish
from tests.quantization.graphs import Constants, model_of, operators, run, uniform

NUMBERS = {"zero": np.float32(0), "three": np.float32(3), "six": np.float32(6), "sixth": np.float32(1 / 6)}
SWISHES = {
    "operator": "y = HardSwish (x)",
    "divided last": "a = Add (x, three)\n c = Clip (a, zero, six)\n p = Mul (x, c)\n y = Div (p, six)",
    "divided first": "a = Add (three, x)\n c = Clip (a, zero, six)\n d = Div (c, six)\n y = Mul (d, x)",
    "multiplied": "a = Add (x, three)\n c = Clip (a, zero, six)\n p = Mul (c, x)\n y = Mul (sixth, p)",
}
OTHERS = {
    "another slope": "a = Add (x, three)\n c = Clip (a, zero, three)\n p = Mul (x, c)\n y = Div (p, six)",
    "another offset": "a = Add (x, sixth)\n c = Clip (a, zero, six)\n p = Mul (x, c)\n y = Div (p, six)",
    "another divisor": "a = Add (x, three)\n c = Clip (a, zero, six)\n p = Mul (x, c)\n y = Div (p, three)",
    "open above": "a = Add (x, three)\n c = Clip (a, zero)\n p = Mul (x, c)\n y = Div (p, six)",
    "of another": "a = Add (x, three)\n c = Clip (a, zero, six)\n r = Neg (x)\n p = Mul (r, c)\n y = Div (p, six)",
    "a division only": "y = Div (x, six)",
}


def spelled(body: str, outputs: str = "float[n, 7] y") -> onnx.ModelProto:
    return model_of(f"m (float[n, 7] x) => ({outputs}) {{ {body} }}", NUMBERS)


@pytest.mark.parametrize("body", SWISHES.values(), ids=SWISHES.keys())
def test_every_spelling_becomes_one(body: str) -> None:
    model = spelled(body)
    rewritten = ir.from_proto(model)
    assert unify_hard_swishes(rewritten) == 1
    after = finish(ir.to_proto(rewritten))
    assert operators(after) == {"HardSigmoid": 1, "Mul": 1}
    x = uniform(50, 7, width=8)
    np.testing.assert_allclose(run(after, x=x)[0], run(model, x=x)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(after, x=x)[0], hard_swish(x), rtol=1e-5, atol=1e-6)


def test_a_hard_sigmoid_that_is_spelled_out_becomes_one() -> None:
    model = spelled("a = Add (x, three)\n c = Clip (a, zero, six)\n y = Div (c, six)")
    rewritten = ir.from_proto(model)
    assert unify_hard_swishes(rewritten) == 1
    after = finish(ir.to_proto(rewritten))
    assert operators(after) == {"HardSigmoid": 1}
    x = uniform(50, 7, width=8)
    np.testing.assert_allclose(run(after, x=x)[0], run(model, x=x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS.keys())
def test_what_only_looks_like_it_stays(body: str) -> None:
    model = spelled(body)
    rewritten = ir.from_proto(model)
    assert unify_hard_swishes(rewritten) == 0
    assert operators(ir.to_proto(rewritten)) == operators(model)


def test_a_product_that_is_read_again_stays() -> None:
    body = "a = Add (x, three)\n c = Clip (a, zero, six)\n p = Mul (x, c)\n y = Div (p, six)"
    model = spelled(body, "float[n, 7] y, float[n, 7] p")
    assert unify_hard_swishes(ir.from_proto(model)) == 0


def hard_swish(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x / 6 + 0.5, 0, 1)


QUANTIZED = """m (float[n, 6] x) => (float[n, 6] y) {
    s = Add (x, nothing)
    q = QuantizeLinear (s, scale, zero)
    d = DequantizeLinear (q, scale, zero)
    h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (d)
    hq = QuantizeLinear (h, gate_scale, gate_zero)
    hd = DequantizeLinear (hq, gate_scale, gate_zero)
    m = Mul (d, hd)
    mq = QuantizeLinear (m, out_scale, out_zero)
    y = DequantizeLinear (mq, out_scale, out_zero)
}"""


def parameters(low: float, high: float, dtype: type = np.uint8, top: float = 8.0) -> Constants:
    """Scales and zero points of a range of x, and of gate and output."""
    lowest = np.iinfo(dtype).min
    scale, out_scale = (high - low) / 255, (top + 0.375) / 255
    return {
        "nothing": np.float32(0),
        "scale": np.float32(scale),
        "zero": dtype(lowest + round(-low / scale)),
        "gate_scale": np.float32(1 / 255),
        "gate_zero": dtype(lowest),
        "out_scale": np.float32(out_scale),
        "out_zero": dtype(lowest + round(0.375 / out_scale)),
    }


def in_integers(model: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    rewritten = ir.from_proto(model)
    return multiply_hard_swishes_in_integers(rewritten), ir.to_proto(rewritten)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(("low", "high"), [(-8.0, 8.0), (-3.0, 3.0), (-5.0, 1.0), (-3.2, 20.0), (-2.5, 6.0)])
def test_a_quantized_one_is_computed_in_integers(low: float, high: float, dtype: type) -> None:
    model = model_of(QUANTIZED, parameters(low, high, dtype, high))
    count, _ = in_integers(model)
    assert count == 1
    after = finish(model)
    onnx.checker.check_model(after, full_check=True)
    assert operators(after) == {"Add": 1, "QuantizeLinear": 2, "DequantizeLinear": 3, "Clip": 1, "Mul": 1}
    x = np.clip(uniform(400, 6, width=20), low, high)
    before = np.abs(run(model, x=x)[0] - hard_swish(x))
    errors = np.abs(run(after, x=x)[0] - hard_swish(x))
    # Steps of the input through a slope of at most 1.5, of the gate times the input, and of the output.
    step = max(high + 3, high - low) / 255
    assert errors.max() < 1.5 * step / 2 + step / 12 * high + (high + 0.375) / 255
    assert errors.mean() < 1.3 * before.mean()


def test_hand_worked_numbers() -> None:
    # From -3 to 2.1: a step of 0.02 and 150 steps below zero. x = 1 is 200, 50 above zero; its gate is 200 steps of
    # 0.02 / 6, and the product 1 * 4 / 6.
    constants = parameters(-3, 2.1)
    after = finish(model_of(QUANTIZED, constants))
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    assert values["m_zero_point"] == 150
    np.testing.assert_allclose(values["m_scale"], 0.02, rtol=1e-6)
    np.testing.assert_allclose(values["m_gate_scale"], 0.02 / 6, rtol=1e-6)
    assert values["m_gate_zero_point"] == 0
    assert values["m_gate_one"] == 255
    x = np.full((1, 6), 1.0, np.float32)
    np.testing.assert_allclose(run(after, x=x)[0], 4 / 6, atol=constants["out_scale"] / 2 + 1e-6)


def test_a_range_that_begins_far_below_becomes_finer() -> None:
    constants = parameters(-8, 8)
    after = finish(model_of(QUANTIZED, constants))
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    assert values["m_scale"] < 0.7 * constants["scale"]


def test_nothing_of_it_is_left_in_float(tmp_path: Path) -> None:
    text = QUANTIZED.replace("x) =>", "i) =>").replace(
        "s = Add (x, nothing)",
        "iq = QuantizeLinear (i, scale, zero)\n x = DequantizeLinear (iq, scale, zero)\n s = Add (x, x)",
    )
    constants = parameters(-8, 8)
    del constants["nothing"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(finish(model_of(text, constants)).SerializeToString(), options)
    inside = operators(onnx.load(tmp_path / "optimized.onnx"))
    assert inside == {"QuantizeLinear": 1, "QLinearAdd": 1, "Clip": 1, "QLinearMul": 1, "DequantizeLinear": 1}


def test_a_range_that_begins_far_above_stays() -> None:
    model = model_of(QUANTIZED, parameters(-0.3, 1.0))
    count, after = in_integers(model)
    assert count == 0
    assert after.SerializeToString() == ir.to_proto(ir.from_proto(model)).SerializeToString()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("alpha = 0.16666667", "alpha = 0.2"),
        ("beta = 0.5", "beta = 0.4"),
        ("m = Mul", "m = Add"),
        # Something else reads what would be cut at -3.
        ("m = Mul (d, hd)", "r = Neg (d)\n a = Mul (d, hd)\n m = Add (a, r)"),
        # The scale is handed on, and has to stay that of the input.
        ("s = Add (x, nothing)", "t = Add (x, nothing)\n s = Reshape (t, shape)"),
        # The gate is that of another tensor.
        ("m = Mul (d, hd)", "b = Neg (x)\n m = Mul (b, hd)"),
    ],
)
def test_what_is_no_quantized_hard_swish_stays(old: str, new: str) -> None:
    assert old in QUANTIZED
    constants = parameters(-8, 8) | ({"shape": np.array([-1, 6], np.int64)} if "shape" in new else {})
    count, _ = in_integers(model_of(QUANTIZED.replace(old, new), constants))
    assert count == 0


def test_one_that_the_model_returns_stays() -> None:
    text = QUANTIZED.replace("(float[n, 6] y)", "(float[n, 6] y, float[n, 6] d)")
    assert in_integers(model_of(text, parameters(-8, 8)))[0] == 0


def test_a_scale_for_every_channel_stays() -> None:
    constants = parameters(-8, 8)
    constants["scale"], constants["zero"] = np.full(6, constants["scale"]), np.full(6, constants["zero"])
    assert in_integers(model_of(QUANTIZED, constants))[0] == 0
