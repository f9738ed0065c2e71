"""What distillation is worth: ResNet-20 from scratch with a ResNet-56 teacher, each loss at the same fixed budget.

The same images of CIFAR-10, epochs, order, learning rate and starting weights for every loss of a seed. The teacher's
weights are those that are given; every epoch has new views of the images, but in the last row, where three views of
each take turns. What the teacher says to a view is computed once and read by all losses, which changes no number.
Top-1 is that of the exported file in ONNX Runtime on the 10,000 test images, of the epoch that scored best on
validation. Losses have the settings of their papers, which are the defaults.

With `--device cuda` the trainings share a GPU, where the teacher looks at views again for every loss. Their results lie
in the folder distill-cuda, and may be of more epochs.

Results that are there already are kept: a run that was ended goes on with the next one.
Usage: python benchmarks/distill/run.py --data CIFAR10 --weights FOLDER [--epochs 6] [--seeds 3] [--processes 2]
       [--device cuda]
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch
from torch import Tensor, nn

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

# Cross-entropy comes first: while it trains, another process lets the teacher look at the views of that seed.
LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {"soft_weight": 0.0},
    "standardised-kd": {},  # the default
    "kd": {"standardise": False, "temperature": 4.0, "soft_weight": 1.0},
    "dkd": {"loss": "dkd", "standardise": False, "temperature": 4.0},
    "dist": {"loss": "dist", "temperature": 1.0},
}
# Trained after all others: what it costs to store what the teacher says to three views of every image.
STORED = {"standardised-kd-stored": {"views": 3}}
SEED_STEP = 1000  # no view of one seed is one of another
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)
NAMES = {"cpu": "distill", "cuda": "distill-cuda"}
"""Of the folders with results, by what trained."""

SHARED: dict[str, Any] = {}
"""The task and the teacher of all trainings of a process."""


class Remembering(nn.Module):
    """A network that keeps its answers to batches in a folder, for all processes and trainings."""

    def __init__(self, network: nn.Module, folder: Path) -> None:
        super().__init__()
        self.network = network
        self.folder = folder

    def forward(self, inputs: Tensor) -> Tensor:
        file = self.folder / hashlib.sha256(inputs.contiguous().numpy().tobytes()).hexdigest()
        if file.is_file():
            remembered: Tensor = torch.load(file, weights_only=True)
            return remembered
        output: Tensor = self.network(inputs)
        draft = file.with_suffix(f".{os.getpid()}")
        torch.save(output, draft)
        draft.rename(file)
        return output


def start(data: Path, weights: Path, answers: Path, threads: int, device: Literal["cpu", "cuda"]) -> None:
    """Loads what all trainings of this process share."""
    torch.set_num_threads(threads)
    SHARED["task"] = Classification(load_images(DataTable(source="folder", root=str(data), image_size=32), seed=0))
    network = build_network("cifar-resnet56", 10, 0)
    network.load_state_dict(torch.load(weights / "resnet56-cifar10-jpeg.pt", weights_only=True))
    # A GPU says it again sooner than a file is read.
    SHARED["teacher"] = network if device == "cuda" else Remembering(network, answers)
    SHARED["device"] = device


def top1(loss: str, seed: int, epochs: int) -> dict[str, Any]:
    """Trains one student."""
    task, teacher = SHARED["task"], SHARED["teacher"]
    settings = {"views": epochs, "device": SHARED["device"], **(LOSSES | STORED)[loss]}
    table = DistillTable(epochs=epochs, learning_rate=0.1, crop_pad=4, flip=True, **settings)

    def on_status(status: TrainingStatus) -> None:
        if status.epoch_done:
            print(loss, seed, f"epoch {status.epoch}: {status.score:.2f} %", flush=True)

    result = distill(build_network("cifar-resnet20", 10, seed), [teacher], task, table, seed * SEED_STEP, on_status)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        names = {"input_name": task.input_name, "output_name": task.output_name}
        export(result.network, task.example_input(3), path, ExportTable(), **names)
        score = verify(path, task, SessionSettings(threads=1), "test")
    seconds = sum(record.seconds for record in result.history)
    return {"top1_percent": score.value, "validation_percent": result.best_score, "seconds": round(seconds, 1)}


@click.command()
@click.option("--data", type=FOLDER_THERE, required=True, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--weights", type=FOLDER_THERE, required=True, help="Folder of resnet56-cifar10-jpeg.pt.")
@click.option("--epochs", default=6, show_default=True)
@click.option("--seeds", type=click.IntRange(min=2), default=3, show_default=True)
@click.option("--processes", default=2, show_default=True, help="Trainings side by side, which share the processors.")
@click.option("--device", type=click.Choice(tuple(NAMES)), default="cpu", show_default=True, help="What trains.")
def main(data: Path, weights: Path, epochs: int, seeds: int, processes: int, device: Literal["cpu", "cuda"]) -> None:
    """Trains a student for every loss and seed."""
    path = Path(__file__).parent.parent / NAMES[device] / "results.json"
    path.parent.mkdir(exist_ok=True)
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"epochs": epochs, "students": {}}
    if results["epochs"] != epochs:
        raise click.UsageError(f"{path} is of {results['epochs']} epochs: move it away, or train for as many.")
    wanted = [(loss, seed) for losses in (LOSSES, STORED) for seed in range(seeds) for loss in losses]
    threads = max(1, torch.get_num_threads() // processes)
    with tempfile.TemporaryDirectory() as answers:
        arguments = (data, weights, Path(answers), threads, device)
        with ProcessPoolExecutor(processes, get_context("spawn"), start, arguments) as pool:
            jobs = {
                pool.submit(top1, loss, seed, epochs): f"{loss} {seed}"
                for loss, seed in wanted
                if f"{loss} {seed}" not in results["students"]
            }
            try:
                for job in as_completed(jobs):
                    results["students"][jobs[job]] = job.result()
                    write(results, path)
                    summarise(results, seeds, device)
            except BaseException:  # whatever ends it: no training begins whose result nobody waits for
                pool.shutdown(cancel_futures=True)
                raise
    summarise(results, seeds, device)


def write(results: dict[str, Any], path: Path) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(results, indent=1) + "\n")
    draft.replace(path)


def summarise(results: dict[str, Any], seeds: int, device: Literal["cpu", "cuda"]) -> None:
    """Means and sample standard deviations over the seeds, once all losses have been trained with all of them."""
    if any(f"{loss} {seed}" not in results["students"] for loss in LOSSES for seed in range(seeds)):
        return
    figures, spread = {}, {}
    for loss in LOSSES | STORED:
        students = [results["students"].get(f"{loss} {seed}") for seed in range(seeds)]
        if None in students:
            continue
        scores = [student["top1_percent"] for student in students]
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
    command = (
        f"python benchmarks/distill/run.py --data CIFAR10 --weights FOLDER --epochs {results['epochs']} --seeds {seeds}"
    )
    if device == "cuda":
        command += " --device cuda"
    write_summary(NAMES[device], claim, command, figures, holds, this_machine())


if __name__ == "__main__":
    main()
