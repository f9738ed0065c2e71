"""Graphs that ONNX Runtime's quantizer fails at, or silently changes: their int8 forms run, and do the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from onnxdistill.errors import ModelFileError
from onnxdistill.quantization.scheme import Activations, Scheme
from onnxdistill.quantization.workshop import Form, Workshop
from tests.quantization.graphs import Constants, model_of, operators, run

_RNG = np.random.default_rng(0)


def normal(*shape: int) -> NDArray[np.float32]:
    return _RNG.standard_normal(shape, dtype=np.float32)


# A mask of attention in which every place sees itself and those before.
CAUSAL = np.where(np.tril(np.ones((6, 6), bool)), 0, -np.inf).astype(np.float32)

GRAPHS: dict[str, tuple[str, Constants, tuple[int, ...]]] = {
    "a stack of matrices": (
        "g (float[n,2,6,8] x) => (float[n,2,6,5] y) { y = MatMul(x, w) }",
        {"w": normal(2, 8, 5)},
        (2, 6, 8),
    ),
    "a stack of one matrix": (
        "g (float[n,6,8] x) => (float[n,6,5] y) { y = MatMul(x, w) }",
        {"w": normal(1, 8, 5)},
        (6, 8),
    ),
    "a matrix on the left": (
        "g (float[n,8,6] x) => (float[n,5,6] y) { y = MatMul(w, x) }",
        {"w": normal(5, 8)},
        (8, 6),
    ),
    "a normalisation over two axes": (
        """g (float[n,4,6,6] x) => (float[n,4,6,6] y) {
            c = Conv<kernel_shape = [1, 1]>(x, w)
            y = LayerNormalization<axis = -2>(c, s, b)
        }""",
        {"w": normal(4, 4, 1, 1), "s": normal(6, 6), "b": normal(6, 6)},
        (4, 6, 6),
    ),
    "embeddings that are weights as well": (
        """g (float[n,8] x) => (float[n,12] y) {
            i = ArgMax<axis = 1, keepdims = 0>(x)
            e = Gather(w, i)
            h = Add(x, e)
            y = Gemm<transB = 1>(h, w)
        }""",
        {"w": normal(12, 8)},
        (8,),
    ),
    "an output that a Relu reads": (
        """g (float[n,3,6,6] x) => (float[n,4,6,6] c, float[n,4,6,6] y) {
            c = Conv<kernel_shape = [1, 1]>(x, w)
            y = Relu(c)
        }""",
        {"w": normal(4, 3, 1, 1)},
        (3, 6, 6),
    ),
    "a Relu beside a branch that reads the same": (
        """g (float[n,3,6,6] x) => (float[n,4,6,6] y) {
            c = Conv<kernel_shape = [1, 1]>(x, w)
            r = Relu(c)
            z = If(yes) <
                then_branch = a () => (float[n,4,6,6] p) { p = Neg(c) },
                else_branch = b () => (float[n,4,6,6] q) { q = Identity(c) }
            >
            y = Add(r, z)
        }""",
        {"w": normal(4, 3, 1, 1), "yes": np.array(True)},
        (3, 6, 6),
    ),
    "a bias of two convolutions": (
        """g (float[n,4,6,6] x) => (float[n,4,4,4] y) {
            c = Conv<kernel_shape = [1, 1]>(x, w, b)
            y = Conv<kernel_shape = [3, 3]>(c, v, b)
        }""",
        {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 3, 3), "b": normal(4)},
        (4, 6, 6),
    ),
    "a weight of two convolutions": (
        """g (float[n,4,6,6] x) => (float[n,4,4,4] y, float[n,4,2,2] z) {
            y = Conv<kernel_shape = [3, 3]>(x, w)
            z = Conv<kernel_shape = [3, 3], dilations = [2, 2]>(x, w)
        }""",
        {"w": normal(4, 4, 3, 3)},
        (4, 6, 6),
    ),
    "a Clip with bounds of one dimension": (
        """g (float[n,3,6,6] x) => (float[n,4,6,6] y) {
            c = Conv<kernel_shape = [1, 1]>(x, w)
            y = Clip(c, low, high)
        }""",
        {"w": normal(4, 3, 1, 1), "low": np.zeros(1, np.float32), "high": np.full(1, 6, np.float32)},
        (3, 6, 6),
    ),
    "a Clip above zero": (
        """g (float[n,3,6,6] x) => (float[n,4,6,6] y) {
            c = Conv<kernel_shape = [1, 1]>(x, w)
            k = Clip(c, low, high)
            y = Log(k)
        }""",
        {"w": normal(4, 3, 1, 1), "low": np.float32(1), "high": np.float32(6)},
        (3, 6, 6),
    ),
    "a Clip below zero": (
        """g (float[n,3,6,6] x) => (float[n,4,6,6] y) {
            c = Conv<kernel_shape = [1, 1]>(x, w)
            y = Clip(c, low, high)
        }""",
        {"w": normal(4, 3, 1, 1), "low": np.float32(-20), "high": np.float32(-1)},
        (3, 6, 6),
    ),
    "a Clip with computed bounds": (
        """g (float[n,3,6,6] x) => (float[n,4,6,6] y) {
            m = ReduceMax<keepdims = 0>(x)
            h = Mul(m, half)
            c = Conv<kernel_shape = [1, 1]>(x, w)
            y = Clip(c, low, h)
        }""",
        {"w": normal(4, 3, 1, 1), "low": np.float32(0), "half": np.float32(0.25)},
        (3, 6, 6),
    ),
    "a mask of minus infinity": (
        """g (float[n,6,8] x) => (float[n,6,8] y) {
            t = Transpose<perm = [0, 2, 1]>(x)
            s = MatMul(x, t)
            k = Add(s, mask)
            p = Softmax<axis = -1>(k)
            v = MatMul(p, x)
            y = MatMul(v, w)
        }""",
        {"w": normal(8, 8), "mask": CAUSAL},
        (6, 8),
    ),
}


def forms(tmp_path: Path, name: str, scheme: Scheme) -> tuple[list[NDArray[Any]], list[NDArray[Any]], onnx.ModelProto]:
    """Outputs of a graph in float and in int8, on what it was calibrated with, and the int8 form."""
    text, constants, shape = GRAPHS[name]
    model = model_of(text, constants)
    onnx.save(model, tmp_path / "float.onnx")
    x = np.random.default_rng(1).standard_normal((16, *shape), dtype=np.float32)
    workshop = Workshop(tmp_path / "float.onnx", lambda: [{"x": x}], remembers=False)
    made = workshop.write(Form(scheme), tmp_path / "int8.onnx").model
    return run(model, x=x), run(onnx.load(tmp_path / "int8.onnx"), x=x), made


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("name", GRAPHS)
def test_int8_forms_do_the_same(tmp_path: Path, name: str, activations: Activations) -> None:
    expected, given, made = forms(tmp_path, name, Scheme(activations, per_channel=True, weight_bits=7))
    assert operators(made)["QuantizeLinear"]
    for before, after in zip(expected, given, strict=True):
        error = np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2))
        assert error < 0.06, f"{error:.3f}"


def test_what_is_shared_keeps_its_channels_and_its_kernels(tmp_path: Path) -> None:
    scheme = Scheme("uint8", per_channel=True, weight_bits=7)
    _, _, shared_bias = forms(tmp_path, "a bias of two convolutions", scheme)
    kinds = {tensor.name: tensor.data_type for tensor in shared_bias.graph.initializer}
    sources = {node.output[0]: node.input[0] for node in shared_bias.graph.node if node.op_type == "DequantizeLinear"}
    biases = [sources[node.input[2]] for node in shared_bias.graph.node if node.op_type == "Conv"]
    # Of 32 bits, each in the scales of its own layer, or there would be no integer kernel.
    assert [kinds[name] for name in biases] == [TensorProto.INT32] * 2
    assert len(set(biases)) == 2
    _, _, shared_weight = forms(tmp_path, "a weight of two convolutions", scheme)
    scales = [tensor.dims for tensor in shared_weight.graph.initializer if tensor.name == "w_scale"]
    assert [list(dims) for dims in scales] == [[4]]


def test_what_a_mask_makes_infinite_stays_in_float_and_is_told(tmp_path: Path) -> None:
    text, constants, shape = GRAPHS["a mask of minus infinity"]
    onnx.save(model_of(text, constants), tmp_path / "float.onnx")
    workshop = Workshop(tmp_path / "float.onnx", lambda: [{"x": normal(4, *shape)}], remembers=False)
    made = workshop.make(Form(Scheme("uint8", per_channel=True)))
    assert workshop.unbounded == ["k"]
    assert "k" in made.unseen
    read = {node.input[0] for node in made.model.graph.node if node.op_type == "QuantizeLinear"}
    assert "k" not in read
    assert "v" in read


def test_values_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    text, constants, shape = GRAPHS["a mask of minus infinity"]
    broken = {**constants, "mask": np.full((6, 6), np.nan, np.float32)}
    onnx.save(model_of(text, broken), tmp_path / "float.onnx")
    workshop = Workshop(tmp_path / "float.onnx", lambda: [{"x": normal(4, *shape)}], remembers=False)
    with pytest.raises(ModelFileError, match=r"tensor '\w' has values that are no number \(NaN\)"):
        workshop.make(Form(Scheme("uint8", per_channel=True)))
