"""Layers of a quantized model: what is found of each, what is left out; and looking at tensors within a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxdistill.errors import DataError
from onnxdistill.quantization.layers import Integers, QuantizedLayer, find_layers, observe, with_integers
from onnxdistill.quantization.scheme import Activations, Scheme
from tests.quantization.graphs import model_of, run, uniform
from tests.quantization.int8 import prepared_of, quantized_of

TEXT = """m (float[n, 4, 6, 6] x) => (float[n, 3] y) {
    [conv] a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)
    [act] r = Relu (a)
    [deep] d = Conv <group = 8> (r, k, e)
    [up] u = ConvTranspose (d, t, g)
    [pool] p = GlobalAveragePool (u)
    [flat] f = Flatten (p)
    [line] l = Gemm <transB = 1> (f, v, c)
    [mat] y = MatMul (l, z)
}"""
CONSTANTS = {
    "w": uniform(8, 4, 3, 3, seed=1),
    "b": uniform(8, seed=2),
    "k": uniform(8, 1, 1, 1, seed=3),
    "e": uniform(8, seed=4),
    "t": uniform(8, 6, 2, 2, seed=5),
    "g": uniform(6, seed=6),
    "v": uniform(5, 6, seed=7),
    "c": uniform(5, seed=8),
    "z": uniform(5, 3, seed=9),
}
OUTPUTS = {"w": 8, "k": 8, "t": 6, "v": 5, "z": 3}
X = uniform(8, 4, 6, 6)
SCHEMES = [
    Scheme(activations, per_channel, bits)
    for activations in ("uint8", "int8")
    for per_channel in (False, True)
    for bits in (7, 8)
]


def layers_of(scheme: Scheme) -> dict[str, QuantizedLayer]:
    prepared = prepared_of(TEXT, CONSTANTS)
    return {layer.name: layer for layer in find_layers(quantized_of(prepared, X, scheme), prepared)}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_integers_are_the_float_values_in_steps_of_their_scale(scheme: Scheme) -> None:
    found = layers_of(scheme)
    assert list(found) == ["conv", "deep", "up", "line", "mat"]  # in the order of the graph
    for layer, weight, bias in zip(found.values(), "wktvz", "begc-", strict=True):
        np.testing.assert_array_equal(layer.float_weight, CONSTANTS[weight])
        assert layer.weight.values.dtype == np.int8
        error = np.abs(layer.weight.dequantized() - CONSTANTS[weight])
        assert np.all(error <= 0.5001 * layer.weight.scale)
        assert layer.weight.bounds() == ((-64, 64) if scheme.weight_bits == 7 else (-127, 127))
        assert layer.weight.scale.size == (OUTPUTS[weight] if scheme.per_channel else 1)
        if layer.bias is None:
            assert bias == "-"
            continue
        assert layer.bias.values.dtype == np.int32
        np.testing.assert_allclose(layer.bias.dequantized(), CONSTANTS[bias], atol=float(layer.bias.scale.max()))


def test_names_in_both_models() -> None:
    found = layers_of(SCHEMES[0])
    names = {name: (layer.input, layer.output, layer.quantized_output) for name, layer in found.items()}
    # Of the Relu, the quantizer leaves its range and the name of its output.
    assert names == {
        "conv": ("x", "a", "r_DequantizeLinear_Output"),
        "deep": ("r", "d", "d_DequantizeLinear_Output"),
        "up": ("d", "u", "u_DequantizeLinear_Output"),
        "line": ("f", "l", "l_DequantizeLinear_Output"),
        "mat": ("l", "y", "y"),
    }
    assert found["conv"].output_range[0] == 0
    assert found["deep"].output_range[0] < 0
    assert {layer.quantized_input for layer in found.values()} == {
        f"{name}_DequantizeLinear_Output" for name in ("x", "r", "d", "f", "l")
    }
    assert found["deep"].attributes["group"] == 8
    assert found["line"].attributes["transB"] == 1


def test_layers_in_float_are_left_out() -> None:
    scheme = Scheme("uint8", float_nodes=frozenset({"deep", "line"}))
    assert list(layers_of(scheme)) == ["conv", "up", "mat"]


def test_products_of_two_tensors_are_no_layers() -> None:
    prepared = prepared_of("""m (float[n, 2, 2] x) => (float[n, 2, 2] y) { [product] y = MatMul (x, x) }""", {})
    quantized = quantized_of(prepared, uniform(2, 2, 2))
    assert find_layers(quantized, prepared) == []


def test_weights_that_several_layers_read_are_marked() -> None:
    text = """m (float[n, 2] x) => (float[n, 2] y) {
        [one] a = Gemm (x, w, b)
        [two] c = Gemm (a, w, b)
        [three] y = Gemm (c, v, b)
    }"""
    prepared = prepared_of(text, {"w": uniform(2, 2), "v": uniform(2, 2, seed=1), "b": uniform(2, seed=2)})
    quantized = quantized_of(prepared, uniform(4, 2))
    found = find_layers(quantized, prepared)
    assert [layer.shared for layer in found] == [True, True, False]
    biases = [layer.bias.name for layer in found if layer.bias is not None]
    assert len(set(biases)) == 3  # the quantizer splits them
    # Others may not: a bias of two layers is none that one of them may change.
    nodes = {node.name: node for node in quantized.graph.node}
    nodes["three"].input[2] = nodes["one"].input[2]
    assert [layer.bias is None for layer in find_layers(quantized, prepared)] == [True, False, True]


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_dequantized_layers_compute_what_the_model_does(activations: Activations) -> None:
    prepared = prepared_of(TEXT, CONSTANTS)
    quantized = quantized_of(prepared, X, Scheme(activations))
    layer = find_layers(quantized, prepared)[3]
    assert layer.bias is not None
    seen = next(observe(quantized, [layer.quantized_input, layer.quantized_output], [{"x": X}], budget_bytes=10**9))
    expected = seen[layer.quantized_input] @ layer.weight.dequantized().T + layer.bias.dequantized()
    low, high = layer.output_range
    assert low <= seen[layer.quantized_output].min()
    assert seen[layer.quantized_output].max() <= high + 1e-5
    half = (high - low) / 255 / 2
    np.testing.assert_allclose(seen[layer.quantized_output], np.clip(expected, low, high), atol=1.001 * half)


@pytest.mark.parametrize(
    ("values", "zero_point", "expected"),
    [
        (np.int8([3, -127]), 0, (-127, 127)),
        (np.int8([64, -2]), 0, (-64, 64)),
        (np.int8([-128, 5]), 0, (-127, 127)),
        (np.int8([0, 0]), 0, (0, 0)),
        (np.uint8([3, 200]), 100, (3, 200)),
    ],
)
def test_bounds_by_hand(values: NDArray[Any], zero_point: int, expected: tuple[int, int]) -> None:
    integers = Integers("w", values, np.ones(1), np.array([zero_point]))
    assert integers.bounds() == expected


def test_other_integers_keep_type_and_shape_and_leave_the_model_alone() -> None:
    prepared = prepared_of(TEXT, CONSTANTS)
    quantized = quantized_of(prepared, X)
    before = quantized.SerializeToString()
    layer = find_layers(quantized, prepared)[0]
    changed = with_integers(quantized, {layer.weight.name: np.ones(layer.weight.values.size)})
    onnx.checker.check_model(changed, full_check=True)
    assert quantized.SerializeToString() == before
    after = find_layers(changed, prepared)[0].weight
    assert after.values.dtype == np.int8
    np.testing.assert_array_equal(after.values, np.ones_like(layer.weight.values))
    assert not np.array_equal(run(changed, x=X)[0], run(quantized, x=X)[0])


SMALL = """m (float[n, 4] x) => (float[n, 4] y) {
    a = Relu (x)
    b = Neg (a)
    y = Abs (b)
}"""


def test_observed_tensors_of_parts_are_those_of_the_whole() -> None:
    x = uniform(7, 4)
    model = model_of(SMALL)
    # A sample of `b` has 16 bytes: after the first, two fit.
    parts = list(observe(model, ["b", "x"], iter([{"x": x}]), budget_bytes=32))
    assert [len(part["b"]) for part in parts] == [1, 2, 2, 2]
    np.testing.assert_array_equal(np.concatenate([part["x"] for part in parts]), x)
    np.testing.assert_array_equal(np.concatenate([part["b"] for part in parts]), -np.maximum(x, 0))


def test_added_nodes_are_observed() -> None:
    node = onnx.helper.make_node("Neg", ["b"], ["negative"])
    (part,) = observe(model_of(SMALL), ["negative"], [{"x": uniform(1, 4)}], [node])
    np.testing.assert_array_equal(part["negative"], np.maximum(uniform(1, 4), 0))


def test_a_batch_that_the_model_fixes_stays_whole() -> None:
    model = model_of(SMALL.replace("n, 4", "2, 4"))
    parts = list(observe(model, ["b"], [{"x": uniform(2, 4)}] * 2, budget_bytes=1))
    assert [len(part["b"]) for part in parts] == [2, 2]


def test_without_samples_nothing_is_observed() -> None:
    def none() -> Iterator[dict[str, NDArray[Any]]]:
        yield from ()

    with pytest.raises(DataError, match="no calibration sample"):
        list(observe(model_of(SMALL), ["b"], none()))
