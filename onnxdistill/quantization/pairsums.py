"""Products of uint8 and int8, added up in pairs of 16 bits, as x86-64 processors without VNNI do; see `saturation`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

LEAST, MOST = -(2**15), 2**15 - 1
"""Between which the sum of two products stays as it is."""

LARGEST_ACTIVATION = 255

Integers = NDArray[np.integer[Any]]
Sums = NDArray[np.int64]
Floats = NDArray[np.float64]

_ANY_WEIGHT = np.array([127, -128])
# Sums of two products at once: some copies of them have to fit into memory.
_PIECE = 1 << 21


@dataclass(frozen=True, eq=False)
class IntegerLayer(ABC):
    """A layer that adds products of uint8 and int8 in pairs.

    Attributes:
        name: Of the node in the quantized model.
        activation: The uint8 tensor that it reads, in the graph that ONNX Runtime makes of the model.
        weight: The int8 tensor there.
        weights: Its values, as the operator takes them; None if they are computed.
        most: What no activation exceeds, as far as the graph tells; at most 255.
        zero_point: Of the activations; padding has this value.
        weight_zero_point: A number, or one for every output channel or column.
        weight_scale: Like it.
        attributes: Of the operator.
        top_level: Whether it is not in a branch of an `If` or the body of a `Loop`.
    """

    name: str
    activation: str
    weight: str
    weights: Integers | None
    most: int
    zero_point: int
    weight_zero_point: Sums
    weight_scale: Floats
    attributes: Mapping[str, Any] = field(repr=False)
    top_level: bool = True

    def share_saturating(self) -> float:
        """Share of the pairs of weights whose sum can leave 16 bits; 0 is a proof that none ever does.

        For every pair, the worst activations are tried: the largest one for weights of one sign, 0 for the others.
        Weights that are computed may be anything.
        """
        first, second = (_ANY_WEIGHT, _ANY_WEIGHT) if self.weights is None else _halves(self.matrices(self.weights))
        pairs = _can_saturate(first, second, self.most)
        return float(pairs.mean()) if pairs.size else 0.0

    def compute(self, activations: Integers, weights: Integers | None = None, *, saturating: bool = True) -> Sums:
        """The layer's sums of products, before bias and scales.

        Args:
            activations: uint8, as the operator takes them.
            weights: Only if they are computed.
            saturating: As without VNNI; else exact.

        Returns:
            Integers in the shape of the layer's output.
        """
        given = self.known(weights)
        parts = []
        for left, right in self.products(activations, given):
            sums = self.exact(left, right)
            parts.append(sums - excess_of(left, right)[0] if saturating else sums)
        return self.assemble(parts, activations, given)

    def known(self, weights: Integers | None) -> Integers:
        """The layer's own weights, or those that are given."""
        chosen = weights if self.weights is None else self.weights
        if chosen is None:
            raise ValueError(f"The weights of {self.name} are computed, and have to be given.")
        return chosen

    def exact(self, left: Integers, right: Integers) -> Sums:
        """The exact sums of a product of matrices [G, M, K] and [G, K, N], with zero points.

        Below 2 ** 53, integers are exact in float64, whose products of matrices are many times faster.
        """
        centred = right.astype(np.float64) - self.over_columns(self.weight_zero_point, right)
        product: Sums = ((left.astype(np.float64) - self.zero_point) @ centred).astype(np.int64)
        return product

    @abstractmethod
    def matrices(self, weights: Integers) -> Integers:
        """Weights as [G, K, N], K in the order in which products are added."""

    @abstractmethod
    def products(self, activations: Integers, weights: Integers) -> Iterator[tuple[Integers, Integers]]:
        """The layer as products of matrices [G, M, K] and [G, K, N]."""

    @abstractmethod
    def assemble(self, parts: list[Sums], activations: Integers, weights: Integers) -> Sums:
        """The layer's output from those of the products, [G, M, N] each."""

    @abstractmethod
    def over_columns(self, numbers: NDArray[Any], right: Integers) -> NDArray[Any]:
        """Numbers of output channels or columns, for all of [G, M, N]."""


class MatrixProduct(IntegerLayer):
    """`MatMul` and `Gemm`."""

    def matrices(self, weights: Integers) -> Integers:
        """See `IntegerLayer.matrices`."""
        matrix = self._right(weights)
        return matrix.reshape(-1, *matrix.shape[-2:])

    def products(self, activations: Integers, weights: Integers) -> Iterator[tuple[Integers, Integers]]:
        """See `IntegerLayer.products`."""
        left, right = self._left(activations), self._right(weights)
        if right.ndim == 2:
            yield left.reshape(1, -1, left.shape[-1]), right[np.newaxis]
            return
        stack = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        stacked = (np.broadcast_to(each, stack + each.shape[-2:]) for each in (left, right))
        first, second = (each.reshape(-1, *each.shape[-2:]) for each in stacked)
        yield first, second

    def assemble(self, parts: list[Sums], activations: Integers, weights: Integers) -> Sums:
        """See `IntegerLayer.assemble`."""
        left, right = self._left(activations), self._right(weights)
        stack = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        rows = left.shape[-2:-1] if activations.ndim > 1 else ()
        columns = right.shape[-1:] if weights.ndim > 1 else ()
        return parts[0].reshape(stack + rows + columns)

    def over_columns(self, numbers: NDArray[Any], right: Integers) -> NDArray[Any]:
        """See `IntegerLayer.over_columns`."""
        return numbers.reshape(-1, 1, right.shape[2] if numbers.size > 1 else 1)

    def _left(self, activations: Integers) -> Integers:
        matrix = activations if activations.ndim > 1 else activations[np.newaxis]
        return matrix.T if self.attributes.get("transA", 0) else matrix

    def _right(self, weights: Integers) -> Integers:
        matrix = weights if weights.ndim > 1 else weights[:, np.newaxis]
        return matrix.T if self.attributes.get("transB", 0) else matrix


class Convolution(IntegerLayer):
    """`Conv` of any rank, groups too; as a product of matrices for every image, with G groups and M places."""

    def matrices(self, weights: Integers) -> Integers:
        """See `IntegerLayer.matrices`."""
        groups = self.attributes.get("group", 1)
        rows = np.moveaxis(weights, 1, -1).reshape(groups, len(weights) // groups, -1)
        return np.swapaxes(rows, 1, 2)

    def products(self, activations: Integers, weights: Integers) -> Iterator[tuple[Integers, Integers]]:
        """See `IntegerLayer.products`."""
        right = self.matrices(weights)
        window = _Window.of(self.attributes, activations.shape[2:], weights.shape[2:])
        for image in activations:
            padded = np.pad(image, [(0, 0), *window.pads], constant_values=self.zero_point)
            seen = window.over(padded).reshape(-1, math.prod(weights.shape[2:]), len(right), weights.shape[1])
            yield seen.transpose(2, 0, 1, 3).reshape(len(right), len(seen), -1), right

    def assemble(self, parts: list[Sums], activations: Integers, weights: Integers) -> Sums:
        """See `IntegerLayer.assemble`."""
        sizes = _Window.of(self.attributes, activations.shape[2:], weights.shape[2:]).places
        return np.stack([np.swapaxes(part, 1, 2).reshape(-1, *sizes) for part in parts])

    def over_columns(self, numbers: NDArray[Any], right: Integers) -> NDArray[Any]:
        """See `IntegerLayer.over_columns`."""
        return numbers.reshape((len(right), 1, right.shape[2]) if numbers.size > 1 else (1, 1, 1))


@dataclass(frozen=True)
class _Window:
    """How the kernel of a convolution goes over an image.

    Attributes:
        pads: Before and behind, of every dimension.
        extents: From the first position in the kernel to the last.
        strides: Between places.
        dilations: Between positions in the kernel.
        places: How many there are, along every dimension.
    """

    pads: list[tuple[int, int]]
    extents: list[int]
    strides: list[int]
    dilations: list[int]
    places: list[int]

    @classmethod
    def of(cls, attributes: Mapping[str, Any], sizes: tuple[int, ...], kernel: tuple[int, ...]) -> _Window:
        """Of a convolution with these attributes, for an image and a kernel of these sizes."""
        strides, dilations = (list(attributes.get(name, [1] * len(kernel))) for name in ("strides", "dilations"))
        extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
        given, automatic = attributes.get("pads", [0] * 2 * len(kernel)), attributes.get("auto_pad", "NOTSET")
        pads = list(zip(given[: len(kernel)], given[len(kernel) :], strict=True))
        if automatic.startswith("SAME"):
            places = [math.ceil(size / step) for size, step in zip(sizes, strides, strict=True)]
            needed = [(count - 1) * step + extent for count, step, extent in zip(places, strides, extents, strict=True)]
            missing = [max(0, need - size) for need, size in zip(needed, sizes, strict=True)]
            halves = [(each // 2, each - each // 2) for each in missing]
            pads = [pad if automatic == "SAME_UPPER" else pad[::-1] for pad in halves]
        padded = [size + sum(pad) for size, pad in zip(sizes, pads, strict=True)]
        places = [(size - extent) // step + 1 for size, extent, step in zip(padded, extents, strides, strict=True)]
        return cls(pads, extents, strides, dilations, places)

    def over(self, padded: Integers) -> Integers:
        """What the kernel sees of an image [C, ...]: [*places, *positions, C]."""
        rank = len(self.extents)
        windows = sliding_window_view(padded, self.extents, tuple(range(1, rank + 1)))
        steps = (slice(None, None, step) for step in (*self.strides, *self.dilations))
        return np.moveaxis(windows[(slice(None), *steps)], 0, -1)


def _halves(weights: Integers) -> tuple[Integers, Integers]:
    """The first and the second weight of every pair, [G, pairs, N]. The last one of an odd K is alone, and fits."""
    return weights[:, : weights.shape[1] // 2 * 2 : 2], weights[:, 1::2]


def _can_saturate(first: Integers, second: Integers, most: int) -> NDArray[np.bool_]:
    wide = [half.astype(np.int32) for half in (first, second)]
    highest = most * sum(np.maximum(half, 0) for half in wide)
    lowest = most * sum(np.minimum(half, 0) for half in wide)
    return np.asarray((highest > MOST) | (lowest < LEAST))


def excess_of(left: Integers, right: Integers) -> tuple[Sums, int]:
    """What saturation takes from the sums of products, and how many sums of two products it happens to.

    Only the pairs of weights that can saturate are looked at: of trained weights, few.

    Args:
        left: uint8, [G, M, K].
        right: int8, [G, K, N].

    Returns:
        [G, M, N], and the number.
    """
    groups, rows, _depth = left.shape
    taken: Sums = np.zeros((groups, rows, right.shape[2]), np.int64)
    saturated = 0
    first, second = _halves(right)
    possible = _can_saturate(first, second, LARGEST_ACTIVATION)
    for group in range(groups):
        columns, pairs = np.nonzero(possible[group].T)  # column by column
        if not columns.size:
            continue
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        weights = [half[group, pairs, columns].astype(np.int32) for half in (first, second)]
        step = max(1, _PIECE // columns.size)
        for row in range(0, rows, step):
            part = left[group, row : row + step]
            sums = part[:, 2 * pairs] * weights[0] + part[:, 2 * pairs + 1] * weights[1]
            excess = sums - np.clip(sums, LEAST, MOST)
            saturated += int(np.count_nonzero(excess))
            taken[group][row : row + step, columns[starts]] = np.add.reduceat(excess, starts, axis=1)
    return taken, saturated
