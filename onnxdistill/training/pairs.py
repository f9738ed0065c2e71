"""Low-rank pairs in a network: decomposed by what the loss depends on, put in place, and fitted, without training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from onnxdistill.graph.columns import Layer
from onnxdistill.graph.lowrank import Factors, decompose, low_rank_pair
from onnxdistill.graph.pairmoments import Moments, Scheme, pair_moments
from onnxdistill.graph.recalibrate import match_batch_norm
from onnxdistill.graph.repair import layers_from, refit
from onnxdistill.tasks.base import Objective, Task, TrainingBatch
from onnxdistill.training.repaired import CalibrationInputs, scored_at_once
from onnxdistill.training.validation import best_on_validation

FactorsByScheme = Mapping[Scheme, Factors]


class PairForm(NamedTuple):
    """What a layer becomes."""

    scheme: Scheme
    rank: int


def layer_of(network: nn.Module, name: str) -> Layer:
    """The layer of that name, which has to be a convolution or a linear one."""
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


def pair_factors(
    network: nn.Module, task: Task, schemes: Mapping[str, Sequence[Scheme]], generator: torch.Generator
) -> dict[str, dict[Scheme, Factors]]:
    """Decomposes layers by what their inputs are and by what their outputs are worth to the loss.

    Args:
        network: In evaluation mode; not changed.
        task: Gives calibration samples, whose targets are not looked at.
        schemes: For every layer those that are wanted, by its name.
        generator: Draws the targets that derivatives are taken with, from what the network says.
    """
    moments = pair_moments(network, schemes, _losses(network, task, generator), with_worth=task.measurable)
    # Losses and shares of energy do not compare. Without gradients are layers that run under `torch.no_grad`; and of a
    # network that is sure of everything, all gradients are zero.
    weighed = all(one.worth is not None for one in moments.values()) and any(
        one.worth is not None and bool(one.worth.any()) for one in moments.values()
    )
    factors: dict[str, dict[Scheme, Factors]] = {name: {} for name in schemes}
    for (name, scheme), known in moments.items():
        factors[name][scheme] = decompose(layer_of(network, name), scheme, known if weighed else Moments(known.inputs))
    return factors


def with_pairs(network: nn.Module, factors: Mapping[str, FactorsByScheme], forms: Mapping[str, PairForm]) -> nn.Module:
    """Returns a copy in which layers are pairs."""
    changed = copy.deepcopy(network)
    for name, form in forms.items():
        known = factors[name][form.scheme]
        changed.set_submodule(name, low_rank_pair(layer_of(network, name), known, form.rank, form.scheme))
    return changed


def best_fitted(network: nn.Module, changed: nn.Module, pairs: Iterable[str], task: Task, *, fit: bool) -> nn.Module:
    """Of a network with pairs as it is, with batch norms adapted, and fitted to the one before, what scores best.

    Args:
        network: Before.
        changed: With pairs.
        pairs: Names of the layers that they stand for.
        task: Gives calibration samples, and the score on validation.
        fit: Whether layers may be fitted by least squares.
    """
    inputs = CalibrationInputs(task)
    forms = [changed, match_batch_norm(network, changed, {}, inputs)]
    if fit:
        stands_for = {f"{name}.1": name for name in pairs}
        firsts = {f"{name}.0" for name in stands_for.values()}
        layers = [name for name in layers_from(changed, stands_for, next(iter(inputs))) if name not in firsts]
        forms.append(refit(network, changed, layers, {}, inputs, stands_for))
    return best_on_validation(forms, task)


def _losses(network: nn.Module, task: Task, generator: torch.Generator) -> list[Callable[[nn.Module], Tensor]]:
    def loss(batch: TrainingBatch, network: nn.Module) -> Tensor:
        return task.step(network, batch.copied(), Objective())["loss"]

    def run(batch: TrainingBatch, network: nn.Module) -> Tensor:
        output: Tensor = network(batch.copied().inputs)
        return output

    batches = list(task.calibration_batches(scored_at_once(network, task)))
    if not task.measurable:
        return [partial(run, batch) for batch in batches]
    with torch.no_grad():
        drawn = [task.drawn_targets(batch, network(batch.copied().inputs), generator) for batch in batches]
    return [partial(loss, batch) for batch in drawn]
