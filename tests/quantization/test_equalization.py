"""Equalization: by hand, on random networks, where it must stop, and what it does for one scale a tensor."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxdistill.quantization.equalization import equalize, find_pairs
from tests.quantization.graphs import Constants, model_of, operators, run, uniform
from tests.quantization.int8 import prepared_of, quantized_of

Array = NDArray[Any]
MLP = """m (float[n, 2] x) => (float[n, 2] y) {
    [first] a = Gemm <transB = 1> (x, w, b)
    [act] r = Relu (a)
    [second] y = Gemm <transB = 1> (r, v, c)
}"""


def weights(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def mlp(w: Any, b: Any, v: Any, c: Any = (0, 0)) -> onnx.ModelProto:
    return model_of(MLP, {name: np.float32(array) for name, array in {"w": w, "b": b, "v": v, "c": c}.items()})


def test_two_layers_by_hand() -> None:
    # r1 = 4, 0.5 and r2 = 1, 8: channels are divided by sqrt(4 / 1) = 2 and by sqrt(0.5 / 8) = 1/4.
    model = mlp([[4, -2], [0.25, 0.5]], [8, 1], [[1, 8], [-0.5, 4]], [3, -3])
    before = model.SerializeToString()
    after = weights(equalize(model))
    assert model.SerializeToString() == before
    np.testing.assert_array_equal(after["w"], [[2, -1], [1, 2]])
    np.testing.assert_array_equal(after["b"], [4, 4])
    np.testing.assert_array_equal(after["v"], [[2, 2], [-1, 1]])
    np.testing.assert_array_equal(after["c"], [3, -3])


def test_a_chain_ends_with_equal_ranges_on_both_sides_of_every_tensor() -> None:
    text = """m (float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y) {
        [wide] a = Conv (x, w)
        [act] r = Relu (a)
        [deep] d = Conv <group = 4, pads = [1, 1, 1, 1]> (r, k)
        [act2] s = Relu (d)
        [narrow] y = Conv (s, v)
    }"""
    scales = np.float32([1, 30, 0.01, 5]).reshape(4, 1, 1, 1)
    constants = {"w": uniform(4, 2, 1, 1) * scales, "k": uniform(4, 1, 3, 3, seed=1), "v": uniform(2, 4, 1, 1, seed=2)}
    model = model_of(text, constants)
    assert find_pairs(model) == [("wide", "deep"), ("deep", "narrow")]
    after = {name: np.abs(array) for name, array in weights(equalize(model)).items()}
    first, deep, last = after["w"].max((1, 2, 3)), after["k"].max((1, 2, 3)), after["v"].max((0, 2, 3))
    np.testing.assert_allclose(first, deep, rtol=0.01)
    np.testing.assert_allclose(deep, last, rtol=0.01)
    # Of three layers, the cube root.
    before = {name: np.abs(array) for name, array in constants.items()}
    product = before["w"].max((1, 2, 3)) * before["k"].max((1, 2, 3)) * before["v"].max((0, 2, 3))
    np.testing.assert_allclose(first, np.cbrt(product), rtol=0.01)


LAYERS = {
    "Conv": ("Conv <pads = [1, 1, 1, 1]>", (6, 6, 3, 3)),
    "grouped": ("Conv <group = 2, pads = [1, 1, 1, 1]>", (6, 3, 3, 3)),
    "depthwise": ("Conv <group = 6, pads = [1, 1, 1, 1], dilations = [1, 1]>", (6, 1, 3, 3)),
    "ConvTranspose": ("ConvTranspose", (6, 6, 1, 1)),
    "grouped ConvTranspose": ("ConvTranspose <group = 3>", (6, 2, 1, 1)),
}
BETWEEN = {
    "nothing": "",
    "Relu": "{out} = Relu ({x})",
    "LeakyRelu": "{out} = LeakyRelu <alpha = 0.3> ({x})",
    "PRelu": "{out} = PRelu ({x}, slope)",
    "Clip": "{out} = Clip ({x}, zero)",
    "MaxPool": "{out} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({x})",
    "AveragePool": "{out} = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({x})",
}
ENDS = {
    "Conv": "y = Conv (t, last)",
    "flattened": "f = Flatten (t)\n y = Gemm (f, all)",
    "reshaped": "f = Reshape (t, rows)\n y = Gemm (f, all)",
    "pooled": "p = GlobalAveragePool (t)\n f = Flatten (p)\n y = Gemm (f, pooled)",
}


@st.composite
def networks(draw: st.DrawFn) -> tuple[onnx.ModelProto, int]:
    """A chain of layers with channels of very different scales, and how many pairs of layers it has."""
    count, seed = draw(st.integers(2, 4)), draw(st.integers(0, 1000))
    constants: Constants = {
        "slope": np.abs(uniform(6, 1, 1, seed=seed)),
        "zero": np.float32(0),
        "last": uniform(2, 6, 1, 1, seed=seed),
        "all": uniform(6 * 16, 2, seed=seed),
        "pooled": uniform(6, 2, seed=seed),
        "rows": np.array([0, 96], np.int64),
    }
    body, value = "", "x"
    for index in range(count):
        layer, shape = LAYERS[draw(st.sampled_from(sorted(LAYERS)))]
        exponents = np.array(draw(st.lists(st.integers(-8, 8), min_size=6, max_size=6)))
        out_axis = 1 if layer.startswith("ConvTranspose") else 0
        scale = np.float32(2.0 ** exponents[: shape[out_axis]]).reshape([-1 if i == out_axis else 1 for i in range(4)])
        constants[f"w{index}"] = uniform(*shape, seed=seed + index, width=0.5) * scale
        constants[f"b{index}"] = uniform(6, seed=2000 + seed + index)
        body += f"a{index} = {layer} ({value}, w{index}, b{index})\n"
        value = f"a{index}"
        between = BETWEEN[draw(st.sampled_from(sorted(BETWEEN)))]
        if between:
            body += between.format(out=f"r{index}", x=value) + "\n"
            value = f"r{index}"
    end = ENDS[draw(st.sampled_from(sorted(ENDS)))].replace("(t", f"({value}")
    used = {name: array for name, array in constants.items() if f", {name}" in body + end}
    shape = "n, 2, 4, 4" if end.startswith("y = Conv") else "n, 2"
    return prepared_of(f"m (float[n, 6, 4, 4] x) => (float[{shape}] y) {{ {body} {end} }}", used), count


@given(networks())
@settings(max_examples=30)
def test_outputs_stay_equal(drawn: tuple[onnx.ModelProto, int]) -> None:
    model, pairs = drawn
    assert len(find_pairs(model)) == pairs
    after = equalize(model)
    onnx.checker.check_model(after, full_check=True)
    assert [each.name for each in after.graph.initializer] == [each.name for each in model.graph.initializer]
    x = uniform(3, 6, 4, 4, seed=7)
    expected = run(model, x=x)[0]
    np.testing.assert_allclose(run(after, x=x)[0], expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize(
    "between",
    [
        "r = Sigmoid (a)",
        "r = Clip (a, minus, )",
        "r = Clip (a, zero, six)",
        "r = Add (a, a)",
        "r = Relu (a)\n other = Neg (r)",  # read twice
        "r = Relu (a)\n other = Identity (a)",
        "other, r = Split <num_outputs = 2, axis = 0> (a)",
        "r = PRelu (x, a)",  # as a slope
    ],
)
def test_where_a_factor_cannot_pass(between: str) -> None:
    output = ", float[m, 2] other" if "other" in between else ""
    text = f"""m (float[n, 2] x) => (float[k, 2] y{output}) {{
        a = Gemm (x, w)
        {between}
        y = Gemm (r, v)
    }}"""
    numbers = {"minus": np.float32(-1), "zero": np.float32(0), "six": np.float32(6)}
    used = {name: number for name, number in numbers.items() if name in between}
    model = model_of(text, {"w": uniform(2, 2), "v": uniform(2, 2, seed=1), **used})
    assert find_pairs(model) == []
    assert equalize(model).SerializeToString() == equalize(equalize(model)).SerializeToString()
    np.testing.assert_array_equal(weights(equalize(model))["w"], uniform(2, 2))


def test_an_output_of_the_model_stays_what_it_is() -> None:
    text = """m (float[n, 2] x) => (float[n, 2] a, float[n, 2] y) {
        a = Gemm (x, w)
        y = Gemm (a, v)
    }"""
    assert find_pairs(model_of(text, {"w": uniform(2, 2), "v": uniform(2, 2, seed=1)})) == []


def test_weights_that_layers_share_stay_and_shared_biases_part() -> None:
    text = """m (float[n, 2] x) => (float[n, 2] y, float[n, 2] z) {
        [one] a = Gemm (x, w, b)
        [two] c = Gemm (a, v, b)
        [three] d = Gemm (c, v, b)
        [four] e = Gemm (x, u, b)
        [five] y = Gemm (e, t, b)
        z = Relu (d)
    }"""
    constants = {
        "w": [[8, 1], [4, 1]],
        "v": [[1, 2], [3, 4]],
        "u": [[1, 9], [1, 9]],
        "t": [[1, 1], [1, 1]],
        "b": [1, 2],
    }
    model = model_of(text, {name: np.float32(array) for name, array in constants.items()})
    assert find_pairs(model) == [("four", "five")]
    after = equalize(model)
    onnx.checker.check_model(after, full_check=True)
    bias = {node.name: node.input[2] for node in after.graph.node if node.op_type == "Gemm"}
    assert [bias[name] for name in ("one", "two", "three", "five")] == ["b"] * 4
    np.testing.assert_allclose(weights(after)[bias["four"]], [1, 2 / 3])
    x = uniform(3, 2)
    for actual, expected in zip(run(after, x=x), run(model, x=x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("w", "v"),
    [
        ([[0, 0], [0.25, 0.5]], [[1, 8], [-0.5, 4]]),  # nothing but its bias
        ([[4, -2], [0.25, 0.5]], [[0, 8], [0, 4]]),  # read by nothing
    ],
)
def test_dead_channels_stay_and_the_others_do_not(w: list[list[float]], v: list[list[float]]) -> None:
    after = weights(equalize(mlp(w, [8, 1], v)))
    np.testing.assert_array_equal(after["w"], [w[0], [1, 2]])
    np.testing.assert_array_equal(after["b"], [8, 4])
    np.testing.assert_array_equal(after["v"], np.multiply(v, [1, 0.25]))


def test_a_model_without_a_live_channel_stays() -> None:
    after = weights(equalize(mlp(np.zeros((2, 2)), [1, 2], np.zeros((2, 2)))))
    np.testing.assert_array_equal(after["b"], [1, 2])


@pytest.mark.parametrize("tiny", [1e-9, 1e-30, 1e-38])
def test_no_factor_is_extreme(tiny: float) -> None:
    model = mlp([[1e30, 1], [tiny, 0]], [0, 0], [[tiny, 1e6], [0, 1]])
    after = weights(equalize(model))
    np.testing.assert_allclose(after["w"], [[1e30 / 2**20, 2.0**-20], [tiny * 2**20, 0]], rtol=1e-6)
    assert all(np.isfinite(array).all() for array in after.values())


def test_a_channel_that_is_nearly_its_bias_alone_does_not_become_the_largest() -> None:
    # Batch norms with a factor near zero leave such channels. By its weights alone, the last one would be multiplied
    # by 1000, and its activation would be 500.
    w = np.float32(np.concatenate((uniform(7, 8, seed=1, width=1), uniform(1, 8, seed=2, width=1e-6))))
    b, v = uniform(8, seed=3, width=0.5), uniform(2, 8, seed=4, width=1)
    b[-1] = 0.5
    text = MLP.replace("float[n, 2] x", "float[n, 8] x")
    model = model_of(text, {"w": w, "b": b, "v": v, "c": np.zeros(2, np.float32)})
    after = weights(equalize(model))
    usual = np.median(np.abs(b) / np.abs(w).max(1))
    ranges = np.abs(w).max(1) * np.abs(v).max(0)
    assert after["b"][-1] == pytest.approx(np.sqrt(0.5 * 16 * usual * np.abs(v).max(0)[-1]), rel=1e-4)
    np.testing.assert_allclose(np.abs(after["w"]).max(1)[:-1], np.sqrt(ranges[:-1]), rtol=1e-4)
    x = uniform(9, 8, seed=5)
    np.testing.assert_allclose(run(equalize(model), x=x)[0], run(model, x=x)[0], rtol=1e-4, atol=1e-4)


RELU6 = """m (float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y) {
    [first] a = Conv (x, w)
    [clip] r = Clip (a, zero, six)
    [second] d = Conv (r, v)
    [end] y = Clip (d, zero, six)
}"""


def test_the_bound_of_relu6_goes_only_if_asked_and_only_between_layers() -> None:
    limits = {"zero": np.float32(0), "six": np.float32(6)}
    constants = {"w": uniform(2, 2, 1, 1, width=9), "v": uniform(2, 2, 1, 1, seed=1)} | limits
    model = model_of(RELU6, constants)
    assert find_pairs(model) == []
    assert find_pairs(model_of(RELU6, constants | {"six": np.float32(0)}), relu6_as_relu=True) == []
    assert operators(equalize(model)) == {"Conv": 2, "Clip": 2}
    assert find_pairs(model, relu6_as_relu=True) == [("first", "second")]
    after = equalize(model, relu6_as_relu=True)
    onnx.checker.check_model(after, full_check=True)
    assert [(node.op_type, node.name) for node in after.graph.node][1::2] == [("Relu", "clip"), ("Clip", "end")]
    x = uniform(2, 2, 4, 4)
    without = copy.deepcopy(model)
    without.graph.node[1].op_type = "Relu"
    del without.graph.node[1].input[1:]
    np.testing.assert_allclose(run(after, x=x)[0], run(without, x=x)[0], rtol=1e-5, atol=1e-5)


def test_badly_scaled_channels_are_rescued_for_one_scale_a_tensor() -> None:
    text = """m (float[n, 8, 6, 6] x) => (float[n, 8, 6, 6] y) {
        a = Conv (x, w, b)
        r = Relu (a)
        y = Conv (r, v)
    }"""
    scale = np.float32(2.0 ** np.arange(8)).reshape(8, 1, 1, 1)
    constants = {
        "w": uniform(8, 8, 1, 1, seed=1) * scale,
        "b": uniform(8, seed=2) * scale.ravel(),
        "v": uniform(8, 8, 1, 1, seed=3) / scale.reshape(1, 8, 1, 1),
    }
    model = prepared_of(text, constants)
    x = uniform(8, 8, 6, 6, seed=4)
    expected = run(model, x=x)[0]

    def error(float_model: onnx.ModelProto) -> float:
        return float(
            np.square(run(quantized_of(float_model, x), x=x)[0] - expected).mean() / np.square(expected).mean()
        )

    assert error(model) > 100 * error(equalize(model))
