"""What the choices of a cut cost in accuracy: the shape of each damage by second derivatives, its size measured.

Second derivatives tell which channels and which directions of a layer matter least, and how the damage grows with
them. How large it is they tell badly where a network has learned its samples by heart: all gradients are next to zero
there, and channels, pairs and whole blocks do not compare. So every choice is made alone, a width and a rank half-way
and as far as it may go, and the damages are brought to how far the outputs move then. The batch norms are adapted each
time, which asks for no more than what the others are measured with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from onnxdistill.device.costs.coldness import CacheLoad
from onnxdistill.device.costs.layers import Layer, pair_of
from onnxdistill.errors import NetworkError
from onnxdistill.graph.blocks import without_blocks
from onnxdistill.graph.cost import count_macs
from onnxdistill.graph.groups import Removed
from onnxdistill.graph.importance import Scores
from onnxdistill.graph.prefix import Prefix
from onnxdistill.graph.recalibrate import NormMatcher
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
# Choices are tried on as many calibration samples as these multiply-adds allow, within bounds.
_TRIED_MACS, _FEWEST, _MOST = 16e9, 16, 128


class _Trial:
    """Measures what single changes of a network do."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        samples = _TRIED_MACS / max(1, count_macs(network, task.example_input(1)))
        self._divergence = Divergence(network, task, int(min(_MOST, max(_FEWEST, samples))))
        self._norms = NormMatcher(network, [self._divergence.inputs])
        self._prefix = Prefix(network, self._divergence.inputs)

    def of(self, changed: nn.Module, removed: Removed | None = None) -> float:
        """How far the outputs have moved with `removed` gone; see `ChannelAnalysis.removed_indices`.

        The pass that they are measured with adapts the batch norms of `changed`, but for those before the change, where
        nothing is to adapt.
        """
        with self._norms.matching(changed.eval(), removed or {}), self._prefix.given(changed):
            return self._divergence.of(changed)


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
        self._example = task.example_input(2)

    def damages(self) -> Damages:
        """By how much the outputs move; where there is no data, the importance that goes, in any unit."""
        curves = {name: self._curve(name) for name in self._known.choices.widths}
        blocks = self._known.choices.blocks
        if not self._task.measurable:
            mean = float(np.mean([curve[0] for curve in curves.values()])) if curves else 1.0
            return Damages(curves, dict.fromkeys(blocks, mean))
        trial = _Trial(self._network, self._task)
        pairs = self._pairs(trial)
        widths = {}
        for number, (name, curve) in enumerate(curves.items(), 1):
            self._say(f"trying widths, {number} of {len(curves)}")
            widths[name] = self._tried_curve(name, curve, trial)
        self._say("trying to do without blocks")
        return Damages(widths, {block: trial.of(without_blocks(self._network, [block])) for block in blocks}, pairs)

    def _curve(self, group: str) -> Floats:
        """The importance that has gone with so many channels left, the least important ones gone first."""
        rising = np.sort(self._scores[group].double().numpy())
        return np.concatenate([np.cumsum(rising)[::-1], [0.0]])

    def _tried_curve(self, group: str, curve: Floats, trial: _Trial) -> Floats:
        size = len(curve) - 1
        narrower = [width for width in self._known.choices.widths[group] if width < size]
        tried = sorted({min(narrower, key=lambda one: abs(one - size / 2)), narrower[0]}, reverse=True)
        measured = [self._narrower(group, width, trial) for width in tried]
        rises = np.diff([0.0, *curve[tried]]) > 0
        # Without any gradient, each channel counts alike.
        shape = curve if rises.all() else np.arange(size, -1, -1, dtype=np.float64)
        return brought_to(shape, shape[tried], measured)

    def _narrower(self, group: str, width: int, trial: _Trial) -> float:
        kept = most_important(self._scores, {group: width})
        try:
            smaller = remove_channels(self._network, self._known.analysis, kept, self._example)
        except NetworkError:  # with other groups together it may be possible, but that is not known
            return math.inf
        return trial.of(smaller, self._known.analysis.removed_indices(kept))

    def _pairs(self, trial: _Trial) -> dict[str, list[Pair]]:
        """The pairs that are faster than the layer that they stand for, with what they cost, by its weight's name."""
        worthwhile = self._worthwhile()
        if not worthwhile:
            return {}
        self._say("scoring low-rank pairs")
        schemes = {name: list(dict.fromkeys(form.scheme for form in forms)) for name, forms in worthwhile.items()}
        factors = pair_factors(self._network, self._task, schemes, torch.Generator().manual_seed(0))
        found = {}
        for number, (name, forms) in enumerate(worthwhile.items(), 1):
            self._say(f"trying low-rank pairs, {number} of {len(worthwhile)}")
            if pairs := self._tried_pairs(name, forms, factors, trial):
                found[f"{name}.weight"] = pairs
        return found

    def _worthwhile(self) -> dict[str, list[PairForm]]:
        """The forms that are faster than a layer, by its name, in the network as it is or in one of few weights."""
        known, found = self._known, dict[str, list[PairForm]]()
        now = known.costs.load
        # With fewer weights, fewer tensors are pushed out while those weights may still be cold, which favours pairs.
        fewer = [replace(now, weight_bytes=int(share * now.weight_bytes)) for share in (1, 1 / 4, 1 / 16, 0)]
        loads = [*fewer, CacheLoad(0, 0.0)]

        def faster(layer: Layer, pair: Sequence[Layer], load: CacheLoad) -> bool:
            part_ms = (known.costs.layer_ms(known.profile, one, load) for one in pair)
            return sum(part_ms) < _WORTHWHILE * known.costs.layer_ms(known.profile, layer, load)

        for layer in known.costs.layers:
            name = known.seen.graph.weights.get(layer.name, "").removesuffix(".weight")
            forms = [
                PairForm(scheme, rank)
                for scheme in known.schemes.get(name, ())
                for rank in self._ranks(layer)
                if any(faster(layer, pair_of(layer, rank, spatial=scheme == "spatial"), load) for load in loads)
            ]
            if forms:
                found[name] = forms
        return found

    def _tried_pairs(
        self, name: str, forms: Sequence[PairForm], factors: Mapping[str, FactorsByScheme], trial: _Trial
    ) -> list[Pair]:
        possible = [form for form in forms if form.rank < len(factors[name][form.scheme].errors)]
        if not possible:
            return []
        errors = np.array([float(factors[name][form.scheme].errors[form.rank]) for form in possible])
        # The one in the middle and the worst one, of either scheme: both have the layer's inputs and outputs.
        order = np.argsort(errors, kind="stable")
        tried = list(dict.fromkeys(int(order[place]) for place in (len(order) // 2, len(order) - 1)))
        measured = [trial.of(with_pairs(self._network, factors, {name: possible[place]})) for place in tried]
        rises = np.diff([0.0, *errors[tried]]) > 0
        damages = brought_to(errors, errors[tried], measured) if rises.all() else np.full_like(errors, max(measured))
        return [
            Pair(form.scheme == "spatial", form.rank, float(damage))
            for form, damage in zip(possible, damages, strict=True)
        ]

    def _ranks(self, layer: Layer) -> list[int]:
        step = max(_LEAST_RANK, self._table.multiple_of)
        widest = min(layer.inputs, layer.outputs)
        return sorted({max(step, round(share * widest / step) * step) for share in _RANK_SHARES})


def brought_to(damages: Floats, tried: Floats, measured: Sequence[float]) -> Floats:
    """Damages brought to those that were measured: in proportion below the first of them, linearly between two.

    Args:
        damages: As they are thought to be; none is larger than the last of `tried`, or else it counts as that.
        tried: Some of them, rising, above zero.
        measured: What they are; never falling, or else the larger one counts.
    """
    known = np.maximum.accumulate(np.asarray(measured, np.float64))
    finite = np.isfinite(known)
    places, values = np.array([0.0, *tried[finite]]), np.array([0.0, *known[finite]])
    found: Floats = np.interp(damages, places, values)
    return np.where(damages > places[-1], math.inf, found) if not finite.all() else found
