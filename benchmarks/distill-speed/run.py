"""How fast students of a ResNet-56 train, against a plain PyTorch loop and torchdistill, in turns, in one process.

The same work for all: the same images of CIFAR-10 with random crops and flips, the same batches of 128, the same
number of epochs, the same loss (labels and softened logits), SGD. The plain loop is float32, runs the teacher in every
step, and gets its batches as cheaply as onnxdistill does; torchdistill gets them from the data loader that its examples
use. onnxdistill stores what the teacher says to `VIEWS` views of every image, which is counted in, and validates twice,
on 64 images. One fifth of the epochs have new views, as 8 views in 40 epochs. Start-up is not counted for anybody.

Usage: pip install torchdistill; python benchmarks/distill-speed/run.py --data CIFAR10 --weights FOLDER [--rounds 3]
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdistill.core.distillation import get_distillation_box
from torchvision.transforms import v2

from onnxdistill.data import load_images
from onnxdistill.data.augment import Augmentation
from onnxdistill.networks import build_network
from onnxdistill.recipe import DataTable, DistillTable
from onnxdistill.stages.distill import distill
from onnxdistill.tasks.classification import Classification

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.summaries import this_machine, write_summary

STUDENTS = ("cifar-resnet20", "cifar-resnet56")
IMAGES, BATCH, EPOCHS, VIEWS = 384, 128, 10, 2
RATE, TEMPERATURE = 0.05, 4.0
FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)


def onnxdistill_trains(student: nn.Module, teacher: nn.Module, task: Classification) -> None:
    table = DistillTable(
        epochs=EPOCHS,
        batch_size=BATCH,
        learning_rate=RATE,
        crop_pad=4,
        flip=True,
        views=VIEWS,
        temperature=TEMPERATURE,
        soft_weight=1.0,
        standardise=False,
    )
    distill(student, [teacher], task, table, seed=0)


def plain_loop_trains(student: nn.Module, teacher: nn.Module, task: Classification) -> None:
    optimizer = torch.optim.SGD(student.parameters(), RATE, 0.9, weight_decay=5e-4, nesterov=True)
    rng = np.random.default_rng(0)
    student.train()
    for epoch in range(EPOCHS):
        batches = np.split(rng.permutation(IMAGES), range(BATCH, IMAGES, BATCH))
        for batch in task.training_batches(batches, Augmentation(crop_pad=4, flip=True), epoch):
            inputs = batch.inputs.contiguous()
            with torch.no_grad():
                target = teacher(inputs)
            logits = student(inputs)
            soft = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, 1), F.softmax(target / TEMPERATURE, 1), reduction="batchmean"
            )
            loss = F.cross_entropy(logits, batch.targets) + TEMPERATURE**2 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class Photos(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The training images, one by one, changed by torchvision."""

    def __init__(self, task: Classification) -> None:
        self._pixels = task.splits.train.fetch(np.arange(IMAGES))
        self._labels = task.splits.train.labels.tolist()
        steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        self._change = v2.Compose([*steps, v2.Normalize(list(task.splits.mean), list(task.splits.std))])

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._change(self._pixels[index]), self._labels[index]


def torchdistill_box(student: nn.Module, teacher: nn.Module, task: Classification) -> Any:  # untyped there
    logits = {"student_module_path": ".", "student_module_io": "output"}
    logits |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    loss = {"key": "KDLoss", "kwargs": {**logits, "temperature": TEMPERATURE, "alpha": 1.0, "beta": 1.0}}
    loader = {"num_workers": 2, "persistent_workers": True, "batch_size": BATCH}
    settings = {
        "num_epochs": EPOCHS,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}},
            "kwargs": loader,
        },
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": RATE, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
        },
    }
    datasets = {"train": Photos(task)}
    return get_distillation_box(teacher, student, datasets, settings, torch.device("cpu"), None, False, 1.0)


def torchdistill_trains(box: Any) -> None:  # untyped there
    for epoch in range(EPOCHS):
        box.pre_epoch_process(epoch=epoch)
        for inputs, targets, *further in box.train_data_loader:
            loss = box.forward_process(inputs, targets, further[0] if further else None)
            box.post_forward_process(loss=loss)


def runs(name: str, weights: Path, task: Classification) -> dict[str, Callable[[], None]]:
    """One training of every contestant, from the same weights."""
    teacher = build_network("cifar-resnet56", 10, 0)
    teacher.load_state_dict(torch.load(weights / "resnet56-cifar10-jpeg.pt", weights_only=True))
    student = build_network(name, 10, 0)
    box = torchdistill_box(copy.deepcopy(student), copy.deepcopy(teacher), task)
    iter(box.train_data_loader)  # starts its workers
    plain = copy.deepcopy(student)
    return {
        "onnxdistill": lambda: onnxdistill_trains(student, teacher, task),
        "plain": lambda: plain_loop_trains(plain, teacher, task),
        "torchdistill": lambda: torchdistill_trains(box),
    }


@click.command()
@click.option("--data", type=FOLDER_THERE, required=True, help="CIFAR-10 as train/ and test/ folders of classes.")
@click.option("--weights", type=FOLDER_THERE, required=True, help="Folder of resnet56-cifar10-jpeg.pt.")
@click.option("--rounds", default=3, show_default=True)
def main(data: Path, weights: Path, rounds: int) -> None:
    """Times every contestant in every round, in another order each time."""
    table = DataTable(source="folder", root=str(data), image_size=32, calibration=64)
    splits = load_images(table, seed=0)
    few = {"train": splits.train.subset(np.arange(IMAGES)), "validation": splits.validation.subset(np.arange(64))}
    task = Classification(dataclasses.replace(splits, **few))
    seconds: dict[str, dict[str, list[float]]] = {}
    for name in STUDENTS:
        contestants = runs(name, weights, task)
        seconds[name] = {contestant: [] for contestant in contestants}
        for number in range(rounds):
            names = list(contestants)
            for contestant in names[number % 3 :] + names[: number % 3]:
                started = time.perf_counter()
                contestants[contestant]()
                seconds[name][contestant].append(time.perf_counter() - started)
                print(name, contestant, f"{IMAGES * EPOCHS / seconds[name][contestant][-1]:.0f} images/s", flush=True)
    result = {"threads": torch.get_num_threads(), "dtype": "auto", "images": IMAGES * EPOCHS, "seconds": seconds}
    (Path(__file__).parent / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    summarise(seconds)


def summarise(seconds: dict[str, dict[str, list[float]]]) -> None:
    figures, holds = {}, {}
    for name, times in seconds.items():
        student = name.removeprefix("cifar-")
        for other, asked in (("plain", 2.0), ("torchdistill", 1.5)):
            ratios = np.array(times[other]) / np.array(times["onnxdistill"])
            figures[f"{student}_over_{other}_x"] = float(np.median(ratios))
            figures[f"{student}_over_{other}_low_x"], figures[f"{student}_over_{other}_high_x"] = (
                ratios.min(),
                ratios.max(),
            )
            holds[f"{student}_at_least_{asked:g}_times_{other}"] = bool(ratios.min() >= asked)
    claim = (
        "Distilling from a ResNet-56 on two cores, against a plain float32 loop that runs the teacher in every step, "
        "and against torchdistill; intervals are the least and the most of the rounds"
    )
    command = "python benchmarks/distill-speed/run.py --data CIFAR10 --weights FOLDER"
    write_summary("distill-speed", claim, command, figures, holds, this_machine())


if __name__ == "__main__":
    main()
