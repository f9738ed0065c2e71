"""How fast networks made for large images train on small ones, against a plain PyTorch loop, in turns, in one process.

Both in the same type (bfloat16 where that is fast, and float32), with channels last in memory, on the same images of
CIFAR-10 as they are, in batches of 128, with labels only, by SGD. onnxdistill validates twice, on 64 images.

Usage: python benchmarks/small-maps/run.py --data CIFAR10 [--rounds 3]
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from onnxdistill.data import load_images
from onnxdistill.data.augment import Augmentation
from onnxdistill.networks import build_network
from onnxdistill.recipe import DataTable, TrainingTable
from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import train
from onnxdistill.training.hardware import Hardware

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

NETWORKS = ("cifar-vgg16", "torchvision:resnet18")
IMAGES, BATCH, EPOCHS = 1920, 128, 1
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)


def onnxdistill_trains(network: nn.Module, task: Classification, table: TrainingTable) -> None:
    train(network, task, table, 0, Objective())


def plain_loop_trains(network: nn.Module, task: Classification, table: TrainingTable) -> None:
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
    optimizer = torch.optim.SGD(
        network.parameters(), table.learning_rate, table.momentum, weight_decay=table.weight_decay, nesterov=True
    )
    rng = np.random.default_rng(0)
    network.train()
    for epoch in range(EPOCHS):
        batches = np.split(rng.permutation(IMAGES), range(BATCH, IMAGES, BATCH))
        for batch in task.training_batches(batches, Augmentation(), epoch):
            with Hardware.of(table).autocast():
                loss = F.cross_entropy(network(batch.inputs), batch.targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()


@click.command()
@click.option("--data", type=FOLDER_THERE, required=True, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--rounds", default=3, show_default=True)
def main(data: Path, rounds: int) -> None:
    """Times both in every round, in another order each time."""
    splits = load_images(DataTable(source="folder", root=str(data), image_size=32, calibration=64), seed=0)
    few = {"train": splits.train.subset(np.arange(IMAGES)), "validation": splits.validation.subset(np.arange(64))}
    task = Classification(dataclasses.replace(splits, **few))
    shared = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 0.01}
    tables = [TrainingTable.model_validate({**shared, "precision": precision}) for precision in ("auto", "float32")]
    contestants: dict[str, Callable[[nn.Module, Classification, TrainingTable], None]] = {
        "onnxdistill": onnxdistill_trains,
        "plain": plain_loop_trains,
    }
    seconds: dict[str, dict[str, list[float]]] = {}
    of_dtype = {str(Hardware.of(table).dtype).removeprefix("torch."): table for table in tables}
    for dtype, table in of_dtype.items():
        for name in NETWORKS:
            times = seconds[f"{name} {dtype}"] = {contestant: [] for contestant in contestants}
            for number in range(-1, rounds):  # the first one warms up
                for contestant in list(contestants)[:: 1 if number % 2 else -1]:
                    network = build_network(name, 10, 0)
                    started = time.perf_counter()
                    contestants[contestant](network, task, table)
                    elapsed_s = time.perf_counter() - started
                    if number >= 0:
                        times[contestant].append(elapsed_s)
                        print(name, dtype, contestant, f"{IMAGES * EPOCHS / elapsed_s:.0f} images/s", flush=True)
    result = {"threads": torch.get_num_threads(), "images": IMAGES * EPOCHS, "seconds": seconds}
    (Path(__file__).parent / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    summarise(seconds)


def summarise(seconds: dict[str, dict[str, list[float]]]) -> None:
    figures, holds = {}, {}
    for name, times in seconds.items():
        network, dtype = name.rsplit(":")[-1].removeprefix("cifar-").split()
        ratios = np.array(times["plain"]) / np.array(times["onnxdistill"])
        key = f"{network}_in_{dtype}_over_plain"
        figures[f"{key}_x"], figures[f"{key}_low_x"], figures[f"{key}_high_x"] = (
            float(np.median(ratios)),
            float(ratios.min()),
            float(ratios.max()),
        )
        holds[f"{key}_is_faster_in_every_round"] = bool(ratios.min() > 1)
    claim = (
        "Training networks made for large images on those of CIFAR-10, against a plain PyTorch loop in the same type; "
        "intervals are the least and the most of the rounds"
    )
    write_summary(
        "small-maps", claim, "python benchmarks/small-maps/run.py --data CIFAR10", figures, holds, this_machine()
    )


if __name__ == "__main__":
    main()
