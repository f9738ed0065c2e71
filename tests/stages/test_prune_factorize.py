"""The stages that make the network smaller, on real digits."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from onnxdistill.data import Outline
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.graph.cost import count_macs
from onnxdistill.networks import build_network
from onnxdistill.recipe import FactorizeTable, PruneTable, TrainingTable
from onnxdistill.stages.factorize import factorize
from onnxdistill.stages.prune import prune
from onnxdistill.tasks.base import Objective, TrainingBatch
from onnxdistill.tasks.classification import Classification, LatencyOnlyClassification
from onnxdistill.training import module_runner, train
from tests.tiny import Unknown

FASTER, SLOWER = Estimate(1.5, 1.4, 1.6), Estimate(0.9, 0.8, 1.0)


@pytest.fixture(scope="module")
def teacher(digits: Classification) -> nn.Module:
    table = TrainingTable(epochs=3, batch_size=64, learning_rate=0.1)
    return train(build_network("digits-resnet", 10, 0), digits, table, 0, Objective()).network


@pytest.mark.parametrize("criterion", ["second_order", "l1", "l2", "taylor", "norm_scale", "geometric_median"])
def test_half_of_the_channels_go_and_the_network_still_sees(
    digits: Classification, teacher: nn.Module, criterion: str
) -> None:
    result = prune(teacher, digits, PruneTable.model_validate({"ratio": 0.5, "criterion": criterion}))
    assert {(cut.channels_before, cut.channels_after) for cut in result.cuts} == {(64, 32)}
    example = digits.example_input(1)
    assert count_macs(result.network, example) < 0.3 * count_macs(teacher, example)
    assert digits.score(module_runner(result.network, digits), "validation").value > 90
    assert result.notes == []


@pytest.mark.parametrize("criterion", ["second_order", "taylor"])
def test_a_frozen_teacher_is_pruned_as_any_other(digits: Classification, teacher: nn.Module, criterion: str) -> None:
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    table = PruneTable.model_validate({"macs_ratio": 0.5, "criterion": criterion})
    one, other = (prune(network, digits, table).network.state_dict() for network in (teacher, frozen))
    assert all(torch.equal(values, other[name]) for name, values in one.items())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_what_is_cut_is_trained_even_if_it_was_frozen(digits: Classification, teacher: nn.Module) -> None:
    body = copy.deepcopy(teacher).requires_grad_(False)
    body.get_submodule("linear").requires_grad_(True)
    cut = prune(body, digits, PruneTable(ratio=0.5, skip=["conv1", "block2.*"])).network
    trained = {name for name, parameter in cut.named_parameters() if parameter.requires_grad}
    assert {"block1.conv1.weight", "block1.bn1.bias", "block3.conv2.weight", "linear.weight"} <= trained
    assert not any(name.startswith(("conv1.", "block2.")) for name in trained)
    factorized = factorize(body, digits, FactorizeTable(macs_ratio=0.6, skip=["linear"]), 0, lambda *_: FASTER).network
    pairs = [layer for layer in factorized.modules() if isinstance(layer, nn.Sequential) and len(layer) == 2]
    assert any(all(one.requires_grad for one in pair.parameters()) for pair in pairs)


def test_what_is_skipped_stays(digits: Classification, teacher: nn.Module) -> None:
    result = prune(teacher, digits, PruneTable(ratio=0.5, skip=["conv1", "block2.*"]))
    assert {cut.name for cut in result.cuts} == {"block1.conv1", "block3.conv1", "block3.conv2"}


def test_what_keeps_channels_is_noted(digits: Classification) -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 3, 1)
            self.rest = Unknown()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rest(torch.relu(self.first(x)))

    digits_like = digits
    network = Adapted().eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(digits_like), "measurable", False)
        result = prune(network, digits_like, PruneTable(ratio=0.5, multiple_of=1, minimum=1))
    assert result.notes == ["prune kept channels of rest.stem: cumsum fixes their number."]


def test_only_pairs_that_are_faster_are_kept(digits: Classification, teacher: nn.Module) -> None:
    asked: list[nn.Module] = []

    def measure(before: nn.Module, after: nn.Module, shape: tuple[int, ...]) -> Estimate:
        asked.append(before)
        return SLOWER if len(asked) == 1 else FASTER

    result = factorize(teacher, digits, FactorizeTable(macs_ratio=0.5), 0, measure)
    assert result.layers
    assert result.notes
    assert all("0.90× as fast" in note for note in result.notes)
    for name in result.layers:
        assert isinstance(result.network.get_submodule(name), nn.Sequential)
        assert isinstance(teacher.get_submodule(name), nn.Conv2d)
    assert not any(isinstance(result.network.get_submodule(note.split()[2]), nn.Sequential) for note in result.notes)
    example = digits.example_input(1)
    assert count_macs(result.network, example) < count_macs(teacher, example)
    assert digits.score(module_runner(result.network, digits), "validation").value > 40


def test_layers_of_one_form_are_measured_once(digits: Classification, teacher: nn.Module) -> None:
    asked: list[tuple[str, str, tuple[int, ...]]] = []

    def measure(before: nn.Module, after: nn.Module, shape: tuple[int, ...]) -> Estimate:
        asked.append((str(before), str(after), shape))
        return FASTER

    result = factorize(teacher, digits, FactorizeTable(macs_ratio=0.3, multiple_of=64), 0, measure)
    assert len(result.layers) > len(asked)
    assert len(set(asked)) == len(asked)


def test_if_nothing_is_faster_nothing_changes(digits: Classification, teacher: nn.Module) -> None:
    result = factorize(teacher, digits, FactorizeTable(macs_ratio=0.5), 0, lambda *_: SLOWER)
    assert result.layers == {}
    assert torch.equal(result.network(digits.example_input(2)), teacher(digits.example_input(2)))


def test_same_seed_same_pairs(digits: Classification, teacher: nn.Module) -> None:
    one, two = (factorize(teacher, digits, FactorizeTable(macs_ratio=0.5), 7, lambda *_: FASTER) for _ in range(2))
    assert one.layers == two.layers
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True))


@pytest.mark.parametrize("scheme", ["spatial", "channel", "auto"])
def test_repaired_pairs_are_nearer_to_the_network(digits: Classification, teacher: nn.Module, scheme: str) -> None:
    images = digits.example_input(500)
    errors = {}
    for repair in (False, True):
        table = FactorizeTable.model_validate({"macs_ratio": 0.25, "scheme": scheme, "repair": repair})
        result = factorize(teacher, digits, table, 0, lambda *_: FASTER)
        schemes = {form.scheme for form in result.layers.values()}
        assert schemes == ({scheme} if scheme != "auto" else {"spatial", "channel"})
        with torch.inference_mode():
            errors[repair] = float((result.network(images) - teacher(images)).square().mean())
    assert errors[True] < 0.7 * errors[False]


def test_nothing_to_factorize_is_said(digits: Classification, teacher: nn.Module) -> None:
    result = factorize(teacher, digits, FactorizeTable(macs_ratio=0.5, skip=["*"]), 0, lambda *_: FASTER)
    assert result.left_out == "there is no layer to factorize, or all are skipped"


@pytest.mark.parametrize("sure", [300.0, 1e6])
def test_a_teacher_that_is_sure_is_cut_to_its_budget(digits: Classification, teacher: nn.Module, sure: float) -> None:
    changed = copy.deepcopy(teacher)
    with torch.no_grad():
        changed.linear.weight.mul_(sure)  # type: ignore[union-attr,operator]
    result = factorize(changed, digits, FactorizeTable(macs_ratio=0.6), 0, lambda *_: FASTER)
    example = digits.example_input(1)
    assert 0.4 < count_macs(result.network, example) / count_macs(teacher, example) <= 0.6
    assert digits.score(module_runner(result.network, digits), "validation").value > 85


def test_a_backbone_without_gradients_is_factorized(digits: Classification, teacher: nn.Module) -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = copy.deepcopy(teacher)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return self.whole(x)

    result = factorize(Backbone().eval(), digits, FactorizeTable(macs_ratio=0.5), 0, lambda *_: FASTER)
    assert result.layers


def test_labels_do_not_matter(digits: Classification, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    table = FactorizeTable(macs_ratio=0.5, repair=False)
    before = factorize(teacher, digits, table, 0, lambda *_: FASTER)
    real = type(digits).calibration_batches

    def without_labels(self: Classification, size: int) -> Iterator[TrainingBatch]:
        for batch in real(self, size):
            yield TrainingBatch(batch.inputs, torch.zeros_like(batch.targets))

    monkeypatch.setattr(type(digits), "calibration_batches", without_labels)
    after = factorize(teacher, digits, table, 0, lambda *_: FASTER)
    assert before.layers == after.layers
    assert all(torch.equal(a, b) for a, b in zip(before.network.parameters(), after.network.parameters(), strict=True))


def test_without_data_ranks_are_chosen_by_the_weights_and_random_inputs() -> None:
    task = LatencyOnlyClassification(Outline(1, 8, 10), 16, 0)
    network = build_network("digits-resnet", 10, 0).eval()
    result = factorize(network, task, FactorizeTable(macs_ratio=0.5), 0, lambda *_: FASTER)
    assert result.layers
    assert count_macs(result.network, task.example_input(1)) <= 0.5 * count_macs(network, task.example_input(1))


def test_layers_that_would_take_too_much_memory_are_named() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(72 * 72, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    task = LatencyOnlyClassification(Outline(1, 72, 10), 8, 0)
    result = factorize(network, task, FactorizeTable(macs_ratio=0.5), 0, lambda *_: FASTER)
    assert result.notes == ["factorize left 1 as it is: to weigh columns of 5,184 numbers would take too much memory."]


def test_a_layer_that_runs_twice_counts_twice(digits: Classification) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x.flatten(1)[:, :64])
            return self.last(self.again(self.again(x).relu()).relu())

    network, example = Twice().eval(), digits.example_input(1)
    table = FactorizeTable(macs_ratio=0.6, multiple_of=1, repair=False)
    smaller = factorize(network, digits, table, 0, lambda *_: FASTER).network
    share = count_macs(smaller, example) / count_macs(network, example)
    assert 0.57 < share <= 0.6


def test_blocks_with_layers_that_are_followed_stay(digits: Classification, teacher: nn.Module) -> None:
    free = prune(teacher, digits, PruneTable(blocks=1))
    (gone,) = free.blocks
    kept = prune(teacher, digits, PruneTable(blocks=1), keep=[f"{gone}.conv2"])
    assert gone not in kept.blocks
    assert kept.network.get_submodule(f"{gone}.conv2")


def test_what_is_repaired_after_blocks_have_gone_is_nearer_to_the_network(
    digits: Classification, teacher: nn.Module
) -> None:
    """The fit after the channels aims at what the batch norms are after the blocks."""
    images = torch.cat([batch.inputs for batch in digits.calibration_batches(64)])
    errors = []
    for repair in (False, True):
        table = PruneTable(blocks=1, ratio=0.25, criterion="l2", repair=repair)
        smaller = prune(teacher, digits, table).network
        with torch.inference_mode():
            errors.append(float((smaller(images) - teacher(images)).square().mean()))
    assert errors[1] < 0.8 * errors[0]
