from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from onnxdistill.device.costs.layers import (
    DEPTHWISE,
    Layer,
    LayerKind,
    pair_of,
    read_exported,
    work_of_layer,
    work_of_node,
)
from onnxdistill.device.costs.network import deployed_layers
from onnxdistill.device.costs.probes import width_probe
from onnxdistill.device.profiling.trace import trace
from onnxdistill.recipe import ExportTable, QuantizeTable
from onnxdistill.stages.export import export
from onnxdistill.stages.quantize import quantize
from tests.device.costs.models import FEEDS, network

PLAIN = LayerKind("float32", (3, 3), (1, 1), 1, (1, 8, 8))
SEQUENCE = LayerKind("float32", (1, 9), (1, 1), 1, (2, 1, 100), sequence=True)
TRANSPOSED = LayerKind("float32", (2, 2), (2, 2), 1, (1, 8, 9), transposed=True)


def test_all_kinds_of_layers_are_read(tmp_path: Path) -> None:
    found = read_exported(network(tmp_path / "m.onnx"), FEEDS)
    assert [layer.name for layer in found.layers] == ["stem", "strided", "depthwise", "grouped", "head"]
    kinds = {layer.name: layer.kind for layer in found.layers}
    assert kinds["stem"] == LayerKind("float32", (3, 3), (1, 1), 1, (2, 16, 16))
    assert kinds["strided"] == LayerKind("float32", (3, 3), (2, 2), 1, (2, 16, 16))
    assert kinds["depthwise"] == LayerKind("float32", (5, 5), (1, 1), DEPTHWISE, (2, 8, 8))
    assert kinds["grouped"] == LayerKind("float32", (1, 1), (1, 1), 2, (2, 8, 8))
    assert kinds["head"] == LayerKind("float32", (1, 1), (1, 1), 1, (2, 1, 1), product=True)
    widths = {layer.name: (layer.inputs, layer.outputs) for layer in found.layers}
    assert widths == {
        "stem": (3, 32),
        "strided": (32, 64),
        "depthwise": (64, 64),
        "grouped": (64, 64),
        "head": (64, 10),
    }
    assert {layer.name: layer.output_values for layer in found.layers} == {name: found.sizes[name] for name in widths}
    assert found.sizes["stem.relu"] == 2 * 32 * 16 * 16
    assert found.sizes["pool"] == 2 * 64


@pytest.mark.parametrize(
    ("kind", "widths", "weights", "macs"),
    [
        (PLAIN, (16, 32), 9 * 16 * 32, 9 * 16 * 32 * 64),
        (replace(PLAIN, stride=(2, 2)), (16, 32), 9 * 16 * 32, 9 * 16 * 32 * 16),
        (replace(PLAIN, groups=DEPTHWISE), (16, 16), 9 * 16, 9 * 16 * 64),
        (replace(PLAIN, groups=4), (16, 32), 9 * 4 * 32, 9 * 4 * 32 * 64),
        (LayerKind("int8", (1, 1), (1, 1), 1, (5, 1, 1), product=True), (16, 32), 16 * 32, 5 * 16 * 32),
        (replace(SEQUENCE, stride=(1, 4)), (16, 32), 9 * 16 * 32, 2 * 25 * 9 * 16 * 32),
        (TRANSPOSED, (16, 32), 4 * 16 * 32, 72 * 4 * 16 * 32),
        (replace(TRANSPOSED, groups=4), (16, 32), 4 * 4 * 32, 72 * 4 * 4 * 32),
    ],
)
def test_weights_and_multiply_adds(kind: LayerKind, widths: tuple[int, int], weights: int, macs: int) -> None:
    layer = Layer("", kind, *widths)
    assert (layer.weights, layer.macs) == (weights, macs)
    assert layer.weight_bytes == weights * (1 if kind.precision == "int8" else 4)


@pytest.mark.parametrize("kind", [PLAIN, SEQUENCE, replace(TRANSPOSED, made=(17, 18))], ids=str)
def test_kinds_are_read_as_they_were_written(kind: LayerKind) -> None:
    assert LayerKind.from_json(json.loads(json.dumps(kind.to_json()))) == kind


def test_kinds_in_words() -> None:
    assert str(replace(SEQUENCE, stride=(1, 4), made=(1, 23))) == "float32 9 stride 4 on 2 of 100 to 23"
    assert str(replace(TRANSPOSED, groups=DEPTHWISE)) == "float32 2x2 transposed depthwise stride 2x2 on 8x9"


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "made"),
    [
        (8, 3, 1, 1, None),
        (8, 3, 1, 0, (6, 6)),
        (8, 3, 2, 1, None),
        (9, 3, 2, 0, (4, 4)),
        (8, 5, 1, 4, (12, 12)),
        (8, 1, 2, 0, None),
        (8, 4, 4, 0, None),
        (12, 7, 2, 3, None),
    ],
)
def test_convolutions_of_any_padding_are_found_again(
    tmp_path: Path, size: int, kernel: int, stride: int, padding: int, made: tuple[int, int] | None
) -> None:
    torch.manual_seed(0)
    kind = found_again(nn.Conv2d(16, 32, kernel, stride, padding), torch.randn(2, 16, size, size), tmp_path)
    assert kind.stride == (stride, stride)
    assert kind.made == made


@pytest.mark.parametrize(
    ("network", "size", "made"),
    [
        (nn.Conv1d(16, 32, 9, padding=4), [100], None),
        (nn.Conv1d(16, 32, 9, 4), [100], (1, 23)),
        (nn.Conv1d(16, 32, 9, 4, groups=4), [101], (1, 24)),
        (nn.ConvTranspose2d(16, 32, 2, 2), [8, 9], None),
        (nn.ConvTranspose2d(16, 32, 3, 2, 1, 1), [8, 8], None),
        (nn.ConvTranspose2d(16, 32, 3), [8, 8], (10, 10)),
        (nn.ConvTranspose2d(16, 32, 4, 2), [8, 8], (18, 18)),
        (nn.ConvTranspose2d(16, 32, 4, 2, 1, groups=2), [1, 8], None),
        (nn.ConvTranspose1d(16, 32, 8, 4, 2), [25], None),
        (nn.ConvTranspose2d(16, 32, 3, dilation=2), [16, 16], (20, 20)),
        (nn.ConvTranspose1d(16, 32, 2, dilation=64), [100], (1, 164)),
        (nn.Conv1d(16, 32, 2, dilation=64), [100], (1, 36)),
        (nn.Conv2d(16, 32, 3, dilation=2, padding=2), [16, 16], None),
    ],
    ids=str,
)
def test_those_of_sequences_and_transposed_ones_are_found_again(
    network: nn.Conv1d, size: list[int], made: tuple[int, int] | None, tmp_path: Path
) -> None:
    kind = found_again(network, torch.randn(2, 16, *size), tmp_path)
    assert kind.stride[-len(size) :] == tuple(network.stride)
    assert kind.made == made


def found_again(network: nn.Module, example: Tensor, folder: Path) -> LayerKind:
    """The kind of the one layer of a network, which is to be the same in the optimized graph, and in a probe."""
    path = folder / "n.onnx"
    export(network, example, path, ExportTable())
    feeds = {"input": example.numpy()}
    (layer,) = read_exported(path, feeds).layers
    rank = example.ndim - 2
    assert layer.kind.outputs[-rank:] == tuple(network(example).shape[2:])
    traced = trace(path, feeds, runs=1)
    assert [found[1] for node in traced.nodes if (found := work_of_node(node))] == [work_of_layer(layer)]
    probe = width_probe(layer.kind, [(16, 32)])
    probed = [one for one in read_exported(probe.content, probe.feeds).layers if one.name.startswith("layer")]
    assert [one.kind for one in probed] == [layer.kind]
    return layer.kind


def test_pairs_of_layers() -> None:
    layer = Layer("a", replace(PLAIN, kernel=(3, 5), stride=(2, 1), places=(2, 8, 8)), 16, 32)
    first, second = pair_of(layer, 4, spatial=True)
    assert first == Layer("a", replace(layer.kind, kernel=(3, 1), stride=(2, 1)), 16, 4)
    assert second == Layer("a", replace(layer.kind, kernel=(1, 5), stride=(1, 1), places=(2, 4, 8)), 4, 32)
    first, second = pair_of(layer, 4, spatial=False)
    assert first == replace(layer, outputs=4)
    assert second == Layer("a", replace(PLAIN, kernel=(1, 1), places=(2, 4, 8)), 4, 32)
    # 4 x (16 x 3 x 4 x 8 + 32 x 5 x 4 x 8) multiply-adds a sample.
    assert sum(one.macs for one in pair_of(layer, 4, spatial=True)) == 2 * 4 * (16 * 3 * 32 + 32 * 5 * 32)
    product = Layer("b", LayerKind("float32", (1, 1), (1, 1), 1, (7, 1, 1), product=True), 64, 10)
    assert [(one.inputs, one.outputs) for one in pair_of(product, 8, spatial=False)] == [(64, 8), (8, 10)]


def test_every_layer_is_found_again_in_the_optimized_graph(tmp_path: Path) -> None:
    """Float32 is in blocks of channels there, and int8 has the channels last."""
    exported = network(tmp_path / "m.onnx")
    quantize(exported, tmp_path / "int8.onnx", [FEEDS], QuantizeTable())
    layers = read_exported(exported, FEEDS).layers
    for path, precision in ((exported, "float32"), (tmp_path / "int8.onnx", "int8")):
        traced = trace(path, FEEDS, runs=1)
        seen = {found[1] for node in traced.nodes if (found := work_of_node(node)) is not None}
        assert seen == {work_of_layer(layer) for layer in layers}
        deployed = deployed_layers(layers, traced)
        assert {layer.kind.precision for layer in deployed[1:4]} == {precision}
        assert [replace(layer.kind, precision="float32") for layer in deployed] == [layer.kind for layer in layers]


def test_layers_of_sequences_and_transposed_ones_are_found_again_in_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv1d(8, 32, 9, 4), nn.ReLU(), nn.Conv1d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv1d(64, 64, 1))
    network, example = nn.Sequential(*layers, nn.ReLU(), nn.ConvTranspose1d(64, 16, 4, 4)), torch.randn(2, 8, 101)
    export(network, example, tmp_path / "n.onnx", ExportTable())
    feeds = {"input": example.numpy()}
    quantize(tmp_path / "n.onnx", tmp_path / "int8.onnx", [feeds], QuantizeTable())
    found, traced = read_exported(tmp_path / "n.onnx", feeds).layers, trace(tmp_path / "int8.onnx", feeds, runs=1)
    assert {one[1] for node in traced.nodes if (one := work_of_node(node))} == set(map(work_of_layer, found))
    precisions = [layer.kind.precision for layer in deployed_layers(found, traced)]
    assert precisions[1:] == ["int8", "int8", "float32"]


class Mixing(nn.Module):
    """A linear layer of what was transposed before it, as in ViT and MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Conv2d(3, 48, 4, stride=4), nn.Linear(48, 80)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.mix(self.embed(x).flatten(2).transpose(1, 2))
        return result


def test_a_product_whose_first_matrix_is_transposed_within_it_is_found_again(tmp_path: Path) -> None:
    path, example = tmp_path / "n.onnx", torch.randn(2, 3, 16, 16)
    export(Mixing().eval(), example, path, ExportTable())
    feeds = {"input": example[:1].numpy()}
    (_, mix), traced = read_exported(path, feeds).layers, trace(path, feeds, runs=1)
    assert (mix.inputs, mix.outputs, mix.kind.places) == (48, 80, (16, 1, 1))
    assert "FusedMatMul" in {node.op_type for node in traced.nodes}  # or else this is no test
    assert work_of_layer(mix) in {found[1] for node in traced.nodes if (found := work_of_node(node))}


def test_a_kind_says_what_it_is() -> None:
    assert str(PLAIN) == "float32 3x3 on 8x8"
    assert str(replace(PLAIN, stride=(2, 2), groups=DEPTHWISE)) == "float32 3x3 depthwise stride 2x2 on 8x8"
    assert str(replace(PLAIN, groups=4, places=(2, 8, 4))) == "float32 3x3 in 4 groups on 2 of 8x4"
    assert str(replace(PLAIN, product=True, places=(7, 1, 1))) == "float32 product of 7 rows"
    assert LayerKind.from_json(PLAIN.to_json()) == PLAIN
