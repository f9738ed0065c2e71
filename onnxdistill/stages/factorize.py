"""Stage `factorize`: low-rank pairs in place of layers, where the pair is measured to be faster."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod

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
    input_shapes,
    layer_macs,
    low_rank_pair,
    pair_macs,
    scheme_of,
)
from onnxdistill.graph.pairmoments import LONGEST_COLUMN, Scheme, longest_column
from onnxdistill.graph.standins import replaceable
from onnxdistill.graph.widths import unmatched
from onnxdistill.recipe import FactorizeTable
from onnxdistill.tasks import Task
from onnxdistill.training.pairs import PairForm, best_fitted, layer_of, pair_factors

LayerSpeedup = Callable[[nn.Module, nn.Module, tuple[int, ...]], Estimate]
"""Measures how many times faster the second layer is than the first, on inputs `[N, *shape]`, as deployed."""


@dataclass(frozen=True)
class FactorizeResult:
    """The network with its pairs.

    Attributes:
        network: A copy.
        layers: The form of every replaced layer.
        notes: What the user should know.
        left_out: Why no layer was replaced; empty if some were.
    """

    network: nn.Module
    layers: dict[str, PairForm]
    notes: list[str]
    left_out: str


def factorize(
    network: nn.Module, task: Task, table: FactorizeTable, seed: int, layer_speedup: LayerSpeedup
) -> FactorizeResult:
    """Chooses schemes and ranks for a budget of multiply-adds, then keeps only the pairs that are measurably faster.

    Ranks go where they cost the least loss; what follows the pairs is then fitted to the outputs that it had.

    Args:
        network: Not changed.
        task: Gives calibration samples, whose targets are not looked at, and the score on validation.
        table: The recipe's `[factorize]`.
        seed: Draws the targets that derivatives are taken with, from what the network says.
        layer_speedup: Decides; fewer multiply-adds alone do not.
    """
    shapes = _candidates(network, task, table)
    too_long = {
        name: longest_column(layer_of(network, name), "channel")
        for name in shapes
        if not _schemes(layer_of(network, name), table)
    }
    notes = [
        f"factorize left {name} as it is: to weigh columns of {length:,} numbers would take too much memory."
        for name, length in too_long.items()
    ]
    notes += unmatched("factorize.skip", table.skip, network)
    shapes = {name: shape for name, shape in shapes.items() if name not in too_long}
    schemes = {name: _schemes(layer_of(network, name), table) for name in shapes}
    factors = pair_factors(network, task, schemes, torch.Generator().manual_seed(seed))
    options = {name: _options(layer_of(network, name), shapes[name], factors[name], table) for name in shapes}
    whole = count_macs(network, task.example_input(1))
    elsewhere = whole - sum(option.dense for option in options.values())
    forms = choose_ranks(options, table.macs_ratio * whole - elsewhere)
    chosen = {name: form for name, form in forms.items() if form is not None}
    if not chosen:
        return FactorizeResult(copy.deepcopy(network), {}, notes, _why_no_rank(options, table))
    result = _replace(network, shapes, factors, chosen, layer_speedup)
    result = replace(result, notes=[*notes, *result.notes])
    if result.layers and task.measurable:
        fitted = best_fitted(network, result.network, result.layers, task, fit=table.repair)
        result = replace(result, network=fitted)
    return result


def _why_no_rank(options: dict[str, RankOptions[PairForm]], table: FactorizeTable) -> str:
    if not options:
        skipped = ", or all are skipped" if table.skip else ""
        return f"there is no layer to factorize{skipped}"
    if not any(option.ranks for option in options.values()):
        return f"no rank that is a multiple of {table.multiple_of} saves multiply-adds in any layer"
    return f"the network meets macs_ratio = {table.macs_ratio:g} as it is"


def _candidates(network: nn.Module, task: Task, table: FactorizeTable) -> dict[str, list[tuple[int, ...]]]:
    names = [
        name
        for name, layer in network.named_modules()
        if can_factorize(layer) and not any(fnmatchcase(name, pattern) for pattern in table.skip)
    ]
    example = task.example_input(1)
    return input_shapes(network, replaceable(network, names, example, nn.Sequential), example)


def _schemes(layer: Layer, table: FactorizeTable) -> list[Scheme]:
    wanted: tuple[Scheme, ...] = ("spatial", "channel") if table.scheme == "auto" else (table.scheme,)
    fitting = dict.fromkeys(scheme_of(layer, scheme) for scheme in wanted)
    return [scheme for scheme in fitting if longest_column(layer, scheme) <= LONGEST_COLUMN]


def _options(
    layer: Layer, shapes: Sequence[tuple[int, ...]], factors: Mapping[Scheme, Factors], table: FactorizeTable
) -> RankOptions[PairForm]:
    dense = sum(layer_macs(layer, shape) for shape in shapes)
    forms: list[PairForm] = []
    costs: list[float] = []
    for scheme, known in factors.items():
        for rank in range(table.multiple_of, len(known.errors) - 1, table.multiple_of):
            cost = sum(pair_macs(layer, shape, rank, scheme) for shape in shapes)
            if cost < dense:
                forms.append(PairForm(scheme, rank))
                costs.append(cost)
    return RankOptions(
        dense=dense,
        ranks=forms,
        costs=costs,
        errors=[float(factors[form.scheme].errors[form.rank]) for form in forms],
    )


def _replace(
    network: nn.Module,
    shapes: dict[str, list[tuple[int, ...]]],
    factors: Mapping[str, Mapping[Scheme, Factors]],
    forms: dict[str, PairForm],
    layer_speedup: LayerSpeedup,
) -> FactorizeResult:
    changed = copy.deepcopy(network)
    layers: dict[str, PairForm] = {}
    notes: list[str] = []
    measured: dict[tuple[object, ...], Estimate] = {}
    for name, form in forms.items():
        layer = layer_of(network, name)
        pair = low_rank_pair(layer, factors[name][form.scheme], form.rank, form.scheme)
        # Layers of one form take the same time, whatever their weights.
        largest = max(shapes[name], key=prod)
        alike = (str(layer), form, largest)
        if alike not in measured:
            measured[alike] = layer_speedup(layer, pair, largest)
        ratio = measured[alike]
        if not measurably_faster(ratio):
            notes.append(f"factorize left {name} as it is: at rank {form.rank} it is {describe(ratio)}.")
            continue
        changed.set_submodule(name, pair)
        layers[name] = form
    tried = "the low-rank pair" if len(forms) == 1 else f"none of the {len(forms)} low-rank pairs"
    left_out = "" if layers else f"{tried} was {'not ' * (len(forms) == 1)}measured to be faster"
    return FactorizeResult(changed, layers, notes, left_out)
