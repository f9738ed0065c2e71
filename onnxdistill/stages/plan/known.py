"""What one cut is planned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from onnxdistill.device.costs.deviceprofile import DeviceProfile
from onnxdistill.device.costs.network import NetworkCosts, layer_times_ms
from onnxdistill.graph.groups import ChannelAnalysis
from onnxdistill.graph.pairmoments import Scheme
from onnxdistill.graph.surgery import CONVOLUTIONS, TRANSPOSED
from onnxdistill.planning.network import Choices, Costing
from onnxdistill.stages.plan.account import LayerState
from onnxdistill.stages.plan.deployed import Seen

_MOST_NAMES = 3


@dataclass(frozen=True)
class Known:
    """A network, its choices, and what they cost.

    Attributes:
        choices: Widths and blocks.
        analysis: The channel groups.
        seen: The network in a trace.
        costs: What is not in the profile.
        profile: Of the machine, with all layers and pairs.
        schemes: How layers can become pairs, by name.
    """

    choices: Choices
    analysis: ChannelAnalysis
    seen: Seen
    costs: NetworkCosts
    profile: DeviceProfile
    schemes: Mapping[str, Sequence[Scheme]]

    def costing(self) -> Costing:
        """Of the choices, at the load of the network as it is."""
        graph, load = self.seen.graph, self.costs.load
        return Costing(self.choices, self.analysis, graph, self.costs, self.profile, load)

    def states(self, model_ms: Mapping[str, float]) -> dict[str, LayerState]:
        """What layers take by the trace, and what they would take: by as much less as the model says.

        The two do not share out alike what the network takes longer than its trace, and what there is to see of the
        network in the end is a trace, too.

        Args:
            model_ms: What the layers would take that a plan leaves, by their nodes.
        """
        times_ms = layer_times_ms(self.seen.layers, self.seen.traced, self.costs.latency_ms)
        now_ms = {layer.name: self.costs.layer_ms(self.profile, layer) for layer in self.costs.layers}
        planned_ms = {
            name: then_ms * time_ms / now_ms[name] if (time_ms := times_ms[name]) and now_ms[name] > 0 else then_ms
            for name, then_ms in model_ms.items()
        }
        return self.seen.states(times_ms, planned_ms)

    def doubts(self, network: nn.Module) -> list[str]:
        """Reasons not to trust the times, a sentence each."""
        graph = self.seen.graph
        timed = {weight.rpartition(".")[0] for weight in graph.weights.values()}
        deployed = {name for around in graph.modules.values() for name in around}
        cut = {member.layer for group in self.choices.widths for member in self.analysis[group].members}
        untimed = [
            name
            for name, module in network.named_modules()
            if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and name in (cut & deployed) - timed
        ]
        found = list(self.seen.traced.doubts)
        if untimed:
            names = ", ".join(untimed[:_MOST_NAMES]) + (" and others" if len(untimed) > _MOST_NAMES else "")
            found.append(
                f"What {names} would take at other widths is only guessed: convolutions along one or two axes and "
                "matrix products are timed at them, and nothing else."
            )
        return found
