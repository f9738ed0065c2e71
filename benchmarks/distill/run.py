"""What distillation is worth: ResNet-20 from scratch with a ResNet-56 teacher, each loss at the same fixed budget.

The same images of CIFAR-10, batches, epochs, learning rate and starting weights for every loss of a seed. The teacher's
weights are those that are given; top-1 is that of the exported file in ONNX Runtime on the 10,000 test images, of the
epoch that scored best on validation. Losses have the settings of their papers, which are the defaults.

Results that are there already are kept: a run that was ended goes on with the next one.
Usage: python benchmarks/distill/run.py --data CIFAR10 --weights FOLDER [--epochs 10] [--seeds 3]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from onnxdistill.data import load_images
from onnxdistill.device.session import SessionSettings
from onnxdistill.networks import build_network
from onnxdistill.recipe import DataTable, DistillTable, ExportTable
from onnxdistill.stages.distill import distill
from onnxdistill.stages.export import export
from onnxdistill.stages.verify import verify
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import TrainingStatus

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {"soft_weight": 0.0},
    "standardised-kd": {},  # the default
    "kd": {"standardise": False, "temperature": 4.0, "soft_weight": 1.0},
    "dkd": {"loss": "dkd", "standardise": False, "temperature": 4.0},
    "dist": {"loss": "dist", "temperature": 1.0},
    "standardised-kd-stored": {"views": 3},
}
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)
RESULTS = Path(__file__).parent / "results.json"


def top1(loss: str, seed: int, epochs: int, task: Classification, teacher: torch.nn.Module) -> dict[str, Any]:
    """Trains one student."""
    table = DistillTable(epochs=epochs, learning_rate=0.1, crop_pad=4, flip=True, **LOSSES[loss])

    def on_status(status: TrainingStatus) -> None:
        if status.epoch_done:
            print(loss, seed, f"epoch {status.epoch}: {status.score:.2f} %", flush=True)

    result = distill(build_network("cifar-resnet20", 10, seed), [teacher], task, table, seed, on_status)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        names = {"input_name": task.input_name, "output_name": task.output_name}
        export(result.network, task.example_input(3), path, ExportTable(), **names)
        score = verify(path, task, SessionSettings(threads=2), "test")
    seconds = sum(record.seconds for record in result.history)
    return {"top1_percent": score.value, "validation_percent": result.best_score, "seconds": round(seconds, 1)}


@click.command()
@click.option("--data", type=FOLDER_THERE, required=True, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--weights", type=FOLDER_THERE, required=True, help="Folder of resnet56-cifar10-jpeg.pt.")
@click.option("--epochs", default=10, show_default=True)
@click.option("--seeds", default=3, show_default=True)
def main(data: Path, weights: Path, epochs: int, seeds: int) -> None:
    """Trains a student for every loss and seed, seed by seed."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results: dict[str, Any] = kept if kept.get("epochs") == epochs else {"epochs": epochs, "students": {}}
    table = DataTable(source="folder", root=str(data), image_size=32)
    task = Classification(load_images(table, seed=0))
    teacher = build_network("cifar-resnet56", 10, 0)
    teacher.load_state_dict(torch.load(weights / "resnet56-cifar10-jpeg.pt", weights_only=True))
    for seed in range(seeds):
        for loss in LOSSES:
            key = f"{loss} {seed}"
            if key not in results["students"]:
                results["students"][key] = top1(loss, seed, epochs, task, teacher)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    summarise(results, seeds)


def summarise(results: dict[str, Any], seeds: int) -> None:
    """Means and sample standard deviations over the seeds."""
    figures, spread = {}, {}
    for loss in LOSSES:
        scores = [results["students"][f"{loss} {seed}"]["top1_percent"] for seed in range(seeds)]
        name = loss.replace("-", "_")
        figures[f"{name}_mean_percent"] = float(np.mean(scores))
        figures[f"{name}_deviation_points"] = spread[name] = float(np.std(scores, ddof=1))
    default = figures["standardised_kd_mean_percent"]
    gain = default - figures["cross_entropy_mean_percent"]
    figures["default_over_cross_entropy_points"] = gain
    behind = {
        name: figures[f"{name}_mean_percent"] - default > max(deviation, spread["standardised_kd"])
        for name, deviation in spread.items()
    }
    holds = {
        "default_at_least_half_a_point_over_cross_entropy": gain >= 0.5,
        "default_loses_to_no_other_by_more_than_the_spread": not any(behind.values()),
    }
    claim = (
        f"ResNet-20 from scratch, {results['epochs']} epochs of CIFAR-10 with a ResNet-56 teacher, {seeds} seeds: "
        f"the default loss is {gain:.2f} points above cross-entropy"
    )
    command = f"python benchmarks/distill/run.py --data CIFAR10 --weights FOLDER --epochs {results['epochs']}"
    write_summary("distill", claim, command, figures, holds, this_machine())


if __name__ == "__main__":
    main()
