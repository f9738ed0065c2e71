"""Making good what a cut has done: what is held of the calibration samples meanwhile."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from onnxdistill.graph import recalibrate, repair
from onnxdistill.graph.blocks import without_blocks
from onnxdistill.networks import build_network
from onnxdistill.tasks.base import TrainingBatch
from onnxdistill.tasks.classification import Classification
from onnxdistill.training.repaired import CalibrationInputs, best_repaired


@dataclass
class Counting:
    """A task with as many calibration batches as asked for, which counts how many of them are held at once."""

    task: Classification
    batches: int
    living: list[weakref.ref[Tensor]] = field(default_factory=list)
    most: int = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.task, name)

    def calibration_batches(self, batch_size: int) -> Iterator[TrainingBatch]:
        first = next(iter(self.task.calibration_batches(batch_size)))
        for _ in range(self.batches):
            batch = TrainingBatch(first.inputs.clone(), first.targets)
            self.living.append(weakref.ref(batch.inputs))
            self.most = max(self.most, sum(one() is not None for one in self.living))
            yield batch


@pytest.mark.parametrize("fit", [False, True])
def test_more_calibration_samples_need_no_more_memory(
    digits: Classification, monkeypatch: pytest.MonkeyPatch, fit: bool
) -> None:
    # What is looked at at once is as much as fits into memory, which is less than a few samples here.
    monkeypatch.setattr(recalibrate, "_MOST_INPUTS", 1)
    monkeypatch.setattr(repair, "_MOST_VALUES", 1)
    network = build_network("digits-resnet", 10, 0).eval()
    most = []
    for batches in (6, 12):
        task = Counting(digits, batches)
        shorter = without_blocks(network, ["block1"])
        best_repaired(network, shorter, {}, ["block1"], task, fit=fit)  # type: ignore[arg-type]
        assert len(task.living) >= batches
        most.append(task.most)
    assert most[0] == most[1]


def test_calibration_inputs_begin_anew(digits: Classification) -> None:
    inputs = CalibrationInputs(digits)
    first, again = list(inputs), list(inputs)
    assert sum(map(len, first)) == 64
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
