"""Saturation in 16 bits: pairs by hand, the proof as a property, and ONNX Runtime's own kernels, bit by bit.

The kernels for AVX2 run on a processor without VNNI: on this one, or on one that QEMU emulates.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from onnxdistill.device.host import read_processor
from onnxdistill.errors import DataError, ModelFileError, UsageError
from onnxdistill.quantization.integergraph import find_integer_layers
from onnxdistill.quantization.pairsums import IntegerLayer
from onnxdistill.quantization.saturation import count_saturation, saturating_layers
from tests.quantization.graphs import model_of, run_as_here, uniform

Array = NDArray[Any]

STEP = 2048
U0, I0 = np.uint8(0), np.int8(0)
# With scales of 1, values are integers. Outputs are sums, or sums in steps of 2,048: float32 has both exactly.
SCALES: dict[str, Any] = {"s": np.float32(1), "z0": U0, "i0": I0, "step": np.float32(STEP)}
SUMS = "y = Identity(m)"
STEPS = "o = QuantizeLinear(m, step, zo) y = DequantizeLinear(o, step, zo)"


def layer_model(
    node: str,
    weights: Array,
    shape: tuple[int, ...],
    zero: np.integer[Any] = U0,
    tail: str = SUMS,
    weight_zero: Array | np.integer[Any] = I0,
) -> onnx.ModelProto:
    """A quantized layer, `m = node(d, v)`, of integers `x`."""
    return quantized(
        f"""q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        v = DequantizeLinear<axis = 1>(w, ws, wz)
        m = {node}(d, v)
        {tail}""",
        shape,
        w=weights,
        ws=np.ones(np.shape(weight_zero), np.float32),
        wz=weight_zero,
        z=zero,
        zo=zero.dtype.type(128 if zero.dtype == np.uint8 else 0),
    )


def quantized(body: str, shape: tuple[int, ...], **constants: Any) -> onnx.ModelProto:
    """A graph with an input `x` and an output `y` of the same rank; nodes are called after their outputs."""
    open_sizes = ", ".join(f"size{axis}" for axis in range(len(shape)))
    text = f"g (float[{', '.join(map(str, shape))}] x) => (float[{open_sizes}] y) {{ {body} }}"
    model = model_of(text, {**SCALES, **constants})
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def convolution(
    weights: Array, shape: tuple[int, ...], attributes: str = "", zero: np.integer[Any] = U0
) -> onnx.ModelProto:
    return layer_model(f"Conv<{attributes}>" if attributes else "Conv", weights, shape, zero, STEPS)


def only_layer(model: onnx.ModelProto) -> IntegerLayer:
    (layer,) = find_integer_layers(model)
    return layer


class TestPairsByHand:
    # Of a sum of five products with 255, where two neighbours of 127 are 64,770 and do not fit.
    COLUMNS = np.int8(
        [
            [127, 127, 0, 0, 0],
            [0, 127, 127, 0, 0],  # neighbours, but no pair
            [-127, -127, 1, 1, 0],
            [127, -127, 0, 0, 127],  # the last one is alone
            [127, 2, 0, 0, 0],  # 255 * 129 = 32,895
            [127, 1, 0, 0, 0],  # 255 * 128 = 32,640
            [-128, -1, 0, 0, -128],
            [-128, 0, 0, 0, 0],
        ]
    ).T
    EXACT = (64_770, 64_770, -64_260, 32_385, 32_895, 32_640, -65_535, -32_640)
    # What ONNX Runtime 1.32.0 returned on an emulated processor with AVX2.
    SEEN = (32_767, 64_770, -32_258, 32_385, 32_767, 32_640, -65_408, -32_640)

    def test_a_product_of_matrices(self) -> None:
        model = layer_model("MatMul", self.COLUMNS, (1, 5))
        activations = np.full((1, 5), 255, np.uint8)
        assert tuple(only_layer(model).compute(activations)[0]) == self.SEEN
        assert tuple(only_layer(model).compute(activations, saturating=False)[0]) == self.EXACT
        assert saturating_layers(model) == {"m": 4 / 16}

    def test_a_convolution_adds_channels_before_positions(self) -> None:
        weights = np.zeros((4, 3, 1, 2), np.int8)
        weights[0, :2, 0, 0] = 127  # two channels
        weights[1, 0, 0, :] = 127  # two positions, side by side in the file
        weights[2, 2, 0, 0] = weights[2, 0, 0, 1] = 127  # the last channel, and the first one of the next position
        weights[3, 1:, 0, 0] = 127  # the second and the third channel
        model = convolution(weights, (1, 3, 1, 2))
        sums = only_layer(model).compute(np.full((1, 3, 1, 2), 255, np.uint8))
        assert sums.ravel().tolist() == [32_767, 64_770, 32_767, 64_770]
        assert saturating_layers(model) == {"m": 2 / 12}

    def test_groups_pair_their_own_channels(self) -> None:
        weights = np.int8([[127, 127], [127, 0]]).reshape(2, 2, 1, 1)
        assert saturating_layers(convolution(weights, (1, 4, 1, 1), "group = 2")) == {"m": 0.5}

    def test_depthwise_kernels_are_exact_but_for_several_outputs_a_channel(self) -> None:
        assert find_integer_layers(convolution(np.full((4, 1, 3, 3), 127, np.int8), (1, 4, 3, 3), "group = 4")) == ()
        two_each = convolution(np.full((8, 1, 3, 3), 127, np.int8), (1, 4, 3, 3), "group = 4")
        assert saturating_layers(two_each) == {"m": 1.0}

    def test_padding_has_the_value_of_the_zero_point(self) -> None:
        weights = np.full((1, 2, 1, 3), 127, np.int8)
        layer = only_layer(convolution(weights, (1, 2, 1, 1), "pads = [0, 1, 0, 1]", np.uint8(200)))
        # 2 * 127 times 200, 250, and 200 again; 6 * 127 * 200 is subtracted when they have been added up.
        activations = np.full((1, 2, 1, 1), 250, np.uint8)
        assert layer.compute(activations).item() == 3 * 32_767 - 6 * 127 * 200
        assert layer.compute(activations, saturating=False).item() == 2 * 127 * 50

    @pytest.mark.parametrize("sign", [1, -1])
    def test_seven_bits_fit_and_not_one_more(self, sign: int) -> None:
        for largest, share in ((64, 0.0), (65, 1.0)):  # 2 * 255 * 64 = 32,640; 2 * 255 * 65 = 33,150
            weights = np.full((2, 1), sign * largest, np.int8)
            assert only_layer(layer_model("MatMul", weights, (1, 2))).share_saturating() == share

    def test_uint8_weights_are_exact(self) -> None:
        weights = np.full((2, 2), 255, np.uint8)
        assert find_integer_layers(layer_model("MatMul", weights, (1, 2), weight_zero=np.uint8(0))) == ()

    @pytest.mark.parametrize(
        ("bounded", "most"),
        [
            ("b = Clip(x, low, high)", 100),
            ("c = Clip(x, low, high) b = MaxPool<kernel_shape = [1, 1]>(c)", 100),
            ("b = Sigmoid(x)", 1),
            ("b = Relu(x)", 255),
            ("b = Clip(x, low)", 255),
        ],
    )
    def test_what_is_known_of_the_activations_counts(self, bounded: str, most: int) -> None:
        model = quantized(
            f"{bounded} q = QuantizeLinear(b, s, z0) d = DequantizeLinear(q, s, z0) v = DequantizeLinear(w, s, i0) "
            f"m = Conv(d, v) {STEPS}",
            (1, 2, 3, 3),
            w=np.full((2, 2, 1, 1), 127, np.int8),
            low=np.float32(0),
            high=np.float32(100),  # 2 * 127 * 100 = 25,400
            zo=np.uint8(0),
        )
        assert only_layer(model).most == most
        assert saturating_layers(model) == ({} if most < 255 else {"m": 1.0})


WEIGHTS = st.integers(60, 128).flatmap(
    lambda limit: arrays.arrays(np.int8, (7, 3), elements=st.integers(-limit, min(limit, 127)))
)
ACTIVATIONS = arrays.arrays(np.uint8, (2, 7), elements=st.integers(0, 255) | st.just(255))


@pytest.fixture(scope="module")
def layer() -> IntegerLayer:
    return only_layer(layer_model("MatMul", np.zeros((7, 3), np.int8), (2, 7), np.uint8(9)))


class TestProof:
    @given(WEIGHTS, ACTIVATIONS)
    def test_the_emulation_is_the_instruction_by_definition(
        self, layer: IntegerLayer, weights: Array, activations: Array
    ) -> None:
        sums = dataclasses.replace(layer, weights=weights).compute(activations)
        for row, column in np.ndindex(sums.shape):
            products = [int(a) * int(w) for a, w in zip(activations[row], weights[:, column], strict=True)]
            pairs = [max(-(2**15), min(2**15 - 1, sum(products[at : at + 2]))) for at in range(0, 7, 2)]
            assert sums[row, column] == sum(pairs) - 9 * int(weights[:, column].sum(dtype=int))

    @given(WEIGHTS, ACTIVATIONS)
    def test_it_holds(self, layer: IntegerLayer, weights: Array, activations: Array) -> None:
        proved = dataclasses.replace(layer, weights=weights)
        if proved.share_saturating() == 0:
            exact = (activations.astype(int) - 9) @ weights.astype(int)
            np.testing.assert_array_equal(proved.compute(activations), exact)

    @given(WEIGHTS)
    def test_it_is_tight(self, layer: IntegerLayer, weights: Array) -> None:
        refused = dataclasses.replace(layer, weights=weights)
        alone = np.zeros((3, 7), np.uint8)  # the activations of one pair at a time
        for pair in range(3):
            alone[pair, 2 * pair : 2 * pair + 2] = 255
        wrong = refused.compute(alone) != refused.compute(alone, saturating=False)
        assert wrong.mean() == pytest.approx(refused.share_saturating())


def integers(*shape: int, seed: int = 0) -> Array:
    """As quantized activations that are large."""
    return np.random.default_rng(seed).integers(200, 256, shape).astype(np.float32)


def weights_of(*shape: int) -> Array:
    return np.random.default_rng(1).choice(np.int8([-127, 127, -100, 100, -64, 64, 3]), shape)


@dataclasses.dataclass(frozen=True)
class Case:
    """A quantized layer and its input; of weights that are computed, the values."""

    model: onnx.ModelProto
    x: Array
    weights: Array | None = None

    def emulated(self, *, saturating: bool) -> Array:
        layers = find_integer_layers(self.model)
        if not layers:
            return run_as_here(self.model, x=self.x)[0]
        activations = (self.x + layers[0].zero_point).astype(np.uint8)
        sums = layers[0].compute(activations, self.weights, saturating=saturating)
        in_steps = any(node.output[0] == "o" for node in self.model.graph.node)
        return np.clip(np.rint(sums / STEP), -128, 127) * STEP if in_steps else sums


def cases(bits: int) -> Iterator[tuple[str, Case]]:
    """Every way into the kernels, with weights of so many bits."""

    def of(*shape: int) -> Array:
        return weights_of(*shape) if bits == 8 else (weights_of(*shape) // 2).astype(np.int8)

    # Rows and columns that fill the blocks of the kernels and not; depths beyond a slice of 384.
    for index, (rows, depth, columns) in enumerate([(1, 9, 1), (1, 33, 40), (5, 16, 16), (6, 400, 40), (3, 2, 8)]):
        zero = np.uint8(77 * (index % 2))
        x, weights = integers(rows, depth) - np.float32(zero), of(depth, columns)
        for node, given_weights in (("MatMul", weights), ("Gemm", weights), ("Gemm<transB = 1>", weights.T)):
            for output, tail in (("sums", SUMS), ("steps", STEPS)):
                model = layer_model(node, np.ascontiguousarray(given_weights), x.shape, zero, tail)
                yield f"{node} {rows}x{depth}x{columns} {output}", Case(model, x)
    x = integers(5, 8)
    yield "transposed", Case(layer_model("Gemm<transA = 1>", of(5, 8), x.shape), x)
    zeros = np.int8([0, 5, -7, 9, 1, 2, 3, 4])
    yield "weight zero points", Case(layer_model("MatMul", of(8, 8), x.shape, weight_zero=zeros), x)
    x = integers(2, 3, 5, 9)
    yield "stacked", Case(layer_model("MatMul", of(9, 8), x.shape), x)
    yield "both stacked", Case(layer_model("MatMul", of(2, 1, 9, 8), x.shape), x)
    x = integers(4, 6) - 128
    yield "int8 activations", Case(layer_model("Gemm", of(6, 8), x.shape, np.int8(0)), x)

    for sizes, shape, attributes in [
        ((1, 3, 6, 6), (8, 3, 3, 3), "pads = [1, 1, 1, 1]"),
        ((1, 16, 6, 6), (16, 16, 3, 3), "pads = [1, 1, 1, 1]"),  # a kernel of its own
        ((2, 16, 6, 6), (24, 16, 3, 3), "pads = [1, 1, 1, 1], strides = [2, 2]"),
        ((1, 5, 4, 4), (7, 5, 1, 1), ""),
        ((1, 32, 5, 5), (16, 32, 1, 1), "strides = [2, 2]"),
        ((1, 6, 9, 9), (5, 6, 3, 3), "dilations = [2, 2], pads = [1, 0, 2, 1]"),
        ((1, 3, 7, 8), (5, 3, 4, 3), 'auto_pad = "SAME_LOWER", strides = [2, 1]'),
        ((1, 3, 7, 8), (5, 3, 4, 3), 'auto_pad = "SAME_UPPER", strides = [1, 2]'),
        ((1, 8, 6, 6), (12, 4, 3, 3), "group = 2, pads = [1, 1, 1, 1]"),
        ((1, 4, 6, 6), (8, 1, 3, 3), "group = 4, pads = [1, 1, 1, 1]"),
        ((1, 16, 6, 6), (16, 1, 3, 3), "group = 16, pads = [1, 1, 1, 1]"),  # depthwise, two kernels
        ((1, 5, 6, 6), (5, 1, 3, 3), "group = 5, pads = [1, 1, 1, 1]"),
        ((1, 5, 9), (6, 5, 3), "pads = [1, 1]"),
        ((1, 6, 4, 5, 4), (6, 3, 2, 2, 3), "group = 2"),
    ]:
        x = integers(*sizes) - 40
        yield f"Conv {sizes} {shape} {attributes}", Case(convolution(of(*shape), sizes, attributes, np.uint8(40)), x)


def computed_weights() -> Case:
    """Activations multiplied by activations of int8 that stay so, since another layer reads them."""
    x = integers(4, 6)
    model = quantized(
        """q = QuantizeLinear(x, s, z0)
        d = DequantizeLinear(q, s, z0)
        t = Transpose<perm = [1, 0]>(x)
        n = Mul(t, half)
        p = QuantizeLinear(n, s, i0)
        v = DequantizeLinear(p, s, i0)
        e = DequantizeLinear(p, s, i0)
        r = Sin(e)
        m = MatMul(d, v)
        y = MatMul(r, m)""",
        (4, 6),
        half=np.float32(-0.5),
    )
    return Case(model, x, np.rint(x.T * -0.5).astype(np.int8))


CASES = dict(cases(8))
NARROW = dict(cases(7))


def saturates_here() -> bool:
    features = set(read_processor().int8_features or ())
    return "AVX2" in features and not {"AVX512-VNNI", "AVX-VNNI", "AMX-INT8"} & features


RUN_ALL = """
import pathlib, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for path in pathlib.Path(sys.argv[1]).glob("*.onnx"):
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    numpy.save(path.with_suffix(".y.npy"), session.run(None, {"x": numpy.load(path.with_suffix(".x.npy"))})[0])
"""


def run_emulated(models: dict[str, Case], folder: Path) -> dict[str, Array]:
    """What ONNX Runtime returns on a processor with AVX2 and without VNNI, which QEMU emulates."""
    qemu = shutil.which("qemu-x86_64")
    if qemu is None or platform.machine() != "x86_64":
        pytest.skip("this processor does not saturate, and there is no qemu-x86_64 here to emulate one that does")
    for index, case in enumerate(models.values()):
        onnx.save(case.model, folder / f"{index}.onnx")
        np.save(folder / f"{index}.x.npy", case.x)
    # Its `max` has AVX2, and none of AVX512, AVX-VNNI and AMX.
    command = [qemu, "-cpu", "max", sys.executable, "-c", RUN_ALL, str(folder)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {name: np.load(folder / f"{index}.y.npy") for index, name in enumerate(models)}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """Of a processor with AVX2 and without VNNI."""
    models = {**CASES, **{f"7 bits: {name}": case for name, case in NARROW.items()}}
    if saturates_here():
        return {name: run_as_here(case.model, x=case.x)[0] for name, case in models.items()}
    return run_emulated(models, tmp_path_factory.mktemp("cases"))


class TestKernels:
    def test_without_vnni(self, answers: dict[str, Array]) -> None:
        for name, case in CASES.items():
            np.testing.assert_array_equal(answers[name], case.emulated(saturating=True), name)

    def test_where_the_proof_fails_answers_are_wrong(self, answers: dict[str, Array]) -> None:
        wrong = {name for name, case in CASES.items() if (answers[name] != case.emulated(saturating=False)).any()}
        assert wrong == {name for name, case in CASES.items() if saturating_layers(case.model)}
        assert len(wrong) == len(CASES) - 2  # but for two depthwise convolutions

    def test_seven_bits_without_vnni(self, answers: dict[str, Array]) -> None:
        for name, case in NARROW.items():
            assert saturating_layers(case.model) == {}
            np.testing.assert_array_equal(answers[f"7 bits: {name}"], case.emulated(saturating=False), name)

    @pytest.mark.parametrize("name", CASES)
    def test_on_this_processor(self, name: str) -> None:
        case = CASES[name]
        np.testing.assert_array_equal(run_as_here(case.model, x=case.x)[0], case.emulated(saturating=saturates_here()))


class TestCounting:
    WEIGHTS = np.int8([[127, 127, 1], [127, -127, 1]])
    SCALES = np.float32([1, 1, 50])

    def model(self) -> onnx.ModelProto:
        model = layer_model("MatMul", self.WEIGHTS, (1, 2), weight_zero=np.zeros(3, np.int8))
        (scales,) = (tensor for tensor in model.graph.initializer if tensor.name == "ws")
        scales.CopyFrom(onnx.numpy_helper.from_array(self.SCALES, "ws"))
        return model

    def test_by_hand(self) -> None:
        count = count_saturation(self.model(), ({"x": np.float32([[value] * 2])} for value in (255, 100)))["m"]
        assert (count.sums, count.saturated, count.outputs, count.changed) == (6, 1, 6, 1)
        # Only 2 * 127 * 255 = 64,770 is too large; a second channel is always zero, and a third one has a scale of 50.
        exact = [2 * 127 * 255, 2 * 127 * 100, 50 * 2 * 255, 50 * 2 * 100]
        assert count.relative_error == pytest.approx((64_770 - 32_767) / math.hypot(*exact))

    def test_inputs_that_do_not_saturate(self) -> None:
        count = count_saturation(self.model(), [{"x": np.float32([[100, 100]])}])["m"]
        assert (count.saturated, count.changed, count.relative_error) == (0, 0, 0.0)

    def test_images_count_as_in_the_emulation_however_they_are_batched(self) -> None:
        weights, images = weights_of(6, 3, 3, 3), integers(3, 3, 8, 8)
        model = layer_model("Conv", weights, ("n", 3, 8, 8), tail=STEPS)
        whole = count_saturation(model, [{"x": images}])
        assert whole == count_saturation(model, ({"x": images[at : at + 1]} for at in range(3)))
        layer = only_layer(model)
        sums, exact = (layer.compute(images.astype(np.uint8), saturating=way) for way in (True, False))
        assert whole["m"].outputs == sums.size == 3 * 6 * 6 * 6
        assert whole["m"].sums == 13 * sums.size  # of 27 products
        assert whole["m"].changed == (sums != exact).sum()
        assert whole["m"].relative_error == pytest.approx(np.linalg.norm(sums - exact) / np.linalg.norm(exact))

    def test_every_layer_gets_exact_inputs(self) -> None:
        first, second = weights_of(6, 4), weights_of(4, 5)
        model = quantized(
            """q = QuantizeLinear(x, s, z0) d = DequantizeLinear(q, s, z0) v = DequantizeLinear(w, s, i0)
            m = MatMul(d, v) p = QuantizeLinear(m, step, zo) e = DequantizeLinear(p, step, zo)
            u = DequantizeLinear(t, s, i0) y = MatMul(e, u)""",
            (3, 6),
            w=first,
            t=second,
            zo=np.uint8(128),
        )
        x = integers(3, 6)
        one, other = find_integer_layers(model)
        exact = one.compute(x.astype(np.uint8), saturating=False)
        between = np.clip(np.rint(exact / STEP) + 128, 0, 255).astype(np.uint8)
        changed = other.compute(between) != other.compute(between, saturating=False)
        assert 0 < changed.sum() == count_saturation(model, [{"x": x}])["y"].changed

    def test_computed_weights(self) -> None:
        case = computed_weights()
        assert saturating_layers(case.model) == {"m": 1.0}
        (layer,) = find_integer_layers(case.model)
        sums, exact = (layer.compute(case.x.astype(np.uint8), case.weights, saturating=way) for way in (True, False))
        assert 0 < (sums != exact).sum() == count_saturation(case.model, [{"x": case.x}])["m"].changed

    def test_nothing_is_run_where_nothing_saturates(self) -> None:
        model = layer_model("MatMul", np.full((2, 2), 64, np.int8), (1, 2))
        assert count_saturation(model, iter(())) == {}

    def test_no_sample(self) -> None:
        with pytest.raises(DataError, match="no sample"):
            count_saturation(self.model(), [])

    def test_a_wrong_input(self) -> None:
        with pytest.raises(UsageError, match="no value for its input 'x'"):
            count_saturation(self.model(), [{"z": np.zeros((1, 2), np.float32)}])


class Images(CalibrationDataReader):
    """Four random images."""

    def __init__(self) -> None:
        self._images = iter(uniform(4, 1, 8, 8, 8))

    def get_next(self) -> dict[str, Array]:
        return next(({"x": image} for image in self._images), {})


def test_the_quantizer_reduces_the_range_enough(tmp_path: Path) -> None:
    model = model_of(
        """g (float[1, 8, 8, 8] x) => (float[1, 5] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, wa, ba)
            b = Relu(a)
            c = Conv<group = 16>(b, wc)
            e = GlobalAveragePool(c)
            f = Flatten(e)
            y = Gemm<transB = 1>(f, wy)
        }""",
        {
            "wa": uniform(16, 8, 3, 3),
            "ba": uniform(16, seed=1),
            "wc": uniform(16, 1, 3, 3, seed=2),
            "wy": uniform(5, 16, seed=3),
        },
    )
    for node in model.graph.node:
        node.name = node.output[0]
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(model, source)
    shares = {}
    for reduced in (False, True):
        quantize_static(
            source,
            target,
            Images(),
            QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduced,
            weight_type=QuantType.QInt8,
        )
        layers = find_integer_layers(onnx.load(target))
        assert [layer.name for layer in layers] == ["a", "y"]  # the depthwise one is exact
        shares[reduced] = saturating_layers(onnx.load(target))
    assert shares[False].keys() == {"a", "y"}
    assert 0.1 < shares[False]["a"] < 0.5
    assert shares[True] == {}


def test_branches_are_part_of_the_proof_and_are_not_counted() -> None:
    branch = """q = QuantizeLinear(x, s, z0) d = DequantizeLinear(q, s, z0) v = DequantizeLinear(w, s, i0)
        r = MatMul(d, v)"""
    model = quantized(
        f"""total = ReduceSum<keepdims = 0>(x)
        positive = Cast<to = 9>(total)
        y = If(positive) <
            then_branch = then () => (float[2, 2] r) {{ {branch} }},
            else_branch = other () => (float[2, 2] n) {{ n = Neg(x) }}
        >""",
        (2, 2),
        w=np.full((2, 2), 127, np.int8),
    )
    assert list(saturating_layers(model).values()) == [1.0]
    assert count_saturation(model, [{"x": integers(2, 2)}]) == {}


@pytest.mark.parametrize(
    "text",
    [
        "q, s, z = DynamicQuantizeLinear(x) m = MatMulInteger(q, w, z) y = Cast<to = 1>(m)",
        "q, s, z = DynamicQuantizeLinear(x) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, t, i) "
        "y = MatMul(d, v)",
    ],
)
def test_dynamic_quantization_is_refused(text: str) -> None:
    constants = {"w": np.full((2, 2), 127, np.int8), "t": np.float32(1), "i": np.int8(0)}
    model = model_of(f"g (float[2, 2] x) => (float[2, 2] y) {{ {text} }}", constants)
    with pytest.raises(ModelFileError, match="quantized while it runs"):
        saturating_layers(model)


def test_what_onnx_runtime_cannot_load_is_refused() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelFileError, match="NoSuchOperator"):
        saturating_layers(model)
