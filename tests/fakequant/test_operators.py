"""Every rule against ONNX Runtime, on graphs of one or a few nodes; and what has no rule."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onnxdistill.errors import NetworkError
from onnxdistill.fakequant import FakeQuantized, UnsupportedOperatorError
from tests.quantization.graphs import Constants, model_of, run, uniform


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def check(body: str, constants: Constants, sizes: list[int], rank: int, opset: int = 20) -> FakeQuantized:
    """Compares all outputs with ONNX Runtime's, of a batch that the graph does not fix."""
    shape = ", ".join(["n", *map(str, sizes[1:])])
    places = ", ".join(f"d{place}" for place in range(rank))
    model = model_of(f"g (float[{shape}] x) => (float[{places}] y) {{ {body} }}", constants, opset)
    network = FakeQuantized(model)
    for batch in (sizes[0], sizes[0] + 1):
        x = uniform(batch, *sizes[1:])
        (expected,) = run(model, x=x)
        actual = network(torch.from_numpy(x))
        assert actual.dtype == torch.float32
        np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    return network


IMAGES = [2, 4, 9, 8]
WEIGHT = uniform(6, 4, 3, 3, seed=1)
BIAS = uniform(6, seed=2)

LAYERS: dict[str, tuple[str, Constants, list[int], int]] = {
    "conv": ("y = Conv(x, w, b)", {"w": WEIGHT, "b": BIAS}, IMAGES, 4),
    "conv without bias": ("y = Conv(x, w)", {"w": WEIGHT}, IMAGES, 4),
    "conv with all": (
        "y = Conv<strides = [2, 1], pads = [1, 2, 1, 2], dilations = [1, 2], group = 2>(x, w, b)",
        {"w": uniform(6, 2, 3, 3), "b": BIAS},
        IMAGES,
        4,
    ),
    "conv with uneven pads": ("y = Conv<pads = [0, 1, 2, 1], strides = [2, 2]>(x, w)", {"w": WEIGHT}, IMAGES, 4),
    "depthwise": ("y = Conv<group = 4, pads = [1, 1, 1, 1]>(x, w)", {"w": uniform(4, 1, 3, 3)}, IMAGES, 4),
    "conv in one dimension": ("y = Conv<pads = [1, 1]>(x, w)", {"w": uniform(5, 4, 3)}, [2, 4, 9], 3),
    "conv in three dimensions": ("y = Conv(x, w)", {"w": uniform(5, 2, 2, 2, 2)}, [2, 2, 4, 5, 3], 5),
    "transposed": (
        "y = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 0]>(x, w, b)",
        {"w": uniform(4, 6, 3, 3), "b": BIAS},
        IMAGES,
        4,
    ),
    "transposed in groups": (
        "y = ConvTranspose<group = 2, dilations = [2, 1]>(x, w)",
        {"w": uniform(4, 3, 2, 2)},
        IMAGES,
        4,
    ),
    "transposed with uneven pads": (
        "y = ConvTranspose<strides = [2, 3], pads = [0, 1, 1, 0]>(x, w)",
        {"w": uniform(4, 6, 3, 3)},
        IMAGES,
        4,
    ),
    "gemm": ("y = Gemm<transB = 1>(x, w, b)", {"w": uniform(6, 5), "b": BIAS}, [3, 5], 2),
    "gemm not transposed": ("y = Gemm(x, w)", {"w": uniform(5, 6)}, [3, 5], 2),
    "gemm with factors": (
        "y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, b)",
        {"w": uniform(6, 5), "b": BIAS},
        [3, 5],
        2,
    ),
    "gemm with one number": ("y = Gemm(x, w, b)", {"w": uniform(5, 6), "b": uniform(1)}, [3, 5], 2),
    "matmul": ("y = MatMul(x, w)", {"w": uniform(5, 6)}, [3, 4, 5], 3),
    "matmul with itself": ("t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, t)", {}, [3, 4, 5], 3),
    "batch norm": (
        "y = BatchNormalization<epsilon = 0.1>(x, s, b, m, v)",
        {"s": uniform(4), "b": uniform(4, seed=1), "m": uniform(4, seed=2), "v": abs(uniform(4, seed=3))},
        IMAGES,
        4,
    ),
    "layer norm": (
        "y = LayerNormalization<axis = 1, epsilon = 0.01>(x, s, b)",
        {"s": uniform(4, 5), "b": uniform(4, 5, seed=1)},
        [3, 4, 5],
        3,
    ),
    "layer norm without bias": ("y = LayerNormalization(x, s)", {"s": uniform(5)}, [3, 4, 5], 3),
    "instance norm": (
        "y = InstanceNormalization<epsilon = 0.01>(x, s, b)",
        {"s": uniform(4), "b": uniform(4, seed=1)},
        IMAGES,
        4,
    ),
    "softmax": ("y = Softmax<axis = 1>(x)", {}, IMAGES, 4),
}
NUMBER = np.float32(0.7)
ELEMENTWISE: dict[str, tuple[str, Constants]] = {
    **{name: (f"y = {name}(x, c)", {"c": uniform(4, 1, 1, seed=1)}) for name in ("Add", "Sub", "Mul", "Div")},
    **{name: (f"y = {name}(x)", {}) for name in ("Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh")},
    **{name: (f"y = {name}(x)", {}) for name in ("Gelu", "Erf", "Exp", "Neg", "Softmax", "Identity", "Dropout")},
    "Sqrt": ("p = Mul(x, x) y = Sqrt(p)", {}),
    "Reciprocal": ("p = Exp(x) y = Reciprocal(p)", {}),
    "Mod": ("t = Cast<to = 7>(x) m = Mod(t, c) y = Cast<to = 1>(m)", {"c": ints(3)}),
    "Mod of floats": ("y = Mod<fmod = 1>(x, c)", {"c": np.float32(1.3)}),
    "Where, Equal, And, Not": (
        """r = Relu(x) a = Equal(r, x) t = Tanh(x) f = Equal(t, x) g = Not(f) h = And(a, g) y = Where(h, x, c)""",
        {"c": NUMBER},
    ),
    "Pow": ("y = Pow(x, two)", {"two": np.float32(2)}),
    "leaky with a slope": ("y = LeakyRelu<alpha = 0.3>(x)", {}),
    "hard sigmoid with a slope": ("y = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)", {}),
    "gelu by tanh": ('y = Gelu<approximate = "tanh">(x)', {}),
    "clip": ("y = Clip(x, least, most)", {"least": np.float32(-0.5), "most": NUMBER}),
    "clip above": ("y = Clip(x, , most)", {"most": NUMBER}),
    "clip not at all": ("y = Clip(x)", {}),
}
POOLINGS = [
    "MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)",
    "MaxPool<kernel_shape = [2, 3], pads = [0, 1, 1, 1], dilations = [2, 1]>(x)",
    "MaxPool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(x)",
    "AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)",
    "AveragePool<kernel_shape = [3, 2], count_include_pad = 1, pads = [1, 0, 0, 1]>(x)",
    "AveragePool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(x)",
    "GlobalAveragePool(x)",
]
SHAPES: dict[str, tuple[str, Constants, int]] = {
    "concat": ("y = Concat<axis = 1>(x, x)", {}, 4),
    "split by sizes": ("a, b = Split<axis = 1>(x, s) r = Relu(a) y = Concat<axis = 1>(b, r)", {"s": ints(1, 3)}, 4),
    "split in halves": ("a, b = Split<axis = 2, num_outputs = 2>(x) y = Concat<axis = 2>(b, a)", {}, 4),
    "slice": (
        "y = Slice(x, a, b, c, d)",
        {"a": ints(1, -3), "b": ints(9, 1000), "c": ints(2, 3), "d": ints(2, 1)},
        4,
    ),
    "slice backwards": (
        "y = Slice(x, a, b, c, d)",
        {"a": ints(-1), "b": ints(-(2**60)), "c": ints(1), "d": ints(-2)},
        4,
    ),
    "slice without axes": ("y = Slice(x, a, b)", {"a": ints(0, 1), "b": ints(2**60, 3)}, 4),
    "pad": ("y = Pad(x, p, v)", {"p": ints(0, 1, 2, 0, 0, 3, 0, 1), "v": NUMBER}, 4),
    "pad and crop": ("y = Pad(x, p, , a)", {"p": ints(1, -1, 0, 2), "a": ints(1, -1)}, 4),
    "reshape": ("y = Reshape(x, s)", {"s": ints(0, 2, -1)}, 3),
    "reshape by its own size": (
        "s = Shape<end = 1>(x) t = Concat<axis = 0>(s, r) y = Reshape<allowzero = 1>(x, t)",
        {"r": ints(-1)},
        2,
    ),
    "flatten": ("y = Flatten<axis = 2>(x)", {}, 2),
    "flatten from behind": ("y = Flatten<axis = -1>(x)", {}, 2),
    "transpose": ("y = Transpose<perm = [0, 2, 3, 1]>(x)", {}, 4),
    "transpose all": ("y = Transpose(x)", {}, 4),
    "squeeze": ("m = GlobalAveragePool(x) y = Squeeze(m, a)", {"a": ints(2, -1)}, 2),
    "unsqueeze": ("y = Unsqueeze(x, a)", {"a": ints(-1, 0)}, 6),
    "expand": ("m = GlobalAveragePool(x) y = Expand(m, s)", {"s": ints(4, 3, 1)}, 4),
    "gather": ("y = Gather<axis = 1>(x, i)", {"i": np.array([[0, -1], [2, 0]])}, 5),
    "gather one": ("y = Gather<axis = 2>(x, i)", {"i": np.array(-2)}, 3),
    "sizes computed with": (
        """s = Shape(x) h = Gather(s, two) k = Mul(h, two) l = Div(k, two) u = Unsqueeze(l, zero)
        t = Concat<axis = 0>(minus, u) y = Reshape(x, t)""",
        {"two": np.array(2), "zero": ints(0), "minus": ints(-1)},
        2,
    ),
    "constants": (
        """c = Constant<value_floats = [1.0, 2.0]>() i = Constant<value_ints = [3, 1]>() d = Cast<to = 1>(i)
        e = Add(c, d) s = ReduceMean<keepdims = 0>(e) y = Mul(x, s)""",
        {},
        4,
    ),
    "mean": ("y = ReduceMean<keepdims = 0>(x, a)", {"a": ints(2, 3)}, 2),
    "largest": ("y = ReduceMax<keepdims = 0>(x, a)", {"a": ints(-1)}, 3),
    "length": ("y = ReduceL2(x, a)", {"a": ints(1)}, 4),
    "depth to space": ("y = DepthToSpace<blocksize = 2>(x)", {}, 4),
    "depth to space, as torch does": ('y = DepthToSpace<blocksize = 2, mode = "CRD">(x)', {}, 4),
    "filled": (
        """s = Shape(x) a = ConstantOfShape<value = float[1] {2.5}>(s) b = ConstantOfShape(s) c = Mul(x, a)
        y = Add(c, b)""",
        {},
        4,
    ),
    "range": (
        """s = Shape(x) c = Gather(s, one) r = Range(zero, c, one) f = Cast<to = 1>(r) u = Unsqueeze(f, behind)
        y = Add(x, u)""",
        {"zero": np.array(0), "one": np.array(1), "behind": ints(1, 2)},
        4,
    ),
    "mean of all": ("y = ReduceMean(x)", {}, 4),
    "mean of nothing": ("y = ReduceMean<noop_with_empty_axes = 1>(x)", {}, 4),
}
COORDINATES = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]
RESIZES = [
    *(f'mode = "linear", coordinate_transformation_mode = "{each}"' for each in COORDINATES),
    *(
        f'mode = "nearest", coordinate_transformation_mode = "{each}", nearest_mode = "{rounding}"'
        for each in COORDINATES[::2]
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
]


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    check(*LAYERS[name])


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_value_by_value(name: str) -> None:
    check(*ELEMENTWISE[name], IMAGES, 4)


@pytest.mark.parametrize("call", POOLINGS)
def test_poolings(call: str) -> None:
    check(f"y = {call}", {}, IMAGES, 4)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    body, constants, rank = SHAPES[name]
    check(body, constants, IMAGES, rank)


@pytest.mark.parametrize("attributes", RESIZES)
@pytest.mark.parametrize("given", ["scales", "sizes"])
def test_resize(attributes: str, given: str) -> None:
    if given == "scales":
        body, constants = "y = Resize<{}>(x, , f)", {"f": np.array([1, 1, 2, 1.5], np.float32)}
    else:
        body, constants = "y = Resize<{}, axes = [2, 3]>(x, , , f)", {"f": ints(5, 12)}
    check(body.format(attributes), constants, IMAGES, 4)


@pytest.mark.parametrize("opset", [13, 17])
def test_axes_that_are_attributes(opset: int) -> None:
    check("y = ReduceMean<axes = [2, 3]>(x)", {}, IMAGES, 4, opset)


def test_a_node_of_which_nothing_varies_is_computed_once() -> None:
    network = check("t = Mul(c, c) u = Relu(t) y = Add(x, u)", {"c": uniform(4, 1, 1)}, IMAGES, 4)
    assert "steps=1" in repr(network)


def test_several_outputs_come_as_a_tuple() -> None:
    model = model_of("g (float[n, 2] x) => (float[n, 2] a, float[n, 2] b) { a = Relu(x) b = Add(a, x) }")
    x = uniform(3, 2)
    actual = FakeQuantized(model)(torch.from_numpy(x))
    assert isinstance(actual, tuple)
    for one, expected in zip(actual, run(model, x=x), strict=True):
        np.testing.assert_allclose(one.numpy(), expected)


REFUSED: dict[str, tuple[str, Constants, str]] = {
    "an operator": ("y = CumSum(x, a)", {"a": np.array(1)}, "CumSum"),
    "an operator of another domain": ("y = com.microsoft.QuickGelu(x)", {}, "com.microsoft.QuickGelu"),
    "automatic pads": ('y = Conv<auto_pad = "SAME_UPPER">(x, w)', {"w": WEIGHT}, "auto_pad = 'SAME_UPPER'"),
    "a second output": ("y, i = MaxPool<kernel_shape = [2, 2]>(x)", {}, "more than one output"),
    "a cubic resize": ('y = Resize<mode = "cubic">(x, , f)', {"f": np.ones(4, np.float32)}, "mode = 'cubic'"),
    "a pad of mirrors": ('y = Pad<mode = "reflect">(x, p)', {"p": ints(*[0] * 8)}, "mode = 'reflect'"),
    "means of pads": (
        "y = AveragePool<kernel_shape = [3, 3], pads = [0, 0, 1, 1]>(x)",
        {},
        "uneven pads that are not counted",
    ),
    "training": (
        "y, m, v = BatchNormalization<training_mode = 1>(x, s, s, s, s)",
        {"s": np.ones(4, np.float32)},
        "more than one output",
    ),
    "a type": ("t = Cast<to = 10>(x) y = Cast<to = 1>(t)", {}, "to = FLOAT16"),
    "a scale that is computed": (
        "s = ReduceMean<keepdims = 0>(x) q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)",
        {},
        "a scale that is not",
    ),
    "a negative scale": (
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        {"s": np.float32(-1), "z": np.uint8(0)},
        "a scale that is not positive",
    ),
    "zero points that differ": (
        "q = QuantizeLinear<axis = 1>(x, s, z) y = DequantizeLinear<axis = 1>(q, s, z)",
        {"s": np.ones(4, np.float32), "z": np.arange(4, dtype=np.uint8)},
        "zero points that differ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_named_at_once(name: str) -> None:
    body, constants, message = REFUSED[name]
    model = model_of(f"g (float[n, 4, 9, 8] x) => (float[a, b, c, d] y) {{ {body} }}", constants)
    with pytest.raises(UnsupportedOperatorError, match=r"whose output is '[a-z]") as caught:
        FakeQuantized(model)
    assert message in str(caught.value)
    assert isinstance(caught.value, NetworkError)


def test_all_operations_can_be_pickled() -> None:
    names = {**LAYERS, **{name: (*ELEMENTWISE[name], IMAGES, 4) for name in ELEMENTWISE}}
    names |= {name: (*SHAPES[name][:2], IMAGES, SHAPES[name][2]) for name in SHAPES}
    names |= {call: (f"y = {call}", {}, IMAGES, 4) for call in POOLINGS}
    names["resize"] = ("y = Resize(x, , f)", {"f": np.array([1, 1, 2, 2], np.float32)}, IMAGES, 4)
    for body, constants, sizes, rank in names.values():
        network = check(body, constants, sizes, rank)
        copied: Any = pickle.loads(pickle.dumps(network))
        x = torch.from_numpy(uniform(*sizes))
        assert torch.equal(copied(x), network(x))
