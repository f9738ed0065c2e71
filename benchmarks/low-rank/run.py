"""Low rank alone: top-1 of CIFAR ResNets at fewer multiply-adds, without labels and without any training.

The stage `factorize` of `compress`, with every pair taken that saves multiply-adds: here they are what is asked for,
not latency. The labels of calibration and validation images are those that the network itself gives them: of the forms
that the stage makes (as it is, batch norms adapted, fitted), it keeps the one that agrees best with the network. Top-1
is that of the exported file in ONNX Runtime on the 10,000 test images. The rival is the plain singular value
decomposition of every layer at the same ranks: as it is, with batch norms recalibrated or adapted, whatever agrees
best.

Results that are there already are kept: a run that was ended goes on with the next one.
Usage: python benchmarks/low-rank/run.py --data CIFAR10 --weights FOLDER
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from onnxdistill.data import load_images
from onnxdistill.data.images import Images, MemoryImages, Splits
from onnxdistill.device.measuring.statistics import Estimate
from onnxdistill.device.session import SessionSettings
from onnxdistill.graph.cost import count_macs
from onnxdistill.graph.lowrank import decompose, low_rank_pair
from onnxdistill.graph.recalibrate import match_batch_norm, recalibrate_batch_norm
from onnxdistill.networks import build_network
from onnxdistill.recipe import DataTable, ExportTable, FactorizeTable
from onnxdistill.stages.export import export
from onnxdistill.stages.factorize import factorize
from onnxdistill.stages.verify import verify
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import best_on_validation

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

# Points of top-1 that may be lost, at a network and a factor of multiply-adds.
ASKED = {"resnet56": {1.5: 0.5, 2.0: 1.5}, "resnet20": {1.5: 0.8, 2.0: 2.5}}
MINUTES_ASKED = 10
CALIBRATION_IMAGES = 2048
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)
RESULTS = Path(__file__).parent / "results.json"


def top1(network: nn.Module, task: Classification) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        names: dict[str, Any] = {"input_name": task.input_name, "output_name": task.output_name}
        export(network.eval(), task.example_input(3), path, ExportTable(), **names)
        return verify(path, task, SessionSettings(threads=2)).value


def labelled_by(network: nn.Module, images: Images, splits: Splits) -> MemoryImages:
    """Images with the labels that a network gives them."""
    pixels = images.fetch(np.arange(len(images)))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (splits.mean, splits.std))
    with torch.inference_mode():
        answers = [network((part / 255 - mean) / std).argmax(1) for part in pixels.split(256)]
    return MemoryImages(pixels, torch.cat(answers))


def row(network: nn.Module, task: Classification, factor: float) -> dict[str, Any]:
    """One network at one factor."""
    started = time.monotonic()
    table = FactorizeTable(macs_ratio=1 / factor, multiple_of=1)
    result = factorize(network, task, table, 0, lambda *_: Estimate(2.0, 2.0, 2.0))
    seconds = time.monotonic() - started
    plain = copy.deepcopy(network)
    for name, form in result.layers.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        plain.set_submodule(name, low_rank_pair(layer, decompose(layer, form.scheme), form.rank, form.scheme))
    inputs = [batch.inputs for batch in task.calibration_batches(64)]
    forms = [plain, recalibrate_batch_norm(plain, inputs), match_batch_norm(network, plain, {}, inputs)]
    plain = best_on_validation(forms, task)
    example = task.example_input(1)
    return {
        "macs_x": count_macs(network, example) / count_macs(result.network, example),
        "top1_percent": top1(result.network, task),
        "plain_top1_percent": top1(plain, task),
        "seconds": round(seconds, 1),
        "forms": {name: f"{form.scheme} {form.rank}" for name, form in result.layers.items()},
    }


@click.command()
@click.option("--data", type=FOLDER_THERE, required=True, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--weights", type=FOLDER_THERE, required=True, help="Folder of NAME-cifar10-jpeg.pt.")
def main(data: Path, weights: Path) -> None:
    """Measures every network at every factor."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    table = DataTable(source="folder", root=str(data), image_size=32, calibration=CALIBRATION_IMAGES)
    splits = load_images(table, seed=0)
    for name, asked in ASKED.items():
        network = build_network(f"cifar-{name}", 10, 0).eval()
        network.load_state_dict(torch.load(weights / f"{name}-cifar10-jpeg.pt", weights_only=True))
        task = Classification(
            dataclasses.replace(
                splits,
                calibration=labelled_by(network, splits.calibration, splits),
                validation=labelled_by(network, splits.validation, splits),
            )
        )
        rows = results.setdefault(name, {})
        if "teacher_top1_percent" not in rows:
            rows["teacher_top1_percent"] = top1(network, task)
        for factor in asked:
            if str(factor) not in rows:
                rows[str(factor)] = row(network, task, factor)
                print(name, factor, {key: value for key, value in rows[str(factor)].items() if key != "forms"})
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    summarise(results)


def summarise(results: dict[str, Any]) -> None:
    figures: dict[str, float] = {}
    holds: dict[str, bool] = {}
    for name, asked in ASKED.items():
        teacher = results[name]["teacher_top1_percent"]
        for factor, most in asked.items():
            measured = results[name][str(factor)]
            lost = teacher - measured["top1_percent"]
            key = f"{name}_at_{factor:g}_times_fewer"
            figures[f"{key}_lost_points"] = lost
            figures[f"{key}_lost_by_plain_svd_points"] = teacher - measured["plain_top1_percent"]
            figures[f"{key}_s"] = measured["seconds"]
            # Accuracies are hits of 10,000.
            holds[f"{key}_loses_at_most_{most:g}_points"] = round(lost, 6) <= most
            holds[f"{key}_within_{MINUTES_ASKED}_minutes"] = measured["seconds"] <= 60 * MINUTES_ASKED
    claim = (
        "low rank without any label or training, top-1 on the CIFAR-10 test images: ResNet-56 loses "
        f"{figures['resnet56_at_1.5_times_fewer_lost_points']:.2f} points at 1.5 times fewer multiply-adds and "
        f"{figures['resnet56_at_2_times_fewer_lost_points']:.2f} at 2 times fewer"
    )
    command = "python benchmarks/low-rank/run.py --data CIFAR10 --weights FOLDER"
    write_summary("low-rank", claim, command, figures, holds, this_machine())


if __name__ == "__main__":
    main()
