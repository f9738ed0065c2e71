"""Several processes train like one: real processes, by torchrun."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onnxdistill.data import load_images
from onnxdistill.recipe import DataTable, FeaturesTable, TrainingTable
from onnxdistill.tasks.base import Objective
from onnxdistill.tasks.classification import Classification
from onnxdistill.training import Guidance, follow, leading, train
from onnxdistill.training.team import current_team


def network(width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norms = (nn.BatchNorm2d(width), nn.BatchNorm1d(16 * width, affine=False, momentum=None))
        layers = [
            nn.Conv2d(1, width, 3, 2, 1, bias=False),
            norms[0],
            nn.ReLU(),
            nn.Flatten(),
            norms[1],
            nn.Linear(16 * width, 10),
        ]
        return nn.Sequential(*layers).eval()


def cases() -> dict[str, tuple[dict[str, Any], Guidance]]:
    """Between them: batch norm, stored answers, adapters, clipping, an average, and 20 steps each."""
    features = FeaturesTable(layers=["2"], loss="hint")
    return {
        "stored": ({"average": 0.9, "clip_norm": 0.5}, Guidance((network(8, 1),), views=2)),
        "features": ({"flip": True, "crop_pad": 1}, Guidance((network(12, 1),), features=features)),
        "adamw": ({"optimizer": "adamw", "learning_rate": 0.01}, Guidance()),
    }


def trained(case: str) -> dict[str, Any]:
    """The weights after 20 steps, on every process; only the first one's are worth something."""
    torch.set_num_threads(1)
    table = DataTable.model_validate({"source": "digits", "validation": 0.1485, "calibration": 64})
    splits = load_images(table, seed=0)
    task = Classification(dataclasses.replace(splits, train=splits.train.subset(np.arange(320))))
    if current_team().rank > 0:
        follow(task)
        return {}
    changes, guidance = cases()[case]
    values = {"epochs": 4, "batch_size": 64, "learning_rate": 0.05, "precision": "float32"} | changes
    with leading():
        objective = Objective(soft_weight=1.0)
        result = train(network(8, 0), task, TrainingTable.model_validate(values), 0, objective, guidance)
    return {"state": result.network.state_dict(), "losses": torch.tensor([record.loss for record in result.history])}


@pytest.mark.parametrize("case", ["stored", "features", "adamw"])
def test_two_processes_come_to_the_weights_of_one(case: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["tests.training.test_team", case, str(tmp_path / "two.pt")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    two, one = torch.load(tmp_path / "two.pt", weights_only=True), trained(case)
    assert torch.allclose(two["losses"], one["losses"], atol=1e-4)
    for name, tensor in one["state"].items():
        assert torch.allclose(two["state"][name].float(), tensor.float(), atol=1e-4), name


if __name__ == "__main__":
    outcome = trained(sys.argv[1])
    if outcome:
        torch.save(outcome, sys.argv[2])
