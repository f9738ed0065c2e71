"""Latency predicted from the device profile against latency measured, of networks at random widths.

Eight networks in float32 and in int8, one of them for sounds and one with transposed convolutions. Of each, channel
groups are cut to random widths; the file that comes out is timed in turns with the whole network, in ONNX Runtime with
one thread. The prediction knows the whole network's trace, the profile of the machine, and the new widths; nothing of
the cut network is measured for it.

How long `onnxdistill profile` takes for two networks, in both precisions, is measured as well: with nothing known, and
again.

Results that are there already are kept: a run that was ended goes on.
Usage: python benchmarks/profile/run.py [--plans 4] [--seconds 4] [--only NAME ...]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onnxdistill.device.bench import bench
from onnxdistill.device.costs.deviceprofile import profile_device
from onnxdistill.device.costs.layers import read_exported
from onnxdistill.device.costs.network import deployed_layers, network_costs
from onnxdistill.device.profiling.trace import trace
from onnxdistill.device.session import SessionSettings
from onnxdistill.graph.channels import ChannelAnalysis, analyse_channels
from onnxdistill.graph.surgery import remove_channels
from onnxdistill.networks import build_network
from onnxdistill.recipe import ExportTable, QuantizeTable
from onnxdistill.stages.export import export
from onnxdistill.stages.quantize import quantize

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.plots import INK, plot
from benchmarks.profile.networks import M5, UNet
from benchmarks.random_networks import build, normalized
from benchmarks.summaries import this_machine, write_summary

SMALL, LARGE = (3, 32, 32), (3, 224, 224)
# With the shape of one input.
NETWORKS: dict[str, tuple[int, ...]] = {
    "cifar-resnet20": SMALL,
    "cifar-resnet56": SMALL,
    "cifar-vgg16": SMALL,
    "torchvision:resnet18": LARGE,
    "torchvision:mobilenet_v2": LARGE,
    "torchvision:regnet_x_400mf": LARGE,
    "m5": (1, 8000),
    "unet": (3, 96, 96),
}
OWN: dict[str, type[nn.Module]] = {"m5": M5, "unet": UNet}
PRECISIONS = ("float32", "int8")
# How long their profile may take.
PROFILED_S = {"cifar-resnet56": 60.0, "torchvision:resnet50": 240.0}
AGAIN_S = 1.0
MULTIPLE = 8
NARROWEST = 0.25
WITHIN = 0.10
SHARE_ASKED = 0.9
FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
COLORS = {"float32": "#5b8def", "int8": "#1f9d6b"}
MARKERS = "osD^vPX*"


def network_of(name: str, shape: Sequence[int]) -> nn.Module:
    """With random weights."""
    if name in OWN:
        torch.manual_seed(0)
        return normalized(OWN[name](), torch.from_numpy(noise(8, shape, 1)))
    kind, _, model = name.rpartition(":")
    return build(model, shape[-1]) if kind else build_network(name, 10, 0)


def noise(count: int, shape: Sequence[int], seed: int) -> NDArray[np.float32]:
    """Normal noise, `[count, *shape]`."""
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def random_widths(analysis: ChannelAnalysis, seed: int) -> dict[str, list[int]]:
    """Channels to keep, of every group: a random share of them, in whole multiples."""
    random = np.random.default_rng(seed)
    kept = {}
    for group in analysis.free:
        width = max(MULTIPLE, MULTIPLE * round(group.size * random.uniform(NARROWEST, 1) / MULTIPLE))
        if width < group.size:
            kept[group.name] = list(range(width))
    return kept


def written(network: nn.Module, shape: Sequence[int], folder: Path, name: str, precision: str) -> tuple[Path, Path]:
    """The exported file, and the deployed one."""
    path = folder / f"{name}.onnx"
    export(network.eval(), torch.from_numpy(noise(2, shape, 2)), path, ExportTable())
    if precision == "float32":
        return path, path
    samples: list[dict[str, NDArray[np.float32]]] = [{"input": noise(2, shape, 0)}]
    quantize(path, folder / f"{name}-int8.onnx", samples, QuantizeTable())
    return path, folder / f"{name}-int8.onnx"


def rows(name: str, shape: Sequence[int], precision: str, plans: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Predicts and measures random plans of one network."""
    network, settings = network_of(name, shape), SessionSettings()
    example = torch.from_numpy(noise(2, shape, 2))
    feeds = {"input": noise(1, shape, 3)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exported, deployed = written(network, shape, folder, "whole", precision)
        before = read_exported(exported.read_bytes(), feeds)
        traced = trace(deployed, feeds, settings)
        layers = deployed_layers(before.layers, traced)
        started = time.monotonic()
        profile = profile_device(layers, settings, cached=False)
        profiled_s = time.monotonic() - started
        kinds = {layer.name: layer.kind for layer in layers}
        analysis = analyse_channels(network, example)
        for seed in range(plans):
            smaller = remove_channels(network, analysis, random_widths(analysis, seed), example)
            exported, other = written(smaller, shape, folder, f"plan{seed}", precision)
            after = read_exported(exported.read_bytes(), feeds)
            plan = [
                replace(layer, kind=replace(layer.kind, precision=kinds[layer.name].precision))
                for layer in after.layers
            ]
            ratios = {node: after.sizes[node] / count for node, count in before.sizes.items() if node in after.sizes}
            timed = bench({"whole": deployed, "plan": other}, threads=1, batch=1, seconds=seconds, seed=seed)
            whole, cut = (case.latency_ms.median.value for case in timed.cases)
            predicted_ms = network_costs(layers, traced, profile, whole).time_ms(profile, plan, ratios)
            yield {
                "network": name,
                "precision": precision,
                "plan": seed,
                "whole_ms": whole,
                "predicted_ms": predicted_ms,
                "measured_ms": cut,
                "error": predicted_ms / cut - 1,
                "profile_seconds": round(profiled_s, 2),
            }


def profiling(name: str) -> dict[str, float]:
    """Seconds that the command takes when nothing is known, and when all is."""
    shape = SMALL if name.startswith("cifar") else LARGE
    with tempfile.TemporaryDirectory() as scratch:
        path, _ = written(network_of(name, shape), shape, Path(scratch), "network", "float32")
        variables = {**os.environ, "ONNXDISTILL_CACHE": str(Path(scratch) / "cache")}
        seconds = []
        for _ in range(2):
            started = time.monotonic()
            command = [sys.executable, "-m", "onnxdistill", "profile", str(path)]
            subprocess.run(command, env=variables, check=True, capture_output=True)
            seconds.append(time.monotonic() - started)
    return dict(zip(("first", "again"), seconds, strict=True))


@click.command()
@click.option("--plans", default=4, show_default=True, help="Random widths of every network and precision.")
@click.option("--seconds", default=4.0, show_default=True, help="Of timing for each plan.")
@click.option("--only", multiple=True, help="Only these networks.")
def main(plans: int, seconds: float, only: tuple[str, ...]) -> None:
    """Makes results.json, and summary.json from all that it holds."""
    asked = {"plans": plans, "seconds": seconds}
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"asked": asked}
    if found["asked"] != asked:
        raise click.UsageError(f"{RESULTS} was made with {found['asked']}.")
    for name, shape in NETWORKS.items():
        for precision in PRECISIONS:
            key = f"{name} {precision}"
            if (only and name not in only) or key in found:
                continue
            measured = []
            for row in rows(name, shape, precision, plans, seconds):
                measured.append(row)
                print(
                    f"{key} plan {row['plan']}: predicted {row['predicted_ms']:.3f} ms, measured "
                    f"{row['measured_ms']:.3f} ms of {row['whole_ms']:.3f} ({row['error']:+.1%})",
                    flush=True,
                )
            found[key] = measured
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    if only:
        return
    for name in PROFILED_S:
        if name not in found.setdefault("seconds", {}):
            found["seconds"][name] = profiling(name)
            print(name, found["seconds"][name], flush=True)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    summarise(found)


def summarise(found: dict[str, Any]) -> None:
    """What it came to, all plans together."""
    plans = [row for name in NETWORKS for precision in PRECISIONS for row in found[f"{name} {precision}"]]
    errors = np.array([abs(row["error"]) for row in plans])
    share = float((errors <= WITHIN).mean())
    figures = {
        "plans_count": len(plans),
        "within_10_percent_of_plans_percent": 100 * share,
        "median_error_percent": 100 * float(np.median(errors)),
        "worst_error_percent": 100 * float(errors.max()),
    }
    holds = {"within_10_percent_for_9_of_10_plans": share >= SHARE_ASKED}
    for name, most_s in PROFILED_S.items():
        key, seconds = name.rpartition(":")[2].replace("-", "_"), found["seconds"][name]
        figures |= {f"{key}_profile_s": seconds["first"], f"{key}_profile_again_s": seconds["again"]}
        holds[f"{key}_profile_within_{most_s:g}_s"] = seconds["first"] <= most_s
        holds[f"{key}_profile_again_within_{AGAIN_S:g}_s"] = seconds["again"] <= AGAIN_S
    draw(plans)
    claim = (
        "the latency of a network at random widths, predicted from the device profile and the trace of the whole "
        f"network, is within 10 % of the measured one for {int((errors <= WITHIN).sum())} of {len(plans)} plans"
    )
    command = "python benchmarks/profile/run.py"
    write_summary("profile", claim, command, figures, holds, this_machine())


def draw(plans: list[dict[str, Any]]) -> None:
    """Predicted against measured milliseconds, with the band that is asked for."""
    with plot(FOLDER / "predicted.svg", (6.4, 5.2)) as axes:
        for name, marker in zip(NETWORKS, MARKERS, strict=True):
            for precision, color in COLORS.items():
                rows = [row for row in plans if (row["network"], row["precision"]) == (name, precision)]
                label = f"{name.rpartition(':')[2]} {precision}"
                measured, predicted = ([row[key] for row in rows] for key in ("measured_ms", "predicted_ms"))
                axes.loglog(measured, predicted, marker, color=color, label=label, ms=6, alpha=0.8)
        ends = np.array(axes.get_xlim())
        axes.plot(ends, ends, color=INK, lw=1)
        axes.fill_between(ends, ends * (1 - WITHIN), ends * (1 + WITHIN), color=INK, alpha=0.15, lw=0)
        axes.set_xlim(*ends)
        axes.set_xlabel("measured, ms")
        axes.set_ylabel("predicted, ms")
        axes.legend(fontsize=8, ncols=2)


if __name__ == "__main__":
    main()
