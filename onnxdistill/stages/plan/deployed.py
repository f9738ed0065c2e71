"""A network in the form in which it is deployed, and what is seen of its layers in a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxdistill.device.costs.layers import Layer
from onnxdistill.device.profiling.trace import Trace
from onnxdistill.planning.exportedgraph import Graph
from onnxdistill.stages.plan.account import LayerState, total


@dataclass(frozen=True)
class Deployed:
    """A network in the form in which it is deployed.

    Attributes:
        exported: Its float file.
        path: The file that runs.
        latency_ms: What a call takes.
    """

    exported: Path
    path: Path
    latency_ms: float

    def discard(self) -> None:
        """Removes its files: there may be many on the way, each as large as the network."""
        for path in (self.exported, self.path):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Seen:
    """A deployed network in a trace."""

    layers: Sequence[Layer]
    graph: Graph
    traced: Trace

    def states(
        self, times_ms: Mapping[str, float | None], planned_ms_by_node: Mapping[str, float]
    ) -> dict[str, LayerState]:
        """What is known of the layers of modules, by the modules' names.

        Args:
            times_ms: What the layers take, by their nodes.
            planned_ms_by_node: What those would take that a plan leaves.
        """
        found: dict[str, LayerState] = {}
        for layer in self.layers:
            if weight := self.graph.weights.get(layer.name):
                name, kind = weight.removesuffix(".weight"), str(layer.kind)
                time_ms, planned_ms = times_ms[layer.name], planned_ms_by_node.get(layer.name)
                if (known := found.get(name)) is not None:  # called more than once
                    time_ms, planned_ms = total((known.time_ms, time_ms)), total((known.planned_ms, planned_ms))
                found[name] = LayerState(kind, layer.inputs, layer.outputs, time_ms, planned_ms)
        return found
