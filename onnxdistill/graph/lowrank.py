"""Low-rank pairs in place of layers, fitted to the layer's inputs and to what its outputs are worth.

A layer's weight, seen as a matrix `M` that acts on columns `x`, is replaced by the rank-r matrix with which the loss
grows least on the calibration inputs: minimise tr(G (M - M~) S (M - M~)^T) = ||Q (M - M~) R||_F^2 with S = E[x x^T] =
R R^T and G = Q^T Q from the gradients; see `graph.pairmoments`. With Q M R = U D V^T that is M~ = Q^-1 U_r D_r V_r^T
R^-1, and the loss grows by the sum of the squared singular values left out (Eckart and Young 1936; with R alone see
Wang et al. 2024, "SVD-LLM", section 3.2). Without gradients, Q is the identity; without inputs, R.

Schemes (Jaderberg et al. 2014, "Speeding up Convolutional Neural Networks with Low Rank Expansions"):

- `spatial`: k x k to (k x 1) then (1 x k), their scheme 2;
- `channel`: k x k with r outputs, then 1 x 1; for a linear layer or a 1 x 1 convolution, the only one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from onnxdistill.graph.columns import Layer, is_plain, watched
from onnxdistill.graph.pairmoments import Moments, Scheme

# Relative to the sum of the eigenvalues: directions in which the inputs hardly vary; post-ReLU inputs have many.
INPUT_FLOOR = 1e-7
# Relative to the largest: directions of the outputs on which the loss hardly depends now, but will when other layers
# have changed.
WORTH_FLOOR = 1e-2


@dataclass(frozen=True)
class Factors:
    """The singular value decomposition of a layer, ready to be cut at any rank.

    Attributes:
        left: `[rows, full]`, of the second layer of the pair.
        right: `[full, columns]`, of the first layer; `left @ right` is the layer's matrix.
        errors: `[full + 1]`, by how much the loss grows at every rank; where that isn't known, the share of the
            outputs' energy that is lost.
    """

    left: Tensor
    right: Tensor
    errors: Tensor


def can_factorize(layer: nn.Module) -> bool:
    """Plain linear layers, and plain convolutions of one group without dilation, with zero padding in pixels."""
    if not is_plain(layer):
        return False
    return isinstance(layer, nn.Linear) or (
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


def decompose(layer: Layer, scheme: Scheme, moments: Moments | None = None) -> Factors:
    """Decomposes a layer, with the second moments of its inputs and gradients if there are some."""
    matrix = _matrix(layer.weight.detach().double(), scheme)
    roots = None if moments is None else _triangular_root(moments.inputs)
    worth = None if moments is None else moments.worth
    values_of, back = _root(worth) if worth is not None else (None, None)
    weighted = matrix if roots is None else matrix @ roots
    weighted = weighted if values_of is None else values_of.T @ weighted
    left, values, right = torch.linalg.svd(weighted, full_matrices=False)
    right = right if roots is None else torch.linalg.solve_triangular(roots, right, upper=False, left=False)
    left = left if back is None else back.T @ left
    energy = values**2
    lost = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    if worth is None:
        lost = lost / lost[0].clamp_min(1e-30)
    # Half of every singular value on either side: what is between the layers has ranges that differ less.
    return Factors(left * values.sqrt(), values.sqrt()[:, None] * right, lost)


def _triangular_root(moment: Tensor) -> Tensor:
    """R with R R^T the moment and a little of the identity; any such R gives the same pair.

    Triangular, since of long columns eigenvalues would take minutes.
    """
    moment = moment.double()
    floor = INPUT_FLOOR * moment.diagonal().sum().clamp_min(1e-30)
    root: Tensor = torch.linalg.cholesky(moment + floor * torch.eye(len(moment), dtype=moment.dtype))
    return root


def _root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """R and its inverse, with R R^T the moment."""
    eigenvalues, vectors = torch.linalg.eigh(moment.double())
    roots = eigenvalues.clamp_min(WORTH_FLOOR * eigenvalues.max().clamp_min(1e-30)).sqrt()
    return vectors * roots, (vectors / roots).T


def low_rank_pair(layer: Layer, factors: Factors, rank: int, scheme: Scheme) -> nn.Sequential:
    """The two layers of rank `rank` that replace `layer`, frozen if it is; the bias is in the second.

    Their weights have the same norm: the gradient of each has the scale of the other, so that one with a hundredth of
    the other's norm would be torn apart by the first steps of a training.
    """
    left, right = _balanced(factors.left[:, :rank], factors.right[:rank])
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
    # It is trained even if the layer was frozen: it has to recover.
    return nn.Sequential(first, second).to(layer.weight.dtype).train(layer.training)


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Of one norm, by one factor, which lets what is between them have the same relative ranges as before."""
    norms = left.norm(), right.norm()
    if min(norms) == 0:
        return left, right
    scale = (norms[0] / norms[1]).sqrt()
    return left / scale, right * scale


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


Form = TypeVar("Form")
"""A rank, or a scheme with a rank."""


@dataclass(frozen=True)
class RankOptions(Generic[Form]):
    """What one layer can become.

    Attributes:
        dense: Cost of leaving it as it is.
        ranks: Forms to choose from.
        costs: Cost of every form.
        errors: Error of every form; 0 if left as it is.
    """

    dense: float
    ranks: Sequence[Form]
    costs: Sequence[float]
    errors: Sequence[float]

    def best(self, price: float) -> Form | None:
        """The form that minimises error plus price times cost; None to leave the layer as it is."""
        values = [error + price * cost for error, cost in zip(self.errors, self.costs, strict=True)]
        cheapest = min(range(len(values)), key=values.__getitem__, default=None)
        if cheapest is None or price * self.dense <= values[cheapest]:
            return None
        return self.ranks[cheapest]

    def cost(self, rank: Form | None) -> float:
        """The cost of a form."""
        return self.dense if rank is None else self.costs[self.ranks.index(rank)]


def choose_ranks(options: dict[str, RankOptions[Form]], budget: float) -> dict[str, Form | None]:
    """Least total error at a total cost of at most `budget`, by bisection of the price of cost.

    Source: Everett 1963, "Generalized Lagrange Multiplier Method": for a given price the layers decide
    independently, and the result is optimal for the cost that it has. If the budget cannot be met, the cheapest.
    """
    low, high = 0.0, 1.0
    # Whatever the units: the largest error is 1, and so is the cost of leaving everything as it is.
    worst = max((error for option in options.values() for error in option.errors), default=0.0) or 1.0
    dense = sum(option.dense for option in options.values()) or 1.0

    def at(price: float) -> dict[str, Form | None]:
        return {name: option.best(price * worst / dense) for name, option in options.items()}

    def cost(ranks: dict[str, Form | None]) -> float:
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


def input_shapes(network: nn.Module, layers: Iterable[str], example: Tensor) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of the layers' inputs, one a run, without the batch; a layer that does not run is left out."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def collect(name: str, _layer: Layer, inputs: Tensor, _outputs: Tensor) -> None:
        shapes.setdefault(name, []).append(tuple(inputs.shape[1:]))

    with watched(network, layers, collect), torch.inference_mode():
        network(example)
    return shapes
