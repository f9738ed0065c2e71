"""What one cut is planned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxdistill.device.costs.deviceprofile import DeviceProfile
from onnxdistill.device.costs.network import NetworkCosts
from onnxdistill.graph.groups import ChannelAnalysis
from onnxdistill.graph.pairmoments import Scheme
from onnxdistill.planning.network import Choices
from onnxdistill.stages.plan.deployed import Seen


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
