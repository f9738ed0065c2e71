"""Is Tucker-2 worth offering beside low-rank pairs? At equal multiply-adds: what it damages, and what it takes.

Tucker-2 makes three layers of one (1 x 1 to fewer channels, k x k between few, 1 x 1 to all; Kim et al. 2016,
"Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", section 3.1). Here it is
fitted like the pairs of `graph.lowrank`, so that the loss grows least,

    minimise tr(G (W - W~) S (W - W~)^T),    W~[o, i, t] = sum_ab U[o, a] C[a, b, t] V[b, i]

with the second moments S of the layer's inputs and G of its gradients (`graph.pairmoments`), by alternating least
squares from the truncated decomposition of the input channels, as the higher-order orthogonal iteration goes (De
Lathauwer et al. 2000, "On the Best Rank-1 and Rank-(R1, ..., RN) Approximation of Higher-Order Tensors"); its two ranks
are about the same share of their widths, and use up the multiply-adds.

Each 3 x 3 layer of ResNet-56 becomes each of the three forms, alone: the damage is by how much the outputs move then,
with batch norms adapted, as `plan` measures its choices. Then all layers of the last stage become pairs, or triples,
and the int8 files are timed in turns with one thread.

Usage: python benchmarks/tucker/run.py --data CIFAR10 --weights FOLDER
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from onnxdistill.data import load_images
from onnxdistill.device.measuring.compare import compare
from onnxdistill.device.session import SessionSettings
from onnxdistill.graph.lowrank import (
    INPUT_FLOOR,
    WORTH_FLOOR,
    Factors,
    decompose,
    input_shapes,
    layer_macs,
    low_rank_pair,
    pair_macs,
)
from onnxdistill.graph.pairmoments import Moments, Scheme, pair_moments
from onnxdistill.graph.recalibrate import NormMatcher
from onnxdistill.networks import build_network
from onnxdistill.recipe import DataTable, ExportTable, QuantizeTable
from onnxdistill.stages.export import export
from onnxdistill.stages.quantize import quantize
from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training.divergence import Divergence

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

NETWORK, SAMPLES = "resnet56", 128
# Of alternating least squares, at most, and the gain of one that ends them; how far ranks may be from proportional.
ROUNDS, GAIN, UNEVEN = 30, 1e-3, 0.25
# Damages below this are none.
SMALLEST = 1e-9
# Of the layer's multiply-adds, that are left.
SHARES = (1 / 2, 1 / 3, 1 / 4)
SCHEMES: tuple[Scheme, Scheme] = ("spatial", "channel")
FOLDER = Path(__file__).parent
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)


class Triple:
    """The Tucker-2 form of one layer at ranks `(a, b)`, fitted by alternating least squares.

    Args:
        weight: `[O, I, k, k]`.
        moments: Of the whole layer (scheme `channel`).
        outputs, inputs: The ranks a and b.
    """

    def __init__(self, weight: Tensor, moments: Moments, outputs: int, inputs: int) -> None:
        self._kernel = weight.shape[2:]
        self.weight = weight.detach().double().flatten(2)  # [O, I, T]
        _, self.channels, self.taps = self.weight.shape
        floor = INPUT_FLOOR * moments.inputs.diagonal().sum()
        self.inputs = moments.inputs + floor * torch.eye(len(moments.inputs), dtype=torch.float64)
        assert moments.worth is not None
        values, vectors = torch.linalg.eigh(moments.worth)
        values = values.clamp_min(WORTH_FLOOR * values.max())
        self.worth = vectors * values @ vectors.T
        self._root, self._back = vectors * values.sqrt(), (vectors / values.sqrt()).T
        self.to_few = self._first_guess(inputs)  # V, [b, I]
        self.to_all, self.core = self._outer(outputs)  # U, [O, a]; C, [a, b, T]
        self.errors = [self.error()]
        while len(self.errors) <= ROUNDS:
            self.to_few = self._inner()
            self.to_all, self.core = self._outer(outputs)
            self.errors.append(self.error())
            if self.errors[-1] > (1 - GAIN) * self.errors[-2]:
                break

    def error(self) -> float:
        """By how much the loss grows."""
        fitted = torch.einsum("oa,abt,bi->oit", self.to_all, self.core, self.to_few)
        difference = (self.weight - fitted).flatten(1)
        return float((self.worth @ difference @ self.inputs).mul(difference).sum())

    def layers(self, layer: nn.Conv2d) -> nn.Sequential:
        """The three layers, of equal norms."""
        (outputs, few_outputs), (few_inputs, inputs) = self.to_all.shape, self.to_few.shape
        assert not isinstance(layer.padding, str)
        parts = [
            nn.Conv2d(inputs, few_inputs, 1, bias=False),
            nn.Conv2d(few_inputs, few_outputs, layer.kernel_size, layer.stride, layer.padding, bias=False),
            nn.Conv2d(few_outputs, outputs, 1, bias=layer.bias is not None),
        ]
        weights = [self.to_few, self.core, self.to_all]
        norm = float(torch.stack([one.norm() for one in weights]).prod()) ** (1 / 3)
        shapes = [(few_inputs, inputs, 1, 1), (few_outputs, few_inputs, *self._kernel), (outputs, few_outputs, 1, 1)]
        with torch.no_grad():
            for part, weight, shape in zip(parts, weights, shapes, strict=True):
                part.weight.copy_((weight * norm / weight.norm()).reshape(shape))
            if layer.bias is not None and parts[2].bias is not None:
                parts[2].bias.copy_(layer.bias)
        return nn.Sequential(*parts).eval()

    def _first_guess(self, few: int) -> Tensor:
        """Of the channels' mean covariance over the taps."""
        moments = self.inputs.reshape(self.channels, self.taps, self.channels, self.taps)
        root = torch.linalg.cholesky(torch.einsum("itjt->ij", moments) / self.taps)
        weighted = root.T @ torch.einsum("po,oit->ipt", self._root.T, self.weight).flatten(1)
        left, _, _ = torch.linalg.svd(weighted, full_matrices=False)
        guess: Tensor = torch.linalg.solve_triangular(root.T, left[:, :few], upper=True).T
        return guess

    def _outer(self, few: int) -> tuple[Tensor, Tensor]:
        """The best U and C for V: least squares, and its truncation in the norm of S and G."""
        moments = self.inputs.reshape(self.channels, self.taps, self.channels, self.taps)
        half = torch.einsum("itju,bj->itbu", moments, self.to_few).flatten(2).flatten(0, 1)  # [I T, b T]
        seen = torch.einsum("bi,itcu->btcu", self.to_few, half.reshape(self.channels, self.taps, -1, self.taps))
        seen = seen.flatten(2).flatten(0, 1)
        root = torch.linalg.cholesky(seen + 1e-12 * seen.diagonal().mean() * torch.eye(len(seen), dtype=seen.dtype))
        best = torch.cholesky_solve((self.weight.flatten(1) @ half).T, root).T  # [O, b T]
        left, _, _ = torch.linalg.svd(self._root.T @ best @ root, full_matrices=False)
        left = left[:, :few]
        to_all = self._back.T @ left
        core = left.T @ self._root.T @ best
        return to_all, core.reshape(few, -1, self.taps)

    def _inner(self) -> Tensor:
        """The best V for U and C, by its normal equations."""
        moments = self.inputs.reshape(self.channels, self.taps, self.channels, self.taps)
        worth = self.to_all.T @ self.worth @ self.to_all
        inner = torch.einsum("abt,ac,cdu->btdu", self.core, worth, self.core)
        few = self.core.shape[1]
        matrix = torch.einsum("btdu,itju->bidj", inner, moments).reshape(few * self.channels, -1)
        wanted = self.to_all.T @ self.worth @ self.weight.flatten(1) @ self.inputs
        right = torch.einsum("abt,ait->bi", self.core, wanted.reshape(-1, self.channels, self.taps)).flatten()
        damped = matrix + 1e-12 * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype)
        return torch.cholesky_solve(right[:, None], torch.linalg.cholesky(damped)).reshape(few, self.channels)


def triple_macs(layer: nn.Conv2d, shape: tuple[int, ...], outputs: int, inputs: int) -> int:
    """Multiply-adds of the three layers on an input `[C, H, W]`."""
    places = layer_macs(layer, shape) // layer.weight.numel()
    between = inputs * outputs * layer.kernel_size[0] * layer.kernel_size[1]
    return layer.in_channels * inputs * shape[1] * shape[2] + places * (between + outputs * layer.out_channels)


def ranks_within(layer: nn.Conv2d, shape: tuple[int, ...], share: float) -> tuple[int, int]:
    """Ranks, about in proportion to the widths, that come nearest to this share of the layer's multiply-adds."""
    budget = share * layer_macs(layer, shape)
    fitting = [
        (outputs, inputs)
        for inputs in range(1, layer.in_channels + 1)
        for outputs in range(1, layer.out_channels + 1)
        if abs(outputs * layer.in_channels / (inputs * layer.out_channels) - 1) <= UNEVEN
        and triple_macs(layer, shape, outputs, inputs) <= budget
    ]
    return max(fitting, key=lambda ranks: triple_macs(layer, shape, *ranks))


def rank_within(layer: nn.Conv2d, shape: tuple[int, ...], share: float, scheme: Scheme) -> int:
    """The same for a pair."""
    return max(1, int(share * layer_macs(layer, shape) / pair_macs(layer, shape, 1, scheme)))


class Study:
    """One network, its layers and what is known of them."""

    def __init__(self, data: Path, weights: Path) -> None:
        self.network = build_network(f"cifar-{NETWORK}", 10, 0).eval()
        self.network.load_state_dict(torch.load(weights / f"{NETWORK}-cifar10-jpeg.pt", weights_only=True))
        self.task = Classification(load_images(DataTable(source="folder", root=str(data), image_size=32), 0))
        self.layers = {
            name: module
            for name, module in self.network.named_modules()
            if isinstance(module, nn.Conv2d) and module.in_channels > 3 and module.kernel_size == (3, 3)
        }
        shapes = input_shapes(self.network, self.layers, self.task.example_input(2))
        self.shapes = {name: seen[0] for name, seen in shapes.items()}
        self._divergence = Divergence(self.network, self.task, SAMPLES)
        self._norms = NormMatcher(self.network, [self._divergence.inputs])
        generator = torch.Generator().manual_seed(0)

        def loss(batch: Any, network: nn.Module) -> Tensor:
            return self.task.step(network, batch, Objective())["loss"]

        batches = list(self.task.calibration_batches(64))
        with torch.no_grad():
            drawn = [self.task.drawn_targets(one, self.network(one.inputs), generator) for one in batches]
        losses = [partial(loss, one) for one in drawn]
        self.moments = pair_moments(self.network, dict.fromkeys(self.layers, SCHEMES), losses, with_worth=True)
        self._factors: dict[tuple[str, Scheme], Factors] = {}
        self._triples: dict[tuple[str, float], nn.Module] = {}
        self.used: list[float] = []

    def pair(self, name: str, scheme: Scheme, share: float) -> nn.Module:
        layer = self.layers[name]
        if (name, scheme) not in self._factors:
            self._factors[name, scheme] = decompose(layer, scheme, self.moments[name, scheme])
        rank = rank_within(layer, self.shapes[name], share, scheme)
        return low_rank_pair(layer, self._factors[name, scheme], rank, scheme)

    def triple(self, name: str, share: float) -> nn.Module:
        if (name, share) not in self._triples:
            layer = self.layers[name]
            ranks = ranks_within(layer, self.shapes[name], share)
            fitted = Triple(layer.weight, self.moments[name, "channel"], *ranks)
            assert fitted.errors[-1] <= fitted.errors[0] * (1 + 1e-9), "alternating least squares only improves"
            self.used.append(
                triple_macs(layer, self.shapes[name], *ranks) / (share * layer_macs(layer, self.shapes[name]))
            )
            self._triples[name, share] = fitted.layers(layer)
        return self._triples[name, share]

    def changed(self, forms: dict[str, nn.Module]) -> nn.Module:
        changed = copy.deepcopy(self.network)
        for name, form in forms.items():
            changed.set_submodule(name, form)
        return changed.eval()

    def damage(self, forms: dict[str, nn.Module]) -> float:
        changed = self.changed(forms)
        with self._norms.matching(changed, {}):
            return self._divergence.of(changed)

    def deployed(self, forms: dict[str, nn.Module], folder: Path, name: str) -> Path:
        names: dict[str, Any] = {"input_name": self.task.input_name, "output_name": self.task.output_name}
        export(self.changed(forms), self.task.example_input(3), folder / f"{name}.onnx", ExportTable(), **names)
        batches = ({self.task.input_name: batch.inputs.numpy()} for batch in self.task.calibration_batches(32))
        quantize(folder / f"{name}.onnx", folder / f"{name}-int8.onnx", batches, QuantizeTable())
        return folder / f"{name}-int8.onnx"


@click.command()
@click.option("--data", type=FOLDER_THERE, required=True, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--weights", type=FOLDER_THERE, required=True, help="Folder of NAME-cifar10-jpeg.pt.")
def main(data: Path, weights: Path) -> None:
    """Measures damages and times, and writes results.json and summary.json."""
    study = Study(data, weights)
    damages: dict[str, dict[str, dict[str, float]]] = {}
    for share in SHARES:
        rows = damages[f"{share:.3f}"] = {}
        for name in study.layers:
            rows[name] = {scheme: study.damage({name: study.pair(name, scheme, share)}) for scheme in SCHEMES}
            rows[name]["tucker"] = study.damage({name: study.triple(name, share)})
        print(share, {form: median(row[form] for row in rows.values()) for form in (*SCHEMES, "tucker")}, flush=True)
    last = [name for name in study.layers if name.startswith("layer3.")]
    times: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        whole = study.deployed({}, Path(folder), "whole")
        for share in SHARES:
            paths: dict[str, Path] = {
                scheme: study.deployed({name: study.pair(name, scheme, share) for name in last}, Path(folder), scheme)
                for scheme in SCHEMES
            }
            paths["tucker"] = study.deployed({name: study.triple(name, share) for name in last}, Path(folder), "tucker")
            for form, path in paths.items():
                ratio = compare(whole, path, SessionSettings(), until="close")
                times[f"{share:.3f} {form}"] = {"value": ratio.value, "low": ratio.low, "high": ratio.high}
                print(share, form, times[f"{share:.3f} {form}"], flush=True)
    results = {
        "damages": damages,
        "speedups_of_the_whole_network": times,
        "share_of_the_allowed_macs_that_tucker_uses": sum(study.used) / len(study.used),
    }
    (FOLDER / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    summarise(results)


def summarise(results: dict[str, Any]) -> None:
    figures = {"allowed_macs_used_by_tucker_percent": 100 * results["share_of_the_allowed_macs_that_tucker_uses"]}
    ahead: dict[str, list[bool]] = {scheme: [] for scheme in SCHEMES}
    for share, rows in results["damages"].items():
        key = f"at_{share.replace('.', '_')}_of_the_macs"
        times = {form: results["speedups_of_the_whole_network"][f"{share} {form}"] for form in (*SCHEMES, "tucker")}
        tucker = np.array([row["tucker"] for row in rows.values()]).clip(SMALLEST)
        for scheme in SCHEMES:
            pairs = np.array([row[scheme] for row in rows.values()]).clip(SMALLEST)
            as_much = float(np.exp(np.log(tucker / pairs).mean()))
            figures[f"{key}_tucker_damages_as_{scheme}_x"] = as_much
            figures[f"{key}_layers_that_tucker_damages_less_than_{scheme}_percent"] = float(
                100 * (tucker < pairs).mean()
            )
            ahead[scheme].append(as_much > 1 and times[scheme]["low"] > times["tucker"]["high"])
        for form, time in times.items():
            figures[f"{key}_{form}_speedup_x"] = time["value"]
            figures[f"{key}_{form}_speedup_low_x"] = time["low"]
            figures[f"{key}_{form}_speedup_high_x"] = time["high"]
    write_summary(
        FOLDER.name,
        "Tucker-2 (ranks about in proportion to the widths) beside low-rank pairs at equal multiply-adds, on the 3 x 3 "
        "layers of ResNet-56: how the outputs move with one layer changed (geometric means over layers), and the int8 "
        "network with all layers of its last stage changed against the unchanged one",
        "python benchmarks/tucker/run.py --data CIFAR10 --weights FOLDER",
        figures,
        {"one_kind_of_pairs_damages_less_and_is_surely_faster_at_every_share": any(map(all, ahead.values()))},
        this_machine(),
    )


if __name__ == "__main__":
    main()
