"""What a network will cost at other widths: the trace of the network as it is, scaled layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from onnxdistill.device.costs.deviceprofile import DeviceProfile
from onnxdistill.device.costs.layers import Layer, Precision, Work, work_of_layer, work_of_node
from onnxdistill.device.profiling.trace import Trace


@dataclass(frozen=True)
class OtherNode:
    """A node whose time goes with the size of what it works on, down to the price of calling any node.

    Attributes:
        name: As the optimized graph calls it.
        time_ms: In the network as it is.
        call_ms: What a node takes that has nothing to do.
    """

    name: str
    time_ms: float
    call_ms: float

    def scaled_ms(self, ratio: float) -> float:
        """Its time for so many times as much data."""
        fixed_ms = min(self.time_ms, self.call_ms)
        return fixed_ms + (self.time_ms - fixed_ms) * ratio


@dataclass(frozen=True)
class NetworkCosts:
    """What a network costs, and would cost with other widths.

    Attributes:
        layers: As they are deployed: of the precision that they have there.
        corrections: By layer: its time in the network as a multiple of that in the device profile, where its weights
            are in the caches.
        others: All other nodes.
        overhead_ms: What a run takes outside its nodes.
    """

    layers: tuple[Layer, ...]
    corrections: Mapping[str, float]
    others: tuple[OtherNode, ...]
    overhead_ms: float

    def layer_ms(self, profile: DeviceProfile, layer: Layer, weight_bytes: int | None = None) -> float:
        """The time of one of the network's layers at other widths.

        What a layer takes longer in the network than alone comes from the weights of all others, which push its own out
        of the caches, as far as that explains it: so much goes with the size of its weights, and with how far all of
        them do that. The rest, such as an activation that is computed with it, goes with its time.

        Args:
            profile: Of the machine.
            layer: With its name in the network, and its new widths.
            weight_bytes: Size of all weights then; by default what it is now.
        """
        correction, now = self.corrections[layer.name], self._by_name[layer.name]
        if weight_bytes is None:
            weight_bytes = self.weight_bytes
        alone_ms, coldness = profile.time_ms(now), profile.coldness
        most_ms = now.weight_bytes * coldness.ms_per_byte * coldness.at(self.weight_bytes)
        cold_ms = min(max(0.0, correction - 1) * alone_ms, most_ms)
        kept = correction - cold_ms / alone_ms
        if cold_ms == 0:
            return profile.time_ms(layer) * kept
        share = layer.weight_bytes / now.weight_bytes * coldness.at(weight_bytes) / coldness.at(self.weight_bytes)
        return profile.time_ms(layer) * kept + cold_ms * share

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def weight_bytes(self) -> int:
        """Size of all weights now."""
        return sum(layer.weight_bytes for layer in self.layers)

    def time_ms(self, profile: DeviceProfile, layers: Iterable[Layer], ratios: Mapping[str, float]) -> float:
        """The latency of the network with other widths.

        Args:
            profile: Of the machine.
            layers: Those that are left, by the names that they have here, with their new widths.
            ratios: By the names of the exported network's nodes: how many times as much data they make as now. A node
                that isn't there has gone.
        """
        left = list(layers)
        weight_bytes = sum(layer.weight_bytes for layer in left)
        total = self.overhead_ms + sum(self.layer_ms(profile, layer, weight_bytes) for layer in left)
        mean = sum(ratios.values()) / len(ratios) if ratios else 1.0
        for node in self.others:
            total += node.scaled_ms(_ratio(node.name, ratios, mean))
        return total


def deployed_layers(layers: Sequence[Layer], traced: Trace) -> tuple[Layer, ...]:
    """The layers of an exported network, in the precision that they have in a trace of the deployed one."""
    seen: dict[Work, list[str]] = defaultdict(list)
    for precision, work in filter(None, map(work_of_node, traced.nodes)):
        seen[work].append(precision)
    result = []
    for layer in layers:
        precisions = seen.get(work_of_layer(layer), ["float32"])
        deployed: Precision = "int8" if 2 * precisions.count("int8") > len(precisions) else "float32"
        result.append(replace(layer, kind=replace(layer.kind, precision=deployed)))
    return tuple(result)


def layer_times_ms(layers: Sequence[Layer], traced: Trace, latency_ms: float | None = None) -> dict[str, float | None]:
    """What layers take in a trace, by their names; None of one that is not found there.

    Layers of the same work are not told apart: each has their mean.

    Args:
        layers: As `deployed_layers` returns them.
        traced: Of the deployed network.
        latency_ms: What the network takes by a more careful measurement than the trace's: all times are scaled to it.
    """
    seen_ms = _seen_ms(traced, _scale(traced, latency_ms))
    times = {layer.name: seen_ms.get(work_of_layer(layer)) for layer in layers}
    return {name: sum(seen) / len(seen) if seen else None for name, seen in times.items()}


def network_costs(
    layers: Sequence[Layer], traced: Trace, profile: DeviceProfile, latency_ms: float | None = None
) -> NetworkCosts:
    """Puts a network's trace beside the profile of the machine.

    Args:
        layers: As `deployed_layers` returns them.
        traced: Of the deployed network.
        profile: Of the machine, with all kinds of these layers.
        latency_ms: See `layer_times_ms`.
    """
    scale = _scale(traced, latency_ms)
    others = [
        OtherNode(node.name, scale * node.time_ms, traced.call_ms)
        for node in traced.nodes
        if work_of_node(node) is None
    ]
    # Of layers that are found in the trace only, or that were written otherwise before.
    known = set(map(work_of_layer, layers))
    unclaimed_ms = sum(sum(times) for work, times in _seen_ms(traced, scale).items() if work not in known)
    if unclaimed_ms:
        others.append(OtherNode("", unclaimed_ms, 0.0))
    times_ms = layer_times_ms(layers, traced, latency_ms)
    corrections = {}
    for layer in layers:
        seen_ms, expected_ms = times_ms[layer.name], profile.time_ms(layer)
        corrections[layer.name] = seen_ms / expected_ms if seen_ms is not None and expected_ms > 0 else 1.0
    return NetworkCosts(tuple(layers), corrections, tuple(others), scale * traced.overhead_ms)


def _scale(traced: Trace, latency_ms: float | None) -> float:
    return 1.0 if latency_ms is None or traced.run_ms <= 0 else latency_ms / traced.run_ms


def _seen_ms(traced: Trace, scale: float) -> dict[Work, list[float]]:
    """The times of a trace's layers, by their work."""
    seen_ms: dict[Work, list[float]] = defaultdict(list)
    for node in traced.nodes:
        if found := work_of_node(node):
            seen_ms[found[1]].append(scale * max(node.time_ms, traced.call_ms))
    return seen_ms


def _ratio(name: str, ratios: Mapping[str, float], mean: float) -> float:
    if name in ratios:
        return ratios[name]
    # Optimized nodes have names that begin as those that they were made of.
    begun = [one for one in ratios if name.startswith(one)]
    return ratios[max(begun, key=len)] if begun else mean
