"""What the choices of a cut cost in accuracy: the shape of each damage by second derivatives, its size measured.

Second derivatives tell which channels and which directions of a layer matter least, and how the damage grows with
them. How large it is they tell badly where a network has learned its samples by heart: all gradients are next to zero
there, and channels, pairs and whole blocks do not compare. So every choice is made once, alone, half-way, and repaired
as far as that is cheap; the whole curve is then scaled to how far the outputs have moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from onnxdistill.device.costs.layers import Layer, pair_of
from onnxdistill.graph.blocks import without_blocks
from onnxdistill.graph.importance import Scores
from onnxdistill.graph.recalibrate import match_batch_norm
from onnxdistill.graph.repair import layers_that_lost_inputs, refit
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.graph.widths import most_important
from onnxdistill.planning.network import Damages, Pair
from onnxdistill.recipe import PlanTable
from onnxdistill.stages.plan.known import Known
from onnxdistill.tasks import Task
from onnxdistill.training.divergence import Divergence
from onnxdistill.training.pairs import FactorsByScheme, PairForm, pair_factors, with_pairs

Floats = npt.NDArray[np.float64]

# Shares of the width that pairs may have between them, and by how much they have to be faster than their layer.
_RANK_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
_WORTHWHILE, _LEAST_RANK = 0.9, 8
# Of calibration samples, that choices are tried on one by one.
_BATCHES = 2


class Appraiser:
    """Appraises the choices of one cut.

    Args:
        network: Before it; not changed.
        known: What it offers, and what that costs.
        scores: How much each channel matters.
        task: Gives calibration samples.
        table: The recipe's `[plan]`.
        say: Told what is being done.
    """

    def __init__(
        self, network: nn.Module, known: Known, scores: Scores, task: Task, table: PlanTable, say: Callable[[str], None]
    ) -> None:
        self._network = network
        self._known = known
        self._scores = scores
        self._task = task
        self._table = table
        self._say = say

    def damages(self) -> Damages:
        """By how much the outputs move; where there is no data, the importance that goes, in any unit."""
        curves = {name: self._curve(name) for name in self._known.choices.widths}
        blocks = self._known.choices.blocks
        if not self._task.measurable:
            mean = float(np.mean([curve[0] for curve in curves.values()])) if curves else 1.0
            return Damages(curves, dict.fromkeys(blocks, mean))
        measure = Divergence(self._network, self._task, _BATCHES)
        pairs = self._pairs(measure)
        self._say("trying widths")
        widths = {name: self._scaled_curve(name, curve, measure) for name, curve in curves.items()}
        self._say("trying to do without blocks")
        return Damages(widths, {block: self._without(block, measure) for block in blocks}, pairs)

    def _curve(self, group: str) -> Floats:
        """The importance that has gone with so many channels left, the least important ones gone first."""
        rising = np.sort(self._scores[group].double().numpy())
        return np.concatenate([np.cumsum(rising)[::-1], [0.0]])

    def _scaled_curve(self, group: str, curve: Floats, measure: Divergence) -> Floats:
        widths = self._known.choices.widths[group]
        size = len(curve) - 1
        width = min((one for one in widths if one < size), key=lambda one: abs(one - size / 2))
        kept = most_important(self._scores, {group: width})
        smaller = remove_channels(self._network, self._known.analysis, kept, self._task.example_input(2))
        if self._table.repair:
            removed = self._known.analysis.removed_indices(kept)
            smaller = refit(self._network, smaller, layers_that_lost_inputs(smaller, removed), removed, measure.inputs)
        # Without any gradient, each channel counts alike.
        shape = curve if curve[width] > 0 else np.arange(size, -1, -1, dtype=np.float64)
        return _scaled(shape, shape[width], measure.of(smaller))

    def _without(self, block: str, measure: Divergence) -> float:
        shorter = without_blocks(self._network, [block])
        return measure.of(match_batch_norm(self._network, shorter, {}, measure.inputs))

    def _pairs(self, measure: Divergence) -> dict[str, list[Pair]]:
        """The pairs that are faster than the layer that they stand for, with what they cost, by its weight's name."""
        worthwhile = self._worthwhile()
        if not worthwhile:
            return {}
        self._say("scoring low-rank pairs")
        schemes = {name: list(dict.fromkeys(form.scheme for form in forms)) for name, forms in worthwhile.items()}
        factors = pair_factors(self._network, self._task, schemes, torch.Generator().manual_seed(0))
        self._say("trying low-rank pairs")
        return {
            f"{name}.weight": self._scaled_pairs(name, forms, factors, measure) for name, forms in worthwhile.items()
        }

    def _worthwhile(self) -> dict[str, list[PairForm]]:
        """The forms that are faster than a layer, by its name."""
        known, found = self._known, dict[str, list[PairForm]]()
        for layer in known.costs.layers:
            name = known.seen.graph.weights.get(layer.name, "").removesuffix(".weight")
            forms = [
                PairForm(scheme, rank)
                for scheme in known.schemes.get(name, ())
                for rank in self._ranks(layer)
                if sum(known.profile.time_ms(one) for one in pair_of(layer, rank, spatial=scheme == "spatial"))
                < _WORTHWHILE * known.profile.time_ms(layer)
            ]
            if forms:
                found[name] = forms
        return found

    def _scaled_pairs(
        self, name: str, forms: Sequence[PairForm], factors: Mapping[str, FactorsByScheme], measure: Divergence
    ) -> list[Pair]:
        possible = [form for form in forms if form.rank < len(factors[name][form.scheme].errors)]
        if not possible:
            return []
        errors = np.array([float(factors[name][form.scheme].errors[form.rank]) for form in possible])
        # One in the middle, of either scheme: both have the layer's inputs and outputs.
        tried = int(np.argsort(errors)[len(errors) // 2])
        measured = measure.of(with_pairs(self._network, factors, {name: possible[tried]}))
        errors = _scaled(errors, errors[tried], measured) if errors[tried] > 0 else np.full_like(errors, measured)
        return [
            Pair(form.scheme == "spatial", form.rank, float(error))
            for form, error in zip(possible, errors, strict=True)
        ]

    def _ranks(self, layer: Layer) -> list[int]:
        step = max(_LEAST_RANK, self._table.multiple_of)
        widest = min(layer.inputs, layer.outputs)
        return sorted({max(step, round(share * widest / step) * step) for share in _RANK_SHARES})


def _scaled(damages: Floats, tried: float, measured: float) -> Floats:
    """Damages, of which one, which is not zero, was measured."""
    if math.isinf(measured):
        return np.where(damages > 0, math.inf, 0.0)
    return damages * (measured / tried)
