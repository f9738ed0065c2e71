"""What the choices of a plan cost: shaped by second derivatives, sized by what the outputs do."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from onnxdistill.graph.blocks import removable_blocks, without_blocks
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.losses import distillation_loss
from onnxdistill.graph.recalibrate import match_batch_norm
from onnxdistill.graph.repair import layers_that_lost_inputs, refit
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.graph.widths import Steps, most_important
from onnxdistill.networks import build_network
from onnxdistill.planning.network import choices_of
from onnxdistill.recipe import PlanTable, TrainingTable
from onnxdistill.stages.plan.cut import score_channels
from onnxdistill.stages.plan.damages import Appraiser, _scaled
from onnxdistill.stages.plan.known import Known
from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import train
from onnxdistill.training.divergence import Divergence


@pytest.fixture(scope="module")
def trained(digits: Classification) -> nn.Module:
    table = TrainingTable(epochs=2, batch_size=64, learning_rate=0.1)
    return train(build_network("digits-resnet", 10, 0), digits, table, 0, Objective()).network


def known_of(network: nn.Module, task: Classification) -> Known:
    """Without pairs, and so without anything that is timed."""
    example = task.example_input(2)
    analysis = analyse_channels(network, example)
    choices = choices_of(analysis, Steps(8, 8, ()), removable_blocks(network, example))
    nothing_timed = SimpleNamespace(layers=[])
    return Known(choices, analysis, None, nothing_timed, None, {})  # type: ignore[arg-type]


def test_a_divergence_is_the_distillation_loss(digits: Classification, trained: nn.Module) -> None:
    measure = Divergence(trained, digits, 1)
    assert measure.of(trained) == 0
    louder = copy.deepcopy(trained)
    with torch.no_grad():
        for parameter in louder.linear.parameters():
            parameter *= 3
    (inputs,) = measure.inputs
    with torch.inference_mode():
        logits = trained(inputs)
        expected = float(distillation_loss(3 * logits, logits, 2.0, False))
    assert measure.of(louder) == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        louder.linear.bias += math.inf
    assert measure.of(louder) == math.inf


def test_every_damage_is_as_large_as_what_was_measured(digits: Classification, trained: nn.Module) -> None:
    known, table, example = known_of(trained, digits), PlanTable(speedup=2.0), digits.example_input(2)
    scores = score_channels(trained, known.analysis, digits)
    said: list[str] = []
    damages = Appraiser(trained, known, scores, digits, table, said.append).damages()
    assert said == ["trying widths", "trying to do without blocks"]
    assert damages.pairs == {}
    assert damages.widths.keys() == known.choices.widths.keys()
    measure = Divergence(trained, digits, 2)
    for name, curve in damages.widths.items():
        size = known.analysis[name].size
        assert len(curve) == size + 1
        assert curve[size] == 0
        assert (np.diff(curve) <= 0).all()
        # Half of the channels, what takes them fitted.
        kept = most_important(scores, {name: size // 2})
        removed = known.analysis.removed_indices(kept)
        half = remove_channels(trained, known.analysis, kept, example)
        half = refit(trained, half, layers_that_lost_inputs(half, removed), removed, measure.inputs)
        assert curve[size // 2] == pytest.approx(measure.of(half), rel=1e-4)
    for block, damage in damages.blocks.items():
        shorter = match_batch_norm(trained, without_blocks(trained, [block]), {}, measure.inputs)
        assert damage == pytest.approx(measure.of(shorter), rel=1e-4)


def test_what_is_known_by_heart_has_damages_all_the_same(digits: Classification, trained: nn.Module) -> None:
    """Where there is no gradient at all, no channel counts more than another, and no width is free."""
    known = known_of(trained, digits)
    none = {name: torch.zeros_like(score) for name, score in score_channels(trained, known.analysis, digits).items()}
    damages = Appraiser(trained, known, none, digits, PlanTable(speedup=2.0), lambda _: None).damages()
    assert damages.widths
    for curve in damages.widths.values():
        assert curve[0] > 0
        assert np.diff(curve) == pytest.approx(-curve[0] / (len(curve) - 1))


def test_scaling_by_hand() -> None:
    damages = np.array([4.0, 2.0, 0.0])
    assert _scaled(damages, 2.0, 6.0).tolist() == [12.0, 6.0, 0.0]
    assert _scaled(damages, 2.0, 0.0).tolist() == [0.0, 0.0, 0.0]
    assert _scaled(damages, 2.0, math.inf).tolist() == [math.inf, math.inf, 0.0]
