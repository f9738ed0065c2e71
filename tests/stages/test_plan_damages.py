"""What the choices of a plan cost: shaped by second derivatives, sized by what the outputs do."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from onnxdistill.device.costs.coldness import Coldness
from onnxdistill.device.costs.deviceprofile import DeviceProfile
from onnxdistill.device.costs.layers import Layer, LayerKind, pair_of
from onnxdistill.device.costs.network import NetworkCosts
from onnxdistill.device.costs.surface import Surface
from onnxdistill.device.host import read_host
from onnxdistill.errors import NetworkError
from onnxdistill.graph.blocks import removable_blocks, without_blocks
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.gradients import saved_bytes
from onnxdistill.graph.losses import distillation_loss
from onnxdistill.graph.recalibrate import NormMatcher, match_batch_norm
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.graph.widths import Steps, most_important
from onnxdistill.networks import build_network
from onnxdistill.planning.exportedgraph import Graph
from onnxdistill.planning.network import choices_of
from onnxdistill.recipe import PlanTable, TrainingTable
from onnxdistill.stages.plan.cut import score_channels
from onnxdistill.stages.plan.damages import Appraiser, brought_to
from onnxdistill.stages.plan.deployed import Seen
from onnxdistill.stages.plan.known import Known
from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import train
from onnxdistill.training.divergence import Divergence
from onnxdistill.training.pairs import PairForm
from onnxdistill.training.repaired import calibration_losses, scored_at_once


@pytest.fixture(scope="module")
def trained(digits: Classification) -> nn.Module:
    table = TrainingTable(epochs=2, batch_size=64, learning_rate=0.1)
    return train(build_network("digits-resnet", 10, 0), digits, table, 0, Objective()).network


def known_of(network: nn.Module, task: Classification) -> Known:
    """Without pairs, and so without anything that is timed."""
    example = task.example_input(2)
    analysis = analyse_channels(network, example)
    choices = choices_of(analysis, Steps(8, 8, ()), removable_blocks(network, example))
    nothing_timed = NetworkCosts((), {}, (), 0.0, 0.0)
    return Known(choices, analysis, None, nothing_timed, None, {})  # type: ignore[arg-type]


def test_a_divergence_is_the_distillation_loss(digits: Classification, trained: nn.Module) -> None:
    measure = Divergence(trained, digits, 16)
    assert len(measure.inputs) == 16
    assert measure.of(trained) == 0
    louder = copy.deepcopy(trained)
    with torch.no_grad():
        for parameter in louder.linear.parameters():
            parameter *= 3
        logits = trained(measure.inputs)
        expected = float(distillation_loss(3 * logits, logits, 2.0, False))
    assert measure.of(louder) == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        louder.linear.bias += math.inf
    assert measure.of(louder) == math.inf


class InPlace(nn.Module):
    """Works in place on what it gets."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 0.5
        return self.inside(x)


def test_what_is_measured_with_stays_as_it_is(digits: Classification, trained: nn.Module) -> None:
    network = InPlace(trained).eval()
    measure = Divergence(network, digits, 16)
    matcher = NormMatcher(network, [measure.inputs])
    assert [measure.of(network) for _ in range(2)] == [0, 0]
    assert [measure.of(matcher.matched(network, {})) for _ in range(2)] == pytest.approx([0, 0], abs=1e-6)


def test_losses_are_of_the_same_inputs_every_time(digits: Classification, trained: nn.Module) -> None:
    network = InPlace(trained).eval()
    losses = list(calibration_losses(network, digits))
    with torch.no_grad():
        first, second = ([float(loss(network)) for loss in losses] for _ in range(2))
    assert first == second


def test_large_samples_go_through_in_smaller_batches(
    digits: Classification, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scored_at_once(trained, digits) == 64
    each = saved_bytes(trained, digits.example_input(1))
    assert saved_bytes(trained, digits.example_input(8)) == pytest.approx(8 * each, rel=0.1)
    monkeypatch.setattr("onnxdistill.training.repaired._HELD_BYTES", 10 * each)
    assert scored_at_once(trained, digits) == 10
    assert len(list(calibration_losses(trained, digits))) == 7
    monkeypatch.setattr("onnxdistill.training.repaired._HELD_BYTES", each)
    assert scored_at_once(trained, digits) == 4


def test_every_damage_is_as_large_as_what_was_measured(digits: Classification, trained: nn.Module) -> None:
    known, table, example = known_of(trained, digits), PlanTable(speedup=2.0), digits.example_input(2)
    scores = score_channels(trained, known.analysis, digits)
    said: list[str] = []
    damages = Appraiser(trained, known, scores, digits, table, said.append).damages()
    assert said[0] == f"trying widths, 1 of {len(known.choices.widths)}"
    assert said[-1] == "trying to do without blocks"
    assert damages.pairs == {}
    assert damages.widths.keys() == known.choices.widths.keys()
    # All 64 calibration images: the network is small.
    measure = Divergence(trained, digits, 128)
    matcher = NormMatcher(trained, [measure.inputs])
    for name, curve in damages.widths.items():
        size = known.analysis[name].size
        assert len(curve) == size + 1
        assert curve[size] == 0
        assert (np.diff(curve) <= 0).all()
        for width in (size // 2, 8):
            kept = most_important(scores, {name: width})
            smaller = remove_channels(trained, known.analysis, kept, example)
            moved = measure.of(matcher.matched(smaller, known.analysis.removed_indices(kept)))
            assert curve[width] == pytest.approx(max(moved, curve[size // 2]), rel=1e-4)
    for block, damage in damages.blocks.items():
        shorter = match_batch_norm(trained, without_blocks(trained, [block]), {}, [measure.inputs])
        assert damage == pytest.approx(measure.of(shorter), rel=1e-4)


def test_what_is_known_by_heart_has_damages_all_the_same(digits: Classification, trained: nn.Module) -> None:
    """Where there is no gradient at all, no channel counts more than another, and no width is free."""
    known = known_of(trained, digits)
    none = {name: torch.zeros_like(score) for name, score in score_channels(trained, known.analysis, digits).items()}
    damages = Appraiser(trained, known, none, digits, PlanTable(speedup=2.0), lambda _: None).damages()
    assert damages.widths
    for name, curve in damages.widths.items():
        half = known.analysis[name].size // 2
        assert curve[half] > 0
        assert np.diff(curve[half:]) == pytest.approx(-curve[half] / half)


def test_a_group_that_cannot_be_cut_alone_stays(
    digits: Classification, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = known_of(trained, digits)
    scores = score_channels(trained, known.analysis, digits)

    def refused(*_: object) -> nn.Module:
        raise NetworkError("It does not run with fewer channels.")

    monkeypatch.setattr("onnxdistill.stages.plan.damages.remove_channels", refused)
    damages = Appraiser(trained, known, scores, digits, PlanTable(speedup=2.0), lambda _: None).damages()
    for curve in damages.widths.values():
        assert curve[-1] == 0
        assert np.isinf(curve[:8]).all()


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([6.0, 12.0], [12.0, 9.0, 6.0, 3.0, 0.0]),
        # What is next to nothing half-way says nothing of what lies below.
        ([0.0, 12.0], [12.0, 6.0, 0.0, 0.0, 0.0]),
        ([6.0, 1.0], [6.0, 6.0, 6.0, 3.0, 0.0]),
        ([6.0, math.inf], [math.inf, math.inf, 6.0, 3.0, 0.0]),
        ([math.inf, math.inf], [math.inf, math.inf, math.inf, math.inf, 0.0]),
    ],
)
def test_bringing_by_hand(measured: list[float], expected: list[float]) -> None:
    damages = np.array([4.0, 3.0, 2.0, 1.0, 0.0])
    assert brought_to(damages, np.array([2.0, 4.0]), measured).tolist() == expected


@pytest.mark.parametrize(
    ("pair_ms", "cold_ms_per_byte", "correction", "there"),
    [
        (0.95, 0.0, 1.0, False),
        (0.8, 0.0, 1.0, True),
        # It has fewer weights, which are cold now.
        (0.95, 1.0, 2.0, True),
        # It makes more, and what is made has been pushed out now; in a network of few weights it would be as it was.
        (0.8, 0.0, 3.0, True),
    ],
)
def test_pairs_that_are_faster_in_some_network(
    digits: Classification, pair_ms: float, cold_ms_per_byte: float, correction: float, there: bool
) -> None:
    layer = Layer("node", LayerKind("float32", (3, 3), (1, 1), 1, (1, 8, 8)), 16, 16)
    first, second = pair_of(layer, 8, spatial=True)
    times_ms = {layer: 1.0, first: pair_ms / 2, second: pair_ms / 2}
    surfaces = {one.kind: Surface({(one.inputs, one.outputs): time_ms}) for one, time_ms in times_ms.items()}
    profile = DeviceProfile(
        read_host(), 1, "cpu", "uint8", Coldness([0, 1], [0.0, 1.0], ms_per_byte=cold_ms_per_byte), surfaces
    )
    costs = NetworkCosts((layer,), {"node": correction}, (), 0.0, 1.0)
    seen = Seen([layer], Graph({"node": "layer.weight"}, {}, {}), None)  # type: ignore[arg-type]
    known = Known(None, None, seen, costs, profile, {"layer": ["spatial"]})  # type: ignore[arg-type]
    appraiser = Appraiser(nn.Identity(), known, {}, digits, PlanTable(speedup=2.0, multiple_of=8), print)
    found = appraiser._worthwhile().get("layer", [])
    assert (PairForm("spatial", 8) in found) == there
