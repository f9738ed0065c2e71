"""What is left in float at the beginning and at the end of a network."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxdistill.quantization.calibration import QUANTIZABLE
from onnxdistill.quantization.placement import float_beginning, mixed_ends
from onnxdistill.quantization.ranges import Range
from onnxdistill.quantization.shapes import infer_shapes
from tests.quantization.graphs import Constants, model_of

WEIGHTS = {
    "stem": np.zeros((16, 3, 3, 3), np.float32),  # 27 products
    "wide": np.zeros((16, 3, 7, 7), np.float32),  # 147
    "deep": np.zeros((16, 1, 3, 3), np.float32),  # 9
    "down": np.zeros((8, 16, 1, 1), np.float32),  # 16
    "same": np.zeros((16, 16, 1, 1), np.float32),  # 16
    "up": np.zeros((48, 16, 1, 1), np.float32),  # 16
    "down48": np.zeros((16, 48, 1, 1), np.float32),  # 48
    "square": np.zeros((8, 16, 3, 3), np.float32),  # 144
    "transposed": np.zeros((8, 4, 3, 3), np.float32),
    "thin": np.zeros((4, 3, 1, 1), np.float32),  # 3
    "thick": np.zeros((4, 4, 3, 3), np.float32),  # 36
    "flat": np.zeros((48, 3, 3, 3), np.float32),  # 27
    "shift": np.zeros((1, 3, 1, 1), np.float32),
}
STEM = "[a] a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, stem)\n [b] b = Relu (a)\n "
DEPTHWISE = "[c] c = Conv <group = 16, pads = [1, 1, 1, 1]> (b, deep)\n [d] d = Relu (c)\n "


def model_with(body: str, size: str = "32, 32") -> onnx.ModelProto:
    used: Constants = {name: array for name, array in WEIGHTS.items() if f", {name})" in body}
    return infer_shapes(model_of(f"m (float[n, 3, {size}] x) => (float[n, ch, h, w] y) {{ {body} }}", used))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # It ends before the first convolution with many products.
        (STEM + "[y] y = Conv (b, square)", "ab"),
        # Not between a layer and its activation.
        (STEM + "[s] s = Sigmoid (b)\n [m] m = Mul (b, s)\n [y] y = Conv (m, square)", "absm"),
        # The smaller tensor further on is better.
        (STEM + DEPTHWISE + "[e] e = Conv (d, down)\n [y] y = ConvTranspose (e, transposed)", "abcde"),
        # Of equal tensors the last.
        (STEM + DEPTHWISE + "[e] e = Conv (d, same)\n [f] f = Conv (e, up)\n [y] y = Conv (f, down48)", "abcde"),
        # A residual sum: two tensors are alive until it.
        (STEM + DEPTHWISE + "[e] e = Conv (d, same)\n [f] f = Add (b, e)\n [y] y = Conv (f, square)", "abcdef"),
        # A first layer that gains by int8.
        ("[a] a = Conv (x, wide)\n [y] y = Conv (a, square)", ""),
        # What comes before it and has no layer, such as a normalization.
        ("[s] s = Sub (x, shift)\n [a] a = Conv (s, wide)\n [y] y = Conv (a, square)", "s"),
        # The sum would be in another layout.
        (STEM + "[e] e = Conv (b, same)\n [f] f = Add (b, e)\n [y] y = Conv (f, square)", "abef"),
        ("[a] a = Conv (x, thin)\n [b] b = Conv <pads = [1, 1, 1, 1]> (a, thick)\n [y] y = Add (a, b)", ""),
        # 48 values for 3.
        ("[a] a = Conv <pads = [1, 1, 1, 1]> (x, flat)\n [y] y = Conv (a, down48)", ""),
        # A conversion behind pooling would be moved before it, where integers are pooled slowly.
        (STEM + "[p] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)\n [y] y = Conv (p, square)", ""),
        # Nothing gains by int8: no end.
        (STEM + "[y] y = Conv (b, down)", ""),
    ],
)
def test_where_it_ends(body: str, expected: str) -> None:
    assert "".join(float_beginning(model_with(body))) == expected


def test_open_sizes_have_no_beginning() -> None:
    assert float_beginning(model_with(STEM + "[y] y = Conv (b, square)", "h, w")) == ()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # What moves the joined values on is in float as well; what comes before has scales of its own.
        ("[r] r = Relu(b)\n [c] c = Concat<axis = 1>(a, r)\n [t] y = Transpose(c)", "ct"),
        ("[c] y = Concat<axis = 1>(a, b, a)", "c"),
        # Ranges alike, by a factor of four.
        ("[c] y = Concat<axis = 1>(a, d)", ""),
        # A layer reads what is joined, and needs one scale; so does a function that works on integers.
        ("[c] c = Concat<axis = 1>(a, b)\n [v] y = Conv(c, w)", ""),
        ("[c] c = Concat<axis = 1>(a, b)\n [s] y = Sigmoid(c)", ""),
        ("[c] c = Concat<axis = 1>(a, b)\n [s] s = Slice(c, one, two, one)\n [v] v = Conv(s, w)\n "
         "[f] y = Concat<axis = 1>(v, c)", "f"),
        # What reads it works on floats.
        ("[c] c = Concat<axis = 1>(a, b)\n [t] t = Transpose(c)\n [e] y = Exp(t)", "ct"),
        # What is joined first is alike, what comes on top is not.
        ("[c] c = Concat<axis = 1>(a, d)\n [f] y = Concat<axis = 1>(c, b)", "f"),
    ],
)  # fmt: skip
def test_ends_of_unlike_parts(body: str, expected: str) -> None:
    head = "m (float[n, 3, 8, 8] a, float[n, 3, 8, 8] b, float[n, 3, 8, 8] d) => (float y)"
    constants = {"w": np.zeros((2, 6, 1, 1)), "one": np.int64([1]), "two": np.int64([2])}
    used: Constants = {name: array for name, array in constants.items() if f", {name}" in body}
    ranges = dict.fromkeys("acrs", Range(-300.0, 300.0)) | {"b": Range(0.0, 1.0), "r": Range(0.0, 1.0)}
    ranges |= {"d": Range(0.0, 150.0), "v": Range(0.0, 1.0)}
    assert mixed_ends(model_of(f"{head} {{ {body} }}", used), ranges, QUANTIZABLE) == frozenset(expected)
