"""Small models that hold one kind of layer at many widths, each where a network would have it: between convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from onnxdistill.device.costs.layers import DEPTHWISE, LayerKind
from onnxdistill.device.onnxbytes import Node, Value, model_bytes
from onnxdistill.device.session import Array

T = TypeVar("T")

Widths = tuple[int, int]
"""Channels that go into a layer, and that come out of it."""

# Channels of the model's input and of its outputs, which take next to no time.
_BASE, _TAP = 16, 8
_SCALES = ("s", "z")


@dataclass(frozen=True)
class WidthProbe:
    """A model of layers of one kind.

    Attributes:
        content: Of the .onnx file.
        feeds: Its input.
        widths: Of its layers; that at place i makes the value `layer_name(i)`.
    """

    content: bytes
    feeds: dict[str, Array]
    widths: tuple[Widths, ...]


def layer_name(index: int) -> str:
    """What the value is called that comes out of a layer of a probe."""
    return f"layer{index}."


def width_probe(kind: LayerKind, widths: Sequence[Widths], activations: str = "uint8") -> WidthProbe:
    """A model with a layer of each width, side by side.

    A thin convolution of 1x1 makes the input of each layer, which is in the caches then, as in a network; another one
    reads a few places of its output.

    Args:
        kind: Of the layers.
        widths: Of the layers.
        activations: Type of what goes into layers of 8-bit integers: `uint8` or `int8`.
    """
    writer = _Products(kind, activations) if kind.product else _Convolutions(kind, activations)
    nodes, outputs = [], []
    for index, (inputs, made) in enumerate(widths):
        before, after, out = f"before{index}", layer_name(index), f"out{index}"
        nodes += [*writer.adapter("x", before, inputs), *writer.layer(before, after, inputs, made)]
        nodes += writer.tap(after, out, made)
        outputs.append(Value(out, writer.dtype, writer.tap_shape))
    x = writer.input()
    content = model_bytes(nodes, [Value("x", writer.dtype, x.shape)], outputs, writer.constants)
    return WidthProbe(content, {"x": x}, tuple(widths))


class _Writer:
    """Nodes of one precision, and the constants that they need."""

    def __init__(self, kind: LayerKind, activations: str) -> None:
        self.kind = kind
        self.dtype = "float32" if kind.precision == "float32" else activations
        self.constants: dict[str, Array] = {}
        self._random = np.random.default_rng(0)
        if self.dtype != "float32":
            self.constants |= {"s": np.array(0.05, np.float32), "z": np.zeros((), self.dtype)}

    def values(self, shape: tuple[int, ...]) -> Array:
        """Of activations."""
        if self.dtype == "float32":
            return self._random.standard_normal(shape, dtype=np.float32)
        return self._random.integers(0, 100, shape).astype(self.dtype)

    def weight(self, shape: tuple[int, ...], channels_at: int) -> list[str]:
        """Weights with what belongs to them, as inputs of a node."""
        name = f"w{len(self.constants)}"
        if self.dtype == "float32":
            self.constants[name] = self._random.standard_normal(shape, dtype=np.float32) / 16
            return [name]
        self.constants[name] = self._random.integers(-100, 100, shape, dtype=np.int8)
        scale, zero = f"{name}s", f"{name}z"
        self.constants[scale] = np.full(shape[channels_at], 0.01, np.float32)
        self.constants[zero] = np.zeros(shape[channels_at], np.int8)
        return [name, scale, zero]


class _Convolutions(_Writer):
    @property
    def tap_shape(self) -> tuple[int, ...]:
        return (self.kind.places[0], _TAP, *self._along((1, 1)))

    def input(self) -> Array:
        batch, *size = self.kind.places
        return self.values((batch, _BASE, *self._along(size)))

    def adapter(self, before: str, after: str, channels: int) -> Iterator[Node]:
        return self._convolution(before, after, (channels, _BASE, *self._along((1, 1))), {})

    def layer(self, before: str, after: str, inputs: int, outputs: int) -> Iterator[Node]:
        kind = self.kind
        groups = inputs if kind.groups == DEPTHWISE else kind.groups
        # From the sizes to those that come out, or of a transposed convolution the other way round.
        sizes = (kind.outputs, kind.places[1:]) if kind.transposed else (kind.places[1:], kind.outputs)
        axes = self._along(list(zip(*sizes, kind.kernel, kind.stride, strict=True)))
        fits = [_fit(*axis) for axis in axes]
        attributes: dict[str, int | list[int]] = {
            "pads": [*(fit.begin for fit in fits), *(fit.end for fit in fits)],
            "strides": self._along(kind.stride),
            "dilations": [fit.dilation for fit in fits],
            "group": groups,
        }
        kernel = self._along(kind.kernel)
        if kind.transposed:
            attributes["output_padding"] = [fit.added for fit in fits]
            weight = self.weight((inputs, outputs // groups, *kernel), 1)
            return iter([Node("ConvTranspose", [before, *weight], (after,), attributes)])
        return self._convolution(before, after, (outputs, inputs // groups, *kernel), attributes)

    def tap(self, before: str, after: str, channels: int) -> Iterator[Node]:
        attributes: dict[str, int | list[int]] = {"strides": self._along(self.kind.outputs)}
        return self._convolution(before, after, (_TAP, channels, *self._along((1, 1))), attributes)

    def _along(self, sizes: Sequence[T]) -> list[T]:
        """What belongs to the axes that there are, of height and width."""
        return list(sizes[1:] if self.kind.sequence else sizes)

    def _convolution(
        self, before: str, after: str, shape: tuple[int, ...], attributes: dict[str, int | list[int]]
    ) -> Iterator[Node]:
        bias = f"b{len(self.constants)}"
        if self.dtype != "float32":
            self.constants[bias] = np.zeros(shape[0], np.int32)
            inputs = [before, *_SCALES, *self.weight(shape, 0), *_SCALES, bias]
            yield Node("QLinearConv", inputs, (after,), attributes)
            return
        self.constants[bias] = np.zeros(shape[0], np.float32)
        raw = f"{after}raw"
        yield Node("Conv", [before, *self.weight(shape, 0), bias], (raw,), attributes)
        yield Node("Relu", (raw,), (after,))


@dataclass(frozen=True)
class _Fit:
    """What leads from one size to another along an axis."""

    dilation: int
    begin: int
    end: int
    added: int = 0
    """What is left over at the end: a convolution does not read it, and a transposed one adds up nothing for it."""


def _fit(size: int, made: int, kernel: int, stride: int) -> _Fit:
    """Padding, or else dilation, by which a convolution makes one size of another.

    It is the same on both sides if possible, as networks have it and as GPUs want it. Where neither padding
    nor dilation leads there, as with a kernel of 1, there is none.

    Args:
        size: Of what goes in; of a transposed convolution, of what comes out.
        made: Of the other.
        kernel: Its size.
        stride: Between the places that it is at.
    """
    reach, dilation = (made - 1) * stride + 1, 1
    lacking = reach + kernel - 1 - size
    if lacking <= -stride and kernel > 1:  # no padding makes it so small: its places lie farther apart
        dilation = 1 - (lacking + stride - 1) // (kernel - 1)
        lacking = reach + dilation * (kernel - 1) - size
    wanted = max(0, lacking)
    pad = -(-wanted // 2)
    if 2 * pad - lacking < stride:
        return _Fit(dilation, pad, pad, 2 * pad - lacking)
    return _Fit(dilation, wanted // 2, pad)


class _Products(_Writer):
    @property
    def tap_shape(self) -> tuple[int, ...]:
        return (self.kind.places[0], _TAP)

    def input(self) -> Array:
        return self.values((self.kind.places[0], _BASE))

    def adapter(self, before: str, after: str, channels: int) -> Iterator[Node]:
        return self._product(before, after, _BASE, channels)

    def layer(self, before: str, after: str, inputs: int, outputs: int) -> Iterator[Node]:
        return self._product(before, after, inputs, outputs)

    def tap(self, before: str, after: str, channels: int) -> Iterator[Node]:
        return self._product(before, after, channels, _TAP)

    def _product(self, before: str, after: str, inputs: int, outputs: int) -> Iterator[Node]:
        weight = self.weight((inputs, outputs), 1)
        if self.dtype == "float32":
            bias = f"b{len(self.constants)}"
            self.constants[bias] = np.zeros(outputs, np.float32)
            yield Node("Gemm", [before, *weight, bias], (after,))
        else:
            yield Node("QLinearMatMul", [before, *_SCALES, *weight, *_SCALES], (after,))
