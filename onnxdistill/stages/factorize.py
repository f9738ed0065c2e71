"""Stage `factorize`: low-rank pairs in place of layers, where the pair is measured to be faster."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from onnxdistill.device.measuring.compare import describe, measurably_faster
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.graph.columns import Layer
from onnxdistill.graph.cost import count_macs
from onnxdistill.graph.lowrank import (
    Factors,
    RankOptions,
    can_factorize,
    choose_ranks,
    decompose,
    input_shapes,
    layer_macs,
    low_rank_pair,
    pair_macs,
    scheme_of,
    second_moments,
)
from onnxdistill.recipe import FactorizeTable
from onnxdistill.tasks import Task

CALIBRATION_BATCH = 64

LayerSpeedup = Callable[[nn.Module, nn.Module, tuple[int, ...]], Estimate]
"""Measures how many times faster the second layer is than the first, on inputs `[N, *shape]`, as deployed."""


@dataclass(frozen=True)
class FactorizeResult:
    """The network with its pairs.

    Attributes:
        network: A copy.
        layers: The rank of every replaced layer.
        notes: What the user should know.
        left_out: Why no layer was replaced; empty if some were.
    """

    network: nn.Module
    layers: dict[str, int]
    notes: list[str]
    left_out: str


def factorize(
    network: nn.Module, task: Task, table: FactorizeTable, seed: int, layer_speedup: LayerSpeedup
) -> FactorizeResult:
    """Chooses ranks for a budget of multiply-adds, then keeps only the pairs that are measurably faster.

    Args:
        network: Not changed.
        task: Gives calibration samples.
        table: The recipe's `[factorize]`.
        seed: Draws the input columns that the second moments are taken from.
        layer_speedup: Decides; fewer multiply-adds alone do not.
    """
    shapes = _candidates(network, task, table)
    batches = (batch.inputs for batch in task.calibration_batches(CALIBRATION_BATCH))
    moments = second_moments(network, shapes, batches, table.scheme, torch.Generator().manual_seed(seed))
    factors = {
        name: decompose(_layer(network, name), scheme_of(_layer(network, name), table.scheme), moments[name])
        for name in shapes
    }
    options = {name: _options(_layer(network, name), shapes[name], factors[name], table) for name in shapes}
    whole = count_macs(network, task.example_input(1))
    elsewhere = whole - sum(option.dense for option in options.values())
    ranks = choose_ranks(options, table.macs_ratio * whole - elsewhere)
    chosen = {name: rank for name, rank in ranks.items() if rank is not None}
    if not chosen:
        return FactorizeResult(copy.deepcopy(network), {}, [], _why_no_rank(options, table))
    return _replace(network, table, shapes, factors, chosen, layer_speedup)


def _why_no_rank(options: dict[str, RankOptions], table: FactorizeTable) -> str:
    if not options:
        skipped = ", or all are skipped" if table.skip else ""
        return f"there is no layer to factorize{skipped}"
    if not any(option.ranks for option in options.values()):
        return f"no rank that is a multiple of {table.multiple_of} saves multiply-adds in any layer"
    return f"the network meets macs_ratio = {table.macs_ratio:g} as it is"


def _candidates(network: nn.Module, task: Task, table: FactorizeTable) -> dict[str, tuple[int, ...]]:
    names = [
        name
        for name, layer in network.named_modules()
        if can_factorize(layer) and not any(fnmatchcase(name, pattern) for pattern in table.skip)
    ]
    return input_shapes(network, names, task.example_input(1))


def _options(layer: Layer, shape: tuple[int, ...], factors: Factors, table: FactorizeTable) -> RankOptions:
    dense = layer_macs(layer, shape)
    scheme = scheme_of(layer, table.scheme)
    full = len(factors.errors) - 1
    ranks = [
        rank
        for rank in range(table.multiple_of, full, table.multiple_of)
        if pair_macs(layer, shape, rank, scheme) < dense
    ]
    return RankOptions(
        dense=dense,
        ranks=ranks,
        costs=[pair_macs(layer, shape, rank, scheme) for rank in ranks],
        errors=[float(factors.errors[rank]) for rank in ranks],
    )


def _replace(
    network: nn.Module,
    table: FactorizeTable,
    shapes: dict[str, tuple[int, ...]],
    factors: dict[str, Factors],
    ranks: dict[str, int],
    layer_speedup: LayerSpeedup,
) -> FactorizeResult:
    changed = copy.deepcopy(network)
    layers: dict[str, int] = {}
    notes: list[str] = []
    measured: dict[tuple[object, ...], Estimate] = {}
    for name, rank in ranks.items():
        layer = _layer(network, name)
        pair = low_rank_pair(layer, factors[name], rank, scheme_of(layer, table.scheme))
        # Layers of one form take the same time, whatever their weights.
        form = (str(layer), rank, shapes[name])
        if form not in measured:
            measured[form] = layer_speedup(layer, pair, shapes[name])
        ratio = measured[form]
        if not measurably_faster(ratio):
            notes.append(f"factorize left {name} as it is: at rank {rank} it is {describe(ratio)}.")
            continue
        changed.set_submodule(name, pair)
        layers[name] = rank
    tried = "the low-rank pair" if len(ranks) == 1 else f"none of the {len(ranks)} low-rank pairs"
    left_out = "" if layers else f"{tried} was {'not ' * (len(ranks) == 1)}measured to be faster"
    return FactorizeResult(changed, layers, notes, left_out)


def _layer(network: nn.Module, name: str) -> Layer:
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer
