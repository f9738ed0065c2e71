"""The stage `plan` on a trained network for digits, timed for real."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from onnxdistill.device.places import Here
from onnxdistill.device.session import SessionSettings
from onnxdistill.errors import NetworkError, ParityError
from onnxdistill.gate import Gate
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.cost import count_macs
from onnxdistill.graph.lowrank import decompose, low_rank_pair
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.journal import Journal
from onnxdistill.networks import build_network
from onnxdistill.recipe import ExportTable, PlanTable, Recipe, TrainingTable
from onnxdistill.stages.export import export
from onnxdistill.stages.plan import Deployed, PlanResult, plan
from onnxdistill.stages.plan.cut import Planner, Step
from onnxdistill.stages.plan.whole import _widths
from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import train
from onnxdistill.training.validation import validation_score

pytestmark = pytest.mark.usefixtures("brief_looks")


@pytest.fixture(scope="module")
def trained(digits: Classification) -> nn.Module:
    table = TrainingTable(epochs=3, batch_size=64, learning_rate=0.1)
    return train(build_network("digits-resnet", 10, 0), digits, table, 0, Objective()).network


class Setting:
    """Everything that the stage needs, and what it has deployed and decided."""

    def __init__(self, task: Classification, folder: Path, **tables: object) -> None:
        values = {"name": "x", "data": {"source": "digits"}, "teacher": {"network": "digits-resnet"}}
        values["bench"] = {"seconds": 0.3}
        self.recipe = Recipe.model_validate(values | tables)
        self.task, self.folder = task, folder
        self.deployed: dict[str, tuple[Deployed, dict[Path, bytes]]] = {}
        self.latencies: list[float] = []
        self.decided: dict[str, Any] = {}

    def plan(self, network: nn.Module, speedup: float, **changes: object) -> PlanResult:
        table = PlanTable.model_validate({"speedup": speedup, "steps": 2, **changes})
        reference = self.folder / "teacher.onnx"
        names: dict[str, Any] = {"input_name": self.task.input_name, "output_name": self.task.output_name}
        export(network, self.task.example_input(3), reference, ExportTable(), **names)
        with Journal(self.folder / "run") as journal:
            gate = Gate(self.recipe, Here(), self.task, self.folder, journal)
            deploy = self.noted(partial(gate.deployed, reference=reference))
            budget_ms = self.remember("teacher", lambda: gate.latency_ms(reference)) / speedup
            return plan(network, self.task, table, budget_ms, deploy, Here(), SessionSettings(), remember=self.remember)

    def noted(self, deploy: Callable[[nn.Module], Deployed]) -> Callable[[nn.Module], Deployed]:
        def deployed(network: nn.Module) -> Deployed:
            # As a journal does: the same network is not timed twice.
            state = hashlib.sha256(b"".join(t.numpy().tobytes() for t in network.state_dict().values())).hexdigest()
            if state not in self.deployed:
                made = deploy(network)
                self.deployed[state] = made, {path: path.read_bytes() for path in (made.exported, made.path)}
                self.latencies.append(made.latency_ms)
            known, files = self.deployed[state]
            for path, content in files.items():  # which a plan removes
                path.write_bytes(content)
            return known

        return deployed

    def remember(self, key: str, decide: Callable[[], Any]) -> Any:
        if key not in self.decided:
            self.decided[key] = json.loads(json.dumps(decide()))
        return self.decided[key]


def test_it_is_as_fast_as_asked_and_still_knows_something(
    digits: Classification, trained: nn.Module, tmp_path: Path
) -> None:
    setting = Setting(digits, tmp_path)
    before = {name: parameter.clone() for name, parameter in trained.named_parameters()}
    result = setting.plan(trained, 2.0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in trained.named_parameters())
    # The first one is the whole network. Loosely, since others may run meanwhile.
    assert result.latency_ms < 0.65 * setting.latencies[0]
    # In their order; a last one that is made again is among them, too.
    timed = iter(setting.latencies[1:])
    assert all(cut.measured_ms in timed for cut in result.cuts)
    assert result.cuts[0].budget_ms > result.cuts[-1].budget_ms
    assert result.widths or result.blocks or result.pairs
    example = digits.example_input(2)
    assert count_macs(result.network, example) < 0.7 * count_macs(trained, example)
    assert validation_score(result.network, digits) > 50
    assert all(note.startswith(("plan, cut ", "plan made cut ")) for note in result.notes)
    check_account(result, trained, setting.latencies[0])
    # Decided once: the same again, whatever the times are now.
    again = setting.plan(trained, 2.0)
    states = [one.network.state_dict() for one in (result, again)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def check_account(result: PlanResult, before: nn.Module, before_ms: float) -> None:
    """Every convolution and linear layer is told of, as it was and as it is."""
    modules = {name: module for name, module in before.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {layer.name for layer in result.layers} == modules.keys()
    left = dict(result.network.named_modules())
    for layer in result.layers:
        parts = {
            name: module.weight.shape
            for name, module in sorted(left.items())
            if isinstance(module, nn.Conv2d | nn.Linear) and f"{name}.".startswith(f"{layer.name}.")
        }
        shapes = list(parts.values())
        if layer.channels_after is None:
            assert any(layer.name.startswith(f"{block}.") for block in result.blocks)
            assert (shapes, layer.after_ms) == ([], None)
        else:
            assert layer.channels_after == (shapes[0][1], shapes[-1][0])
            firsts = [shape[0] for name, shape in parts.items() if f"{name}.".startswith(f"{layer.name}.0.")]
            assert layer.rank == (firsts[-1] if len(parts) > 1 else None)
            assert result.pairs.get(layer.name) == layer.rank
            assert layer.after_ms is not None
            assert layer.predicted_ms is not None
    assert sum(layer.before_ms or 0 for layer in result.layers) < before_ms
    assert sum(layer.after_ms or 0 for layer in result.layers) < result.latency_ms
    changed = {(one.kind, one.name): one.after for one in result.decisions if one.before != one.after}
    assert {name for kind, name in changed if kind == "block"} == set(result.blocks)
    gone = tuple(f"{block}." for block in result.blocks)
    ranks = {layer.name: layer.rank for layer in result.layers if layer.rank is not None}
    # Pairs within pairs are told of, too.
    assert {name: rank for (kind, name), rank in changed.items() if kind == "pair" and name in modules} == ranks
    widths = {narrowed.name: narrowed.channels_after for narrowed in result.widths}
    told = {name: width for (kind, name), width in changed.items() if kind == "width"}
    assert not any(name.startswith(gone) for name in told)
    assert told == widths
    assert all(one.other is not None for one in result.decisions if one.before != one.after)


def test_int8_is_deployed_where_it_is_faster(digits: Classification, trained: nn.Module, tmp_path: Path) -> None:
    setting = Setting(digits, tmp_path, quantize={})
    result = setting.plan(trained, 1.01)
    # Several times as fast as float32 already.
    assert (result.cuts, result.fits) == ([], True)
    assert b"QuantizeLinear" in b"".join(next(iter(setting.deployed.values()))[1].values())


def convolutions_of(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def test_layers_become_pairs_where_nothing_else_may_change(
    digits: Classification, trained: nn.Module, tmp_path: Path
) -> None:
    """In float32 a convolution of 64 channels takes several times as long as a pair of rank 8."""
    example = digits.example_input(2)
    groups = [group.name for group in analyse_channels(trained, example).free]
    setting = Setting(digits, tmp_path)
    changes = {"blocks": False, "minimum": 4096, "steps": 1}
    result = setting.plan(trained, 1.3, **changes)
    assert groups
    assert (result.widths, result.blocks) == ([], [])
    assert result.pairs
    for name, rank in result.pairs.items():
        # A later cut may have made a pair of either layer.
        first, second = (convolutions_of(part) for part in result.network.get_submodule(name).children())
        assert (first[-1].out_channels, second[0].in_channels) == (rank, rank)
    assert result.latency_ms < setting.latencies[0]
    assert validation_score(result.network, digits) > 50


def test_nothing_may_go(digits: Classification, trained: nn.Module, tmp_path: Path) -> None:
    result = Setting(digits, tmp_path).plan(trained, 3.0, blocks=False, skip=["*"])
    assert result.network is trained
    assert result.cuts == []
    assert len(result.notes) == 1
    assert not result.fits
    assert result.notes[0].startswith("plan stopped at ")
    assert "nothing is left to cut" in result.notes[0]


def test_what_keeps_to_the_budget_is_kept_however_little_that_asks_for(
    digits: Classification, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = copy.deepcopy(trained)
    monkeypatch.setattr(Planner, "step", lambda *_: Step(smaller, [], 9.9, 0.1, [], {}, []))
    monkeypatch.setattr(Planner, "layers", lambda *_: {})
    times = iter([10.0, 9.85])

    def deploy(_network: nn.Module) -> Deployed:
        return Deployed(tmp_path / "a.onnx", tmp_path / "a.onnx", next(times))

    result = plan(trained, digits, PlanTable(latency_ms=9.9), 9.9, deploy, Here(), SessionSettings())
    assert (result.network is smaller, result.fits, len(result.cuts), len(result.notes)) == (True, True, 1, 1)


class Borrowed(nn.Module):
    """Takes the weight of a layer that it does not call, as `nn.MultiheadAttention` does with that of its last one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 256), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.linear(self.conv(x).relu().flatten(1), self.wide.weight)
        result: torch.Tensor = self.head(x.relu())
        return result


def test_a_layer_that_is_not_called_becomes_no_pair(digits: Classification, tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = Setting(digits, tmp_path).plan(Borrowed().eval(), 1.2, steps=1, minimum=4096)
    assert "wide" not in result.pairs


@pytest.mark.parametrize(
    ("times", "cuts", "kept"),
    [
        ([16.0, 9.0, 5.0, 5.2, 5.1], 2, "what cut 2 had left"),
        ([16.0, 16.1, 15.9, 17.0, 16.5], 0, "the whole network"),
        ([16.0, 9.0, 5.0, 4.99, 4.98], 2, "what cut 2 had left"),
    ],
)
def test_what_is_not_measured_to_be_faster_is_not_kept(
    digits: Classification,
    trained: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: list[float],
    cuts: int,
    kept: str,
) -> None:
    def step(_planner: Planner, network: nn.Module, _deployed: Deployed, budget_ms: float) -> Step:
        return Step(copy.deepcopy(network), [], budget_ms, 0.1, [], {}, [])

    monkeypatch.setattr(Planner, "step", step)
    monkeypatch.setattr(Planner, "layers", lambda *_: {})
    deployed: list[nn.Module] = []

    def deploy(network: nn.Module) -> Deployed:
        deployed.append(network)
        return Deployed(tmp_path / "a.onnx", tmp_path / "a.onnx", times[len(deployed) - 1])

    table = PlanTable(latency_ms=2.0, steps=1)
    result = plan(trained, digits, table, 2.0, deploy, Here(), SessionSettings())
    assert result.network is deployed[cuts]
    assert [cut.measured_ms for cut in result.cuts] == times[1 : cuts + 1]
    assert result.latency_ms == times[cuts]
    assert f"plan went back to {kept}: nothing after it was measured to be faster." in result.notes
    assert result.notes[-1].endswith("it has made as many cuts as it makes.")


def test_the_width_of_a_pair_is_that_of_its_layer(digits: Classification, trained: nn.Module) -> None:
    changed, example = copy.deepcopy(trained), digits.example_input(2)
    layer = changed.get_submodule("block1.conv1")
    assert isinstance(layer, nn.Conv2d)
    changed.set_submodule("block1.conv1", low_rank_pair(layer, decompose(layer, "spatial"), 8, "spatial"))
    analysis = analyse_channels(changed, example)
    smaller = remove_channels(changed, analysis, {"block1.conv1.1": np.arange(16)}, example)
    (narrowed,) = _widths(trained, smaller, digits)
    assert (narrowed.name, narrowed.channels_before, narrowed.channels_after) == ("block1.conv1", 64, 16)


def test_what_is_fast_enough_stays_as_it_is(digits: Classification, trained: nn.Module, tmp_path: Path) -> None:
    deployed = Deployed(tmp_path / "a.onnx", tmp_path / "a.onnx", 1.0)
    table = PlanTable(latency_ms=1.0)
    result = plan(trained, digits, table, 1.0, lambda _network: deployed, Here(), SessionSettings())
    assert result == PlanResult(trained, [], [], {}, [], 1.0, True, [], [], [])


def test_budgets_go_on_from_where_a_cut_has_led(
    digits: Classification, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut that goes too far is no reason to stop: the next one begins there."""
    asked: list[float] = []

    def step(_planner: Planner, network: nn.Module, _deployed: Deployed, budget_ms: float) -> Step:
        asked.append(budget_ms)
        return Step(network, [], budget_ms, 0.1, [], {}, ["Others ran."] if len(asked) == 2 else [])

    times = iter([16.0, 5.0, 2.5, 2.2, 1.9])
    monkeypatch.setattr(Planner, "step", step)
    monkeypatch.setattr(Planner, "layers", lambda *_: {})
    table = PlanTable(latency_ms=2.0, steps=3)

    def deploy(_network: nn.Module) -> Deployed:
        return Deployed(tmp_path / "a.onnx", tmp_path / "a.onnx", next(times))

    result = plan(trained, digits, table, 2.0, deploy, Here(), SessionSettings())
    # 16 to 2 in three cuts; from 5 in two; from 2.5 in one; then less by as much as the last one was too slow.
    assert asked == pytest.approx([8.0, 10**0.5, 2.0, 2.0 * 2.0 / 2.2])
    assert [cut.measured_ms for cut in result.cuts] == [5.0, 2.5, 2.2, 1.9]
    assert [note for note in result.notes if "Others" in note] == [
        "plan, cut 2, was planned with times to doubt. Others ran."
    ]
    assert result.fits


class Scripted:
    """Plans with made-up cuts and times.

    Args:
        times: What the networks take, in the order in which they are deployed.
        cut: Makes a cut of a network within milliseconds.
    """

    def __init__(
        self,
        task: Classification,
        monkeypatch: pytest.MonkeyPatch,
        times: list[float],
        cut: Callable[[nn.Module, float], Step | None] = lambda network, allowed_ms: as_asked(network, allowed_ms),
    ) -> None:
        self.task, self.times = task, times
        self.asked: list[tuple[nn.Module, float]] = []
        self.deployed: list[nn.Module] = []

        def step(_planner: Planner, network: nn.Module, _deployed: Deployed, allowed_ms: float) -> Step | None:
            self.asked.append((network, allowed_ms))
            return cut(network, allowed_ms)

        monkeypatch.setattr(Planner, "step", step)
        monkeypatch.setattr(Planner, "layers", lambda *_: {})

    def plan(self, network: nn.Module, budget_ms: float, steps: int) -> PlanResult:
        table = PlanTable(latency_ms=budget_ms, steps=steps)
        result = plan(network, self.task, table, budget_ms, self.deploy, Here(), SessionSettings())
        assert len(self.deployed) == len(self.times)
        return result

    def deploy(self, network: nn.Module) -> Deployed:
        self.deployed.append(network)
        return Deployed(Path("a.onnx"), Path("a.onnx"), self.times[len(self.deployed) - 1])


def as_asked(network: nn.Module, allowed_ms: float) -> Step:
    """The more is allowed, the less is damaged."""
    return Step(copy.deepcopy(network), [], allowed_ms, 1 / allowed_ms, [], {}, [])


@pytest.mark.parametrize(
    ("times", "asked", "measured"),
    [
        # As much less deep as it was too fast, but for half of what two measurements differ by.
        ([4.0, 1.6, 1.96], [2.0, 2.0 * 1.95 / 1.6], 1.96),
        # Too slow: half-way; and what fits is kept.
        ([4.0, 1.6, 2.1, 1.92], [2.0, 2.0 * 1.95 / 1.6, 2.0 * (1.95 / 1.6) ** 0.5], 1.92),
        (
            [4.0, 1.6, 2.1, 2.1, 2.1],
            [2.0, 2.0 * 1.95 / 1.6, 2.0 * (1.95 / 1.6) ** 0.5, 2.0 * (1.95 / 1.6) ** 0.25],
            1.6,
        ),
        ([4.0, 1.6, 1.7, 1.95], [2.0, 2.0 * 1.95 / 1.6, 2.0 * 1.95 / 1.6 * 1.95 / 1.7], 1.95),
        # Half-way to the network that it is a cut of, at most: there nothing is left to do.
        ([2.1, 1.2, 1.95], [2.0, (2.0 * 2.1) ** 0.5], 1.95),
        # As near as can be told.
        ([4.0, 1.91], [2.0], 1.91),
    ],
)
def test_a_last_cut_that_goes_too_far_is_made_again(
    digits: Classification,
    trained: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    times: list[float],
    asked: list[float],
    measured: float,
) -> None:
    scripted = Scripted(digits, monkeypatch, times)
    result = scripted.plan(trained, 2.0, steps=1)
    assert [network is trained for network, _ in scripted.asked] == [True] * len(asked)
    assert [allowed_ms for _, allowed_ms in scripted.asked] == pytest.approx(asked)
    assert result.network is scripted.deployed[times.index(measured)]
    assert [(cut.measured_ms, cut.damage) for cut in result.cuts] == [(measured, 1 / result.cuts[0].budget_ms)]
    again = [note for note in result.notes if "again" in note]
    assert len(again) == sum(time_ms <= 2.0 for time_ms in times[2:])
    if again:
        unused = f"{1 - times[1] / 2:.0%} of the budget: from {times[1]:.3g} ms to "
        assert again[0].startswith(f"plan made cut 1 again, since it had left {unused}")


def test_a_cut_is_made_again_of_what_it_was_made_of(
    digits: Classification, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = Scripted(digits, monkeypatch, [8.0, 4.0, 1.6, 1.96])
    result = scripted.plan(trained, 2.0, steps=2)
    before = scripted.deployed[1]
    assert [network for network, _ in scripted.asked] == [trained, before, before]
    assert [cut.measured_ms for cut in result.cuts] == [4.0, 1.96]
    assert [note for note in result.notes if "again" in note] == [
        "plan made cut 2 again, since it had left 20% of the budget: from 1.6 ms to 1.96 ms."
    ]


def test_where_so_much_is_allowed_that_nothing_is_cut_less_is_tried(
    digits: Classification, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(network: nn.Module, allowed_ms: float) -> Step | None:
        return as_asked(network, allowed_ms) if allowed_ms < 2.4 else None

    scripted = Scripted(digits, monkeypatch, [4.0, 1.6, 1.95], cut)
    assert scripted.plan(trained, 2.0, steps=1).latency_ms == 1.95
    assert [allowed_ms for _, allowed_ms in scripted.asked] == pytest.approx(
        [2.0, 2.0 * 1.95 / 1.6, 2.0 * (1.95 / 1.6) ** 0.5]
    )


def test_what_cannot_be_cut_less_deep_is_what_it_was(
    digits: Classification, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(network: nn.Module, allowed_ms: float) -> Step:
        if allowed_ms > 2.0:
            raise NetworkError("It does not run with so many channels.")
        return as_asked(network, allowed_ms)

    result = Scripted(digits, monkeypatch, [4.0, 1.6], cut).plan(trained, 2.0, steps=1)
    assert (result.latency_ms, result.fits, len(result.notes)) == (1.6, True, 1)


def test_a_cut_that_does_not_run_leaves_those_before_it(
    digits: Classification, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(network: nn.Module, allowed_ms: float) -> Step:
        if network is not trained:
            raise NetworkError("It does not run with fewer channels.", "Keep them.")
        return as_asked(network, allowed_ms)

    result = Scripted(digits, monkeypatch, [8.0, 4.0], cut).plan(trained, 2.0, steps=2)
    assert ([one.measured_ms for one in result.cuts], result.fits) == ([4.0], False)
    assert result.notes[1] == (
        "plan gave up its cut 2, and kept those before it. It does not run with fewer channels. Keep them."
    )
    with pytest.raises(NetworkError):
        Scripted(digits, monkeypatch, [8.0], lambda network, _: cut(copy.deepcopy(network), 0)).plan(trained, 2.0, 2)


def test_a_cut_that_cannot_be_deployed_leaves_those_before_it(
    digits: Classification, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits is there; a repeat that cannot be exported takes nothing away."""

    class Failing(Scripted):
        def deploy(self, network: nn.Module) -> Deployed:
            deployed = super().deploy(network)
            if len(self.deployed) == len(self.times):
                raise ParityError("ONNX Runtime computes something else.")
            return deployed

    result = Failing(digits, monkeypatch, [4.0, 1.6, 1.95]).plan(trained, 2.0, steps=1)
    assert (result.latency_ms, result.fits, len(result.notes)) == (1.6, True, 1)
    result = Failing(digits, monkeypatch, [8.0, 4.0, 2.0]).plan(trained, 2.0, steps=2)
    assert ([one.measured_ms for one in result.cuts], result.fits) == ([4.0], False)
    assert result.notes[1].endswith("kept those before it. ONNX Runtime computes something else.")
    with pytest.raises(ParityError):
        Failing(digits, monkeypatch, [8.0, 4.0]).plan(trained, 2.0, steps=2)


def test_files_on_the_way_do_not_pile_up(
    digits: Classification, trained: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    most = 0

    class Writing(Scripted):
        def deploy(self, network: nn.Module) -> Deployed:
            nonlocal most
            number = len(self.deployed)
            files = tmp_path / f"{number}.onnx", tmp_path / f"{number}.int8.onnx"
            for file in files:
                file.touch()
            most = max(most, len(list(tmp_path.iterdir())))
            return Deployed(*files, super().deploy(network).latency_ms)

    def layers(_planner: Planner, _network: nn.Module, deployed: Deployed) -> dict[str, object]:
        assert deployed.exported.exists()
        assert deployed.path.exists()
        return {}

    # Five cuts, the last of which is made again twice.
    writing = Writing(digits, monkeypatch, [32.0, 16.0, 8.0, 6.0, 4.0, 1.6, 2.1, 1.96])
    monkeypatch.setattr(Planner, "layers", layers)
    assert writing.plan(trained, 2.0, steps=5).latency_ms == 1.96
    assert most == 6  # of the last cut, of what it was made of, and of what comes next
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{number}{kind}" for number in (4, 7) for kind in (".onnx", ".int8.onnx")
    }
    # What later cuts do not make faster is gone back to, and looked at.
    again = Writing(digits, monkeypatch, [4.0, 3.02, 2.99, 3.5, 3.5])
    monkeypatch.setattr(Planner, "layers", layers)
    assert again.plan(trained, 2.0, steps=1).latency_ms == 3.02


def test_a_last_cut_is_not_made_again_for_nothing(
    digits: Classification, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more is allowed and the plan is no better, it is the same."""

    def cut(network: nn.Module, allowed_ms: float) -> Step:
        return Step(copy.deepcopy(network), [], allowed_ms, 0.1, [], {}, [])

    scripted = Scripted(digits, monkeypatch, [4.0, 1.0], cut)
    result = scripted.plan(trained, 2.0, steps=1)
    assert (len(scripted.asked), result.latency_ms, len(result.notes)) == (2, 1.0, 1)


def test_a_cut_that_is_made_again_may_not_score_worse(
    digits: Classification, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its choices damage one by one."""

    def cut(network: nn.Module, allowed_ms: float) -> Step:
        made = as_asked(network, allowed_ms)
        if allowed_ms > 2.0:
            nn.init.zeros_(made.network.linear.weight)
        return made

    scripted = Scripted(digits, monkeypatch, [4.0, 1.6, 1.95], cut)
    result = scripted.plan(trained, 2.0, steps=1)
    assert (result.network is scripted.deployed[1], result.latency_ms) == (True, 1.6)


def test_a_second_cut_of_a_network_is_appraised_by_the_first(
    digits: Classification, trained: nn.Module, tmp_path: Path
) -> None:
    setting = Setting(digits, tmp_path)
    said: list[str] = []
    table = PlanTable(speedup=2.0, blocks=False, pairs=False)
    planner = Planner(digits, table, Here(), SessionSettings(), 1, (), lambda _key, decide: decide(), said.append)
    names: dict[str, Any] = {"input_name": digits.input_name, "output_name": digits.output_name}
    export(trained, digits.example_input(3), tmp_path / "teacher.onnx", ExportTable(), **names)

    def appraisals() -> int:
        return sum(text.startswith("trying widths, 1 of") for text in said)

    with Journal(tmp_path / "run") as journal:
        gate = Gate(setting.recipe, Here(), digits, tmp_path, journal)
        deployed = gate.deployed(trained, tmp_path / "teacher.onnx")
    deep, shallow = (planner.step(trained, deployed, share * deployed.latency_ms) for share in (0.6, 0.8))
    assert appraisals() == 1
    assert deep is not None
    assert shallow is not None
    assert 0 < shallow.damage < deep.damage
    planner.step(copy.deepcopy(trained), deployed, 0.6 * deployed.latency_ms)
    assert appraisals() == 2


def test_what_is_cut_from_next_is_trained_before(
    digits: Classification, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the recipe's last cut all of the training follows, and what corrects it needs none either."""
    seen: list[tuple[str, nn.Module]] = []

    def step(_planner: Planner, network: nn.Module, _deployed: Deployed, budget_ms: float) -> Step:
        seen.append(("cut", network))
        return Step(copy.deepcopy(network), [], budget_ms, 0.1, [], {}, [])

    def tune(network: nn.Module, cut: int) -> nn.Module:
        seen.append((f"trained after {cut}", network))
        return copy.deepcopy(network)

    # Of the whole network, of what the first two cuts leave, untrained and trained, and of the last two.
    times = iter([16.0, 8.5, 8.0, 4.5, 4.0, 2.2, 1.9])
    monkeypatch.setattr(Planner, "step", step)
    monkeypatch.setattr(Planner, "layers", lambda *_: {})
    deployed: list[nn.Module] = []

    def deploy(network: nn.Module) -> Deployed:
        deployed.append(network)
        return Deployed(tmp_path / "a.onnx", tmp_path / "a.onnx", next(times))

    result = plan(trained, digits, PlanTable(latency_ms=2.0), 2.0, deploy, Here(), SessionSettings(), tune=tune)
    assert [cut.measured_ms for cut in result.cuts] == [8.0, 4.0, 2.2, 1.9]
    assert [what for what, _ in seen] == ["cut", "trained after 1", "cut", "trained after 2", "cut", "cut"]
    # What was trained is what is timed, and what is cut from.
    cut_from = [network for what, network in seen if what == "cut"]
    assert [id(network) for network in cut_from] == [id(deployed[place]) for place in (0, 2, 4, 5)]
    assert len({id(network) for _, network in seen}) == 6


def test_what_is_fast_enough_is_not_trained_between_cuts(
    digits: Classification, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(_planner: Planner, network: nn.Module, _deployed: Deployed, budget_ms: float) -> Step:
        return Step(network, [], budget_ms, 0.1, [], {}, [])

    def tune(_network: nn.Module, _cut: int) -> nn.Module:
        raise AssertionError

    times = iter([16.0, 1.9])
    monkeypatch.setattr(Planner, "step", step)
    monkeypatch.setattr(Planner, "layers", lambda *_: {})

    def deploy(_network: nn.Module) -> Deployed:
        return Deployed(tmp_path / "a.onnx", tmp_path / "a.onnx", next(times))

    result = plan(trained, digits, PlanTable(latency_ms=2.0), 2.0, deploy, Here(), SessionSettings(), tune=tune)
    assert result.fits
