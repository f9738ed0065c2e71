"""How many channels stay, and which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil, gcd
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxdistill.graph.cores import core_of
from onnxdistill.graph.cost import layer_by_layer
from onnxdistill.graph.groups import ChannelAnalysis, ChannelGroup, Channels, Kind
from onnxdistill.graph.importance import Scores
from onnxdistill.graph.surgery import CONVOLUTIONS, TRANSPOSED

# Of groups that no pattern fits.
_MULTIPLE = 8


@dataclass(frozen=True)
class Steps:
    """Which widths are allowed: latency goes by steps.

    Attributes:
        multiple_of: Widths of the producing layers are rounded up to a multiple; by pattern of one of the group's
            `names` (`*` matches anything, the first that fits holds; 8 where none does) or one for all.
        minimum: No layer gets narrower.
        skip: Patterns of the names of groups to leave alone.
    """

    multiple_of: int | Mapping[str, int] = 1
    minimum: int = 1
    skip: tuple[str, ...] = ()

    def may_cut(self, group: ChannelGroup) -> bool:
        """Whether channels of a group may be removed at all."""
        return not group.frozen and not any(_fits(group, pattern) for pattern in self.skip)

    def rounded(self, group: ChannelGroup, wanted: float) -> int:
        """The next allowed width of a group, in channels of the group.

        The multiple and the minimum are in channels of the layer; heads are counted one by one.
        """
        each = 1 if group.kind == "heads" else group.indices_per_channel
        multiple = 1 if group.kind == "heads" else self._multiple(group)
        step = multiple // gcd(multiple, each)
        # 1e-9: a share such as 0.3 of 10 has to come to 7, not to 8, whatever binary fractions say.
        least = 1 if group.kind == "heads" else self.minimum / each
        return min(group.size, ceil(max(wanted - 1e-9, least) / step) * step)

    def _multiple(self, group: ChannelGroup) -> int:
        if isinstance(self.multiple_of, int):
            return self.multiple_of
        return next((m for pattern, m in self.multiple_of.items() if _fits(group, pattern)), _MULTIPLE)


def _fits(group: ChannelGroup, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in group.names)


def unmatched(key: str, patterns: Iterable[str], network: nn.Module, groups: Iterable[ChannelGroup] = ()) -> list[str]:
    """A sentence for every pattern of a recipe's key that fits no module and no channel group of a network."""
    names = {name for name, _ in network.named_modules()} | {name for group in groups for name in group.names}
    return [
        f"{key}: {pattern!r} fits nothing in the network."
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]


def uniform_widths(analysis: ChannelAnalysis, ratio: float, steps: Steps) -> dict[str, int]:
    """The same share of every group that may be cut.

    Args:
        analysis: Channel groups of the network.
        ratio: Share of the channels to remove.
        steps: Which widths are allowed.

    Returns:
        Channels to keep, for every group that gets narrower, by name.
    """
    widths = {
        group.name: steps.rounded(group, (1 - ratio) * group.size) for group in analysis.free if steps.may_cut(group)
    }
    return {name: width for name, width in widths.items() if width < analysis[name].size}


ATTENTION_WEIGHTS = ("in_proj_weight", "out_proj.weight")


@dataclass(frozen=True)
class WeightCost:
    """A layer's weight: its sizes, at how many positions it is applied, and the groups that run through it.

    Attributes:
        name: Qualified name of the weight.
        shape: Of the weight.
        positions: Of one sample.
        runs: `(group, dim, indices a channel)` of the channel groups.
        heads: The same of whole attention heads, which lie across the channels.
    """

    name: str
    shape: tuple[int, ...]
    positions: int
    runs: tuple[tuple[str, int, int], ...]
    heads: tuple[tuple[str, int, int], ...] = ()

    def macs(self, removed: Mapping[str, int]) -> int:
        """Multiply-adds of one sample with so many channels less."""
        left: list[float] = list(self.shape)
        for group, dim, each in self.runs:
            left[dim] -= removed.get(group, 0) * each
        for dim, size in enumerate(self.shape):
            # Of every head that stays, as much goes as of any.
            gone = sum(removed.get(group, 0) * each for group, own, each in self.heads if own == dim)
            left[dim] *= 1 - gone / size
        return round(self.positions * float(np.prod(left)))


def weight_costs(network: nn.Module, analysis: ChannelAnalysis, example: Tensor) -> list[WeightCost]:
    """The costs of all convolutions and linear layers.

    Args:
        network: In evaluation mode.
        analysis: Of this network.
        example: An input `[N, ...]`.
    """
    positions: dict[str, int] = {}
    handles = []
    for name, layer in network.named_modules():
        if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
            calls = _counting(f"{name}.weight", positions, len(example))
            handles.append(layer.register_forward_hook(calls, with_kwargs=True))
        elif isinstance(layer, nn.MultiheadAttention):
            # It multiplies by its weights itself, without calling layers.
            used = [f"{name}.{weight}" for weight, _ in layer.named_parameters() if weight in ATTENTION_WEIGHTS]
            tokens = [_tokens(weight, positions, len(example)) for weight in used]
            handles += [layer.register_forward_hook(each, with_kwargs=True) for each in tokens]
    try:
        with torch.inference_mode(), layer_by_layer():
            core_of(network)(example.clone())
    finally:
        for handle in handles:
            handle.remove()
    runs: dict[tuple[str, Kind], list[tuple[str, int, int]]] = {}
    for group in analysis.free:
        for member in group.members:
            runs.setdefault((member.tensor, group.kind), []).append((group.name, member.dim, len(member.indices[0])))
    costs = []
    for weight, count in positions.items():
        shape = tuple(attrgetter(weight)(network).shape)  # a parametrized one is no parameter
        own, heads = (tuple(runs.get((weight, kind), ())) for kind in ("channels", "heads"))
        costs.append(WeightCost(weight, shape, count, own, heads))
    return costs


def _tokens(name: str, positions: dict[str, int], samples: int) -> Callable[[nn.Module, Any, Any, Any], None]:
    def count(_layer: nn.Module, inputs: Any, named: Any, _outputs: Any) -> None:
        query = inputs[0] if inputs else named["query"]
        positions[name] = positions.get(name, 0) + query.numel() // query.shape[-1] // samples

    return count


def _counting(name: str, positions: dict[str, int], samples: int) -> Callable[[nn.Module, Any, Any, Tensor], None]:
    def count(layer: nn.Module, inputs: Any, named: Any, outputs: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        received = (*inputs, *named.values())[0]
        applied = received if isinstance(layer, TRANSPOSED) else outputs
        positions[name] = positions.get(name, 0) + applied.numel() // len(weight) // samples

    return count


def global_widths(
    analysis: ChannelAnalysis, scores: Scores, costs: Sequence[WeightCost], share: float, steps: Steps
) -> dict[str, int]:
    """Widths for a share of the multiply-adds, cut where a multiply-add costs the least importance.

    A channel goes if its score is below a price times the multiply-adds that it saves, at full widths, with one price
    for all groups, found by bisection (Everett 1963, "Generalized Lagrange Multiplier Method").

    Args:
        analysis: Channel groups of the network.
        scores: Importance of every channel; those of different groups are compared.
        costs: Of all layers.
        share: Of the multiply-adds of all convolutions and linear layers, what may be left.
        steps: Which widths are allowed.

    Returns:
        Channels to keep, for every group that gets narrower, by name. If even the narrowest widths leave more than
        the share, these.
    """
    groups = [group for group in analysis.free if steps.may_cut(group)]
    whole = sum(cost.macs({}) for cost in costs)
    # A group whose channels save nothing keeps them at every price.
    savings = {group.name: whole - sum(cost.macs({group.name: 1}) for cost in costs) for group in groups}

    def at(price: float) -> dict[str, int]:
        wanted = {group.name: int((scores[group.name] >= price * savings[group.name]).sum()) for group in groups}
        return {group.name: steps.rounded(group, wanted[group.name]) for group in groups}

    def left(widths: Mapping[str, int]) -> int:
        removed = {group.name: group.size - widths[group.name] for group in groups}
        return sum(cost.macs(removed) for cost in costs)

    ratios = [scores[group.name] / savings[group.name] for group in groups if savings[group.name]]
    low, high = 0.0, 2.0 * max((float(ratio.max()) for ratio in ratios), default=1.0) + 1e-30
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if left(at(middle)) <= share * whole else (middle, high)
    return {name: width for name, width in at(high).items() if width < analysis[name].size}


def most_important(scores: Scores, widths: Mapping[str, int]) -> dict[str, Channels]:
    """The channels with the highest scores, in ascending order; ties go to the first."""
    return {
        name: np.sort(np.argsort(-scores[name].numpy(), kind="stable")[:width]).astype(np.int64)
        for name, width in widths.items()
    }
