"""The choices of real networks: what a plan costs has to be what the network that is cut by it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from onnxdistill.device.costs.coldness import Coldness
from onnxdistill.device.costs.deviceprofile import DeviceProfile
from onnxdistill.device.costs.layers import DEPTHWISE, Exported, Layer, pair_of, read_exported
from onnxdistill.device.costs.network import NetworkCosts, OtherNode
from onnxdistill.device.costs.surface import Surface, axis, grouped_axis, pairs
from onnxdistill.device.host import read_host
from onnxdistill.graph.blocks import removable_blocks, without_blocks
from onnxdistill.graph.channels import ChannelAnalysis, analyse_channels
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.graph.widths import Steps
from onnxdistill.networks import build_network
from onnxdistill.planning.exportedgraph import Graph, read_graph
from onnxdistill.planning.network import Choices, Costing, Damages, Pair, choices_of, scopes_of
from onnxdistill.planning.problem import MOST_CASES, EntangledError, solve
from onnxdistill.planning.thinning import solvable
from onnxdistill.recipe import ExportTable
from onnxdistill.stages.export import export


def profile_of(layers: Sequence[Layer]) -> DeviceProfile:
    """Layers take as many milliseconds as they have thousands of multiply-adds, plus one."""
    surfaces = {}
    for layer in layers:
        widths = pairs(axis(layer.inputs, 8), axis(layer.outputs, 8))
        if layer.kind.groups == DEPTHWISE:
            widths = [(width, width) for width in axis(layer.outputs, 8)]
        elif layer.kind.groups > 1:
            groups = layer.kind.groups
            widths = pairs(grouped_axis(layer.inputs, groups), grouped_axis(layer.outputs, groups))
        points = {pair: 1 + replace(layer, inputs=pair[0], outputs=pair[1]).macs / 1000 for pair in widths}
        known = surfaces[layer.kind].points_ms if layer.kind in surfaces else {}
        surfaces[layer.kind] = Surface({**known, **points}, layer.kind.groups)
    return DeviceProfile(read_host(), 1, "cpu", "uint8", Coldness((), ()), surfaces)


@dataclass
class Case:
    network: nn.Module
    example: torch.Tensor
    exported: Exported
    graph: Graph
    analysis: ChannelAnalysis
    profile: DeviceProfile
    costs: NetworkCosts
    choices: Choices
    damages: Damages

    @property
    def costing(self) -> Costing:
        return Costing(self.choices, self.analysis, self.graph, self.costs, self.profile, self.costs.load)


def exported(network: nn.Module, example: torch.Tensor, path: Path) -> Exported:
    export(network.eval(), example, path, ExportTable())
    return read_exported(path, {"input": example[:1].numpy()})


def case_of(
    network: nn.Module, example: torch.Tensor, path: Path, blocks: Sequence[str] = (), correction: float = 1.5
) -> Case:
    before = exported(network, example, path)
    graph = read_graph(onnx.load(path), dict(network.named_parameters()), [layer.name for layer in before.layers])
    analysis = analyse_channels(network, example)
    choices = choices_of(analysis, Steps(8, 8), blocks)
    others = tuple(OtherNode(name, 2.0, 0.5) for name in before.sizes if name not in graph.weights)
    corrections = dict.fromkeys((layer.name for layer in before.layers), correction)
    costs = NetworkCosts(before.layers, corrections, others, 3.0, 10.0)
    damages = Damages(
        {name: np.linspace(1, 0, analysis[name].size + 1) ** 2 for name in choices.widths},
        dict.fromkeys(choices.blocks, 0.3),
    )
    return Case(network, example, before, graph, analysis, profile_of(before.layers), costs, choices, damages)


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Case:
    network, example = build_network("cifar-resnet20", 10, 0), torch.randn(2, 3, 32, 32)
    blocks = removable_blocks(network, example)
    # All that layers take longer than alone goes with their time.
    return case_of(network, example, tmp_path_factory.mktemp("plan") / "n.onnx", blocks, correction=1.1)


class Separable(nn.Module):
    """Depthwise convolutions between others, one in two wide groups, and one in sixteen narrow ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
            nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.ReLU(),
            nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1, groups=16), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.layers(x).mean((2, 3)))
        return result


def test_where_nodes_come_from(residual: Case) -> None:
    graph, parameters = residual.graph, dict(residual.network.named_parameters())
    convolutions = [name for name, p in parameters.items() if p.ndim == 4]
    assert sorted(graph.weights.values()) == sorted([*convolutions, "linear.weight"])
    layers = {name: weight.rpartition(".")[0] for name, weight in graph.weights.items()}
    add = next(name for name, modules in graph.modules.items() if modules[-1] == "layer2.1" and "add" in name)
    assert {layers[origin]: share for origin, share in graph.origins[add].items()} == {"layer2.1.conv2": 1.0}
    assert "layer2.1" in graph.modules[add]


def test_the_plan_that_changes_nothing(residual: Case) -> None:
    plans = solve(residual.choices.sizes, residual.costing.terms(residual.damages))
    whole = plans[len(plans) - 1]
    assert whole.damage == 0
    assert residual.choices.gone(whole) == []
    assert residual.choices.kept(whole) == {name: residual.analysis[name].size for name in residual.choices.widths}
    as_it_is = dict.fromkeys(residual.exported.sizes, 1.0)
    expected = residual.costs.time_ms(residual.profile, residual.exported.layers, as_it_is)
    assert whole.latency_ms == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_plan_costs_what_the_network_costs_that_is_cut_by_it(residual: Case, share: float, tmp_path: Path) -> None:
    costing = residual.costing
    plans = solve(residual.choices.sizes, costing.terms(residual.damages))
    plan = plans.within(share * float(plans.front.latency_ms[-1]))
    assert plan is not None
    blocks = residual.choices.gone(plan)
    shorter = without_blocks(residual.network, blocks)
    analysis = analyse_channels(shorter, residual.example)
    sizes = {group.name: group.size for group in analysis.free}
    kept = {name: np.arange(width) for name, width in residual.choices.kept(plan).items() if width < sizes.get(name, 0)}
    smaller = remove_channels(shorter, analysis, kept, residual.example)
    after = exported(smaller, residual.example, tmp_path / "after.onnx")
    planned = costing.layers_of(plan, residual.damages)
    assert [(one.inputs, one.outputs) for one in planned] == [(one.inputs, one.outputs) for one in after.layers]
    # Other nodes than layers: by the channels of the layer before them; those of blocks that have gone are gone.
    left = [node for node in residual.costs.others if not set(residual.graph.modules[node.name]) & set(blocks)]
    whole, now = residual.exported.sizes, after.sizes
    ratios = [now[node.name] / whole[node.name] if node.name in now else 1.0 for node in left]
    layers_ms = sum(residual.costs.layer_ms(residual.profile, layer) for layer in planned)
    if not blocks:  # else the nodes are numbered otherwise
        expected_ms = 3.0 + layers_ms + sum(0.5 + 1.5 * ratio for ratio in ratios)
        # Constants and the shortcuts' slices and paddings are not those of the layer before them.
        assert plan.latency_ms == pytest.approx(expected_ms, rel=0.03)
    assert plan.latency_ms <= 3.0 + layers_ms + 2.0 * len(left)
    assert bool(blocks) == (share == 0.25)


def test_depthwise_and_grouped_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = case_of(Separable(), torch.randn(2, 3, 8, 8), tmp_path / "n.onnx")
    costing = case.costing
    plans = solve(case.choices.sizes, costing.terms(case.damages))
    whole = {layer.name: layer for layer in case.exported.layers}
    unequal = 0
    for plan in (plans[place] for place in range(0, len(plans), max(1, len(plans) // 12))):
        planned = costing.layers_of(plan, case.damages)
        kept = {name: np.arange(width) for name, width in case.choices.kept(plan).items()}
        cut = {name: channels for name, channels in kept.items() if len(channels) < case.analysis[name].size}
        smaller = remove_channels(case.network, case.analysis, cut, case.example)
        after = exported(smaller, case.example, tmp_path / "after.onnx")
        assert [replace(one, name="") for one in planned] == [replace(one, name="") for one in after.layers]
        wide, narrow = planned[3], planned[5]
        unequal += wide.inputs != wide.outputs
        expected_ms = costing.layers_ms(plan, case.damages)
        # Groups that have gone save what they took.
        share = narrow.outputs / whole[narrow.name].outputs
        assert expected_ms[narrow.name] == share * case.costs.layer_ms(case.profile, whole[narrow.name])
        assert expected_ms[wide.name] == case.costs.layer_ms(case.profile, after.layers[3])
    assert unequal


class Decoder(nn.Module):
    """Transposed convolutions: plain, in two groups, depthwise, and with two channels made of each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(64, 48, 2, stride=2), nn.ReLU(),
            nn.Conv2d(48, 32, 1), nn.ReLU(), nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1, groups=2), nn.ReLU(),
            nn.Conv2d(32, 24, 1), nn.ReLU(), nn.ConvTranspose2d(24, 24, 3, padding=1, groups=24), nn.ReLU(),
            nn.ConvTranspose2d(24, 48, 2, stride=2, groups=24), nn.ReLU(),
            nn.Conv2d(48, 96, 3, padding=1, groups=48), nn.ReLU(), nn.ConvTranspose2d(96, 2, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


class Keywords(nn.Module):
    """Convolutions along the one axis of a sound, separable ones among them, and back along it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 32, 16, stride=4), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 48, 3, padding=1), nn.ReLU(),
            nn.Conv1d(48, 48, 9, padding=4, groups=48), nn.ReLU(), nn.Conv1d(48, 64, 1), nn.ReLU(),
            nn.ConvTranspose1d(64, 32, 4, stride=4), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.layers(x).mean(2))
        return result


@pytest.mark.parametrize(
    ("network", "shape"), [(Decoder, (2, 3, 8, 8)), (Keywords, (2, 1, 400))], ids=["transposed", "sequence"]
)
def test_transposed_layers_and_those_of_sequences(
    network: type[nn.Module], shape: Sequence[int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    case = case_of(network(), torch.randn(*shape), tmp_path / "n.onnx")
    plans = solve(case.choices.sizes, case.costing.terms(case.damages))
    seen = set()
    for plan in (plans[place] for place in range(0, len(plans), max(1, len(plans) // 8))):
        planned = case.costing.layers_of(plan, case.damages)
        kept = {name: np.arange(width) for name, width in case.choices.kept(plan).items()}
        cut = {name: channels for name, channels in kept.items() if len(channels) < case.analysis[name].size}
        after = exported(
            remove_channels(case.network, case.analysis, cut, case.example), case.example, tmp_path / "after.onnx"
        )
        assert [replace(one, name="") for one in planned] == [replace(one, name="") for one in after.layers]
        seen.add(tuple(len(channels) for channels in kept.values()))
        # Other nodes work on the channels of the layer before them, transposed or not.
        whole, now = case.exported.sizes, after.sizes
        ratios = [now[node.name] / whole[node.name] for node in case.costs.others if node.name in now]
        layers_ms = sum(case.costs.layer_ms(case.profile, layer) for layer in planned)
        expected_ms = 3.0 + layers_ms + sum(0.5 + 1.5 * ratio for ratio in ratios)
        assert len(ratios) == len(case.costs.others)
        assert plan.latency_ms == pytest.approx(expected_ms, rel=0.01)
    assert len(seen) > 4


def test_blocks_within_blocks_and_few_widths() -> None:
    network = build_network("cifar-vgg16", 10, 0)
    analysis = analyse_channels(network, torch.randn(2, 3, 32, 32))
    choices = choices_of(analysis, Steps(8, 8, ("features.0",)), ["a", "a.b", "ab"])
    assert list(choices.blocks) == ["a", "ab"]
    assert "features.0" not in choices.widths
    widths = choices.widths["features.40"]
    assert len(widths) <= 10
    assert widths[-1] == 512
    assert all(width % 8 == 0 for width in widths)


def test_a_layer_becomes_a_pair_where_that_does_the_least_damage(residual: Case) -> None:
    layers = {residual.graph.weights[layer.name]: layer for layer in residual.exported.layers}
    weight = "layer3.1.conv2.weight"
    pair = Pair(spatial=True, rank=16, damage=1e-4)
    damages = replace(residual.damages, pairs={weight: [pair, Pair(spatial=False, rank=8, damage=2.0)]})
    both = pair_of(layers[weight], 16, spatial=True)
    known = {one.kind: residual.profile.surfaces.get(one.kind, Surface({})).points_ms for one in both}
    points = {one.kind: {**known[one.kind], (one.inputs, one.outputs): 1 + one.macs / 1000} for one in both}
    channel = pair_of(layers[weight], 8, spatial=False)
    points[channel[1].kind] = {(8, 64): 1 + channel[1].macs / 1000}
    surfaces = {**residual.profile.surfaces, **{kind: Surface(found) for kind, found in points.items()}}
    case = replace(residual, profile=replace(residual.profile, surfaces=surfaces))
    plans = solve(case.choices.sizes, case.costing.terms(damages))
    whole, less = plans[len(plans) - 1], plans[len(plans) - 2]
    assert case.costing.pairs_of(whole, damages) == {}
    assert case.costing.pairs_of(less, damages) == {weight: pair}
    assert less.damage == pytest.approx(1e-4)
    # Its two layers are what the caches have to hold.
    dense, factored = (case.costing.layers_of(plan, damages) for plan in (whole, less))
    assert [one for one in factored if one not in dense] == list(both)
    assert [one for one in dense if one not in factored] == [layers[weight]]
    saved = layers[weight].macs / 1000 - sum(one.macs for one in both) / 1000 - 1
    assert whole.latency_ms - less.latency_ms == pytest.approx(1.1 * saved)
    # What layers take longer than that goes with what they make: the pair makes a quarter as much on the way.
    slower = replace(case.costs, corrections=dict.fromkeys(case.costs.corrections, 1.5))
    pushed_ms = 0.4 * (1 + layers[weight].macs / 1000)
    found_ms = replace(case, costs=slower).costing.layers_ms(less, damages)[layers[weight].name]
    expected_ms = 1.1 * sum(1 + one.macs / 1000 for one in both) + (1 + 16 / 64) * pushed_ms
    assert found_ms == pytest.approx(expected_ms)
    # In a block that has gone there is no pair.
    fastest = plans[0]
    assert "layer3.1" in case.choices.gone(fastest)
    assert case.costing.pairs_of(fastest, damages) == {}


class Inception(nn.Module):
    """What two layers make lies side by side with the image itself, and is worked on together."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 48, 3, padding=1)
        self.head = nn.Linear(67, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        all_of_them = torch.cat([self.narrow(x), self.wide(x), x], 1)
        result: torch.Tensor = self.head(torch.sigmoid(all_of_them).mean((2, 3)))
        return result


def test_after_a_concatenation_nodes_work_on_the_channels_of_all_its_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = case_of(Inception(), torch.randn(2, 3, 8, 8), tmp_path / "n.onnx")
    others = {node.name for node in case.costs.others}
    (joined,) = (name for name in others if "cat" in name.lower())
    (sigmoid,) = (name for name in others if "sigmoid" in name.lower())
    shares = {case.graph.weights[origin]: share for origin, share in case.graph.origins[sigmoid].items()}
    assert shares == pytest.approx({"narrow.weight": 16 / 67, "wide.weight": 48 / 67})
    only = replace(case.costs, others=tuple(node for node in case.costs.others if node.name in (joined, sigmoid)))
    plans = solve(case.choices.sizes, replace(case, costs=only).costing.terms(case.damages))
    narrowed = [plans[place] for place in range(len(plans))]
    assert len({tuple(case.choices.kept(plan).values()) for plan in narrowed}) > 3
    for plan in narrowed:
        kept = case.choices.kept(plan)
        layers_ms = sum(case.costing.layers_ms(plan, case.damages).values())
        ratio = (kept["narrow"] + kept["wide"] + 3) / 67
        assert plan.latency_ms == pytest.approx(3.0 + layers_ms + 2 * (0.5 + 1.5 * ratio))


class Tokens(nn.Module):
    """Linear layers on inputs of rank 3, which are exported with transposed weights; and a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, stride=4)
        self.norm = nn.BatchNorm1d(4)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        tokens = tokens + self.down(torch.relu(self.up(tokens)))
        result: torch.Tensor = self.head(tokens.mean(1))
        return result


def test_linear_layers_of_tokens_are_choices_that_save_something(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = case_of(Tokens(), torch.randn(2, 3, 8, 8), tmp_path / "n.onnx")
    assert sorted(case.graph.weights.values()) == ["down.weight", "embed.weight", "head.weight", "up.weight"]
    assert "up" in case.choices.widths
    plans = solve(case.choices.sizes, case.costing.terms(case.damages))
    cut = {layer.name: layer for layer in case.costing.layers_of(plans[0], case.damages)}
    by_weight = {weight: cut[node] for node, weight in case.graph.weights.items()}
    assert by_weight["up.weight"].outputs == by_weight["down.weight"].inputs == 8


class Attending(nn.Module):
    """Attention multiplies by its weights itself, without calling a layer for three of the four."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, stride=4)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        result: torch.Tensor = self.head(tokens.mean(1))
        return result


def test_the_weights_of_attention_are_those_of_their_nodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = case_of(Attending(), torch.randn(2, 3, 8, 8), tmp_path / "n.onnx")
    assert set(case.graph.weights.values()) >= {"attention.in_proj_weight", "attention.out_proj.weight"}
    # Two products of activations: queries with keys, and what follows from that with values.
    operations = {node.name: node.op_type for node in onnx.load(tmp_path / "n.onnx").graph.node}
    layers = {layer.name for layer in case.exported.layers}
    scores, mixed = (name for name, kind in operations.items() if kind == "MatMul" and name not in layers)
    (softmax,) = (name for name, kind in operations.items() if kind == "Softmax")
    made_by = {name: [case.graph.weights[one] for one in origins] for name, origins in case.graph.origins.items()}
    assert made_by[scores] == made_by[mixed] == ["attention.in_proj_weight"]
    assert softmax not in made_by  # as many numbers as before, however narrow its queries are


class Dense(nn.Module):
    """Every layer takes the outputs of all before it."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(64 * index or 3, 64, 3, padding=1) for index in range(count)])
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [torch.relu(self.layers[0](x))]
        for layer in list(self.layers)[1:]:
            outputs.append(torch.relu(layer(torch.cat(outputs, 1))))
        result: torch.Tensor = self.head(outputs[-1].mean((2, 3)))
        return result


def test_a_network_that_is_too_entangled_gets_fewer_widths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = case_of(Dense(8), torch.randn(2, 3, 8, 8), tmp_path / "n.onnx")
    assert MOST_CASES < 8**7
    with pytest.raises(EntangledError):
        solve(case.choices.sizes, case.costing.terms(case.damages))
    scopes = scopes_of(case.choices, case.analysis, case.graph, [layer.name for layer in case.exported.layers])
    assert max(map(len, scopes)) == 8
    thinner = solvable(case.choices, scopes)
    assert thinner.widths.keys() == case.choices.widths.keys()
    for name, widths in thinner.widths.items():
        assert (widths[0], widths[-1]) == (case.choices.widths[name][0], case.choices.widths[name][-1])
        assert set(widths) <= set(case.choices.widths[name])
    plans = solve(thinner.sizes, replace(case, choices=thinner).costing.terms(case.damages))
    assert len(plans) > 2
    # What can be planned as it is stays as it is.
    assert solvable(case.choices, scopes[:2]) is case.choices
    many = [f"g{index}" for index in range(20)]
    with pytest.raises(EntangledError):
        solvable(replace(case.choices, widths={name: [8, 16, 24] for name in many}), [many])
