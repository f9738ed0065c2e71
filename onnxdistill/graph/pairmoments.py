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
    counting_samples,
    input_columns,
    output_columns,
    sampled,
    unfolded,
    watched,
)
from onnxdistill.graph.gradients import differentiable, gradients_by

Scheme = Literal["spatial", "channel"]
"""How a k x k convolution is split; see `graph.lowrank`."""

# Layers with longer columns would need more memory than they are worth: 5000^2 float64 are 200 MB.
LONGEST_COLUMN = 5000
# Of all columns that are made at once.
_MOST_VALUES = 2**26
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
                    key = name, scheme
                    few = _few(layer, inputs, scheme)
                    _add(sums, key, _moment(seen_columns(layer, inputs[:few], scheme), batches))
                    calls[key] += 1
                    if gradient is not None:
                        # The loss is a mean over the batch: a sample's own gradient is that many times larger. The
                        # layer may see windows or tokens of a sample as if they were samples.
                        each = added_columns(layer, inputs[:few], gradient[:few] * samples[-1], scheme)
                        products = len(each) / few * len(inputs) / samples[-1]
                        _add(worth, key, 0.5 * products * _moment(each, batches))
            batches += 1
    # Of a layer that runs twice, inputs are averaged; a change of it counts in both places.
    return {
        key: Moments(total / calls[key], worth[key] / batches if key in worth else None) for key, total in sums.items()
    }


def longest_column(layer: Layer, scheme: Scheme) -> int:
    """How many numbers a column of `seen_columns` or of `added_columns` has, whichever is longer."""
    if isinstance(layer, nn.Linear):
        return max(layer.in_features, layer.out_features)
    height, width = layer.kernel_size
    if scheme == "channel":
        return max(layer.in_channels * height * width, layer.out_channels)
    return max(layer.in_channels * height, layer.out_channels * width)


def _few(layer: Layer, inputs: Tensor, scheme: Scheme) -> int:
    """Of how many samples columns are made: no more than fit, since few of them are looked at."""
    positions = inputs[0].numel() / inputs.shape[-1 if isinstance(layer, nn.Linear) else 1]
    return min(len(inputs), max(1, int(_MOST_VALUES / (positions * longest_column(layer, scheme)))))


def seen_columns(layer: Layer, inputs: Tensor, scheme: Scheme) -> Tensor:
    """What the first layer of the pair multiplies its weight with; with `channel`, it sees what the layer sees."""
    if isinstance(layer, nn.Linear) or scheme == "channel":
        return input_columns(layer, inputs)
    down = int(layer.padding[0])
    return unfolded(F.pad(inputs, (0, 0, down, down)), (layer.kernel_size[0], 1), (layer.stride[0], 1))


def added_columns(layer: Layer, inputs: Tensor, gradient: Tensor, scheme: Scheme) -> Tensor:
    """Gradients by the products of the layer's matrix with `seen_columns`: `[positions, rows]`, in their order.

    With `spatial`, a column of pixels adds `width` products to each output channel, one to every position that has it
    under its kernel.
    """
    if isinstance(layer, nn.Linear) or scheme == "channel":
        return output_columns(layer, gradient)
    samples, outputs, rows, positions = gradient.shape
    (_, width), (_, across), (_, pad) = layer.kernel_size, layer.stride, (int(each) for each in layer.padding)
    columns = inputs.shape[3]
    # Tap b of the output at position p reads the column p * stride + b - pad.
    spread = gradient.new_zeros(samples, outputs, width, rows, columns)
    for tap in range(width):
        read = torch.arange(positions) * across + tap - pad
        inside = (read >= 0) & (read < columns)
        spread[:, :, tap, :, read[inside]] = gradient[..., inside]
    return spread.permute(0, 3, 4, 1, 2).reshape(-1, outputs * width)


def _moment(columns: Tensor, batch: int) -> Tensor:
    few = sampled(columns, COLUMNS_PER_BATCH, batch).double()
    return few.T @ few / len(few)


def _add(sums: dict[tuple[str, Scheme], Tensor], key: tuple[str, Scheme], moment: Tensor) -> None:
    sums[key] = sums[key] + moment if key in sums else moment
