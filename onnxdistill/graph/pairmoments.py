"""What a low-rank pair will see and what its errors will cost: second moments of a layer's inputs and gradients.

For a change of the layer's matrix from `M` to `M~`, the loss of a sample grows by about

    1/2 P tr(G (M - M~) S (M - M~)^T),    S = E[x x^T],    G = E[g g^T]

with the columns x that the matrix is multiplied with, the gradients g of the loss by the products, and P products a
sample: the Fisher information with inputs and gradients taken as independent (Martens and Grosse 2015, "K-FAC",
section 3; Grosse and Martens 2016 for convolutions). With targets that are drawn from what the network says, it is the
Fisher information itself, and no label enters it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxdistill.graph.columns import (
    Layer,
    Sample,
    counting_samples,
    input_columns,
    output_columns,
    unfolded,
    watched,
)
from onnxdistill.graph.gradients import differentiable, gradients_by

Scheme = Literal["spatial", "channel"]
"""How a k x k convolution is split; see `graph.lowrank`."""

# Layers with longer columns would need more memory than they are worth: 5000^2 float64 are 200 MB.
LONGEST_COLUMN = 5000
# Columns of a batch that enter a second moment; more do not change it visibly.
COLUMNS_PER_BATCH = 4096


@dataclass(frozen=True)
class Moments:
    """Of the columns that the first layer of a pair sees, and of the gradients of what the second one adds up.

    Attributes:
        inputs: S, `[columns, columns]`, float64.
        worth: 1/2 P G, `[rows, rows]`, float64; None if there is no loss to know it from.
    """

    inputs: Tensor
    worth: Tensor | None = None


def pair_moments(
    network: nn.Module,
    layers: Mapping[str, Sequence[Scheme]],
    losses: Iterable[Callable[[nn.Module], Tensor]],
    *,
    with_worth: bool,
) -> dict[tuple[str, Scheme], Moments]:
    """Second moments for all layers and schemes.

    Args:
        network: In evaluation mode; its gradients are left as they were.
        layers: The schemes that are wanted of every layer, by its name.
        losses: For every batch, a function that runs the network on it and returns the mean loss.
        with_worth: Whether to look at gradients; else what the functions return does not matter.
    """
    sums: dict[tuple[str, Scheme], Tensor] = {}
    worth: dict[tuple[str, Scheme], Tensor] = {}
    runs: list[tuple[str, Layer, Tensor, Tensor]] = []
    calls: Counter[tuple[str, Scheme]] = Counter()
    batches = 0

    def see(name: str, layer: Layer, inputs: Tensor, outputs: Tensor) -> None:
        runs.append((name, layer, inputs.detach(), outputs))

    with watched(network, layers, see), counting_samples(network) as samples, differentiable(network):
        for loss in losses if layers else ():
            runs.clear()
            with torch.set_grad_enabled(with_worth):
                value = loss(network)
            gradients = gradients_by(value, [outputs for *_, outputs in runs])
            for (name, layer, inputs, _), gradient in zip(runs, gradients, strict=True):
                for scheme in layers[name]:
                    key, sample = (name, scheme), Sample(COLUMNS_PER_BATCH, batches)
                    _add(sums, key, _moment(seen_columns(layer, inputs, scheme, sample)))
                    calls[key] += 1
                    if gradient is not None:
                        # The loss is a mean over the batch: a sample's own gradient is that many times larger. The
                        # layer may see windows or tokens of a sample as if they were samples.
                        each = added_columns(layer, inputs, gradient, scheme, sample) * samples[-1]
                        products = _products(layer, inputs, gradient, scheme) / samples[-1]
                        _add(worth, key, 0.5 * products * _moment(each))
            batches += 1
    # Of a layer that runs twice, inputs are averaged; a change of it counts in both places.
    for key, total in sums.items():  # in place: a deep network has gigabytes of them
        total.div_(calls[key])
    for total in worth.values():
        total.div_(batches)
    return {key: Moments(total, worth.get(key)) for key, total in sums.items()}


def longest_column(layer: Layer, scheme: Scheme) -> int:
    """How many numbers a column of `seen_columns` or of `added_columns` has, whichever is longer."""
    if isinstance(layer, nn.Linear):
        return max(layer.in_features, layer.out_features)
    height, width = layer.kernel_size
    if scheme == "channel":
        return max(layer.in_channels * height * width, layer.out_channels)
    return max(layer.in_channels * height, layer.out_channels * width)


def seen_columns(layer: Layer, inputs: Tensor, scheme: Scheme, sample: Sample | None = None) -> Tensor:
    """What the first layer of the pair multiplies its weight with; with `channel`, it sees what the layer sees."""
    if isinstance(layer, nn.Linear) or scheme == "channel":
        return input_columns(layer, inputs, sample)
    down = int(layer.padding[0])
    padded = F.pad(inputs, (0, 0, down, down))
    return unfolded(padded, (layer.kernel_size[0], 1), (layer.stride[0], 1), sample=sample)


def added_columns(
    layer: Layer, inputs: Tensor, gradient: Tensor, scheme: Scheme, sample: Sample | None = None
) -> Tensor:
    """Gradients by the products of the layer's matrix with `seen_columns`: `[positions, rows]`, in their order.

    With `spatial`, a column of pixels adds `width` products to each output channel, one to every position that has it
    under its kernel.
    """
    if isinstance(layer, nn.Linear) or scheme == "channel":
        return output_columns(layer, gradient, sample)
    _, outputs, rows, positions = gradient.shape
    (_, width), (_, across), (_, pad) = layer.kernel_size, layer.stride, (int(each) for each in layer.padding)
    columns, count = inputs.shape[3], _products(layer, inputs, gradient, scheme)
    chosen = None if sample is None else sample.of(count)
    places = torch.arange(count) if chosen is None else chosen
    added = gradient.new_zeros(len(places), outputs, width)
    for tap in range(width):
        # Tap b of the output at position p reads the column p * stride + b - pad.
        start = places % columns + pad - tap
        inside = (start >= 0) & (start < positions * across) & (start % across == 0)
        read = places[inside]
        added[inside, :, tap] = gradient[read // (rows * columns), :, read // columns % rows, start[inside] // across]
    return added.flatten(1)


def _products(layer: Layer, inputs: Tensor, gradient: Tensor, scheme: Scheme) -> int:
    """How many columns `seen_columns` has for these inputs, whose gradient by the outputs this is."""
    if isinstance(layer, nn.Linear):
        return inputs.numel() // layer.in_features
    if scheme == "channel":
        return gradient.numel() // layer.out_channels
    return len(inputs) * gradient.shape[2] * inputs.shape[3]


def _moment(columns: Tensor) -> Tensor:
    few = columns.double()
    return few.T @ few / len(few)


def _add(sums: dict[tuple[str, Scheme], Tensor], key: tuple[str, Scheme], moment: Tensor) -> None:
    sums[key] = sums[key] + moment if key in sums else moment
