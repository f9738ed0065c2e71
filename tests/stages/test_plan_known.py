"""What a plan knows of a network's times, and what it doesn't."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from onnxdistill.device.costs.coldness import Coldness
from onnxdistill.device.costs.deviceprofile import profile_device
from onnxdistill.device.costs.layers import read_exported
from onnxdistill.device.costs.network import layer_times_ms, network_costs
from onnxdistill.device.profiling.trace import trace
from onnxdistill.device.session import SessionSettings
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.widths import Steps
from onnxdistill.planning.exportedgraph import read_graph
from onnxdistill.planning.network import choices_of
from onnxdistill.recipe import ExportTable
from onnxdistill.stages.export import export
from onnxdistill.stages.plan.deployed import Seen
from onnxdistill.stages.plan.known import Known


def known_of(network: nn.Module, path: Path) -> Known:
    """Of a network for images of 8 x 8."""
    example = torch.randn(2, 3, 8, 8)
    export(network.eval(), example, path, ExportTable())
    feeds = {"input": example[:1].numpy()}
    layers, traced = read_exported(path, feeds).layers, trace(path, feeds, runs=5)
    graph = read_graph(onnx.load(path), dict(network.named_parameters()), [layer.name for layer in layers])
    analysis, profile = analyse_channels(network, example), profile_device(layers, SessionSettings(), 8, cached=False)
    costs = network_costs(layers, traced, profile)
    return Known(choices_of(analysis, Steps(8, 8), []), analysis, Seen(layers, graph, traced), costs, profile, {})


class Film(nn.Module):
    """Looks at an image as at a film of one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.volume = nn.Conv2d(3, 32, 3, padding=1), nn.Conv3d(32, 32, (1, 3, 3), padding=(0, 1, 1))
        self.up, self.head = nn.ConvTranspose2d(32, 32, 2, stride=2), nn.Conv2d(32, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.volume(torch.relu(self.first(x)).unsqueeze(2)).squeeze(2))
        result: torch.Tensor = self.head(torch.relu(self.up(x)))
        return result


def test_layers_whose_other_widths_cannot_be_timed_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    known = known_of(network := Film(), tmp_path / "n.onnx")
    assert known.doubts(network) == [
        *known.seen.traced.doubts,
        "What volume would take at other widths is only guessed: convolutions along one or two axes and matrix "
        "products are timed at them, and nothing else.",
    ]


class Scaled(nn.Module):
    """Channels with a parameter of their own, and a head that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 32, 3, padding=1), nn.Parameter(torch.rand(32, 1, 1))
        self.auxiliary, self.head = nn.ConvTranspose2d(32, 8, 2), nn.Conv2d(32, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x) * self.scale)
        if self.training:
            return self.head(x) + self.auxiliary(x).mean()
        result: torch.Tensor = self.head(x)
        return result


def test_nothing_is_said_where_all_layers_are_timed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    known = known_of(network := Scaled(), tmp_path / "n.onnx")
    (group,) = (known.analysis[name] for name in known.choices.widths)
    assert "scale" in {member.tensor for member in group.members}
    assert known.doubts(network) == list(known.seen.traced.doubts)


def test_what_stays_as_it_is_is_planned_to_take_as_long(tmp_path: Path) -> None:
    """Though the model gives what the network takes longer than its trace to cold weights, and the trace to all."""
    torch.manual_seed(0)
    known = known_of(Film(), tmp_path / "n.onnx")
    cold = replace(known.profile, coldness=Coldness([0, 1], [0.0, 1.0], ms_per_byte=1.0))
    latency_ms = 2 * known.seen.traced.run_ms
    costs = network_costs(known.seen.layers, known.seen.traced, cold, latency_ms)
    known = replace(known, profile=cold, costs=costs)
    model_ms = {layer.name: costs.layer_ms(cold, layer) for layer in costs.layers}
    (first, first_ms), *others = model_ms.items()
    states = known.states({first: first_ms / 2, **dict(others)})
    assert len(states) == len(model_ms)
    seen_ms = layer_times_ms(known.seen.layers, known.seen.traced, latency_ms)
    assert None not in seen_ms.values()
    assert [state.time_ms for state in states.values()] == list(seen_ms.values())
    ratios = [state.planned_ms / state.time_ms for state in states.values() if state.planned_ms and state.time_ms]
    assert ratios == pytest.approx([0.5] + [1.0] * len(others))
    # To different layers: else this would be no test.
    assert seen_ms != pytest.approx(model_ms, rel=0.05)
