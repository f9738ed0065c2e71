"""Low-rank pairs in place of layers, fitted to the layer's inputs.

A layer's weight, seen as a matrix `M` that acts on columns `x`, is replaced by the rank-r matrix that changes its
outputs least on the calibration inputs: minimise E||(M - M~) x||^2 = ||(M - M~) R||_F^2 with S = E[x x^T] = R R^T.
With M R = U D V^T that is M~ = U_r D_r V_r^T R^-1, and the error is the sum of the squared singular values left out
(Eckart and Young 1936; for layers see Wang et al. 2024, "SVD-LLM", section 3.2). Without inputs, R is the identity.

Schemes (Jaderberg et al. 2014, "Speeding up Convolutional Neural Networks with Low Rank Expansions"):

- `spatial`: k x k to (k x 1) then (1 x k), their scheme 2;
- `channel`: k x k with r outputs, then 1 x 1; for a linear layer or a 1 x 1 convolution, the only one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxdistill.graph.columns import Layer, input_columns, unfolded, watched

Scheme = Literal["spatial", "channel"]

# Columns of a batch that enter the second moment; more do not change it visibly.
COLUMNS_PER_BATCH = 4096
# Directions in which the inputs hardly vary; post-ReLU inputs have many.
EIGENVALUE_FLOOR = 1e-7


@dataclass(frozen=True)
class Factors:
    """The singular value decomposition of a layer, ready to be cut at any rank.

    Attributes:
        left: `[rows, full]`, of the second layer of the pair.
        right: `[full, columns]`, of the first layer; `left @ right` is the layer's matrix.
        errors: `[full + 1]`, the share of the outputs' energy that is lost at every rank.
    """

    left: Tensor
    right: Tensor
    errors: Tensor


def can_factorize(layer: nn.Module) -> bool:
    """Linear layers, and plain convolutions: one group, no dilation, zero padding in pixels."""
    if isinstance(layer, nn.Linear):
        return True
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def scheme_of(layer: Layer, wanted: Scheme) -> Scheme:
    """The scheme that fits: only kernels larger than one in both directions can be split in space."""
    spatial = isinstance(layer, nn.Conv2d) and min(layer.kernel_size) > 1
    return wanted if spatial else "channel"


def second_moments(
    network: nn.Module,
    layers: Iterable[str],
    batches: Iterable[Tensor],
    scheme: Scheme,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Uncentred second moments `[columns, columns]` of what the first layer of every pair will see, in float64.

    Args:
        network: In evaluation mode.
        layers: Names of the layers.
        batches: Inputs `[B, ...]` of the network.
        scheme: The scheme that is wanted for convolutions.
        generator: Draws the columns of every batch.
    """
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def collect(name: str, layer: Layer, inputs: Tensor, _outputs: Tensor) -> None:
        columns = _input_columns(layer, inputs, scheme_of(layer, scheme))
        if len(columns) > COLUMNS_PER_BATCH:
            columns = columns[torch.randint(len(columns), (COLUMNS_PER_BATCH,), generator=generator)]
        columns = columns.double()
        moment = columns.T @ columns
        totals[name] = totals[name] + moment if name in totals else moment
        counts[name] = counts.get(name, 0) + len(columns)

    with watched(network, layers, collect), torch.no_grad():
        for inputs in batches:
            network(inputs)
    return {name: total / counts[name] for name, total in totals.items()}


def decompose(layer: Layer, scheme: Scheme, moment: Tensor | None = None) -> Factors:
    """Decomposes a layer, with the second moment of its inputs if there is one."""
    matrix = _matrix(layer.weight.detach().double(), scheme)
    if moment is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        eigenvalues, vectors = torch.linalg.eigh(moment.double())
        roots = eigenvalues.clamp_min(EIGENVALUE_FLOOR * eigenvalues.max()).sqrt()
        left, values, right = torch.linalg.svd(matrix @ (vectors * roots), full_matrices=False)
        right = right @ (vectors / roots).T
    energy = values**2
    lost = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    # Half of every singular value on either side keeps both layers' weights of one size.
    return Factors(left * values.sqrt(), values.sqrt()[:, None] * right, lost / lost[0].clamp_min(1e-30))


def low_rank_pair(layer: Layer, factors: Factors, rank: int, scheme: Scheme) -> nn.Sequential:
    """The two layers of rank `rank` that replace `layer`; the bias is in the second."""
    left, right = factors.left[:, :rank], factors.right[:rank]
    bias = layer.bias is not None
    first: Layer
    second: Layer
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=bias)
    else:
        first, second = _convolution_pair(layer, rank, scheme)
        kernel_height, kernel_width = layer.kernel_size
        if scheme == "spatial":
            right = right.reshape(rank, layer.in_channels, kernel_height, 1)
            left = left.reshape(layer.out_channels, kernel_width, rank).permute(0, 2, 1)[:, :, None, :]
        else:
            right = right.reshape(rank, layer.in_channels, kernel_height, kernel_width)
            left = left.reshape(layer.out_channels, rank, 1, 1)
    with torch.no_grad():
        first.weight.copy_(right)
        second.weight.copy_(left)
        if layer.bias is not None and second.bias is not None:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).to(layer.weight.dtype).train(layer.training)


def _convolution_pair(layer: nn.Conv2d, rank: int, scheme: Scheme) -> tuple[nn.Conv2d, nn.Conv2d]:
    (height, width), (down, across) = layer.kernel_size, layer.stride
    pad_down, pad_across = (int(amount) for amount in layer.padding)
    bias = layer.bias is not None
    if scheme == "spatial":
        return (
            nn.Conv2d(layer.in_channels, rank, (height, 1), (down, 1), (pad_down, 0), bias=False),
            nn.Conv2d(rank, layer.out_channels, (1, width), (1, across), (0, pad_across), bias=bias),
        )
    return (
        nn.Conv2d(layer.in_channels, rank, (height, width), (down, across), (pad_down, pad_across), bias=False),
        nn.Conv2d(rank, layer.out_channels, 1, bias=bias),
    )


def pair_macs(layer: Layer, input_shape: tuple[int, ...], rank: int, scheme: Scheme) -> int:
    """Multiply-adds of the pair of that rank on an input `[C, H, W]` or `[..., features]`, without the batch."""
    if isinstance(layer, nn.Linear):
        return rank * (layer.in_features + layer.out_features) * _positions(input_shape)
    rows, columns = _output_size(layer, input_shape)
    height, width = layer.kernel_size
    if scheme == "spatial":
        between = rows * input_shape[2]  # the first convolution strides down only
        return rank * (layer.in_channels * height * between + layer.out_channels * width * rows * columns)
    return rank * rows * columns * (layer.in_channels * height * width + layer.out_channels)


def layer_macs(layer: Layer, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds of a layer on an input without the batch dimension."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features * _positions(input_shape)
    rows, columns = _output_size(layer, input_shape)
    return layer.weight.numel() * rows * columns


@dataclass(frozen=True)
class RankOptions:
    """What one layer can become.

    Attributes:
        dense: Cost of leaving it as it is.
        ranks: Ranks to choose from.
        costs: Cost at every rank.
        errors: Error at every rank; 0 if left as it is.
    """

    dense: float
    ranks: list[int]
    costs: list[float]
    errors: list[float]

    def best(self, price: float) -> int | None:
        """The rank that minimises error plus price times cost; None to leave the layer as it is."""
        values = [error + price * cost for error, cost in zip(self.errors, self.costs, strict=True)]
        cheapest = min(range(len(values)), key=values.__getitem__, default=None)
        if cheapest is None or price * self.dense <= values[cheapest]:
            return None
        return self.ranks[cheapest]

    def cost(self, rank: int | None) -> float:
        """The cost at a rank."""
        return self.dense if rank is None else self.costs[self.ranks.index(rank)]


def choose_ranks(options: dict[str, RankOptions], budget: float) -> dict[str, int | None]:
    """Least total error at a total cost of at most `budget`, by bisection of the price of cost.

    Source: Everett 1963, "Generalized Lagrange Multiplier Method": for a given price the layers decide
    independently, and the result is optimal for the cost that it has. If the budget cannot be met, the cheapest.
    """
    low, high = 0.0, 1.0

    def at(price: float) -> dict[str, int | None]:
        return {name: option.best(price) for name, option in options.items()}

    def cost(ranks: dict[str, int | None]) -> float:
        return sum(options[name].cost(rank) for name, rank in ranks.items())

    if cost(at(0.0)) <= budget:
        return at(0.0)
    while cost(at(high)) > budget and high < 1e12:
        high *= 10
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(at(middle)) <= budget else (middle, high)
    return at(high)


def _matrix(weight: Tensor, scheme: Scheme) -> Tensor:
    if weight.ndim == 2:
        return weight
    if scheme == "channel":
        return weight.flatten(1)
    outputs, inputs, height, width = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)


def _input_columns(layer: Layer, inputs: Tensor, scheme: Scheme) -> Tensor:
    """What the first layer of the pair multiplies its weight with; with `channel`, it sees what the layer sees."""
    if isinstance(layer, nn.Linear) or scheme == "channel":
        return input_columns(layer, inputs)
    down = int(layer.padding[0])
    return unfolded(F.pad(inputs, (0, 0, down, down)), (layer.kernel_size[0], 1), (layer.stride[0], 1))


def _output_size(layer: nn.Conv2d, input_shape: tuple[int, ...]) -> tuple[int, int]:
    sizes = [
        (input_shape[1 + axis] + 2 * int(layer.padding[axis]) - layer.kernel_size[axis]) // layer.stride[axis] + 1
        for axis in (0, 1)
    ]
    return sizes[0], sizes[1]


def _positions(input_shape: tuple[int, ...]) -> int:
    positions = 1
    for size in input_shape[:-1]:
        positions *= size
    return positions


def input_shapes(network: nn.Module, layers: Iterable[str], example: Tensor) -> dict[str, tuple[int, ...]]:
    """The shapes of the layers' inputs, without the batch dimension; a layer that does not run is left out."""
    shapes: dict[str, tuple[int, ...]] = {}

    def collect(name: str, _layer: Layer, inputs: Tensor, _outputs: Tensor) -> None:
        shapes[name] = tuple(inputs.shape[1:])

    with watched(network, layers, collect), torch.inference_mode():
        network(example)
    return shapes
