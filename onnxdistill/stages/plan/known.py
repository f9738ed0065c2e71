"""What one cut is planned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from onnxdistill.device.costs.deviceprofile import DeviceProfile
from onnxdistill.device.costs.network import NetworkCosts
from onnxdistill.graph.groups import ChannelAnalysis
from onnxdistill.graph.pairmoments import Scheme
from onnxdistill.planning.network import Choices
from onnxdistill.stages.plan.deployed import Seen

_MATRIX_RANK = 2
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

    def doubts(self, parameters: Mapping[str, Tensor]) -> list[str]:
        """Reasons not to trust the times, a sentence each.

        Args:
            parameters: Of the network, by name.
        """
        timed = set(self.seen.graph.weights.values())
        cut = {member.tensor for name in self.choices.widths for member in self.analysis[name].members}
        untimed = [
            name.removesuffix(".weight")
            for name, parameter in parameters.items()
            if name in cut and name not in timed and parameter.ndim > _MATRIX_RANK
        ]
        found = list(self.seen.traced.doubts)
        if untimed:
            names = ", ".join(untimed[:_MOST_NAMES]) + (" and others" if len(untimed) > _MOST_NAMES else "")
            found.append(
                f"What {names} would take at other widths is guessed from what goes in: only convolutions of images "
                "and matrix products are timed."
            )
        return found
