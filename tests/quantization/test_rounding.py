"""Rounding of weights: by hand, against GPTQ as it is published, what layers see, and what it gains on other inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxdistill.errors import DataError
from onnxdistill.quantization import rounding
from onnxdistill.quantization.calibration import Feeds
from onnxdistill.quantization.layers import find_layers, with_integers
from onnxdistill.quantization.rounding import round_rows, round_weights, window_of
from onnxdistill.quantization.scheme import Scheme
from tests.quantization.graphs import Constants, run, uniform
from tests.quantization.int8 import prepared_of, quantized_of

Array = NDArray[Any]


def batches_of(x: Array, size: int = 16) -> Callable[[], Iterator[Feeds]]:
    return lambda: ({"x": x[start : start + size]} for start in range(0, len(x), size))


def rows(weights: list[float], moments: Any, low: int = -127, high: int = 127) -> list[float]:
    rounded = round_rows(np.array([[weights]]), np.array([moments], np.float64), low, high, damping=0.01)
    return [float(value) for value in rounded[0, 0]]


def test_by_hand() -> None:
    # Inputs that are always equal: the sum of the weights counts. 0.4 + 0.4 is nearer to 1 than to 0.
    assert rows([0.4, 0.4], [[1, 1], [1, 1]]) == [1, 0]
    # Of opposite sign: the difference counts, and is exact.
    assert rows([0.4, 0.4], [[1, -1], [-1, 1]]) == [0, 0]
    assert rows([0.6, 0.6], [[1, -1], [-1, 1]]) == [1, 1]
    # Inputs that have nothing to do with each other: nearest.
    assert rows([0.4, 0.6, -0.6], np.eye(3)) == [0, 1, -1]
    # An input of twice the size goes first: 0.4 to 0, and the other makes up for 0.8 of its own size.
    assert rows([0.4, 0.4], [[4, 2], [2, 1]]) == [0, 1]
    assert rows([0.4, 0.4], [[1, 2], [2, 4]]) == [1, 0]
    # No integers beyond the scheme's.
    assert rows([0.4, 0.4], [[1, 1], [1, 1]], high=0) == [0, 0]
    assert rows([-9.2, 5.3], np.eye(2), -7, 4) == [-7, 4]
    # What is always zero is rounded to nearest, and makes up for nothing.
    assert rows([0.4, 0.4, 0.7], [[0, 0, 0], [0, 1, 0], [0, 0, 0]]) == [0, 0, 1]


def gptq(weights: Array, moments: Array, damping: float) -> Array:
    """Frantar et al. 2023, algorithm 1, in blocks of one; with a damping relative to each input."""
    damped = moments + damping * np.diag(np.diag(moments))
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, rounded = weights.copy(), np.empty_like(weights)
    for i in range(weights.shape[1]):
        rounded[:, i] = np.rint(left[:, i])
        error = (left[:, i] - rounded[:, i]) / factor[i, i]
        left[:, i:] -= np.outer(error, factor[i, i:])
    return rounded


@given(st.integers(1, 150), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_it_is_gptq(size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((2 * size + 5, size)) @ generator.standard_normal((size, size))
    weights = generator.standard_normal((3, size)) * 10
    moments = inputs.T @ inputs
    order = np.argsort(-np.diag(moments), kind="stable")  # GPTQ goes from the first to the last
    expected = np.empty_like(weights)
    expected[:, order] = gptq(weights[:, order], moments[np.ix_(order, order)], 0.01)
    actual = round_rows(weights[np.newaxis], moments[np.newaxis], -1000, 1000, damping=0.01)[0]
    np.testing.assert_array_equal(actual, expected)


def squares(error: Array, moments: Array) -> Array:
    return np.einsum("goi,gij,goj->go", error, moments, error)


@given(st.integers(0, 2**32 - 1))
def test_the_error_is_near_the_least_of_all_roundings(seed: int) -> None:
    # Of the 16 ways to round four weights up or down, it is never far behind, and on average ahead.
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((50, 4)) @ generator.standard_normal((4, 4))
    moments = (inputs.T @ inputs)[np.newaxis]
    weights = generator.uniform(-3, 3, (1, 1, 4))
    every = [np.floor(weights) + np.array(up) for up in itertools.product((0, 1), repeat=4)]
    errors = [squares(weights - integers, moments).item() for integers in every]
    found = squares(weights - round_rows(weights, moments, -128, 127, damping=0.01), moments).item()
    assert found <= np.mean(errors)


@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_groups_are_rounded_one_by_one(groups: int, size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((groups, 40, size))
    moments = np.swapaxes(inputs, 1, 2) @ inputs
    weights = generator.standard_normal((groups, 2, size)) * 3
    together = round_rows(weights, moments, -2, 2, damping=0.01)
    alone = [round_rows(weights[[g]], moments[[g]], -2, 2, damping=0.01)[0] for g in range(groups)]
    np.testing.assert_array_equal(together, alone)
    assert np.abs(together).max() <= 2


LAYERS = {
    "Conv": ("Conv (x, w, b)", (6, 4, 3, 3), (4, 9, 9)),
    "strides and pads": ("Conv <strides = [2, 3], pads = [0, 1, 2, 1]> (x, w, b)", (6, 4, 3, 2), (4, 9, 9)),
    "dilations": ("Conv <dilations = [2, 1], pads = [2, 1, 2, 1]> (x, w, b)", (6, 4, 3, 3), (4, 9, 9)),
    "grouped": ("Conv <group = 2, pads = [1, 1, 1, 1]> (x, w, b)", (6, 2, 3, 3), (4, 9, 9)),
    "depthwise": ("Conv <group = 6, pads = [1, 1, 1, 1]> (x, w, b)", (6, 1, 3, 3), (6, 9, 9)),
    "1 x 1": ("Conv (x, w, b)", (6, 32, 1, 1), (32, 7, 7)),
    "one dimension": ("Conv <pads = [1, 1]> (x, w, b)", (6, 4, 5), (4, 20)),
    "three dimensions": ("Conv (x, w, b)", (6, 2, 2, 2, 2), (2, 5, 5, 5)),
    "Gemm": ("Gemm (x, w, b)", (32, 6), (32,)),
    "transposed Gemm": ("Gemm <transB = 1, alpha = 0.5> (x, w, b)", (6, 32), (32,)),
    "MatMul": ("MatMul (x, w)", (32, 6), (5, 32)),
    "MatMul of images": ("MatMul (x, w)", (32, 6), (2, 3, 32)),
}


def model_with(kind: str, w: Array | None = None) -> onnx.ModelProto:
    layer, shape, sizes = LAYERS[kind]
    given = uniform(*shape, seed=1, width=1) if w is None else w
    constants: Constants = {"w": given, "b": uniform(6, seed=2)} if ", b" in layer else {"w": given}
    out = ", ".join(f"d{i}" for i in range(len(sizes)))
    return prepared_of(
        f"m (float[n, {', '.join(map(str, sizes))}] x) => (float[n, {out}] y) {{ y = {layer} }}", constants
    )


def correlated(count: int, sizes: tuple[int, ...], seed: int, channels_last: bool) -> Array:
    """Samples whose channels are mixtures of a few others, and whose pixels are alike where they are neighbours."""
    generator = np.random.default_rng(seed)
    moved = sizes if not channels_last or len(sizes) == 1 else (sizes[-1], *sizes[:-1])
    few = max(1, moved[0] // 4)
    mixture = np.random.default_rng(99).uniform(0, 1, (few, moved[0]))
    hidden = generator.uniform(0, 1, (count, few, *moved[1:]))
    for axis in range(2, hidden.ndim):
        hidden = hidden + np.roll(hidden, 1, axis) + np.roll(hidden, 2, axis)
    made = np.moveaxis(np.tensordot(hidden, mixture, axes=(1, 0)), -1, 1)
    made = made + 0.05 * generator.standard_normal(made.shape)
    return np.float32(made if moved == sizes else np.moveaxis(made, 1, -1))


def samples(kind: str, count: int, seed: int) -> Array:
    return correlated(count, LAYERS[kind][2], seed, channels_last="MatMul" in kind)


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_h_gives_the_squared_outputs_of_the_layer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # With errors of the weights in the place of the weights, e^T H e is the sum of the squared outputs.
    monkeypatch.setattr(rounding, "_POSITIONS", 1000)  # all of them
    prepared = model_with(kind)
    x = samples(kind, 3, seed=3)
    layer = find_layers(quantized_of(prepared, x), prepared)[0]
    window = window_of(layer)
    assert window is not None
    moments, seen = window.moments(x, np.random.default_rng(0))
    without_bias = with_integers(prepared, {"b": np.zeros(6)})
    outputs = run(without_bias, x=x)[0] / layer.attributes.get("alpha", 1.0)
    channel = -1 if "M" in layer.op_type and layer.op_type != "Gemm" else 1
    by_channel = np.moveaxis(outputs, channel, 0).reshape(6, -1)
    assert seen == by_channel.shape[1]
    errors = rounding.as_rows(layer, layer.float_weight.astype(np.float64))
    np.testing.assert_allclose(squares(errors, moments).ravel(), np.square(by_channel).sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("scheme", [Scheme("uint8", False, 7), Scheme("int8", True, 8)], ids=str)
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_outputs_for_other_inputs_come_nearer(kind: str, scheme: Scheme) -> None:
    prepared = model_with(kind)
    x, others = samples(kind, 64, seed=3), samples(kind, 64, seed=4)
    quantized = quantized_of(prepared, x, scheme)
    before = quantized.SerializeToString()
    rounded = round_weights(quantized, prepared, batches_of(x))
    assert quantized.SerializeToString() == before
    onnx.checker.check_model(rounded, full_check=True)

    def error(model: onnx.ModelProto) -> float:
        layer = find_layers(model, prepared)[0]
        # Not always "w": a factor of the layer goes into a weight of its own.
        name = next(node.input[1] for node in prepared.graph.node if node.name == layer.name)
        dequantized = with_integers(prepared, {name: layer.weight.dequantized()})
        return float(np.square(run(dequantized, x=others)[0] - run(prepared, x=others)[0]).mean())

    assert error(rounded) < 0.7 * error(quantized)
    layer, old = find_layers(rounded, prepared)[0].weight, find_layers(quantized, prepared)[0].weight
    low, high = old.bounds()
    assert low <= layer.values.min()
    assert layer.values.max() <= high
    # Nothing but weights changed: type, scale, zero point, bias.
    assert with_integers(rounded, {old.name: old.values}).SerializeToString() == before
    run(rounded, x=others)


def test_no_output_has_a_larger_error_on_the_samples() -> None:
    prepared = model_with("Gemm")
    x = samples("Gemm", 40, seed=3)
    quantized = quantized_of(prepared, x)
    exact = run(prepared, x=x)[0]
    errors = []
    for model in (quantized, round_weights(quantized, prepared, batches_of(x))):
        weight = find_layers(model, prepared)[0].weight.dequantized()
        errors.append(np.square(run(with_integers(prepared, {"w": weight}), x=x)[0] - exact).sum(axis=0))
    assert np.all(errors[1] <= errors[0] * 1.001)


DEEP = """m (float[n, 4, 8, 8] x) => (float[n, 3] y) {
    [one] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    [act] r = Relu (a)
    [two] c = Conv <group = 6> (r, k)
    [three] d = Conv <strides = [2, 2]> (r, v)
    [pool] p = GlobalAveragePool (c)
    [flat] f = Flatten (p)
    [four] g = Gemm (f, u)
    [pool2] q = GlobalAveragePool (d)
    [flat2] h = Flatten (q)
    [sum] y = Add (g, h)
}"""
CONSTANTS: Constants = {
    "w": uniform(6, 4, 3, 3, seed=1, width=1),
    "b": uniform(6, seed=2),
    "k": uniform(6, 1, 3, 3, seed=3),
    "v": uniform(3, 6, 2, 2, seed=4),
    "u": uniform(6, 3, seed=5),
}


def deep(x: Array) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    prepared = prepared_of(DEEP, CONSTANTS)
    return prepared, quantized_of(prepared, x)


def test_in_several_passes_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = correlated(32, (4, 8, 8), 3, channels_last=False)
    prepared, quantized = deep(x)
    calls = 0

    def counted() -> Iterator[Feeds]:
        nonlocal calls
        calls += 1
        return batches_of(x)()

    whole = round_weights(quantized, prepared, counted)
    assert calls == 1
    assert round_weights(quantized, prepared, counted).SerializeToString() == whole.SerializeToString()
    calls = 0
    monkeypatch.setattr(rounding, "_BUDGET_BYTES", 36 * 36 * 8)
    assert round_weights(quantized, prepared, counted).SerializeToString() == whole.SerializeToString()
    assert calls == 2


def test_the_outputs_of_a_network_come_nearer() -> None:
    x = correlated(64, (4, 8, 8), 3, channels_last=False)
    prepared, quantized = deep(x)
    rounded = round_weights(quantized, prepared, batches_of(x))
    others = correlated(64, (4, 8, 8), 4, channels_last=False)
    exact = run(prepared, x=others)[0]
    old, new = (np.square(run(model, x=others)[0] - exact).mean() for model in (quantized, rounded))
    assert new < 0.7 * old


def test_layers_in_float_and_what_is_not_known_stay() -> None:
    text = """m (float[n, 4, 6, 6] x) => (float[n, 4, 6, 6] y) {
        [float] a = Conv <pads = [1, 1, 1, 1]> (x, w)
        [auto] c = Conv <auto_pad = "SAME_UPPER"> (a, w2)
        [up] d = ConvTranspose (c, t)
        [once] e = Conv (d, s)
        [twice] y = Conv (e, s)
    }"""
    constants: Constants = {
        "w": uniform(4, 4, 3, 3, seed=1),
        "w2": uniform(4, 4, 3, 3, seed=2),
        "t": uniform(4, 4, 1, 1, seed=3),
        "s": uniform(4, 4, 1, 1, seed=4),
    }
    prepared = prepared_of(text, constants)
    x = correlated(8, (4, 6, 6), 3, channels_last=False)
    quantized = quantized_of(prepared, x, Scheme("uint8", float_nodes=frozenset({"float"})))
    assert [layer.name for layer in find_layers(quantized, prepared)] == ["auto", "up", "once", "twice"]
    rounded = round_weights(quantized, prepared, batches_of(x))
    assert rounded.SerializeToString() == quantized.SerializeToString()


def test_products_of_weights_too_many_for_the_memory_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_BUDGET_BYTES", 32 * 32 * 8 - 1)
    prepared = model_with("Gemm")
    x = samples("Gemm", 40, seed=3)
    quantized = quantized_of(prepared, x)
    assert round_weights(quantized, prepared, batches_of(x)).SerializeToString() == quantized.SerializeToString()


@pytest.mark.parametrize("kind", ["Conv", "depthwise", "Gemm"])
def test_dead_weights_and_dead_inputs(kind: str) -> None:
    w = uniform(*LAYERS[kind][1], seed=1, width=1)
    w[0] = 0
    prepared = model_with(kind, w)
    x = samples(kind, 32, seed=3)
    x[:, 1] = 0
    quantized = quantized_of(prepared, x)
    old, new = (
        find_layers(model, prepared)[0].weight.values
        for model in (quantized, round_weights(quantized, prepared, batches_of(x)))
    )
    assert np.any(new != old)
    assert not np.any(new[0])
    dead = (slice(None), 1) if kind == "Conv" else (1,)  # its channel, its filter, its row
    np.testing.assert_array_equal(new[dead], old[dead])
    zeros = np.zeros_like(x)
    assert round_weights(quantized, prepared, batches_of(zeros)).SerializeToString() == quantized.SerializeToString()


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_a_huge_dynamic_range(kind: str) -> None:
    shape, sizes = LAYERS[kind][1:]
    scale = np.float32(10.0 ** np.linspace(-12, 12, sizes[0])).reshape(-1, *[1] * (len(sizes) - 1))
    turned = scale.reshape(1, -1, 1, 1) if kind == "Conv" else scale.reshape(-1, 1)
    prepared = model_with(kind, uniform(*shape, seed=1, width=1) / turned)
    x = samples(kind, 32, seed=3) * scale
    quantized = quantized_of(prepared, x, Scheme("uint8", True))
    rounded = round_weights(quantized, prepared, batches_of(x))
    low, high = find_layers(quantized, prepared)[0].weight.bounds()
    values = find_layers(rounded, prepared)[0].weight.values
    assert low <= values.min() <= values.max() <= high
    assert np.isfinite(run(rounded, x=x)[0]).all()


def test_without_samples_nothing_is_rounded() -> None:
    prepared, quantized = deep(uniform(4, 4, 8, 8))
    with pytest.raises(DataError, match="no calibration sample"):
        round_weights(quantized, prepared, lambda: ())
