"""Bias correction: by hand, planted shifts, one layer behind the other, and the ends of int32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxdistill.errors import DataError
from onnxdistill.quantization.biases import correct_biases
from onnxdistill.quantization.calibration import Feeds
from onnxdistill.quantization.layers import find_layers, observe, with_integers
from onnxdistill.quantization.preparation import finish
from onnxdistill.quantization.scheme import Scheme
from tests.quantization.graphs import run, uniform
from tests.quantization.int8 import USUAL, prepared_of, quantized_of

Array = NDArray[Any]


def batches_of(x: Array, size: int = 5) -> Callable[[], Iterator[Feeds]]:
    return lambda: ({"x": x[start : start + size]} for start in range(0, len(x), size))


def bias_of(model: onnx.ModelProto, prepared: onnx.ModelProto, index: int = 0) -> Array:
    bias = find_layers(model, prepared)[index].bias
    assert bias is not None
    return bias.values


def channel_means(model: onnx.ModelProto, name: str, x: Array) -> Array:
    """Means over samples and places of a tensor inside."""
    (part,) = observe(model, [name], [{"x": x[:1]}], budget_bytes=10**9)
    values = np.concatenate([part[name] for part in observe(model, [name], [{"x": x}], budget_bytes=10**9)])
    assert values[:1].shape == part[name].shape
    return values.mean((0, *range(2, values.ndim)), dtype=np.float64)


TIMES_TWO = "m (float[n, 1] x) => (float[n, 1] y) { y = Gemm (x, w, b) }"
TWO = {"w": np.float32([[2]]), "b": np.float32([0])}


def test_by_hand() -> None:
    prepared = prepared_of(TIMES_TWO, TWO)
    x = np.float32([[0], [51], [255]])  # a scale of 1, and one of 2 for the output: all of them are exact
    quantized = quantized_of(prepared, x)
    assert bias_of(correct_biases(quantized, prepared, batches_of(x, 2)), prepared).tolist() == [0]
    # 2 is 127 steps of 2 / 127. With 126 steps, y is 0, 101.2 and 506.0, that is 0, 102 and 506: in the mean 4 / 3 less
    # than 204, which is 84.7 steps.
    weight = find_layers(quantized, prepared)[0].weight
    changed = with_integers(quantized, {weight.name: np.array([[126]])})
    assert bias_of(correct_biases(changed, prepared, batches_of(x, 2)), prepared).tolist() == [85]
    # With -127 steps, y is cut to 0: 204 less, which is 12,954 steps.
    changed = with_integers(quantized, {weight.name: np.array([[-127]])})
    assert bias_of(correct_biases(changed, prepared, batches_of(x, 2)), prepared).tolist() == [12954]


def test_where_half_of_the_values_are_cut_the_step_is_twice_as_large() -> None:
    text = TIMES_TWO.replace("y = Gemm (x, w, b)", "a = Gemm (x, w, b)\n y = Relu (a)")
    prepared = prepared_of(text, TWO)
    x = np.float32([[-127], [-100], [51], [128]])  # a scale of 1
    quantized = quantized_of(prepared, x)
    assert bias_of(quantized, prepared).tolist() == [0]
    layer = find_layers(quantized, prepared)[0]
    assert layer.bias is not None
    # 508 steps of 2 / 127 are 8 too many, where the output isn't 0: it has steps of 256 / 255, and 102 and 256 become
    # 102.4 + 8.0 = 110.4 and 256. In the mean, 8.03 / 4 are too much.
    planted = with_integers(quantized, {layer.bias.name: np.array([508])})
    out = np.array([110, 255]) * 256 / 255
    mean = (out - [102, 256]).sum() / 4
    expected = round(508 - mean / 0.5 * 127 / 2)
    assert bias_of(correct_biases(planted, prepared, batches_of(x)), prepared).tolist() == [expected]


LAYERS = {
    "Conv": ("Conv <pads = [1, 1, 1, 1]> (x, w, b)", (4, 4, 3, 3)),
    "strided": ("Conv <strides = [2, 2]> (x, w, b)", (4, 4, 3, 3)),
    "grouped": ("Conv <group = 2> (x, w, b)", (4, 2, 3, 3)),
    "depthwise": ("Conv <group = 4, pads = [1, 1, 1, 1]> (x, w, b)", (4, 1, 3, 3)),
    "ConvTranspose": ("ConvTranspose <strides = [2, 2]> (x, w, b)", (4, 4, 2, 2)),
    "one-dimensional": ("Conv (x, w, b)", (4, 4, 3)),
    "Gemm": ("Gemm (x, w, b)", (4, 4)),
    "transposed Gemm": ("Gemm <transB = 1> (x, w, b)", (4, 4)),
}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_a_planted_shift_of_the_means_goes(kind: str, per_channel: bool) -> None:
    layer, shape = LAYERS[kind]
    sizes = (4,) + (8,) * (len(shape) - 2)
    dims = ", ".join(map(str, sizes))
    out = ", ".join(["n", "4", *"hw"[: len(shape) - 2]])
    text = f"m (float[n, {dims}] x) => (float[{out}] y) {{ y = {layer} }}"
    prepared = prepared_of(text, {"w": uniform(*shape, seed=1), "b": uniform(4, seed=2)})
    x = uniform(12 if len(sizes) > 1 else 96, *sizes, seed=3) + 1
    quantized = quantized_of(prepared, 1.3 * x, Scheme("uint8", per_channel))
    (found,) = find_layers(quantized, prepared)
    assert found.bias is not None
    shift = np.array([0.5, -0.25, 0.4, 0.0])
    planted = with_integers(quantized, {found.bias.name: np.round(found.bias.values + shift / found.bias.scale)})
    before = planted.SerializeToString()
    expected = channel_means(prepared, found.output, x)
    assert np.abs(channel_means(planted, found.quantized_output, x) - expected).max() > 0.3
    corrected = correct_biases(planted, prepared, batches_of(x))
    assert planted.SerializeToString() == before
    onnx.checker.check_model(corrected, full_check=True)
    # Both means are of rounded outputs: over n values, they are off by a step / sqrt(6 n) from each other.
    low, high = found.output_range
    values = run(prepared, x=x)[0].size / 4
    allowed = 4 * (high - low) / 255 / np.sqrt(6 * values)
    assert allowed < 0.15
    np.testing.assert_allclose(channel_means(corrected, found.quantized_output, x), expected, rtol=0, atol=allowed)
    assert [each.name for each in corrected.graph.initializer] == [each.name for each in planted.graph.initializer]
    run(corrected, x=x)


DEEP = """m (float[n, 4, 6, 6] x) => (float[n, 2] y) {
    [one] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    [act] r = Relu (a)
    [two] c = Conv <pads = [1, 1, 1, 1]> (r, v, d)
    [sum] s = Add (r, c)
    [pool] p = GlobalAveragePool (s)
    [flat] f = Flatten (p)
    [three] y = Gemm (f, u, e)
}"""
CONSTANTS = {
    "w": uniform(4, 4, 3, 3, seed=1, width=1),
    "b": uniform(4, seed=2),
    "v": uniform(4, 4, 3, 3, seed=3, width=1),
    "d": uniform(4, seed=4),
    "u": uniform(4, 2, seed=5),
    "e": uniform(2, seed=6),
}


@pytest.fixture(scope="module")
def deep() -> tuple[onnx.ModelProto, onnx.ModelProto, Array]:
    """Float, quantized with a shift in the first layer, and samples."""
    prepared = prepared_of(DEEP, CONSTANTS)
    x = uniform(16, 4, 6, 6, seed=7) + 1
    quantized = quantized_of(prepared, x)
    first = find_layers(quantized, prepared)[0].bias
    assert first is not None
    return prepared, with_integers(quantized, {first.name: first.values + np.int32([3000, -2000, 4000, 0])}), x


def test_later_layers_see_what_earlier_ones_corrected(deep: tuple[onnx.ModelProto, onnx.ModelProto, Array]) -> None:
    prepared, planted, x = deep
    corrected = correct_biases(planted, prepared, batches_of(x))
    without = correct_biases(quantized_of(prepared, x), prepared, batches_of(x))
    for index, layer in enumerate(find_layers(corrected, prepared)):
        assert layer.bias is not None
        # The shift was in the first bias alone, and there it went: the others are as if it had never been.
        # A twentieth of it was left, since a Relu was in the way. Uncorrected, it would be 700 to 2,800 steps for them.
        np.testing.assert_allclose(bias_of(corrected, prepared, index), bias_of(without, prepared, index), atol=200)


def test_layers_side_by_side_are_corrected_together_and_few_samples_are_enough(
    deep: tuple[onnx.ModelProto, onnx.ModelProto, Array],
) -> None:
    prepared, planted, x = deep
    calls, given = 0, 0

    def counted() -> Iterator[Feeds]:
        nonlocal calls, given
        calls += 1
        for feeds in batches_of(x)():
            given += len(feeds["x"])
            yield feeds

    every = correct_biases(planted, prepared, counted)
    assert calls == 1 + 3  # the float model, and for each layer on the way
    assert given == 4 * 16
    calls, given = 0, 0
    some = correct_biases(planted, prepared, counted, samples=7)
    assert given <= 4 * 15  # whole batches of 5, one of which is looked at to see that it is not needed
    assert some.SerializeToString() != every.SerializeToString()


def test_the_same_again(deep: tuple[onnx.ModelProto, onnx.ModelProto, Array]) -> None:
    prepared, planted, x = deep
    first, second = (correct_biases(planted, prepared, batches_of(x)).SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("bias", "expected"), [(1e12, 2**31 - 1), (-1e12, -(2**31))])
def test_a_bias_never_leaves_int32(bias: float, expected: int) -> None:
    x = np.float32([[0], [255]])
    prepared = prepared_of(TIMES_TWO, TWO)
    quantized = quantized_of(prepared, x)
    # Without a range of the output, which would be the limit otherwise.
    end = next(node for node in quantized.graph.node if node.output[0] == "y")
    quantize = next(node for node in quantized.graph.node if node.output[0] == end.input[0])
    layer = next(node for node in quantized.graph.node if node.op_type == "Gemm")
    layer.output[0] = "y"
    quantized.graph.node.remove(end)
    quantized.graph.node.remove(quantize)
    far = with_integers(prepared, {prepared.graph.node[0].input[2]: np.float32([bias])})
    assert find_layers(quantized, far)[0].output_range == (-np.inf, np.inf)
    assert bias_of(correct_biases(quantized, far, batches_of(x)), far).tolist() == [expected]


def test_layers_without_a_bias_and_float_layers_stay() -> None:
    text = """m (float[n, 4] x) => (float[n, 4] y) {
        [none] a = Gemm (x, w)
        [mat] c = MatMul (a, v)
        [float] d = Gemm (c, w, b)
        y = Relu (d)
    }"""
    prepared = prepared_of(text, {"w": uniform(4, 4), "v": uniform(4, 4, seed=1), "b": uniform(4, seed=2)})
    quantized = quantized_of(prepared, uniform(8, 4), Scheme("uint8", float_nodes=frozenset({"float"})))
    corrected = correct_biases(quantized, prepared, batches_of(uniform(8, 4)))
    assert corrected.SerializeToString() == quantized.SerializeToString()


def test_dead_channels_keep_their_bias() -> None:
    text = "m (float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y) { a = Conv (x, w, b)\n y = Relu (a) }"
    w = uniform(2, 2, 1, 1, seed=1)
    w[0] = 0
    prepared = prepared_of(text, {"w": w, "b": np.float32([1.5, 0])})
    x = np.zeros((4, 2, 4, 4), np.float32)
    quantized = quantized_of(prepared, x, USUAL)
    corrected = correct_biases(quantized, prepared, batches_of(x))
    np.testing.assert_array_equal(bias_of(corrected, prepared), bias_of(quantized, prepared))


def test_means_that_are_not_finite_change_nothing() -> None:
    text = "m (float[n, 2] x) => (float[n, 2] y) { y = Gemm (x, w, b) }"
    prepared = prepared_of(text, {"w": uniform(2, 2), "b": uniform(2, seed=1)})
    quantized = quantized_of(prepared, uniform(4, 2))
    x = np.float32([[1, np.nan], [1, 1]])
    corrected = correct_biases(quantized, prepared, batches_of(x))
    assert corrected.SerializeToString() == quantized.SerializeToString()


def test_without_samples_nothing_is_corrected(deep: tuple[onnx.ModelProto, onnx.ModelProto, Array]) -> None:
    prepared, planted, _ = deep
    with pytest.raises(DataError, match="no calibration sample"):
        correct_biases(planted, prepared, lambda: ())


def test_what_a_rewritten_hard_swish_does_not_read_is_no_error() -> None:
    # In integers, hard-swish cuts its input at -3, below which it is 0. That is no mean to make up for.
    text = """m (float[n, 4, 6, 6] x) => (float[n, 4, 6, 6] y) {
        [one] a = Conv (x, w, b)
        h = HardSwish (a)
        [two] y = Conv (h, v, d)
    }"""
    constants = {"w": uniform(4, 4, 1, 1, seed=1), "b": uniform(4, seed=2), "v": uniform(4, 4, 1, 1, seed=3)}
    prepared = prepared_of(text, constants | {"d": uniform(4, seed=4)})
    x = uniform(16, 4, 6, 6, seed=7)
    rewritten = finish(quantized_of(prepared, x))
    layer = find_layers(rewritten, prepared)[0]
    assert layer.output_range[0] == pytest.approx(-3)
    assert layer.bias is not None
    below = channel_means(prepared, layer.output, x) - channel_means(rewritten, layer.quantized_output, x)
    assert below.min() < -1
    moved = bias_of(correct_biases(rewritten, prepared, batches_of(x)), prepared) - layer.bias.values
    assert np.abs(moved * layer.bias.scale).max() < 0.05
