"""Rounding to integers and back: exactly what ONNX Runtime does, with gradients worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor

from onnxdistill.fakequant.rounding import Levels, dequantize, fake_quantize, quantize
from onnxdistill.fakequant.scales import Scale

HAND = Levels(0, -2, 3, 1)


def gradients(x: Tensor, scale: Tensor, levels: Levels, upstream: Tensor, samples: bool = False) -> tuple[Tensor, ...]:
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    rounded = fake_quantize(x, scale, levels, samples=samples)
    return (rounded.detach(), *torch.autograd.grad(rounded, (x, scale), upstream))


def test_values_and_gradients_by_hand() -> None:
    # x / s = -1.3, 0.5, 1.3, 4.5: ties go to even numbers, and 4.5 is cut to 3.
    x, scale = torch.tensor([-0.325, 0.125, 0.325, 1.125]), torch.tensor(0.25)
    rounded, of_x, of_scale = gradients(x, scale, HAND, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(rounded, torch.tensor([-0.25, 0.0, 0.25, 0.75]))
    torch.testing.assert_close(of_x, torch.tensor([1.0, 2.0, 3.0, 0.0]))
    # 1 (-1 + 1.3) + 2 (0 - 0.5) + 3 (1 - 1.3) + 4 * 3, over the root of 4 values times 3.
    torch.testing.assert_close(of_scale, torch.tensor((0.3 - 1.0 - 0.9 + 12.0) / math.sqrt(12)))


def test_what_is_below_is_cut_as_well() -> None:
    rounded, of_x, of_scale = gradients(torch.tensor([-7.0]), torch.tensor(1.0), HAND, torch.tensor([2.0]))
    assert rounded.item() == -2
    assert of_x.item() == 0
    assert of_scale.item() == pytest.approx(2 * -2 / math.sqrt(3))


@pytest.mark.parametrize(("samples", "count"), [(True, 3), (False, 6)])
def test_samples_do_not_count_in_the_scale_of_the_gradient(samples: bool, count: int) -> None:
    x = torch.full((2, 3), 1.25)
    _, _, of_scale = gradients(x, torch.tensor([1.0]), HAND, torch.ones(2, 3), samples)
    assert of_scale.shape == (1,)
    assert of_scale.item() == pytest.approx(6 * -0.25 / math.sqrt(count * 3))


def test_every_channel_has_the_gradients_of_its_own_scale() -> None:
    x, scale, upstream = torch.randn(4, 3, 5), torch.tensor([0.1, 0.5, 2.0]), torch.randn(4, 3, 5)
    rounded, of_x, of_scale = gradients(x, scale, HAND, upstream)
    for channel in range(3):
        alone = gradients(x[:, channel], scale[channel], HAND, upstream[:, channel])
        for whole, part in zip((rounded[:, channel], of_x[:, channel], of_scale[channel]), alone, strict=True):
            torch.testing.assert_close(whole, part)


def test_the_layout_in_memory_changes_nothing() -> None:
    x, upstream, scale = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.tensor(0.3)
    expected = gradients(x, scale, HAND, upstream)
    last = torch.channels_last
    for values, after in ((x.to(memory_format=last), upstream), (x, upstream.to(memory_format=last))):
        for whole, other in zip(expected, gradients(values, scale, HAND, after), strict=True):
            torch.testing.assert_close(whole, other)


def test_bfloat16_is_rounded_in_float32() -> None:
    x = torch.randn(64, 8).bfloat16().requires_grad_()
    scale = torch.tensor(0.01)
    rounded = fake_quantize(x, scale, Levels(0, -127, 127, 1), samples=True)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, fake_quantize(x.float(), scale, Levels(0, -127, 127, 1), samples=True))
    rounded.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


@given(
    arrays(np.float32, 24, elements=st.floats(-300, 300, width=32)),
    st.floats(2**-20, 2.0, width=32),
    st.integers(0, 255),
)
def test_rounding_twice_changes_nothing_not_even_gradients(x: NDArray[Any], scale: float, zero: int) -> None:
    levels = Levels(zero, -zero, 255 - zero, 1)
    values = torch.from_numpy(x).requires_grad_()
    steps = torch.tensor(scale, requires_grad=True)
    once = fake_quantize(values, steps, levels, samples=False)
    twice = fake_quantize(once, steps, levels, samples=False)
    assert torch.equal(once, twice)
    upstream = torch.linspace(-1, 1, 24)
    first, second = (torch.autograd.grad(y, (values, steps), upstream, retain_graph=True) for y in (once, twice))
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[1], second[1], atol=1e-3, rtol=1e-3)


def session(dtype: str) -> onnxruntime.InferenceSession:
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (float[n] x, float scale, {dtype} zero) => ({dtype}[n] q, float[n] y)
    {{ q = QuantizeLinear(x, scale, zero)  y = DequantizeLinear(q, scale, zero) }}"""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = onnx.parser.parse_model(text).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


SESSIONS = {dtype: session(dtype) for dtype in ("uint8", "int8")}


@given(
    st.sampled_from(["uint8", "int8"]),
    arrays(np.float32, 32, elements=st.floats(-(2.0**20), 2.0**20, width=32)),
    st.floats(2**-24, 2.0**12, width=32),
    st.integers(0, 255),
)
def test_onnx_runtime_rounds_the_same(dtype: str, x: NDArray[Any], scale: float, place: int) -> None:
    limits = np.iinfo(dtype)
    zero = int(limits.min) + place
    # Some exact ties, too.
    x[:8] = (np.arange(8) - 3.5 - zero) * np.float32(scale)
    integers, expected = SESSIONS[dtype].run(
        None, {"x": x, "scale": np.array(scale, np.float32), "zero": np.array(zero, limits.dtype)}
    )
    levels = Levels(zero, int(limits.min) - zero, int(limits.max) - zero, 1)
    steps, values = torch.tensor(scale), torch.from_numpy(x)
    np.testing.assert_array_equal(fake_quantize(values, steps, levels, samples=False).numpy(), expected)
    alone = quantize(values, steps, levels)
    np.testing.assert_array_equal(alone.numpy(), integers)
    np.testing.assert_array_equal(dequantize(alone, steps, levels).numpy(), expected)


def test_integers_alone_pass_the_gradient_of_the_clipped_quotient() -> None:
    x = torch.tensor([-3.0, 0.3, 9.0], requires_grad=True)
    quantize(x, torch.tensor(0.5), HAND).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 0.0]


def test_a_scale_is_that_of_the_file_until_it_is_trained() -> None:
    initial = torch.rand(1000) * 10.0 ** torch.randint(-8, 3, (1000,))
    assert torch.equal(Scale(initial)(), initial)


@pytest.mark.parametrize(
    ("optimizer", "ratio"), [(torch.optim.SGD, math.exp(-0.01 * 0.05 / 0.25)), (torch.optim.Adam, math.exp(-0.01))]
)
def test_a_step_changes_a_scale_by_a_share(optimizer: Any, ratio: float) -> None:
    # The gradient is 0.05: a step of SGD on the scale itself would take 0.01 * 0.05 from 0.25, a share of 0.2 %.
    scale = Scale(torch.tensor(0.25))
    steps = optimizer(scale.parameters(), lr=0.01)
    (0.05 * scale()).backward()
    steps.step()
    assert scale().item() == pytest.approx(0.25 * ratio)


@given(st.floats(-1e30, 1e30), st.floats(1e-30, 1e3), st.floats(1e-3, 1))
def test_no_step_changes_a_scale_by_more_than_the_learning_rate(gradient: float, initial: float, rate: float) -> None:
    scale = Scale(torch.tensor([initial]))
    (gradient * scale()).sum().backward()
    torch.optim.SGD(scale.parameters(), lr=rate).step()
    assert math.exp(-1.001 * rate) <= scale().item() / scale.initial.item() <= math.exp(1.001 * rate)
