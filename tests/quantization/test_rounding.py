"""Rounding for the outputs of a layer: by hand, against every other rounding, and on layers of every kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxdistill.quantization.calibration import Feeds
from onnxdistill.quantization.layers import find_layers
from onnxdistill.quantization.rounding import round_rows, round_weights
from onnxdistill.quantization.scheme import Scheme
from tests.quantization.graphs import run
from tests.quantization.int8 import USUAL, prepared_of, quantized_of

Array = NDArray[Any]


def rows(weights: list[float], moments: Array, low: int = -128, high: int = 127) -> list[float]:
    """Of one output."""
    found: list[float] = round_rows(np.array([[weights]]), np.array([moments], float), low, high)[0, 0].tolist()
    return found


def error(weights: Array, integers: Array, moments: Array) -> float:
    return float((weights - integers) @ moments @ (weights - integers))


def test_inputs_that_are_equal_make_up_for_each_other_by_hand() -> None:
    """0.4 x + 0.4 x is 0.8 x: one of the weights has to be 1, and nearest integers would make both 0."""
    together = np.ones((2, 2))
    assert sorted(rows([0.4, 0.4], together)) == [0, 1]
    # Inputs of opposite signs: 0.4 x - 0.4 x is nothing.
    assert rows([0.4, 0.4], np.array([[1.0, -1.0], [-1.0, 1.0]])) == [0, 0]
    assert rows([0.4, 0.4], np.eye(2)) == [0, 0]


def test_integers_stay_in_their_range() -> None:
    assert rows([0.4, 0.4], np.ones((2, 2)), high=0) == [0, 0]
    assert rows([200.0, -300.0], np.eye(2)) == [127, -128]


def test_inputs_that_are_always_zero_change_nothing() -> None:
    moments = np.zeros((3, 3))
    moments[:2, :2] = 1
    assert rows([0.4, 0.4, 0.4], moments)[2] == 0
    assert sorted(rows([0.4, 0.4, 0.4], moments)[:2]) == [0, 1]
    assert rows([0.4, 1.6, -0.4], np.zeros((3, 3))) == [0, 2, 0]


@given(st.integers(0, 2**32 - 1))
def test_the_error_is_near_the_least_of_all_roundings(seed: int) -> None:
    """Of the 16 ways to round four weights up or down, the greedy one is never far behind, and on average ahead."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((50, 4)) @ rng.standard_normal((4, 4))
    moments = x.T @ x / len(x)
    weights = rng.uniform(-3, 3, 4)
    found = error(weights, np.array(rows(weights.tolist(), moments)), moments)
    down = np.floor(weights)
    every = [error(weights, down + np.array(up), moments) for up in itertools.product((0, 1), repeat=4)]
    assert found <= np.mean(every)


BODIES = {
    "conv": ("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", (6, 4, 3, 3)),
    "strided, dilated": (
        "y = Conv <strides = [2, 2], dilations = [2, 1], pads = [2, 1, 2, 1]> (x, w, b)",
        (6, 4, 3, 3),
    ),
    "grouped": ("y = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w, b)", (6, 2, 3, 3)),
    "depthwise": ("y = Conv <group = 4, pads = [1, 1, 1, 1]> (x, w, b)", (4, 1, 3, 3)),
    "gemm": ("f = Flatten (x) y = Gemm <transB = 1> (f, w, b)", (6, 400)),
    "matmul": ("f = Flatten (x) m = MatMul (f, w) y = Add (m, b)", (400, 6)),
}


def smooth(count: int, seed: int) -> Array:
    """Images whose neighbouring pixels and channels are alike, `[count, 4, 10, 10]`."""
    noise = np.random.default_rng(seed).standard_normal((count, 1, 13, 13))
    for axis in (2, 3):
        noise = sum(np.roll(noise, shift, axis) for shift in range(4))
    mixed = noise * np.array([1.0, 0.8, 1.2, 0.9]).reshape(1, 4, 1, 1)
    return np.float32(mixed[:, :, 3:, 3:] + 0.05 * np.random.default_rng(seed + 1).standard_normal((count, 4, 10, 10)))


def network(kind: str) -> tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto]:
    """Float, int8 as ONNX Runtime rounds it, and rounded anew; weights of four bits or so, where it matters."""
    body, shape = BODIES[kind]
    rank = "n, 6" if "f = " in body else "n, c, h, w"
    rng = np.random.default_rng(3)
    weight = np.float32(rng.standard_normal(shape))
    weight.flat[0] = 12 * np.sign(weight.flat[0])  # an outlier makes all steps large
    channels = shape[1] if kind == "matmul" else shape[0]
    constants = {"w": weight, "b": np.float32(rng.standard_normal(channels))}
    prepared = prepared_of(f"m (float[n, 4, 10, 10] x) => (float[{rank}] y) {{ {body} }}", constants)
    quantized = quantized_of(prepared, smooth(40, 0), Scheme("uint8", per_channel=False, weight_bits=7))
    return prepared, quantized, round_weights(quantized, prepared, batches_of(smooth(40, 0)))


def batches_of(x: Array, size: int = 16) -> Callable[[], Iterator[Feeds]]:
    return lambda: ({"x": x[start : start + size]} for start in range(0, len(x), size))


@pytest.mark.parametrize("kind", BODIES)
def test_outputs_on_other_samples_are_nearer(kind: str) -> None:
    prepared, quantized, rounded = network(kind)
    x = smooth(60, 9)
    expected, before, after = (run(model, x=x)[0] for model in (prepared, quantized, rounded))
    errors = [float(np.mean((outputs - expected) ** 2)) for outputs in (before, after)]
    # Nine weights for each output cannot make up for much.
    assert errors[1] < (0.95 if kind == "depthwise" else 0.8) * errors[0]


@pytest.mark.parametrize("kind", BODIES)
def test_only_integers_change_by_little_and_stay_in_seven_bits(kind: str) -> None:
    prepared, quantized, rounded = network(kind)
    (before,), (after,) = (find_layers(model, prepared) for model in (quantized, rounded))
    assert np.array_equal(before.weight.scale, after.weight.scale)
    assert np.array_equal(before.weight.zero_point, after.weight.zero_point)
    difference = after.weight.values.astype(int) - before.weight.values
    assert difference.any()
    assert np.abs(after.weight.values.astype(int)).max() <= 64
    onnx.checker.check_model(rounded, full_check=True)


def test_the_same_samples_make_the_same_model() -> None:
    assert network("conv")[2].SerializeToString() == network("conv")[2].SerializeToString()


def test_dead_inputs_leave_the_layer_as_it_is() -> None:
    prepared = prepared_of(
        "m (float[n, 2] x) => (float[n, 1] y) { y = Gemm (x, w, b) }",
        {"w": np.float32([[0.4], [0.7]]), "b": np.float32([1.0])},
    )
    quantized = quantized_of(prepared, np.float32([[0, 0], [1, 1]]), USUAL)
    silent = np.zeros((4, 2), np.float32)
    rounded = round_weights(quantized, prepared, batches_of(silent))
    assert rounded.SerializeToString() == quantized.SerializeToString()
