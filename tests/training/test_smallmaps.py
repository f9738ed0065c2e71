"""Convolutions on small maps, as matrix products."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import Guidance, smallmaps, train
from onnxdistill.training.smallmaps import small_maps_as_products
from tests.training.small import small_network, table


def _layer(outputs: int = 512, kernel: int | tuple[int, int] = 3, **settings: object) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(64, outputs, kernel, **settings)  # type: ignore[arg-type]


DENSE = _layer()


def _is_product(output: Tensor) -> bool:
    return type(output.grad_fn).__name__.startswith("_Product")


def _taken(layer: nn.Module, inputs: Tensor) -> bool:
    with small_maps_as_products(DENSE):
        return _is_product(layer(inputs))


@pytest.fixture(autouse=True, scope="module")
def fast_bfloat16() -> Iterator[None]:
    """As on a processor with instructions for it, so that the same is computed on all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smallmaps, "has_fast_bfloat16", lambda: True)
        yield


@pytest.fixture
def all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of few weights, too, and in float64."""
    monkeypatch.setattr(smallmaps, "LEAST_WEIGHTS", 1)
    monkeypatch.setattr(smallmaps, "MOST_PIXELS", {torch.float64: 16, torch.float32: 4})


@pytest.mark.usefixtures("all_sizes")
def test_by_hand() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
        layer.bias.copy_(torch.tensor([0.5]))  # type: ignore[union-attr]
    inputs = torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]], requires_grad=True)
    with small_maps_as_products(layer):
        output = layer(inputs)
    # Of 0 1 2 / 3 4 5 / 6 7 8, the four at the lower right lie on the map for its first pixel, and so on.
    assert output.tolist() == [[[[8754.5, 7643.5], [5421.5, 4310.5]]]]
    output.backward(torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))
    assert inputs.grad is not None
    assert inputs.grad.tolist() == [[[[4.0, 5.0], [7.0, 8.0]]]]
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[[[0.0, 0.0, 0.0], [0.0, 1.0, 10.0], [0.0, 100.0, 1000.0]]]]


ORDERS = [(0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2), (3, 0, 1, 2), (1, 0, 2, 3)]


def _in_order(values: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same values, with another dimension last in memory."""
    back = [order.index(dimension) for dimension in range(4)]
    return values.permute(order).contiguous().permute(back)


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    bias=st.booleans(),
    orders=st.tuples(*[st.sampled_from(ORDERS)] * 3),
    autocast=st.booleans(),
)
def test_it_is_the_convolution(
    kernel: tuple[int, int],
    pads: tuple[int, int],
    size: tuple[int, int],
    bias: bool,
    orders: tuple[tuple[int, ...], ...],
    autocast: bool,
) -> None:
    outcome = [length + 2 * pad - one + 1 for length, pad, one in zip(size, pads, kernel, strict=True)]
    assume(min(outcome) > 0)
    torch.manual_seed(0)
    shapes = [(2, 24, *size), (20, 24, *kernel), (2, 20, *outcome)]
    inputs, weight, upstream = (
        _in_order(torch.randn(shape), order) for shape, order in zip(shapes, orders, strict=True)
    )
    values = [inputs, weight, *([torch.randn(20)] if bias else [])]
    ours = [one.requires_grad_() for one in values]
    exact = [one.detach().double().contiguous().requires_grad_() for one in values]  # others, torch cannot do
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smallmaps, "LEAST_WEIGHTS", 1)
        patch.setattr(smallmaps, "MOST_PIXELS", dict.fromkeys(smallmaps.MOST_PIXELS, 100))
        with small_maps_as_products(DENSE), torch.autocast("cpu", enabled=autocast):
            output = F.conv2d(*ours, padding=pads)
    assert _is_product(output)
    assert output.dtype == (torch.bfloat16 if autocast else torch.float32)
    expected = F.conv2d(*exact, padding=pads)
    output.backward(upstream.to(output.dtype))
    expected.backward(upstream.to(expected.dtype))
    for one, other in zip([output, *(o.grad for o in ours)], [expected, *(o.grad for o in exact)], strict=True):
        assert one is not None
        assert other is not None
        assert (one.double() - other).norm() <= (0.01 if autocast else 1e-5) * other.norm()


@pytest.mark.usefixtures("all_sizes")
def test_gradients_by_finite_differences() -> None:
    layer = nn.Conv2d(2, 3, (3, 2), padding=(1, 1)).double()
    inputs = torch.randn(2, 2, 2, 1, dtype=torch.float64, requires_grad=True)

    def output(inputs: Tensor, *parameters: Tensor) -> Tensor:
        with small_maps_as_products(layer):
            found = F.conv2d(inputs, *parameters, padding=1)
        assert _is_product(found)
        return found

    assert torch.autograd.gradcheck(output, (inputs, *layer.parameters()))
    assert torch.autograd.gradgradcheck(output, (inputs, *layer.parameters()))


def test_which_are_taken() -> None:
    inputs = torch.randn(2, 64, 2, 2)
    assert _taken(_layer(padding=1), inputs)
    assert _taken(_layer(padding=(1, 1), stride=(1, 1)), inputs)
    assert _taken(_layer(padding=1, padding_mode="reflect"), torch.randn(2, 64, 2, 2)) is False  # 4 x 4 when padded
    assert not _taken(_layer(128, padding=1), inputs)  # 73,728 weights
    assert not _taken(_layer(padding=1), torch.randn(2, 64, 4, 4))  # 16 pixels, in float32
    with torch.autocast("cpu"):
        assert _taken(_layer(padding=1), torch.randn(2, 64, 4, 4))
        assert _taken(_layer(padding=1, padding_mode="reflect"), inputs)
        assert not _taken(_layer(padding=1), torch.randn(2, 64, 5, 4))
        assert not _taken(_layer(512, 7), torch.randn(2, 64, 7, 7))  # one pixel, of 49
    assert not _taken(_layer(padding=1, stride=2), inputs)
    assert not _taken(_layer(padding=2, dilation=2), inputs)
    assert not _taken(_layer(512, 7, padding=3, groups=2), inputs)
    assert not _taken(_layer(padding="same"), inputs)
    assert not _taken(_layer(padding=1), inputs[0])  # without a batch
    assert not _taken(_layer(padding=1), inputs[:0])
    assert not _taken(_layer(padding=1).double(), inputs.double())


def test_arguments_are_torchs() -> None:
    layer, inputs = _layer(), torch.randn(2, 64, 2, 2)
    with small_maps_as_products(layer):
        named = F.conv2d(input=inputs, weight=layer.weight, bias=layer.bias, padding=1)
        of_numpy = F.conv2d(inputs, layer.weight, layer.bias, padding=np.int64(1))  # type: ignore[arg-type]
    assert _is_product(named)
    assert torch.equal(named, of_numpy)


def test_without_instructions_for_bfloat16_its_convolutions_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smallmaps, "has_fast_bfloat16", lambda: False)
    layer, inputs = _layer(padding=1), torch.randn(2, 64, 2, 2)
    assert _taken(layer, inputs)
    with torch.autocast("cpu"):
        assert not _taken(layer, inputs)


def test_weights_that_are_computed_are_not_computed_to_look_at_them() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, weight: Tensor) -> Tensor:
            Counting.calls += 1
            return weight

    layer = nn.utils.parametrize.register_parametrization(_layer(padding=1), "weight", Counting(), unsafe=True)
    before = Counting.calls
    block = small_maps_as_products(layer)
    assert Counting.calls == before
    for _ in range(2):  # a block may be entered again
        with block:
            assert _is_product(layer(torch.randn(2, 64, 2, 2)))


def test_layers_without_weights_are_passed_over() -> None:
    empty = nn.Conv2d(64, 512, 3)
    empty.weight = None  # type: ignore[assignment]
    lazy = nn.LazyConv2d(512, 3)
    assert isinstance(small_maps_as_products(nn.Sequential(empty, lazy)), nullcontext)


@pytest.mark.parametrize("layer", [_layer(128), _layer(stride=2), _layer(512, 7, groups=2), nn.Linear(1024, 1024)])
def test_a_network_without_such_layers_is_left_alone(layer: nn.Module) -> None:
    assert isinstance(small_maps_as_products(layer), nullcontext)


def _refused() -> list[tuple[object, ...]]:
    inputs, weight, bias = torch.randn(2, 64, 2, 2), DENSE.weight, DENSE.bias
    return [
        (torch.randn(2, 63, 2, 2), weight, bias, 1, 1),
        (torch.randn(2, 64, 1, 1), weight, bias, 1, 0),
        (inputs, weight[:, :, 0], bias, 1, 1),
        (inputs, weight[:, :, None], bias, 1, 1),
        (inputs, weight, torch.randn(1), 1, 1),
        (inputs, weight, bias, 1, -1),
        (inputs, weight, bias, 1, (1, 1, 1)),
        (inputs, weight, bias, (1, 1, 1), 1),
        (inputs.bfloat16(), weight, bias, 1, 1),
        (inputs, weight, DENSE.bias.bfloat16(), 1, 1),  # type: ignore[union-attr]
    ]


@pytest.mark.parametrize("arguments", _refused(), ids=range(len(_refused())))
def test_what_torch_refuses_is_torchs_to_refuse(arguments: tuple[object, ...]) -> None:
    with pytest.raises(RuntimeError) as alone:
        F.conv2d(*arguments)  # type: ignore[arg-type, call-overload]
    with pytest.raises(RuntimeError) as within, small_maps_as_products(DENSE):
        F.conv2d(*arguments)  # type: ignore[arg-type, call-overload]
    assert str(within.value) == str(alone.value)


def _gradients(network: nn.Module, inputs: Tensor, *, checkpointed: bool = False) -> tuple[Tensor, ...]:
    network.zero_grad()
    with small_maps_as_products(network):
        output = checkpoint(network, inputs, use_reentrant=False) if checkpointed else network(inputs)
    output.square().sum().backward()
    return tuple(one.grad for one in network.parameters() if one.grad is not None)


def test_outputs_may_be_changed_in_place() -> None:
    layer, inputs = _layer(padding=1), torch.randn(2, 64, 2, 2)
    found, expected = (
        _gradients(nn.Sequential(layer, nn.ReLU(inplace=in_place)), inputs) for in_place in (True, False)
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", [1, 2])
def test_what_is_computed_again_for_the_gradients_may_be_torchs(size: int) -> None:
    network, inputs = nn.Sequential(_layer(padding=1), nn.Tanh()), torch.randn(2, 64, size, size)
    found, expected = (_gradients(network, inputs, checkpointed=again) for again in (True, False))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


KINDS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_of_functions(kind: torch.memory_format) -> None:
    weight = DENSE.weight.detach().contiguous(memory_format=kind)
    inputs = torch.randn(6, 64, 2, 2).contiguous(memory_format=kind).unflatten(0, (3, 2))

    def loss(weight: Tensor, inputs: Tensor) -> Tensor:
        return F.conv2d(inputs, weight, DENSE.bias, padding=1).square().sum()

    of_each = torch.func.vmap(torch.func.grad(loss), (None, 0))
    expected = of_each(weight, inputs)
    with small_maps_as_products(DENSE):
        found = of_each(weight, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_what_is_exported_has_convolutions() -> None:
    layer, inputs = _layer(padding=1), torch.randn(2, 64, 2, 2)
    with small_maps_as_products(layer):
        exported = torch.export.export(layer, (inputs,), strict=False)
    assert "conv2d" in str(exported.graph)


class _Marked(Tensor):
    """A kind of tensor of somebody else."""


def test_tensors_of_other_kinds_have_their_own_way() -> None:
    with small_maps_as_products(DENSE):
        output = DENSE(torch.randn(2, 64, 3, 3).as_subclass(_Marked))
    assert isinstance(output, _Marked)
    assert not _is_product(output)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_lie_in_memory_as_torchs(kind: torch.memory_format) -> None:
    weight, inputs = DENSE.weight.detach(), torch.randn(2, 64, 2, 2).contiguous(memory_format=kind)
    with small_maps_as_products(DENSE):
        output = F.conv2d(inputs, weight, padding=1)
    assert output.stride() == F.conv2d(inputs, weight, padding=1).stride()


class _Deep(nn.Module):
    """Comes to four pixels, in a layer of 295,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 64, 4, stride=4)
        self.deep = nn.Conv2d(64, 512, 3, padding=1)
        self.last = nn.Linear(512, 10)
        self.taken: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.deep(self.first(images).relu())
        if self.training:
            self.taken.append(_is_product(hidden))
        output: Tensor = self.last(hidden.relu().mean((2, 3)))
        return output


def test_a_training_has_them(digits: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = _Deep()
    settings_ = table(epochs=1, precision="float32", learning_rate=0.01)
    as_products = train(network, digits, settings_, 0, Objective()).network
    monkeypatch.setattr(smallmaps, "MOST_PIXELS", {})
    as_ever = train(network, digits, settings_, 0, Objective()).network
    assert isinstance(as_products, _Deep)
    assert isinstance(as_ever, _Deep)
    assert set(as_products.taken) == {True}
    assert set(as_ever.taken) == {False}
    for one, other in zip(as_products.parameters(), as_ever.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_what_teachers_say_has_them(digits: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(*arguments: object) -> Tensor:
        made.append(torch.is_grad_enabled())
        return forward(*arguments)

    forward = smallmaps._Product.forward
    monkeypatch.setattr(smallmaps._Product, "forward", staticmethod(counted))
    few = Classification(dataclasses.replace(digits.splits, train=digits.splits.train.subset(np.arange(64))))
    settings_ = table(epochs=1, precision="float32")
    train(small_network(), few, settings_, 0, Objective(soft_weight=1.0), Guidance((_Deep(),), 1))
    assert made
